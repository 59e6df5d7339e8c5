//! What becomes of a visitor's connection at a door.

use mesh_core::plan::{Credential, Door, DoorKind, GatewayDoor, Inside, Outbound, Plan, ServerTls};

use super::verdict::{self, Verdict};

/// Decides a visitor's call: `inside` decides a request where there is HTTP.
pub(crate) fn decide(
    plan: &Plan,
    address: &str,
    sni: Option<&str>,
    inside: impl FnOnce(&Outbound, u16) -> Verdict,
) -> Verdict {
    let say = |what: &str| Verdict { what: what.to_owned(), ..Verdict::default() };
    let Some(door) = at(plan, address) else { return say("closed") };
    let seat =
        |seat: usize| plan.doors.seats.get(&seat).or_else(|| plan.outbounds.get(seat)).expect("a seat");
    let gateway = match &door.kind {
        DoorKind::Service(port) => return inside(seat(door.seat), *port),
        DoorKind::Proxy => return inside(seat(door.seat), 80),
        DoorKind::Gateway(gateway) => gateway,
    };
    match sni {
        None => plain(gateway, seat, inside),
        Some(sni) => {
            let Some(server) = gateway.tls.find(sni) else { return say("cut") };
            let shown = server.terminate.as_deref().map_or_else(|| "passed".to_owned(), shown);
            let mut verdict = match &server.inside {
                Inside::Http(at) => inside(seat(*at), server.port),
                Inside::Tcp(service) => say(&verdict::connection(&service.tcp, None)),
                Inside::Hop(cluster) => say(&format!("as a hop to {}", cluster.name)),
            };
            verdict.what = format!("{shown} {}", verdict.what);
            verdict
        }
    }
}

/// Finds the door at an address; `:80` is `0.0.0.0:80`.
pub(crate) fn at<'p>(plan: &'p Plan, address: &str) -> Option<&'p Door> {
    let full = if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.to_owned() };
    plan.doors.open.get(&full.parse().expect("an address")).map(AsRef::as_ref)
}

fn plain<'p>(
    gateway: &GatewayDoor,
    seat: impl Fn(usize) -> &'p std::sync::Arc<Outbound>,
    inside: impl FnOnce(&Outbound, u16) -> Verdict,
) -> Verdict {
    match (gateway.http, &gateway.tcp) {
        (Some(at), _) => inside(seat(at), gateway.port),
        (None, Some(service)) => {
            Verdict { what: verdict::connection(&service.tcp, None), ..Verdict::default() }
        }
        (None, None) => Verdict { what: "cut".into(), ..Verdict::default() },
    }
}

/// `SIMPLE web`, `MUTUAL web`.
fn shown(tls: &ServerTls) -> String {
    let names = tls.certificates.iter().map(|one| match one {
        Credential::Secret(name) => name.clone(),
        Credential::Files { certificate, .. } => certificate.clone(),
        Credential::Mesh(identity) => identity.to_string(),
    });
    let mode = format!("{:?}", tls.mode).to_uppercase();
    format!("{mode} {}", names.collect::<Vec<_>>().join("+"))
}
