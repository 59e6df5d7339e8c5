//! Selectors that pick nobody, and objects of one kind that pick the same workloads: of those only the oldest counts.
//!
//! Source: Istio's analyzers `sidecar.SelectorAnalyzer`, `sidecar.DefaultSelectorAnalyzer`, `telemetry.SelectorAnalyzer`,
//! `telemetry.DefaultSelectorAnalyzer`, `telemetry.ProviderAnalyzer`.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::command::Revision;
use mesh_proto::finding::Finding;
use mesh_proto::resource::{Kind, MeshConfig, ObjectKey, Spec, Telemetry};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use crate::compile::hosts::{has_all, of_kind};
use crate::compile::mesh::Settings;
use crate::sketch;
use crate::world::World;

/// Tells of selectors that pick no workload, and of logs that go nowhere.
pub(super) fn check(world: &World, mesh: &Settings<'_>, findings: &mut Vec<Finding>) {
    if sketch::tells_of_workloads(world) {
        pick_nobody(world, findings);
    }
    logs_without_provider(world, mesh, findings);
}

fn pick_nobody(world: &World, findings: &mut Vec<Finding>) {
    let workloads = Workloads::of(world);
    for stored in world.resources.values() {
        let Some(Selector { labels: Some(labels), path }) = selector(stored) else { continue };
        let key = stored.object.key();
        if workloads.picks(&key.namespace, labels) {
            continue;
        }
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let labels = labels.join(",");
        // Istio asks for workloads of Sidecars and Telemetry; who else has a selector is told by the code of policies.
        let finding = if matches!(key.kind, Kind::Sidecar | Kind::Telemetry) {
            Finding::warning("IST0101", path, format!("Referenced selector not found: {labels:?}"))
        } else {
            let text = format!("No matching workloads for this resource with the following labels: {labels}");
            Finding::warning("IST0127", path, text)
        };
        findings.push(finding.on(&key));
    }
}

/// Whom an object is for.
struct Selector<'a> {
    /// `None`: all workloads of its namespace.
    labels: Option<&'a Labels>,
    path: &'static str,
}

/// Returns an object's selector; `None`: it has none, or is for something else than workloads.
fn selector(stored: &Stored) -> Option<Selector<'_>> {
    let (labels, path): (Option<&Labels>, &'static str) = match &stored.object.spec {
        Spec::ServiceEntry(entry) => {
            (Some(&entry.workload_selector.as_ref()?.labels), "spec.workloadSelector")
        }
        Spec::DestinationRule(rule) => {
            (Some(&rule.workload_selector.as_ref()?.match_labels), "spec.workloadSelector")
        }
        Spec::Sidecar(sidecar) => {
            (sidecar.workload_selector.as_ref().map(|selector| &selector.labels), "spec.workloadSelector")
        }
        Spec::Telemetry(telemetry) if has_no_target(telemetry) => {
            (telemetry.selector.as_ref().map(|selector| &selector.match_labels), "spec.selector")
        }
        _ => return None,
    };
    Some(Selector { labels: labels.filter(|labels| !labels.is_empty()), path })
}

fn has_no_target(telemetry: &Telemetry) -> bool {
    telemetry.target_ref.is_none() && telemetry.target_refs.is_empty()
}

/// Everybody who can be selected, by namespace: a name, and labels.
struct Workloads<'a>(BTreeMap<&'a str, Vec<(&'a str, &'a Labels)>>);

impl<'a> Workloads<'a> {
    fn of(world: &'a World) -> Self {
        let mut found: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for one in world.instances() {
            found.entry(&one.instance.namespace).or_default().push((one.id, &one.instance.labels));
        }
        for stored in of_kind(world, Kind::WorkloadEntry) {
            let Spec::WorkloadEntry(entry) = &stored.object.spec else { continue };
            let metadata = &stored.object.metadata;
            found.entry(&metadata.namespace).or_default().push((&metadata.name, &entry.labels));
        }
        Self(found)
    }

    fn picks(&self, namespace: &str, labels: &Labels) -> bool {
        self.0.get(namespace).into_iter().flatten().any(|(_, own)| has_all(own, labels))
    }

    fn picked(&self, namespace: &str, labels: &Labels) -> Vec<&'a str> {
        let all = self.0.get(namespace).into_iter().flatten();
        all.filter(|(_, own)| has_all(own, labels)).map(|(name, _)| *name).collect()
    }
}

/// Several objects of one kind where one counts: codes of those for one workload, and of those for all.
const ONE_COUNTS: [(Kind, &str, &str, &str); 2] = [
    (Kind::Sidecar, "Sidecars", "IST0110", "IST0111"),
    (Kind::Telemetry, "Telemetries", "IST0159", "IST0160"),
];

