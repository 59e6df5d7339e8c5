//! What is behind a destination: the `DestinationRule` that shapes it (`destinations`), its subset, its endpoints.

use std::borrow::Borrow;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use mesh_proto::resource::Subset;

use super::destinations::{Merged, Rules};
use super::endpoints::{Found, Selected};
use super::hosts::{Port, Service};
use super::mesh::Settings;
use super::nearness::Nearness;
use super::policy::{self, Effective};
use super::scope::Scope;
use super::seen::Stale;
use super::{Problems, endpoints, fingerprint};
use crate::balance::EndpointSet;
use crate::parted::PartedMap;
use crate::plan::{
    CircuitLimits, Cluster, ClusterName, Endpoint, Locality, Node, OutlierPolicy, Plan, Shared, Workload,
};
use crate::world::World;

/// Makes clusters, each once.
pub(super) struct Builder<'a> {
    node: &'a Node,
    mesh: &'a Settings<'a>,
    rules: &'a Rules<'a>,
    previous: Option<&'a Plan>,
    place: endpoints::Place<'a>,
    stale: Stale,
    limits: Pool<CircuitLimits>,
    outliers: Pool<OutlierPolicy>,
    found: RefCell<HashMap<Asked, Option<Arc<Cluster>>>>,
    made: RefCell<HashMap<(ClusterName, u64), Stamped>>,
    /// Those with names among their endpoints.
    named: RefCell<Vec<Arc<Cluster>>>,
    /// By namespace and account of the caller.
    sources: RefCell<BTreeMap<(String, String), Sources>>,
}

/// A cluster, with the stamp of what it was made of.
type Stamped = (u64, Arc<Cluster>);

/// Who asked for what: the scope's number, and the cluster's name.
type Asked = (usize, ClusterName);

