//! Serving HTTP on a connection: hyper, or `h2`, parses, [`http::handle`](super::http::handle) answers.

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
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;

use super::body::Inflow;
use super::doze::{self, Away, Dozed, Home};
use super::exchange::Reply;
use super::gate::Gate;
use super::watch::{Signal, Watch};
use super::wire::Wire;
use super::worker::Worker;
use crate::task;
use crate::telemetry::Counters;

pub(crate) use http2::http2;

mod http2;

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
    H: Fn(Request<Inflow>) -> F,
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
        worker.leftovers.add();
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
    H: Fn(Request<Inflow>) -> F,
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
    let service = service_fn(|request: Request<Incoming>| Sure {
        answer: handle(request.map(Inflow::Http1)),
        last_of: watch,
    });
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

pin_project! {
    /// An answer that never fails, as hyper wants it told. An `async` block around it would hold it twice.
    struct Sure<'a, F> {
        #[pin]
        answer: F,
        // The connection whose last answer it is, once that is told to leave.
        last_of: &'a Watch,
    }
}

impl<F: Future<Output = Response<Reply>>> Future for Sure<'_, F> {
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Poll::Ready(mut response) = this.answer.poll(cx) else { return Poll::Pending };
        let leaves = this.last_of.told() == Signal::Leave;
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
        if error.is_parse() {
            Counters::add(&worker.shard.counters.refused_requests_total);
        }
        tracing::debug!(%error, "connection ended");
    }
}

/// How long an idle connection may still bring a request when it is to end.
pub(crate) const LAST_REQUEST: std::time::Duration = std::time::Duration::from_secs(1);
/// How many fields of a head hyper takes if not told.
const HYPER_HEADERS: usize = 100;
/// Request line, separators and line ends, beside the target and the fields.
const HEAD_SLACK: usize = 4 * 1024;
