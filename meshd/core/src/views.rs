//! A Plan and a World in rows for people: what `meshctl routes`, `clusters`, `endpoints` and `services` show.
//!
//! Decides nothing; every word stands for a field of the Plan.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_proto::api::{ClusterView, EndpointView, InstanceView, PlanFilter, RouteView, ServiceView};
use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;

use crate::balance::chance::SeededRng;
use crate::balance::{self, Hint};
use crate::compile::hosts::{Entry, Service, Source, services as gather};
use crate::compile::mesh::Settings;
use crate::endpoint::Moment;
use crate::plan::{
    Balancer, Cluster, ClusterName, Credential, DoorKind, Endpoint, HashKey, HashPolicy, HeadPart, Node,
    Origin, Outbound, Plan, Roots, TcpRules, TlsMaterial, UpstreamTls, Via,
};
use crate::world::World;

mod gateways;
mod ways;
pub(crate) mod words;

/// Returns the routes of the host's own caller, in order of host, port and precedence, then those of its gateways.
pub fn routes(plan: &Plan, filter: &PlanFilter) -> Vec<RouteView> {
    let mut rows = routes_of(plan, 0, filter);
    rows.extend(gateways::routes(plan).into_iter().filter(|row| wanted(filter, &row.host, row.port)));
    rows
}

/// Returns the routes of one caller, by its position in `Node::callers`.
pub fn routes_of(plan: &Plan, caller: usize, filter: &PlanFilter) -> Vec<RouteView> {
    let Some(outbound) = plan.outbounds.get(caller) else { return Vec::new() };
    let mut rows = http_routes(outbound);
    rows.extend(connections(outbound));
    rows.sort_by(|one, other| (&one.host, one.port, one.index).cmp(&(&other.host, other.port, other.index)));
    rows.retain(|row| wanted(filter, &row.host, row.port));
    rows
}

/// Returns the clusters of all callers, in order of name. The time does not matter: an ejection ends at a sweep.
///
/// A host that is no service (a gateway's, a rule's) has those that its routes lead to.
pub fn clusters(plan: &Plan, filter: &PlanFilter, _now: Moment) -> Vec<ClusterView> {
    let found = ways::wanted_clusters(plan, filter).into_iter();
    found
        .map(|(cluster, routes)| {
            let addressed = cluster.addressed();
            let all = &addressed.as_ref().unwrap_or(cluster).endpoints.all;
            ClusterView {
                name: cluster.name.to_string(),
                balancer: balancing(&cluster.balancer),
                endpoints: all.len(),
                usable: all.iter().filter(|endpoint| is_usable(endpoint)).count(),
                limits: words::limits(cluster),
                by: cluster.origins.iter().map(ToString::to_string).collect(),
                routes,
            }
        })
        .collect()
}

/// Returns the endpoints of all clusters, in order of cluster and endpoint.
pub fn endpoints(plan: &Plan, filter: &PlanFilter, now: Moment) -> Vec<EndpointView> {
    let found = ways::wanted_clusters(plan, filter);
    let draws = ALL_DRAWS.checked_div(found.len()).unwrap_or(0).min(DRAWS);
    found
        .into_iter()
        .flat_map(|(cluster, _)| {
            let addressed = cluster.addressed();
            let cluster = addressed.as_ref().unwrap_or(cluster);
            let picks = drawn(cluster, draws);
            let (levels, of) = cluster.endpoints.levels();
            let all = cluster.endpoints.all.iter().enumerate();
            all.map(|(at, one)| {
                let share = picks.as_ref().map(|picks| picks.get(at).copied().unwrap_or(0));
                let level = levels.get(at).copied().flatten();
                EndpointView {
                    choice: choice(&cluster.balancer, share, level, of),
                    ..endpoint(cluster, one, now)
                }
            })
            .collect::<Vec<_>>()
        })
        .collect()
}

/// Draws made of each cluster to see which of its endpoints get how much.
const DRAWS: usize = 1_000;

/// Draws made in all: a tenth of a second. With so many clusters that it would come to few of each none are made.
const ALL_DRAWS: usize = 1_000_000;

