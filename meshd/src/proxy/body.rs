//! Bodies on their way up: streamed, and remembered where a retry or a mirror may want them again.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use mesh_core::wire::guard::Refusal;
use tokio::sync::Notify;

use super::budget::{LARGE_UPLOAD, Left};
use super::interim::{Asked, Hold};
use super::measure::{BodyMeter, MessageMeter};
use super::watch::Watch;
pub(crate) use inflow::{Inflow, InflowError, Message};
use pace::Pace;
pub(crate) use upload::Upload;

mod inflow;
mod pace;
mod trailers;
mod upload;

/// The body of a request to an endpoint.
pub(crate) enum Outgoing {
    /// None.
    Empty,
    /// All of it.
    Whole(Option<Bytes>),
    /// From the caller, remembered.
    Replay(Replay),
    /// Straight from the caller, measured.
    Measured(Inflow, Rc<BodyMeter>),
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The caller's connection broke.
    #[error("the caller's body ended early: {0}")]
    Caller(#[from] InflowError),
    /// It ended early in an earlier attempt.
    #[error("the caller's body ended early before")]
    Broken,
    /// It comes too slowly.
    #[error("the caller's body came too slowly")]
    Slow,
    /// No memory is left for it.
    #[error("no memory is left for the body")]
    Shed,
    /// What stands behind it is too much. HTTP/1 never gets here: its bytes are looked at before.
    #[error("trailers too large")]
    Trailers,
    /// The application answered without asking for it.
    #[error("nobody asked for the body")]
    Unwanted,
    /// Another attempt has taken over.
    #[error("the attempt was given up")]
    GivenUp,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Replay(replay) => replay.poll(cx),
            Self::Measured(body, meter) => {
                let polled = Pin::new(body).poll_frame(cx).map_err(BodyError::Caller);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(data) = frame.data_ref()
                {
                    meter.take(data);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Measured(body, _) => body.is_end_stream(),
            Self::Replay(replay) => replay.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Measured(body, _) => body.size_hint(),
            Self::Replay(replay) => replay.source.size,
        }
    }
}

/// A caller's body that several attempts may read, one after the other.
///
/// Keeps what it has read until it is told to stop or the limit is passed; then no attempt may begin any more.
pub(crate) struct Source {
    body: RefCell<Inflow>,
    kept: RefCell<Kept>,
    size: SizeHint,
    limit: usize,
    trailer_bytes: usize,
    /// Which attempt may read.
    turn: Cell<u32>,
    received: Cell<u64>,
    keeps: Cell<bool>,
    /// When all of it had been received.
    ended: Cell<Option<Instant>>,
    end: Notify,
    /// Why it can never be read to its end.
    broken: Cell<Option<Refusal>>,
    pace: Option<RefCell<Pace>>,
    dropped_trailers: Cell<u64>,
    /// Of the connection it comes on.
    watch: Arc<Watch>,
    /// Its caller sends it only once it is told to.
    hold: Option<RefCell<Hold>>,
    /// Of gRPC.
    messages: Option<Rc<MessageMeter>>,
}

/// What a body may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Bytes that are remembered for another attempt.
    pub(crate) replay_bytes: usize,
    /// Bytes of all trailers.
    pub(crate) trailer_bytes: usize,
    /// Bytes a second, and how long it may fall behind; `None`: as slowly as it likes.
    pub(crate) pace: Option<(u32, Duration)>,
}

#[derive(Default)]
struct Kept {
    data: Vec<Bytes>,
    bytes: usize,
    trailers: Option<http::HeaderMap>,
}

impl Source {
    /// Takes a body in, within its limits.
    pub(crate) fn new(
        body: Inflow,
        limits: BodyLimits,
        hold: Option<Hold>,
        watch: &Arc<Watch>,
        messages: Option<Rc<MessageMeter>>,
    ) -> Rc<Self> {
        let BodyLimits { replay_bytes, trailer_bytes, pace } = limits;
        watch.upload_moved();
        Rc::new(Self {
            size: body.size_hint(),
            body: RefCell::new(body),
            kept: RefCell::default(),
            limit: replay_bytes,
            trailer_bytes,
            turn: Cell::new(0),
            received: Cell::new(0),
            keeps: Cell::new(true),
            ended: Cell::new(None),
            end: Notify::new(),
            broken: Cell::new(None),
            pace: pace.map(|(rate, patience)| RefCell::new(Pace::new(rate, patience))),
            dropped_trailers: Cell::new(0),
            watch: watch.clone(),
            hold: hold.map(RefCell::new),
            messages,
        })
    }

    /// Begins an attempt: earlier ones can read no more.
    pub(crate) fn attempt(self: &Rc<Self>) -> Outgoing {
        self.turn.set(self.turn.get() + 1);
        Outgoing::Replay(Replay { source: self.clone(), turn: self.turn.get(), position: 0, trailers: false })
    }

    /// Whether another attempt would see all of it.
    pub(crate) fn replayable(&self) -> bool {
        self.keeps.get() && self.broken.get().is_none()
    }

