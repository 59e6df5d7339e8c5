//! Ports that meshd needs: who has them. Read from `/proc`, as `ss` does; names of others' processes need root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use mesh_proto::look::{Check, Grade};
use rustix::thread::CapabilitySet;

use super::unit::Unit;
use super::{Patient, process};
use crate::config::Config;

/// A key of `meshd.toml`, its transport, where it listens.
type Wanted = (String, Transport, SocketAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A socket that somebody listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    transport: Transport,
    address: SocketAddr,
    inode: u64,
}

/// Checks that every port is free, or, where this meshd runs, that it is the one who has it.
pub(super) fn check(patient: &Patient, unit: Option<&Unit>) -> Vec<Check> {
    let taken = taken();
    let own = owned_by("/proc/self");
    let wanted = wanted(&patient.config);
    let mut checks = Vec::new();
    let mut kept = 0;
    for (key, transport, address) in &wanted {
        let holders: Vec<&Taken> =
            taken.iter().filter(|it| it.transport == *transport && collides(it.address, *address)).collect();
        let foreign = holders.iter().find(|it| !own.contains(&it.inode));
        let finding = match foreign.map(|holder| (holder, holder_of(holder.inode))) {
            Some((_, who)) if unit.is_some_and(|unit| is_the_units(unit, who.as_ref())) => {
                kept += 1;
                None
            }
            Some((holder, who)) => Some(is_taken(key, *address, holder, who, patient.is_running)),
            None if patient.is_running && holders.is_empty() => Some(is_closed(key, *transport, *address)),
            None if patient.is_running => None,
            None => is_privileged(key, *address, unit),
        };
        checks.extend(finding);
    }
    if checks.is_empty() {
        let state = match (patient.is_running, kept) {
            (true, _) => "open, and meshd's".to_owned(),
            (false, 0) => "free".to_owned(),
            (false, kept) => format!("free, or kept for meshd by systemd ({kept})"),
        };
        checks.push(Check::good("ports", format!("all {} are {state}", wanted.len())));
    }
    checks
}

/// Whether a socket is one that systemd keeps while the unit starts anew, or one of the unit's own processes'. Who is not
/// root does not see which process: then it is taken for such a one.
fn is_the_units(unit: &Unit, holder: Option<&(u32, String)>) -> bool {
    match holder {
        Some((1, _)) | None => unit.kept > 0,
        Some((pid, _)) => std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|groups| groups.lines().any(|line| line.ends_with("/meshd.service"))),
    }
}

/// A port that only some may open, and who would run meshd may not.
fn is_privileged(key: &str, address: SocketAddr, unit: Option<&Unit>) -> Option<Check> {
    let rights = unit.map_or_else(process::own_rights, |unit| unit.rights);
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    let is_bound_by = |first: u16| address.port() != 0 && address.port() < first;
    (is_bound_by(first.trim().parse().ok()?) && !rights.contains(CapabilitySet::NET_BIND_SERVICE)).then(|| {
        let whose = unit.map_or("whoever types this", Unit::user);
        Check::new(
            Grade::Error,
            "ports",
            format!("{whose} may not open {address} ({key}): CAP_NET_BIND_SERVICE is missing"),
            "meshd does not start",
            format!("systemctl cat meshd shows what takes it away (AmbientCapabilities, CapabilityBoundingSet); or set {key} to a port above"),
        )
    })
}

fn is_taken(
    key: &str,
    address: SocketAddr,
    holder: &Taken,
    who: Option<(u32, String)>,
    is_running: bool,
) -> Check {
    let by = match who {
        Some((pid, name)) => format!("{name} (process {pid})"),
        None => "another process (root sees which: ss -lntup)".into(),
    };
    let transport = holder.transport.name();
    let why = if !is_running {
        "meshd does not start"
    } else if holder.transport == Transport::Udp {
        "other hosts reach this one over TCP alone"
    } else {
        "connections to it may go there and not to meshd"
    };
    let grade = if is_running { Grade::Warning } else { Grade::Error };
    let fix = format!("stop it, or set {key} in meshd.toml to another address");
    Check::new(grade, "ports", format!("{transport} {address} ({key}) is held by {by}"), why, fix)
}

fn is_closed(key: &str, transport: Transport, address: SocketAddr) -> Check {
    let what = format!("meshd does not listen on {} {address} ({key})", transport.name());
    // A host without IPv6 goes on without its IPv6 addresses.
    if address.is_ipv6() {
        let fix = format!(
            "sysctl net.ipv6.conf.all.disable_ipv6 tells (0: it is on); without IPv6, take [{}] out of {key} in meshd.toml",
            address.ip()
        );
        return Check::new(Grade::Info, "ports", what, "this host seems to have no IPv6", fix);
    }
    let why = if transport == Transport::Udp {
        "other hosts reach this one over TCP alone"
    } else {
        "who connects to it is refused"
    };
    Check::new(Grade::Warning, "ports", what, why, "journalctl -u meshd -p warning; systemctl restart meshd")
}

