//! Which outcomes each word of `retryOn` tries again, against Envoy's `x-envoy-retry-on`.

use http::StatusCode;

use super::*;
use crate::balance::chance::SeededRng;

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        per_try_timeout: None,
        on,
        status_codes: vec![StatusCode::IM_A_TEAPOT],
        backoff: Duration::from_millis(25),
        avoid_previous: true,
        other_localities: false,
    }
}

fn answer(status: u16) -> Outcome {
    let status = StatusCode::from_u16(status).expect("a status");
    Outcome::Answer { status, grpc_status: None, rate_limited: false }
}

fn grpc(grpc_status: u32) -> Outcome {
    Outcome::Answer { status: StatusCode::OK, grpc_status: Some(grpc_status), rate_limited: false }
}

fn first(outcome: Outcome) -> Attempt {
    Attempt { outcome, retries: 0, anew: false, response_begun: false, replayable: true }
}

/// A word, and the statuses, failures and gRPC statuses that it tries again.
type Case<'a> = (&'a str, RetryOn, &'a [u16], &'a [Failure], &'a [u32]);

#[test]
fn each_word_tries_its_own_outcomes_again() {
    use Failure::*;
    let off = RetryOn::default;
    let failures = [
        NoEndpoint,
        Overflow,
        Connect,
        ConnectTimeout,
        RefusedStream,
        ResetBeforeRequest,
        ConnectionLost,
        RemoteReset,
        Protocol,
        PerTryTimeout,
        RouteTimeout,
    ];
    let resets = &failures[2..10];
    let cases: [Case<'_>; 14] = [
        ("5xx", RetryOn { server_error: true, ..off() }, &[500, 501, 502, 503, 504], resets, &[]),
        ("gateway-error", RetryOn { gateway_error: true, ..off() }, &[502, 503, 504], resets, &[]),
        ("reset", RetryOn { reset: true, ..off() }, &[], resets, &[]),
        (
            "reset-before-request",
            RetryOn { reset_before_request: true, ..off() },
            &[],
            &[Connect, ConnectTimeout, ResetBeforeRequest],
            &[],
        ),
        ("connect-failure", RetryOn { connect_failure: true, ..off() }, &[], &[Connect, ConnectTimeout], &[]),
        ("refused-stream", RetryOn { refused_stream: true, ..off() }, &[], &[RefusedStream], &[]),
        ("retriable-4xx", RetryOn { retriable_4xx: true, ..off() }, &[409], &[], &[]),
        ("retriable-status-codes", RetryOn { retriable_status_codes: true, ..off() }, &[418], &[], &[]),
        ("envoy-ratelimited", RetryOn { envoy_ratelimited: true, ..off() }, &[], &[], &[]),
        ("cancelled", RetryOn { grpc_cancelled: true, ..off() }, &[], &[], &[1]),
        ("deadline-exceeded", RetryOn { grpc_deadline_exceeded: true, ..off() }, &[], &[], &[4]),
        ("resource-exhausted", RetryOn { grpc_resource_exhausted: true, ..off() }, &[], &[], &[8]),
        ("internal", RetryOn { grpc_internal: true, ..off() }, &[], &[], &[13]),
        ("unavailable", RetryOn { grpc_unavailable: true, ..off() }, &[], &[], &[14]),
    ];
    for (word, on, statuses, wanted, codes) in cases {
        let again = |outcome| decide(&policy(on), &first(outcome)) == Decision::Again;
        for status in [200, 400, 404, 409, 418, 429, 500, 501, 502, 503, 504] {
            assert_eq!(again(answer(status)), statuses.contains(&status), "{word}: {status}");
        }
        for failure in failures {
            assert_eq!(again(Outcome::Failed(failure)), wanted.contains(&failure), "{word}: {failure:?}");
        }
        for code in 0..=16 {
            assert_eq!(again(grpc(code)), codes.contains(&code), "{word}: gRPC {code}");
        }
    }
}

#[test]
fn what_a_rate_limiter_refused_is_tried_again_only_if_asked_for() {
    let limited = |status| Outcome::Answer { status, grpc_status: Some(14), rate_limited: true };
    let unlimited = RetryOn { server_error: true, grpc_unavailable: true, ..RetryOn::default() };
    let asked = RetryOn { envoy_ratelimited: true, ..unlimited };
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        assert_eq!(decide(&policy(unlimited), &first(limited(status))), Decision::Enough);
        assert_eq!(decide(&policy(asked), &first(limited(status))), Decision::Again);
    }
}

#[test]
fn retries_stop_at_the_limit_and_say_so() {
    let policy = policy(RetryOn { server_error: true, ..RetryOn::default() });
    let after = |retries| decide(&policy, &Attempt { retries, ..first(answer(500)) });
    assert_eq!([after(0), after(1), after(2)], [Decision::Again, Decision::Again, Decision::LimitReached]);
    let fine = decide(&policy, &Attempt { retries: 2, ..first(answer(200)) });
    assert_eq!(fine, Decision::Enough, "a success in the last attempt exceeds nothing");
    let never = RetryPolicy { attempts: 0, ..policy };
    assert_eq!(decide(&never, &first(answer(500))), Decision::Enough);
}

#[test]
fn what_cannot_be_taken_back_or_sent_again_is_not_retried() {
    let policy = policy(RetryOn { server_error: true, ..RetryOn::default() });
    let begun = Attempt { response_begun: true, ..first(Outcome::Failed(Failure::ConnectionLost)) };
    let gone = Attempt { replayable: false, ..first(answer(500)) };
    assert_eq!(decide(&policy, &begun), Decision::Enough);
    assert_eq!(decide(&policy, &gone), Decision::Enough);
}

#[test]
fn what_met_an_endpoint_that_was_leaving_is_sent_anew_once_and_then_goes_by_the_rules() {
    let met = first(Outcome::Failed(Failure::GoAway));
    let never = RetryPolicy { attempts: 0, ..policy(RetryOn::default()) };
    assert_eq!(decide(&never, &met), Decision::Anew);
    assert_eq!(decide(&never, &Attempt { replayable: false, ..met }), Decision::Enough);
    assert_eq!(decide(&never, &Attempt { response_begun: true, ..met }), Decision::Enough);
    let twice = Attempt { anew: true, ..met };
    assert_eq!(decide(&never, &twice), Decision::Enough);
    let refused = policy(RetryOn { refused_stream: true, ..RetryOn::default() });
    assert_eq!(decide(&refused, &twice), Decision::Again, "Envoy calls it refused");
}

#[test]
fn backoff_draws_below_a_bound_that_doubles_up_to_ten_times_the_base() {
    let policy = policy(RetryOn::default());
    let mut rng = SeededRng(31);
    for (retry, bound) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (6, 250), (1_000, 250)] {
        let waits: Vec<_> = (0..1_000).map(|_| backoff(&policy, retry, &mut rng).as_micros()).collect();
        let (least, most) = (waits.iter().min().expect("some"), waits.iter().max().expect("some"));
        let bound = bound * 1_000;
        assert!(
            *most < bound && *most > bound * 95 / 100 && *least < bound * 5 / 100,
            "{retry}: {least}…{most} µs"
        );
    }
}

#[test]
fn any_backoff_is_bearable() {
    let mut rng = SeededRng(32);
    for backoff_base in [Duration::ZERO, Duration::MAX] {
        let policy = RetryPolicy { backoff: backoff_base, ..policy(RetryOn::default()) };
        let _ = backoff(&policy, u32::MAX, &mut rng);
    }
}
