//! Opaque connections: an endpoint by weight, then bytes both ways until both ends are done.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, Uri};
use mesh_core::balance::{self, Hint};
use mesh_core::endpoint::InFlight;
use mesh_core::plan::{Balancer, Cluster, Doors, Endpoint, LocalInstance, TcpRules, Via};
use mesh_core::resilience::outlier::Answer;
use mesh_core::resilience::{Failure, Flag, Flags, Outcome, breaker};
use mesh_core::route;
use tokio::time::Instant;

use both_ways::BothWays;
pub(crate) use told::{Line, Whose};

use super::detour;
use super::measure::{self, Counted, OpenConnection};
use super::outbound::{Connection, Opaque, Target};
use super::passthrough::Place;
use super::request::{INSTANCE, SERVER_NAME};
use super::upstream::connect::{self, Avoid, ConnectError};
use super::upstream::{Ends, Lease, Opening, Pool};
use super::wire::{Stream, Wire};
use super::worker::{Caller, Chance, View, Worker};
use crate::telemetry::{Counters, Spoken};
use crate::transport::socket;

mod both_ways;
mod told;

/// Carries a connection to where it goes, and its end. `name` is the server that a TLS caller asks for.
pub(crate) async fn carry(
    connection: &Connection,
    view: Rc<View>,
    mut wire: Wire,
    opaque: Opaque,
    name: Option<&str>,
) {
    let worker = &connection.worker;
    Counters::add(&worker.shard.counters.tcp_connections_total);
    let Some(caller) = connection.caller(&view) else { return };
    // A connection may outlive many Plans.
    drop(view);
    let destination = match &connection.target {
        Target::Address(address) => Some(*address),
        _ => None,
    };
    let cluster = match (&opaque, opaque.rules()) {
        (Opaque::Direct(place), _) => {
            let protocol = mesh_core::plan::UpstreamProtocol::Tcp;
            Some(worker.passthrough.to(place.clone(), protocol).cluster.clone())
        }
        (Opaque::Bounded(cluster), _) => Some(cluster.clone()),
        (_, Some(rules)) => choose(rules, destination),
        _ => None,
    };
    let inbound = match &connection.target {
        Target::Local { instance, .. } => Some((measure::From::default(), instance.clone())),
        _ => None,
    };
    let whose = match &inbound {
        Some((from, instance)) => {
            Whose::Application(instance.as_ref().map(|instance| &instance.telling), from)
        }
        None => Whose::Caller(&caller.telling),
    };
    let mut line = Line::begin(worker, &whose, (connection.peer, connection.local), name);
    let Some(cluster) = cluster else {
        let service = refused_as(&opaque);
        if let Some(line) = &mut line {
            line.goes_to(None, &service);
            line.raise(Flag::NoRoute);
        }
        not_reached(worker, &caller, service, Flag::NoRoute.into());
        tracing::debug!(peer = %connection.peer, target = ?connection.target, "no rule for a connection: closed");
        return;
    };
    let avoid = match connection.target {
        Target::Port(port) if Doors::is_seat(connection.caller) => Avoid::Door(port),
        _ => Avoid::Listeners,
    };
    let ends = Ends { source: connection.peer, destination, here: connection.local };
    let mut wanted = Wanted { ends, name, avoid, inbound, line };
    // On the heap while it lasts: connections are many, and most of them idle.
    match Box::pin(reach(worker, &caller, &cluster, &mut wanted)).await {
        Ok(reached) => join(worker, &mut wire, reached).await,
        Err(failure) => {
            if wanted.inbound.is_none() {
                not_reached(worker, &caller, cluster.name.host.clone(), told::flags_of(failure));
            }
            tracing::debug!(cluster = %cluster.name, ?failure, "connection closed: no endpoint reached");
        }
    }
}

/// Counts a connection that came to nothing.
fn not_reached(worker: &Worker, caller: &Caller, service: Arc<str>, flags: Flags) {
    drop(Counted::unreached(worker, caller, service, Spoken::Tcp, flags).opened());
}

