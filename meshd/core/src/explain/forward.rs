//! What the rule that counts does with the request: answers, redirects, destinations and the instances behind them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::HeaderMap;
use mesh_proto::explain::{Destination, End, Explanation, Fault, Instance, Mirror, Outcome, Sends, Speaks};

use super::{Scene, settings, words};
use crate::balance::chance::SeededRng;
use crate::balance::{self, HashKeyOutcome, Hint};
use crate::compile::authors;
use crate::plan::{
    Action, Balancer, Cluster, Endpoint, Forward, Route, UpstreamTls, Via, VirtualHost, WeightedCluster,
};
use crate::route::cors::{self, CorsVerdict};
use crate::route::headers::{self, Facts};
use crate::route::{Call, Matched, rewrite};
use crate::views::{self, words as plain};

/// Draws made to see which instances get how much.
const PICKS: u32 = 1_000;

/// Tells what a route does.
pub(super) fn follow(
    scene: &Scene<'_>,
    host: &VirtualHost,
    call: &Call<'_>,
    matched: &Matched<'_>,
    port: u16,
    explanation: &mut Explanation,
) {
    let route = matched.route;
    let origin = &route.origin;
    explanation.rule = Some(words::rule(scene.world, origin.object.as_ref(), &origin.path, &origin.name));
    explanation.because = match matched.matcher.map(plain::conditions).filter(|text| !text.is_empty()) {
        Some(text) => text,
        None if origin.object.is_none() => "no rule is for this host: the service itself".into(),
        None => "it has no condition".into(),
    };
    explanation.fault = route.fault.as_deref().map(fault);
    explanation.settings = settings::of_route(scene, host, route);
    // A delay and an abort come before anything else, also before CORS.
    let cors = route.cors.as_ref().map(|cors| cors::decide(cors, call.method, call.headers));
    explanation.outcome = match (&cors, &route.action) {
        (Some(CorsVerdict::Preflight(_)), _) => Outcome {
            kind: End::Preflight,
            status: Some(200),
            words: "a preflight, answered by the rule's corsPolicy: 200".into(),
            ..Outcome::default()
        },
        (_, Action::Direct(direct)) => Outcome {
            kind: End::Answer,
            status: Some(direct.status.as_u16()),
            body: Some(String::from_utf8_lossy(&direct.body).into_owned()),
            words: format!("answered by the rule: {}", direct.status.as_u16()),
            ..Outcome::default()
        },
        (_, Action::Redirect(redirect)) => {
            let location = rewrite::location(redirect, call, matched.matcher, port);
            Outcome {
                kind: End::Redirect,
                status: Some(redirect.code.as_u16()),
                words: format!("redirected: {} to {location}", redirect.code.as_u16()),
                location: Some(location),
                ..Outcome::default()
            }
        }
        (_, Action::Forward(forward)) => {
            explanation.destinations =
                destinations(scene, call, matched, route, forward, &mut explanation.notes);
            explanation.mirrors = forward.mirrors.iter().map(mirror).collect();
            outcome(&explanation.destinations)
        }
    };
    if let Some(end) =
        explanation.fault.as_ref().filter(|fault| fault.aborted == 1_000_000).and_then(|fault| fault.status)
    {
        explanation.outcome = Outcome {
            kind: End::Answer,
            status: Some(end),
            words: format!("aborted on purpose, always: {end}"),
            ..Outcome::default()
        };
    }
}

fn outcome(destinations: &[Destination]) -> Outcome {
    let reached: Vec<&Destination> = destinations.iter().filter(|one| one.share > 0).collect();
    // One status is certain only where every destination that gets anything gives it.
    let status = match reached.as_slice() {
        [first, rest @ ..] if rest.iter().all(|one| one.status == first.status) => first.status,
        _ => None,
    };
    let words: Vec<String> = reached
        .iter()
        .map(|one| {
            let share = if reached.len() > 1 {
                format!("{} ", plain::percent(u64::from(one.share), 1_000_000))
            } else {
                String::new()
            };
            let subset = if one.subset.is_empty() { String::new() } else { format!(" {}", one.subset) };
            let trouble =
                if one.trouble.is_empty() { String::new() } else { format!(" (503: {})", one.trouble) };
            format!("{share}to {}:{}{subset}{trouble}", one.host, one.port)
        })
        .collect();
    Outcome { kind: End::Forward, status, words: format!("sent {}", words.join(", ")), ..Outcome::default() }
}