fn wanted(config: &Config) -> Vec<Wanted> {
    let listen = &config.listen;
    let mut wanted = Vec::new();
    let mut add = |key: &str, transport, addresses: &[SocketAddr]| {
        wanted.extend(addresses.iter().map(|address| (key.to_owned(), transport, *address)));
    };
    let mesh = match listen.mesh {
        mesh if mesh.is_ipv6() && mesh.ip().is_unspecified() => {
            vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, mesh.port())), mesh]
        }
        mesh => vec![mesh],
    };
    add("listen.mesh", Transport::Tcp, &mesh);
    add("listen.mesh", Transport::Udp, &mesh);
    add("listen.outbound", Transport::Tcp, &listen.outbound);
    add("listen.inbound", Transport::Tcp, &listen.inbound);
    add("listen.admin", Transport::Tcp, listen.admin.as_slice());
    add("listen.metrics", Transport::Tcp, &listen.metrics);
    add("listen.http_proxy", Transport::Tcp, listen.http_proxy.as_slice());
    add("listen.dns", Transport::Tcp, &listen.dns);
    add("listen.dns", Transport::Udp, &listen.dns);
    for (at, listener) in config.listeners.iter().enumerate() {
        add(&format!("listener[{at}].address"), Transport::Tcp, &[listener.address]);
    }
    wanted
}

/// Whether a socket on `held` keeps another from listening on `wanted`: the same port, and an address in common.
fn collides(held: SocketAddr, wanted: SocketAddr) -> bool {
    if held.port() != wanted.port() || wanted.port() == 0 {
        return false;
    }
    let any = |any: IpAddr, other: IpAddr| any.is_unspecified() && any.is_ipv4() == other.is_ipv4();
    held.ip() == wanted.ip() || any(held.ip(), wanted.ip()) || any(wanted.ip(), held.ip())
}

/// Whether anybody listens there for TCP.
pub(super) fn is_open(address: SocketAddr) -> bool {
    taken().iter().any(|it| it.transport == Transport::Tcp && collides(it.address, address))
}

fn taken() -> Vec<Taken> {
    let files = [
        ("/proc/net/tcp", Transport::Tcp),
        ("/proc/net/tcp6", Transport::Tcp),
        ("/proc/net/udp", Transport::Udp),
        ("/proc/net/udp6", Transport::Udp),
    ];
    let read = |(file, transport): (&str, Transport)| {
        parse(&std::fs::read_to_string(file).unwrap_or_default(), transport)
    };
    files.into_iter().flat_map(read).collect()
}

/// Reads the listening sockets of `/proc/net/{tcp,udp}{,6}`. Source: proc(5).
fn parse(text: &str, transport: Transport) -> Vec<Taken> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = match transport {
            Transport::Tcp => words.get(3) == Some(&"0A"),
            // Connected ones take nothing from anybody.
            Transport::Udp => words.get(3) == Some(&"07"),
        };
        let address = socket_address(words.get(1)?)?;
        let inode = words.get(9)?.parse().ok()?;
        listens.then_some(Taken { transport, address, inode })
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// `0100007F:3A98` is 127.0.0.1:15000: words of 32 bits in the order of this machine's bytes.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(8 * at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The sockets that a process has open, by inode.
fn owned_by(process: &str) -> BTreeSet<u64> {
    let Ok(descriptors) = std::fs::read_dir(Path::new(process).join("fd")) else { return BTreeSet::new() };
    let inode =
        |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    let links = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(inode).collect()
}

fn holder_of(inode: u64) -> Option<(u32, String)> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if owned_by(&format!("/proc/{pid}")).contains(&inode) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_as_the_kernel_writes_them() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let listens = "   0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0\n";
        let connected = "   1: 0100007F:3A98 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0 20 4 30 10 -1\n";
        let text = format!("{head}{listens}{connected}");

        let found = parse(&text, Transport::Tcp);

        let address = "127.0.0.1:15000".parse().expect("an address");
        assert_eq!(found, [Taken { transport: Transport::Tcp, address, inode: 12_345 }]);
        let v6 = socket_address("00000000000000000000000001000000:3AA0").expect("an address");
        assert_eq!(v6, "[::1]:15008".parse().expect("an address"));
    }

    #[test]
    fn any_address_collides_with_each_of_its_family() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");

        assert!(collides(at("0.0.0.0:15001"), at("127.0.0.1:15001")));
        assert!(!collides(at("0.0.0.0:15001"), at("[::1]:15001")));
        assert!(!collides(at("127.0.0.2:15001"), at("127.0.0.1:15001")));
    }

    #[test]
    fn a_host_without_ipv6_is_told_what_to_take_out() {
        let address = "[::1]:15053".parse().expect("an address");

        let told = is_closed("listen.dns", Transport::Udp, address);

        assert_eq!(told.grade, Grade::Info);
        assert!(told.fix.contains("take [::1] out of listen.dns in meshd.toml"), "{told:?}");
    }

    #[test]
    fn a_port_that_a_stranger_holds_is_told_with_the_strangers_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let holder = taken().into_iter().find(|it| it.address == address).expect("it is seen");

        let told = is_taken("listen.outbound", address, &holder, holder_of(holder.inode), false);

        assert_eq!(told.grade, Grade::Error);
        assert!(told.what.contains(&format!("TCP {address} (listen.outbound) is held by")), "{told:?}");
        assert!(told.what.contains(&std::process::id().to_string()), "{told:?}");
    }
}
