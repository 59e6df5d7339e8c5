//! `explain` says of every call what the proxy does with it: connections, requests, and visitors of gateways.

use mesh_core::endpoint::Moment;
use mesh_core::explain::explain;
use mesh_core::plan::{DoorKind, Plan};
use mesh_core::world::World;
use mesh_proto::explain::{Ask, End, Explanation, Speaks};
use mesh_proto::resource::Kind;

use super::case::Call;

/// Returns what `explain` says otherwise than the case; `None` also where it cannot be asked: what a connection to a port
/// stands for without an address or a name, and doors that a `Sidecar` opens.
pub(crate) fn differs(world: &World, plan: &Plan, call: &Call) -> Option<String> {
    let ask = asked(world, plan, call)?;
    let told = match explain(world, plan, &ask, Moment(0)) {
        Ok(told) => told,
        Err(error) => return Some(format!("{}: explain: {error}", call.line)),
    };
    let (is, wanted) = (said(&told), wanted(&call.verdict));
    // What nobody declares the table of a port does not tell from what is closed.
    let is_unknown = told.outcome.kind == End::PassThrough && matches!(wanted.as_str(), "cut" | "unknown");
    (is != wanted && !is_unknown)
        .then(|| format!("{} on {}: explain says {is:?}, not {wanted:?}", call.line, call.port))
}

fn asked(world: &World, plan: &Plan, call: &Call) -> Option<Ask> {
    let (first, rest) = call.line.split_once(' ').unwrap_or((&call.line, ""));
    let mut ask =
        Ask { speaks: Speaks::Http, scheme: "http".into(), port: Some(call.port), ..Ask::default() };
    if let Some(at) = &call.at {
        let door = super::door::at(plan, at);
        if door.is_some_and(|door| !matches!(door.kind, DoorKind::Gateway(_))) {
            return None;
        }
        let is_here = |stored: &&std::sync::Arc<mesh_proto::watch::Stored>| match &stored.object.spec {
            mesh_proto::resource::Spec::Gateway(spec) => {
                let has = |(key, value): (&String, &String)| plan.node.labels.get(key) == Some(value);
                !spec.selector.is_empty() && spec.selector.iter().all(has)
            }
            _ => false,
        };
        let key = world.resources.values().find(is_here)?.object.key();
        assert_eq!(key.kind, Kind::Gateway);
        ask.gateway = format!("{}/{}", key.namespace, key.name);
        ask.port = at.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        ask.sni.clone_from(&call.sni);
        if call.sni.is_some() {
            ask.scheme = "https".into();
        }
    } else {
        let caller = plan.node.callers.get(call.from)?;
        ask.from = format!("{}/{}", caller.namespace, caller.account);
        ask.labels.clone_from(&caller.labels);
    }
    let port = ask.port.unwrap_or(80);
    match (first, rest) {
        ("dns", _) => return None,
        ("tcp", "") if call.at.is_none() => return None,
        // Bytes within TLS that ends at the gateway.
        ("tcp" | "tls", _) if call.sni.is_some() && call.at.is_some() => {
            ask.speaks = Speaks::Tls;
            ask.authority = format!("{}:{port}", call.sni.as_deref().unwrap_or_default());
        }
        ("tcp", address) => {
            ask.speaks = Speaks::Tcp;
            ask.authority = format!("{}:{port}", if address.is_empty() { "192.0.2.99" } else { address });
        }
        ("tls", name) => {
            ask.speaks = Speaks::Tls;
            ask.authority = format!("{name}:{port}");
        }
        (method, place) => {
            let (method, place) = if place.is_empty() { ("GET", method) } else { (method, place) };
            let at = place.find('/').unwrap_or(place.len());
            ask.method = method.into();
            ask.authority = place[..at].into();
            ask.target = if at == place.len() { "/".into() } else { place[at..].into() };
            let lines = call.headers.iter().filter_map(|line| line.split_once(':'));
            ask.headers = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        }
    }
    Some(ask)
}

/// A verdict without shares, certificates and what only the data path can tell.
fn wanted(verdict: &str) -> String {
    if let Some((_, cluster)) = verdict.split_once("as a hop to ") {
        return format!("passed on, as it is, to a host of the mesh that serves {cluster}");
    }
    let words = ["to ", "redirect ", "answer "];
    let begin = words.iter().filter_map(|word| verdict.find(word)).min().unwrap_or(0);
    let verdict = &verdict[begin..];
    if let Some(list) = verdict.strip_prefix("to ") {
        let names = list.split(", ").map(|one| {
            let one = one.trim_start_matches("missing ");
            one.split(' ').next().unwrap_or(one).to_owned()
        });
        return format!("to {}", names.collect::<Vec<_>>().join(", "));
    }
    match verdict.split(' ').collect::<Vec<_>>().as_slice() {
        [word @ ("redirect" | "answer"), status, ..] => format!("{word} {status}"),
        ["closed"] => "cut".into(),
        [.., "404"] => "404".into(),
        ["unknown", ..] => "unknown".into(),
        _ => verdict.to_owned(),
    }
}

fn said(told: &Explanation) -> String {
    let status = || told.outcome.status.map(|status| status.to_string()).unwrap_or_default();
    // Also where a fault comes before: verdicts tell that apart.
    if !told.destinations.is_empty() {
        let names = told.destinations.iter().map(|to| {
            let subset = if to.subset.is_empty() { String::new() } else { format!("/{}", to.subset) };
            format!("{}:{}{subset}", to.host.trim_end_matches(".svc.cluster.local"), to.port)
        });
        return format!("to {}", names.collect::<Vec<_>>().join(", "));
    }
    match told.outcome.kind {
        End::Forward => told.outcome.words.clone(),
        End::Closed => "cut".into(),
        End::Redirect => format!("redirect {}", status()),
        End::Answer => format!("answer {}", status()),
        End::Preflight => "preflight".into(),
        End::NoRoute => "404".into(),
        End::UnknownHost if told.outcome.status == Some(404) => "404".into(),
        End::UnknownHost | End::PassThrough => "unknown".into(),
        End::BadRequest => "400".into(),
    }
}
