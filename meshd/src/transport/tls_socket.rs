//! TLS over a socket, for bulk as well as for idle connections: many records for each system call, and large buffers
//! only while bytes flow. rustls keeps the records; the handshake is tokio-rustls's.
//!
//! tokio-rustls itself reads up to 4 KiB, or what is left of a record, at a time and takes no more than 64 KiB before it
//! writes.

use std::io::{self, BufRead, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::lent::{Lent, lend};

/// A TLS connection whose handshake is done.
///
/// Writing takes everything it is given at once, as soon as what was given before has gone out.
#[derive(Debug)]
pub struct TlsSocket {
    socket: TcpStream,
    session: Connection,
    /// Records that were read and not yet looked at.
    ahead: Option<Ahead>,
    /// Whether our end was announced.
    closing: bool,
}

#[derive(Debug)]
struct Ahead {
    buffer: Lent,
    start: usize,
    end: usize,
}

impl TlsSocket {
    pub(super) fn new(socket: TcpStream, session: impl Into<Connection>) -> Self {
        let mut session = session.into();
        // What it takes is bounded here: nothing more until all has gone out.
        session.set_buffer_limit(None);
        Self { socket, session, ahead: None, closing: false }
    }

    /// Returns the socket, to set its options.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Returns what was agreed in the handshake.
    pub fn session(&self) -> &Connection {
        &self.session
    }

    /// Returns decrypted bytes as they lie there, none at an orderly end; [`consume`](Self::consume) them.
    pub(super) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        // Asked twice, for the borrow checker's sake: a chunk that is returned is borrowed to the end.
        loop {
            match self.session.reader().fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_records(cx))?;
        }
        Poll::Ready(self.session.reader().into_first_chunk())
    }

    /// Counts the first bytes of a chunk as read.
    pub(super) fn consume(&mut self, count: usize) {
        self.session.reader().consume(count);
    }

    /// Gives rustls more records: some that were read ahead, else from the socket.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ahead = if let Some(ahead) = self.ahead.take() {
            ahead
        } else {
            let mut buffer = lend();
            let mut read = ReadBuf::new(&mut buffer);
            if Pin::new(&mut self.socket).poll_read(cx, &mut read)?.is_pending() {
                // rustls gives back what its own buffer has grown by only when it is asked to read again.
                let _ = self.session.read_tls(&mut NothingYet);
                return Poll::Pending;
            }
            let end = read.filled().len();
            Ahead { buffer, start: 0, end }
        };
        // At the end of the socket this reads nothing, which tells rustls so.
        let count = self.session.read_tls(&mut &ahead.buffer[ahead.start..ahead.end])?;
        ahead.start += count;
        if count > 0 && ahead.start < ahead.end {
            self.ahead = Some(ahead);
        }
        let processed = self.session.process_new_packets();
        // An alert about what was wrong, or a new key that was asked for: goes out now or with what is written next. What
        // was wrong is told first.
        if self.session.wants_write() {
            let _ = self.poll_out(cx);
        }
        Poll::Ready(processed.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Whether all that was written has gone to the kernel.
    pub(super) fn is_written(&self) -> bool {
        !self.session.wants_write()
    }

    /// Writes records until none are left.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Nonblocking { socket: &mut self.socket, cx };
            match self.session.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts all parts once what was written before has gone out, and begins to write them.
    pub(super) fn poll_parts(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_out(cx))?;
        let count = self.session.writer().write_vectored(parts)?;
        // What does not go out now goes out with the next write or flush.
        let _ = self.poll_out(cx)?;
        Poll::Ready(Ok(count))
    }
}

struct NothingYet;

impl io::Read for NothingYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The socket, as rustls wants to write to it.
struct Nonblocking<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Nonblocking<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        settled(Pin::new(&mut *self.socket).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        settled(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn settled(polled: Poll<io::Result<usize>>) -> io::Result<usize> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl AsyncRead for TlsSocket {
    /// Reads all that is there, from as many records as fit.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let chunk = match this.poll_chunk(cx) {
                Poll::Ready(Ok(chunk)) => chunk,
                // What was read goes first; the error comes again.
                _ if buf.filled().len() > before => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            if chunk.is_empty() {
                break;
            }
            let count = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..count]);
            this.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_parts(cx, &[io::IoSlice::new(&bytes[..bytes.len().min(MOST_TAKEN)])])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut total = 0;
        let fits = parts.iter().take_while(|part| {
            total += part.len();
            total <= MOST_TAKEN
        });
        match fits.count() {
            0 => match parts.iter().find(|part| !part.is_empty()) {
                Some(first) => self.poll_write(cx, first),
                None => Poll::Ready(Ok(0)),
            },
            count => self.get_mut().poll_parts(cx, &parts[..count]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.session.send_close_notify();
        }
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

/// What is encrypted at once: bounds the memory of a peer that does not read.
const MOST_TAKEN: usize = 128 * 1024;
