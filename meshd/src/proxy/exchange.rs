//! One request from its head to its end, told exactly once: to the counters and to the access log.
//!
//! An [`Exchange`] travels with the request and then with the body of its answer. However it ends (answered, broken,
//! the caller gone), dropping it tells.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::request::Parts;
use ::http::{HeaderMap, Version};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mesh_core::endpoint::InFlight;
use mesh_core::plan::{Cluster, VirtualHost};
use mesh_core::resilience::breaker::Permit;
use mesh_core::resilience::{Flag, Flags, grpc};
use mesh_proto::command::Revision;

use super::body::{Inflow, InflowError, Source};
use super::budget::{LARGE_BODY, Left};
use super::measure::{BodyMeter, Counted, GrpcMeter, MessageMeter};
use super::outbound::Connection;
use super::traced::Trace;
use super::upstream::Lease;
use super::worker::Caller;
use crate::telemetry::{EdgeCell, EdgeKey, Finished, Spoken};
use told::Logged;

mod told;

/// One request, until it is told. A box: it travels through many hands.
pub(crate) struct Exchange(Box<Life>);

/// What is known about a request.
pub(crate) struct Life {
    connection: Rc<Connection>,
    pub(crate) started: Instant,
    /// Who calls; `None`: nobody that the Plan knows.
    pub(crate) caller: Option<Rc<Caller>>,
    /// Whether it is on its way to an application here: then edges do not count it.
    pub(crate) is_inbound: bool,
    /// Under which labels it is counted, once that is known.
    pub(crate) counted: Option<Rc<Counted>>,
    /// Of gRPC.
    pub(crate) grpc: Option<Box<GrpcMeter>>,
    /// What was measured of a body that is passed straight on.
    pub(crate) body: Option<Rc<BodyMeter>>,
    /// Where it is counted, once an endpoint was chosen.
    pub(crate) edge: Option<Arc<EdgeCell>>,
    /// What it is counted under otherwise.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Host and port of a destination that is not there.
    pub(crate) host: Option<(Arc<str>, u16)>,
    /// The host asked for, where not even a destination was found.
    pub(crate) virtual_host: Option<Arc<VirtualHost>>,
    pub(crate) status: u16,
    pub(crate) failed: bool,
    pub(crate) retries: u32,
    pub(crate) details: &'static str,
    pub(crate) upstream_time: Option<Duration>,
    pub(crate) source: Option<Rc<Source>>,
    pub(crate) sent_bytes: u64,
    /// The endpoint of the last attempt, and what it speaks.
    pub(crate) upstream: Option<(SocketAddr, Version)>,
    flags: Flags,
    /// Sent to an endpoint so often.
    pub(crate) attempts: u32,
    log: Option<Logged>,
    /// Its span.
    pub(crate) trace: Option<Box<Trace>>,
}

/// Whose request it is.
pub(crate) enum Side {
    /// Of a caller here; `None`: nobody that the Plan knows.
    Caller(Option<Rc<Caller>>),
    /// To an application here, counted there.
    Application(Rc<Counted>),
}

impl Exchange {
    /// Begins with a request's head, by the Plan of that revision.
    pub(crate) fn begin(connection: &Rc<Connection>, side: Side, parts: &Parts, revision: Revision) -> Self {
        connection.watch.request_began();
        let (caller, counted) = match side {
            Side::Caller(caller) => (caller, None),
            Side::Application(counted) => (None, Some(counted)),
        };
        let mut life = Box::new(Life {
            connection: connection.clone(),
            started: Instant::now(),
            caller,
            is_inbound: counted.is_some(),
            counted,
            grpc: super::request::is_grpc(&parts.headers).then(Box::default),
            body: None,
            edge: None,
            cluster: None,
            host: None,
            virtual_host: None,
            status: 0,
            failed: false,
            retries: 0,
            attempts: 0,
            details: "",
            upstream_time: None,
            source: None,
            sent_bytes: 0,
            upstream: None,
            flags: Flags::default(),
            log: None,
            trace: None,
        });
        life.listen(parts, revision.0);
        Self(life)
    }
}

impl Deref for Exchange {
    type Target = Life;

    fn deref(&self) -> &Life {
        &self.0
    }
}

impl DerefMut for Exchange {
    fn deref_mut(&mut self) -> &mut Life {
        &mut self.0
    }
}

