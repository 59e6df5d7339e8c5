//! The servers of all `Gateway`s of a host, merged port by port.
//!
//! Plain HTTP servers of one address are one; TLS servers share an address by SNI; everything else on an address that is
//! taken is left out, and told. Source: Istio `mergeGateways`, `canMergeProtocols`, `CheckDuplicates`,
//! `sanitizeServerHostNamespace`.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::registration::Protocol;
use mesh_proto::resource::{Gateway, Server};
use mesh_proto::watch::Stored;

use super::super::outbound::Scene;
use super::Open;

/// What servers are merged by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) port: u16,
    pub(super) bind: String,
    protocol: String,
}

/// All servers.
#[derive(Default)]
pub(super) struct Merged<'a> {
    pub(super) servers: BTreeMap<At, Vec<Open<'a>>>,
    /// Those of HTTP by what their virtual hosts are kept under.
    pub(super) by_route: BTreeMap<String, Vec<Open<'a>>>,
    ports: BTreeSet<u16>,
    plain: BTreeMap<u16, (At, Protocol)>,
    /// Hosts of TLS servers by port and bind, and whose they are.
    taken: BTreeMap<(u16, String, String), String>,
}

/// Merges them, the older `Gateway` first.
pub(super) fn merge<'a>(scene: &Scene<'_>, gateways: &[(&'a Stored, &'a Gateway)]) -> Merged<'a> {
    let mut merged = Merged::default();
    for (stored, gateway) in gateways {
        for (index, server) in gateway.servers.iter().enumerate() {
            let Some(server) = read(stored, index, server) else { continue };
            if let Err(reason) = merged.add(server.clone()) {
                scene.problems.note(format!("{}: {reason}: it is left out", server.path()));
            }
        }
    }
    merged
}

fn read<'a>(stored: &'a Stored, index: usize, server: &'a Server) -> Option<Open<'a>> {
    let port = server.port.as_ref()?;
    let metadata = &stored.object.metadata;
    let host = |host: &String| {
        let host = host.to_ascii_lowercase();
        match host.split_once('/') {
            Some((".", name)) => format!("{}/{name}", metadata.namespace),
            Some(("*", name)) => name.to_owned(),
            _ => host,
        }
    };
    Some(Open {
        stored,
        gateway: format!("{}/{}", metadata.namespace, metadata.name),
        index,
        server,
        port: port.number,
        protocol: Protocol::parse(&port.protocol).unwrap_or(Protocol::Tcp),
        hosts: server.hosts.iter().map(host).collect(),
    })
}

impl<'a> Merged<'a> {
    fn add(&mut self, server: Open<'a>) -> Result<(), String> {
        if server.tls().is_some() {
            self.take_hosts(&server)?;
        }
        let bind = &server.server.bind;
        let at = At { port: server.port, bind: bind.clone(), protocol: format!("{:?}", server.protocol) };
        let route = server.route_name();
        if self.ports.insert(server.port) {
            if !server.is_tls() {
                self.plain.insert(server.port, (at.clone(), server.protocol));
            }
            self.put(at, route, server);
            return Ok(());
        }
        if let Some((current, protocol)) = self.plain.get(&server.port).cloned() {
            if current.bind != *bind {
                self.put(at, route, server);
                return Ok(());
            }
            let merges = (server.protocol.is_http() || server.protocol == protocol) && protocol.is_http();
            if !merges || route.is_empty() {
                return Err(format!(
                    "port {} is open already, for {protocol}, which does not go together with {}",
                    server.port, server.protocol
                ));
            }
            self.put(current, route, server);
            return Ok(());
        }
        if !server.is_tls() {
            // differs: Istio opens it beside the others, in this order of the two only.
            if self.servers.keys().any(|other| other.port == server.port && other.bind == *bind) {
                return Err(format!("port {} is open already, for TLS", server.port));
            }
            self.plain.insert(server.port, (at.clone(), server.protocol));
        } else if server.is_http() && self.by_route.contains_key(&route) {
            return Err("another HTTPS server of this Gateway has the same port name".into());
        }
        self.put(at, route, server);
        Ok(())
    }

    fn put(&mut self, at: At, route: String, server: Open<'a>) {
        if !route.is_empty() {
            self.by_route.entry(route).or_default().push(server.clone());
        }
        self.servers.entry(at).or_default().push(server);
    }

    fn take_hosts(&mut self, server: &Open<'_>) -> Result<(), String> {
        let key = |host: &String| (server.port, server.server.bind.clone(), host.clone());
        for host in &server.hosts {
            if let Some(owner) = self.taken.get(&key(host)) {
                return Err(format!("host {host} of port {} is {owner}'s already", server.port));
            }
        }
        for host in &server.hosts {
            self.taken.insert(key(host), server.gateway.clone());
        }
        Ok(())
    }
}
