//! Connections to endpoints: one pool for each caller's identity and endpoint, owned by one worker.
//!
//! A request takes an idle connection, or waits in line while one is opened: the first that is free serves the first
//! that waits. Limits are the cluster's (`core::resilience::breaker`). As Envoy does, a pool without any connection may
//! always open one, and a failed connect fails all who wait, so that they can try elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use hyper::client::conn::TrySendError;
use mesh_core::identity::{Identity, sni};
use mesh_core::plan::{CircuitLimits, Cluster, Endpoint, UpstreamProtocol, UpstreamTls, Via};
use mesh_core::resilience::{Failure, breaker};
use mesh_core::wire::guard;
use tokio::sync::oneshot;

use super::body::{Inflow, Outgoing};
use super::interim::Interim;
use super::measure::Counted;
use super::wire::{Stream, Wire};
use super::worker::{Caller, View, Worker};
use crate::task;
use crate::telemetry::{EdgeCell, Spoken};

use lanes::Lanes;
pub(crate) use opening::{Ends, Opening};
pub(crate) use pools::Pools;
use stand_in::Replacing;
pub(crate) use streams::Streams;

pub(crate) mod connect;
mod http2;
mod lanes;
mod opening;
mod pools;
mod stand_in;
mod streams;

type Http1 = hyper::client::conn::http1::SendRequest<Outgoing>;

/// Connections of one caller to one endpoint.
pub(crate) struct Pool {
    /// How the endpoint is reached.
    pub(crate) via: Via,
    /// Whether HTTP/2 is spoken on the connections.
    pub(crate) http2: bool,
    /// What is said on them first.
    begins: Option<Opening>,
    /// What they are tunnelled through.
    under: Option<Rc<Self>>,
    /// Who calls; `None` where no certificate of the mesh is shown.
    pub(crate) from: Option<Arc<Identity>>,
    /// Where its requests are counted.
    pub(crate) edge: Arc<EdgeCell>,
    /// Under which labels, for requests and for gRPC.
    counted: RefCell<[Option<Held>; 2]>,
    /// Keeps the endpoint's state, whose address names the pool, alive.
    _state: Arc<mesh_core::endpoint::EndpointState>,
    worker: Weak<Worker>,
    cluster: RefCell<Arc<Cluster>>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    waiting: RefCell<VecDeque<oneshot::Sender<Result<Lease, Failure>>>>,
    /// Connections open or being opened.
    open: Cell<usize>,
    opening: Cell<usize>,
    /// Why the last connection came to nothing, for logs.
    failed: RefCell<Option<Arc<str>>>,
    used: Cell<Instant>,
    lanes: Lanes,
    replacing: Replacing,
}

/// How the connections of a pool are made.
struct Manner {
    http2: bool,
    opening: Option<Opening>,
    under: Option<Rc<Pool>>,
}

/// Where a caller's requests are counted, as long as the Plan is the same.
struct Held {
    /// Of the view.
    serial: u64,
    caller: Rc<Caller>,
    counted: Rc<Counted>,
}

struct Idle {
    sender: Http1,
    local: Option<SocketAddr>,
    served: u32,
    opened: Instant,
    since: Instant,
}

/// One HTTP/2 connection.
struct Shared {
    sender: http2::Sender,
    local: Option<SocketAddr>,
    streams: Cell<usize>,
    served: Cell<u32>,
    opened: Instant,
    since: Cell<Instant>,
    /// Went over TCP in place of QUIC.
    is_stand_in: bool,
}

impl Shared {
    fn new(sender: http2::Sender, local: Option<SocketAddr>, is_stand_in: bool) -> Self {
        let now = Instant::now();
        Self {
            sender,
            local,
            streams: Cell::new(0),
            served: Cell::new(0),
            opened: now,
            since: Cell::new(now),
            is_stand_in,
        }
    }

    /// Whether it may take another stream now. It was asked before whether it is closed.
    fn has_room(&self, limits: &CircuitLimits, most_streams: Option<u32>) -> bool {
        self.streams.get() < self.sender.most_streams()
            && most_streams.is_none_or(|most| self.streams.get() < most as usize)
            && self.may_serve(limits)
    }

    /// Whether it may take another request at all.
    fn may_serve(&self, limits: &CircuitLimits) -> bool {
        limits.max_requests_per_connection.is_none_or(|most| self.served.get() < most)
            && is_young(limits, self.opened)
    }
}

/// Whether a connection may take another request as far as its age says.
fn is_young(limits: &CircuitLimits, opened: Instant) -> bool {
    limits.max_connection_duration.is_none_or(|most| opened.elapsed() < most)
}

