//! What is behind a destination: the `DestinationRule` that shapes it (`destinations`), its subset, its endpoints.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::command::HostId;
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
use crate::plan::{Cluster, ClusterName, ClusterState, Endpoint, Locality, Node, Plan};
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

    /// Returns every cluster of a service that callers of a scope may mean, with those of its subsets.
    pub(super) fn all(&self, scope: &Scope<'_>, service: &Service<'_>) -> Vec<Arc<Cluster>> {
        let merged = self.rules.of(scope.caller, service);
        let subsets = merged.iter().flat_map(|merged| &merged.subsets).map(|subset| subset.name.as_str());
        let subsets: Vec<&str> = std::iter::once("").chain(subsets).collect();
        let names = service.ports.iter().flat_map(|port| subsets.iter().map(move |subset| (port, subset)));
        let name = |(port, subset): (&Port, &&str)| ClusterName {
            host: service.host.clone(),
            port: port.number,
            subset: (*subset).into(),
        };
        names.map(name).filter_map(|name| self.find(scope, &name)).collect()
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
        let variant = fingerprint(&(merged.variant(), from, service.namespace, labels));
        if let Some((_, cluster)) = self.made.borrow().get(&(name.clone(), variant)) {
            return Some(cluster.clone());
        }
        let nearness = labels.map(|labels| Nearness::of(priority, labels, from, &self.node.name));
        let stamp =
            fingerprint(&(variant, merged.stamp(), self.mesh.revision, port, service.entry_revision()));
        let asked = Wanted { service, port, name, merged, subset, from, effective, nearness };
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
            tls: policy::tls(effective, wanted.service, wanted.name, &self.node.trust_domain),
            proxy_protocol: policy::proxy_protocol(effective),
            detour: policy::detour(effective),
            state,
            origins: wanted.merged.keys(),
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
