//! The nftables ruleset that brings a host's traffic to meshd, as text.
//!
//! One table of our own, `inet meshd`, replaced in one transaction; nothing of others is touched. What it must never
//! do: catch meshd's own sockets (they carry a mark), catch SSH, or break a connection that was open before it was
//! loaded. Loading it, and the routes that virtual addresses need, is left to `meshd::intercept`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

#[cfg(test)]
mod tests;

/// Virtual IPv4 addresses of services.
pub const VIRTUAL_V4: &str = "240.240.0.0/16";
/// Virtual IPv6 addresses of services.
pub const VIRTUAL_V6: &str = "2001:2::/48";

/// What is redirected where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// `SO_MARK` of meshd's own sockets.
    pub mark: u32,
    /// Where connections of local processes go: port of a listener on `127.0.0.1` and `::1`.
    pub outbound_port: u16,
    /// Where connections to local services go: port of a listener on all addresses; `None`: they are left alone.
    pub inbound_port: Option<u16>,
    /// Ports that local instances answer: only these are caught on their way in.
    pub inbound_targets: BTreeSet<u16>,
    /// Where DNS questions go; `None`: they are left alone.
    pub dns: Option<DnsCapture>,
    /// TCP ports left alone in both directions; 22 always is.
    pub exclude_ports: BTreeSet<u16>,
    /// Ports that meshd itself listens on, here and on other hosts.
    pub own_ports: BTreeSet<u16>,
    /// Destinations left alone.
    pub exclude_cidrs: Vec<IpNet>,
    /// Users left alone, DNS included.
    pub exclude_uids: BTreeSet<u32>,
    /// The SSH session from which meshd was started, if any: whoever typed the command stays connected.
    pub ssh: Option<SshSession>,
}

/// Which DNS questions are caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCapture {
    /// Port of a listener on `127.0.0.1` and `::1`, UDP and TCP.
    pub port: u16,
    /// Only questions to these; empty: to any. Needed where meshd's own upstream is a resolver on this host, whose
    /// questions to the world would otherwise come back to meshd.
    pub only: Vec<IpAddr>,
}

/// A present SSH session into this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshSession {
    /// Who is connected.
    pub peer: IpAddr,
    /// The port where sshd listens.
    pub port: u16,
}

/// Returns the whole table for `nft -f -`: created, emptied and filled in one transaction.
pub fn ruleset(intercept: &Intercept) -> String {
    // A table must exist to be deleted: the first line makes sure of it.
    let mut out = String::from("table inet meshd\ndelete table inet meshd\ntable inet meshd {\n");
    out.push_str(&port_set(&intercept.inbound_targets));
    output(&mut out, intercept);
    prerouting(&mut out, intercept);
    guards(&mut out);
    out.push_str("}\n");
    out
}

/// Returns the change of the inbound ports alone, in one transaction; the table must be loaded.
pub fn update_inbound(targets: &BTreeSet<u16>) -> String {
    let mut out = String::from("flush set inet meshd inbound_targets\n");
    if !targets.is_empty() {
        let _ = writeln!(out, "add element inet meshd inbound_targets {{ {} }}", joined(targets));
    }
    out
}

/// Returns the removal of the table; does nothing where there is none.
pub fn removal() -> &'static str {
    "table inet meshd\ndelete table inet meshd\n"
}

fn port_set(targets: &BTreeSet<u16>) -> String {
    let elements = if targets.is_empty() {
        String::new()
    } else {
        format!("\t\telements = {{ {} }}\n", joined(targets))
    };
    format!("\tset inbound_targets {{\n\t\ttype inet_service\n{elements}\t}}\n")
}

