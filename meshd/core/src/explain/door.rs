//! Why a visitor of a gateway gets what it gets: the door it comes to, the server it asks for, and what is inside.
//!
//! The doors are those of the Plan that serves traffic where this host is the gateway; else those of a host that it would
//! select.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::explain::{Ask, Explanation, Host, Speaks};
use mesh_proto::resource::{Gateway, Kind, ObjectKey, Spec};

use super::{Scene, caller, connection};
use crate::compile::compile;
use crate::compile::hosts::{has_all, of_kind};
use crate::endpoint::Moment;
use crate::plan::{
    Credential, DoorKind, GatewayDoor, Inside, Node, Outbound, Plan, ServerTls, TlsServer, Workload,
};
use crate::route;
use crate::world::World;

/// Explains what a visitor of a gateway gets.
pub(super) fn explain(world: &World, plan: &Plan, ask: &Ask, now: Moment) -> Result<Explanation, String> {
    let (key, gateway) = find(world, ask)?;
    if gateway.selector.is_empty() {
        return Err(format!(
            "{key} has no selector: it is opened by hosts that another Gateway selects; name that one"
        ));
    }
    let name = format!("{}/{}", key.namespace, key.name);
    let mut found = caller::Found {
        workload: plan.node.callers.first().cloned().unwrap_or_default(),
        known_as: format!("a visitor of gateway {name} on {}", plan.node.name),
        notes: Vec::new(),
    };
    if has_all(&plan.node.labels, &gateway.selector) && !plan.doors.open.is_empty() {
        return Visit { world, plan, ask, now, name: &name }.explain(&found);
    }
    let labels = plan.node.labels.iter().chain(&gateway.selector);
    let labels = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
    found.workload = Workload {
        namespace: key.namespace.to_string(),
        account: key.name.to_string(),
        ..Workload::default()
    };
    let node = Node { labels, callers: vec![found.workload.clone()], ..Node::clone(&plan.node) };
    let made = compile(world, &Arc::new(node), None);
    let selector: Vec<String> =
        gateway.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    found.known_as = format!("a visitor of gateway {name}");
    found.notes.push(format!(
        "seen as by a host with the labels {} and an account of namespace {}",
        selector.join(", "),
        key.namespace
    ));
    Visit { world, plan: &made, ask, now, name: &name }.explain(&found)
}

fn find<'a>(world: &'a World, ask: &Ask) -> Result<(ObjectKey, &'a Gateway), String> {
    let (namespace, name) = ask.gateway.split_once('/').unwrap_or(("default", &ask.gateway));
    let key = ObjectKey::new(Kind::Gateway, namespace, name);
    if let Some(Spec::Gateway(spec)) = world.resources.get(&key).map(|stored| &stored.object.spec) {
        return Ok((key, spec));
    }
    let known: Vec<String> = of_kind(world, Kind::Gateway)
        .map(|stored| format!("{}/{}", stored.object.metadata.namespace, stored.object.metadata.name))
        .take(12)
        .collect();
    let there =
        if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
    Err(format!("there is no Gateway {namespace}/{name} ({there})"))
}

/// A visitor on its way in.
struct Visit<'a> {
    world: &'a World,
    plan: &'a Plan,
    ask: &'a Ask,
    now: Moment,
    /// The gateway, `namespace/name`.
    name: &'a str,
}

