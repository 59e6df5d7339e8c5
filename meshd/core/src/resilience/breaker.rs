//! Limits on what is under way to a cluster: connections, waiting requests, requests, retries.
//!
//! Each `admit_…` counts one in and returns a [`Permit`]; dropping that counts it out, so that no path forgets.
//! Without a limit it is one relaxed addition (and one to keep the counters alive). A cluster's counters are shared by
//! all workers and outlive the Plan; a limit is never exceeded, also when workers race for the last place.
//!
//! A request that finds no idle connection takes a *pending* permit first and holds it until it has a connection, also
//! one that is being opened for it. Source: Istio `connectionPool`; Envoy's circuit breakers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::plan::{Cluster, ClusterState};

/// One more of something under way; dropping it counts it out.
#[derive(Debug)]
#[must_use = "dropping it counts it out"]
pub struct Permit {
    state: Arc<ClusterState>,
    of: Limit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        counter(&self.state, self.of).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} of the cluster is reached ({allowed})")]
pub struct Overflow {
    /// Which.
    pub limit: Limit,
    /// How many are allowed.
    pub allowed: u32,
}

/// What is limited. Prints the field of Istio's `connectionPool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections to all endpoints together.
    Connections,
    /// Requests waiting for a connection.
    Pending,
    /// Requests in flight, HTTP/1.1 or HTTP/2.
    Requests,
    /// Retries in flight.
    Retries,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connections => "maxConnections",
            Self::Pending => "http1MaxPendingRequests",
            Self::Requests => "http2MaxRequests",
            Self::Retries => "maxRetries",
        })
    }
}

/// Counts a request in. Over the limit: 503 with `x-envoy-overloaded`, flag `UO`.
pub fn admit_request(cluster: &Cluster) -> Result<Permit, Overflow> {
    admit(cluster, Limit::Requests, cluster.limits.max_requests)
}

/// Counts in a request that has to wait for a connection. Over the limit: as [`admit_request`].
pub fn admit_pending(cluster: &Cluster) -> Result<Permit, Overflow> {
    admit(cluster, Limit::Pending, cluster.limits.max_pending)
}

/// Counts a connection in, before it is opened. Over the limit: the request goes on waiting for another to be free.
///
/// For TCP, where there is nothing to wait for, the caller's connection is closed.
pub fn admit_connection(cluster: &Cluster) -> Result<Permit, Overflow> {
    admit(cluster, Limit::Connections, cluster.limits.max_connections)
}

/// Counts a connection in whatever the limit.
///
/// For the first connection to an endpoint: without it a request waiting there could wait for ever, since the places
/// are held by connections to other endpoints. Source: Envoy's connection pools do the same.
pub fn admit_first_connection(cluster: &Cluster) -> Permit {
    cluster.state.connections.fetch_add(1, Ordering::Relaxed);
    Permit { state: cluster.state.clone(), of: Limit::Connections }
}

/// Counts a retry in. Over the limit: the original failure is passed on, with flag `UO`.
pub fn admit_retry(cluster: &Cluster) -> Result<Permit, Overflow> {
    admit(cluster, Limit::Retries, cluster.limits.max_retries)
}

fn admit(cluster: &Cluster, of: Limit, limit: Option<u32>) -> Result<Permit, Overflow> {
    let counter = counter(&cluster.state, of);
    match limit {
        None => {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Some(allowed) => {
            let more = |now: u32| (now < allowed).then(|| now + 1);
            if counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
                cluster.state.overflows.fetch_add(1, Ordering::Relaxed);
                return Err(Overflow { limit: of, allowed });
            }
        }
    }
    Ok(Permit { state: cluster.state.clone(), of })
}

const fn counter(state: &ClusterState, of: Limit) -> &AtomicU32 {
    match of {
        Limit::Connections => &state.connections,
        Limit::Pending => &state.pending,
        Limit::Requests => &state.requests,
        Limit::Retries => &state.retries,
    }
}
