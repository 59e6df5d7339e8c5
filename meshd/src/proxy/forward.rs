//! Sending a request to an endpoint of its cluster, and again where the rules say so.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Response};
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{Balancer, Cluster, Endpoint, RetryPolicy, UpstreamProtocol, Via};
use mesh_core::resilience::outlier::Answer;
use mesh_core::resilience::retry::{self, Attempt, Decision};
use mesh_core::resilience::{Failure, Flag, Outcome, breaker};

use super::body::{Inflow, Outgoing, Source};
use super::exchange::{Exchange, Guards, over};
use super::interim::Interim;
use super::request::{self, Head};
use super::tunnel::Tunnelled;
use super::upstream::{Ends, Lease, Opening, Pool};
use super::worker::{Caller, Chance, View, Worker};
use super::{inbound, passthrough::Place, tunnel};

/// A request to be sent, and how.
pub(crate) struct Sending<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) view: &'a View,
    pub(crate) caller: &'a Rc<Caller>,
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) policy: &'a RetryPolicy,
    pub(crate) timeout: Option<Duration>,
    /// From when the timeout counts: after a delay on purpose.
    pub(crate) began: Instant,
    pub(crate) head: Head,
    /// Makes the head's fields once more, for a try after the first: that one takes those of `head`, uncopied.
    pub(crate) again: &'a dyn Fn() -> Option<HeaderMap>,
    pub(crate) source: Option<Rc<Source>>,
    pub(crate) hash: Option<u64>,
    /// Tells the caller what an application says before its answer, where it can be told.
    pub(crate) interim: Option<Interim>,
    /// Where the caller is.
    pub(crate) peer: std::net::SocketAddr,
    /// Where the connection was going, for passthrough.
    pub(crate) destination: Option<std::net::SocketAddr>,
    /// Our own address that it came to.
    pub(crate) here: Option<std::net::SocketAddr>,
}

/// An endpoint's answer.
pub(crate) struct Answered {
    pub(crate) response: Response<Inflow>,
    pub(crate) lease: Lease,
    pub(crate) guards: Guards,
}

/// Sends it until there is an answer to pass on. Counts what happens into the exchange.
pub(crate) async fn run(sending: &mut Sending<'_>, exchange: &mut Exchange) -> Result<Answered, Failure> {
    let permit = breaker::admit_request(sending.cluster).map_err(|_| Failure::Overflow)?;
    breaker::note_request(sending.cluster, sending.worker.now());
    let mut current = None;
    let (timeout, began) = (sending.timeout, sending.began);
    let (worker, cluster, source) = (sending.worker, sending.cluster, sending.source.clone());
    let result = {
        // Polled where it was made: moving a future copies all of its states.
        let mut attempts = pin!(attempts(sending, exchange, &mut current));
        match timeout {
            None => attempts.await,
            Some(limit) => tokio::select! {
                biased;
                result = attempts.as_mut() => result,
                () = over(source.as_deref(), began, limit) => Err(Failure::RouteTimeout),
            },
        }
    };
    if let (Err(Failure::RouteTimeout), Some(endpoint)) = (&result, current) {
        worker.record(cluster, endpoint, Answer::Timeout);
    }
    let mut answered = result?;
    answered.guards.request = Some(permit);
    Ok(answered)
}

