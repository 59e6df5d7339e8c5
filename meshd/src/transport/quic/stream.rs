//! One stream of a QUIC connection as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One bi-directional stream of a QUIC connection.
#[derive(Debug)]
pub struct QuicStream {
    send: SendStream,
    recv: RecvStream,
    when_dropped: WhenDropped,
    /// Counts the users of a dialled connection, so that an unused one can be closed.
    _user: Option<Arc<()>>,
}

/// What dropping a stream tells a peer that was not told the end in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenDropped {
    /// That it was cut off, as a TCP connection without `close_notify` does. For hops.
    Reset,
    /// That this was all; what was sent still arrives. For frames, which know their own length.
    Finish,
}

impl QuicStream {
    pub(super) fn new(
        send: SendStream,
        recv: RecvStream,
        when_dropped: WhenDropped,
        user: Option<Arc<()>>,
    ) -> Self {
        Self { send, recv, when_dropped, _user: user }
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        if self.when_dropped == WhenDropped::Reset {
            // Fails only where the stream is over already.
            let _ = self.send.reset(VarInt::from_u32(0));
        }
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.get_mut().recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().send), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().send), cx)
    }

    /// Ends the sending direction; dropping the stream afterwards resets nothing that was sent.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.when_dropped = WhenDropped::Finish;
        AsyncWrite::poll_shutdown(Pin::new(&mut this.send), cx)
    }
}
