//! Subsets without instances, rules that are not merged, gateways that are not there, services without anybody.
//!
//! Source: Istio's analyzers; codes and texts are theirs where they have one.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::finding::Finding;
use mesh_proto::registration::Protocol;
use mesh_proto::resource::{DestinationRule, Gateway, Kind, ObjectKey, Spec, VirtualService};
use mesh_proto::value::Labels;

use super::listed;
use crate::compile::hosts::{Services, Source, full_name, has_all, of_kind, takes};
use crate::compile::rules::MESH;
use crate::sketch;
use crate::world::World;

/// Tells of everything that subsets and gateways get wrong.
pub(super) fn check(world: &World, services: &Services<'_>, domain: &str, findings: &mut Vec<Finding>) {
    subsets(world, services, domain, findings);
    gateways(world, findings);
    gateway_hosts(world, findings);
    ports(services, findings);
    empty_services(services, sketch::tells_of_workloads(world), findings);
}

/// Subsets that pick no instance of their services.
fn subsets(world: &World, services: &Services<'_>, domain: &str, findings: &mut Vec<Finding>) {
    for (key, rule) in destination_rules(world) {
        let host = full_name(&rule.host, &key.namespace, domain);
        let mut labels: Vec<&Labels> = Vec::new();
        for service in services.all.iter().filter(|service| takes(&host, &service.host)) {
            match &service.source {
                Source::Registered(instances) => {
                    labels.extend(instances.iter().map(|found| &found.instance.labels));
                }
                Source::Entry(_) => {
                    for entry in service.entries() {
                        labels.extend(entry.spec.endpoints.iter().map(|endpoint| &endpoint.labels));
                        labels.extend(entry.workloads.iter().map(|(_, workload)| &workload.labels));
                        labels.extend(entry.instances.iter().map(|found| &found.instance.labels));
                    }
                }
            }
        }
        if labels.is_empty() {
            continue;
        }
        for (index, subset) in rule.subsets.iter().enumerate() {
            if labels.iter().any(|labels| has_all(labels, &subset.labels)) {
                continue;
            }
            let wanted: Vec<String> =
                subset.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let text = format!(
                "The Subset {} defined in the DestinationRule does not select any pods. Which may lead to 503 UH \
                 (NoHealthyUpstream): no instance of {host} has {}",
                subset.name,
                wanted.join(", ")
            );
            findings.push(Finding::warning("IST0173", format!("spec.subsets[{index}]"), text).on(&key));
        }
    }
}

fn destination_rules(world: &World) -> impl Iterator<Item = (ObjectKey, &DestinationRule)> {
    of_kind(world, Kind::DestinationRule).filter_map(|stored| match &stored.object.spec {
        Spec::DestinationRule(rule) => Some((stored.object.key(), &**rule)),
        _ => None,
    })
}

/// Several DestinationRules for one host: who wins, and why.
pub(super) fn merging(world: &World, domain: &str, findings: &mut Vec<Finding>) {
    let mut by_host: BTreeMap<(String, String), Vec<_>> = BTreeMap::new();
    for stored in of_kind(world, Kind::DestinationRule) {
        let Spec::DestinationRule(rule) = &stored.object.spec else { continue };
        let key = stored.object.key();
        let host = full_name(&rule.host, &key.namespace, domain);
        by_host.entry((key.namespace.to_string(), host)).or_default().push((stored.created, key, rule));
    }
    for ((_, host), mut rules) in by_host {
        rules.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let Some(((_, first, winner), rest)) = rules.split_first() else { continue };
        let mut policy = winner.traffic_policy.as_ref().map(|_| first);
        let mut names: BTreeMap<&str, &ObjectKey> =
            winner.subsets.iter().map(|subset| (subset.name.as_str(), first)).collect();
        for (_, key, rule) in rest {
            let why = |other: &ObjectKey| format!("{other} comes first (by age, then by namespace and name)");
            if rule.export_to != winner.export_to {
                let text = format!("is not used for {host}: {}, and is exported to others", why(first));
                findings.push(Finding::warning("rule-not-merged", "spec.exportTo", text).on(key));
                continue;
            }
            match policy.filter(|_| rule.traffic_policy.is_some()) {
                Some(other) => {
                    let text = format!("is not used for {host}: {} and has one", why(other));
                    let hint = "put both into one DestinationRule";
                    findings.push(
                        Finding::warning("policy-not-merged", "spec.trafficPolicy", text)
                            .with_hint(hint)
                            .on(key),
                    );
                }
                None => policy = policy.or(rule.traffic_policy.as_ref().map(|_| key)),
            }
            for (index, subset) in rule.subsets.iter().enumerate() {
                if let Some(other) = names.get(subset.name.as_str()) {
                    let text = format!(
                        "subset {:?} of {host} is not used: {} and has one of that name",
                        subset.name,
                        why(other)
                    );
                    findings.push(
                        Finding::warning("subset-not-merged", format!("spec.subsets[{index}]"), text).on(key),
                    );
                } else {
                    names.insert(&subset.name, key);
                }
            }
        }
    }
}

