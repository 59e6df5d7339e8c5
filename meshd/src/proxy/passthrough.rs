//! Destinations that no Plan has: where a connection was going anyway, and the applications on this host.
//!
//! Each gets a small cluster of its own, so that requests to it go the same way as all others: pooled and counted.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_core::balance::EndpointSet;
use mesh_core::plan::{
    Balancer, Cluster, ClusterName, Endpoint, EndpointFacts, Locality, LocalityPolicy, UpstreamProtocol, Via,
};

/// What was made for destinations outside the Plan, by where they are.
#[derive(Default)]
pub(crate) struct Passthrough(RefCell<HashMap<(Place, u8), Rc<Direct>>>);

/// Where a destination outside the Plan is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// At an address outside.
    Address(SocketAddr),
    /// At a name that DNS resolves.
    Name(Arc<str>, u16),
    /// An application on this host.
    Local(SocketAddr),
}

/// A destination outside the Plan.
pub(crate) struct Direct {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) endpoint: Endpoint,
}

impl Passthrough {
    /// Returns the cluster and endpoint for a place, made when it is new.
    pub(crate) fn to(&self, place: Place, protocol: UpstreamProtocol) -> Rc<Direct> {
        let key = (place, protocol as u8);
        if let Some(direct) = self.0.borrow().get(&key) {
            return direct.clone();
        }
        let direct = Rc::new(Direct::new(&key.0, protocol));
        self.0.borrow_mut().insert(key, direct.clone());
        direct
    }

    /// Forgets what nobody uses when there is much of it: its pools go a minute later.
    pub(crate) fn sweep(&self) {
        let mut all = self.0.borrow_mut();
        if all.len() > MANY {
            all.retain(|_, direct| Rc::strong_count(direct) > 1);
        }
    }
}

impl Direct {
    fn new(place: &Place, protocol: UpstreamProtocol) -> Self {
        let (host, port, via): (Arc<str>, u16, Via) = match place {
            Place::Address(address) => (PASSTHROUGH.into(), address.port(), Via::Plain(*address)),
            Place::Local(address) => ("InboundCluster".into(), address.port(), Via::Local(*address)),
            Place::Name(host, port) => {
                (PASSTHROUGH.into(), *port, Via::Name { host: host.clone(), port: *port, spread: false })
            }
        };
        let endpoint = Endpoint::new(EndpointFacts::new(format!("{via:?}"), via));
        let balancer = Balancer::Passthrough;
        let set = EndpointSet::new(
            vec![endpoint.clone()],
            &balancer,
            &LocalityPolicy::Ignore,
            &Locality::default(),
        );
        let mut cluster = Cluster {
            name: ClusterName { host, port, subset: "".into() },
            protocol,
            balancer,
            endpoints: Arc::new(set),
            ..Cluster::default()
        };
        if matches!(place, Place::Local(_)) {
            // How long a connection may be silent is decided where it comes from.
            cluster.limits.tcp_idle_timeout = None;
        }
        Self { cluster: Arc::new(cluster), endpoint }
    }
}

/// Istio's name for it in metrics.
const PASSTHROUGH: &str = "PassthroughCluster";
const MANY: usize = 4_096;