/// How many of [`DRAWS`] requests each endpoint would get now, by position; `None`: too many clusters to see.
fn drawn(cluster: &Cluster, draws: usize) -> Option<Vec<usize>> {
    if draws < DRAWS {
        return None;
    }
    let mut positions: BTreeMap<&str, usize> = BTreeMap::new();
    positions.extend(cluster.endpoints.all.iter().enumerate().map(|(at, one)| (&*one.id, at)));
    let (mut rng, turn) = (SeededRng(1), AtomicU64::new(1));
    let mut picks = vec![0; cluster.endpoints.all.len()];
    for _ in 0..draws {
        let picked = balance::foresee(cluster, &Hint::default(), &turn, &mut rng);
        let at = picked.and_then(|endpoint| positions.get(&*endpoint.id));
        if let Some(count) = at.and_then(|at| picks.get_mut(*at)) {
            *count += 1;
        }
    }
    Some(picks)
}

/// How much an endpoint gets, and where it stands among the others.
fn choice(balancer: &Balancer, share: Option<usize>, level: Option<usize>, of: usize) -> String {
    let share = match (balancer, share) {
        (Balancer::Passthrough | Balancer::ByName { .. }, _) => "where it was going".to_owned(),
        (Balancer::RingHash { .. } | Balancer::Maglev { .. }, Some(share)) => {
            format!("{} of the keys", about(share))
        }
        (_, Some(share)) => about(share),
        (_, None) => String::new(),
    };
    let place = match level {
        Some(0) if of > 1 => format!("nearest of {of} levels"),
        Some(level) if of > 1 => format!("level {} of {of}", level + 1),
        _ => String::new(),
    };
    [share, place].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ")
}

fn about(share: usize) -> String {
    match (share, (share + 5) / 10) {
        (0, _) => "0 %".into(),
        (_, 0) => "< 1 %".into(),
        (_, percent) => format!("{percent} %"),
    }
}

/// Returns the services of the mesh, in order of host.
pub fn services(world: &World) -> Vec<ServiceView> {
    let node = Node { domain: world.mesh.domain.clone(), ..Node::default() };
    let mesh = Settings::of(world);
    gather(world, &node, &mesh).all.iter().map(|found| service(world, found)).collect()
}

/// Returns which rules use each secret of the host.
pub fn secrets_used(plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let mut used: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut note = |name: &str, by: String| {
        let list = used.entry(name.to_owned()).or_default();
        if !list.contains(&by) {
            list.push(by);
        }
    };
    for door in plan.doors.open.values() {
        let DoorKind::Gateway(gateway) = &door.kind else { continue };
        for (_, server) in gateway.tls.iter() {
            let Some(tls) = &server.terminate else { continue };
            let secrets = tls.certificates.iter().filter_map(|credential| match credential {
                Credential::Secret(name) => Some(name),
                Credential::Files { .. } | Credential::Mesh(_) => None,
            });
            let roots = tls.roots.iter().filter_map(|roots| match roots {
                Roots::Secret(name) => Some(name),
                Roots::File(_) => None,
            });
            secrets.chain(roots).for_each(|name| note(name, server.origin.to_string()));
        }
    }
    for cluster in plan.clusters.values() {
        let UpstreamTls::Originate(tls) = &cluster.tls else { continue };
        let TlsMaterial::Secret(name) = &tls.material else { continue };
        cluster.origins.iter().for_each(|origin| note(name, origin.to_string()));
    }
    used
}

fn http_routes(outbound: &Outbound) -> Vec<RouteView> {
    let mut hosts = BTreeMap::new();
    for table in outbound.ports.values() {
        for (_, host) in table.http.iter() {
            hosts.insert((&host.host, host.port), host);
        }
    }
    let rows = hosts.values().flat_map(|host| {
        host.routes.iter().enumerate().map(|(index, route)| RouteView {
            host: host.host.clone(),
            port: host.port,
            index,
            name: route.origin.name.clone(),
            when: words::when(&route.matchers),
            then: words::then(&route.action, &host.host),
            with: words::with(route),
            by: by(&route.origin),
            gateway: String::new(),
        })
    });
    rows.collect()
}

