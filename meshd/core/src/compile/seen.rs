//! What a Plan saw of the World, so that the next one knows what is new.
//!
//! A mirror replaces only what changed: facts that are the same `Arc` are the same. Of a host that changed itself, every
//! service is new; of one whose registration changed, those whose instances differ.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::HashSet;
use mesh_proto::command::HostId;
use mesh_proto::registration::{Instance, Registration};
use mesh_proto::watch::Host;

use super::patch::Index;
use crate::parted::PartedMap;
use crate::plan::{Node, Plan};
use crate::world::{ServiceName, World};

/// The World as a Plan saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Its public facts.
    pub(super) world: World,
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
    /// Remembers a World.
    pub(super) fn of(world: &World, index: Option<Index>) -> Self {
        Self { world: world.seen(), index: index.map(Arc::new) }
    }

    /// Remembers a newer World.
    pub(super) fn follow(&mut self, world: &World, index: Index) {
        *self = Self::of(world, Some(index));
    }

    /// Tells what is stale in a Plan beside a newer World.
    pub(super) fn stale(previous: Option<&Plan>, world: &World, node: &Node) -> Stale {
        let same_node = |plan: &&Plan| plan.node.domain == node.domain && plan.node.host == node.host;
        // What could not be made is told each time it is tried.
        let sound = |plan: &&Plan| !plan.problems.iter().any(|problem| problem.starts_with("instance "));
        let Some(plan) = previous.filter(same_node).filter(sound) else { return Stale::All };
        let then = &plan.seen.world;
        // Names of hosts are in the ids of endpoints.
        let renamed = |(_, one, other): &(&HostId, Option<&Arc<Host>>, Option<&Arc<Host>>)| {
            one.map(|host| &host.name) != other.map(|host| &host.name)
        };
        let hosts = world.hosts.changes(&then.hosts, Arc::ptr_eq);
        if then.mesh.trust_domain != world.mesh.trust_domain || hosts.iter().any(renamed) {
            return Stale::All;
        }
        let changed: BTreeSet<HostId> = hosts.into_iter().map(|(id, ..)| *id).collect();
        let mut stale = HashSet::default();
        let mut add = |instance: &Instance| {
            stale.insert(ServiceName::of(instance).fqdn(&node.domain).to_ascii_lowercase());
        };
        let on = |registrations: &PartedMap<HostId, Arc<Registration>>, id: &HostId| {
            registrations.get(id).cloned().unwrap_or_default()
        };
        for id in &changed {
            for registrations in [&then.registrations, &world.registrations] {
                on(registrations, id).instances.values().for_each(|instance| add(instance));
            }
        }
        for (id, ..) in world.registrations.changes(&then.registrations, Arc::ptr_eq) {
            let (one, other) = (on(&then.registrations, id), on(&world.registrations, id));
            for (one, other) in [(&one, &other), (&other, &one)] {
                for (name, instance) in &one.instances {
                    if other.instances.get(name) != Some(instance) {
                        add(instance);
                    }
                }
            }
        }
        Stale::Hosts(stale)
    }
}
