//! What is behind a destination: the `DestinationRule` that shapes it (`destinations`), its subset, its endpoints.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::command::{HostId, Liveness};
use mesh_proto::registration::Health;
use mesh_proto::resource::Subset;

use super::destinations::{Merged, Rules};
use super::hosts::{Port, Service};
use super::mesh::Settings;
use super::nearness::Nearness;
use super::policy::{self, Effective};
use super::scope::Scope;
use super::seen::Stale;
use super::{Problems, endpoints, fingerprint};
use crate::balance::EndpointSet;
use crate::plan::{Cluster, ClusterName, Endpoint, Locality, Node, Plan, Workload};
use crate::world::World;

/// Makes clusters, each once.
pub(super) struct Builder<'a> {
    world: &'a World,
    node: &'a Node,
    mesh: &'a Settings<'a>,
    problems: &'a Problems,
    rules: &'a Rules<'a>,
    previous: Option<&'a Plan>,
    namesakes: BTreeSet<HostId>,
    stale: Stale,
    found: RefCell<HashMap<Asked, Option<Arc<Cluster>>>>,
    made: RefCell<Memory>,
    /// Those with names among their endpoints.
    named: RefCell<Vec<Arc<Cluster>>>,
    /// By namespace and account of the caller.
    sources: RefCell<BTreeMap<(String, String), Sources>>,
}

/// Who asked for what: the scope's number, and the cluster's name.
type Asked = (usize, ClusterName);

/// Clusters by name and variant (which rules shape it, for whom), each with a stamp of all it is made of but its
/// endpoints. Kept in the Plan, for the next one.
pub type Memory = HashMap<(ClusterName, u64), (u64, Arc<Cluster>)>;

impl<'a> Builder<'a> {
    pub(super) fn new(
        world: &'a World,
        node: &'a Node,
        mesh: &'a Settings<'a>,
        rules: &'a Rules<'a>,
        previous: Option<&'a Plan>,
        stale: Stale,
        problems: &'a Problems,
    ) -> Self {
        Self {
            world,
            node,
            mesh,
            problems,
            rules,
            previous,
            namesakes: endpoints::namesakes(world),
            stale,
            found: RefCell::default(),
            made: RefCell::default(),
            named: RefCell::default(),
            sources: RefCell::default(),
        }
    }

    /// Finds the cluster that callers of a scope mean by a name; `None`: host, port or subset is not there, or not for
    /// them.
    pub(super) fn find(&self, scope: &Scope<'_>, name: &ClusterName) -> Option<Arc<Cluster>> {
        let asked = (scope.number, name.clone());
        if let Some(found) = self.found.borrow().get(&asked) {
            return found.clone();
        }
        let cluster = self.make(scope, name);
        self.found.borrow_mut().insert(asked, cluster.clone());
        cluster
    }

    /// Makes every cluster of a service that callers of a scope may mean.
    pub(super) fn find_all(&self, scope: &Scope<'_>, service: &Service<'_>) {
        let merged = self.rules.of(scope.caller, service);
        for port in &service.ports {
            let subsets = merged.iter().flat_map(|merged| &merged.subsets).map(|subset| subset.name.as_str());
            for subset in std::iter::once("").chain(subsets) {
                let name =
                    ClusterName { host: service.host.clone(), port: port.number, subset: subset.into() };
                self.find(scope, &name);
            }
        }
    }

    /// Returns all that was made.
    pub(super) fn finish(self) -> Made {
        let made = self.made.into_inner();
        let mut variants: Vec<_> =
            made.iter().map(|((name, variant), (_, cluster))| (name, variant, cluster)).collect();
        variants.sort_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
        let mut by_name = BTreeMap::new();
        for (name, _, cluster) in variants {
            by_name.entry(name.clone()).or_insert_with(|| cluster.clone());
        }
        Made { by_name, memory: made, named: self.named.into_inner().into() }
    }

