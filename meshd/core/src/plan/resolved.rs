//! Clusters whose endpoints are names: every address that DNS gives is an endpoint of its own.
//!
//! The Plan holds the cluster as the rules say it; beside it stands the same cluster with addresses, which whoever
//! resolves the names puts there with [`Cluster::settle`]. So an answer of DNS costs one set of endpoints, not a Plan.
//! Endpoints that stay keep their state. Source: Envoy's strict DNS clusters.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashSet};

use super::{Cluster, Endpoint, Locality, LocalityPolicy, Via};
use crate::balance::EndpointSet;
use crate::endpoint::EndpointState;

/// The addresses of names; a name without any has none, one that is not there was not asked for yet.
pub type Answers = HashMap<Arc<str>, Arc<[IpAddr]>>;

/// The clusters of a Plan whose endpoints are names, of all callers.
#[derive(Clone, Debug)]
pub struct Named {
    /// In no particular order.
    pub clusters: Arc<[Arc<Cluster>]>,
    /// How often a name is asked for whose answer says nothing of its time (`dnsRefreshRate`). Default 60 s, Istio's.
    pub refresh: Duration,
}

impl Default for Named {
    fn default() -> Self {
        Self { clusters: Arc::default(), refresh: Duration::from_mins(1) }
    }
}

/// A cluster with an endpoint for each address.
#[derive(Debug)]
pub struct Resolved {
    locality: LocalityPolicy,
    from: Locality,
    now: ArcSwap<Now>,
}

#[derive(Debug)]
struct Now {
    cluster: Arc<Cluster>,
    answers: Answers,
}

impl Cluster {
    /// Makes room for addresses where endpoints are names, and puts those in that the cluster before it had.
    pub(crate) fn resolvable(
        mut self,
        before: Option<&Self>,
        locality: LocalityPolicy,
        from: &Locality,
    ) -> Self {
        if !self.names().any(|(_, spread)| spread) {
            return self;
        }
        let known = before.and_then(|before| before.resolved.as_ref()).map(|before| before.now.load_full());
        let now = Now { cluster: Arc::new(self.clone()), answers: Answers::default() };
        let resolved = Resolved { locality, from: from.clone(), now: ArcSwap::from_pointee(now) };
        self.resolved = Some(Arc::new(resolved));
        if let Some(known) = known {
            self.fill(&known.cluster.endpoints.all, &known.answers);
        }
        self
    }

    /// Returns the cluster as DNS makes it now, where that is another.
    pub fn addressed(&self) -> Option<Arc<Self>> {
        self.resolved.as_ref().map(|resolved| resolved.now.load().cluster.clone())
    }

    /// Returns the names among its endpoints, and whether each address of them is an endpoint.
    pub fn names(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.endpoints.all.iter().filter_map(|endpoint| match &endpoint.via {
            Via::Name { host, spread, .. } => Some((host, *spread)),
            _ => None,
        })
    }

    /// Takes in what DNS says now. Returns whether that changed its endpoints.
    pub fn settle(&self, answers: &Answers) -> bool {
        let Some(resolved) = &self.resolved else { return false };
        let before = resolved.now.load_full();
        let mine = self.names().filter_map(|(name, _)| answers.get_key_value(name));
        let mine: Answers = mine.map(|(name, addresses)| (name.clone(), addresses.clone())).collect();
        if mine == before.answers {
            return false;
        }
        self.fill(&before.cluster.endpoints.all, &mine);
        true
    }

    fn fill(&self, before: &[Endpoint], answers: &Answers) {
        let Some(resolved) = &self.resolved else { return };
        let known: HashMap<&str, &Arc<EndpointState>> =
            before.iter().map(|endpoint| (&*endpoint.id, &endpoint.state)).collect();
        let (mut all, mut origins) = (Vec::new(), Vec::new());
        for (origin, endpoint) in self.endpoints.all.iter().enumerate() {
            let named = match &endpoint.via {
                Via::Name { host, port, spread: true } => answers.get(host).map(|found| (found, *port)),
                _ => None,
            };
            let Some((found, port)) = named else {
                all.push(endpoint.clone());
                origins.push(origin);
                continue;
            };
            let addresses: HashSet<IpAddr> = found.iter().copied().collect();
            let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
            addresses.sort_unstable();
            for address in addresses {
                let id: Arc<str> = format!("{address}@{}", endpoint.id).into();
                let state = known.get(&*id).map_or_else(Arc::default, |state| Arc::clone(state));
                let via = Via::Plain(SocketAddr::new(address, port));
                let mut one = endpoint.clone().but(|facts| (facts.id, facts.via) = (id, via));
                one.state = state;
                all.push(one);
                origins.push(origin);
            }
        }
        let locality = resolved.locality.moved(&origins);
        let endpoints = EndpointSet::new(all, &self.balancer, &locality, &resolved.from);
        let cluster = Self { endpoints: Arc::new(endpoints), resolved: None, ..self.clone() };
        let now = Now { cluster: Arc::new(cluster), answers: answers.clone() };
        resolved.now.store(Arc::new(now));
    }
}

impl LocalityPolicy {
    /// The same policy for a list of endpoints that come from those at `origins`.
    fn moved(&self, origins: &[usize]) -> Self {
        let move_ranks = |ranks: &[u32]| {
            let rank = |origin: &usize| ranks.get(*origin).copied().unwrap_or(u32::MAX);
            origins.iter().map(rank).collect()
        };
        match self {
            Self::Priority { ranks, regions } => {
                Self::Priority { ranks: move_ranks(ranks), regions: regions.clone() }
            }
            Self::Zones(policy) => Self::Zones(Box::new(super::ZonePolicy {
                ranks: policy.ranks.as_deref().map(move_ranks),
                ..(**policy).clone()
            })),
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
