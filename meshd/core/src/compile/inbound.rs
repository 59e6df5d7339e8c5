//! What other hosts may ask of this one: the instances it has registered.

use std::sync::Arc;

use mesh_proto::registration::Protocol;

use super::Problems;
use crate::identity::Identity;
use crate::plan::{Inbound, LocalInstance, LocalPort, Node};
use crate::world::{ServiceName, World};

/// Gathers the instances of this host. Those that stand for an address elsewhere are not its to answer for.
pub(super) fn inbound(world: &World, node: &Node, problems: &Problems) -> Inbound {
    let mut inbound = Inbound::default();
    let Some(registration) = world.registrations.get(&node.host) else { return inbound };
    for (id, instance) in &registration.instances {
        if instance.address.is_some() {
            continue;
        }
        let identity =
            match Identity::workload(&world.mesh.trust_domain, &instance.namespace, &instance.account) {
                Ok(identity) => identity,
                Err(error) => {
                    problems.note(format!("instance {id}: {error}"));
                    continue;
                }
            };
        let ports = instance.ports.iter().map(|binding| LocalPort {
            number: binding.number,
            protocol: Protocol::of_port(binding.protocol, &binding.name),
            target: binding.target,
        });
        let host: Arc<str> = ServiceName::of(instance).fqdn(&node.domain).to_ascii_lowercase().into();
        let local = Arc::new(LocalInstance {
            id: id.as_str().into(),
            host: host.clone(),
            identity,
            version: instance.labels.get("version").map_or("", String::as_str).into(),
            ports: ports.collect(),
            health: instance.health,
        });
        for port in &local.ports {
            inbound.targets.entry(port.target.port()).or_insert_with(|| (local.clone(), port.clone()));
        }
        inbound.services.entry((&*host).into()).or_default().push(local.clone());
        inbound.instances.insert(id.as_str().into(), local);
    }
    inbound
}