impl Life {
    /// Returns the connection it came on.
    pub(crate) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }

    /// Raises a flag: logged, and a label of metrics.
    pub(crate) fn raise(&mut self, flag: Flag) {
        self.flags.set(flag);
    }

    /// Returns all that were raised.
    pub(crate) fn flags(&self) -> Flags {
        self.flags
    }

    /// Whether it is gRPC.
    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }

    /// Returns what is spoken, for its labels.
    pub(crate) fn spoken(&self) -> Spoken {
        if self.is_grpc() { Spoken::Grpc } else { Spoken::Http }
    }

    /// Returns what counts the messages of its body.
    pub(crate) fn messages(&self) -> Option<Rc<MessageMeter>> {
        self.grpc.as_ref().map(|grpc| grpc.request.clone())
    }

    /// Reads the gRPC status off the head or the trailers of an answer.
    pub(crate) fn note_grpc_status(&self, headers: &HeaderMap) {
        let Some(grpc) = &self.grpc else { return };
        if let Some(status) = grpc::status_of(headers) {
            grpc.status.set(Some(u16::try_from(status).unwrap_or(u16::MAX)));
        }
    }

    /// Counts what has come of an answer.
    fn passed(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent_bytes += data.len() as u64;
        }
        let Some(grpc) = &self.grpc else { return };
        if let Some(data) = frame.data_ref() {
            grpc.response.take(data);
            if let Some(counted) = &self.counted {
                grpc.tell(counted);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.note_grpc_status(trailers);
        }
    }

    /// What it was for, where no endpoint was chosen.
    fn wanted(&self) -> (Arc<str>, u16, Arc<str>) {
        let empty: Arc<str> = "".into();
        let asked = || self.virtual_host.as_ref().map(|asked| (Arc::from(asked.host.as_str()), asked.port));
        match (&self.cluster, self.host.clone().or_else(asked)) {
            (Some(cluster), _) => (cluster.name.host.clone(), cluster.name.port, cluster.name.subset.clone()),
            (None, Some((host, port))) => (host, port, empty.clone()),
            (None, None) => ("BlackHoleCluster".into(), 0, empty),
        }
    }

    /// Counts it in the graph of calls.
    fn count_edge(&self, took: Duration) {
        let finish = |edge: &EdgeCell| edge.finished(self.status, self.failed, self.retries, took);
        if let Some(edge) = &self.edge {
            return finish(edge);
        }
        let (destination, port, subset) = self.wanted();
        let source = self.caller.as_ref().map_or_else(|| "-/-".into(), |caller| caller.name.clone());
        let key = EdgeKey { source, destination, port, subset, version: "".into() };
        finish(&self.connection.worker.shard.edge(&key));
    }

    /// Counts it under Istio's labels.
    fn count(&self, took: Duration) {
        let unreached = || {
            let worker = &self.connection.worker;
            let caller = self.caller.as_ref().unwrap_or(&worker.inbound);
            let (service, ..) = self.wanted();
            Rc::new(Counted::unreached(worker, caller, service, self.spoken(), Flags::default()))
        };
        let counted = self.counted.clone().unwrap_or_else(unreached);
        if let Some(grpc) = &self.grpc {
            grpc.tell(&counted);
        }
        let of_source = || self.source.as_ref().map_or(0, |source| source.received());
        counted.finished(&Finished {
            status: self.status,
            flags: self.flags,
            grpc: self.grpc.as_ref().and_then(|grpc| grpc.status.get()),
            took,
            received: self.body.as_ref().map_or_else(of_source, |body| body.bytes.get()),
            sent: self.sent_bytes,
        });
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.connection.watch.request_ended();
        if let Some(source) = &self.source {
            source.abandon();
        }
        if self.status == 0 {
            self.raise(Flag::DownstreamConnectionTermination);
        }
        if let Some(dropped @ 1..) = self.source.as_ref().map(|source| source.dropped_trailers()) {
            let counters = &self.connection.worker.shard.counters;
            counters.dropped_trailers_total.fetch_add(dropped, Ordering::Relaxed);
        }
        let took = self.started.elapsed();
        if !self.is_inbound {
            self.count_edge(took);
        }
        self.count(took);
        if let Some(log) = self.log.take() {
            self.tell(log, took);
        }
    }
}

/// The body of an answer to a caller.
pub(crate) enum Reply {
    /// None.
    Empty,
    /// All of it.
    Whole(Option<Bytes>),
    /// From an endpoint.
    Relay(Box<Relay>),
}

/// A body on its way from an endpoint to a caller, with all that ends when it ends.
pub(crate) struct Relay {
    pub(crate) body: Inflow,
    pub(crate) lease: Option<Lease>,
    pub(crate) exchange: Option<Exchange>,
    /// When the route's timeout ends it.
    pub(crate) deadline: Option<Deadline>,
    /// What counts it as under way.
    pub(crate) guards: Guards,
}

