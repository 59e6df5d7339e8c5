//! The guard of a caller's bytes: stands between socket and parser, and lets pass what `core::wire` finds sound.
//!
//! Whole heads and bodies are looked at where they lie in the parser's buffer; only a head that is not complete is
//! copied aside until it is. What is refused in HTTP/1 reaches the parser as a request of our own, so that its answer
//! keeps its place among others, is counted and logged, and ends the connection ([`Watch::refuse`]). In HTTP/2 the
//! parser is given frames at which it ends the connection by itself, with `ENHANCE_YOUR_CALM`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::StatusCode;
use bytes::{Buf, Bytes, BytesMut};
use mesh_core::wire::guard::{Limits, Refusal};
use mesh_core::wire::http1::{Part, Refused, Requests};
use mesh_core::wire::http2::{FrameLimits, Frames};
use tokio::io::ReadBuf;

use super::watch::{Switch, Watch};
use super::wire::Stream;

/// The guard of one connection's bytes.
pub(crate) struct Gate {
    inspect: Inspect,
    watch: Arc<Watch>,
    /// Bytes that were read: those that may pass, then those of a head that is not complete.
    held: BytesMut,
    /// How many of `held` may pass.
    ready: usize,
    flow: Flow,
    /// Bytes thrown away after a refusal.
    discarded: usize,
    /// More was asked for than is there.
    hungry: bool,
    /// Something was written and not flushed.
    unflushed: bool,
    /// What is left of an informational answer that is being written.
    interim: Bytes,
}

enum Inspect {
    Http1(Requests),
    Http2 { frames: Frames, header_bytes: usize },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Looked at.
    Open,
    /// Bytes after a switch of protocols: not ours to look at.
    Opaque,
    /// Nothing passes any more.
    Closed,
    /// A body cannot be followed any more: reading fails.
    Broken,
}

impl Gate {
    pub(crate) fn http1(limits: Limits, watch: Arc<Watch>) -> Self {
        Self::new(Inspect::Http1(Requests::new(limits)), watch)
    }

    /// `header_bytes`: of a list of fields that the parser takes.
    pub(crate) fn http2(header_bytes: usize, frames: FrameLimits, watch: Arc<Watch>) -> Self {
        Self::new(Inspect::Http2 { frames: Frames::new(frames), header_bytes }, watch)
    }

    fn new(inspect: Inspect, watch: Arc<Watch>) -> Self {
        Self {
            inspect,
            watch,
            held: BytesMut::new(),
            ready: 0,
            flow: Flow::Open,
            discarded: 0,
            hungry: false,
            unflushed: false,
            interim: Bytes::new(),
        }
    }

    /// Reads what may pass. `ahead` comes before the stream.
    pub(crate) fn poll_read(
        &mut self,
        stream: &mut Stream,
        ahead: &mut Bytes,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            self.hear_decision();
            if self.ready > 0 {
                self.deliver(buf);
                return Poll::Ready(Ok(()));
            }
            match self.flow {
                Flow::Opaque => return poll_bytes(stream, ahead, cx, buf),
                Flow::Closed => return Poll::Pending,
                Flow::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                // Behind a request to switch there may come a little, not everything.
                Flow::Open if self.is_switching() && self.held.len() >= MOST_HELD => return Poll::Pending,
                Flow::Open => {}
            }
            let before = buf.filled().len();
            let read = if self.watch.intake.is_short() {
                poll_few(stream, ahead, cx, buf)
            } else {
                poll_bytes(stream, ahead, cx, buf)
            };
            if read?.is_pending() {
                if self.watch.takes_late() {
                    self.refuse(&Refused { refusal: LATE, part: Part::Head });
                    continue;
                }
                self.hungry = true;
                self.tell_whether_empty();
                return Poll::Pending;
            }
            self.hungry = false;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            self.watch.saw_bytes();
            self.watch.intake.took(buf.filled().len() - before);
            self.watch.parser_is_empty(false);
            self.look(buf, before);
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Hears how a request to switch protocols was answered.
    fn hear_decision(&mut self) {
        let Inspect::Http1(requests) = &mut self.inspect else { return };
        if !requests.is_switching() || self.flow != Flow::Open {
            return;
        }
        match self.watch.take_decision() {
            Switch::Undecided => {}
            Switch::Switched => {
                self.flow = Flow::Opaque;
                self.ready = self.held.len();
            }
            Switch::Stay => {
                requests.stay();
                self.look_at_held();
            }
        }
    }

    fn is_switching(&self) -> bool {
        matches!(&self.inspect, Inspect::Http1(requests) if requests.is_switching())
    }

    fn deliver(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.ready.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        self.ready -= count;
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// Looks at what was just read: it stays where it lies as far as it may pass.
    fn look(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let fresh = &buf.filled()[before..];
        if !self.held.is_empty() {
            self.held.extend_from_slice(fresh);
            buf.set_filled(before);
            return self.look_at_held();
        }
        let (pass, refused) = self.inspect.admit(fresh, &self.watch);
        if refused.is_none() && pass < fresh.len() {
            self.held.extend_from_slice(&fresh[pass..]);
        }
        buf.set_filled(before + pass);
        self.after(refused.as_ref());
    }

    fn look_at_held(&mut self) {
        let (pass, refused) = self.inspect.admit(&self.held, &self.watch);
        self.ready = pass;
        if refused.is_some() {
            self.held.truncate(pass);
        }
        self.after(refused.as_ref());
    }

    fn after(&mut self, refused: Option<&Stop>) {
        match refused {
            None if matches!(self.inspect, Inspect::Http1(_)) => {
                self.watch.head_is_partial(self.held.len() > self.ready && !self.is_switching());
            }
            None => {}
            Some(Stop::Request(refused)) => self.refuse(refused),
            Some(Stop::Flood(reason)) => self.calm(reason),
        }
    }

    fn refuse(&mut self, refused: &Refused) {
        let Inspect::Http1(requests) = &self.inspect else { return };
        self.held.truncate(self.ready);
        self.watch.head_is_partial(false);
        match refused.part {
            Part::Head => {
                self.watch.refuse(requests.begun() + 1, refused.refusal);
                self.held.extend_from_slice(STAND_IN);
                self.ready = self.held.len();
                self.flow = Flow::Closed;
            }
            Part::Body => {
                self.watch.refuse(requests.begun(), refused.refusal);
                self.flow = Flow::Broken;
            }
        }
    }

    fn calm(&mut self, reason: &'static str) {
        let Inspect::Http2 { frames, header_bytes } = &self.inspect else { return };
        tracing::info!(reason, "connection closed: too many of one kind of HTTP/2 frames");
        self.held.extend_from_slice(&frames.calm(*header_bytes));
        self.ready = self.held.len();
        self.flow = Flow::Closed;
        self.watch.ends();
    }

    /// Before the parser writes: writes an informational answer that waits, if nothing of the parser's is under way.
    /// Within a message it is too late for one.
    pub(crate) fn before_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            drop(self.watch.take_interim());
        }
        self.poll_interim(stream, cx)
    }

