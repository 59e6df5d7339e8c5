//! Serving HTTP/2 on a connection, through `h2` itself.
//!
//! hyper's server tells no caller what comes before an answer (1xx), and takes a request that was reset without error for one
//! that is complete. Each stream is a task: the answer, made by the caller's `handle`, then its body.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use ::http::{Method, Request, Response};
use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http_body::Body;
use mesh_core::wire::http2::FrameLimits;
use tokio::sync::oneshot;

use super::{Heard, Trust};
use crate::proxy::body::{Inflow, Message, Upload};
use crate::proxy::exchange::Reply;
use crate::proxy::gate::Gate;
use crate::proxy::interim::Early;
use crate::proxy::request;
use crate::proxy::tunnel::Promised;
use crate::proxy::upstream::Streams;
use crate::proxy::watch::{Signal, Watch};
use crate::proxy::wire::{Stream, Wire};
use crate::proxy::worker::Worker;
use crate::task;
use crate::telemetry::Counters;

/// Serves HTTP/2 until the connection ends. `handle` is also given what a stream is told before its answer.
pub(crate) async fn http2<H, F>(worker: &Worker, wire: Wire, watch: &Arc<Watch>, trust: Trust, handle: H)
where
    H: Fn(Request<Inflow>, Arc<Early>) -> F,
    F: Future<Output = Response<Reply>> + 'static,
{
    watch.multiplex();
    let settings = &worker.settings;
    let (frames, streams, header_bytes, gone, window) = match trust {
        Trust::Stranger => {
            let gone = settings.frames.resets as usize;
            (settings.frames, settings.max_streams, settings.limits.header_bytes, gone, CONNECTION_WINDOW)
        }
        // What its caller may send, what the other host adds, and 32 bytes for each field. Many callers share a hop: how
        // many of them give up in a second is not the other host's doing.
        Trust::Peer => {
            let frames = FrameLimits { resets: u32::MAX, ..FrameLimits::default() };
            (frames, settings.hop_streams, settings.limits.header_bytes * 2, GONE_AT_PEERS, HOP_WINDOW)
        }
    };
    let wire = wire.guarded(Gate::http2(header_bytes, frames, watch.clone()));
    let mut builder = Builder::new();
    if trust == Trust::Peer {
        builder.max_local_error_reset_streams(None);
    }
    builder
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(gone)
        .max_pending_accept_reset_streams(gone)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_streams(streams);
    let serve = |request: Request<RecvStream>, respond| {
        let early = Arc::<Early>::default();
        let asks = Asks { trust, is_head: request.method() == Method::HEAD };
        let (request, tunnel) = arrived(request);
        // Boxed at once: on its way into a task it is moved several times, and it is large.
        let answer = Box::pin(handle(request, early.clone()));
        task::spawn_local("stream", serve_stream(answer, respond, early, tunnel, asks));
    };
    let mut heard = Heard::new(watch);
    let ended = match begin(builder.handshake(wire), &mut heard).await {
        Ok(Some(connection)) => accept(connection, &mut heard, serve).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        // A broken rule of HTTP/2, of which the caller was told.
        if error.is_library() && error.is_go_away() {
            Counters::add(&worker.shard.counters.refused_requests_total);
        }
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits for the preface. `None`: it was cut meanwhile.
async fn begin(
    handshake: h2::server::Handshake<Wire, Bytes>,
    heard: &mut Heard<'_>,
) -> Result<Option<Connection<Wire, Bytes>>, h2::Error> {
    let mut handshake = pin!(handshake);
    let mut leaves = false;
    let connection = poll_fn(|cx| {
        match heard.next(cx) {
            Signal::None => {}
            Signal::Cut => return Poll::Ready(Ok(None)),
            Signal::Leave => leaves = true,
        }
        handshake.as_mut().poll(cx).map_ok(Some)
    });
    let mut connection = connection.await?;
    if let Some(connection) = connection.as_mut().filter(|_| leaves) {
        connection.graceful_shutdown();
    }
    Ok(connection)
}

/// Takes streams in until the connection ends.
async fn accept(
    mut connection: Connection<Wire, Bytes>,
    heard: &mut Heard<'_>,
    serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>),
) -> Result<(), h2::Error> {
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok((request, respond)))) => serve(request, respond),
                Poll::Pending => match heard.next(cx) {
                    Signal::None => return Poll::Pending,
                    Signal::Cut => return Poll::Ready(Ok(())),
                    Signal::Leave => connection.graceful_shutdown(),
                },
            }
        }
    })
    .await
}

