//! Informational answers (1xx) of applications on their way to a caller, and bodies that wait for `100 Continue`.
//!
//! HTTP/1's parser writes no such answer for others: here it is put between two of its own messages on the wire
//! ([`gate`](super::gate)). Over HTTP/2 it goes onto the stream of its request, so between hosts, too. The first `100`,
//! `102` or `103` of a request passes, and from then on the request is not tried again. Source: RFC 9110, sections
//! 10.1.1 and 15.2; Envoy's `proxy_100_continue`, which Istio switches on.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode};
use tokio::time::Sleep;

use super::body::Outgoing;
use super::request::strip_hop_by_hop;
use super::watch::Watch;

/// Tells a caller what an application says before its answer.
#[derive(Clone)]
pub(crate) struct Interim {
    way: Way,
    asked: Option<Arc<Asked>>,
}

/// How a caller is told.
#[derive(Clone)]
enum Way {
    /// Between two messages of its connection. The number says which of the connection's requests it is: a late word of
    /// another must not reach this one.
    Http1(Arc<Watch>, u64),
    /// On its stream.
    Http2(Arc<Early>),
}

/// What a stream of HTTP/2 is told before its answer. Shared with connections to applications, whose callbacks must be
/// `Send`.
#[derive(Debug, Default)]
pub(crate) struct Early {
    was_told: AtomicBool,
    waits: AtomicBool,
    head: Mutex<Option<(StatusCode, HeaderMap)>>,
    waker: Mutex<Option<Waker>>,
}

impl Early {
    fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        if self.was_told.swap(true, Relaxed) {
            return;
        }
        let mut headers = headers.clone();
        strip_hop_by_hop(&mut headers);
        *locked(&self.head) = Some((status, headers));
        self.waits.store(true, Relaxed);
        if let Some(waker) = locked(&self.waker).take() {
            waker.wake();
        }
    }

    /// Takes what is to be said before the answer; wakes the task when there is something.
    pub(crate) fn take(&self, cx: &Context<'_>) -> Option<(StatusCode, HeaderMap)> {
        if self.waits.load(Relaxed) {
            self.waits.store(false, Relaxed);
            return locked(&self.head).take();
        }
        if !self.was_told.load(Relaxed) {
            let mut waker = locked(&self.waker);
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        None
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interim {
    /// For the request of HTTP/1 that `watch` has under way.
    pub(crate) fn http1(watch: &Arc<Watch>, asked: Option<Arc<Asked>>) -> Self {
        Self { way: Way::Http1(watch.clone(), watch.interim_begins()), asked }
    }

    /// For the request of a stream.
    pub(crate) fn http2(early: &Arc<Early>) -> Self {
        Self { way: Way::Http2(early.clone()), asked: None }
    }

    /// Listens to what is said before the answer to this request.
    pub(crate) fn listen(&self, request: &mut Request<Outgoing>) {
        let this = self.clone();
        hyper::ext::on_informational(request, move |answer| this.heard(answer.status(), answer.headers()));
    }

    /// An application has said something.
    pub(crate) fn heard(&self, status: StatusCode, headers: &HeaderMap) {
        if !matches!(status.as_u16(), 100 | 102 | 103) {
            return;
        }
        // The parser says it by itself once the body is read.
        let is_asked_for = status == StatusCode::CONTINUE && self.asked.is_some();
        if let Some(asked) = self.asked.as_ref().filter(|_| is_asked_for) {
            asked.answer(GO);
        }
        match &self.way {
            Way::Http1(watch, request) => {
                watch.interim(*request, || if is_asked_for { Vec::new() } else { written(status, headers) });
            }
            Way::Http2(early) => early.tell(status, headers),
        }
    }

    /// Whether something was said: then it is too late to try again.
    pub(crate) fn has_told(&self) -> bool {
        match &self.way {
            Way::Http1(watch, request) => watch.has_told_interim(*request),
            Way::Http2(early) => early.was_told.load(Relaxed),
        }
    }
}

/// Writes the head of an informational answer.
fn written(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut headers = headers.clone();
    strip_hop_by_hop(&mut headers);
    let mut head = Vec::with_capacity(128);
    let _ =
        write!(head, "HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    for (name, value) in &headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A body whose caller sends it once it is told to. Nothing of it is read before: reading it makes the parser say so.
pub(crate) struct Hold {
    asked: Arc<Asked>,
    /// Made at the first wait.
    patience: Option<Pin<Box<Sleep>>>,
}

/// What the application has said about a body. Shared with the connection to it, whose callbacks must be `Send`.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    answer: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// Nothing yet.
const NOTHING: u8 = 0;
/// Send it.
const GO: u8 = 1;
/// It answered without wanting it.
const UNWANTED: u8 = 2;

impl Asked {
    /// Only the first answer counts.
    fn answer(&self, answer: u8) {
        let _ = self.answer.compare_exchange(NOTHING, answer, Relaxed, Relaxed);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

impl Hold {
    pub(crate) fn new() -> Self {
        Self { asked: Arc::default(), patience: None }
    }

    /// Returns what the application says about it.
    pub(crate) fn asked(&self) -> Arc<Asked> {
        self.asked.clone()
    }

    /// Nobody will say: the body may be read.
    pub(crate) fn release(&self) {
        self.asked.answer(GO);
    }

    /// The request is over: what was not asked for is never read.
    pub(crate) fn abandon(&self) {
        self.asked.answer(UNWANTED);
    }

    /// Whether nobody has asked for the body.
    pub(crate) fn is_held(&self) -> bool {
        self.asked.answer.load(Relaxed) != GO
    }

    /// Ready once the body may be read (`true`), or never will be. Without a word it is read after [`PATIENCE`].
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self.asked.answer.load(Relaxed) {
            GO => return Poll::Ready(true),
            UNWANTED => return Poll::Ready(false),
            _ => *self.asked.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone()),
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        if patience.as_mut().poll(cx).is_ready() {
            self.release();
            return Poll::Ready(true);
        }
        Poll::Pending
    }
}

/// differs: under Istio, bodies wait until the application says something. How long it may be silent about one: as long as
/// callers wait (curl: 1 s) before they send it unasked.
const PATIENCE: Duration = Duration::from_secs(1);
