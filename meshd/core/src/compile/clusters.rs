//! What is behind a destination: the `DestinationRule` that shapes it, its subset, its endpoints.
//!
//! Source: Istio `PushContext.destinationRule` (client's namespace, then the service's, then the root), `SetDestinationRule`,
//! `mergeDestinationRule`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::command::HostId;
use mesh_proto::resource::{DestinationRule, Kind, ObjectKey, Spec, Subset, TrafficPolicy};
use mesh_proto::watch::Stored;

use super::hosts::{Port, Service, Services, full_name, of_kind, takes};
use super::mesh::Settings;
use super::nearness::Nearness;
use super::policy::{self, Effective};
use super::{Problems, endpoints, fingerprint, hosts, visibility};
use crate::balance::EndpointSet;
use crate::plan::{Cluster, ClusterName, ClusterState, Endpoint, Locality, Node, Plan, Workload};
use crate::world::World;

/// Makes clusters, each once.
pub(super) struct Builder<'a> {
    world: &'a World,
    node: &'a Node,
    mesh: &'a Settings<'a>,
    services: &'a Services<'a>,
    problems: &'a Problems,
    rules: Rules<'a>,
    previous: Option<&'a Plan>,
    namesakes: BTreeSet<HostId>,
    found: RefCell<HashMap<Asked, Option<Arc<Cluster>>>>,
    made: RefCell<Memory>,
}

/// Who asked for what: namespace, locality and (where rules look at them) labels of the caller, and the cluster's name.
type Asked = (String, Locality, Option<BTreeMap<String, String>>, ClusterName);

/// Clusters by name and variant (which rules shape it, for whom), each with a stamp of all it is made of but its
/// endpoints. Kept in the Plan, for the next one.
pub type Memory = HashMap<(ClusterName, u64), (u64, Arc<Cluster>)>;

impl<'a> Builder<'a> {
    pub(super) fn new(
        world: &'a World,
        node: &'a Node,
        mesh: &'a Settings<'a>,
        services: &'a Services<'a>,
        previous: Option<&'a Plan>,
        problems: &'a Problems,
    ) -> Self {
        Self {
            world,
            node,
            mesh,
            services,
            problems,
            rules: Rules::load(world, mesh, &node.domain),
            previous,
            namesakes: endpoints::namesakes(world),
            found: RefCell::default(),
            made: RefCell::default(),
        }
    }

    /// Finds the cluster that a caller means by a name; `None`: host, port or subset is not there, or not for it.
    pub(super) fn find(&self, caller: &Workload, name: &ClusterName) -> Option<Arc<Cluster>> {
        let from = if caller.locality.is_empty() { &self.node.locality } else { &caller.locality };
        let labels = self.rules.look_at_labels.then(|| caller.labels.clone());
        let asked = (caller.namespace.clone(), from.clone(), labels, name.clone());
        if let Some(found) = self.found.borrow().get(&asked) {
            return found.clone();
        }
        let cluster = self.make(caller, from, name);
        self.found.borrow_mut().insert(asked, cluster.clone());
        cluster
    }

    /// Whether what a destination is depends on the caller's labels.
    pub(super) fn looks_at_labels(&self) -> bool {
        self.rules.look_at_labels
    }

    /// Makes every cluster of a service that a caller may mean.
    pub(super) fn find_all(&self, caller: &Workload, service: &Service<'_>) {
        let merged = self.rules.merged_for(caller, service, self.mesh.root_namespace());
        for port in &service.ports {
            let subsets = merged.subsets.iter().map(|subset| subset.name.as_str());
            for subset in std::iter::once("").chain(subsets) {
                let name =
                    ClusterName { host: service.host.clone(), port: port.number, subset: subset.into() };
                self.find(caller, &name);
            }
        }
    }

    /// Returns all that was made: by name, and for the next Plan.
    pub(super) fn finish(self) -> (BTreeMap<ClusterName, Arc<Cluster>>, Memory) {
        let made = self.made.into_inner();
        let mut variants: Vec<_> =
            made.iter().map(|((name, variant), (_, cluster))| (name, variant, cluster)).collect();
        variants.sort_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
        let mut by_name = BTreeMap::new();
        for (name, _, cluster) in variants {
            by_name.entry(name.clone()).or_insert_with(|| cluster.clone());
        }
        (by_name, made)
    }

