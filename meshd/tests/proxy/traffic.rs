//! Many requests: shares, Plans swapped under load, callers that leave, draining.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use meshd::proxy::{Declared, Settings};

use super::lab::*;
use super::plan::*;

/// Bounds that a binomial share leaves with odds of about 10⁻⁶ (4.9 standard deviations).
fn is_plausible(hits: u64, of: u64, share: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let (hits, of) = (hits as f64, of as f64);
    (hits - of * share).abs() <= 4.9 * (of * share * (1.0 - share)).sqrt() + 1.0
}

#[tokio::test]
async fn weights_are_shares_of_the_requests() {
    let (one, two) = (Backend::http1("v1").await, Backend::http1("v2").await);
    let destinations = vec![
        to(90, cluster("v1", vec![local(one.address)])),
        to(10, cluster("v2", vec![local(two.address)])),
    ];
    let lab = start(plan(vec![("reviews", vec![forwarding(forward(destinations))])]));
    let mut client = Client::new(lab.address).await;

    for _ in 0..2_000 {
        assert_eq!(client.get("/").await.status, StatusCode::OK);
    }

    assert!(is_plausible(two.hits() as u64, 2_000, 0.1), "{} of 2000 at 10 %", two.hits());
    assert_eq!(one.hits() + two.hits(), 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_are_swapped_under_load_without_a_failed_request() {
    let backends = [Backend::http1("v1").await, Backend::http1("v2").await];
    let plan_to = |backend: &Backend| {
        plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])])
    };
    let settings = Settings { workers: 2, ..settings() };
    let lab = start_with(plan_to(&backends[0]), service(Declared::Http), settings, &no_credentials());
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (address, done) = (lab.address, done.clone());
        clients.spawn(async move {
            let mut client = Client::new(address).await;
            let mut count = 0_u64;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client.get("/").await.status, StatusCode::OK);
                count += 1;
            }
            count
        });
    }

    let mut round = 0;
    until("both were used under two hundred Plans", || {
        round += 1;
        lab.plans.store(Arc::new(plan_to(&backends[round % 2])));
        round > 200 && backends.iter().all(|backend| backend.hits() > 20)
    })
    .await;
    done.store(true, Ordering::Relaxed);

    let sent: u64 = clients.join_all().await.into_iter().sum();
    let rows = lab.stats.snapshot();
    assert_eq!(
        rows.iter().map(|row| (row.requests, row.failures)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (sent, 0)
    );
}

#[tokio::test]
async fn a_caller_that_leaves_is_told_once_and_its_request_given_up() {
    let backend = Backend::http1("v1").await;
    let pool = cluster("reviews", vec![local(backend.address)]);
    let state = pool.state.clone();
    let lab = start(plan(vec![("reviews", vec![simple(pool)])]));
    let mut client = Client::new(lab.address).await;

    let asked = meshd::task::spawn("test", async move {
        client.raw(get("/", &[("x-want-delay-ms", "60000")])).await.is_ok()
    });
    until("it is under way", || backend.hits() == 1).await;
    asked.abort();

    until("it is told", || {
        lab.stats
            .prometheus(meshd::telemetry::Exposition::Prometheus)
            .contains("response_code=\"0\",response_flags=\"DC\",grpc_response_status=\"\"} 1")
    })
    .await;
    until("it is over", || state.requests.load(Ordering::Relaxed) == 0).await;
    assert_eq!(lab.stats.snapshot()[0].requests, 1);
}

#[tokio::test]
async fn draining_lets_a_request_finish_and_takes_no_other() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let idle = Client::new(lab.address).await;
    let address = lab.address;
    let slow = meshd::task::spawn("test", once(address, get("/", &[("x-want-delay-ms", "300")])));
    until("it is under way", || backend.hits() == 1).await;

    let left = lab.proxy.drain(Duration::from_secs(8)).await;

    assert_eq!(slow.await.expect("an answer").status, StatusCode::OK);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_eq!(left, 0);
    drop(idle);
}
