//! Which routes lead to which clusters: why a cluster is used, and what is behind a name that is no service.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::api::PlanFilter;

use super::{by, wanted, words};
use crate::plan::{
    Action, Cluster, ClusterName, DoorKind, Inside, Origin, Outbound, Plan, TcpRules, WeightedCluster,
};

/// The clusters that are asked for: those of the host, and those that routes of the host lead to (a gateway's, a rule's for
/// a name that is no service). With each, the routes of the host that lead there, in words.
pub(super) fn wanted_clusters<'a>(
    plan: &'a Plan,
    filter: &PlanFilter,
) -> Vec<(&'a Arc<Cluster>, Vec<String>)> {
    // Without a host every route would be told with every cluster.
    let ways = if filter.host.is_some() { ways(plan, filter) } else { BTreeMap::new() };
    let clusters = plan.clusters.values().filter_map(|cluster| {
        let led = ways.get(&cluster.name);
        let is_wanted = wanted(filter, &cluster.name.host, cluster.name.port) || led.is_some();
        is_wanted.then(|| (cluster, led.cloned().unwrap_or_default()))
    });
    clusters.collect()
}

/// The routes of the hosts that are asked for, by the cluster they lead to.
fn ways<'a>(plan: &'a Plan, filter: &PlanFilter) -> BTreeMap<&'a ClusterName, Vec<String>> {
    let mut ways: BTreeMap<&ClusterName, Vec<String>> = BTreeMap::new();
    each(plan, &mut |way: &Way<'a>| {
        if !wanted(filter, way.host, way.port) {
            return;
        }
        let total: u64 = way.destinations.iter().map(|one| u64::from(one.weight)).sum();
        for one in way.destinations {
            let share = match way.destinations.len() {
                1 => String::new(),
                _ => format!("{} of ", words::percent(u64::from(one.weight), total)),
            };
            let text = format!("{share}{}:{} by {}{}", way.host, way.port, way.by, way.at);
            let list = ways.entry(&one.name).or_default();
            if !list.contains(&text) {
                list.push(text);
            }
        }
    });
    ways
}

/// One route of one host.
struct Way<'a> {
    host: &'a str,
    port: u16,
    /// Who says so.
    by: String,
    /// At which gateway; empty: for callers of this host.
    at: String,
    destinations: &'a [WeightedCluster],
}

/// Visits every route of callers, then of gateways.
fn each<'a>(plan: &'a Plan, visit: &mut impl FnMut(&Way<'a>)) {
    for outbound in &plan.outbounds {
        requests(outbound, "", visit);
        for table in outbound.ports.values() {
            for (_, host) in table.tls.iter() {
                bytes(&host.rules, &host.host, table.number, "", visit);
            }
        }
        let by_port = outbound.ports.values().filter_map(|table| table.tcp.as_ref());
        let by_range = outbound.ranges.iter().map(|(_, _, service)| service);
        for service in by_port.chain(outbound.addresses.values()).chain(by_range) {
            bytes(&service.tcp, &service.host, service.number, "", visit);
        }
    }
    for (address, door) in &plan.doors.open {
        let DoorKind::Gateway(gateway) = &door.kind else { continue };
        let at = format!(" at {address} of {}", door.origin);
        let seat = |seat: usize| plan.doors.seats.get(&seat);
        if let Some(outbound) = gateway.http.and_then(seat) {
            requests(outbound, &at, visit);
        }
        if let Some(service) = &gateway.tcp {
            bytes(&service.tcp, &service.host, gateway.port, &at, visit);
        }
        for (_, server) in gateway.tls.iter() {
            match &server.inside {
                Inside::Http(number) => {
                    if let Some(outbound) = seat(*number) {
                        requests(outbound, &at, visit);
                    }
                }
                Inside::Tcp(service) => bytes(&service.tcp, &service.host, server.port, &at, visit),
                // It is told by the host it is of.
                Inside::Hop(_) => {}
            }
        }
    }
}

fn requests<'a>(outbound: &'a Outbound, at: &str, visit: &mut impl FnMut(&Way<'a>)) {
    for (_, host) in outbound.ports.values().flat_map(|table| table.http.iter()) {
        for route in &host.routes {
            let Action::Forward(forward) = &route.action else { continue };
            visit(&way(&host.host, host.port, &route.origin, at, &forward.destinations));
        }
    }
}

fn bytes<'a>(rules: &'a TcpRules, host: &'a str, port: u16, at: &str, visit: &mut impl FnMut(&Way<'a>)) {
    for rule in &rules.rules {
        visit(&way(host, port, &rule.origin, at, &rule.destinations));
    }
}

fn way<'a>(
    host: &'a str,
    port: u16,
    origin: &Origin,
    at: &str,
    destinations: &'a [WeightedCluster],
) -> Way<'a> {
    Way { host, port, by: by(origin), at: at.to_owned(), destinations }
}
