//! Limits: circuit breakers, slow callers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use meshd::proxy::{Declared, Settings};

use super::lab::*;
use super::plan::*;

#[tokio::test]
async fn beyond_one_connection_and_one_waiting_request_is_overflow() {
    let backend = Backend::http1("pool").await;
    let mut pool = cluster("reviews", vec![local(backend.address)]);
    pool.limits.max_connections = Some(1);
    pool.limits.max_pending = Some(1);
    pool.limits.max_requests_per_connection = Some(1);
    let lab = start(plan(vec![("reviews", vec![simple(pool)])]));

    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..10 {
        burst.spawn(once(lab.address, get("/", &[("x-want-delay-ms", "200")])));
    }
    let answers = burst.join_all().await;

    let (fine, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == StatusCode::OK);
    assert!((1..=3).contains(&fine.len()), "{}", fine.len());
    for answer in refused {
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
        assert!(answer.body.ends_with("reset reason: overflow"), "{}", answer.body);
    }
    let after = once(lab.address, get("/", &[])).await;
    assert_eq!(after.status, StatusCode::OK);
}

#[tokio::test]
async fn requests_in_flight_are_limited_over_http1_too() {
    let backend = Backend::http1("pool").await;
    let mut pool = cluster("reviews", vec![local(backend.address)]);
    pool.limits.max_requests = Some(1);
    let lab = start(plan(vec![("reviews", vec![simple(pool)])]));
    let slow = meshd::task::spawn("test", once(lab.address, get("/", &[("x-want-delay-ms", "400")])));
    until("the first is under way", || backend.hits() == 1).await;

    let second = once(lab.address, get("/", &[])).await;

    assert_eq!((second.status.as_u16(), second.header("x-envoy-overloaded")), (503, Some("true")));
    assert_eq!(slow.await.expect("an answer").status, StatusCode::OK);
    assert_eq!(once(lab.address, get("/", &[])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_retry_that_is_over_leaves_room_for_the_next() {
    let backend = Backend::http1("pool").await;
    let mut pool = cluster("reviews", vec![local(backend.address)]);
    pool.limits.max_retries = Some(1);
    let mut route = forward(vec![to(1, pool)]);
    route.retry.on.server_error = true;
    let lab = start(plan(vec![("reviews", vec![forwarding(route)])]));

    once(lab.address, get("/", &[("x-want-status", "503")])).await;

    assert_eq!(backend.hits(), 3, "two retries, one after the other");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_is_cut_and_idle_connections_are_not() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { head_timeout: Duration::from_secs(1), ..settings() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let mut idle = Client::new(lab.address).await;
    idle.get("/").await;

    let read = bytes(lab.address, b"GET / HTTP/1.1\r\nHost: rev").await;

    assert!(read.starts_with("HTTP/1.1 408 "), "{read:?}");
    let expired = lab.stats.total(|all| all.expired_connections_total.load(Ordering::Relaxed));
    assert_eq!(expired, 1);
    assert_eq!(idle.get("/").await.status, StatusCode::OK);
}

/// Bytes of memory that this process holds.
fn held() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * 4096
}

#[tokio::test]
async fn short_of_memory_new_work_is_refused_until_there_is_enough_again() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let memory = held() * 2 + (100 << 20);
    let lab = start_with(plan, service(Declared::Http), Settings { memory, ..settings() }, &no_credentials());
    let mut open = Client::new(lab.address).await;
    let mut grpc = Client::new(lab.address).await;
    assert_eq!((open.get("/").await.status, grpc.get("/").await.status), (StatusCode::OK, StatusCode::OK));

    // Written to, so that the kernel gives it.
    let ballast = vec![1_u8; memory];
    let shed = || lab.stats.total(|all| all.shed_requests_total.load(Ordering::Relaxed));
    let mut refused = open.get("/").await;
    for _ in 0..200 {
        if refused.status != StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        refused = open.get("/").await;
    }
    let to_grpc = grpc.send(get("/", &[("content-type", "application/grpc")])).await;

    assert_eq!((refused.status.as_u16(), refused.body.as_str()), (503, "envoy overloaded"));
    assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
    assert_eq!((to_grpc.status.as_u16(), to_grpc.header("grpc-status")), (200, Some("14")));
    assert_eq!(bytes(lab.address, b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await, "", "closed at once");
    assert!(shed() >= 2, "{}", shed());
    drop(std::hint::black_box(ballast));
    let mut answer = String::new();
    for _ in 0..200 {
        answer = bytes(lab.address, b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await;
        if !answer.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
}
