//! Sending a request to an endpoint of its cluster, and again where the rules say so.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response};
use hyper::body::Incoming;
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{Balancer, Cluster, Endpoint, RetryPolicy, UpstreamProtocol, Via};
use mesh_core::resilience::outlier::{self, Answer};
use mesh_core::resilience::retry::{self, Attempt, Decision};
use mesh_core::resilience::{Failure, Flag, Outcome, breaker, grpc};

use super::body::{Outgoing, Source};
use super::exchange::{Exchange, Guards};
use super::request::{self, Head};
use super::upstream::{Lease, Pool};
use super::worker::{Caller, Chance, Worker};
use super::{inbound, passthrough::Place, tunnel};

/// A request to be sent, and how.
pub(crate) struct Sending<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) caller: &'a Rc<Caller>,
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) timeout: Option<Duration>,
    pub(crate) head: Head,
    pub(crate) source: Option<Rc<Source>>,
    pub(crate) hash: Option<u64>,
    /// Where the connection was going, for passthrough.
    pub(crate) destination: Option<std::net::SocketAddr>,
}

/// An endpoint's answer.
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
    pub(crate) guards: Guards,
}

/// Sends it until there is an answer to pass on. Counts what happens into the exchange.
pub(crate) async fn run(sending: &mut Sending<'_>, exchange: &mut Exchange) -> Result<Answered, Failure> {
    let permit = breaker::admit_request(sending.cluster).map_err(|_| Failure::Overflow)?;
    let mut current = None;
    let timeout = sending.timeout;
    let (worker, cluster, source) = (sending.worker, sending.cluster, sending.source.clone());
    let result = {
        // Polled where it was made: moving a future copies all of its states.
        let mut attempts = pin!(attempts(sending, exchange, &mut current));
        match timeout {
            None => attempts.await,
            Some(limit) => tokio::select! {
                biased;
                result = attempts.as_mut() => result,
                () = over(source.as_deref(), limit) => Err(Failure::RouteTimeout),
            },
        }
    };
    if let (Err(Failure::RouteTimeout), Some(endpoint)) = (&result, current) {
        outlier::record(cluster, endpoint, Answer::Timeout, worker.now());
    }
    let mut answered = result?;
    answered.guards.request = Some(permit);
    Ok(answered)
}

/// Waits until the request is complete and the limit has passed since.
pub(crate) async fn over(source: Option<&Source>, limit: Duration) {
    if let Some(source) = source {
        source.ended().await;
    }
    tokio::time::sleep(limit).await;
}

async fn attempts<'a>(
    sending: &mut Sending<'a>,
    exchange: &mut Exchange,
    current: &mut Option<&'a Endpoint>,
) -> Result<Answered, Failure> {
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut retry_permit = None;
    loop {
        let Some((endpoint, pool)) = choose(sending, &tried) else { return Err(Failure::NoEndpoint) };
        *current = endpoint.or(*current);
        exchange.edge = Some(pool.edge.clone());
        exchange.answered_by(&pool.via);
        let in_flight = endpoint.map(|endpoint| endpoint.state.enter());
        let result = attempt(sending, &pool, exchange.retries).await;
        let outcome = match &result {
            Ok((response, _)) => Outcome::of_answer(response.status(), response.headers()),
            Err(failure) => Outcome::Failed(*failure),
        };
        if let Some(endpoint) = endpoint {
            record(sending, endpoint, outcome);
        }
        let replayable = sending.source.as_ref().is_none_or(|source| source.replayable());
        let attempt = Attempt { outcome, retries: exchange.retries, response_begun: false, replayable };
        let mut again = false;
        match retry::decide(sending.policy, &attempt) {
            Decision::Enough => {}
            Decision::LimitReached => exchange.raise(Flag::UpstreamRetryLimitExceeded),
            Decision::Again => match breaker::admit_retry(sending.cluster) {
                Ok(permit) => (again, retry_permit) = (true, Some(permit)),
                Err(_) => exchange.raise(Flag::UpstreamOverflow),
            },
        }
        if !again {
            let (response, lease) = result?;
            let guards = Guards { retry: retry_permit, in_flight, ..Guards::default() };
            return Ok(Answered { response, lease, guards });
        }
        // The connection of an answer that is not wanted must not be kept: its body is unread.
        drop((result, in_flight));
        exchange.retries += 1;
        if let Some(endpoint) = endpoint.filter(|_| sending.policy.avoid_previous) {
            tried.push(endpoint.id.clone());
        }
        tokio::time::sleep(retry::backoff(sending.policy, exchange.retries, &mut Chance)).await;
    }
}

