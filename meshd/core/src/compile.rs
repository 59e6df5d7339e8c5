//! World and Node make a Plan: Istio's rules, resolved for the callers of one host.
//!
//! Reads top to bottom as Istio's semantics: which services there are (`hosts`), which rules (`rules`, `delegates`), what
//! each caller sees of both (`visibility`, `scope`), what is on each port (`outbound`, `routes`, `tcp`), what is behind
//! each destination (`clusters`, `destinations`, `policy`, `endpoints`), what is open to others (`inbound`, `gateways`),
//! what DNS says (`names`).
//!
//! Nothing here fails: what validation let through and cannot be carried out is left out and told in
//! [`Plan::problems`]. The same World and Node give the same Plan. What did not change since `previous` is shared with
//! it, and the counters of clusters and endpoints move over.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::plan::{Doors, Named, Node, Outbound, Plan, Workload};
use crate::world::World;

pub(crate) mod authors;
pub(crate) mod clusters;
mod delegates;
pub(crate) mod destinations;
mod doors;
mod endpoints;
mod gateways;
pub(crate) mod hosts;
mod inbound;
mod matches;
pub(crate) mod mesh;
mod names;
mod nearness;
mod outbound;
mod patch;
mod policy;
mod retry;
pub(crate) mod routes;
pub(crate) mod rules;
pub(crate) mod scope;
mod seen;
mod tcp;
mod telemetry;
pub(crate) mod visibility;

pub use clusters::Memory;
pub(crate) use patch::Mine;
pub use seen::Seen;

/// Compiles what a host is to do.
///
/// `previous` is the Plan it follows now: parts that did not change are shared, counters are carried over.
pub fn compile(world: &World, node: &Arc<Node>, previous: Option<&Plan>) -> Plan {
    if let Some(plan) = previous.and_then(|before| patch::next(world, node, before)) {
        return plan;
    }
    whole(world, node, previous, seen::Seen::stale(previous, world, node), true)
}

/// Who a gateway of this host is for rules that pick workloads by their labels: its first caller, with the labels by which
/// `Gateway`s pick the host. A gateway of Istio's has these only.
fn as_gateway(own: &Workload, node: &Node) -> Workload {
    let mut labels = node.labels.clone();
    labels.extend(own.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    Workload { labels, ..own.clone() }
}

/// Compiles from everything that is there; `lasting`: the next Plan may be a patched one.
fn whole(
    world: &World,
    node: &Arc<Node>,
    previous: Option<&Plan>,
    stale: seen::Stale,
    lasting: bool,
) -> Plan {
    let problems = Problems::default();
    let mesh = mesh::Settings::of(world);
    let services = hosts::services(world, node, &mesh);
    let rules = rules::load(world, &mesh, &node.domain, &problems);
    let destinations = destinations::Rules::load(world, &mesh, &node.domain);
    let sidecars = scope::Sidecars::load(world, &mesh);
    let telemetry = telemetry::Rules::load(world, &mesh, &problems);
    let facts = scope::Facts { mesh: &mesh, services: &services, rules: &rules, domain: &node.domain };
    let clusters = clusters::Builder::new(world, node, &mesh, &destinations, previous, stale, &problems);
    let labels_count = rules.iter().any(rules::Rules::looks_at_labels)
        || destinations.looks_at_labels()
        || mesh.config.is_some_and(policy::mesh_orders_by_labels)
        || sidecars.looks_at_labels();
    let accounts_count = destinations.looks_at_zones()
        || mesh.config.is_some_and(|config| config.zone_aware_lb_setting.is_some());
    let visited = node.callers.first().map(|own| as_gateway(own, node));
    let callers = Callers::tell_apart(&node.callers, labels_count, accounts_count);
    let scopes: Vec<_> = callers
        .kinds
        .iter()
        .enumerate()
        .map(|(number, caller)| {
            let sidecar = sidecars.of(&caller.namespace, &caller.labels);
            scope::Scope::new(number, &facts, caller, sidecar)
        })
        .collect();
    let scene = outbound::Scene {
        node,
        mesh: &mesh,
        clusters: &clusters,
        telemetry: &telemetry,
        problems: &problems,
        topology: topology(node, &mesh, &services),
    };
    let outbounds = callers.outbounds(&scene, &scopes, previous, labels_count);
    let here = inbound::Scene {
        world,
        node,
        mesh: &mesh,
        sidecars: &sidecars,
        telemetry: &telemetry,
        previous,
        problems: &problems,
    };
    let inbound = inbound::inbound(&here);
    let names = names::names(&scopes);
    let mut open = Doors::default();
    doors::sidecars(&scene, &scopes, |kind| callers.position(kind), previous, &mut open);
    let gateways = gateways::selected(world, node);
    if let Some(own) = visited.as_ref().filter(|_| !gateways.is_empty()) {
        let scope = scope::Scope::gateway(scopes.len(), &facts, own);
        gateways::open(&scene, &scope, &rules, &gateways, previous, &mut open);
    }
    // In a large mesh these take as much as what is made last.
    drop(scopes);
    drop(rules);
    let clusters::Made { by_name: clusters, memory, named } = clusters.finish();
    drop(destinations);
    let index = if lasting { patch::Index::of(world, node, &services) } else { None };
    Plan {
        revision: world.revision,
        node: node.clone(),
        outbounds,
        doors: Arc::new(open),
        inbound: Arc::new(inbound),
        names: Arc::new(names),
        clusters,
        named: Named { clusters: named, refresh: mesh.dns_refresh() },
        problems: problems.into_list(),
        memory,
        seen: seen::Seen::of(world, index),
    }
}

/// The callers of a host: those that rules cannot tell apart share everything but their name.
struct Callers<'a> {
    all: &'a [Workload],
    /// One of each kind.
    kinds: Vec<&'a Workload>,
    /// The kind of each.
    kind_of: Vec<usize>,
}

