//! `DestinationRules`: which hold for a destination, seen from a namespace, and what several of them come to.
//!
//! Rules of one host in one namespace are merged where they are exported alike; a caller takes those of its own
//! namespace, else those of the service's that it sees, else those of the root namespace. Among them a rule whose
//! `workloadSelector` picks the caller goes first.
//!
//! Source: Istio `PushContext.setDestinationRules`, `mergeDestinationRule`, `destinationRule`,
//! `SidecarScope.DestinationRule`, `MostSpecificHostMatch`.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::resource::{DestinationRule, Kind, ObjectKey, ObjectMeta, Spec, Subset, TrafficPolicy};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::fingerprint;
use super::hosts::{Service, full_name, has_all, of_kind, takes};
use super::mesh::Settings;
use super::policy;
use crate::plan::Workload;
use crate::world::World;

/// Every `DestinationRule`, and the way to those of a host.
#[derive(Default)]
pub(crate) struct Rules<'a> {
    /// By namespace: what callers of it look at first.
    local: HashMap<&'a str, Index<'a>>,
    /// By namespace: what callers of others may see.
    exported: HashMap<&'a str, Index<'a>>,
    /// Rules of the root namespace for itself alone.
    root_local: Index<'a>,
    root: &'a str,
    looks_at_labels: bool,
    looks_at_zones: bool,
}

/// The rules of a namespace by host.
#[derive(Default)]
struct Index<'a> {
    by_host: HashMap<Rc<str>, Vec<Merged<'a>>>,
    /// Patterns with a wildcard, the longest first.
    wildcards: Vec<Rc<str>>,
}

/// The `DestinationRules` of one host that are exported alike, as one.
#[derive(Clone, Default)]
pub(crate) struct Merged<'a> {
    /// Where it comes from, in order of precedence.
    pub(crate) rules: Vec<&'a Stored>,
    /// The first policy of the whole host.
    pub(crate) policy: Option<&'a TrafficPolicy>,
    /// All subsets; of two with one name the first.
    pub(crate) subsets: Vec<&'a Subset>,
    namespace: &'a str,
    /// To whom; empty: everybody.
    export_to: BTreeSet<&'a str>,
    selector: Option<&'a Labels>,
    keys: OnceCell<Arc<[ObjectKey]>>,
}

impl Merged<'_> {
    /// Returns the names of what it comes from.
    pub(crate) fn keys(&self) -> Arc<[ObjectKey]> {
        self.keys.get_or_init(|| self.rules.iter().map(|rule| rule.object.key()).collect()).clone()
    }

    /// A number for what it comes from, whatever that says.
    pub(crate) fn variant(&self) -> u64 {
        fingerprint(&self.rules.iter().map(|rule| &rule.object.metadata).map(names).collect::<Vec<_>>())
    }

    /// A number for what it says.
    pub(crate) fn stamp(&self) -> u64 {
        fingerprint(
            &self.rules.iter().map(|rule| (names(&rule.object.metadata), rule.changed)).collect::<Vec<_>>(),
        )
    }
}

fn names(metadata: &ObjectMeta) -> (&str, &str) {
    (&metadata.namespace, &metadata.name)
}

impl<'a> Rules<'a> {
    /// Loads every `DestinationRule`.
    pub(crate) fn load(world: &'a World, mesh: &Settings<'a>, domain: &str) -> Self {
        let mut all: Vec<(&'a Stored, &'a DestinationRule)> = of_kind(world, Kind::DestinationRule)
            .filter_map(|stored| match &stored.object.spec {
                Spec::DestinationRule(spec) => Some((stored, &**spec)),
                _ => None,
            })
            .collect();
        // Those with a selector first, then the older.
        let place = |(stored, spec): &(&'a Stored, &'a DestinationRule)| {
            let metadata = &stored.object.metadata;
            (spec.workload_selector.is_none(), stored.created, &metadata.namespace, &metadata.name)
        };
        all.sort_by(|one, other| place(one).cmp(&place(other)));
        let mut rules = Self {
            root: mesh.root_namespace(),
            looks_at_labels: all
                .iter()
                .any(|(_, spec)| spec.workload_selector.is_some() || policy::orders_by_labels(spec)),
            looks_at_zones: all.iter().any(|(_, spec)| policy::looks_at_zones(spec)),
            ..Self::default()
        };
        let default = mesh.config.map_or(&[][..], |config| &config.default_destination_rule_export_to);
        let private_by_default = default.iter().any(|to| to == ".");
        for (stored, spec) in all {
            rules.add(stored, spec, domain, private_by_default);
        }
        for index in
            rules.local.values_mut().chain(rules.exported.values_mut()).chain([&mut rules.root_local])
        {
            index.wildcards.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        }
        rules
    }