/// Tells of objects that are for the same workloads; only with `thorough` of those whose selectors differ.
pub(super) fn doubles(world: &World, thorough: bool, findings: &mut Vec<Finding>) {
    for (kind, plural, of_one, of_all) in ONE_COUNTS {
        let mut by_namespace: BTreeMap<String, Vec<One<'_>>> = BTreeMap::new();
        for stored in of_kind(world, kind) {
            let Some(Selector { labels, path }) = selector(stored) else { continue };
            let key = stored.object.key();
            let one = One { age: stored.created, key, labels, path };
            by_namespace.entry(one.key.namespace.to_string()).or_default().push(one);
        }
        by_namespace.retain(|_, all| all.len() > 1);
        let workloads = (thorough && !by_namespace.is_empty()).then(|| Workloads::of(world));
        for (namespace, all) in by_namespace {
            for (group, workload) in groups(&namespace, &all, workloads.as_ref()) {
                tell(
                    plural,
                    &namespace,
                    &group,
                    workload,
                    if group[0].labels.is_some() { of_one } else { of_all },
                    findings,
                );
            }
        }
    }
}

struct One<'a> {
    age: Revision,
    key: ObjectKey,
    labels: Option<&'a Labels>,
    path: &'static str,
}

/// Returns objects that are for the same workloads, the oldest first, with one of these workloads where it is known.
fn groups<'g, 'a>(
    namespace: &str,
    all: &'g [One<'a>],
    workloads: Option<&Workloads<'a>>,
) -> Vec<(Vec<&'g One<'a>>, Option<&'a str>)> {
    let mut by_labels: BTreeMap<Option<&Labels>, Vec<&One<'_>>> = BTreeMap::new();
    for one in all {
        by_labels.entry(one.labels).or_default().push(one);
    }
    let mut found: Vec<_> = by_labels.into_values().map(|group| (group, None)).collect();
    let mut by_workload: BTreeMap<&str, Vec<&One<'_>>> = BTreeMap::new();
    for one in all {
        let Some((workloads, labels)) = workloads.zip(one.labels) else { continue };
        for workload in workloads.picked(namespace, labels) {
            by_workload.entry(workload).or_default().push(one);
        }
    }
    found.extend(by_workload.into_iter().map(|(workload, group)| (group, Some(workload))));
    found.retain(|(group, _)| group.len() > 1);
    // Those of which a workload is known say more; each set of objects is told once.
    found.sort_by_key(|(_, workload)| workload.is_none());
    let mut told = BTreeSet::new();
    found.retain(|(group, _)| told.insert(group.iter().map(|one| one.key.clone()).collect::<Vec<_>>()));
    for (group, _) in &mut found {
        group.sort_by(|one, other| (one.age, &one.key).cmp(&(other.age, &other.key)));
    }
    found
}

fn tell(
    plural: &str,
    namespace: &str,
    group: &[&One<'_>],
    workload: Option<&str>,
    code: &'static str,
    findings: &mut Vec<Finding>,
) {
    let names: Vec<&str> = group.iter().map(|one| &*one.key.name).collect();
    let what = match (group[0].labels, workload) {
        (None, _) => "have no workload selector".to_owned(),
        (Some(_), Some(workload)) => format!("select the same workload pod {workload:?}"),
        (Some(_), None) => "select the same workloads".to_owned(),
    };
    let text = format!(
        "The {plural} [{}] in namespace {namespace:?} {what}, which can lead to undefined behavior: {} counts, as the \
         oldest, then the first by name; the others are ignored",
        names.join(" "),
        names[0]
    );
    for one in group {
        let hint = "make one object of them, or let each select other workloads";
        findings.push(Finding::warning(code, one.path, text.clone()).with_hint(hint).on(&one.key));
    }
}

/// Access logs without a provider, where neither the mesh nor a wider `Telemetry` names one.
fn logs_without_provider(world: &World, mesh: &Settings<'_>, findings: &mut Vec<Finding>) {
    let has_default = |config: &MeshConfig| {
        let named = config.default_providers.as_ref().is_some_and(|named| !named.access_logging.is_empty());
        named || !config.access_log_file.is_empty()
    };
    if mesh.config.is_some_and(has_default) {
        return;
    }
    let all: Vec<(&Stored, &Telemetry)> = of_kind(world, Kind::Telemetry)
        .filter_map(|stored| match &stored.object.spec {
            Spec::Telemetry(telemetry) => Some((stored, &**telemetry)),
            _ => None,
        })
        .collect();
    let names_one = |namespace: &str| {
        let is_wider = |stored: &Stored| {
            let home = &stored.object.metadata.namespace;
            **home == *namespace || **home == *mesh.root_namespace()
        };
        all.iter().any(|(stored, telemetry)| {
            is_wider(stored)
                && selector(stored).is_some_and(|selector| selector.labels.is_none())
                && telemetry.access_logging.iter().any(|logging| !logging.providers.is_empty())
        })
    };
    for (stored, telemetry) in &all {
        let metadata = &stored.object.metadata;
        for (at, logging) in telemetry.access_logging.iter().enumerate() {
            let is_off = logging.disabled == Some(true);
            if is_off || !logging.providers.is_empty() || names_one(&metadata.namespace) {
                continue;
            }
            let text = format!(
                "The Telemetry {} in namespace {:?} with empty providers will be ignored: nothing is logged",
                metadata.name, metadata.namespace
            );
            let hint = "name a provider (\"envoy\" writes to standard output), or defaultProviders in the MeshConfig";
            let path = format!("spec.accessLogging[{at}].providers");
            findings.push(Finding::warning("IST0157", path, text).with_hint(hint).on(&stored.object.key()));
        }
    }
}