fn fault(fault: &crate::plan::Fault) -> Fault {
    let mut told = Fault::default();
    if let Some(delay) = &fault.delay {
        told.delay_ms = Some(u64::try_from(delay.fixed.as_millis()).unwrap_or(u64::MAX));
        told.delayed = delay.parts_per_million;
    }
    if let Some(abort) = &fault.abort {
        told.status = Some(abort.status.as_u16());
        told.grpc_status = abort.grpc_status;
        told.aborted = abort.parts_per_million;
    }
    told
}

fn mirror(mirror: &crate::plan::Mirror) -> Mirror {
    let subset =
        if mirror.name.subset.is_empty() { String::new() } else { format!(" {}", mirror.name.subset) };
    Mirror {
        to: format!("{}:{}{subset}", mirror.name.host, mirror.name.port),
        share: mirror.parts_per_million,
        there: mirror.cluster.is_some(),
    }
}

fn destinations(
    scene: &Scene<'_>,
    call: &Call<'_>,
    matched: &Matched<'_>,
    route: &Route,
    forward: &Forward,
    notes: &mut Vec<String>,
) -> Vec<Destination> {
    let many = forward.destinations.len() > 1;
    forward
        .destinations
        .iter()
        .map(|one| {
            let share = if many { share(one.weight, forward.total_weight) } else { 1_000_000 };
            let (sends, headers) = sends(scene, call, matched, route, forward, one);
            let mut told = Destination {
                host: one.name.host.to_string(),
                port: one.name.port,
                subset: one.name.subset.to_string(),
                share,
                sends,
                ..Destination::default()
            };
            match &one.cluster {
                None => {
                    told.trouble = settings::missing(scene, &one.name);
                    told.status = Some(503);
                }
                Some(cluster) => {
                    let Sends { authority, target, .. } = told.sends.clone();
                    let (path, query) =
                        target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
                    let sent = Call { headers: &headers, authority: &authority, path, query, ..*call };
                    behind(scene, &sent, cluster, &mut told, notes);
                }
            }
            told
        })
        .collect()
}

pub(super) fn share(weight: u32, total: u32) -> u32 {
    let parts = (u64::from(weight) * 1_000_000).checked_div(u64::from(total)).unwrap_or(0);
    u32::try_from(parts).unwrap_or(1_000_000)
}

/// The head as a destination sees it and what header rules did to it, and all of its fields.
fn sends(
    scene: &Scene<'_>,
    call: &Call<'_>,
    matched: &Matched<'_>,
    route: &Route,
    forward: &Forward,
    destination: &WeightedCluster,
) -> (Sends, HeaderMap) {
    let before = call.path_and_query();
    let name = matched.route_name();
    let facts = Facts {
        host_name: &scene.plan.node.name,
        route_name: &name,
        cluster: destination.cluster.as_ref().map(|cluster| &cluster.name),
        ..Facts::of(call, &before, (Ipv4Addr::LOCALHOST, 0).into())
    };
    let (rules, own) = (route.headers.as_deref(), destination.headers.as_deref());
    let mut changed = call.headers.clone();
    headers::request(rules, own, forward.destinations.len() > 1, &mut changed, &facts);
    let path = forward.rewrite.as_deref().and_then(|rules| rewrite::path(rules, matched.matcher, call.path));
    let target = match (path, call.query) {
        (None, _) => before.into_owned(),
        (Some(path), None) => path,
        (Some(path), Some(query)) => format!("{path}?{query}"),
    };
    let authority = headers::authority(forward.rewrite.as_deref(), rules, own).unwrap_or(call.authority);
    let (set, removed) = difference(call.headers, &changed);
    (Sends { authority: authority.to_owned(), target, set, removed }, changed)
}

fn difference(before: &HeaderMap, after: &HeaderMap) -> (Vec<(String, String)>, Vec<String>) {
    let lines = |map: &HeaderMap| -> BTreeMap<String, Vec<String>> {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in map {
            lines
                .entry(name.to_string())
                .or_default()
                .push(String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
        lines
    };
    let (before, after) = (lines(before), lines(after));
    let set = after.iter().filter(|(name, values)| before.get(*name) != Some(*values));
    let set =
        set.flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone()))).collect();
    (set, before.into_keys().filter(|name| !after.contains_key(name)).collect())
}