impl Pool {
    fn new(
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        from: Option<Arc<Identity>>,
        manner: Manner,
        edge: Arc<EdgeCell>,
    ) -> Self {
        let Manner { http2, opening, under } = manner;
        Self {
            via: endpoint.via.clone(),
            http2,
            begins: opening,
            under,
            from,
            edge,
            counted: RefCell::default(),
            _state: endpoint.state.clone(),
            worker: Rc::downgrade(worker),
            cluster: RefCell::new(cluster.clone()),
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiting: RefCell::default(),
            open: Cell::new(0),
            opening: Cell::new(0),
            failed: RefCell::default(),
            used: Cell::new(Instant::now()),
            lanes: Lanes::default(),
            replacing: Replacing::default(),
        }
    }

    /// Finds where a caller's requests to the endpoint are counted. Looks nothing up while the Plan is the same.
    pub(crate) fn counted(
        &self,
        (worker, view): (&Worker, &View),
        caller: &Rc<Caller>,
        (cluster, endpoint): (&Cluster, &Endpoint),
        spoken: Spoken,
    ) -> Rc<Counted> {
        let mut all = self.counted.borrow_mut();
        let held = &mut all[usize::from(spoken == Spoken::Grpc)];
        if let Some(held) = held
            && held.serial == view.serial
            && Rc::ptr_eq(&held.caller, caller)
        {
            return held.counted.clone();
        }
        let counted = Rc::new(Counted::outbound(worker, caller, cluster, endpoint, spoken));
        *held = Some(Held { serial: view.serial, caller: caller.clone(), counted: counted.clone() });
        counted
    }

    /// Gets a connection: an idle one, one with room, or a new one, within the cluster's limits.
    ///
    /// Cancel safe: a connection being opened goes to the next in line.
    pub(crate) async fn checkout(self: &Rc<Self>, cluster: &Arc<Cluster>) -> Result<Lease, Failure> {
        if let Some(lease) = self.take(cluster) {
            return Ok(lease);
        }
        let _pending = breaker::admit_pending(cluster).map_err(|_| Failure::Overflow)?;
        self.wait(cluster).await
    }

    /// As [`checkout`](Self::checkout), for a request that waits already.
    async fn checkout_under(self: &Rc<Self>, cluster: &Arc<Cluster>) -> Result<Lease, Failure> {
        match self.take(cluster) {
            Some(lease) => Ok(lease),
            None => self.wait(cluster).await,
        }
    }

    async fn wait(self: &Rc<Self>, cluster: &Arc<Cluster>) -> Result<Lease, Failure> {
        if !Arc::ptr_eq(&self.cluster.borrow(), cluster) {
            *self.cluster.borrow_mut() = cluster.clone();
        }
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().push_back(tell);
        self.grow();
        told.await.unwrap_or(Err(Failure::Connect))
    }

    /// Takes a connection that is ready now.
    fn take(self: &Rc<Self>, cluster: &Cluster) -> Option<Lease> {
        if self.http2 {
            return self.join_shared(cluster);
        }
        let mut idle = self.idle.borrow_mut();
        while let Some(next) = idle.pop() {
            if next.sender.is_ready() && is_young(&cluster.limits, next.opened) {
                let Idle { sender, local, served, opened, .. } = next;
                let link = Link::Http1 { sender, local, served, opened };
                return Some(Lease { pool: self.clone(), link, reused: true });
            }
        }
        None
    }

    fn join_shared(self: &Rc<Self>, cluster: &Cluster) -> Option<Lease> {
        // A hop carries requests for many applications, most of which speak HTTP/1.1: their rule is not about it.
        let is_http2 = matches!(cluster.protocol, UpstreamProtocol::Http2 | UpstreamProtocol::AsClient);
        let most = cluster.limits.max_concurrent_streams.filter(|_| is_http2 || !self.is_hop());
        let mut shared = self.shared.borrow_mut();
        shared.retain(|connection| !connection.sender.is_closed());
        let connection = shared.iter().find(|connection| connection.has_room(&cluster.limits, most))?.clone();
        connection.streams.set(connection.streams.get() + 1);
        let reused = connection.served.replace(connection.served.get() + 1) > 0;
        Some(Lease { pool: self.clone(), link: Link::Http2(connection), reused })
    }

