//! Bodies on their way up: streamed, and remembered where a retry or a mirror may want them again.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::Notify;

/// The body of a request to an endpoint.
pub(crate) enum Outgoing {
    /// None.
    Empty,
    /// All of it.
    Whole(Option<Bytes>),
    /// Straight from the caller.
    Stream(Incoming),
    /// From the caller, remembered.
    Replay(Replay),
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The caller's connection broke.
    #[error("the caller's body ended early: {0}")]
    Caller(#[from] hyper::Error),
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
            Self::Stream(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Caller),
            Self::Replay(replay) => replay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Stream(body) => body.is_end_stream(),
            Self::Replay(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(body) => body.size_hint(),
            Self::Replay(replay) => replay.source.size,
        }
    }
}

/// A caller's body that several attempts may read, one after the other.
///
/// Keeps what it has read until it is told to stop or the limit is passed; then no attempt may begin any more.
pub(crate) struct Source {
    body: RefCell<Incoming>,
    kept: RefCell<Kept>,
    size: SizeHint,
    limit: usize,
    /// Which attempt may read.
    turn: Cell<u32>,
    received: Cell<u64>,
    keeps: Cell<bool>,
    /// When all of it had been received.
    ended: Cell<Option<Instant>>,
    end: Notify,
}

#[derive(Default)]
struct Kept {
    data: Vec<Bytes>,
    bytes: usize,
    trailers: Option<http::HeaderMap>,
}

impl Source {
    pub(crate) fn new(body: Incoming, limit: usize) -> Rc<Self> {
        Rc::new(Self {
            size: body.size_hint(),
            body: RefCell::new(body),
            kept: RefCell::default(),
            limit,
            turn: Cell::new(0),
            received: Cell::new(0),
            keeps: Cell::new(true),
            ended: Cell::new(None),
            end: Notify::new(),
        })
    }

    /// Begins an attempt: earlier ones can read no more.
    pub(crate) fn attempt(self: &Rc<Self>) -> Outgoing {
        self.turn.set(self.turn.get() + 1);
        Outgoing::Replay(Replay { source: self.clone(), turn: self.turn.get(), position: 0, trailers: false })
    }

    /// Whether another attempt would see all of it.
    pub(crate) fn replayable(&self) -> bool {
        self.keeps.get()
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

    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
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
        let polled = Pin::new(&mut *self.body.borrow_mut()).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.keep(frame),
            Poll::Ready(None) => self.finish(),
            _ => {}
        }
        if self.body.borrow().is_end_stream() {
            self.finish();
        }
        polled.map_err(BodyError::Caller)
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        let mut kept = self.kept.borrow_mut();
        if let Some(data) = frame.data_ref() {
            self.received.set(self.received.get() + data.len() as u64);
            if self.keeps.get() && kept.bytes + data.len() <= self.limit {
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
        self.ended.set(Some(self.ended.get().unwrap_or_else(Instant::now)));
        self.end.notify_waiters();
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
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.source.turn.get() != self.turn {
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
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
