//! Where a connection goes that is no request: by its address, the server it asks for, or its port.
//!
//! Source: Envoy's filter chain match, Istio `buildOutboundTCPListenerOptsForPortOrUDS`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_proto::registration::Protocol;

use crate::plan::{Names, Outbound, ServicePort, TcpRule, TcpRules, TlsHost, UnknownHosts};
use crate::wire::sniff;

/// What a connection stands for.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A service port: the server it asks for or the port's TCP service decides.
    Port(u16),
    /// One service.
    Host {
        /// Its name, in any case.
        host: &'a str,
        /// Its port.
        port: u16,
    },
    /// Where it was going.
    Address(SocketAddr),
    /// Nothing in particular.
    Nothing,
}

/// What is spoken on a connection that is no HTTP.
#[derive(Clone, Copy, Debug)]
pub enum Spoken<'a> {
    /// TLS, with the server's name where it is said.
    Tls(Option<&'a str>),
    /// Bytes.
    Opaque,
}

/// What is expected on a connection before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Requests.
    Http,
    /// TLS that is passed on by the server it asks for.
    Tls,
    /// Bytes; the server may speak first, and nothing is looked at.
    Tcp,
    /// Anything: the first bytes have to say.
    Any,
}

/// Which rules a connection follows.
#[derive(Clone, Copy, Debug)]
pub enum Way<'p> {
    /// Those of a service.
    Service(&'p Arc<ServicePort>),
    /// Those of a server name.
    Tls(&'p Arc<TlsHost>),
    /// None: unknown connections go by the proxy for them.
    EgressProxy(&'p Arc<ServicePort>),
    /// None: it goes where it was going.
    Direct,
    /// None: it is closed.
    Refused,
}

impl<'p> Way<'p> {
    /// Returns the rules.
    pub fn rules(self) -> Option<&'p TcpRules> {
        match self {
            Self::Service(service) | Self::EgressProxy(service) => Some(&service.tcp),
            Self::Tls(host) => Some(&host.rules),
            Self::Direct | Self::Refused => None,
        }
    }
}

/// Returns the service port that a target is about: that of a declared range or address, else its own.
pub fn port(outbound: &Outbound, target: Target<'_>) -> u16 {
    match target {
        Target::Port(port) | Target::Host { port, .. } => port,
        Target::Address(address) => {
            at_address(outbound, address).map_or(address.port(), |service| service.number)
        }
        Target::Nothing => 0,
    }
}

/// Tells what is expected on a connection: by the protocol of its service, else by what else is on its port.
pub fn expected(outbound: &Outbound, names: &Names, target: Target<'_>) -> Expected {
    if let Some(service) = service(outbound, names, target) {
        return match service.protocol {
            protocol if protocol.is_http() => Expected::Http,
            protocol if protocol.is_tls() => Expected::Tls,
            Protocol::Auto => told_by_number(service.number),
            _ => Expected::Tcp,
        };
    }
    if let Target::Address(address) = target {
        return told_by_number(address.port());
    }
    let (Target::Port(port) | Target::Host { port, .. }) = target else { return Expected::Any };
    match outbound.ports.get(&port) {
        Some(table) if table.tcp.is_some() => Expected::Any,
        Some(table) if table.has_http() && table.tls.is_empty() => Expected::Http,
        Some(table) if !table.has_http() && !table.tls.is_empty() => Expected::Tls,
        _ => Expected::Any,
    }
}

/// What a port nobody declared is known for.
fn told_by_number(port: u16) -> Expected {
    if sniff::server_speaks_first(port) { Expected::Tcp } else { Expected::Any }
}

/// Finds which rules a connection follows.
pub fn way<'p>(outbound: &'p Outbound, names: &Names, target: Target<'_>, spoken: Spoken<'_>) -> Way<'p> {
    let table = outbound.ports.get(&port(outbound, target));
    if let (Spoken::Tls(Some(name)), Some(table)) = (spoken, table)
        && let Some(host) = table.tls.find(name)
    {
        return Way::Tls(host);
    }
    let is_tls = matches!(spoken, Spoken::Tls(_));
    let found = service(outbound, names, target).or_else(|| table?.tcp.as_ref());
    // On TLS ports only the names that rules have count.
    if let Some(service) = found.filter(|service| !is_tls || !service.protocol.is_tls()) {
        return Way::Service(service);
    }
    match (&outbound.egress_proxy, outbound.unknown, target) {
        (Some(proxy), UnknownHosts::Allow, _) => Way::EgressProxy(proxy),
        (_, UnknownHosts::Refuse | UnknownHosts::NotFound, _) | (_, _, Target::Nothing) => Way::Refused,
        // Without a name nobody knows where it was going.
        (_, _, Target::Port(_)) if !matches!(spoken, Spoken::Tls(Some(_))) => Way::Refused,
        _ => Way::Direct,
    }
}

/// Finds the service that a target's address or name says.
pub fn service<'p>(
    outbound: &'p Outbound,
    names: &Names,
    target: Target<'_>,
) -> Option<&'p Arc<ServicePort>> {
    match target {
        Target::Address(address) => at_address(outbound, address),
        Target::Host { host, port } => named(outbound, names, host, port),
        Target::Port(port) => {
            let table = outbound.ports.get(&port)?;
            table.tcp.as_ref().filter(|_| !table.has_http() && table.tls.is_empty())
        }
        Target::Nothing => None,
    }
}

/// Finds the service at an address: its own, else the most specific range.
pub fn at_address(outbound: &Outbound, address: SocketAddr) -> Option<&Arc<ServicePort>> {
    outbound.addresses.get(&(address.ip(), address.port())).or_else(|| {
        let fits =
            |(net, port, _): &&(ipnet::IpNet, u16, _)| *port == address.port() && net.contains(&address.ip());
        outbound.ranges.iter().find(fits).map(|(_, _, service)| service)
    })
}

/// A name is known through the addresses that DNS would answer, so that every spelling works.
pub fn named<'p>(
    outbound: &'p Outbound,
    names: &Names,
    host: &str,
    port: u16,
) -> Option<&'p Arc<ServicePort>> {
    let host = host.to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let by_address = names
        .find(host)
        .and_then(|addresses| addresses.iter().find_map(|address| outbound.addresses.get(&(*address, port))));
    let own_name = |service: &&Arc<ServicePort>| *service.host == *host && service.number == port;
    by_address
        .or_else(|| host.parse().ok().and_then(|address| outbound.addresses.get(&(address, port))))
        .or_else(|| outbound.addresses.values().find(own_name))
        .or_else(|| outbound.ports.get(&port)?.tcp.as_ref().filter(own_name))
}

/// Returns the first rule that applies to a connection that was going to an address; `None`: it is closed.
pub fn rule(rules: &TcpRules, destination: Option<IpAddr>) -> Option<&TcpRule> {
    rules.rules.iter().find(|rule| applies(rule, destination))
}

/// Whether a rule applies. Conditions on the caller were decided when compiling.
pub fn applies(rule: &TcpRule, destination: Option<IpAddr>) -> bool {
    rule.destination_subnets.is_empty()
        || destination.is_some_and(|to| rule.destination_subnets.iter().any(|net| net.contains(&to)))
}