/// Returns rows for TLS by SNI and for TCP services.
fn connections(outbound: &Outbound) -> Vec<RouteView> {
    let mut found: BTreeMap<(String, u16, String), &TcpRules> = BTreeMap::new();
    for table in outbound.ports.values() {
        for (sni, host) in table.tls.iter() {
            found.insert((host.host.clone(), table.number, format!("sni {sni}")), &host.rules);
        }
        if let Some(service) = table.tcp.as_ref().filter(|service| !service.protocol.is_http()) {
            found.insert((service.host.clone(), service.number, String::new()), &service.tcp);
        }
    }
    let by_address = outbound.addresses.values().chain(outbound.ranges.iter().map(|(_, _, service)| service));
    for service in by_address.filter(|service| !service.protocol.is_http() && !service.protocol.is_tls()) {
        found.insert((service.host.clone(), service.number, String::new()), &service.tcp);
    }
    let mut rows = Vec::new();
    for ((host, port, sni), rules) in found {
        for rule in &rules.rules {
            let index = rows.iter().filter(|row: &&RouteView| row.host == host && row.port == port).count();
            rows.push(RouteView {
                when: words::connection(&sni, &rule.destination_subnets),
                then: words::destinations(&rule.destinations, &host),
                by: by(&rule.origin),
                name: rule.origin.name.clone(),
                with: Vec::new(),
                host: host.clone(),
                port,
                index,
                gateway: String::new(),
            });
        }
    }
    rows
}

fn by(origin: &Origin) -> String {
    match &origin.object {
        Some(key) => format!("{key} {}", origin.path),
        None => "default".into(),
    }
}

/// Whether a row is asked for: by full host name, or by any short form of it.
fn wanted(filter: &PlanFilter, host: &str, port: u16) -> bool {
    let host_fits = |wanted: &String| {
        let wanted = wanted.to_ascii_lowercase();
        host == wanted || host.strip_prefix(&wanted).is_some_and(|rest| rest.starts_with('.'))
    };
    filter.host.as_ref().is_none_or(host_fits) && filter.port.is_none_or(|wanted| wanted == port)
}

/// How endpoints are chosen, with what keys are made of.
pub(crate) fn balancing(chosen: &Balancer) -> String {
    match chosen {
        Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. } => {
            format!("{} by {}", balancer(chosen), hash_key(policy))
        }
        _ => balancer(chosen).to_owned(),
    }
}

fn balancer(balancer: &Balancer) -> &'static str {
    match balancer {
        Balancer::LeastRequest => "least request",
        Balancer::RoundRobin => "round robin",
        Balancer::Random => "random",
        Balancer::Passthrough => "passthrough",
        Balancer::ByName { .. } => "name of each request",
        Balancer::RingHash { .. } => "ring hash",
        Balancer::Maglev { .. } => "maglev",
    }
}

/// What keys of consistent hashing are made of.
pub(crate) fn hash_key(policy: &HashPolicy) -> String {
    match &policy.key {
        HashKey::Header(name) => format!("header {name}"),
        HashKey::Head(HeadPart::Method) => "header :method".into(),
        HashKey::Head(HeadPart::Scheme) => "header :scheme".into(),
        HashKey::Head(HeadPart::Authority) => "header :authority".into(),
        HashKey::Head(HeadPart::Path) => "header :path".into(),
        HashKey::Cookie { name, .. } => format!("cookie {name}"),
        HashKey::SourceIp => "the caller's address".into(),
        HashKey::Query(name) => format!("query parameter {name}"),
    }
}

fn is_usable(endpoint: &Endpoint) -> bool {
    endpoint.weight > 0
        && endpoint.health == Health::Healthy
        && matches!(endpoint.liveness, Liveness::Live | Liveness::Suspect)
        && !endpoint.state.is_ejected()
}

