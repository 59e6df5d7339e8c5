//! Objects that get in each other's way: gateways with one host or one certificate, two protocols for one port; rules whose
//! subsets visitors do not get; fields that have a newer form.
//!
//! Source: Istio's analyzers `gateway.ConflictingGatewayAnalyzer`, `gateway.CertificateAnalyzer`,
//! `serviceentry.ConflictingServiceEntryProtocolAnalyzer`, `virtualservice.DestinationHostAnalyzer`, `deprecation.FieldAnalyzer`.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::finding::Finding;
use mesh_proto::resource::{Gateway, Kind, ObjectKey, Server, ServiceEntry, Spec, VirtualService};
use mesh_proto::value::Labels;

use crate::compile::hosts::{has_all, of_kind, takes};
use crate::compile::visibility;
use crate::world::World;

/// Tells of everything two objects say of one thing, of which one counts.
pub(super) fn check(world: &World, findings: &mut Vec<Finding>) {
    conflicting_gateways(&gateways(world), findings);
    let entries = all(world, Kind::ServiceEntry, |spec| match spec {
        Spec::ServiceEntry(entry) => Some(&**entry),
        _ => None,
    });
    conflicting_protocols(&entries, findings);
}

/// Tells of what is taken as it is and may be meant otherwise.
pub(super) fn doubtful(world: &World, findings: &mut Vec<Finding>) {
    shared_certificates(&gateways(world), findings);
    let rules = all(world, Kind::VirtualService, |spec| match spec {
        Spec::VirtualService(rule) => Some(&**rule),
        _ => None,
    });
    subsets_of_the_mesh_alone(&rules, findings);
    former_fields(&rules, findings);
}

fn gateways(world: &World) -> Vec<(ObjectKey, &Gateway)> {
    all(world, Kind::Gateway, |spec| match spec {
        Spec::Gateway(gateway) => Some(&**gateway),
        _ => None,
    })
}

fn all<'a, T>(
    world: &'a World,
    kind: Kind,
    pick: impl Fn(&'a Spec) -> Option<&'a T>,
) -> Vec<(ObjectKey, &'a T)> {
    of_kind(world, kind)
        .filter_map(|stored| Some((stored.object.key(), pick(&stored.object.spec)?)))
        .collect()
}

fn name(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// Servers of several gateways for the same hosts of the mesh, with one port and one host name: the first has it.
fn conflicting_gateways(gateways: &[(ObjectKey, &Gateway)], findings: &mut Vec<Finding>) {
    let port = |server: &Server| server.port.as_ref().map(|port| port.number);
    let mut by_port: BTreeMap<Option<u16>, Vec<&(ObjectKey, &Gateway)>> = BTreeMap::new();
    for one in gateways {
        for number in one.1.servers.iter().map(port).collect::<BTreeSet<_>>() {
            by_port.entry(number).or_default().push(one);
        }
    }
    for (key, gateway) in gateways {
        for (index, server) in gateway.servers.iter().enumerate() {
            let others: Vec<String> = by_port[&port(server)]
                .iter()
                .filter(|(other, found)| other != key && meet(&gateway.selector, &found.selector))
                .filter(|(_, other)| other.servers.iter().any(|other| clash(server, other)))
                .map(|(key, _)| name(key))
                .collect();
            if others.is_empty() {
                continue;
            }
            let selector: Vec<String> =
                gateway.selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let text = format!(
                "Conflict with gateways {} (workload selector {}, port {}, hosts {}): the older one has them",
                others.join(","),
                selector.join(","),
                server.port.as_ref().map_or(0, |port| port.number),
                server.hosts.join(",")
            );
            findings.push(Finding::warning("IST0145", format!("spec.servers[{index}]"), text).on(key));
        }
    }
}

/// Whether hosts that one of two selectors picks are picked by the other, too.
fn meet(one: &Labels, other: &Labels) -> bool {
    one == other || !one.is_empty() && !other.is_empty() && (has_all(one, other) || has_all(other, one))
}

fn clash(one: &Server, other: &Server) -> bool {
    let port = |server: &Server| server.port.as_ref().map(|port| port.number);
    port(one) == port(other)
        && one.bind == other.bind
        && one.hosts.iter().any(|host| other.hosts.contains(host))
}

/// One certificate in several gateways: clients may send requests for the one over a connection to the other.
fn shared_certificates(gateways: &[(ObjectKey, &Gateway)], findings: &mut Vec<Finding>) {
    let shown = |gateway: &Gateway| -> BTreeSet<String> {
        let tls = gateway.servers.iter().filter_map(|server| server.tls.as_ref());
        tls.filter_map(|tls| match (tls.credential_name.as_str(), tls.server_certificate.as_str()) {
            ("", "") => None,
            ("", file) => Some(format!("file {file} {}", tls.private_key)),
            (secret, _) => Some(secret.to_owned()),
        })
        .collect()
    };
    for (key, gateway) in gateways {
        for (other_key, other) in gateways.iter().filter(|(other, _)| other != key) {
            if has_all(&other.selector, &gateway.selector) && !shown(gateway).is_disjoint(&shown(other)) {
                let text = format!(
                    "Duplicate certificate in multiple gateways [{} {}] may cause 404s if clients re-use HTTP2 connections",
                    name(key),
                    name(other_key)
                );
                findings.push(Finding::warning("IST0138", "spec.servers", text).on(key));
            }
        }
    }
}

/// What several `ServiceEntries` say of one port: by host and port, who says which protocol.
type Said<'a> = BTreeMap<(&'a str, u16), Vec<(&'a ObjectKey, &'a ServiceEntry, String)>>;