    /// Opens a connection for those who wait, unless enough are being opened or a limit is reached.
    fn grow(self: &Rc<Self>) {
        let wanted =
            if self.http2 { self.waiting.borrow().len().min(1) } else { self.waiting.borrow().len() };
        if self.opening.get() >= wanted {
            return;
        }
        let cluster = self.cluster.borrow().clone();
        let permit = match breaker::admit_connection(&cluster) {
            Ok(permit) => permit,
            Err(_) if self.open.get() == 0 => breaker::admit_first_connection(&cluster),
            Err(_) => return,
        };
        self.open.set(self.open.get() + 1);
        self.opening.set(self.opening.get() + 1);
        let slot = Slot { pool: self.clone(), _permit: permit, under: None };
        task::spawn_local("upstream connect", connect::open(slot, cluster));
    }

    /// Gives a connection to the first who waits, or keeps it.
    fn offer(self: &Rc<Self>, mut lease: Lease) {
        loop {
            let Some(next) = self.waiting.borrow_mut().pop_front() else { break };
            match next.send(Ok(lease)) {
                Ok(()) => return,
                Err(back) => match back {
                    Ok(back) => lease = back,
                    Err(_) => return,
                },
            }
        }
        lease.park();
    }

    /// Gives streams of shared connections to those who wait, as long as there is room.
    fn offer_streams(self: &Rc<Self>) {
        while !self.waiting.borrow().is_empty() {
            let cluster = self.cluster.borrow().clone();
            let Some(lease) = self.join_shared(&cluster) else { break };
            self.offer(lease);
        }
        self.grow();
    }

    /// Returns why the last connection came to nothing, as Envoy's logs name it.
    pub(crate) fn failed(&self) -> Option<Arc<str>> {
        let own = self.failed.borrow().clone();
        own.or_else(|| self.under.as_ref()?.failed())
    }

    fn fail_all(&self, failure: Failure) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for one in waiting {
            let _ = one.send(Err(failure));
        }
    }

    /// Closes connections that were idle for too long. Returns whether the pool itself is of no more use.
    fn sweep(&self, now: Instant) -> bool {
        let cluster = self.cluster.borrow().clone();
        let limits = &cluster.limits;
        // Connections that tell of one caller are of no use once it has gone.
        let personal = self.begins.as_ref().filter(|begins| begins.is_personal()).map(|_| UNUSED);
        let idle = limits.idle_timeout.into_iter().chain(personal).min();
        let fresh = |since: Instant| idle.is_none_or(|limit| now.duration_since(since) < limit);
        self.idle
            .borrow_mut()
            .retain(|idle| !idle.sender.is_closed() && fresh(idle.since) && is_young(limits, idle.opened));
        self.shared.borrow_mut().retain(|shared| {
            let wanted = || fresh(shared.since.get()) && shared.may_serve(limits);
            !shared.sender.is_closed() && (shared.streams.get() > 0 || wanted())
        });
        let has_lanes = self.lanes.sweep(now);
        self.open.get() == 0 && !has_lanes && now.duration_since(self.used.get()) > UNUSED
    }

    /// Returns what a tunnel to the endpoint asks for: authority and instance.
    pub(crate) fn address(&self) -> (String, Arc<str>) {
        let name = &self.cluster.borrow().name;
        let instance = match &self.via {
            Via::Mesh { instance, .. } => instance.clone(),
            _ => "".into(),
        };
        (format!("{}:{}", name.host, name.port), instance)
    }

    /// Returns the name that a gateway's server is asked for by, where the rule of a hop says one.
    pub(crate) fn server_name(&self) -> Option<HeaderValue> {
        let cluster = self.cluster.borrow();
        let UpstreamTls::Mesh(settings) = &cluster.tls else { return None };
        // What hops ask for anyway names no server.
        let is_told = sni::parse(&settings.sni).is_none();
        if is_told { HeaderValue::from_str(&settings.sni).ok() } else { None }
    }

    /// Closes every connection that nobody uses, to make room for others.
    fn close_unused(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().retain(|connection| connection.streams.get() > 0);
        self.lanes.close_idle();
    }

    /// Closes every connection that nobody uses, and uses none any more; for endpoints that have moved.
    fn close_idle(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
        self.lanes.close_idle();
    }
}

/// How long a pool without connections is kept.
const UNUSED: Duration = Duration::from_mins(1);

/// The place of one connection among its pool's; dropping it makes room for another.
pub(crate) struct Slot {
    pool: Rc<Pool>,
    _permit: breaker::Permit,
    /// The stream of a hop that carries it.
    under: Option<Lease>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.open.set(self.pool.open.get() - 1);
        // The permit goes after this; those who wait try again in a moment.
        if !self.pool.waiting.borrow().is_empty() {
            let pool = self.pool.clone();
            task::spawn_local("upstream regrow", async move { pool.grow() });
        }
    }
}

