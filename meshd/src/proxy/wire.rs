//! A connection's bytes: what carries them, what was read ahead, and when something last happened.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::transport::LinkStream;

/// What carries a connection.
pub(crate) enum Stream {
    /// A socket.
    Tcp(TcpStream),
    /// A hop between hosts.
    Hop(LinkStream),
    /// A tunnel through HTTP (`CONNECT`, WebSocket).
    Tunnel(TokioIo<Upgraded>),
    /// What is inside a visitor's TLS.
    Tls(Box<tokio_rustls::server::TlsStream<Wire>>),
}

impl Stream {
    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Hop(stream) => Pin::new(stream),
            Self::Tunnel(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Hop(stream) => Pin::new(stream),
            Self::Tunnel(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

/// A connection, with the bytes read ahead of those who will read them.
pub(crate) struct Wire {
    stream: Stream,
    ahead: Bytes,
    watch: Option<Arc<Watch>>,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, ahead: Bytes::new(), watch: None }
    }

    /// Whether it is what is inside a visitor's TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Tells `watch` of everything that is read.
    pub(crate) fn watched(mut self, watch: Arc<Watch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Reads ahead until `enough` says so, the other end is silent for `patience`, has ended, or `most` bytes are
    /// there. What was read stays to be read.
    ///
    /// Not cancel safe: bytes would be lost.
    pub(crate) async fn read_ahead(
        &mut self,
        patience: Duration,
        most: usize,
        enough: impl Fn(&[u8]) -> bool,
    ) -> io::Result<&[u8]> {
        let mut buffer = BytesMut::from(&self.ahead[..]);
        let deadline = tokio::time::Instant::now() + patience;
        while !enough(&buffer) && buffer.len() < most {
            match tokio::time::timeout_at(deadline, self.stream.reader().read_buf(&mut buffer)).await {
                Err(_) | Ok(Ok(0)) => break,
                Ok(Err(error)) => return Err(error),
                Ok(Ok(_)) => {}
            }
        }
        self.ahead = buffer.freeze();
        Ok(&self.ahead)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.advance(count);
            if let Some(watch) = &this.watch {
                watch.saw_bytes();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = match &mut this.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            other => other.reader().poll_read(cx, buf),
        };
        if let (Some(watch), Poll::Ready(Ok(()))) = (&this.watch, &polled)
            && buf.filled().len() > before
        {
            watch.saw_bytes();
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().stream.writer().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => write_parts(Pin::new(stream), cx, parts),
            other => other.writer().poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Hop(stream) => stream.is_write_vectored(),
            Stream::Tunnel(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.writer().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.writer().poll_shutdown(cx)
    }
}

/// Writes a head and a short body as one piece: joining them costs less than what the kernel does to take in two.
fn write_parts(
    stream: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    parts: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    match parts {
        [only] => stream.poll_write(cx, only),
        _ if total > JOINED => stream.poll_write_vectored(cx, parts),
        _ => {
            let mut joined = [0; JOINED];
            let mut end = 0;
            for part in parts {
                joined[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
            stream.poll_write(cx, &joined[..end])
        }
    }
}

/// Bytes up to which parts are joined before they are written.
const JOINED: usize = 1024;

/// What a connection is doing and since when, for those who cut the slow ones.
///
/// Time is the worker's tick, whole seconds: deadlines hold to within one. Atomics only because hyper wants what it
/// reads from to be `Send`; one thread uses it.
#[derive(Debug)]
pub(crate) struct Watch {
    clock: Arc<AtomicU64>,
    since: AtomicU64,
    doing: AtomicU8,
    requests: AtomicU32,
    /// HTTP/2: bytes between requests (pings) begin no head.
    multiplexed: bool,
    signal: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Nothing: go on.
    None,
    /// Finish what is under way, begin nothing new.
    Leave,
    /// End now.
    Cut,
}

/// Opened, nothing came yet; or a head has begun and is not complete.
const HEAD: u8 = 0;
/// At least one request is under way.
const BUSY: u8 = 1;
/// Between requests.
const IDLE: u8 = 2;

impl Watch {
    pub(crate) fn new(clock: Arc<AtomicU64>, multiplexed: bool) -> Self {
        let since = AtomicU64::new(clock.load(Ordering::Relaxed));
        let (doing, requests) = (AtomicU8::new(HEAD), AtomicU32::new(0));
        Self { clock, since, doing, requests, multiplexed, signal: AtomicU8::new(0), waker: Mutex::default() }
    }

    fn saw_bytes(&self) {
        if !self.multiplexed && self.doing.load(Ordering::Relaxed) == IDLE {
            self.begin(HEAD);
        }
    }

    /// A request's head is complete.
    pub(crate) fn request_began(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.doing.store(BUSY, Ordering::Relaxed);
    }

    /// A request is over.
    pub(crate) fn request_ended(&self) {
        if self.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.begin(IDLE);
        }
    }

    fn begin(&self, doing: u8) {
        self.since.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        self.doing.store(doing, Ordering::Relaxed);
    }

    /// Cuts the connection if what it does takes too long. Returns whether it did.
    pub(crate) fn expire(&self, head: Duration, idle: Duration) -> bool {
        let age = self.clock.load(Ordering::Relaxed).saturating_sub(self.since.load(Ordering::Relaxed));
        let limit = match self.doing.load(Ordering::Relaxed) {
            HEAD => head,
            IDLE => idle,
            _ => return false,
        };
        let expired = age >= limit.as_secs().max(1);
        if expired {
            self.tell(Signal::Cut);
        }
        expired
    }

    /// Tells the connection something, unless it was told worse.
    pub(crate) fn tell(&self, signal: Signal) {
        self.signal.fetch_max(signal as u8, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes this task when something is told. Once is enough: a connection lives in one task.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
    }

    /// Returns what was told.
    pub(crate) fn told(&self) -> Signal {
        match self.signal.load(Ordering::Relaxed) {
            0 => Signal::None,
            1 => Signal::Leave,
            _ => Signal::Cut,
        }
    }
}

/// A request under way on a connection; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Watch>);

impl Busy {
    pub(crate) fn new(watch: &Arc<Watch>) -> Self {
        watch.request_began();
        Self(watch.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}