    fn make(&self, scope: &Scope<'_>, name: &ClusterName) -> Option<Arc<Cluster>> {
        let service = scope.find(&name.host)?;
        let port = service.port(name.port).filter(|port| scope.has_port(service, port.number))?;
        let nothing = Merged::default();
        let merged = self.rules.of(scope.caller, service).unwrap_or(&nothing);
        let subset = match &*name.subset {
            "" => None,
            wanted => Some(*merged.subsets.iter().find(|subset| subset.name == wanted)?),
        };
        let from = scope.locality(self.node);
        let effective = Effective::of(merged.policy, subset, port.number);
        let caller = &scope.caller.labels;
        let priority = policy::failover_priority(&effective, self.mesh);
        let labels = (!priority.is_empty()).then_some(caller);
        let sources = policy::zones(&effective, self.mesh).map(|_| self.sources(scope.caller));
        let who = sources.as_ref().map(|_| &scope.caller.account);
        let variant = fingerprint(&(merged.variant(), from, service.namespace, labels, who));
        if let Some((_, cluster)) = self.made.borrow().get(&(name.clone(), variant)) {
            return Some(cluster.clone());
        }
        let nearness = labels.map(|labels| Nearness::of(priority, labels, from, &self.node.name));
        let stamp = fingerprint(&(
            variant,
            merged.stamp(),
            self.mesh.revision,
            port,
            service.entry_revision(),
            &sources,
        ));
        let sources = sources.unwrap_or_default();
        let asked = Wanted { service, port, name, merged, subset, from, effective, nearness, sources };
        let (stamp, cluster) = self.shared(&asked, variant, stamp);
        self.made.borrow_mut().insert((name.clone(), variant), (stamp, cluster.clone()));
        if !service.is_registered() && cluster.names().next().is_some() {
            self.named.borrow_mut().push(cluster.clone());
        }
        Some(cluster)
    }

    /// Counts the instances of a caller's account by locality; of one that has none, the hosts of the mesh.
    ///
    /// Source: Istio's `local_cluster`, which has the proxies of the caller's own workload.
    fn sources(&self, caller: &Workload) -> Sources {
        let key = (caller.namespace.clone(), caller.account.clone());
        if let Some(known) = self.sources.borrow().get(&key) {
            return known.clone();
        }
        let mut counts: BTreeMap<Locality, u32> = BTreeMap::new();
        for found in self.world.instances() {
            let Some(host) = self.world.hosts.get(&found.host) else { continue };
            let instance = found.instance;
            let is_one = instance.namespace == caller.namespace && instance.account == caller.account;
            if is_one && host.liveness == Liveness::Live && instance.health == Health::Healthy {
                let locality = instance.locality.as_deref().unwrap_or(&host.facts.locality);
                *counts.entry(Locality::parse(locality)).or_default() += 1;
            }
        }
        if counts.is_empty() {
            for host in self.world.hosts.values().filter(|host| host.liveness == Liveness::Live) {
                *counts.entry(Locality::parse(&host.facts.locality)).or_default() += 1;
            }
        }
        let sources: Sources = counts.into_iter().collect();
        self.sources.borrow_mut().insert(key, sources.clone());
        sources
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
        // The stamp of a cluster in order of nearness holds that order: it is not known before the endpoints are.
        if let Some((Some(then), cluster)) = before
            && then == stamp
            && wanted.nearness.is_none()
            && wanted.service.is_registered()
            && !self.stale.has(&wanted.service.host)
        {
            return (stamp, cluster.clone());
        }
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
        let before = before.map(|(_, cluster)| &**cluster);
        (stamp, Arc::new(self.cluster(wanted, endpoints, ranks, before)))
    }

    fn cluster(
        &self,
        wanted: &Wanted<'_>,
        endpoints: Vec<Endpoint>,
        ranks: Vec<u32>,
        before: Option<&Cluster>,
    ) -> Cluster {
        let effective = &wanted.effective;
        let balancer = policy::balancer(effective, wanted.service, wanted.port);
        let outlier = policy::outlier(effective);
        let locality =
            policy::locality(effective, self.mesh, outlier.is_some(), ranks, wanted.sources.to_vec());
        let cluster = Cluster {
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
            resolved: None,
            state: before.map_or_else(Arc::default, |before| before.state.clone()),
            origins: wanted.merged.keys(),
        };
        cluster.resolvable(before, locality, wanted.from)
    }
}

/// All clusters of a Plan.
pub(super) struct Made {
    /// By name.
    pub(super) by_name: BTreeMap<ClusterName, Arc<Cluster>>,
    /// For the next Plan.
    pub(super) memory: Memory,
    /// Those with names among their endpoints.
    pub(super) named: Arc<[Arc<Cluster>]>,
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
    /// How many instances like the caller there are where, if zones count.
    sources: Sources,
}

/// How many instances there are where.
type Sources = Rc<[(Locality, u32)]>;