    /// Returns why its request must be refused, once it has turned out broken.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.broken.get()
    }

    /// Stops remembering: there will be no other attempt.
    pub(crate) fn forget(&self) {
        self.keeps.set(false);
        // A first attempt has read all that is kept; a later one may still be reading it.
        if self.turn.get() == 1 {
            let mut kept = self.kept.borrow_mut();
            kept.data = Vec::new();
            kept.bytes = 0;
        }
    }

    /// Returns what the application says about it, where its caller waits to be told.
    pub(crate) fn asked(&self) -> Option<Arc<Asked>> {
        self.hold.as_ref().map(|hold| hold.borrow().asked())
    }

    /// Whether its caller still waits to be told to send it.
    pub(crate) fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.borrow().is_held())
    }

    /// Nobody will say whether it is wanted: it may be read.
    pub(crate) fn release(&self) {
        if let Some(hold) = &self.hold {
            hold.borrow().release();
        }
    }

    /// The request is over: a body that nobody asked for is never read.
    pub(crate) fn abandon(&self) {
        if let Some(hold) = &self.hold {
            hold.borrow().abandon();
        }
    }

    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Trailers that were not passed on.
    pub(crate) fn dropped_trailers(&self) -> u64 {
        self.dropped_trailers.get()
    }

    /// Waits until all of it has been received, and says when that was.
    pub(crate) async fn ended(&self) -> Instant {
        loop {
            if let Some(ended) = self.ended.get() {
                return ended;
            }
            self.end.notified().await;
        }
    }

    /// Returns all of it, once it has ended within the limit.
    pub(crate) fn whole(&self) -> Option<Bytes> {
        let kept = self.kept.borrow();
        let complete = self.ended.get().is_some() && kept.bytes as u64 == self.received.get();
        complete.then(|| match kept.data.as_slice() {
            [only] => only.clone(),
            parts => parts.concat().into(),
        })
    }

    fn next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(hold) = &self.hold
            && !std::task::ready!(hold.borrow_mut().poll(cx))
        {
            return Poll::Ready(Some(Err(BodyError::Unwanted)));
        }
        let polled = Pin::new(&mut *self.body.borrow_mut()).poll_frame(cx);
        let polled = match polled {
            Poll::Pending => {
                if self.pace.as_ref().is_some_and(|pace| pace.borrow_mut().is_too_slow(cx)) {
                    self.broken.set(Some(SLOW));
                    return Poll::Ready(Some(Err(BodyError::Slow)));
                }
                return Poll::Pending;
            }
            Poll::Ready(Some(Err(error))) => {
                self.broken.set(Some(BROKEN));
                return Poll::Ready(Some(Err(error.into())));
            }
            Poll::Ready(Some(Ok(frame))) if trailers::bytes(&frame) > self.trailer_bytes => {
                self.broken.set(Some(TRAILERS));
                return Poll::Ready(Some(Err(BodyError::Trailers)));
            }
            Poll::Ready(Some(Ok(_))) if self.is_too_large() => {
                self.broken.set(Some(SHED));
                return Poll::Ready(Some(Err(BodyError::Shed)));
            }
            Poll::Ready(Some(Ok(frame))) => {
                let (frame, dropped) = trailers::without_forbidden(frame);
                self.dropped_trailers.set(self.dropped_trailers.get() + dropped);
                self.keep(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
        };
        if self.body.borrow().is_end_stream() {
            self.finish();
        }
        polled
    }

    /// Whether it must go: no memory is left, and it is a large one.
    fn is_too_large(&self) -> bool {
        self.watch.intake.left() == Left::Nothing && self.received.get() >= LARGE_UPLOAD
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.borrow_mut();
        if let Some(data) = frame.data_ref() {
            self.received.set(self.received.get() + data.len() as u64);
            self.watch.upload_moved();
            if let Some(messages) = &self.messages {
                messages.take(data);
            }
            if let Some(pace) = &self.pace {
                pace.borrow_mut().came(data.len());
            }
            if self.keeps.get() && kept.bytes + data.len() <= self.limit && !self.watch.intake.is_short() {
                kept.bytes += data.len();
                kept.data.push(data.clone());
            } else {
                self.keeps.set(false);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.trailers = Some(trailers.clone());
        }
    }

    fn finish(&self) {
        self.watch.upload_ended();
        self.ended.set(Some(self.ended.get().unwrap_or_else(Instant::now)));
        self.end.notify_waiters();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.watch.upload_ended();
    }
}

/// One attempt's view of a [`Source`].
pub(crate) struct Replay {
    source: Rc<Source>,
    turn: u32,
    position: usize,
    trailers: bool,
}

impl Replay {
    /// Whether all of it was read, and there are no trailers: known early enough, it saves an empty frame.
    fn is_over(&self) -> bool {
        let kept = self.source.kept.borrow();
        self.source.ended.get().is_some() && self.position >= kept.data.len() && kept.trailers.is_none()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.source.turn.get() != self.turn {
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
        }
        if self.source.broken.get().is_some() {
            return Poll::Ready(Some(Err(BodyError::Broken)));
        }
        if let Some(data) = self.source.kept.borrow().data.get(self.position) {
            self.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if self.source.ended.get().is_some() {
            let trailers = self.source.kept.borrow().trailers.clone().filter(|_| !self.trailers);
            self.trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let polled = self.source.next(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            // What was just read is also the newest of what is kept.
            if frame.is_data() && self.source.keeps.get() {
                self.position += 1;
            }
            self.trailers |= frame.is_trailers();
        }
        polled
    }
}

/// The caller closed, or what it sent cannot be followed.
const BROKEN: Refusal = Refusal { status: StatusCode::BAD_REQUEST, reason: "body ended early" };
/// No memory is left.
pub(crate) const SHED: Refusal = Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason: "overload" };
const TRAILERS: Refusal =
    Refusal { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: "trailers too large" };
const SLOW: Refusal = Refusal { status: StatusCode::REQUEST_TIMEOUT, reason: "body too slow" };
