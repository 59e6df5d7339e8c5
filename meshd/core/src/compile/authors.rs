//! Which field of which `DestinationRule` set what counts for a cluster, for `explain`.
//!
//! Asks the functions that compile clusters and finds, by address, where the blocks they chose are written.

use mesh_proto::resource::{PortTrafficPolicy, Spec, TrafficPolicy};
use mesh_proto::watch::Stored;

use super::destinations::{Merged, Rules};
use super::hosts::services;
use super::mesh::Settings;
use super::policy::Effective;
use crate::plan::{ClusterName, Node, Workload};
use crate::world::World;

/// Where each block of a cluster's policy is written; `None`: nowhere, a default counts.
#[derive(Debug, Default)]
pub(crate) struct Authors {
    /// The subset's labels, and where it is defined.
    pub(crate) subset: Option<(String, String)>,
    pub(crate) balancer: Option<String>,
    pub(crate) pool: Option<String>,
    pub(crate) outlier: Option<String>,
    pub(crate) tls: Option<String>,
}

/// Finds who shapes a cluster for a caller.
pub(crate) fn of_cluster(world: &World, node: &Node, caller: &Workload, name: &ClusterName) -> Authors {
    let mesh = Settings::of(world);
    let services = services(world, node, &mesh);
    let Some(service) = services.find(&name.host) else { return Authors::default() };
    let rules = Rules::load(world, &mesh, &node.domain);
    let nothing = Merged::default();
    let merged = rules.of(caller, service).unwrap_or(&nothing);
    let subset = merged.subsets.iter().find(|subset| subset.name == *name.subset).copied();
    let effective = Effective::of(merged.policy, subset, name.port);
    let of = &merged.rules;
    Authors {
        subset: subset.and_then(|subset| {
            let labels: Vec<String> =
                subset.labels.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            let at = of.iter().find_map(|stored| {
                let Spec::DestinationRule(spec) = &stored.object.spec else { return None };
                let index = spec.subsets.iter().position(|other| std::ptr::eq(other, subset))?;
                Some(format!("{} spec.subsets[{index}]", stored.object.key()))
            })?;
            Some((labels.join(", "), at))
        }),
        balancer: locate(
            of,
            effective.balancer,
            "loadBalancer",
            |all| all.load_balancer.as_deref(),
            |one| one.load_balancer.as_deref(),
        ),
        pool: locate(
            of,
            effective.pool,
            "connectionPool",
            |all| all.connection_pool.as_deref(),
            |one| one.connection_pool.as_deref(),
        ),
        outlier: locate(
            of,
            effective.outlier,
            "outlierDetection",
            |all| all.outlier_detection.as_deref(),
            |one| one.outlier_detection.as_deref(),
        ),
        tls: locate(of, effective.tls, "tls", |all| all.tls.as_deref(), |one| one.tls.as_deref()),
    }
}

/// Finds the field that holds a block, by its address.
fn locate<T>(
    rules: &[&Stored],
    wanted: Option<&T>,
    field: &str,
    of_policy: impl Fn(&TrafficPolicy) -> Option<&T>,
    of_port: impl Fn(&PortTrafficPolicy) -> Option<&T>,
) -> Option<String> {
    let wanted = wanted?;
    let is = |block: Option<&T>| block.is_some_and(|block| std::ptr::eq(block, wanted));
    let within = |policy: &TrafficPolicy, path: &str| {
        if is(of_policy(policy)) {
            return Some(format!("{path}.{field}"));
        }
        let at = policy.port_level_settings.iter().position(|settings| is(of_port(settings)))?;
        Some(format!("{path}.portLevelSettings[{at}].{field}"))
    };
    rules.iter().find_map(|stored| {
        let Spec::DestinationRule(spec) = &stored.object.spec else { return None };
        let whole = spec.traffic_policy.as_deref().and_then(|policy| within(policy, "spec.trafficPolicy"));
        let path = whole.or_else(|| {
            spec.subsets.iter().enumerate().find_map(|(index, subset)| {
                within(subset.traffic_policy.as_deref()?, &format!("spec.subsets[{index}].trafficPolicy"))
            })
        })?;
        Some(format!("{} {path}", stored.object.key()))
    })
}