fn endpoint(cluster: &Cluster, endpoint: &Endpoint, now: Moment) -> EndpointView {
    let (via, identity) = match &endpoint.via {
        Via::Local(_) => ("local", String::new()),
        Via::Mesh { to, .. } => ("mesh", to.identity.to_string()),
        Via::Socket(_) => ("socket", String::new()),
        Via::Plain(_) | Via::Name { .. } => ("plain", String::new()),
    };
    EndpointView {
        cluster: cluster.name.to_string(),
        endpoint: endpoint.id.replacen('@', " on ", 1),
        address: address(endpoint),
        via: via.to_owned(),
        identity,
        weight: endpoint.weight,
        locality: endpoint.traits.locality.to_string(),
        choice: String::new(),
        state: state(endpoint, now),
        in_flight: endpoint.state.busy(),
        requests: endpoint.state.counted().map_or(0, |counters| counters.requests.load(Ordering::Relaxed)),
    }
}

/// Where an endpoint is reached.
pub(crate) fn address(endpoint: &Endpoint) -> String {
    match &endpoint.via {
        Via::Local(address) | Via::Plain(address) => address.to_string(),
        Via::Mesh { to, .. } => to.hop.to_string(),
        Via::Socket(path) => path.to_string(),
        Via::Name { host, port, .. } => format!("{host}:{port}"),
    }
}

/// The first reason not to use an endpoint, else `healthy`.
pub(crate) fn state(endpoint: &Endpoint, now: Moment) -> String {
    match (endpoint.liveness, endpoint.health) {
        (Liveness::Gone, _) => return "host gone".into(),
        (Liveness::Left, _) => return "host left".into(),
        (_, Health::Unhealthy) => return "unhealthy".into(),
        (_, Health::Draining) => return "draining".into(),
        _ => {}
    }
    if endpoint.state.is_ejected() {
        let until = endpoint.state.ejected_until.load(Ordering::Relaxed);
        return format!("ejected for {} s", until.saturating_sub(now.0).div_ceil(1_000));
    }
    match (endpoint.liveness, endpoint.weight) {
        (Liveness::Suspect, _) => "host suspect".into(),
        (_, 0) => "weight 0".into(),
        _ => "healthy".into(),
    }
}

fn service(world: &World, service: &Service<'_>) -> ServiceView {
    let outside = |name: &str, one: &mesh_proto::resource::WorkloadEntry| InstanceView {
        id: name.to_owned(),
        on: String::new(),
        account: String::new(),
        targets: vec![one.address.to_string()],
        labels: one.labels.clone(),
        health: Health::Healthy,
        liveness: Liveness::Live,
    };
    let of_entry = |entry: &Entry<'_>| {
        let endpoints = entry.spec.endpoints.iter().map(|one| outside(&one.address, one));
        let workloads = entry.workloads.iter().map(|(name, one)| outside(name, one));
        let picked = entry.instances.iter().map(|found| registered(world, found));
        endpoints.chain(workloads).chain(picked).collect::<Vec<_>>()
    };
    let instances = match &service.source {
        Source::Registered(instances) => instances.iter().map(|found| registered(world, found)).collect(),
        Source::Entry(_) => service.entries().flat_map(of_entry).collect(),
    };
    let origins: Vec<_> = service.entries().map(|entry| entry.stored.object.key().to_string()).collect();
    let ports = service.ports.iter();
    ServiceView {
        host: service.host.to_string(),
        origin: if origins.is_empty() { "mesh".to_owned() } else { origins.join(" + ") },
        addresses: service.single_addresses().collect(),
        ports: ports.map(|port| (port.number, port.name.clone(), port.protocol.to_string())).collect(),
        instances,
    }
}

fn registered(world: &World, found: &crate::world::InstanceRef<'_>) -> InstanceView {
    let host = world.hosts.get(&found.host);
    InstanceView {
        id: found.id.to_owned(),
        on: host.map_or_else(String::new, |host| host.name.clone()),
        account: if found.instance.address.is_none() {
            format!("{}/{}", found.instance.namespace, found.instance.account)
        } else {
            String::new()
        },
        targets: found.instance.ports.iter().map(|port| port.target.to_string()).collect(),
        labels: found.instance.labels.clone(),
        health: found.instance.health,
        liveness: host.map_or(Liveness::Gone, |host| host.liveness),
    }
}

#[cfg(test)]
mod tests;