async fn attempts<'a>(
    sending: &mut Sending<'a>,
    exchange: &mut Exchange,
    current: &mut Option<&'a Endpoint>,
) -> Result<Answered, Failure> {
    let mut tried = Tried::default();
    let (mut retry_permit, mut anew) = (None, false);
    loop {
        let Some((endpoint, pool)) = choose(sending, &tried, exchange) else {
            return Err(Failure::NoEndpoint);
        };
        *current = endpoint.or(*current);
        exchange.edge = Some(pool.edge.clone());
        exchange.answered_by(&pool.via, pool.http2);
        exchange.attempts += 1;
        let in_flight = endpoint.map(|endpoint| endpoint.state.enter());
        let result = attempt(sending, &pool, (exchange.attempts, exchange.retries)).await;
        let outcome = match &result {
            Ok((response, lease)) => {
                exchange.sent_from(|| lease.local_address());
                Outcome::of_answer(response.status(), response.headers())
            }
            Err(failure) => {
                exchange.not_connected(*failure, &pool);
                Outcome::Failed(*failure)
            }
        };
        if let Some(endpoint) = endpoint {
            record(sending, endpoint, outcome);
        }
        let replayable = sending.source.as_ref().is_none_or(|source| source.replayable());
        let response_begun = sending.interim.as_ref().is_some_and(Interim::has_told);
        let attempt = Attempt { outcome, retries: exchange.retries, anew, response_begun, replayable };
        let mut again = false;
        match retry::decide(sending.policy, &attempt) {
            Decision::Enough => {}
            Decision::Anew => {
                anew = true;
                // Others are better, where there are any: not everybody who leaves has a successor.
                tried.endpoints.extend(endpoint.map(|endpoint| endpoint.id.clone()));
                continue;
            }
            Decision::LimitReached => exchange.raise(Flag::UpstreamRetryLimitExceeded),
            Decision::Again => {
                // A retry that is over counts no more, also when the next is its own.
                drop(retry_permit.take());
                match breaker::admit_retry(sending.cluster) {
                    Ok(permit) => (again, retry_permit) = (true, Some(permit)),
                    Err(_) => exchange.raise(Flag::UpstreamOverflow),
                }
            }
        }
        if !again {
            let (response, lease) = result?;
            let guards = Guards { retry: retry_permit, in_flight, ..Guards::default() };
            return Ok(Answered { response, lease, guards });
        }
        // The connection of an answer that is not wanted must not be kept: its body is unread.
        drop((result, in_flight));
        exchange.retries += 1;
        if let Some(endpoint) = endpoint {
            tried.note(sending.policy, endpoint);
        }
        tokio::time::sleep(retry::backoff(sending.policy, exchange.retries, &mut Chance)).await;
    }
}

/// Endpoints that were tried, as far as the next try goes by it.
#[derive(Default)]
struct Tried {
    endpoints: Vec<Arc<str>>,
    all: Vec<Arc<str>>,
    /// Those whose level of nearness is left alone.
    leave: Vec<Arc<str>>,
}

impl Tried {
    fn note(&mut self, policy: &RetryPolicy, endpoint: &Endpoint) {
        if policy.avoid_previous {
            self.endpoints.push(endpoint.id.clone());
        }
        if policy.other_localities {
            self.all.push(endpoint.id.clone());
            if self.all.len().is_multiple_of(TRIES_A_LEVEL) {
                self.leave.clone_from(&self.all);
            }
        }
    }
}

/// Tries after which their levels are left alone. Istio's `update_frequency` of `previous_priorities`.
const TRIES_A_LEVEL: usize = 2;

/// Picks an endpoint and the pool of connections to it. Passthrough has no endpoint in the Plan.
fn choose<'a>(
    sending: &Sending<'a>,
    tried: &Tried,
    exchange: &mut Exchange,
) -> Option<(Option<&'a Endpoint>, Rc<Pool>)> {
    let Sending { worker, cluster, .. } = sending;
    let direct = match (&cluster.balancer, sending.destination) {
        (Balancer::Passthrough, Some(to)) => Some(Place::Address(to)),
        (Balancer::ByName { port }, _) => Some(Place::Name(sending.head.host()?.into(), *port)),
        _ => None,
    };
    if let Some(place) = direct {
        let direct = worker.passthrough.to(place, cluster.protocol);
        return Some((None, pool(sending, &direct.endpoint, exchange)));
    }
    let (avoid, leave) = (&*tried.endpoints, &*tried.leave);
    let hint = Hint { hash: sending.hash, avoid, leave, destination: sending.destination };
    let endpoint = balance::pick(cluster, &hint, worker.now(), &mut Chance)?;
    Some((Some(endpoint), pool(sending, endpoint, exchange)))
}

