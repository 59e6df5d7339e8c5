//! Gateways: the doors that `Gateway`s open on this host, and what visitors find behind each.
//!
//! All `Gateway`s whose selector picks this host become one: their servers are merged port by port (`merge`), the rules
//! bound to them make virtual hosts (`hosts`) and rules for connections (`connections`). What cannot be merged is left out
//! and told. Source: Istio `mergeGateways`, `buildGatewayListeners`, `buildGatewayHTTPRouteConfig`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_proto::registration::Protocol;
use mesh_proto::resource::{Gateway, Kind, Server, ServerTlsMode, ServerTlsSettings, Spec};
use mesh_proto::watch::Stored;

use super::doors::address_of;
use super::fingerprint;
use super::hosts::{has_all, of_kind};
use super::outbound::Scene;
use super::rules::Rules;
use super::scope::Scope;
use crate::identity::{Identity, IdentityError};
use crate::plan::{
    Credential, Door, DoorKind, Doors, GatewayDoor, Inside, Node, Outbound, Plan, Roots, ServerTls, TlsServer,
};
use crate::world::World;

mod connections;
mod hosts;
mod merge;

/// A server of a `Gateway` of this host.
#[derive(Clone)]
struct Open<'a> {
    stored: &'a Stored,
    /// `namespace/name`.
    gateway: String,
    index: usize,
    server: &'a Server,
    port: u16,
    protocol: Protocol,
    /// Hosts as `name` or `namespace/name`, lower case.
    hosts: Vec<String>,
}

impl Open<'_> {
    fn tls(&self) -> Option<&ServerTlsSettings> {
        self.server.tls.as_ref()
    }

    fn passes_through(&self) -> bool {
        self.tls().is_some_and(|tls| {
            matches!(tls.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
        })
    }

    /// Whether it speaks TLS; a plain server that redirects does not.
    fn is_tls(&self) -> bool {
        self.tls().is_some() && !self.protocol.is_http()
    }

    fn is_http(&self) -> bool {
        self.protocol.is_http() || (self.protocol == Protocol::Https && !self.passes_through())
    }

    /// Hosts without their namespaces.
    fn names(&self) -> Vec<&str> {
        self.hosts.iter().map(|host| host.split_once('/').map_or(host.as_str(), |(_, name)| name)).collect()
    }

    /// What its virtual hosts are kept under: those of plain servers of one port are one table, every HTTPS server has
    /// its own. Source: Istio `gatewayRDSRouteName`.
    fn route_name(&self) -> String {
        let bind = &self.server.bind;
        if self.protocol.is_http() {
            return format!("http.{}.{bind}", self.port);
        }
        if self.is_http() {
            let name = self.server.port.as_ref().map_or("", |port| &port.name);
            return format!("https.{}.{name}.{}.{bind}", self.port, self.gateway);
        }
        String::new()
    }

    fn path(&self) -> String {
        format!("{}: servers[{}]", self.stored.object.key(), self.index)
    }
}

/// Whether any `Gateway` opens something on this host.
pub(super) fn selected<'a>(world: &'a World, node: &Node) -> Vec<(&'a Stored, &'a Gateway)> {
    let mut all: Vec<(&Stored, &Gateway)> = of_kind(world, Kind::Gateway)
        .filter_map(|stored| match &stored.object.spec {
            Spec::Gateway(spec) => Some((stored, &**spec)),
            _ => None,
        })
        .collect();
    // differs: Istio opens a Gateway without selector on every gateway proxy; here a host is one when another selects it.
    let picks = |gateway: &Gateway| !gateway.selector.is_empty() && has_all(&node.labels, &gateway.selector);
    if !all.iter().any(|(_, gateway)| picks(gateway)) {
        return Vec::new();
    }
    all.retain(|(_, gateway)| gateway.selector.is_empty() || picks(gateway));
    all.sort_by_cached_key(|(stored, _)| (stored.created, stored.object.key()));
    all
}

