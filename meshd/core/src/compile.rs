//! World and Node make a Plan: Istio's rules, resolved for the callers of one host.
//!
//! Reads top to bottom as Istio's semantics: which services there are (`hosts`), which rules each caller sees
//! (`visibility`, `rules`, `delegates`), what is on each port (`outbound`, `routes`, `tcp`), what is behind each
//! destination (`clusters`, `policy`, `endpoints`), who may be asked here (`inbound`), what DNS says (`names`).
//!
//! Nothing here fails: what validation let through and cannot be carried out is left out and told in
//! [`Plan::problems`]. The same World and Node give the same Plan. What did not change since `previous` is shared with
//! it, and the counters of clusters and endpoints move over.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::plan::{Node, Outbound, Plan};
use crate::world::World;

pub(crate) mod authors;
pub(crate) mod clusters;
mod delegates;
mod endpoints;
pub(crate) mod hosts;
mod inbound;
mod matches;
pub(crate) mod mesh;
mod names;
mod nearness;
mod outbound;
mod policy;
mod retry;
pub(crate) mod routes;
pub(crate) mod rules;
mod tcp;
pub(crate) mod visibility;

pub use clusters::Memory;

/// Compiles what a host is to do.
///
/// `previous` is the Plan it follows now: parts that did not change are shared, counters are carried over.
pub fn compile(world: &World, node: &Arc<Node>, previous: Option<&Plan>) -> Plan {
    let problems = Problems::default();
    let mesh = mesh::Settings::of(world);
    let services = hosts::services(world, node, &mesh);
    let rules = rules::load(world, &mesh, &node.domain, &problems);
    let clusters = clusters::Builder::new(world, node, &mesh, &services, previous, &problems);
    let scene = outbound::Scene {
        node,
        mesh: &mesh,
        services: &services,
        rules: &rules,
        clusters: &clusters,
        problems: &problems,
        topology: topology(node, &mesh, &services),
    };
    let outbounds = outbounds(&scene, previous);
    let inbound = inbound::inbound(world, node, &problems);
    let names = names::names(node, &services);
    let (clusters, memory) = clusters.finish();
    Plan {
        revision: world.revision,
        node: node.clone(),
        outbounds,
        inbound: Arc::new(inbound),
        names: Arc::new(names),
        clusters,
        problems: problems.into_list(),
        memory,
    }
}

/// Compiles for each caller; callers that rules cannot tell apart share everything but their name.
fn outbounds(scene: &outbound::Scene<'_>, previous: Option<&Plan>) -> Vec<Arc<Outbound>> {
    let labels_count =
        scene.clusters.looks_at_labels() || scene.rules.iter().any(rules::Rules::looks_at_labels);
    let mut made: BTreeMap<_, Arc<Outbound>> = BTreeMap::new();
    scene
        .node
        .callers
        .iter()
        .map(|caller| {
            let labels = labels_count.then_some(&caller.labels);
            let key = (&caller.namespace, labels, &caller.locality);
            let before = previous.and_then(|plan| {
                let same = |other: &&Arc<Outbound>| {
                    other.caller.namespace == caller.namespace
                        && other.caller.locality == caller.locality
                        && (!labels_count || other.caller.labels == caller.labels)
                };
                plan.outbounds.iter().find(same)
            });
            let outbound = made
                .entry(key)
                .or_insert_with(|| Arc::new(outbound::outbound(scene, caller, before.map(Arc::as_ref))));
            if outbound.caller == *caller {
                return outbound.clone();
            }
            Arc::new(Outbound { caller: caller.clone(), ..Outbound::clone(outbound) })
        })
        .collect()
}

/// A number for everything that routes are made of besides the rules: services, their ports, settings. Endpoints
/// are not in it.
fn topology(node: &Node, mesh: &mesh::Settings<'_>, services: &hosts::Services<'_>) -> u64 {
    let shapes = services.all.iter().map(|service| {
        (&service.host, service.namespace, &service.ports, &service.addresses, service.entry_revision())
    });
    fingerprint(&(&node.domain, mesh.revision, shapes.collect::<Vec<_>>()))
}

/// A number that two unlike values do not share.
fn fingerprint(value: &impl Hash) -> u64 {
    FixedState::with_seed(0x6d65_7368).hash_one(value)
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