/// What local processes send. The order matters: who is exempt at all, DNS, virtual addresses, then the rest.
fn output(out: &mut String, intercept: &Intercept) {
    out.push_str("\tchain output {\n\t\ttype nat hook output priority -100; policy accept;\n");
    rule(out, &format!("meta mark {:#x} return", intercept.mark));
    if !intercept.exclude_uids.is_empty() {
        rule(out, &format!("meta skuid {{ {} }} return", joined(&intercept.exclude_uids)));
    }
    rule(out, NOT_A_NEW_CONNECTION);
    if let Some(dns) = &intercept.dns {
        dns_rules(out, dns);
    }
    left_alone(out, intercept);
    if let Some(SshSession { peer, port }) = intercept.ssh {
        rule(out, &format!("{} daddr {peer} tcp sport {port} return", family(peer)));
    }
    rule(out, "tcp sport 22 return");
    rule(out, &format!("ip daddr {VIRTUAL_V4} tcp dport 1-65535 redirect to :{}", intercept.outbound_port));
    rule(out, &format!("ip6 daddr {VIRTUAL_V6} tcp dport 1-65535 redirect to :{}", intercept.outbound_port));
    // Every address of this host is routed through lo, not only 127.0.0.0/8 and ::1.
    rule(out, "oifname \"lo\" return");
    for range in IpNet::aggregate(&intercept.exclude_cidrs) {
        rule(out, &format!("{} daddr {range} return", family(range.addr())));
    }
    own_ports(out, intercept);
    rule(out, &format!("meta l4proto tcp redirect to :{}", intercept.outbound_port));
    out.push_str("\t}\n");
}

fn dns_rules(out: &mut String, dns: &DnsCapture) {
    let redirect = format!("meta l4proto {{ tcp, udp }} th dport 53 redirect to :{}", dns.port);
    if dns.only.is_empty() {
        return rule(out, &redirect);
    }
    for address in &dns.only {
        rule(out, &format!("{} daddr {address} {redirect}", family(*address)));
    }
}

/// What arrives from other hosts for this one.
fn prerouting(out: &mut String, intercept: &Intercept) {
    let Some(port) = intercept.inbound_port else { return };
    // After the usual -100, so that published ports of containers keep going where they went.
    out.push_str("\tchain prerouting {\n\t\ttype nat hook prerouting priority -90; policy accept;\n");
    rule(out, "iifname \"lo\" return");
    rule(out, NOT_A_NEW_CONNECTION);
    left_alone(out, intercept);
    if let Some(SshSession { peer, port }) = intercept.ssh {
        rule(out, &format!("{} saddr {peer} tcp dport {port} return", family(peer)));
    }
    own_ports(out, intercept);
    // What is only passing through this host is not for its instances.
    rule(out, &format!("tcp dport @inbound_targets fib daddr type local redirect to :{port}"));
    out.push_str("\t}\n");
}

fn left_alone(out: &mut String, intercept: &Intercept) {
    let mut ports = intercept.exclude_ports.clone();
    ports.insert(22);
    rule(out, &format!("tcp dport {{ {} }} return", joined(&ports)));
}

fn own_ports(out: &mut String, intercept: &Intercept) {
    if !intercept.own_ports.is_empty() {
        rule(out, &format!("tcp dport {{ {} }} return", joined(&intercept.own_ports)));
    }
}

/// Virtual addresses are local for the kernel (see `meshd::intercept`), so that what was not redirected would reach
/// this host's own sshd or web server. It is refused instead, and nobody else may send to them.
fn guards(out: &mut String) {
    out.push_str("\tchain output_guard {\n\t\ttype filter hook output priority 0; policy accept;\n");
    for (family, range) in [("ip", VIRTUAL_V4), ("ip6", VIRTUAL_V6)] {
        rule(out, &format!("{family} daddr {range} ct state new reject"));
    }
    out.push_str("\t}\n\tchain input_guard {\n\t\ttype filter hook input priority 0; policy accept;\n");
    for (family, range) in [("ip", VIRTUAL_V4), ("ip6", VIRTUAL_V6)] {
        rule(out, &format!("iifname != \"lo\" {family} daddr {range} drop"));
    }
    out.push_str("\t}\n");
}

fn rule(out: &mut String, text: &str) {
    let _ = writeln!(out, "\t\t{text}");
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn joined<T: ToString>(items: &BTreeSet<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Only the first packet of a connection is judged: connection tracking begins when this table is loaded, and
/// would take the next packet of every older connection for a new one, and redirect it in mid-stream.
const NOT_A_NEW_CONNECTION: &str = "tcp flags & (fin | syn | rst | ack) != syn return";
