//! HTTP/2 towards an endpoint, spoken through `h2` itself.
//!
//! A request goes into its stream, and its body with it, by the task that serves the caller, and the answer's frames
//! wake that task. hyper's client would hand each request to tasks of the connection and have a task wait for its answer.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName};
use http::{Method, Request, Response};
use http_body::Body;
use mesh_core::resilience::Failure;
use mesh_core::wire::strip;
use tokio::sync::oneshot;

use super::connect::ConnectError;
use super::{Shared, Slot, Unanswered};
use crate::proxy::body::{Inflow, Message, Outgoing, Upload};
use crate::proxy::interim::Interim;
use crate::proxy::request;
use crate::proxy::wire::Wire;
use crate::task;

/// Asks for streams of one connection.
pub(super) struct Sender {
    // Dropped before `state`: the connection looks for askers when it is woken by that.
    h2: RefCell<SendRequest<Bytes>>,
    state: WakesAtEnd,
}

/// What a connection's task tells those who use it.
#[derive(Default)]
struct State {
    /// Streams that the peer allows at once.
    most_streams: Cell<usize>,
    ended: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Wakes the connection's task when dropped: one that nobody can ask any more closes, but does not notice by itself.
struct WakesAtEnd(Rc<State>);

impl Drop for WakesAtEnd {
    fn drop(&mut self) {
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

/// Begins HTTP/2 on a connection, and gives its streams to those who wait.
///
/// Waits for the peer's SETTINGS before the first request: only then is it known to accept us, and how many streams.
pub(super) async fn begin(slot: Slot, stream: Wire) -> Result<(), ConnectError> {
    let pool = slot.pool.clone();
    let pings = pool.cluster.borrow().limits.http2_keep_alive;
    let (local, is_stand_in) = (slot.local_address(&stream), pool.is_stand_in(&stream));
    let begun = h2::client::Builder::new()
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_reset_streams(GONE_STREAMS)
        // Answers to streams that were given up are no fault of the connection's, however many come over the years.
        .max_local_error_reset_streams(None)
        .data_frame_budget(SMALL_FRAMES)
        .enable_push(false)
        .handshake(stream)
        .await;
    let (h2, connection) = begun.map_err(|error| ConnectError::Http(error.to_string()))?;
    let state = Rc::new(State::default());
    let (tell, told) = oneshot::channel();
    let task_state = state.clone();
    task::spawn_local("upstream connection", async move {
        let _slot = slot;
        run(connection, &task_state, pings, tell).await;
        task_state.ended.set(true);
    });
    match told.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(ConnectError::Http(error.to_string())),
        Err(_) => return Err(ConnectError::Http("the connection was closed at once".to_owned())),
    }
    let sender = Sender { h2: RefCell::new(h2), state: WakesAtEnd(state) };
    pool.shared.borrow_mut().push(Rc::new(Shared::new(sender, local, is_stand_in)));
    pool.offer_streams();
    Ok(())
}

/// Serves a connection to its end; tells when the peer's SETTINGS have come.
async fn run(
    mut connection: Connection<Wire, Bytes>,
    state: &State,
    pings: Option<(Duration, Duration)>,
    tell: oneshot::Sender<Result<(), h2::Error>>,
) {
    let mut tell = Some(tell);
    let pings = match (pings, connection.ping_pong()) {
        (Some((interval, patience)), Some(ping_pong)) => Some((ping_pong, interval, patience)),
        _ => None,
    };
    let served = poll_fn(|cx| {
        state.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
        let polled = Pin::new(&mut connection).poll(cx);
        state.most_streams.set(connection.max_concurrent_send_streams());
        if state.most_streams.get() > 0
            && let Some(tell) = tell.take()
        {
            let _ = tell.send(Ok(()));
        }
        polled
    });
    tokio::select! {
        biased;
        ended = served => {
            if let Err(error) = ended {
                tracing::debug!(%error, "upstream connection ended");
                if let Some(tell) = tell { let _ = tell.send(Err(error)); }
            }
        }
        () = unanswered(pings) => tracing::debug!("upstream connection ended: no answer to a ping"),
    }
}

/// Sends pings; returns when one is not answered in time.
async fn unanswered(pings: Option<(PingPong, Duration, Duration)>) {
    let Some((mut pings, interval, patience)) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(interval).await;
        if !matches!(tokio::time::timeout(patience, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

impl Sender {
    /// Returns how many streams the peer allows at once.
    pub(super) fn most_streams(&self) -> usize {
        self.state.0.most_streams.get()
    }

    /// Whether no stream can be begun any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed().is_some()
    }

    /// Returns why no stream can be begun any more: it has ended, or the peer has said goodbye.
    fn closed(&self) -> Option<Failure> {
        match self.h2.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) if failure_of(&error) == Failure::GoAway => Some(Failure::GoAway),
            Poll::Ready(Err(_)) => Some(Failure::ResetBeforeRequest),
            _ => self.state.0.ended.get().then_some(Failure::ResetBeforeRequest),
        }
    }

    /// Sends a request and waits for the head of its answer, telling `interim` what comes before; its body goes on by
    /// itself after that.
    pub(super) async fn send(
        &self,
        request: Request<Outgoing>,
        interim: Option<&Interim>,
    ) -> Result<Response<Inflow>, Unanswered> {
        if let Some(failure) = self.closed() {
            return Err(Unanswered { unsent: Some(request), failure });
        }
        let (parts, body) = request.into_parts();
        let mut head = Request::from_parts(parts, ());
        prepare(&mut head, &body);
        let is_whole = body.is_end_stream();
        let (mut answer, stream) = self.open(head, is_whole)?;
        let mut upload = (!is_whole).then(|| Upload::new(body, stream));
        let answered = poll_fn(|cx| {
            if let Some(upload) = &mut upload {
                let _ = upload.poll_send(cx);
            }
            if let Some(interim) = interim {
                while let Poll::Ready(Some(Ok(early))) = answer.poll_informational(cx) {
                    interim.heard(early.status(), early.headers());
                }
            }
            Pin::new(&mut answer).poll(cx)
        });
        let (parts, stream) = answered.await?.into_parts();
        if let Some(upload) = upload.filter(|upload| !upload.is_over()) {
            task::spawn_local("request body", upload);
        }
        let body = Inflow::http2(Message::Answer, &parts.headers, stream);
        Ok(Response::from_parts(parts, body))
    }

    /// Asks for a tunnel (`CONNECT`) and waits for the head of the answer.
    pub(super) async fn tunnel(
        &self,
        request: Request<()>,
    ) -> Result<Response<(SendStream<Bytes>, RecvStream)>, Unanswered> {
        let (answer, stream) = self.open(request, false)?;
        Ok(answer.await?.map(|received| (stream, received)))
    }

    fn open(
        &self,
        head: Request<()>,
        is_whole: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut h2 = self.h2.borrow_mut();
        // An earlier stream may wait for room that the peer has taken back; others may ask beside it.
        if h2.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
            return h2.clone().send_request(head, is_whole);
        }
        h2.send_request(head, is_whole)
    }
}

/// Brings a head into the form that HTTP/2 asks for: rules may have put in what belongs to HTTP/1, and a body of known
/// length says so. What is new with each request is kept out of the tables of HPACK, where it would push out what
/// returns, and `h2` looks through all values of one name there.
fn prepare(head: &mut Request<()>, body: &Outgoing) {
    strip::strip_hop_by_hop(head.headers_mut());
    for name in &UNIQUE {
        if let Some(value) = head.headers_mut().get_mut(name) {
            value.set_sensitive(true);
        }
    }
    let Some(length) = body.size_hint().exact() else { return };
    // RFC 9110, section 8.6.
    let expects_body =
        !matches!(*head.method(), Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
    if length != 0 || expects_body {
        say_length(head.headers_mut(), length);
    }
}

fn say_length(headers: &mut HeaderMap, length: u64) {
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, length.into());
    }
}

