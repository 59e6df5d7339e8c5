//! What a Plan saw of hosts and their instances, so that the next one knows which services have other endpoints now.
//!
//! A mirror replaces only what changed: facts that are the same `Arc` are the same. Of a host that changed itself, every
//! service is new; of one whose registration changed, those whose instances differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashSet;
use mesh_proto::command::{HostId, Mesh};
use mesh_proto::registration::{Instance, Registration};
use mesh_proto::watch::{Host, Stored};

use super::patch::Index;
use crate::plan::{Node, Plan};
use crate::world::{ServiceName, World};

/// Hosts and registrations as a Plan saw them.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    trust_domain: String,
    hosts: BTreeMap<HostId, Arc<Host>>,
    pub(super) registrations: BTreeMap<HostId, Arc<Registration>>,
    mesh: Mesh,
    /// Every resource, in order.
    pub(super) resources: Arc<Vec<Arc<Stored>>>,
    addresses: Arc<BTreeMap<String, u16>>,
    /// The way to the parts of the World, where they stand alone.
    pub(super) index: Option<Arc<Index>>,
}

/// Services whose endpoints may differ from those of the Plan before.
pub(super) enum Stale {
    /// All of them.
    All,
    /// These, by full host name.
    Hosts(HashSet<String>),
}

impl Stale {
    /// Whether the endpoints of a registered service must be gathered anew.
    pub(super) fn has(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Hosts(hosts) => hosts.contains(host),
        }
    }
}

impl Seen {
    /// Remembers a World; without an index, only what tells which endpoints are new.
    pub(super) fn of(world: &World, index: Option<Index>) -> Self {
        let mut seen = Self {
            trust_domain: world.mesh.trust_domain.clone(),
            hosts: world.hosts.clone(),
            registrations: world.registrations.clone(),
            ..Self::default()
        };
        if let Some(index) = index {
            seen.mesh = world.mesh.clone();
            seen.resources = Arc::new(world.resources.values().cloned().collect());
            seen.addresses = Arc::new(world.addresses.clone());
            seen.index = Some(Arc::new(index));
        }
        seen
    }

    /// Whether a World has the same settings, hosts and virtual addresses.
    pub(super) fn is_same_place(&self, world: &World) -> bool {
        self.mesh == world.mesh
            && self.hosts.len() == world.hosts.len()
            && self
                .hosts
                .iter()
                .zip(&world.hosts)
                .all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1))
            && *self.addresses == world.addresses
    }

    /// Remembers what rules and instances say in a World of the same hosts.
    pub(super) fn follow(&mut self, world: &World) {
        let is_same =
            self.resources.iter().zip(world.resources.values()).all(|(one, other)| Arc::ptr_eq(one, other));
        if !is_same {
            self.resources = Arc::new(world.resources.values().cloned().collect());
        }
        self.registrations.clone_from(&world.registrations);
    }

    /// Tells what is stale in a Plan beside a newer World.
    pub(super) fn stale(previous: Option<&Plan>, world: &World, node: &Node) -> Stale {
        let same_node = |plan: &&Plan| plan.node.domain == node.domain && plan.node.host == node.host;
        // What could not be made is told each time it is tried.
        let sound = |plan: &&Plan| !plan.problems.iter().any(|problem| problem.starts_with("instance "));
        let Some(plan) = previous.filter(same_node).filter(sound) else { return Stale::All };
        let seen = &plan.seen;
        // Names of hosts are in the ids of endpoints.
        let names = |hosts: &BTreeMap<HostId, Arc<Host>>| -> Vec<(HostId, String)> {
            hosts.iter().map(|(id, host)| (*id, host.name.clone())).collect()
        };
        let same_hosts = seen.hosts.len() == world.hosts.len()
            && seen
                .hosts
                .iter()
                .zip(&world.hosts)
                .all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1));
        if seen.trust_domain != world.mesh.trust_domain
            || (!same_hosts && names(&seen.hosts) != names(&world.hosts))
        {
            return Stale::All;
        }
        let mut stale = HashSet::default();
        let ids: BTreeSet<&HostId> = seen.registrations.keys().chain(world.registrations.keys()).collect();
        for id in ids {
            let (then, now) = (seen.registrations.get(id), world.registrations.get(id));
            let same_host = match (seen.hosts.get(id), world.hosts.get(id)) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                _ => false,
            };
            if same_host && matches!((then, now), (Some(one), Some(other)) if Arc::ptr_eq(one, other)) {
                continue;
            }
            let differs = |id: &String, one: &Instance, others: Option<&Arc<Registration>>| {
                !same_host || others.and_then(|others| others.instances.get(id)) != Some(one)
            };
            for (one, other) in [(then, now), (now, then)] {
                for (id, instance) in one.iter().flat_map(|one| &one.instances) {
                    if differs(id, instance, other) {
                        stale.insert(ServiceName::of(instance).fqdn(&node.domain).to_ascii_lowercase());
                    }
                }
            }
        }
        Stale::Hosts(stale)
    }
}
