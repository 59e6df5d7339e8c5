//! Members of a `WorkloadGroup`: what the group gives to an instance that does not say it itself.
//!
//! The host of a member fills it in from its copy of the World, before it registers it, and anew when the group or
//! what selects it changes. So a member is an instance like any other: a `ServiceEntry` finds it by its labels, it is
//! asked for its health, and it ends with the lease of its host. Source: Istio's automatic registration
//! (`workloadEntryFromGroup`), whose entries do not follow a group that changes (differs: here they do).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_proto::registration::{HealthCheck, HttpAsk, Instance, PortBinding, Probe, Protocol, Registration};
use mesh_proto::resource::{
    Kind, ObjectKey, ReadinessProbe, ServiceEntry, Spec, WorkloadEntry, WorkloadGroup,
};

use crate::compile::hosts::{has_all, of_kind};
use crate::world::World;

/// Fills in every member of a host's registration; returns what cannot be, `instance ID: reason`, besides.
///
/// Members of a group that is not there, and those without any port, are left out. `locality` is the host's own, which
/// counts before the group's.
pub fn fill(world: &World, registration: &Registration, locality: &str) -> (Registration, Vec<String>) {
    let mut problems = Vec::new();
    let mut filled = Registration::default();
    for (id, instance) in &registration.instances {
        let Some(name) = &instance.group else {
            filled.instances.insert(id.clone(), instance.clone());
            continue;
        };
        let namespace = &instance.namespace;
        let key = ObjectKey::new(Kind::WorkloadGroup, namespace.as_str(), name.as_str());
        let Some(Spec::WorkloadGroup(group)) = world.resources.get(&key).map(|stored| &stored.object.spec)
        else {
            problems.push(format!(
                "instance {id}: there is no WorkloadGroup {namespace}/{name}: it is not registered; apply the group, or \
                 name another"
            ));
            continue;
        };
        let member = member(world, instance, group, locality);
        if member.ports.is_empty() {
            problems.push(format!(
                "instance {id}: neither it nor WorkloadGroup {namespace}/{name} says on which ports it is, nor does a \
                 ServiceEntry that selects it: it is not registered; give the group template.ports"
            ));
            continue;
        }
        filled.instances.insert(id.clone(), Arc::new(member));
    }
    (filled, problems)
}

fn member(world: &World, own: &Instance, group: &WorkloadGroup, locality: &str) -> Instance {
    let nothing = WorkloadEntry::default();
    let template = group.template.as_ref().unwrap_or(&nothing);
    let mut member = own.clone();
    let mut labels = template.labels.clone();
    if let Some(metadata) = &group.metadata {
        labels.extend(metadata.labels.clone());
    }
    labels.extend(own.labels.clone());
    if !template.network.is_empty() {
        labels.insert_missing(NETWORK.to_owned(), || template.network.to_string());
    }
    member.labels = labels;
    if own.account == UNSAID && !template.service_account.is_empty() {
        member.account = template.service_account.to_string();
    }
    if let Some(weight) = template.weight.filter(|weight| own.weight == 1 && *weight > 0) {
        member.weight = weight;
    }
    if own.locality.is_none() && locality.is_empty() && !template.locality.is_empty() {
        member.locality = Some(template.locality.to_string());
    }
    if own.ports.is_empty() {
        member.ports = ports(world, &member, template);
    }
    if own.check.is_none() {
        member.check = group.probe.as_ref().and_then(check);
    }
    member
}

/// The ports of the template; without any, those that `ServiceEntries` which select the member send to.
fn ports(world: &World, member: &Instance, template: &WorkloadEntry) -> Vec<PortBinding> {
    let selecting: Vec<&ServiceEntry> = of_kind(world, Kind::ServiceEntry)
        .filter(|stored| *stored.object.metadata.namespace == *member.namespace)
        .filter_map(|stored| match &stored.object.spec {
            Spec::ServiceEntry(entry) => Some(&**entry),
            _ => None,
        })
        .filter(|entry| {
            entry.workload_selector.as_ref().is_some_and(|wanted| has_all(&member.labels, &wanted.labels))
        })
        .collect();
    let declared = |name: &str| {
        let mut ports = selecting.iter().flat_map(|entry| &entry.ports);
        let port = ports.find(|port| port.name == name);
        port.and_then(|port| Protocol::parse(&port.protocol)).unwrap_or_default()
    };
    let mut found: BTreeMap<u16, PortBinding> = BTreeMap::new();
    for (name, number) in &template.ports {
        found.entry(*number).or_insert_with(|| binding(*number, name, declared(name)));
    }
    if template.ports.is_empty() {
        for port in selecting.iter().flat_map(|entry| &entry.ports) {
            let number = port.target_port.filter(|target| *target != 0).unwrap_or(port.number);
            let protocol = Protocol::parse(&port.protocol).unwrap_or_default();
            found.entry(number).or_insert_with(|| binding(number, &port.name, protocol));
        }
    }
    found.into_values().collect()
}

fn binding(number: u16, name: &str, protocol: Protocol) -> PortBinding {
    PortBinding {
        number,
        name: name.to_owned(),
        protocol,
        target: SocketAddr::from((Ipv4Addr::LOCALHOST, number)),
    }
}

/// Reads a probe, Kubernetes' defaults put in.
fn check(probe: &ReadinessProbe) -> Option<HealthCheck> {
    let port = |port: u16| (port != 0).then_some(port);
    let host = |host: &String| (!host.is_empty()).then(|| host.clone());
    let http = probe.http_get.as_ref().map(|get| Probe::Http {
        path: if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) },
        port: port(get.port),
        ask: HttpAsk {
            host: host(&get.host),
            https: get.scheme.eq_ignore_ascii_case("https"),
            headers: get.http_headers.iter().map(|one| (one.name.clone(), one.value.clone())).collect(),
        },
    });
    let tcp = probe.tcp_socket.as_ref().map(|tcp| Probe::Tcp { host: host(&tcp.host), port: port(tcp.port) });
    let grpc =
        probe.grpc.as_ref().map(|grpc| Probe::Grpc { service: grpc.service.clone(), port: port(grpc.port) });
    let exec = probe.exec.as_ref().map(|exec| Probe::Command { argv: exec.command.clone() });
    let or = |seconds: i32, default: u64| match u64::try_from(seconds) {
        Ok(0) | Err(_) => default,
        Ok(seconds) => seconds,
    };
    let threshold = |count: i32, default: u32| match u32::try_from(count) {
        Ok(0) | Err(_) => default,
        Ok(count) => count,
    };
    Some(HealthCheck {
        probe: http.or(tcp).or(grpc).or(exec)?,
        interval_ms: or(probe.period_seconds, 10) * 1_000,
        timeout_ms: or(probe.timeout_seconds, 1) * 1_000,
        initial_delay_ms: or(probe.initial_delay_seconds, 0) * 1_000,
        unhealthy_threshold: threshold(probe.failure_threshold, 3),
        healthy_threshold: threshold(probe.success_threshold, 1),
    })
}

/// The account of an instance that names none.
const UNSAID: &str = "default";
/// The label that says which network a workload is in.
const NETWORK: &str = "topology.istio.io/network";

#[cfg(test)]
mod tests;