fn pool(sending: &Sending<'_>, endpoint: &Endpoint, exchange: &mut Exchange) -> Rc<Pool> {
    let Sending { worker, caller, cluster, .. } = sending;
    let ends = Ends { source: sending.peer, destination: sending.destination, here: sending.here };
    let opening = Opening::of(worker, cluster, endpoint, || sending.head.host().unwrap_or_default(), ends);
    let http2 = speaks_http2(cluster, endpoint, opening.as_ref(), sending.head.version);
    let pool = worker.pools.pool(worker, caller, cluster, endpoint, http2, opening);
    if !exchange.is_inbound {
        let here: (&Worker, &View) = (worker, sending.view);
        exchange.counted = Some(pool.counted(here, caller, (cluster, endpoint), exchange.spoken()));
    }
    pool
}

/// Whether a pool's connections speak HTTP/2: hops do, and applications that want it.
pub(crate) fn speaks_http2(
    cluster: &Cluster,
    endpoint: &Endpoint,
    opening: Option<&Opening>,
    client: http::Version,
) -> bool {
    let is_hop = matches!(endpoint.via, Via::Mesh { .. }) && opening.is_none();
    is_hop || opening.is_some_and(Opening::asks_for_hop) || application_speaks_http2(cluster, client)
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
    (number, retries): (u32, u32),
) -> Result<(Response<Inflow>, Lease), Failure> {
    let limit = sending.policy.per_try_timeout;
    let source = sending.source.clone();
    let mut once = pin!(once(sending, pool, (number, retries)));
    match limit {
        None => once.await,
        Some(limit) => tokio::select! {
            biased;
            result = once.as_mut() => result,
            () = over(source.as_deref(), Instant::now(), limit) => Err(Failure::PerTryTimeout),
        },
    }
}

async fn once(
    sending: &mut Sending<'_>,
    pool: &Rc<Pool>,
    (number, retries): (u32, u32),
) -> Result<(Response<Inflow>, Lease), Failure> {
    let mut lease = pool.checkout(sending.cluster).await?;
    let body = sending.source.as_ref().map_or(Outgoing::Empty, Source::attempt);
    let mut headers = headers(sending, pool, (number, retries)).ok_or(Failure::Protocol)?;
    let is_held = sending.source.as_ref().is_some_and(|source| source.is_held());
    let expects = is_held && !application_speaks_http2(sending.cluster, sending.head.version);
    if pool.is_hop() && (sending.head.upgrade || expects) {
        let request = Tunnelled { head: &sending.head, headers, body, interim: sending.interim.as_ref() };
        return Box::pin(tunnel::over_hop(request, lease)).await;
    }
    if let Some(told) = sending.caller.told.as_ref().filter(|_| pool.is_hop()) {
        headers.insert(request::SOURCE, told.clone());
    }
    if pool.http2
        && let Some(source) = &sending.source
    {
        source.release();
    }
    let mut request = sending.head.request(headers, pool, body).ok_or(Failure::Protocol)?;
    for _ in 0..STALE_CONNECTIONS {
        let unanswered = match lease.send(request, sending.interim.as_ref()).await {
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

/// Returns the headers of one attempt, by its number from 1 and how many retries there were, with this one.
fn headers(sending: &mut Sending<'_>, pool: &Pool, (number, retries): (u32, u32)) -> Option<HeaderMap> {
    let mut headers =
        if number == 1 { std::mem::take(&mut sending.head.headers) } else { (sending.again)()? };
    if retries > 0 {
        headers.insert(request::ATTEMPT_COUNT, request::number(u64::from(retries) + 1));
    }
    if pool.is_hop() && application_speaks_http2(sending.cluster, sending.head.version) {
        headers.insert(request::SPEAK, http::HeaderValue::from_static("h2"));
    }
    Some(headers)
}

/// Tells the balancer what became of an attempt.
fn record(sending: &Sending<'_>, endpoint: &Endpoint, outcome: Outcome) {
    if sending.cluster.outlier.is_none() {
        return;
    }
    if let Some(answer) = outcome.about_endpoint() {
        sending.worker.record(sending.cluster, endpoint, answer);
    }
}

/// Idle connections that may turn out dead one after the other: after a restart of an application all of them are.
const STALE_CONNECTIONS: usize = 64;
