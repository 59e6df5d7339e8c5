//! Leaving an endpoint alone for a while after it failed several times in a row.
//!
//! An ejected endpoint returns at the first sweep after its time is over. The time is the base ejection times how often
//! it was ejected lately: each interval without ejection takes one away again. [`balance::pick`](crate::balance::pick)
//! sweeps when it is time to; calling [`sweep`] besides only keeps the views of idle clusters fresh.
//!
//! Source: Istio `outlierDetection`; Envoy's outlier detection, also with `split_external_local_origin_errors`. differs:
//! an ejection counts at once on all workers, where Envoy gathers updates for up to a second.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::endpoint::{Counters, Moment};
use crate::plan::{Cluster, Endpoint, OutlierPolicy};

/// What an attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered with this HTTP status; for gRPC that of [`grpc::to_http`](super::grpc::to_http). A TCP connection
    /// that was established counts as 200.
    Status(u16),
    /// No connection, or it broke: counts as 503.
    LocalFailure,
    /// It took too long: counts as 504.
    Timeout,
}

impl Answer {
    const fn status(self) -> u16 {
        match self {
            Self::Status(status) => status,
            Self::LocalFailure => 503,
            Self::Timeout => 504,
        }
    }
}

/// An endpoint was ejected just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// The earliest end.
    pub until: Moment,
    /// By how much the base ejection time was multiplied.
    pub count: u32,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503, 504 or failed connections in a row.
    ConsecutiveGateway,
    /// Failures to connect or to be heard in a row, counted apart.
    ConsecutiveLocal,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Consecutive5xx => "failures in a row",
            Self::ConsecutiveGateway => "gateway errors in a row",
            Self::ConsecutiveLocal => "failed connections in a row",
        })
    }
}

/// No ejection lasts longer, unless the base itself does. Envoy's default `max_ejection_time`.
const LONGEST: Duration = Duration::from_mins(5);

/// Counts an answer; ejects the endpoint when that is one too many in a row.
///
/// Does not eject when more than `maxEjectionPercent` of the endpoints would be out: the failures in a row are then
/// counted anew.
pub fn record(cluster: &Cluster, endpoint: &Endpoint, answer: Answer, now: Moment) -> Option<Ejection> {
    let policy = cluster.outlier.as_ref()?;
    let state: &Counters = &endpoint.state;
    if let Some(limit) = policy.consecutive_local {
        match answer {
            Answer::Status(_) => state.consecutive_local.store(0, Ordering::Relaxed),
            Answer::LocalFailure | Answer::Timeout => {
                return record_local(cluster, policy, limit, state, now);
            }
        }
    }
    let status = match answer {
        // Only statuses are matched against the codes. What is none of them is a success; one of them is a failure, and
        // what is no 5xx counts as 500. Recorded in `tests/conformance/cases/outlier-codes`.
        Answer::Status(status) if !policy.error_codes.is_empty() => {
            match policy.error_codes.contains(&status) {
                true if (500..=599).contains(&status) => status,
                true => 500,
                false => 200,
            }
        }
        answer => answer.status(),
    };
    if !(500..=599).contains(&status) {
        state.forget_failures();
        return None;
    }
    let mut ejection = None;
    if (502..=504).contains(&status) {
        let failures = state.consecutive_gateway.fetch_add(1, Ordering::Relaxed) + 1;
        if due(failures, policy.consecutive_gateway) && !state.is_ejected() {
            ejection = eject(cluster, policy, state, Cause::ConsecutiveGateway, now);
            state.consecutive_gateway.store(0, Ordering::Relaxed);
        }
    } else {
        state.consecutive_gateway.store(0, Ordering::Relaxed);
    }
    let failures = state.consecutive_5xx.fetch_add(1, Ordering::Relaxed) + 1;
    if due(failures, policy.consecutive_5xx) && !state.is_ejected() {
        ejection = eject(cluster, policy, state, Cause::Consecutive5xx, now);
        state.consecutive_5xx.store(0, Ordering::Relaxed);
    }
    ejection
}

/// Counts a failure that never reached the application.
fn record_local(
    cluster: &Cluster,
    policy: &OutlierPolicy,
    limit: u32,
    state: &Counters,
    now: Moment,
) -> Option<Ejection> {
    let failures = state.consecutive_local.fetch_add(1, Ordering::Relaxed) + 1;
    if !due(failures, limit) || state.is_ejected() {
        return None;
    }
    state.consecutive_local.store(0, Ordering::Relaxed);
    eject(cluster, policy, state, Cause::ConsecutiveLocal, now)
}

