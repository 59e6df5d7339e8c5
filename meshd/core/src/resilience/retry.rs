//! Whether to try again, and when.

use std::time::Duration;

use rand_core::RngCore;

use super::{Failure, Outcome};
use crate::balance::chance::below;
use crate::plan::{RetryOn, RetryPolicy};

/// An attempt that is over.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// What became of it.
    pub outcome: Outcome,
    /// Retries that went before it; 0 for the first attempt.
    pub retries: u32,
    /// Whether it was sent anew before, as [`Decision::Anew`] says.
    pub anew: bool,
    /// Whether a part of its answer has gone to the caller: then it is too late.
    pub response_begun: bool,
    /// Whether the whole request, body included, can be sent again.
    pub replayable: bool,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after [`backoff`], if [`breaker::admit_retry`](super::breaker::admit_retry) agrees.
    Again,
    /// Send it again at once; it counts as no retry: nothing was done with it.
    Anew,
    /// Pass its outcome on.
    Enough,
    /// Pass its outcome on with flag `URX`: it would be tried again, but was often enough.
    LimitReached,
}

/// Decides whether an attempt is followed by another.
///
/// The method does not matter: POST is tried again like GET, as Istio does. Source: Envoy's `x-envoy-retry-on`.
///
/// differs: what met an endpoint that was leaving is sent anew, once, without being asked to: that a host restarts is no
/// reason to fail. Source: gRPC's "transparent retries".
pub fn decide(policy: &RetryPolicy, attempt: &Attempt) -> Decision {
    if attempt.response_begun || !attempt.replayable {
        return Decision::Enough;
    }
    if attempt.outcome == Outcome::Failed(Failure::GoAway) && !attempt.anew {
        return Decision::Anew;
    }
    if !wanted(policy, attempt.outcome) {
        return Decision::Enough;
    }
    if attempt.retries >= policy.attempts {
        // A policy of no attempts is no policy: nothing was exceeded.
        return if policy.attempts == 0 { Decision::Enough } else { Decision::LimitReached };
    }
    Decision::Again
}

/// Returns how long to wait before retry `retry` (1 for the first).
pub fn backoff(policy: &RetryPolicy, retry: u32, rng: &mut impl RngCore) -> Duration {
    let base = u64::try_from(policy.backoff.as_micros()).unwrap_or(u64::MAX / 16);
    let doubled = base.saturating_mul(1_u64 << retry.saturating_sub(1).min(32));
    Duration::from_micros(below(doubled.min(base.saturating_mul(10)).max(1), rng))
}

fn wanted(policy: &RetryPolicy, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Failed(failure) => wanted_failure(policy.on, failure),
        Outcome::Answer { rate_limited: true, .. } => policy.on.envoy_ratelimited,
        Outcome::Answer { status, grpc_status, .. } => {
            let on = policy.on;
            let code = status.as_u16();
            (on.server_error && status.is_server_error())
                || (on.gateway_error && (502..=504).contains(&code))
                || (on.retriable_4xx && code == 409)
                || (on.retriable_status_codes && policy.status_codes.contains(&status))
                || grpc_status.is_some_and(|grpc| wanted_grpc(on, grpc))
        }
    }
}

fn wanted_failure(on: RetryOn, failure: Failure) -> bool {
    let any_reset = on.reset || on.server_error || on.gateway_error;
    match failure {
        Failure::Overflow | Failure::NoEndpoint | Failure::RouteTimeout => false,
        Failure::Connect | Failure::ConnectTimeout => {
            any_reset || on.connect_failure || on.reset_before_request
        }
        Failure::ResetBeforeRequest => any_reset || on.reset_before_request,
        Failure::RefusedStream | Failure::GoAway => any_reset || on.refused_stream,
        Failure::ConnectionLost | Failure::RemoteReset | Failure::Protocol | Failure::PerTryTimeout => {
            any_reset
        }
    }
}

fn wanted_grpc(on: RetryOn, status: u32) -> bool {
    match status {
        1 => on.grpc_cancelled,
        4 => on.grpc_deadline_exceeded,
        8 => on.grpc_resource_exhausted,
        13 => on.grpc_internal,
        14 => on.grpc_unavailable,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