/// VirtualServices that name gateways which are not there or have not their hosts.
fn gateways(world: &World, findings: &mut Vec<Finding>) {
    let all: BTreeMap<(&str, &str), &Gateway> = of_kind(world, Kind::Gateway)
        .filter_map(|stored| match &stored.object.spec {
            Spec::Gateway(gateway) => {
                Some(((&*stored.object.metadata.namespace, &*stored.object.metadata.name), &**gateway))
            }
            _ => None,
        })
        .collect();
    for stored in of_kind(world, Kind::VirtualService) {
        let Spec::VirtualService(rule) = &stored.object.spec else { continue };
        let key = stored.object.key();
        for (index, name) in rule.gateways.iter().enumerate().filter(|(_, name)| *name != MESH) {
            let (namespace, short) = name.split_once('/').unwrap_or((&key.namespace, name));
            let path = format!("spec.gateways[{index}]");
            match all.get(&(namespace, short)) {
                None => findings.push(
                    Finding::warning("IST0101", path, format!("Referenced gateway not found: {name:?}"))
                        .on(&key),
                ),
                Some(gateway) => hosts_of_gateway(rule, (namespace, gateway), name, &key, path, findings),
            }
        }
    }
}

/// Gateways that no host of the mesh opens. Files alone say nothing of hosts.
///
/// Source: Istio `gateway.IngressGatewayPortAnalyzer`.
fn gateway_hosts(world: &World, findings: &mut Vec<Finding>) {
    if world.mesh.id == sketch::ID {
        return;
    }
    for stored in of_kind(world, Kind::Gateway) {
        let Spec::Gateway(spec) = &stored.object.spec else { continue };
        let opens =
            |host: &std::sync::Arc<mesh_proto::watch::Host>| has_all(&host.facts.labels, &spec.selector);
        if spec.selector.is_empty() || world.hosts.values().any(opens) {
            continue;
        }
        let pairs: Vec<String> =
            spec.selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let text = format!(
            "Referenced selector not found: {:?}: no host of the mesh has these labels, so nobody opens the gateway",
            pairs.join(",")
        );
        let hint = "give them to the hosts that are to open it: labels in meshd.toml";
        findings.push(
            Finding::warning("IST0101", "spec.selector", text).with_hint(hint).on(&stored.object.key()),
        );
    }
}

fn hosts_of_gateway(
    rule: &VirtualService,
    (home, gateway): (&str, &Gateway),
    name: &str,
    key: &ObjectKey,
    path: String,
    findings: &mut Vec<Finding>,
) {
    let served: BTreeSet<&str> = gateway
        .servers
        .iter()
        .flat_map(|server| &server.hosts)
        .filter_map(|host| match host.split_once('/') {
            Some((".", host)) => (home == &*key.namespace).then_some(host),
            Some((namespace, host)) => (namespace == "*" || namespace == &*key.namespace).then_some(host),
            None => Some(host.as_str()),
        })
        .collect();
    let fits = |host: &&String| served.iter().any(|served| takes(served, host) || takes(host, served));
    let missing: Vec<&str> = rule.hosts.iter().filter(|host| !fits(host)).map(String::as_str).collect();
    if !missing.is_empty() {
        let text = format!(
            "one or more host [{}] defined in VirtualService {}/{} not found in Gateway {name}",
            missing.join(" "),
            key.namespace,
            key.name
        );
        findings.push(Finding::warning("IST0132", path, text).on(key));
    }
}

/// Ports whose protocol is guessed from the first bytes.
fn ports(services: &Services<'_>, findings: &mut Vec<Finding>) {
    for service in services.all.iter().filter(|service| service.entry().is_none()) {
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Auto) {
            let name = if port.name.is_empty() { "\"\"" } else { port.name.as_str() };
            let text = format!(
                "Port name {name} (port: {}, targetPort: {}) doesn't follow the naming convention of Istio port",
                port.number, port.target
            );
            let finding = Finding::info("IST0118", "", text)
                .with_hint("name it http, grpc-api, tcp-db …, or give it a protocol; until then the first bytes tell")
                .on(&format!("Service {}", service.host));
            findings.push(finding);
        }
    }
}

/// Declared services behind which there is nobody.
fn empty_services(services: &Services<'_>, knows_workloads: bool, findings: &mut Vec<Finding>) {
    for service in &services.all {
        let Some(entry) = service.entry().filter(|_| !service.is_passthrough()) else { continue };
        let by_name = matches!(
            entry.spec.resolution(),
            mesh_proto::resource::Resolution::Dns | mesh_proto::resource::Resolution::DnsRoundRobin
        );
        let selects = service.entries().any(|entry| entry.spec.workload_selector.is_some());
        if selects && !knows_workloads {
            continue;
        }
        let nobody = service.entries().all(|entry| {
            entry.spec.endpoints.is_empty() && entry.workloads.is_empty() && entry.instances.is_empty()
        });
        if nobody && !by_name {
            let text = format!("host {} has no endpoint: requests are answered 503", service.host);
            let hosts = listed(&entry.spec.hosts);
            let hint = format!("give {hosts} endpoints, or a workloadSelector that picks some");
            findings.push(
                Finding::warning("no-endpoint", "spec.endpoints", text)
                    .with_hint(hint)
                    .on(&entry.stored.object.key()),
            );
        }
    }
}