impl From<h2::Error> for Unanswered {
    fn from(error: h2::Error) -> Self {
        Self { unsent: None, failure: failure_of(&error) }
    }
}

/// Tells what `h2`'s error means for a request of which a part may have been sent.
pub(super) fn failure_of(error: &h2::Error) -> Failure {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Failure::RefusedStream,
        Some(_) if error.is_reset() => Failure::RemoteReset,
        Some(_) if error.is_library() => Failure::Protocol,
        // Only streams above the last id, or never begun, are told so; others end with the connection. Who says goodbye
        // for a fault of its own or of ours is no less done with them, but not on its way out.
        Some(h2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => Failure::GoAway,
        Some(_) if error.is_go_away() && error.is_remote() => Failure::RefusedStream,
        _ => Failure::ConnectionLost,
    }
}

/// Fields whose value never returns.
static UNIQUE: [HeaderName; 2] = [request::REQUEST_ID, HeaderName::from_static("traceparent")];
/// What one stream may have under way towards us before we read it.
const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams of a connection may have under way: no bound of its own, or a few callers that read nothing would hold up
/// all others that share it.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Memory that frames of few bytes may take beside their bytes: they wait for whoever reads them.
const SMALL_FRAMES: usize = 32 << 20;
/// Streams given up that are still known, for the second in which their answers may be on the way.
const GONE_STREAMS: usize = 10_000;
/// Of one answer's head, 32 bytes for each field included: what passes over HTTP/1 passes between hosts, too.
const HEADER_BYTES: u32 = 128 * 1024;