/// The instances behind a destination, and which of them the balancer would take.
pub(super) fn behind(
    scene: &Scene<'_>,
    call: &Call<'_>,
    cluster: &Cluster,
    told: &mut Destination,
    notes: &mut Vec<String>,
) {
    let addressed = cluster.addressed();
    let cluster = addressed.as_deref().unwrap_or(cluster);
    let authors = authors::of_cluster(scene.world, &scene.plan.node, &scene.outbound.caller, &cluster.name);
    told.settings = settings::of_cluster(cluster, &authors);
    let mut rng = SeededRng(1);
    let hash = hash(scene, call, cluster, notes, &mut rng);
    let hint = Hint { hash, ..Hint::default() };
    let turn = AtomicU64::new(1);
    let mut picks: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..PICKS {
        if let Some(endpoint) = balance::foresee(cluster, &hint, &turn, &mut rng) {
            *picks.entry(&endpoint.id).or_default() += 1;
        }
    }
    told.instances = cluster
        .endpoints
        .all
        .iter()
        .map(|endpoint| Instance {
            id: endpoint.id.replacen('@', " on ", 1),
            version: endpoint.traits.version.to_string(),
            address: views::address(endpoint),
            there: there(scene, cluster, endpoint),
            state: views::state(endpoint, scene.now),
            picks: picks.get(&*endpoint.id).copied().unwrap_or(0),
        })
        .collect();
    let goes_anywhere = matches!(cluster.balancer, Balancer::Passthrough);
    if picks.is_empty() && !goes_anywhere {
        told.trouble = if cluster.endpoints.all.is_empty() {
            "no healthy upstream (UH): it has no instance".into()
        } else {
            "no healthy upstream (UH): none of its instances may be used".into()
        };
        told.status = Some(503);
    }
    if goes_anywhere {
        notes.push(format!(
            "{} has no endpoints of its own: it goes to the address it was going to",
            cluster.name.host
        ));
    }
}

fn hash(
    scene: &Scene<'_>,
    call: &Call<'_>,
    cluster: &Cluster,
    notes: &mut Vec<String>,
    rng: &mut SeededRng,
) -> Option<u64> {
    let (Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. }) = &cluster.balancer else {
        return None;
    };
    let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let outcome = match scene.ask.speaks {
        Speaks::Http => balance::hash_key(policy, call, source, rng),
        Speaks::Tcp | Speaks::Tls => {
            balance::connection_key(policy, source).map_or(HashKeyOutcome::None, HashKeyOutcome::Hash)
        }
    };
    let key = views::hash_key(policy);
    notes.push(match &outcome {
        HashKeyOutcome::Hash(_) => {
            format!("consistent hashing by {key}: what has the same one goes to the same instance")
        }
        HashKeyOutcome::MakeCookie { .. } => {
            format!("consistent hashing by {key}: the request has none yet, so it is given one")
        }
        HashKeyOutcome::None => {
            format!("consistent hashing by {key}: there is none, so any instance may get it")
        }
    });
    match outcome {
        HashKeyOutcome::Hash(hash) => Some(hash),
        _ => None,
    }
}

/// What happens at an instance.
fn there(scene: &Scene<'_>, cluster: &Cluster, endpoint: &Endpoint) -> String {
    match &endpoint.via {
        Via::Local(_) | Via::Socket(_) => "on this host: straight to its socket".into(),
        Via::Mesh { to, instance, .. } => {
            let target = scene.world.instances().find(|found| found.id == &**instance).and_then(|found| {
                let port = found.instance.ports.iter().find(|port| port.number == cluster.name.port)?;
                Some(format!(", there to {}", port.target))
            });
            format!("mutual TLS, it must be {}{}", to.identity, target.unwrap_or_default())
        }
        Via::Plain(_) | Via::Name { .. } => match &cluster.tls {
            UpstreamTls::Mesh(_) => "by its address, over TLS with certificates of the mesh".into(),
            UpstreamTls::Disable => "outside the mesh, in plain text".into(),
            UpstreamTls::Originate(_) => "outside the mesh, over TLS".into(),
        },
    }
}

/// A time in words.
pub(super) fn span(time: Duration) -> String {
    format!("{time:?}")
}