/// Clusters by name and variant (which rules shape it, for whom), each with a stamp of all it is made of but its
/// endpoints. Kept in the Plan, for the next one.
pub type Memory = PartedMap<(ClusterName, u64), (u64, Arc<Cluster>)>;

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
            node,
            mesh,
            rules,
            previous,
            place: endpoints::Place::new(world, node, problems),
            stale,
            limits: Pool::default(),
            outliers: Pool::default(),
            found: RefCell::default(),
            made: RefCell::default(),
            named: RefCell::default(),
            sources: RefCell::default(),
        }
    }

    /// Finds the cluster that callers of a scope mean by a name; `None`: host, port or subset is not there, or not for
    /// them.
    pub(super) fn find(&self, scope: &Scope<'_>, name: &ClusterName) -> Option<Arc<Cluster>> {
        self.find_among(&OnceCell::new(), scope, name)
    }

    /// The same; `behind`: all that is behind the port, filled when it is first looked at.
    fn find_among<'s>(
        &'s self,
        behind: &OnceCell<Vec<Found<'s>>>,
        scope: &'s Scope<'_>,
        name: &ClusterName,
    ) -> Option<Arc<Cluster>> {
        let asked = (scope.number, name.clone());
        if let Some(found) = self.found.borrow().get(&asked) {
            return found.clone();
        }
        let cluster = self.make(behind, scope, name);
        self.found.borrow_mut().insert(asked, cluster.clone());
        cluster
    }

    /// Returns every cluster of a service that callers of a scope may mean, with those of its subsets.
    pub(super) fn all(&self, scope: &Scope<'_>, service: &Service<'_>) -> Vec<Arc<Cluster>> {
        let merged = self.rules.of(scope.caller, service);
        let subsets = merged.iter().flat_map(|merged| &merged.subsets).map(|subset| subset.name.as_str());
        let subsets: Vec<&str> = std::iter::once("").chain(subsets).collect();
        let mut found = Vec::new();
        for port in &service.ports {
            let behind = OnceCell::new();
            for subset in &subsets {
                let name =
                    ClusterName { host: service.host.clone(), port: port.number, subset: (*subset).into() };
                found.extend(self.find_among(&behind, scope, &name));
            }
        }
        found
    }

    /// Returns all that was made.
    pub(super) fn finish(self) -> Made {
        drop(self.found);
        let mut variants: Vec<_> = self.made.into_inner().into_iter().collect();
        variants.sort_by(|(one, _), (other, _)| one.cmp(other));
        let memory: Memory = variants.into_iter().collect();
        let mut first: Option<&ClusterName> = None;
        let by_name = memory.iter().filter(|((name, _), _)| first.replace(name) != Some(name));
        let by_name = by_name.map(|((name, _), (_, cluster))| (name.clone(), cluster.clone())).collect();
        Made { by_name, memory, named: self.named.into_inner().into() }
    }

    fn make<'s>(
        &'s self,
        behind: &OnceCell<Vec<Found<'s>>>,
        scope: &'s Scope<'_>,
        name: &ClusterName,
    ) -> Option<Arc<Cluster>> {
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
            service.entry_revisions(),
            &sources,
        ));
        let sources = sources.unwrap_or_default();
        let asked = Wanted { service, port, name, merged, subset, from, effective, nearness, sources };
        let (stamp, cluster) = self.shared(behind, &asked, variant, stamp);
        self.made.borrow_mut().insert((name.clone(), variant), (stamp, cluster.clone()));
        if !service.is_registered() && cluster.names().next().is_some() {
            self.named.borrow_mut().push(cluster.clone());
        }
        Some(cluster)
    }

    /// How many callers like this one there are where.
    fn sources(&self, caller: &Workload) -> Sources {
        let key = (caller.namespace.clone(), caller.account.clone());
        let mut known = self.sources.borrow_mut();
        known.entry(key).or_insert_with(|| self.place.callers(caller).into()).clone()
    }

    /// Returns the cluster of the Plan before where nothing has changed, else a new one with its counters; with the
    /// stamp of what it was made of.
    fn shared<'s>(
        &'s self,
        behind: &OnceCell<Vec<Found<'s>>>,
        wanted: &Wanted<'_, 's>,
        variant: u64,
        stamp: u64,
    ) -> (u64, Arc<Cluster>) {
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
        let labels = wanted.subset.map(|subset| &subset.labels);
        let behind = behind.get_or_init(|| self.place.all(wanted.service, wanted.port));
        let selected = Selected::of(behind, labels);
        let ranks = wanted.nearness.as_ref().map(|nearness| selected.ranks(nearness)).unwrap_or_default();
        let stamp = if ranks.is_empty() { stamp } else { fingerprint(&(stamp, &ranks)) };
        if let Some((then, cluster)) = before
            && then == Some(stamp)
            && selected.are(&cluster.endpoints.all)
        {
            return (stamp, cluster.clone());
        }
        let endpoints = selected.make(before.map_or(&[], |(_, cluster)| &cluster.endpoints.all));
        let before = before.map(|(_, cluster)| &**cluster);
        (stamp, Arc::new(self.cluster(wanted, endpoints, ranks, before)))
    }

    fn cluster(
        &self,
        wanted: &Wanted<'_, '_>,
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
            limits: self.limits.one(policy::limits(effective, self.mesh)),
            outlier: outlier.map(|outlier| self.outliers.one(outlier)),
            tls: policy::tls(effective, wanted.service, wanted.name, &self.node.trust_domain),
            proxy_protocol: policy::proxy_protocol(effective),
            detour: policy::detour(effective).map(Box::new),
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
    pub(super) by_name: PartedMap<ClusterName, Arc<Cluster>>,
    /// For the next Plan.
    pub(super) memory: Memory,
    /// Those with names among their endpoints.
    pub(super) named: Arc<[Arc<Cluster>]>,
}

/// What a cluster is made of.
struct Wanted<'w, 's> {
    service: &'s Service<'s>,
    port: &'w Port,
    name: &'w ClusterName,
    merged: &'w Merged<'w>,
    subset: Option<&'w Subset>,
    from: &'w Locality,
    effective: Effective<'w>,
    nearness: Option<Nearness<'w>>,
    /// How many callers like this one there are where, if zones count.
    sources: Sources,
}

/// How many there are where.
type Sources = Rc<[(Locality, u32)]>;

/// Values that many clusters have alike, each once.
struct Pool<T>(RefCell<HashSet<Held<T>>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T: Clone + Eq + Hash> Pool<T> {
    fn one(&self, value: T) -> Shared<T> {
        let mut known = self.0.borrow_mut();
        if let Some(held) = known.get(&value) {
            return held.0.clone();
        }
        let held: Shared<T> = value.into();
        known.insert(Held(held.clone()));
        held
    }
}

/// A value in a pool, found by what it is.
#[derive(PartialEq, Eq)]
struct Held<T>(Shared<T>);

impl<T: Hash> Hash for Held<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        T::hash(&self.0, state);
    }
}

impl<T> Borrow<T> for Held<T> {
    fn borrow(&self) -> &T {
        &self.0
    }
}