/// The service under which a connection is counted for which there is no cluster.
fn refused_as(opaque: &Opaque) -> Arc<str> {
    match opaque {
        Opaque::Service(service) => service.host.as_str().into(),
        Opaque::Tls(host) => host.host.as_str().into(),
        _ => "BlackHoleCluster".into(),
    }
}

/// Picks the cluster of the first rule that applies. `None`: none does, or its destination is not there.
fn choose(rules: &TcpRules, destination: Option<SocketAddr>) -> Option<Arc<Cluster>> {
    let rule = route::connection::rule(rules, destination.map(|to| to.ip()))?;
    let total = rule.destinations.iter().map(|destination| destination.weight).sum();
    route::split(&rule.destinations, total, &mut Chance).cluster.clone()
}

/// What a connection asks for.
pub(crate) struct Wanted<'a> {
    ends: Ends,
    /// The server's name, where TLS says it.
    name: Option<&'a str>,
    /// What it must not lead to.
    avoid: Avoid,
    /// Of one to an application of this host: who calls, and which instance it is.
    inbound: Option<(measure::From, Option<Arc<LocalInstance>>)>,
    /// Its line in the access log.
    line: Option<Box<Line>>,
}

impl Wanted<'_> {
    /// A connection to an instance of this host.
    pub(crate) fn to_instance(
        source: SocketAddr,
        from: measure::From,
        instance: Option<Arc<LocalInstance>>,
        line: Option<Box<Line>>,
    ) -> Self {
        let ends = Ends { source, destination: None, here: None };
        Self { ends, name: None, avoid: Avoid::Listeners, inbound: Some((from, instance)), line }
    }

    /// Finds where it is counted.
    fn counted(&self, worker: &Worker, caller: &Caller, cluster: &Cluster, endpoint: &Endpoint) -> Counted {
        match &self.inbound {
            Some((from, instance)) => Counted::inbound(worker, from, instance.as_deref(), Spoken::Tcp),
            None => Counted::outbound(worker, caller, cluster, endpoint, Spoken::Tcp),
        }
    }
}

/// An open way to an endpoint, with all that counts it.
pub(crate) struct Reached {
    wire: Wire,
    idle: Option<Duration>,
    longest: Option<Duration>,
    /// Where its lane goes when it is free again.
    lanes: Option<Rc<Pool>>,
    counted: Option<Rc<OpenConnection>>,
    /// Its line in the access log.
    line: Option<Box<Line>>,
    _lease: Option<Lease>,
    _in_flight: Option<InFlight>,
    _connection: breaker::Permit,
}

/// Opens a way to an endpoint. One that cannot be reached ends it: a connection is not tried again elsewhere.
///
/// Source: Envoy's `max_connect_attempts` of a TCP proxy, 1 unless it is set; Istio does not set it.
pub(crate) async fn reach(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    wanted: &mut Wanted<'_>,
) -> Result<Reached, Failure> {
    if let Some(line) = &mut wanted.line {
        line.goes_to(Some(cluster), "");
    }
    let mut reason = None;
    match way(worker, caller, cluster, wanted, &mut reason).await {
        Ok(mut reached) => {
            reached.line = wanted.line.take();
            Ok(reached)
        }
        Err(failure) => {
            if let Some(line) = &mut wanted.line {
                line.failed(failure, reason);
            }
            Err(failure)
        }
    }
}