    fn make(&self, caller: &Workload, from: &Locality, name: &ClusterName) -> Option<Arc<Cluster>> {
        let service = self.services.find(&name.host).filter(|found| found.seen_from(&caller.namespace))?;
        let port = service.port(name.port)?;
        let merged = self.rules.merged_for(caller, service, self.mesh.root_namespace());
        let subset = match &*name.subset {
            "" => None,
            wanted => Some(*merged.subsets.iter().find(|subset| subset.name == wanted)?),
        };
        let keys: Vec<ObjectKey> = merged.rules.iter().map(|rule| rule.object.key()).collect();
        let effective = Effective::of(merged.policy, subset, port.number);
        let priority = policy::failover_priority(&effective, self.mesh);
        let labels = (!priority.is_empty()).then_some(&caller.labels);
        let variant = fingerprint(&(&keys, from, labels));
        if let Some((_, cluster)) = self.made.borrow().get(&(name.clone(), variant)) {
            return Some(cluster.clone());
        }
        let nearness =
            (!priority.is_empty()).then(|| Nearness::of(priority, &caller.labels, from, &self.node.name));
        let revisions: Vec<_> = merged.rules.iter().map(|rule| rule.changed).collect();
        let stamp = fingerprint(&(variant, revisions, self.mesh.revision, port, service.entry_revision()));
        let asked = Wanted { service, port, name, merged: &merged, subset, from, effective, nearness };
        let (stamp, cluster) = self.shared(&asked, variant, stamp);
        self.made.borrow_mut().insert((name.clone(), variant), (stamp, cluster.clone()));
        Some(cluster)
    }

    /// Returns the cluster of the Plan before where nothing has changed, else a new one with its counters; with the
    /// stamp of what it was made of.
    fn shared(&self, wanted: &Wanted<'_>, variant: u64, stamp: u64) -> (u64, Arc<Cluster>) {
        let name = wanted.name;
        let before = self.previous.and_then(|plan| {
            let remembered = plan.memory.get(&(name.clone(), variant));
            remembered
                .map(|(stamp, cluster)| (Some(*stamp), cluster))
                .or_else(|| plan.clusters.get(name).map(|cluster| (None, cluster)))
        });
        let carried = endpoints::Carried::of(before.map(|(_, cluster)| &**cluster));
        let place = endpoints::Place {
            world: self.world,
            node: self.node,
            namesakes: &self.namesakes,
            problems: self.problems,
            nearness: wanted.nearness.as_ref(),
        };
        let labels = wanted.subset.map(|subset| &subset.labels);
        let (endpoints, ranks) = place.endpoints(wanted.service, wanted.port, labels, &carried);
        let stamp = if ranks.is_empty() { stamp } else { fingerprint(&(stamp, &ranks)) };
        if let Some((then, cluster)) = before
            && then == Some(stamp)
            && endpoints::same(&endpoints, &cluster.endpoints.all)
        {
            return (stamp, cluster.clone());
        }
        let state = before.map_or_else(Arc::default, |(_, cluster)| cluster.state.clone());
        (stamp, Arc::new(self.cluster(wanted, endpoints, ranks, state)))
    }

    fn cluster(
        &self,
        wanted: &Wanted<'_>,
        endpoints: Vec<Endpoint>,
        ranks: Vec<u32>,
        state: Arc<ClusterState>,
    ) -> Cluster {
        let effective = &wanted.effective;
        let balancer = policy::balancer(effective, wanted.service, wanted.port);
        let outlier = policy::outlier(effective);
        let locality = policy::locality(effective, self.mesh, outlier.is_some(), ranks);
        Cluster {
            name: wanted.name.clone(),
            protocol: policy::protocol(effective, self.mesh, wanted.port.protocol),
            endpoints: Arc::new(EndpointSet::new(endpoints, &balancer, &locality, wanted.from)),
            warmup: policy::warmup(effective, &balancer),
            balancer,
            limits: policy::limits(effective, self.mesh),
            outlier,
            tls: policy::tls(effective, wanted.service, &self.node.trust_domain),
            proxy_protocol: policy::proxy_protocol(effective),
            detour: policy::detour(effective),
            state,
            origins: wanted.merged.rules.iter().map(|rule| rule.object.key()).collect(),
        }
    }
}

/// What a cluster is made of.
struct Wanted<'a> {
    service: &'a Service<'a>,
    port: &'a Port,
    name: &'a ClusterName,
    merged: &'a Merged<'a>,
    subset: Option<&'a Subset>,
    from: &'a Locality,
    effective: Effective<'a>,
    nearness: Option<Nearness<'a>>,
}

/// Every `DestinationRule`, and the way to those of a host.
pub(crate) struct Rules<'a> {
    /// The oldest first.
    all: Vec<Rule<'a>>,
    /// By namespace and host.
    by_host: HashMap<(&'a str, String), Vec<usize>>,
    /// By namespace: patterns with a wildcard, the longest first.
    wildcards: HashMap<&'a str, Vec<String>>,
    /// Whether any is for some callers only, or orders endpoints by the labels they share with the caller.
    look_at_labels: bool,
}

struct Rule<'a> {
    stored: &'a Stored,
    spec: &'a DestinationRule,
    export_to: &'a [String],
}

/// The `DestinationRules` of one host, as one.
#[derive(Default)]
pub(crate) struct Merged<'a> {
    /// Where it comes from, the oldest first.
    pub(crate) rules: Vec<&'a Stored>,
    /// The first policy of the whole host.
    pub(crate) policy: Option<&'a TrafficPolicy>,
    /// All subsets; of two with one name the first.
    pub(crate) subsets: Vec<&'a Subset>,
}

