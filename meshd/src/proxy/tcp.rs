//! Opaque connections: an endpoint by weight, then bytes both ways until both ends are done.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Method, Request, StatusCode, Uri};
use mesh_core::balance::{self, Hint};
use mesh_core::endpoint::InFlight;
use mesh_core::plan::{Balancer, Cluster, Endpoint, TcpRules, Via};
use mesh_core::resilience::outlier::{self, Answer};
use mesh_core::resilience::{Failure, breaker};
use mesh_core::route;

use super::body::Outgoing;
use super::outbound::{Connection, Opaque, Target};
use super::passthrough::Place;
use super::request::INSTANCE;
use super::upstream::{Lease, connect};
use super::wire::{Stream, Wire};
use super::worker::{Caller, Chance, View, Worker};
use crate::telemetry::Counters;

/// Carries a connection to where it goes, and its end.
pub(crate) async fn carry(connection: &Connection, view: &View, wire: Wire, opaque: Opaque) {
    let worker = &connection.worker;
    Counters::add(&worker.shard.counters.tcp_connections_total);
    let Some(caller) = connection.caller(view) else { return };
    let destination = match &connection.target {
        Target::Address(address) => Some(*address),
        _ => None,
    };
    let cluster = match (&opaque, opaque.rules()) {
        (Opaque::Direct(place), _) => {
            let protocol = mesh_core::plan::UpstreamProtocol::Tcp;
            Some(worker.passthrough.to(place.clone(), protocol).cluster.clone())
        }
        (_, Some(rules)) => choose(rules, destination),
        _ => None,
    };
    let Some(cluster) = cluster else {
        tracing::debug!(peer = %connection.peer, target = ?connection.target, "no rule for a connection: closed");
        return;
    };
    match reach(worker, &caller, &cluster, destination).await {
        Ok(reached) => join(worker, wire, reached).await,
        Err(failure) => {
            tracing::debug!(cluster = %cluster.name, ?failure, "connection closed: no endpoint reached");
        }
    }
}

/// Picks the cluster of the first rule that applies. `None`: none does, or its destination is not there.
fn choose(rules: &TcpRules, destination: Option<SocketAddr>) -> Option<Arc<Cluster>> {
    let rule = rules.rules.iter().find(|rule| {
        rule.destination_subnets.is_empty()
            || destination.is_some_and(|to| rule.destination_subnets.iter().any(|net| net.contains(&to.ip())))
    })?;
    let total = rule.destinations.iter().map(|destination| destination.weight).sum();
    route::split(&rule.destinations, total, &mut Chance).cluster.clone()
}

/// An open way to an endpoint, with all that counts it.
pub(crate) struct Reached {
    wire: Wire,
    _lease: Option<Lease>,
    _in_flight: Option<InFlight>,
    _connection: breaker::Permit,
}

/// Opens a way to an endpoint; where one cannot be reached, to another, a few times.
pub(crate) async fn reach(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    destination: Option<SocketAddr>,
) -> Result<Reached, Failure> {
    let permit = breaker::admit_connection(cluster).map_err(|_| Failure::Overflow)?;
    let mut tried = Vec::new();
    let mut last = Failure::NoEndpoint;
    while tried.len() < MAX_ATTEMPTS {
        let direct;
        let endpoint = match (&cluster.balancer, destination) {
            (Balancer::Passthrough, Some(to)) => {
                direct = worker.passthrough.to(Place::Address(to), cluster.protocol);
                Some(&direct.endpoint)
            }
            _ => balance::pick(
                cluster,
                &Hint { hash: None, avoid: &tried, destination },
                worker.now(),
                &mut Chance,
            ),
        };
        let Some(endpoint) = endpoint.filter(|endpoint| !tried.contains(&endpoint.id)) else {
            return Err(last);
        };
        let in_flight = endpoint.state.enter();
        let opened = open(worker, caller, cluster, endpoint).await;
        let answer = if opened.is_ok() { Answer::Status(200) } else { Answer::LocalFailure };
        outlier::record(cluster, endpoint, answer, worker.now());
        match opened {
            Ok((wire, lease)) => {
                return Ok(Reached { wire, _lease: lease, _in_flight: Some(in_flight), _connection: permit });
            }
            Err(failure) => last = failure,
        }
        tried.push(endpoint.id.clone());
    }
    Err(last)
}

async fn open(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
) -> Result<(Wire, Option<Lease>), Failure> {
    if matches!(endpoint.via, Via::Mesh { .. }) {
        let lease = worker.pools.pool(worker, caller, cluster, endpoint, true).checkout(cluster).await?;
        let (wire, lease) = tunnel(lease).await?;
        return Ok((wire, Some(lease)));
    }
    let opened = connect::connect(worker, &endpoint.via, None, cluster);
    match tokio::time::timeout(cluster.limits.connect_timeout, opened).await {
        Ok(Ok(wire)) => Ok((wire, None)),
        Ok(Err(error)) => {
            tracing::debug!(cluster = %cluster.name, %error, "cannot reach an endpoint");
            Err(Failure::Connect)
        }
        Err(_) => Err(Failure::ConnectTimeout),
    }
}

/// Opens a tunnel to an instance on another host, through a stream of the shared connection.
pub(crate) async fn tunnel(mut lease: Lease) -> Result<(Wire, Lease), Failure> {
    let (authority, instance) = lease.pool().address();
    let mut request = Request::new(Outgoing::Empty);
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::try_from(authority).map_err(|_| Failure::Protocol)?;
    let instance = HeaderValue::from_str(&instance).map_err(|_| Failure::Protocol)?;
    request.headers_mut().insert(INSTANCE, instance);
    let mut response = lease.send(request).await.map_err(|unanswered| unanswered.failure)?;
    if response.status() != StatusCode::OK {
        return Err(super::inbound::failure_of(response.headers()).unwrap_or(Failure::Connect));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|_| Failure::ConnectionLost)?;
    Ok((Wire::new(Stream::Tunnel(hyper_util::rt::TokioIo::new(upgraded))), lease))
}

/// Copies both ways until both ends are done. Each direction can end alone; there is no idle limit, as in Istio.
pub(crate) async fn join(worker: &Worker, mut caller: Wire, mut reached: Reached) {
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut reached.wire, BUFFER, BUFFER).await;
    if let Ok((received, sent)) = copied {
        worker.shard.counters.tcp_received_bytes_total.fetch_add(received, Ordering::Relaxed);
        worker.shard.counters.tcp_sent_bytes_total.fetch_add(sent, Ordering::Relaxed);
    }
}

/// Endpoints tried for one connection.
const MAX_ATTEMPTS: usize = 3;
/// One direction's buffer: a few full TLS records.
const BUFFER: usize = 32 * 1024;