/// Opens a way to an endpoint; `reason`: why its transport came to nothing, in words.
async fn way(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    wanted: &mut Wanted<'_>,
    reason: &mut Option<String>,
) -> Result<Reached, Failure> {
    let addressed = cluster.addressed();
    let cluster = addressed.as_ref().unwrap_or(cluster);
    let permit = breaker::admit_connection(cluster).map_err(|_| Failure::Overflow)?;
    let destination = wanted.ends.destination;
    let place = match (&cluster.balancer, destination) {
        (Balancer::Passthrough, Some(to)) => Some(Place::Address(to)),
        (Balancer::ByName { port }, _) => {
            Some(Place::Name(wanted.name.ok_or(Failure::NoEndpoint)?.into(), *port))
        }
        _ => None,
    };
    let direct = place.map(|place| worker.passthrough.to(place, cluster.protocol));
    let hint = Hint { hash: source_hash(cluster, wanted.ends.source), destination, ..Hint::default() };
    let endpoint = match &direct {
        Some(direct) => Some(&direct.endpoint),
        None => balance::pick(cluster, &hint, worker.now(), &mut Chance),
    };
    let endpoint = endpoint.ok_or(Failure::NoEndpoint)?;
    let in_flight = endpoint.state.enter();
    if let Some(line) = &mut wanted.line {
        line.chosen(&endpoint.via);
    }
    let opened = open(worker, caller, cluster, endpoint, (wanted, reason)).await;
    let answer = match &opened {
        Ok(_) => Some(Answer::Status(200)),
        Err(failure) => Outcome::Failed(*failure).about_endpoint(),
    };
    if let Some(answer) = answer {
        worker.record(cluster, endpoint, answer);
    }
    let Opened { wire, lanes, lease } = opened?;
    if let Some(line) = &mut wanted.line {
        let of_hop = || lease.as_ref()?.local_address();
        line.sent_from(wire.local_address().or_else(of_hop));
    }
    let counted = Some(Rc::new(wanted.counted(worker, caller, cluster, endpoint).opened()));
    Ok(Reached {
        wire,
        counted,
        idle: cluster.limits.tcp_idle_timeout,
        longest: cluster.limits.max_connection_duration,
        lanes,
        line: None,
        _lease: lease,
        _in_flight: Some(in_flight),
        _connection: permit,
    })
}

/// Opens a way to an address that stands for a cluster, within its limits.
pub(crate) async fn reach_address(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    address: SocketAddr,
) -> Result<Reached, Failure> {
    let permit = breaker::admit_connection(cluster).map_err(|_| Failure::Overflow)?;
    let descriptor = connect::descriptor(worker).await.map_err(|_| Failure::Overflow)?;
    let connected = socket::connect_tcp(address, worker.settings.socket);
    let stream = match tokio::time::timeout(cluster.limits.connect_timeout, connected).await {
        Ok(stream) => stream.map_err(|_| Failure::Connect)?,
        Err(_) => return Err(Failure::ConnectTimeout),
    };
    Ok(Reached {
        wire: Wire::new(Stream::Tcp(stream)).holding(descriptor),
        counted: None,
        line: None,
        idle: cluster.limits.tcp_idle_timeout,
        longest: cluster.limits.max_connection_duration,
        lanes: None,
        _lease: None,
        _in_flight: None,
        _connection: permit,
    })
}

fn source_hash(cluster: &Cluster, source: SocketAddr) -> Option<u64> {
    let (Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. }) = &cluster.balancer else {
        return None;
    };
    balance::connection_key(policy, source.ip())
}

/// A way to an endpoint, and what it belongs to.
struct Opened {
    wire: Wire,
    lanes: Option<Rc<Pool>>,
    lease: Option<Lease>,
}

async fn open(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    endpoint: &Endpoint,
    (wanted, reason): (&Wanted<'_>, &mut Option<String>),
) -> Result<Opened, Failure> {
    // differs: Envoy names no server where nobody speaks HTTP, and checks no name.
    let host = || match cluster.balancer {
        Balancer::ByName { .. } => wanted.name.unwrap_or_default(),
        _ => &*cluster.name.host,
    };
    let opening = Opening::of(worker, cluster, endpoint, host, wanted.ends);
    let opened = async {
        let mut opened = if matches!(endpoint.via, Via::Mesh { .. }) {
            let pool = worker.pools.pool(worker, caller, cluster, endpoint, true, None);
            across(worker, pool, cluster).await?
        } else {
            let wire = connect::connect(worker, &endpoint.via, None, cluster, wanted.avoid).await?;
            Opened { wire, lanes: None, lease: None }
        };
        if let Some(opening) = opening {
            opened.wire = opening.say(worker, caller.identity.as_deref(), None, opened.wire).await?;
        }
        if let Some(detour) = &cluster.detour {
            opened.wire = detour::take(detour, opened.wire).await.map_err(ConnectError::Opening)?;
        }
        Ok(opened)
    };
    match tokio::time::timeout(cluster.limits.connect_timeout, opened).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => {
            connect::tell(cluster, &endpoint.via, &error);
            *reason = wanted.line.as_ref().and_then(|_| error.reason());
            Err(match error {
                ConnectError::Under(failure) => failure,
                ConnectError::NoDescriptor => Failure::Overflow,
                _ => Failure::Connect,
            })
        }
        Err(_) => Err(Failure::ConnectTimeout),
    }
}

