//! What this host offers: registrations with the word of their health checks, and who calls from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::plan::{Locality, Node, Workload};
use mesh_core::world::World;
use mesh_proto::registration::{Health, Instance, Registration};

use super::Settings;

/// Returns the health of an instance: its check's last word; before the first word, ill if it has a check.
pub fn effective_health(id: &str, instance: &Instance, words: &BTreeMap<String, Health>) -> Health {
    match words.get(id) {
        Some(health) => *health,
        None if instance.check.is_some() => Health::Unhealthy,
        None => Health::Healthy,
    }
}

/// Writes the word of the health checks into a registration.
pub(super) fn set_health(registration: &mut Registration, words: &BTreeMap<String, Health>) {
    for (id, instance) in &mut registration.instances {
        let health = effective_health(id, instance, words);
        if instance.health != health {
            Arc::make_mut(instance).health = health;
        }
    }
}

/// Returns who this host is, with the accounts of its instances among the callers.
pub(super) fn node_with_accounts(settings: &Settings, world: &World) -> Node {
    let mut node = settings.node.clone();
    node.host = settings.host;
    node.trust_domain.clone_from(&world.mesh.trust_domain);
    node.domain.clone_from(&world.mesh.domain);
    let own = world.registrations.get(&settings.host);
    for instance in own.iter().flat_map(|registration| registration.instances.values()) {
        let caller = Workload {
            namespace: instance.namespace.clone(),
            account: instance.account.clone(),
            labels: instance.labels.clone(),
            locality: instance.locality.as_deref().map(Locality::parse).unwrap_or_default(),
        };
        if instance.address.is_none() && !node.callers.contains(&caller) {
            node.callers.push(caller);
        }
    }
    node
}
