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

use crate::endpoint::Moment;
use crate::plan::{Cluster, ClusterState, RetryBudget};

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
///
/// A retry budget stands in place of `maxRetries`. Source: Envoy's `ResourceManagerImpl::RetryBudgetImpl`.
pub fn admit_retry(cluster: &Cluster) -> Result<Permit, Overflow> {
    let limit = match &cluster.limits.retry_budget {
        Some(budget) => Some(granted(cluster, budget)),
        None => cluster.limits.max_retries,
    };
    admit(cluster, Limit::Retries, limit)
}

/// How many retries a budget grants now.
fn granted(cluster: &Cluster, budget: &RetryBudget) -> u32 {
    let count = |counter: &AtomicU32| u64::from(counter.load(Ordering::Relaxed));
    let active = count(&cluster.state.requests) + count(&cluster.state.pending);
    let begun = cluster.state.begun.load(Ordering::Relaxed);
    let recent = if budget.interval.is_zero() { 0 } else { (begun >> 32) + (begun & LOW) };
    let share = active.max(recent) * u64::from(budget.parts_per_million) / 1_000_000;
    u32::try_from(share).unwrap_or(u32::MAX).max(budget.at_least)
}

/// Notes that a request begins, where a retry budget looks back. Counts those of this interval and of the one before.
pub fn note_request(cluster: &Cluster, now: Moment) {
    let Some(budget) = cluster.limits.retry_budget.filter(|budget| !budget.interval.is_zero()) else {
        return;
    };
    let interval = u64::try_from(budget.interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let state = &cluster.state;
    let since = state.begun_since.load(Ordering::Relaxed);
    let age = now.0.saturating_sub(since);
    if age >= interval
        && state.begun_since.compare_exchange(since, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        // What was counted moves one interval back; what is older than that is forgotten.
        let moved = |begun: u64| Some(if age < interval.saturating_mul(2) { (begun & LOW) << 32 } else { 0 });
        let _ = state.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }
    let one_more = |begun: u64| (begun & LOW < LOW).then(|| begun + 1);
    let _ = state.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
}

/// The low half of a number: the count of the interval that has begun.
const LOW: u64 = u32::MAX as u64;

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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::balance::fixture;
    use crate::plan::{Balancer, CircuitLimits};

    fn cluster(limits: CircuitLimits) -> Cluster {
        Cluster { limits: limits.into(), ..fixture::cluster(fixture::endpoints(1), Balancer::LeastRequest) }
    }

    fn one_of_each() -> CircuitLimits {
        CircuitLimits {
            max_connections: Some(1),
            max_pending: Some(1),
            max_requests: Some(1),
            max_retries: Some(1),
            ..CircuitLimits::default()
        }
    }

    #[test]
    fn without_limits_everything_is_admitted_and_counted() {
        let cluster = cluster(CircuitLimits::default());
        let permits: Vec<_> = (0..5_000).map(|_| admit_request(&cluster).expect("no limit")).collect();
        assert_eq!(cluster.state.requests.load(Ordering::Relaxed), 5_000);
        drop(permits);
        assert_eq!(cluster.state.requests.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn each_limit_stands_for_itself_and_is_free_again_after_a_drop() {
        let cluster = cluster(one_of_each());
        let kinds = [admit_request, admit_pending, admit_connection, admit_retry];
        let held = kinds.map(|admit| admit(&cluster).expect("the first"));
        for admit in kinds {
            let overflow = admit(&cluster).expect_err("the second");
            assert_eq!(overflow.allowed, 1);
        }
        assert_eq!(cluster.state.overflows.load(Ordering::Relaxed), 4);
        drop(held);
        for admit in kinds {
            assert!(admit(&cluster).is_ok());
        }
    }

    #[test]
    fn an_overflow_names_the_field_that_sets_the_limit() {
        let cluster = cluster(one_of_each());
        let _held = admit_pending(&cluster).expect("the first");
        let overflow = admit_pending(&cluster).expect_err("the second");
        assert_eq!(overflow.to_string(), "http1MaxPendingRequests of the cluster is reached (1)");
    }

    #[test]
    fn the_first_connection_of_an_endpoint_is_admitted_over_the_limit() {
        let cluster = cluster(one_of_each());
        let held = [admit_first_connection(&cluster), admit_first_connection(&cluster)];
        assert_eq!(cluster.state.connections.load(Ordering::Relaxed), 2);
        assert!(admit_connection(&cluster).is_err());
        drop(held);
        assert_eq!(cluster.state.connections.load(Ordering::Relaxed), 0);
    }

    fn budget(interval: u64) -> Cluster {
        let interval = std::time::Duration::from_millis(interval);
        let budget = RetryBudget { parts_per_million: 250_000, at_least: 2, interval };
        // It stands in place of maxRetries.
        cluster(CircuitLimits { retry_budget: Some(budget), ..one_of_each() })
    }

    fn retries(cluster: &Cluster) -> usize {
        let mut held = Vec::new();
        while let Ok(permit) = admit_retry(cluster) {
            held.push(permit);
        }
        held.len()
    }

    #[test]
    fn a_retry_budget_is_a_share_of_the_requests_under_way() {
        let mut cluster = budget(0);
        assert_eq!(retries(&cluster), 2, "so many are always allowed");
        cluster.limits.max_requests = None;
        let _requests: Vec<_> = (0..40).map(|_| admit_request(&cluster)).collect();
        assert_eq!(retries(&cluster), 10);
    }

    #[test]
    fn a_retry_budget_with_an_interval_looks_back() {
        let cluster = budget(1_000);
        (0..40).for_each(|_| note_request(&cluster, Moment(5_000)));
        assert_eq!(retries(&cluster), 10);
        note_request(&cluster, Moment(6_500));
        assert_eq!(retries(&cluster), 10, "the interval before counts");
        note_request(&cluster, Moment(9_000));
        assert_eq!(retries(&cluster), 2, "what is older does not");
    }

    #[test]
    fn a_limit_of_zero_admits_nothing() {
        let cluster = cluster(CircuitLimits { max_requests: Some(0), ..CircuitLimits::default() });
        assert!(admit_request(&cluster).is_err());
    }

    #[test]
    fn racing_workers_never_exceed_a_limit_and_leave_nothing_behind() {
        const WORKERS: u32 = 4;
        const LIMIT: u32 = 3;
        let cluster = cluster(CircuitLimits { max_requests: Some(LIMIT), ..CircuitLimits::default() });
        let (start, held) = (Barrier::new(WORKERS as usize), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        if let Ok(permit) = admit_request(&cluster) {
                            // Counted while the permit is held, so never more than the permits.
                            assert!(held.fetch_add(1, Ordering::SeqCst) < LIMIT);
                            held.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert_eq!(cluster.state.requests.load(Ordering::Relaxed), 0);
    }
}