    /// Whether any rule picks its callers by their labels, or orders endpoints by the labels they share with them.
    pub(crate) fn looks_at_labels(&self) -> bool {
        self.looks_at_labels
    }

    /// Whether any rule looks at the zones of callers.
    pub(crate) fn looks_at_zones(&self) -> bool {
        self.looks_at_zones
    }

    fn add(&mut self, stored: &'a Stored, spec: &'a DestinationRule, domain: &str, private_by_default: bool) {
        let namespace = &*stored.object.metadata.namespace;
        let host: Rc<str> = full_name(&spec.host, namespace, domain).into();
        let selector = spec.workload_selector.as_ref().map(|selector| &selector.match_labels);
        // A rule for some workloads is for those of its namespace.
        let export_to: BTreeSet<&str> = match selector {
            Some(_) => BTreeSet::from(["."]),
            None => spec.export_to.iter().map(String::as_str).collect(),
        };
        let has = |to: &str| export_to.contains(to);
        let for_own = export_to.is_empty() || has("*") || has(".") || has(namespace);
        let for_own_alone = if export_to.is_empty() {
            private_by_default
        } else {
            export_to.len() == 1 && (has(".") || has(namespace))
        };
        let one = Merged {
            rules: vec![stored],
            policy: spec.traffic_policy.as_deref(),
            subsets: spec.subsets.iter().collect(),
            namespace,
            export_to,
            selector,
            keys: OnceCell::new(),
        };
        if for_own {
            self.local.entry(namespace).or_default().merge(&host, one.clone());
        }
        if !for_own_alone {
            self.exported.entry(namespace).or_default().merge(&host, one);
        } else if namespace == self.root {
            self.root_local.merge(&host, one);
        }
    }

    /// Returns what `DestinationRules` say to a caller about a service.
    pub(crate) fn of(&self, caller: &Workload, service: &Service<'_>) -> Option<&Merged<'a>> {
        let client = caller.namespace.as_str();
        let own = if client == self.root { Some(&self.root_local) } else { self.local.get(client) };
        if let Some(found) = own.and_then(|index| index.find(&service.host)) {
            return choose(found.iter(), caller);
        }
        [service.namespace, self.root].into_iter().find_map(|namespace| {
            let found = self.exported.get(namespace)?.find(&service.host)?;
            let mut seen = found.iter().filter(|one| {
                one.export_to.is_empty() || one.export_to.contains("*") || one.export_to.contains(client)
            });
            let first = seen.next()?;
            Some(choose(std::iter::once(first).chain(seen), caller))
        })?
    }
}

impl<'a> Index<'a> {
    /// Takes a rule in: into each that it may be merged with, else beside them.
    fn merge(&mut self, host: &Rc<str>, one: Merged<'a>) {
        let Some(present) = self.by_host.get_mut(host) else {
            if host.starts_with('*') {
                self.wildcards.push(host.clone());
            }
            self.by_host.insert(host.clone(), vec![one]);
            return;
        };
        let mut beside = true;
        for other in present.iter_mut() {
            let wider = !other.export_to.is_empty() && one.export_to.is_superset(&other.export_to);
            if one.export_to != other.export_to && !wider {
                beside = true;
                continue;
            }
            beside = one.export_to != other.export_to;
            if one.selector.is_some() && other.selector.is_some() && one.selector != other.selector {
                beside = true;
                continue;
            }
            if one.selector == other.selector {
                beside = false;
            }
            other.take_in(&one);
        }
        if beside {
            present.push(one);
        }
    }

    /// Returns the rules of the host or pattern that fits best.
    fn find(&self, host: &str) -> Option<&Vec<Merged<'a>>> {
        self.by_host.get(host).or_else(|| {
            let best = self.wildcards.iter().find(|pattern| takes(pattern, host))?;
            self.by_host.get(best)
        })
    }
}

impl Merged<'_> {
    fn take_in(&mut self, other: &Self) {
        self.rules.extend(&other.rules);
        self.keys = OnceCell::new();
        self.policy = self.policy.or(other.policy);
        for subset in &other.subsets {
            if self.subsets.iter().all(|known| known.name != subset.name) {
                self.subsets.push(subset);
            }
        }
    }
}

/// Picks the rule for a caller: the first whose selector picks it, else the last without one.
fn choose<'r, 'a: 'r>(
    found: impl Iterator<Item = &'r Merged<'a>>,
    caller: &Workload,
) -> Option<&'r Merged<'a>> {
    let mut for_all = None;
    for one in found {
        match one.selector {
            None => for_all = Some(one),
            Some(labels) if one.namespace == caller.namespace && has_all(&caller.labels, labels) => {
                return Some(one);
            }
            Some(_) => {}
        }
    }
    for_all
}
