//! Retry policies.
//!
//! Source: Istio `retry.ConvertPolicy`, `parseRetryOn`, `defaultRetryOn`.

use std::time::Duration;

use http::StatusCode;
use mesh_proto::resource::HttpRetry;

use crate::plan::{RetryOn, RetryPolicy};

/// Compiles the policy of a route: its own, else the mesh's, else two retries where nothing was done yet.
///
/// `attempts: 0` is "never", also of the default.
pub(super) fn policy(own: Option<&HttpRetry>, mesh: Option<&HttpRetry>) -> RetryPolicy {
    let Some(retry) = own.or(mesh) else { return default_policy() };
    let attempts = retry.attempts.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0);
    if attempts == 0 {
        return never();
    }
    let mut policy = RetryPolicy { attempts, ..default_policy() };
    if !retry.retry_on.is_empty() {
        (policy.on, policy.status_codes) = conditions(&retry.retry_on);
    }
    policy.per_try_timeout = retry.per_try_timeout.map(Into::into);
    policy.backoff = retry.backoff.map_or(policy.backoff, Into::into);
    policy.avoid_previous = retry.retry_ignore_previous_hosts.unwrap_or(true);
    policy.other_localities = retry.retry_remote_localities.unwrap_or(false);
    policy
}

/// Returns the policy that never retries.
pub(super) fn never() -> RetryPolicy {
    RetryPolicy { attempts: 0, on: RetryOn::default(), ..default_policy() }
}

fn default_policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        per_try_timeout: None,
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            grpc_unavailable: true,
            grpc_cancelled: true,
            retriable_status_codes: true,
            ..RetryOn::default()
        },
        status_codes: Vec::new(),
        backoff: DEFAULT_BACKOFF,
        avoid_previous: true,
        other_localities: false,
    }
}

/// Reads `retryOn`. Numbers are statuses and imply `retriable-status-codes`; unknown words were refused before.
fn conditions(text: &str) -> (RetryOn, Vec<StatusCode>) {
    let mut on = RetryOn::default();
    let mut codes = Vec::new();
    for word in text.split(',').map(str::trim) {
        match word {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => on.retriable_status_codes = true,
            "envoy-ratelimited" => on.envoy_ratelimited = true,
            "cancelled" => on.grpc_cancelled = true,
            "deadline-exceeded" => on.grpc_deadline_exceeded = true,
            "internal" => on.grpc_internal = true,
            "resource-exhausted" => on.grpc_resource_exhausted = true,
            "unavailable" => on.grpc_unavailable = true,
            number => codes.extend(number.parse::<StatusCode>()),
        }
    }
    on.retriable_status_codes |= !codes.is_empty();
    (on, codes)
}

/// Envoy's base interval.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