/// Bytes of a tunnel that is promised to whoever allows it, and what receives the other direction.
type Tunnel = (oneshot::Sender<Wire>, RecvStream);

/// Makes a stream's request one that is answered like any other.
fn arrived(request: Request<RecvStream>) -> (Request<Inflow>, Option<Tunnel>) {
    let (mut parts, stream) = request.into_parts();
    if parts.method == Method::CONNECT {
        let (keep, promised) = Promised::new();
        parts.extensions.insert(promised);
        return (Request::from_parts(parts, Inflow::Empty), Some((keep, stream)));
    }
    let body = if stream.is_end_stream() {
        Inflow::Empty
    } else {
        Inflow::http2(Message::Request, &parts.headers, stream)
    };
    (Request::from_parts(parts, body), None)
}

/// Who asks, and what for.
#[derive(Clone, Copy)]
struct Asks {
    trust: Trust,
    is_head: bool,
}

async fn serve_stream<F: Future<Output = Response<Reply>>>(
    answer: Pin<Box<F>>,
    mut respond: SendResponse<Bytes>,
    early: Arc<Early>,
    tunnel: Option<Tunnel>,
    asks: Asks,
) {
    let Some(response) = answered(answer, &mut respond, &early).await else { return };
    let (mut parts, body) = response.into_parts();
    request::strip_hop_by_hop(&mut parts.headers);
    // RFC 9110, section 6.6.1: an answer without a date gets one. Between hosts, the caller's does it.
    if asks.trust == Trust::Stranger && !parts.headers.contains_key(DATE) {
        parts.headers.insert(DATE, now());
    }
    let opens = tunnel.filter(|_| parts.status.is_success());
    let is_whole = opens.is_none() && body.is_end_stream();
    if opens.is_none()
        && !is_whole
        && let Some(length) = body.size_hint().exact()
        && !parts.headers.contains_key(CONTENT_LENGTH)
    {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    // Its length is told, and nothing else of it.
    let is_whole = is_whole || (asks.is_head && opens.is_none());
    let Some(stream) = send(&mut respond, Response::from_parts(parts, ()), is_whole) else { return };
    match opens {
        Some((keep, received)) => {
            let _ = keep.send(Wire::new(Stream::Streams(Box::new(Streams::new((stream, received))))));
        }
        None if is_whole => {}
        None => Upload::new(body, stream).await,
    }
}

/// Waits for the answer, telling the caller what comes before it. `None`: the caller has given up.
async fn answered<F: Future<Output = Response<Reply>>>(
    mut answer: Pin<Box<F>>,
    respond: &mut SendResponse<Bytes>,
    early: &Early,
) -> Option<Response<Reply>> {
    poll_fn(|cx| {
        let polled = answer.as_mut().poll(cx);
        while let Some((status, headers)) = early.take(cx) {
            let mut head = Response::new(());
            (*head.status_mut(), *head.headers_mut()) = (status, headers);
            let _ = respond.send_informational(head);
        }
        match polled {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        }
    })
    .await
}

fn send(respond: &mut SendResponse<Bytes>, head: Response<()>, is_whole: bool) -> Option<SendStream<Bytes>> {
    match respond.send_response(head, is_whole) {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "an answer that could not be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// The time, as a date of HTTP; written once a second.
fn now() -> HeaderValue {
    thread_local! {
        static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let time = SystemTime::now();
    let second = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    WRITTEN.with_borrow_mut(|(written, text)| {
        if *written != second {
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(time));
            (*written, *text) = (second, date.expect("letters and digits"));
        }
        text.clone()
    })
}

/// One caller's stream: what may be under way before we read. Bounds the memory of a slow endpoint.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What all streams of a hop may have under way: no bound of its own, or a few bodies that nobody reads would hold up those
/// of all other callers.
const HOP_WINDOW: u32 = (1 << 31) - 1;
/// Memory that frames of few bytes may take beside their bytes, some 250 for each: what the connection's window holds of
/// messages as small as those of gRPC often are. They wait for whoever reads them, like any others.
const SMALL_FRAMES: usize = 16 << 20;
/// Streams of a peer that are gone and still known, for the second in which frames of theirs may be on the way: frames of
/// unknown ones count as faults.
const GONE_AT_PEERS: usize = 10_000;
/// What may wait of one answer until its caller takes it.
const SEND_BUFFER: usize = 256 * 1024;
