//! Which endpoint: `pick(&Cluster, …)`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;
use rand_core::RngCore;

use crate::endpoint::Moment;
use crate::plan::{Balancer, Cluster, Endpoint, HashPolicy, Locality, LocalityPolicy};

pub(crate) mod chance;

/// What is known of a request when its endpoint is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint<'a> {
    /// Key of consistent hashing, from [`hash_key`]; without one such balancers draw at random.
    pub hash: Option<u64>,
    /// Ids of endpoints tried already. Avoided, unless all draws hit one of them; hashing does not look at it.
    pub avoid: &'a [Arc<str>],
    /// Where the connection was going, for [`Balancer::Passthrough`]. `None` where that is a virtual address.
    pub destination: Option<SocketAddr>,
}

/// Picks an endpoint.
pub fn pick<'a>(
    cluster: &'a Cluster,
    _hint: &Hint<'_>,
    _now: Moment,
    rng: &mut impl RngCore,
) -> Option<&'a Endpoint> {
    let usable = |endpoint: &&Endpoint| {
        endpoint.weight > 0
            && endpoint.health == Health::Healthy
            && endpoint.liveness == Liveness::Live
            && !endpoint.state.is_ejected()
    };
    let count = cluster.endpoints.all.iter().filter(usable).count();
    let nth = usize::try_from(chance::below(count as u64, rng)).unwrap_or(0);
    cluster.endpoints.all.iter().filter(usable).nth(nth)
}

/// What the key of consistent hashing is for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKeyOutcome {
    /// This.
    Hash(u64),
    /// This; and the caller is given a cookie, so that it comes again with the same key.
    MakeCookie {
        /// The key.
        hash: u64,
        /// Value of a `set-cookie` line of the answer: `name="hex"; Max-Age=60; Path=/app; HttpOnly`.
        set_cookie: String,
    },
    /// None: the request is balanced freely.
    None,
}

/// Finds the key of consistent hashing. `query` is without `?`; chance makes new cookies.
pub fn hash_key(
    _policy: &HashPolicy,
    _headers: &HeaderMap,
    _query: Option<&str>,
    _source: IpAddr,
    _rng: &mut impl RngCore,
) -> HashKeyOutcome {
    HashKeyOutcome::None
}

/// The endpoints of a cluster, prepared for choosing.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// All of them, in a fixed order (host id, instance id).
    pub all: Vec<Endpoint>,
}

impl EndpointSet {
    /// Prepares endpoints for choosing: priorities by locality, schedules, rings and tables.
    ///
    /// `endpoints` are in a fixed order (host id, instance id); `from` is the caller's locality.
    pub fn new(
        endpoints: Vec<Endpoint>,
        _balancer: &Balancer,
        _locality: &LocalityPolicy,
        _from: &Locality,
    ) -> Self {
        Self { all: endpoints }
    }
}
