//! The mesh port over QUIC: hops and control traffic as streams of one connection per pair.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::{Accepted, DialError, Dialer, HopTarget, Refused, TlsFault};
use super::secret::Secret;
use super::socket::SocketOptions;
use super::tls::Credentials;

/// Settings of the mesh port over QUIC.
#[derive(Debug, Clone, Default)]
pub struct QuicOptions {
    /// A secret that outlives the process (derived from the host key). With it, peers of a restarted meshd learn at
    /// once that their connection is gone; without it, after the idle limit. Default: none.
    pub reset_secret: Option<Secret>,
}

/// Accepts streams on the mesh port over QUIC.
#[derive(Debug)]
pub struct QuicListener {}

impl QuicListener {
    /// Serves a socket made by `socket::bind_udp`. Must be called on the runtime that accepts.
    pub fn new(
        socket: std::net::UdpSocket,
        credentials: &Arc<Credentials>,
        options: &QuicOptions,
    ) -> io::Result<Self> {
        todo!("{socket:?} {credentials:?} {options:?}")
    }

    /// Returns the address it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        todo!()
    }

    /// Returns the next stream, or a peer that was turned away. Never `Accepted::Join`. Cancel safe.
    pub async fn accept(&mut self) -> Result<Accepted, Refused> {
        todo!()
    }
}

#[derive(Debug)]
pub(super) struct QuicDialer {}

impl QuicDialer {
    pub(super) fn new(_options: SocketOptions) -> Self {
        Self {}
    }
}

pub(super) async fn dial_hop(_dialer: &Dialer, _target: HopTarget<'_>) -> Result<QuicStream, DialError> {
    todo!()
}

pub(super) fn refusal(_error: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<TlsFault> {
    None
}

/// One bi-directional stream of a QUIC connection.
#[derive(Debug)]
pub struct QuicStream {}

impl AsyncRead for QuicStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        todo!()
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        todo!()
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }
}
