//! A connection's bytes: what carries them, what was read ahead, and who looks at them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::budget::Descriptor;
use super::gate::Gate;
use super::upstream::Streams;
use crate::transport::{Lane, LinkStream, Transport, socket};

/// What carries a connection.
pub(crate) enum Stream {
    /// A socket.
    Tcp(TcpStream),
    /// A hop between hosts.
    Hop(LinkStream),
    /// A lane between hosts, for the connection that it carries.
    Lane(Box<Lane>),
    /// A tunnel through HTTP (`CONNECT`, WebSocket).
    Tunnel(TokioIo<Upgraded>),
    /// A tunnel that meshd has asked another host for.
    Streams(Box<Streams>),
    /// TLS that meshd has begun towards an application.
    Tls(Box<TlsStream<Wire>>),
    /// What is inside a visitor's TLS.
    Visitor(Box<tokio_rustls::server::TlsStream<Wire>>),
    /// A socket of this host.
    Unix(UnixStream),
    /// To a task that carries the bytes in its own way.
    Pipe(DuplexStream),
}

impl Stream {
    pub(crate) fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Hop(stream) => Pin::new(stream),
            Self::Lane(stream) => Pin::new(stream.as_mut()),
            Self::Tunnel(stream) => Pin::new(stream),
            Self::Streams(stream) => Pin::new(stream.as_mut()),
            Self::Tls(stream) => Pin::new(&mut **stream),
            Self::Pipe(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
            Self::Visitor(stream) => Pin::new(stream.as_mut()),
        }
    }

    pub(crate) fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Hop(stream) => Pin::new(stream),
            Self::Lane(stream) => Pin::new(stream.as_mut()),
            Self::Tunnel(stream) => Pin::new(stream),
            Self::Streams(stream) => Pin::new(stream.as_mut()),
            Self::Tls(stream) => Pin::new(&mut **stream),
            Self::Pipe(stream) => Pin::new(stream),
            Self::Unix(stream) => Pin::new(stream),
            Self::Visitor(stream) => Pin::new(stream.as_mut()),
        }
    }
}

/// A connection, with the bytes read ahead of those who will read them.
pub(crate) struct Wire {
    stream: Stream,
    ahead: Bytes,
    gate: Option<Box<Gate>>,
    /// Counts what carries it.
    descriptor: Option<Descriptor>,
}

impl Wire {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, ahead: Bytes::new(), gate: None, descriptor: None }
    }

    /// Holds the descriptor it was given.
    pub(crate) fn holding(mut self, descriptor: Descriptor) -> Self {
        self.descriptor = Some(descriptor);
        self
    }

    /// Returns the address at this end of the socket that carries it; `None`: it is one of many on that socket.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => socket::local_address(stream),
            Stream::Hop(stream) => stream.local_address(),
            Stream::Lane(lane) => socket::local_address(lane.socket().socket()),
            Stream::Tls(stream) => stream.get_ref().0.local_address(),
            Stream::Visitor(stream) => stream.get_ref().0.local_address(),
            Stream::Tunnel(_) | Stream::Streams(_) | Stream::Unix(_) | Stream::Pipe(_) => None,
        }
    }

    /// Returns what carries it between hosts; `None` where it is no hop of its own.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match &self.stream {
            Stream::Hop(stream) => Some(stream.transport()),
            _ => None,
        }
    }

    /// Returns the lane, where it is one.
    pub(crate) fn into_lane(self) -> Option<Box<Lane>> {
        match self.stream {
            Stream::Lane(lane) => Some(lane),
            _ => None,
        }
    }

    /// Lets only what `gate` finds sound be read.
    pub(crate) fn guarded(mut self, gate: Gate) -> Self {
        self.gate = Some(Box::new(gate));
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

impl Wire {
    /// Forgets bytes that were read ahead.
    pub(crate) fn skip(&mut self, count: usize) {
        self.ahead.advance(count.min(self.ahead.len()));
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        if let Some(gate) = &mut self.gate {
            gate.wrote(polled);
        }
    }

    /// Waits until bytes are there, and keeps them for whoever reads. `false`: the other end has ended.
    pub(crate) fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ahead.is_empty() {
            let mut first = [0; FIRST];
            let mut buf = ReadBuf::new(&mut first);
            std::task::ready!(self.stream.reader().poll_read(cx, &mut buf))?;
            self.ahead = Bytes::copy_from_slice(buf.filled());
        }
        Poll::Ready(Ok(!self.ahead.is_empty()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            return gate.poll_read(&mut this.stream, &mut this.ahead, cx, buf);
        }
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..count]);
            this.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        match &mut this.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            other => other.reader().poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            std::task::ready!(gate.before_write(&mut this.stream, cx))?;
        }
        let polled = this.stream.writer().poll_write(cx, bytes);
        this.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            std::task::ready!(gate.before_write(&mut this.stream, cx))?;
        }
        let polled = match &mut this.stream {
            Stream::Tcp(stream) => write_parts(Pin::new(stream), cx, parts),
            other => other.writer().poll_write_vectored(cx, parts),
        };
        this.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Hop(stream) => stream.is_write_vectored(),
            Stream::Lane(_) => false,
            Stream::Tunnel(stream) => stream.is_write_vectored(),
            Stream::Streams(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Pipe(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Visitor(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            std::task::ready!(gate.before_flush(&mut this.stream, cx))?;
        }
        std::task::ready!(this.stream.writer().poll_flush(cx))?;
        if let Some(gate) = &mut this.gate {
            gate.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.stream.writer().poll_shutdown(cx))?;
        match &mut this.gate {
            Some(gate) => gate.poll_linger(&mut this.stream, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
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

/// What is read of a request that wakes a dozing connection: most heads.
const FIRST: usize = 1024;
/// Bytes up to which parts are joined before they are written.
const JOINED: usize = 1024;