fn conflicting_protocols(entries: &[(ObjectKey, &ServiceEntry)], findings: &mut Vec<Finding>) {
    let mut said = Said::new();
    for (key, entry) in entries {
        for host in &entry.hosts {
            for port in &entry.ports {
                let protocol = port.protocol.to_ascii_uppercase();
                said.entry((host, port.number)).or_default().push((key, *entry, protocol));
            }
        }
    }
    for ((host, port), by) in said {
        // Mostly all say the same.
        if by.iter().all(|(.., protocol)| *protocol == by[0].2) {
            continue;
        }
        for (key, entry, protocol) in &by {
            // Who sees only one of two has no conflict.
            let met: Vec<_> = by
                .iter()
                .filter(|(other, found, _)| {
                    visibility::meet((&entry.export_to, &key.namespace), (&found.export_to, &other.namespace))
                })
                .collect();
            if met.iter().all(|(_, _, other)| other == protocol) {
                continue;
            }
            let names: BTreeSet<String> = met.iter().map(|(key, ..)| name(key)).collect();
            let protocols: BTreeSet<&str> = met.iter().map(|(.., protocol)| protocol.as_str()).collect();
            let text = format!(
                "Multiple ServiceEntries ({}) define the same host {host:?} and port {port} with conflicting protocols ({})",
                Vec::from_iter(names).join(", "),
                Vec::from_iter(protocols).join(", ")
            );
            findings.push(Finding::warning("IST0177", "spec.ports", text).on(*key));
        }
    }
}

/// Routes of a gateway to a host without a subset, where rules for callers inside the mesh name one.
fn subsets_of_the_mesh_alone(rules: &[(ObjectKey, &VirtualService)], findings: &mut Vec<Finding>) {
    for (key, rule) in rules.iter().filter(|(_, rule)| rule.gateways.iter().any(|gateway| gateway != "mesh"))
    {
        for (index, http) in rule.http.iter().enumerate() {
            for (at, entry) in http.route.iter().enumerate() {
                let Some(to) = entry.destination.as_ref().filter(|to| to.subset.is_empty()) else { continue };
                let for_callers =
                    rules.iter().filter(|(other, rule)| other != key && chooses(rule, &to.host));
                for (other, _) in for_callers {
                    let text = format!(
                        "Subset in virtual service {} has no effect on ingress gateway {} requests",
                        name(other),
                        name(key)
                    );
                    let path = format!("spec.http[{index}].route[{at}].destination.host");
                    let hint = "name the subset here too: rules for callers inside the mesh are not asked for visitors";
                    findings.push(Finding::warning("IST0140", path, text).with_hint(hint).on(key));
                }
            }
        }
    }
}

/// Whether rules for a host send to a subset of that host.
fn chooses(rule: &VirtualService, host: &str) -> bool {
    let destinations =
        rule.http.iter().flat_map(|http| &http.route).filter_map(|entry| entry.destination.as_ref());
    let to_itself = |to: &mesh_proto::resource::Destination| {
        !to.subset.is_empty() && to.host == host && rule.hosts.iter().any(|own| takes(own, host))
    };
    destinations.into_iter().any(to_itself)
}

/// Fields that Istio still reads and has a newer form for.
fn former_fields(rules: &[(ObjectKey, &VirtualService)], findings: &mut Vec<Finding>) {
    for (key, rule) in rules {
        for (index, http) in rule.http.iter().enumerate() {
            let delay = http.fault.as_ref().and_then(|fault| fault.delay.as_ref());
            if delay.is_some_and(|delay| delay.percent.is_some_and(|percent| percent > 0)) {
                let text = "Deprecated: HTTPRoute.fault.delay.percent is deprecated; use HTTPRoute.fault.delay.percentage";
                let path = format!("spec.http[{index}].fault.delay.percent");
                findings.push(Finding::warning("IST0002", path, text).on(key));
            }
        }
    }
}