impl<'a> Callers<'a> {
    fn tell_apart(all: &'a [Workload], labels_count: bool, accounts_count: bool) -> Self {
        let mut known: BTreeMap<_, usize> = BTreeMap::new();
        let mut kinds = Vec::new();
        let kind_of = all.iter().map(|caller| {
            let labels = labels_count.then_some(&caller.labels);
            let account = accounts_count.then_some(&caller.account);
            *known.entry((&caller.namespace, account, labels, &caller.locality)).or_insert_with(|| {
                kinds.push(caller);
                kinds.len() - 1
            })
        });
        let kind_of = kind_of.collect();
        Self { all, kinds, kind_of }
    }

    /// Returns the first caller of a kind.
    fn position(&self, kind: usize) -> usize {
        self.kind_of.iter().position(|of| *of == kind).unwrap_or(0)
    }

    fn outbounds(
        &self,
        scene: &outbound::Scene<'_>,
        scopes: &[scope::Scope<'_>],
        previous: Option<&Plan>,
        labels_count: bool,
    ) -> Vec<Arc<Outbound>> {
        let made: Vec<Arc<Outbound>> = scopes
            .iter()
            .map(|scope| {
                let same = |other: &&Arc<Outbound>| {
                    other.caller.namespace == scope.caller.namespace
                        && other.caller.locality == scope.caller.locality
                        && (!labels_count || other.caller.labels == scope.caller.labels)
                };
                let before = previous.and_then(|plan| plan.outbounds.iter().find(same));
                Arc::new(outbound::outbound(scene, scope, before.map(Arc::as_ref)))
            })
            .collect();
        let of = |(caller, kind): (&Workload, &usize)| {
            let outbound = &made[*kind];
            if outbound.caller == *caller {
                return outbound.clone();
            }
            let telling = scene.telemetry.client(caller);
            Arc::new(Outbound { caller: caller.clone(), telling, ..Outbound::clone(outbound) })
        };
        self.all.iter().zip(&self.kind_of).map(of).collect()
    }
}

/// A number for everything that routes are made of besides the rules: services, their ports, settings. Endpoints
/// are not in it.
fn topology(node: &Node, mesh: &mesh::Settings<'_>, services: &hosts::Services<'_>) -> u64 {
    let shapes = services.all.iter().map(|service| {
        let seen_by = service.export_to();
        (
            &service.host,
            service.namespace,
            seen_by,
            &service.ports,
            &service.addresses,
            service.entry_revisions(),
        )
    });
    fingerprint(&(&node.domain, mesh.revision, shapes.collect::<Vec<_>>()))
}

/// A number that two unlike values do not share.
fn fingerprint(value: &impl Hash) -> u64 {
    FixedState::with_seed(0x6d65_7368).hash_one(value)
}

/// Gathers what can be made in just the room that it takes: what is collected from results has room for four or more.
pub(super) fn gather<T, E>(made: impl ExactSizeIterator<Item = Result<T, E>>) -> Result<Vec<T>, E> {
    let mut all = Vec::with_capacity(made.len());
    for one in made {
        all.push(one?);
    }
    Ok(all)
}

/// What could not be carried out, without repetition.
#[derive(Debug, Default)]
pub(crate) struct Problems(std::cell::RefCell<std::collections::BTreeSet<String>>);

impl Problems {
    /// Notes a problem: `object: reason`.
    pub(crate) fn note(&self, text: String) {
        self.0.borrow_mut().insert(text);
    }

    fn into_list(self) -> Vec<String> {
        self.0.into_inner().into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