impl<'a> Rules<'a> {
    /// Loads every `DestinationRule`.
    pub(crate) fn load(world: &'a World, mesh: &Settings<'a>, domain: &str) -> Self {
        let mut all: Vec<Rule<'a>> = of_kind(world, Kind::DestinationRule)
            .filter_map(|stored| match &stored.object.spec {
                Spec::DestinationRule(spec) => {
                    let default = |config: &'a mesh_proto::resource::MeshConfig| {
                        &config.default_destination_rule_export_to
                    };
                    let export_to = visibility::or_default(&spec.export_to, mesh, default);
                    Some(Rule { stored, spec, export_to })
                }
                _ => None,
            })
            .collect();
        all.sort_by_cached_key(|rule| (rule.stored.created, rule.stored.object.key()));
        let mut by_host: HashMap<(&'a str, String), Vec<usize>> = HashMap::default();
        let mut wildcards: HashMap<&'a str, Vec<String>> = HashMap::default();
        for (index, rule) in all.iter().enumerate() {
            let namespace = rule.stored.object.metadata.namespace.as_str();
            let host = full_name(&rule.spec.host, namespace, domain);
            if host.starts_with('*') {
                wildcards.entry(namespace).or_default().push(host.clone());
            }
            by_host.entry((namespace, host)).or_default().push(index);
        }
        for patterns in wildcards.values_mut() {
            patterns.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
            patterns.dedup();
        }
        let look_at_labels = all.iter().any(|rule| rule.spec.workload_selector.is_some())
            || all.iter().any(|rule| policy::orders_by_labels(rule.spec));
        Self { all, by_host, wildcards, look_at_labels }
    }

    /// Returns what `DestinationRules` say to callers of a namespace about a service, whatever their labels.
    pub(crate) fn merged(&self, client: &str, service: &Service<'_>, root: &str) -> Merged<'a> {
        merge(&self.relevant(client, service, root))
    }

    /// Returns what `DestinationRules` say to a caller about a service: a rule of its namespace that selects it goes
    /// before those that select nobody; one that selects others is nothing to it.
    ///
    /// Source: Istio `SidecarScope.DestinationRule`.
    pub(crate) fn merged_for(&self, caller: &Workload, service: &Service<'_>, root: &str) -> Merged<'a> {
        let mut rules = self.relevant(&caller.namespace, service, root);
        let selector = |rule: &Rule<'a>| rule.spec.workload_selector.as_ref().map(|one| &one.match_labels);
        let chosen = rules.iter().find_map(|rule| {
            selector(rule).filter(|wanted| {
                rule.stored.object.metadata.namespace == caller.namespace
                    && hosts::has_all(&caller.labels, wanted)
            })
        });
        rules.retain(|rule| selector(rule) == chosen);
        merge(&rules)
    }

    /// Returns the rules of the first namespace that has any for a service.
    fn relevant(&self, client: &str, service: &Service<'_>, root: &str) -> Vec<&Rule<'a>> {
        let namespaces = [client, service.namespace, root];
        // The root's own rules come last, also for callers that live there.
        let mut order = namespaces.into_iter().skip(usize::from(client == root));
        let rules = order.find_map(|namespace| {
            Some(self.in_namespace(namespace, client, &service.host)).filter(|rules| !rules.is_empty())
        });
        rules.unwrap_or_default()
    }

    /// Returns the rules of a namespace that fit a host best and that the client sees.
    fn in_namespace(&self, namespace: &str, client: &str, host: &str) -> Vec<&Rule<'a>> {
        let of = |pattern: &str| -> Vec<&Rule<'a>> {
            let indices = self.by_host.get(&(namespace, pattern.to_owned())).into_iter().flatten();
            let rules = indices.map(|index| &self.all[*index]);
            rules.filter(|rule| visibility::sees(rule.export_to, namespace, client)).collect()
        };
        let exact = of(host);
        if !exact.is_empty() {
            return exact;
        }
        let patterns = self.wildcards.get(namespace).into_iter().flatten();
        let fitting = patterns.filter(|pattern| takes(pattern, host));
        fitting.map(|pattern| of(pattern)).find(|rules| !rules.is_empty()).unwrap_or_default()
    }
}

/// Unites rules; of unlike visibility only those like the first.
fn merge<'a>(rules: &[&Rule<'a>]) -> Merged<'a> {
    let mut merged = Merged::default();
    let first = rules.first().map(|rule| rule.export_to);
    for rule in rules.iter().filter(|rule| Some(rule.export_to) == first) {
        merged.rules.push(rule.stored);
        merged.policy = merged.policy.or(rule.spec.traffic_policy.as_ref());
        for subset in &rule.spec.subsets {
            if merged.subsets.iter().all(|other| other.name != subset.name) {
                merged.subsets.push(subset);
            }
        }
    }
    merged
}