impl Visit<'_> {
    fn explain(&self, caller: &caller::Found) -> Result<Explanation, String> {
        let ask = self.ask;
        let in_text = ask.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let is_tls = ask.speaks == Speaks::Tls || (ask.speaks == Speaks::Http && ask.scheme == "https");
        let port = ask.port.or(in_text).unwrap_or(if is_tls { 443 } else { 80 });
        let nobody = Outbound::default();
        let Some((address, door)) = self.door(port) else {
            let mut told = self.begun(&nobody, caller)?;
            told.outcome = connection::closed(&format!("nobody listens on port {port} ({})", self.ports()));
            return Ok(told);
        };
        let at = format!("port {port} of the gateway, {address}");
        if !is_tls {
            return match (ask.speaks, door.http, &door.tcp) {
                (Speaks::Http, Some(seat), _) => self.requests(seat, door.port, caller, &at),
                (Speaks::Tcp, None, Some(service)) => {
                    let host = Host { name: service.host.clone(), port: door.port, how: at };
                    connection::by_rules(&self.scene(&nobody), caller, &service.tcp, host)
                }
                _ => {
                    let mut told = self.begun(&nobody, caller)?;
                    told.outcome =
                        connection::closed(&format!("the gateway has no server for this on port {port}"));
                    Ok(told)
                }
            };
        }
        let name = ask
            .sni
            .clone()
            .unwrap_or_else(|| route::host_of(&ask.authority).into_owned())
            .to_ascii_lowercase();
        let Some(server) = door.tls.find(&name) else {
            let mut told = self.begun(&nobody, caller)?;
            told.outcome =
                connection::closed(&format!("no server of the gateway on port {port} has the name {name}"));
            return Ok(told);
        };
        let mut told = self.server(server, caller, at)?;
        told.notes.insert(0, shown(server));
        told.request.sni = Some(name);
        Ok(told)
    }

    /// What is behind a server of TLS.
    fn server(&self, server: &TlsServer, caller: &caller::Found, at: String) -> Result<Explanation, String> {
        let nobody = Outbound::default();
        match (&server.inside, self.ask.speaks) {
            (Inside::Http(seat), Speaks::Http) => self.requests(*seat, server.port, caller, &at),
            (Inside::Http(_), _) => {
                let mut told = self.begun(&nobody, caller)?;
                let name = route::host_of(&self.ask.authority);
                told.outcome.words = format!("requests are inside: ask for https://{name}:{}/", server.port);
                told.outcome.kind = mesh_proto::explain::End::Forward;
                Ok(told)
            }
            (Inside::Tcp(service), _) => {
                let host = Host { name: service.host.clone(), port: server.port, how: at };
                connection::by_rules(&self.scene(&nobody), caller, &service.tcp, host)
            }
            (Inside::Hop(cluster), _) => {
                let mut told = self.begun(&nobody, caller)?;
                told.outcome.words =
                    format!("passed on, as it is, to a host of the mesh that serves {}", cluster.name);
                told.outcome.kind = mesh_proto::explain::End::Forward;
                Ok(told)
            }
        }
    }

    fn requests(
        &self,
        seat: usize,
        port: u16,
        caller: &caller::Found,
        at: &str,
    ) -> Result<Explanation, String> {
        let outbound = self.plan.doors.seats.get(&seat).ok_or("the gateway has no rules yet; try again")?;
        let ask = Ask { port: Some(port), ..self.ask.clone() };
        let mut told = Scene { ask: &ask, ..self.scene(outbound) }.request(caller)?;
        if let Some(host) = &mut told.host {
            host.how = format!("{}; {at}", host.how);
        }
        Ok(told)
    }

    fn begun(&self, outbound: &Outbound, caller: &caller::Found) -> Result<Explanation, String> {
        let port = self.ask.port.or(Some(if self.ask.scheme == "https" { 443 } else { 80 }));
        let ask = Ask { port, ..self.ask.clone() };
        connection::begun(&Scene { ask: &ask, ..self.scene(outbound) }, caller)
    }

    fn scene<'s>(&'s self, outbound: &'s Outbound) -> Scene<'s> {
        let (world, plan, ask, now) = (self.world, self.plan, self.ask, self.now);
        Scene { world, plan, outbound, ask, now, gateway: Some(self.name) }
    }

    fn gateways(&self) -> impl Iterator<Item = (&SocketAddr, &GatewayDoor)> {
        self.plan.doors.open.iter().filter_map(|(address, door)| match &door.kind {
            DoorKind::Gateway(gateway) => Some((address, gateway)),
            DoorKind::Service(_) | DoorKind::Proxy => None,
        })
    }

    fn door(&self, port: u16) -> Option<(SocketAddr, &GatewayDoor)> {
        self.gateways().find(|(_, door)| door.port == port).map(|(address, door)| (*address, door))
    }

    fn ports(&self) -> String {
        let mut ports: Vec<u16> = self.gateways().map(|(_, door)| door.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        if ports.is_empty() {
            "the gateway opens nothing".into()
        } else {
            format!("the gateway opens {}", ports.join(", "))
        }
    }
}

/// What a visitor is shown.
fn shown(server: &TlsServer) -> String {
    let Some(tls) = &server.terminate else {
        return format!("TLS passes through, by {}", server.origin);
    };
    format!("TLS ends at the gateway, by {}: {}", server.origin, certificates(tls))
}

fn certificates(tls: &ServerTls) -> String {
    let names = tls.certificates.iter().map(|one| match one {
        Credential::Secret(name) => format!("secret {name}"),
        Credential::Files { certificate, .. } => certificate.clone(),
        Credential::Mesh(identity) => identity.to_string(),
    });
    let asked = match tls.mode {
        mesh_proto::resource::ServerTlsMode::Simple => "",
        mesh_proto::resource::ServerTlsMode::OptionalMutual => "; visitors may show one too",
        _ => "; visitors must show one too",
    };
    format!("its certificate is of {}{asked}", names.collect::<Vec<_>>().join(" and "))
}