/// A connection, or a stream of one, for one request.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    link: Link,
    /// Whether it has served before: it may have died meanwhile without anyone's fault.
    pub(crate) reused: bool,
}

enum Link {
    Http1 { sender: Http1, local: Option<SocketAddr>, served: u32, opened: Instant },
    Http2(Rc<Shared>),
    Gone,
}

/// A request that got no answer.
pub(crate) struct Unanswered {
    /// The request, where surely nothing of it was sent.
    pub(crate) unsent: Option<Request<Outgoing>>,
    /// Why.
    pub(crate) failure: Failure,
}

fn unanswered(mut error: TrySendError<Request<Outgoing>>) -> Unanswered {
    let unsent = error.take_message();
    let failure =
        if unsent.is_some() { Failure::ResetBeforeRequest } else { connect::failure_of(error.error()) };
    Unanswered { unsent, failure }
}

impl Lease {
    /// Sends a request and waits for the head of its answer; `interim` is told what comes before it.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Outgoing>,
        interim: Option<&Interim>,
    ) -> Result<Response<Inflow>, Unanswered> {
        let sent = match &mut self.link {
            Link::Http1 { sender, served, .. } => {
                *served += 1;
                if let Some(interim) = interim {
                    interim.listen(&mut request);
                }
                let sent = sender.try_send_request(request).await;
                sent.map(|response| response.map(Inflow::Http1)).map_err(unanswered)
            }
            Link::Http2(connection) => connection.sender.send(request, interim).await,
            Link::Gone => return Err(Unanswered { unsent: Some(request), failure: Failure::ConnectionLost }),
        };
        let response = sent?;
        if guard::check_answer(response.status(), response.version(), response.headers()).is_err() {
            return Err(Unanswered { unsent: None, failure: Failure::Protocol });
        }
        Ok(response)
    }

    /// Asks for a tunnel through a stream of HTTP/2 (`CONNECT`), and waits for the head of the answer.
    pub(crate) async fn tunnel(&self, request: Request<()>) -> Result<Response<Wire>, Failure> {
        let Link::Http2(connection) = &self.link else { return Err(Failure::ConnectionLost) };
        let opened = connection.sender.tunnel(request).await.map_err(|unanswered| unanswered.failure)?;
        Ok(opened.map(|both| Wire::new(Stream::Streams(Box::new(Streams::new(both))))))
    }

    /// Gives the connection back after the whole answer was read.
    pub(crate) fn give_back(mut self) {
        let pool = self.pool.clone();
        let cluster = pool.cluster.borrow().clone();
        let most = cluster.limits.max_requests_per_connection;
        match &mut self.link {
            Link::Http1 { served, .. } if most.is_some_and(|most| *served >= most) => {}
            Link::Http1 { opened, .. } if !is_young(&cluster.limits, *opened) => {}
            Link::Http1 { sender, .. } if sender.is_ready() => pool.offer(self),
            Link::Http1 { sender, .. } if sender.is_closed() => {}
            Link::Http1 { .. } => {
                // The rest of the request is still on its way.
                task::spawn_local("upstream release", async move {
                    if let Link::Http1 { sender, .. } = &mut self.link
                        && sender.ready().await.is_ok()
                    {
                        pool.offer(self);
                    }
                });
            }
            Link::Http2(_) | Link::Gone => {}
        }
    }

    /// Returns the address at this end of the connection.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &self.link {
            Link::Http1 { local, .. } => *local,
            Link::Http2(connection) => connection.local,
            Link::Gone => None,
        }
    }

    /// Returns the pool it belongs to.
    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    fn park(mut self) {
        if let Link::Http1 { sender, local, served, opened } = std::mem::replace(&mut self.link, Link::Gone) {
            let now = Instant::now();
            self.pool.used.set(now);
            self.pool.idle.borrow_mut().push(Idle { sender, local, served, opened, since: now });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Link::Http2(connection) = &self.link {
            connection.streams.set(connection.streams.get() - 1);
            connection.since.set(Instant::now());
            self.pool.used.set(connection.since.get());
            // One that may serve no more must not keep the place of another.
            if connection.streams.get() == 0 && !connection.may_serve(&self.pool.cluster.borrow().limits) {
                self.pool.shared.borrow_mut().retain(|other| !Rc::ptr_eq(other, connection));
            }
            if !self.pool.waiting.borrow().is_empty() {
                self.pool.offer_streams();
            }
        }
    }
}