/// Opens the gateways' doors.
pub(super) fn open(
    scene: &Scene<'_>,
    scope: &Scope<'_>,
    rules: &[Rules<'_>],
    gateways: &[(&Stored, &Gateway)],
    previous: Option<&Plan>,
    doors: &mut Doors,
) {
    let merged = merge::merge(scene, gateways);
    let rules = Bound::of(rules, &scope.caller.namespace);
    let behind = Behind { scene, scope, rules: &rules, previous };
    // Connections that are no requests have one seat for all: it says who the gateway is.
    let tcp_seat = Doors::seat(fingerprint(&"gateway tcp"));
    doors.seats.insert(tcp_seat, Arc::new(behind.outbound()));
    for (name, servers) in &merged.by_route {
        let seat = Doors::seat(fingerprint(&name.as_str()));
        doors.seats.insert(seat, Arc::new(behind.http(seat, servers)));
    }
    let mut open: BTreeMap<SocketAddr, (&Open<'_>, GatewayDoor)> = BTreeMap::new();
    for (at, servers) in &merged.servers {
        let Some(first) = servers.first() else { continue };
        let Ok(address) = address_of(&at.bind, Ipv4Addr::UNSPECIFIED) else {
            let text = format!("{}: bind {:?} is no address: it is not opened", first.path(), at.bind);
            scene.problems.note(text);
            continue;
        };
        let address = SocketAddr::new(address, at.port);
        let (_, door) = open.entry(address).or_insert_with(|| (first, GatewayDoor::default()));
        door.port = at.port;
        for server in servers {
            behind.add(door, server);
        }
    }
    for (address, (first, door)) in open {
        let origin = first.stored.object.key();
        if let Some(other) = doors.open.get(&address) {
            scene.problems.note(format!(
                "{}: {address} is open for {} already: it is not opened",
                first.path(),
                other.origin
            ));
            continue;
        }
        let kind = DoorKind::Gateway(door);
        doors.open.insert(address, Arc::new(Door { origin, seat: tcp_seat, kind }));
    }
}

/// The rules bound to each gateway that a namespace sees, in order of precedence.
struct Bound<'a>(BTreeMap<&'a str, Vec<&'a Rules<'a>>>);

impl<'a> Bound<'a> {
    fn of(rules: &'a [Rules<'a>], namespace: &str) -> Self {
        let mut bound: BTreeMap<&str, Vec<&Rules<'_>>> = BTreeMap::new();
        for rules in rules.iter().filter(|rules| rules.seen_from(namespace)) {
            for gateway in &rules.gateways {
                let list = bound.entry(gateway.as_str()).or_default();
                if list.last().is_none_or(|last| last.key != rules.key) {
                    list.push(rules);
                }
            }
        }
        for list in bound.values_mut() {
            list.sort_by_key(|rules| rules.nearness(namespace));
        }
        Self(bound)
    }

    fn to(&self, gateway: &str) -> &[&'a Rules<'a>] {
        self.0.get(gateway).map_or(&[], Vec::as_slice)
    }
}

/// What is behind the doors.
struct Behind<'a> {
    scene: &'a Scene<'a>,
    scope: &'a Scope<'a>,
    rules: &'a Bound<'a>,
    previous: Option<&'a Plan>,
}