    /// Before bytes are sent on their way: the parser has written all it had, and another may follow.
    pub(crate) fn before_flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_interim(stream, cx)
    }

    fn poll_interim(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() {
            self.interim = self.watch.take_interim().unwrap_or_default().into();
        }
        while !self.interim.is_empty() {
            let count = std::task::ready!(stream.writer().poll_write(cx, &self.interim))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.advance(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Counts what was written: windows are moved, and pings sent, for it.
    pub(crate) fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        match (&mut self.inspect, polled) {
            (Inspect::Http2 { frames, .. }, Poll::Ready(Ok(count))) => frames.sent(*count),
            (Inspect::Http2 { .. }, _) => {}
            (Inspect::Http1(_), _) => {
                self.unflushed = true;
                self.watch.parser_is_empty(false);
            }
        }
    }

    /// All that was written has gone out.
    pub(crate) fn flushed(&mut self) {
        self.unflushed = false;
        self.tell_whether_empty();
    }

    /// Tells whether neither the parser nor this holds anything: all requests are complete, all answers have gone out.
    fn tell_whether_empty(&self) {
        let Inspect::Http1(requests) = &self.inspect else { return };
        let is_empty = self.hungry && !self.unflushed && self.held.is_empty() && requests.is_between();
        self.watch.parser_is_empty(is_empty && self.flow == Flow::Open);
    }

    /// After a refusal, waits for the caller to close: what it still sends, closed on, would take the answer away from
    /// it (RFC 9112, section 9.6). Bounded in bytes here and in time by the watch.
    pub(crate) fn poll_linger(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<()> {
        if !matches!(self.flow, Flow::Closed | Flow::Broken) {
            return Poll::Ready(());
        }
        self.watch.ends();
        let mut scratch = [0; 4 * 1024];
        while self.discarded < MOST_DISCARDED {
            let mut buf = ReadBuf::new(&mut scratch);
            match stream.reader().poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => self.discarded += buf.filled().len(),
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }
}

/// Why nothing more may pass.
enum Stop {
    Request(Refused),
    Flood(&'static str),
}

impl Inspect {
    /// Returns how many bytes may pass, and why no more may.
    fn admit(&mut self, bytes: &[u8], watch: &Watch) -> (usize, Option<Stop>) {
        match self {
            Self::Http1(requests) => {
                let seen = requests.admit(bytes);
                (seen.pass, seen.refused.map(Stop::Request))
            }
            Self::Http2 { frames, .. } => {
                let flood = frames.follow(bytes, watch.second());
                if frames.has_begun() {
                    watch.settled();
                }
                watch.head_is_partial(frames.is_in_block());
                flood.map_or((bytes.len(), None), |flood| (flood.pass, Some(Stop::Flood(flood.reason))))
            }
        }
    }
}

fn poll_bytes(
    stream: &mut Stream,
    ahead: &mut Bytes,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    use tokio::io::AsyncRead;
    if !ahead.is_empty() {
        let count = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..count]);
        ahead.advance(count);
        return Poll::Ready(Ok(()));
    }
    match stream {
        Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        other => other.reader().poll_read(cx, buf),
    }
}

/// Reads no more than a few bytes, so that the parser finds no reason to make its buffer larger.
fn poll_few(
    stream: &mut Stream,
    ahead: &mut Bytes,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let count = buf.remaining().min(FEW);
    let mut few = ReadBuf::new(buf.initialize_unfilled_to(count));
    let polled = poll_bytes(stream, ahead, cx, &mut few);
    let count = few.filled().len();
    buf.advance(count);
    polled
}

/// Stands in for a request whose own head must not reach the parser.
const STAND_IN: &[u8] = b"- / HTTP/1.1\r\nhost: -\r\n\r\n";
const LATE: Refusal = Refusal { status: StatusCode::REQUEST_TIMEOUT, reason: "head not complete in time" };
/// What may wait behind a request to switch protocols.
const MOST_HELD: usize = 64 * 1024;
/// What is read at once while memory is short: half of the parser's first buffer.
const FEW: usize = 4 * 1024;
/// What is thrown away of a refused caller's bytes before it is cut.
const MOST_DISCARDED: usize = 1 << 20;
