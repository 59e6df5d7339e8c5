//! Serving HTTP on a connection: hyper parses, [`http::handle`](super::http::handle) answers.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use ::http::header::{CONNECTION, HeaderValue};
use ::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;

use super::doze::{self, Away, Dozed, Home};
use super::exchange::Reply;
use super::gate::Gate;
use super::watch::{Signal, Watch};
use super::wire::Wire;
use super::worker::Worker;
use crate::task;
use crate::telemetry::Counters;

/// Spawns the streams of HTTP/2 connections on this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        task::spawn_local("stream", future);
    }
}

/// Who is at the other end: decides how many streams it may have at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Anyone.
    Stranger,
    /// Another meshd.
    Peer,
}

/// Serves HTTP/1.1 and HTTP/1.0 until the connection ends. Between requests it dozes: see [`doze`].
pub(crate) async fn http1<H, F>(worker: &Worker, wire: Wire, watch: &Arc<Watch>, handle: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Reply>>,
{
    let mut wire = wire.guarded(Gate::http1(worker.settings.limits, watch.clone()));
    let mut heard = Heard::new(watch);
    loop {
        let home = Home::default();
        // On the heap, so that nothing of it is left while the connection dozes.
        match Box::pin(parse(worker, home.lend(wire), &mut heard, &handle)).await {
            Stopped::Over(ended) => return log_end(worker, ended),
            Stopped::Drowsy => {}
        }
        let Some(back) = home.take() else { return };
        wire = back;
        let dozing = &worker.shard.counters.dozing_connections;
        Counters::add(dozing);
        let dozed = doze::wait(&mut wire, LAST_REQUEST, |cx| heard.next(cx)).await;
        dozing.fetch_sub(1, Ordering::Relaxed);
        if dozed == Dozed::Over {
            return;
        }
    }
}

/// Why a parser stopped.
enum Stopped {
    /// The connection has ended.
    Over(Result<(), hyper::Error>),
    /// It has nothing to do.
    Drowsy,
}

async fn parse<H, F>(worker: &Worker, wire: Away, heard: &mut Heard<'_>, handle: &H) -> Stopped
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Reply>>,
{
    let settings = &worker.settings;
    let mut builder = http1::Builder::new();
    builder
        .half_close(settings.half_close)
        .header_read_timeout(None)
        // The guard tells a long target from many headers; this only bounds both together.
        .max_header_size(settings.limits.header_bytes + settings.limits.uri_bytes + HEAD_SLACK);
    // Said, even as its own default, it makes hyper clear that many places for each head.
    if settings.limits.headers != HYPER_HEADERS {
        builder.max_headers(settings.limits.headers);
    }
    // Not `pipeline_flush`: with it an answer waits for as long as half of the next request lies in the buffer.
    let watch = heard.watch;
    let service = service_fn(|request| Sure { answer: handle(request), last_of: Some(watch) });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), service).with_upgrades());
    // A caller may ask at the very moment its idle connection is closed, and be left without an answer. So the next
    // answer says that it is the last; only who stays silent is closed.
    let mut silent = pin!(None::<tokio::time::Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Stopped::Over(ended));
        }
        match heard.next(cx) {
            Signal::None if silent.is_none() && watch.dozes_off() => {
                return Poll::Ready(Stopped::Drowsy);
            }
            Signal::None => {}
            Signal::Cut => return Poll::Ready(Stopped::Over(Ok(()))),
            Signal::Leave => silent.set(Some(tokio::time::sleep(LAST_REQUEST))),
        }
        if silent.as_mut().as_pin_mut().is_none_or(|silent| silent.poll(cx).is_pending()) {
            return Poll::Pending;
        }
        silent.set(None);
        connection.as_mut().graceful_shutdown();
        connection.as_mut().poll(cx).map(Stopped::Over)
    })
    .await
}

/// Serves HTTP/2 until the connection ends.
pub(crate) async fn http2<H, F>(worker: &Worker, wire: Wire, watch: &Arc<Watch>, trust: Trust, handle: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Reply>> + 'static,
{
    watch.multiplex();
    let settings = &worker.settings;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        // RFC 9110, section 6.6.1: an answer without a date gets one. Between hosts, the caller's does it.
        .auto_date_header(matches!(trust, Trust::Stranger))
        .max_header_list_size(u32::try_from(settings.limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    match trust {
        Trust::Stranger => builder.max_concurrent_streams(settings.max_streams),
        Trust::Peer => builder.max_concurrent_streams(settings.hop_streams),
    };
    // Boxed at once: on its way into a task it is moved several times, and it is large.
    let service = service_fn(|request| Sure { answer: Box::pin(handle(request)), last_of: None });
    let wire = match trust {
        Trust::Stranger => wire.guarded(Gate::http2(&settings.limits, settings.frames, watch.clone())),
        Trust::Peer => wire,
    };
    let io = TokioIo::new(wire);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut heard = Heard::new(watch);
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        match heard.next(cx) {
            Signal::None => Poll::Pending,
            Signal::Cut => Poll::Ready(Ok(())),
            Signal::Leave => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().poll(cx)
            }
        }
    });
    log_end(worker, ended.await);
}

pin_project! {
    /// An answer that never fails, as hyper wants it told. An `async` block around it would hold it twice.
    struct Sure<'a, F> {
        #[pin]
        answer: F,
        // HTTP/1: the connection whose last answer it is, once that is told to leave.
        last_of: Option<&'a Watch>,
    }
}

impl<F: Future<Output = Response<Reply>>> Future for Sure<'_, F> {
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(mut response) = this.answer.poll(cx) else { return Poll::Pending };
        let leaves = this.last_of.is_some_and(|watch| watch.told() == Signal::Leave);
        if leaves && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response))
    }
}

/// Hears each signal once.
struct Heard<'a> {
    watch: &'a Watch,
    listening: bool,
    last: Signal,
}

impl<'a> Heard<'a> {
    fn new(watch: &'a Watch) -> Self {
        Self { watch, listening: false, last: Signal::None }
    }

    fn next(&mut self, cx: &Context<'_>) -> Signal {
        if !self.listening {
            self.watch.listen(cx);
            self.listening = true;
        }
        let told = self.watch.told();
        if told == self.last {
            return Signal::None;
        }
        self.last = told;
        told
    }
}

fn log_end(worker: &Worker, ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        if is_refusal(&error) {
            Counters::add(&worker.shard.counters.refused_requests_total);
        }
        tracing::debug!(%error, "connection ended");
    }
}

/// Whether the parser has refused what a caller sent.
fn is_refusal(error: &hyper::Error) -> bool {
    use std::error::Error;
    let frames = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_parse() || frames.is_some_and(|error| error.is_library() && error.is_go_away())
}

/// How long an idle connection may still bring a request when it is to end.
pub(crate) const LAST_REQUEST: std::time::Duration = std::time::Duration::from_secs(1);
/// How many fields of a head hyper takes if not told.
const HYPER_HEADERS: usize = 100;
/// Request line, separators and line ends, beside the target and the fields.
const HEAD_SLACK: usize = 4 * 1024;
/// One caller's stream: what may be under way before we read. Bounds the memory of a slow endpoint.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1 << 20;