impl Behind<'_> {
    fn outbound(&self) -> Outbound {
        Outbound {
            caller: self.scope.caller.clone(),
            unknown: self.scope.unknown,
            paths: self.scene.mesh.paths(),
            telling: self.scene.telemetry.client(self.scope.caller),
            ..Outbound::default()
        }
    }

    /// Adds a server to the door of its address.
    fn add(&self, door: &mut GatewayDoor, server: &Open<'_>) {
        let seat = || Doors::seat(fingerprint(&server.route_name().as_str()));
        let origin = server.stored.object.key();
        let port = server.port;
        if server.protocol.is_http() {
            door.http = Some(seat());
        } else if server.tls().is_none() {
            let found = self.tcp(server);
            if found.is_none() {
                self.tell_no_rule(server, "tcp");
            }
            door.tcp = door.tcp.take().or(found);
        } else if server.tls().is_some_and(|tls| tls.mode == ServerTlsMode::AutoPassthrough) {
            for (sni, cluster) in self.hops(server) {
                let inside = Inside::Hop(cluster);
                let server = TlsServer { origin: origin.clone(), port, terminate: None, inside };
                door.tls.add(&sni, Arc::new(server));
            }
        } else if server.passes_through() {
            for (sni, service) in self.passed(server) {
                let inside = Inside::Tcp(service);
                let server = TlsServer { origin: origin.clone(), port, terminate: None, inside };
                door.tls.add(&sni, Arc::new(server));
            }
        } else if let Some(tls) = server.tls() {
            let inside =
                if server.is_http() { Some(Inside::Http(seat())) } else { self.tcp(server).map(Inside::Tcp) };
            let Some(inside) = inside else { return self.tell_no_rule(server, "tcp") };
            let terminate = match self.shown(tls) {
                Ok(shown) => Some(Arc::new(shown)),
                Err(error) => return self.scene.problems.note(format!("{}: {error}", server.path())),
            };
            let made = Arc::new(TlsServer { origin, port, terminate, inside });
            for name in server.names() {
                door.tls.add(name, made.clone());
            }
        }
    }

    fn tell_no_rule(&self, server: &Open<'_>, block: &str) {
        self.scene.problems.note(format!(
            "{}: no VirtualService bound to gateway {} has {block} routes for its hosts: connections are closed",
            server.path(),
            server.gateway
        ));
    }
}

impl Behind<'_> {
    fn shown(&self, tls: &ServerTlsSettings) -> Result<ServerTls, IdentityError> {
        let mut shown = shown(tls);
        if shown.is_of_mesh() {
            let own = &self.scope.caller;
            let identity = Identity::workload(&self.scene.node.trust_domain, &own.namespace, &own.account)?;
            shown.certificates = vec![Credential::Mesh(identity)];
        }
        Ok(shown)
    }
}

/// Source: Istio `ApplyCredentialSDSToServerCommonTLSContext`, `ApplyToCommonTLSContext`.
fn shown(tls: &ServerTlsSettings) -> ServerTls {
    let secret = |name: &String| Credential::Secret(name.clone());
    let mut certificates: Vec<Credential> = tls.credential_names.iter().map(secret).collect();
    if certificates.is_empty() && !tls.credential_name.is_empty() {
        certificates.push(secret(&tls.credential_name));
    }
    let files = |certificate: &String, key: &String| Credential::Files {
        certificate: certificate.clone(),
        key: key.clone(),
    };
    if certificates.is_empty() {
        certificates =
            tls.tls_certificates.iter().map(|one| files(&one.server_certificate, &one.private_key)).collect();
    }
    if certificates.is_empty() {
        certificates.push(files(&tls.server_certificate, &tls.private_key));
    }
    let file = |name: &String| (!name.is_empty()).then(|| Roots::File(name.clone()));
    let named = || {
        (!tls.ca_cert_credential_name.is_empty()).then(|| Roots::Secret(tls.ca_cert_credential_name.clone()))
    };
    ServerTls {
        mode: tls.mode,
        certificates,
        roots: named()
            .or_else(|| file(&tls.ca_certificates))
            .or_else(|| tls.tls_certificates.iter().find_map(|one| file(&one.ca_certificates))),
        revoked: tls.ca_crl.clone(),
        subject_alt_names: tls.subject_alt_names.clone(),
        spki: tls.verify_certificate_spki.clone(),
        hashes: tls.verify_certificate_hash.clone(),
        oldest: tls.min_protocol_version,
        newest: tls.max_protocol_version,
        ciphers: tls.cipher_suites.clone(),
    }
}