/// When the route's timeout ends an answer's body. Its timer is made when somebody has to wait: most bodies are there at
/// once, with their head.
pub(crate) struct Deadline {
    source: Option<Rc<Source>>,
    began: Instant,
    limit: Duration,
    frames: u32,
    over: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// Frames that may come at once before a body that never has to be waited for is timed, too.
const FRAMES_AT_ONCE: u32 = 8;

impl Deadline {
    /// Counts as [`over`] does.
    pub(crate) fn new(source: Option<Rc<Source>>, began: Instant, limit: Duration) -> Self {
        Self { source, began, limit, frames: 0, over: None }
    }

    /// Whether time was up before the next frame.
    fn passed_before_frame(&mut self, cx: &mut Context<'_>) -> bool {
        self.frames = self.frames.saturating_add(1);
        (self.over.is_some() || self.frames > FRAMES_AT_ONCE) && self.has_passed(cx)
    }

    /// Whether time is up; wakes the task when it is.
    fn has_passed(&mut self, cx: &mut Context<'_>) -> bool {
        let Self { source, began, limit, over: timer, .. } = self;
        let timer = timer.get_or_insert_with(|| {
            let (source, began, limit) = (source.take(), *began, *limit);
            Box::pin(async move { over(source.as_deref(), began, limit).await })
        });
        timer.as_mut().poll(cx).is_ready()
    }
}

/// Waits until the limit has passed since `began`, or since the request was complete, if that was later.
pub(crate) async fn over(source: Option<&Source>, began: Instant, limit: Duration) {
    let mut since = began;
    if let Some(source) = source {
        since = since.max(source.ended().await);
    }
    tokio::time::sleep_until((since + limit).into()).await;
}

/// What counts a request as under way.
#[derive(Default)]
#[expect(dead_code, reason = "held for what dropping them does")]
pub(crate) struct Guards {
    pub(crate) request: Option<Permit>,
    pub(crate) retry: Option<Permit>,
    pub(crate) in_flight: Option<InFlight>,
    /// On the way in: keeps the hop's connection from counting as idle.
    pub(crate) busy: Option<super::watch::Busy>,
}

/// Why an answer ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    /// The endpoint's connection broke.
    #[error("the endpoint's answer ended early: {0}")]
    Endpoint(#[from] InflowError),
    /// No memory is left for it.
    #[error("no memory is left for the answer")]
    Shed,
    /// The route's timeout is over.
    #[error("the route's timeout ended the answer")]
    Timeout,
}

impl Reply {
    pub(crate) fn whole(body: Bytes) -> Self {
        if body.is_empty() { Self::Empty } else { Self::Whole(Some(body)) }
    }

    /// Relays an answer; one without body is over at once.
    pub(crate) fn relay(relay: Relay) -> Self {
        let mut relay = Box::new(relay);
        if relay.body.is_end_stream() {
            relay.finish();
            return Self::Empty;
        }
        Self::Relay(relay)
    }
}

impl Relay {
    /// All of it was read: the connection is free again, and the request is told.
    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.guards = Guards::default();
        self.exchange = None;
    }

    /// Counts what came. Says whether the answer must go: no memory is left, and it is a large one.
    fn is_too_large(&self, bytes: usize) -> bool {
        let Some(exchange) = &self.exchange else { return false };
        let intake = &exchange.connection.watch.intake;
        intake.took(bytes);
        intake.left() == Left::Nothing && exchange.sent_bytes >= LARGE_BODY
    }

    fn fail(&mut self, flag: Flag) {
        if let Some(exchange) = &mut self.exchange {
            exchange.raise(flag);
            exchange.failed = true;
        }
        self.exchange = None;
        self.lease = None;
    }

    fn time_is_up(&mut self) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        self.fail(Flag::UpstreamRequestTimeout);
        Poll::Ready(Some(Err(ReplyError::Timeout)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.passed_before_frame(cx)) {
            return self.time_is_up();
        }
        let Poll::Ready(polled) = Pin::new(&mut self.body).poll_frame(cx) else {
            let is_up = self.deadline.as_mut().is_some_and(|deadline| deadline.has_passed(cx));
            return if is_up { self.time_is_up() } else { Poll::Pending };
        };
        match polled {
            None => {
                self.finish();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.fail(Flag::UpstreamConnectionTermination);
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                if self.is_too_large(frame.data_ref().map_or(0, Bytes::len)) {
                    self.fail(Flag::OverloadManager);
                    return Poll::Ready(Some(Err(ReplyError::Shed)));
                }
                if let Some(exchange) = &mut self.exchange {
                    exchange.passed(&frame);
                }
                if self.body.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Neither finished nor failed: the caller has gone in the middle of its answer.
        if let Some(exchange) = &mut self.exchange {
            exchange.raise(Flag::DownstreamConnectionTermination);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Relay(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relay(relay) => relay.body.size_hint(),
        }
    }
}