/// Picks an endpoint and the pool of connections to it. Passthrough has no endpoint in the Plan.
fn choose<'a>(sending: &Sending<'a>, tried: &[Arc<str>]) -> Option<(Option<&'a Endpoint>, Rc<Pool>)> {
    let Sending { worker, caller, cluster, .. } = sending;
    if let (Balancer::Passthrough, Some(destination)) = (&cluster.balancer, sending.destination) {
        let direct = worker.passthrough.to(Place::Address(destination), cluster.protocol);
        let http2 = speaks_http2(cluster, &direct.endpoint, sending.head.version);
        return Some((None, worker.pools.pool(worker, caller, cluster, &direct.endpoint, http2)));
    }
    let hint = Hint { hash: sending.hash, avoid: tried, destination: sending.destination };
    let endpoint = balance::pick(cluster, &hint, worker.now(), &mut Chance)?;
    let http2 = speaks_http2(cluster, endpoint, sending.head.version);
    Some((Some(endpoint), worker.pools.pool(worker, caller, cluster, endpoint, http2)))
}

fn speaks_http2(cluster: &Cluster, endpoint: &Endpoint, client: http::Version) -> bool {
    matches!(endpoint.via, Via::Mesh { .. }) || application_speaks_http2(cluster, client)
}

fn application_speaks_http2(cluster: &Cluster, client: http::Version) -> bool {
    match cluster.protocol {
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::AsClient => client >= http::Version::HTTP_2,
        UpstreamProtocol::Http1 | UpstreamProtocol::Tcp => false,
    }
}

/// Sends it once, waiting no longer than the per-try timeout.
async fn attempt(
    sending: &mut Sending<'_>,
    pool: &Rc<Pool>,
    retries: u32,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let limit = sending.policy.per_try_timeout;
    let source = sending.source.clone();
    let mut once = pin!(once(sending, pool, retries));
    match limit {
        None => once.await,
        Some(limit) => tokio::select! {
            biased;
            result = once.as_mut() => result,
            () = over(source.as_deref(), limit) => Err(Failure::PerTryTimeout),
        },
    }
}

async fn once(
    sending: &mut Sending<'_>,
    pool: &Rc<Pool>,
    retries: u32,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let mut lease = pool.checkout(sending.cluster).await?;
    let body = sending.source.as_ref().map_or(Outgoing::Empty, Source::attempt);
    let is_last = sending.policy.attempts <= retries;
    let headers = headers(sending, pool, retries, is_last);
    if sending.head.upgrade && pool.is_hop() {
        return Box::pin(tunnel::upgrade_over_hop(&sending.head, headers, lease)).await;
    }
    let mut request = sending.head.request(headers, pool, body).ok_or(Failure::Protocol)?;
    for _ in 0..STALE_CONNECTIONS {
        let unanswered = match lease.send(request).await {
            Ok(response) => {
                // The other host met no application: as if we had met none ourselves.
                let failure = pool.is_hop().then(|| inbound::failure_of(response.headers())).flatten();
                return failure.map_or(Ok((response, lease)), Err);
            }
            Err(unanswered) => unanswered,
        };
        match unanswered.unsent {
            // An idle connection that had died meanwhile: nobody's fault, and nothing was sent.
            Some(unsent) if lease.reused => request = unsent,
            _ => return Err(unanswered.failure),
        }
        drop(lease);
        lease = pool.checkout(sending.cluster).await?;
    }
    Err(Failure::ResetBeforeRequest)
}

/// Returns the headers of one attempt; the last possible one takes them instead of copying.
fn headers(sending: &mut Sending<'_>, pool: &Pool, retries: u32, is_last: bool) -> HeaderMap {
    let mut headers =
        if is_last { std::mem::take(&mut sending.head.headers) } else { sending.head.headers.clone() };
    headers.insert(request::ATTEMPT_COUNT, request::number(u64::from(retries) + 1));
    if pool.is_hop() && application_speaks_http2(sending.cluster, sending.head.version) {
        headers.insert(request::SPEAK, http::HeaderValue::from_static("h2"));
    }
    headers
}

/// Tells the balancer what became of an attempt.
fn record(sending: &Sending<'_>, endpoint: &Endpoint, outcome: Outcome) {
    if sending.cluster.outlier.is_none() {
        return;
    }
    let answer = match outcome {
        Outcome::Answer { grpc_status: Some(status), .. } => Answer::Status(grpc::to_http(status)),
        Outcome::Answer { status, .. } => Answer::Status(status.as_u16()),
        Outcome::Failed(Failure::PerTryTimeout | Failure::RouteTimeout) => Answer::Timeout,
        // Our own limits say nothing about the endpoint.
        Outcome::Failed(Failure::Overflow | Failure::NoEndpoint) => return,
        Outcome::Failed(_) => Answer::LocalFailure,
    };
    let ejected = outlier::record(sending.cluster, endpoint, answer, sending.worker.now());
    if let Some(ejection) = ejected {
        tracing::info!(cluster = %sending.cluster.name, endpoint = %endpoint.id, ?ejection, "endpoint ejected");
    }
}

/// Idle connections that may turn out dead one after the other: after a restart of an application all of them are.
const STALE_CONNECTIONS: usize = 64;