/// Opens a way to an instance on another host: a lane, else a tunnel through the shared connection.
async fn across(worker: &Worker, pool: Rc<Pool>, cluster: &Arc<Cluster>) -> Result<Opened, ConnectError> {
    // A lane names an instance and no more.
    if pool.server_name().is_none()
        && let Some(lane) = pool.lane(worker, cluster).await?
    {
        return Ok(Opened { wire: Wire::new(Stream::Lane(lane)), lanes: Some(pool), lease: None });
    }
    let under = || async { tunnel(pool.checkout(cluster).await?).await };
    let mut opened = under().await;
    // The other host was leaving: where it handed over, its successor is there already.
    if opened.as_ref().is_err_and(|failure| *failure == Failure::GoAway) {
        opened = under().await;
    }
    let (wire, lease) = opened.map_err(ConnectError::Under)?;
    Ok(Opened { wire, lanes: None, lease: Some(lease) })
}

/// Opens a tunnel to an instance on another host, through a stream of the shared connection.
pub(crate) async fn tunnel(lease: Lease) -> Result<(Wire, Lease), Failure> {
    let (authority, instance) = lease.pool().address();
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::try_from(authority).map_err(|_| Failure::Protocol)?;
    let instance = HeaderValue::from_str(&instance).map_err(|_| Failure::Protocol)?;
    request.headers_mut().insert(INSTANCE, instance);
    if let Some(name) = lease.pool().server_name() {
        request.headers_mut().insert(SERVER_NAME, name);
    }
    let response = lease.tunnel(request).await?;
    if response.status() != StatusCode::OK {
        return Err(super::inbound::failure_of(response.headers()).unwrap_or(Failure::Connect));
    }
    Ok((response.into_body(), lease))
}

/// Copies both ways until both ends are done, nothing was said for too long, or the connection is as old as it may be.
/// Each direction can end alone.
pub(crate) async fn join(worker: &Worker, caller: &mut Wire, mut reached: Reached) {
    let mut copy = BothWays::new(reached.counted.take());
    let (spoke, mut line) = (copy.spoke(), reached.line.take());
    let copied = tokio::select! {
        copied = copy.run(caller, &mut reached.wire) => copied,
        () = silence(&spoke, reached.idle) => {
            tracing::debug!("connection closed: silent for its idle timeout");
            Err(io::ErrorKind::TimedOut.into())
        }
        () = after(reached.longest) => {
            tracing::debug!("connection closed: as old as maxConnectionDuration");
            if let Some(line) = &mut line {
                line.raise(Flag::DurationTimeout);
            }
            Err(io::ErrorKind::TimedOut.into())
        }
    };
    let (received, sent) = copy.counts();
    if let Some(line) = &mut line {
        line.passed(received, sent);
    }
    worker.shard.counters.tcp_received_bytes_total.fetch_add(received, Ordering::Relaxed);
    worker.shard.counters.tcp_sent_bytes_total.fetch_add(sent, Ordering::Relaxed);
    if let (Ok(()), Some(pool), Some(lane)) = (copied, reached.lanes, reached.wire.into_lane()) {
        pool.park(lane);
    }
}

/// Waits until nothing was said for so long.
async fn silence(spoke: &Cell<Instant>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let left = limit.saturating_sub(spoke.get().elapsed());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}
