//! Which endpoint: [`pick`].
//!
//! Everything that does not change between two Plans is prepared in [`EndpointSet::new`]: who may be chosen at all, in
//! which order localities come, whose turn it is by weight, rings and tables of hashes. So a pick neither allocates
//! nor locks; while nobody is ejected it looks at two or three endpoints, however many there are.
//!
//! Who may be chosen, from the outside in:
//! 1. never: endpoints whose health check fails, that are draining, whose host is gone or has left, of weight 0. There
//!    is no panic mode for these: Istio does not even tell Envoy about them;
//! 2. endpoints of hosts that fell silent only while no other can be used (differs: Istio has no such layer);
//! 3. localities in order of nearness or by fixed shares, see [`LocalityPolicy`](crate::plan::LocalityPolicy);
//! 4. not those that [`outlier`] detection has ejected, unless fewer than
//!    `minHealthPercent` are left.
//!
//! Source: Istio `loadBalancer`; Envoy's load balancing policies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand_core::RngCore;

use crate::endpoint::Moment;
use crate::plan::{Cluster, Endpoint};
use crate::resilience::outlier;

pub(crate) mod chance;
mod draw;
#[cfg(test)]
pub(crate) mod fixture;
mod hash;
mod key;
mod level;
mod locality;
mod maglev;
mod ring;
mod schedule;
mod set;
#[cfg(test)]
mod tests;
mod warmup;
mod zones;

pub use key::{HashKeyOutcome, connection_key, hash_key};
pub use set::EndpointSet;
pub use warmup::note_arrivals;

/// What is known of a request when its endpoint is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint<'a> {
    /// Key of consistent hashing, from [`hash_key`]; without one such balancers draw at random.
    pub hash: Option<u64>,
    /// Ids of endpoints tried already. Avoided while there is another; hashing does not look at it.
    pub avoid: &'a [Arc<str>],
    /// Ids of endpoints whose level of nearness is left alone while there is another (`retryRemoteLocalities`).
    pub leave: &'a [Arc<str>],
    /// Where the connection was going, for [`Balancer::Passthrough`](crate::plan::Balancer::Passthrough). `None` where
    /// that is not known or a virtual address: the less busy of two is chosen then.
    ///
    /// differs: Envoy answers 503 where it knows no address, and knows no virtual ones.
    pub destination: Option<SocketAddr>,
}

/// Picks an endpoint for one attempt.
///
/// Returns `None` when none may be used: 503 `no healthy upstream`, flag `UH`. With passthrough it means that the
/// destination is none of the endpoints; the connection goes where it was going.
pub fn pick<'a>(
    cluster: &'a Cluster,
    hint: &Hint<'_>,
    now: Moment,
    rng: &mut impl RngCore,
) -> Option<&'a Endpoint> {
    if cluster.outlier.is_some() {
        outlier::sweep(cluster, now);
    }
    note_arrivals(cluster, now);
    cluster.endpoints.pick(hint, watch(cluster), warming(cluster, now), &cluster.state.turn, rng)
}

/// Picks as [`pick`] would, and moves nothing: no turn of the cluster's, no ejection that ends.
pub(crate) fn foresee<'a>(
    cluster: &'a Cluster,
    hint: &Hint<'_>,
    turn: &AtomicU64,
    rng: &mut impl RngCore,
) -> Option<&'a Endpoint> {
    cluster.endpoints.pick(hint, watch(cluster), None, turn, rng)
}

fn warming(cluster: &Cluster, now: Moment) -> Option<warmup::Warming> {
    cluster.warmup.map(|warmup| warmup::Warming { warmup, now })
}

fn watch(cluster: &Cluster) -> Option<level::Watch> {
    cluster.outlier.as_ref().map(|policy| level::Watch {
        // Pairs with the release in `outlier`: who sees the new epoch sees the ejection, too.
        epoch: cluster.state.ejection_epoch.load(Ordering::Acquire),
        min_health_percent: policy.min_health_percent,
    })
}