/// Lets endpoints return whose time is over, once per interval. Returns how many did.
///
/// Cheap when it is not time yet; one worker does it for all.
pub fn sweep(cluster: &Cluster, now: Moment) -> u32 {
    let Some(policy) = &cluster.outlier else { return 0 };
    if !takes_the_sweep(cluster, policy, now) {
        return 0;
    }
    let counted = cluster.state.ejected.load(Ordering::Relaxed);
    let mut returned = 0;
    for counters in cluster.endpoints.all.iter().filter_map(|endpoint| endpoint.state.counted()) {
        returned += u32::from(visit(counters, policy, now));
    }
    // Endpoints may have left the cluster while ejected: count those that are there. Whoever ejects at the same
    // moment wins; the next sweep counts again.
    let ejected = cluster.endpoints.all.iter().filter(|endpoint| endpoint.state.is_ejected()).count();
    let ejected = u32::try_from(ejected).unwrap_or(u32::MAX);
    let _ = cluster.state.ejected.compare_exchange(counted, ejected, Ordering::Relaxed, Ordering::Relaxed);
    if returned > 0 {
        cluster.state.returned.fetch_add(returned, Ordering::Relaxed);
        cluster.state.ejection_epoch.fetch_add(1, Ordering::Release);
    }
    returned
}

fn due(failures: u32, limit: u32) -> bool {
    limit > 0 && failures >= limit
}

fn eject(
    cluster: &Cluster,
    policy: &OutlierPolicy,
    state: &Counters,
    cause: Cause,
    now: Moment,
) -> Option<Ejection> {
    let most = u64::from(policy.max_ejection_percent.min(100)) * u64::from(cluster.endpoints.members());
    let one_more = |ejected: u32| (100 * (u64::from(ejected) + 1) <= most).then(|| ejected + 1);
    cluster.state.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;

    let longest = LONGEST.max(policy.base_ejection);
    let before = state.ejections.load(Ordering::Relaxed);
    // Envoy lets the multiplier grow one step beyond the longest time.
    let grows = policy.base_ejection.saturating_mul(before) < longest + policy.base_ejection;
    let count = if grows { before + 1 } else { before };
    let until =
        now.0.saturating_add(milliseconds(policy.base_ejection.saturating_mul(count).min(longest))).max(1);
    if state.ejected_until.compare_exchange(0, until, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        // Another worker was faster. A sweep may have counted anew meanwhile: never below 0.
        let one_less = |ejected: u32| ejected.checked_sub(1);
        let _ = cluster.state.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        return None;
    }
    state.ejections.store(count, Ordering::Relaxed);
    cluster.state.ejection_epoch.fetch_add(1, Ordering::Release);
    Some(Ejection { cause, until: Moment(until), count })
}

/// Whether a sweep is due and this worker is the one to do it.
fn takes_the_sweep(cluster: &Cluster, policy: &OutlierPolicy, now: Moment) -> bool {
    let due = cluster.state.next_sweep.load(Ordering::Relaxed);
    if now.0 < due {
        return false;
    }
    let interval = milliseconds(policy.interval).max(1);
    let next = match due {
        0 => now.0.saturating_add(interval),
        // Sweeps keep their beat also when nobody asked for a while.
        _ => due.saturating_add(interval.saturating_mul((now.0 - due) / interval + 1)),
    };
    let taken = cluster.state.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed);
    // The first time only starts the clock.
    taken.is_ok() && due != 0
}

/// Lets one endpoint return if its time is over; one that was well for an interval is forgiven one ejection.
fn visit(state: &Counters, policy: &OutlierPolicy, now: Moment) -> bool {
    let until = state.ejected_until.load(Ordering::Relaxed);
    if until != 0 {
        if until > now.0 {
            return false;
        }
        state.forget_failures();
        state.returned_at.store(now.0, Ordering::Relaxed);
        state.ejected_until.store(0, Ordering::Relaxed);
        return true;
    }
    let well_since = state.returned_at.load(Ordering::Relaxed);
    if now.0.saturating_sub(well_since) >= milliseconds(policy.interval) {
        let one_less = |count: u32| count.checked_sub(1);
        let _ = state.ejections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }
    false
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
