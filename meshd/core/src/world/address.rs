//! Virtual addresses: each mesh host name has one IPv4 and one IPv6 address that only meshd answers for.
//!
//! Ranges: 240.240.0.0/16 (Istio's own choice for ServiceEntry) and 2001:2::/48 (RFC 5180, benchmarking). A name
//! keeps its place for good; places of names that nobody uses any more are taken back only when all are given.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::watch::Change;

use super::World;

/// The virtual IPv4 range, a /16.
pub const VIRTUAL_V4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 0);
/// The virtual IPv6 range, a /48.
pub const VIRTUAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0);

/// Returns the two addresses of a place.
pub fn virtual_addresses(index: u16) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from(u32::from(VIRTUAL_V4) | u32::from(index));
    let v6 = Ipv6Addr::from(u128::from(VIRTUAL_V6) | u128::from(index));
    [IpAddr::V4(v4), IpAddr::V6(v6)]
}

impl World {
    /// Gives a place to each of these names that has none yet.
    ///
    /// With all 65,534 places taken and in use, further names get none: they are reached by their endpoints'
    /// addresses and by name through the HTTP port, not by a virtual address.
    pub(super) fn give_addresses(&self, names: impl IntoIterator<Item = String>) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut taken: Option<BTreeSet<u16>> = None;
        for host in names {
            if self.addresses.contains_key(&host) {
                continue;
            }
            let taken = taken.get_or_insert_with(|| self.addresses.values().copied().collect());
            let Some(index) = first_free(taken) else { break };
            taken.insert(index);
            changes.push(Change::VirtualAddress { host, index: Some(index) });
        }
        changes
    }
}

/// Returns the place after the highest one, or the first gap; .0 and .65535 stay unused.
fn first_free(taken: &BTreeSet<u16>) -> Option<u16> {
    match taken.last() {
        None => Some(1),
        Some(&last) if last < u16::MAX - 1 => Some(last + 1),
        Some(_) => (1..u16::MAX).find(|index| !taken.contains(index)),
    }
}
