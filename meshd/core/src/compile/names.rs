//! What DNS answers: every name that callers here may use for a service with addresses.
//!
//! Source: Istio's DNS proxy (`BuildAltHosts`, automatic allocation of addresses).

use std::net::IpAddr;
use std::sync::Arc;

use super::hosts::{Services, short_names};
use crate::plan::{Names, Node};

/// Gathers the names. Where callers of two namespaces mean different services by one short name, the first caller's
/// meaning counts.
pub(super) fn names(node: &Node, services: &Services<'_>) -> Names {
    let mut names = Names::default();
    for caller in &node.callers {
        for service in services.all.iter().filter(|service| service.seen_from(&caller.namespace)) {
            let addresses: Arc<[IpAddr]> = service.single_addresses().collect();
            if addresses.is_empty() {
                continue;
            }
            if let Some(suffix) = service.host.strip_prefix('*') {
                if names.wildcard.iter().all(|(other, _)| **other != *suffix) {
                    names.wildcard.push((suffix.into(), addresses));
                }
                continue;
            }
            let full = std::iter::once(service.host.to_string());
            for name in full.chain(short_names(&service.host, &caller.namespace)) {
                names.exact.entry(name.into()).or_insert_with(|| addresses.clone());
            }
        }
    }
    names.wildcard.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
    names
}
