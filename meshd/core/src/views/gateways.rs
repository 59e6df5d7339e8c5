//! The routes of this host's gateways in rows: which visitors come in, what they are shown, and where they go.

use mesh_proto::api::RouteView;
use mesh_proto::resource::ServerTlsMode;

use super::{by, http_routes, words};
use crate::plan::{Credential, DoorKind, GatewayDoor, Inside, Plan, ServerTls, TcpRule, TcpRules, TlsServer};

/// Returns them, in order of address, then of host and precedence.
pub(super) fn routes(plan: &Plan) -> Vec<RouteView> {
    let mut rows = Vec::new();
    for (address, door) in &plan.doors.open {
        let DoorKind::Gateway(gateway) = &door.kind else { continue };
        let mut found = behind(plan, gateway, &format!("{address} of {}", door.origin));
        found.extend(gateway.tls.iter().flat_map(|(names, server)| {
            let shown = server.terminate.as_ref().map_or_else(|| "TLS passes".to_owned(), |tls| shown(tls));
            tls_server(plan, server, &names, format!("{address} of {}, {shown}", server.origin))
        }));
        found.sort_by(|one, other| {
            (&one.gateway, &one.host, one.index).cmp(&(&other.gateway, &other.host, other.index))
        });
        rows.extend(found);
    }
    rows
}

/// What is plain.
fn behind(plan: &Plan, gateway: &GatewayDoor, place: &str) -> Vec<RouteView> {
    let mut rows = gateway.http.map_or_else(Vec::new, |seat| requests(plan, seat, place));
    if let Some(service) = &gateway.tcp {
        rows.extend(bytes(&service.tcp, &service.host, gateway.port, "", place));
    }
    rows
}

fn tls_server(plan: &Plan, server: &TlsServer, names: &str, place: String) -> Vec<RouteView> {
    match &server.inside {
        Inside::Http(seat) => requests(plan, *seat, &place),
        Inside::Tcp(service) => bytes(&service.tcp, &service.host, server.port, names, &place),
        Inside::Hop(cluster) => vec![RouteView {
            host: cluster.name.host.to_string(),
            port: server.port,
            index: 0,
            name: String::new(),
            when: words::connection(&format!("sni {names}"), &[]),
            then: format!("pass the hop on to a host of {}", cluster.name),
            with: Vec::new(),
            by: server.origin.to_string(),
            gateway: place,
        }],
    }
}

fn requests(plan: &Plan, seat: usize, place: &str) -> Vec<RouteView> {
    let Some(outbound) = plan.doors.seats.get(&seat) else { return Vec::new() };
    let rows = http_routes(outbound).into_iter();
    rows.map(|row| RouteView { gateway: place.to_owned(), ..row }).collect()
}

fn bytes(rules: &TcpRules, host: &str, port: u16, names: &str, place: &str) -> Vec<RouteView> {
    let sni = if names.is_empty() { String::new() } else { format!("sni {names}") };
    let row = |(index, rule): (usize, &TcpRule)| RouteView {
        host: host.to_owned(),
        port,
        index,
        name: rule.origin.name.clone(),
        when: words::connection(&sni, &rule.destination_subnets),
        then: words::destinations(&rule.destinations, host),
        with: Vec::new(),
        by: by(&rule.origin),
        gateway: place.to_owned(),
    };
    rules.rules.iter().enumerate().map(row).collect()
}

/// What visitors are shown, and whether they must show something.
fn shown(tls: &ServerTls) -> String {
    let certificates = tls.certificates.iter().map(|credential| match credential {
        Credential::Secret(name) => format!("secret {name}"),
        Credential::Files { certificate, .. } => certificate.clone(),
        Credential::Mesh(identity) => identity.to_string(),
    });
    let visitors = match tls.mode {
        ServerTlsMode::Mutual | ServerTlsMode::IstioMutual => ", visitors show one, too",
        ServerTlsMode::OptionalMutual => ", visitors may show one, too",
        _ => "",
    };
    format!("TLS with {}{visitors}", certificates.collect::<Vec<_>>().join(" and "))
}
