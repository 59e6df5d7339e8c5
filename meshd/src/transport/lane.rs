//! A lane: a TLS connection to a peer that carries opaque connections, one after another.
//!
//! HTTP/2 would carry them too, in frames of 16 KiB that are copied and counted; a lane has a header of four bytes for as
//! much as was read at once, and TCP's own flow control. The source asks for an instance, the destination grants it once the
//! application is reached, or refuses; then data goes both ways until each end was told. A lane over which both ends were
//! told is free for the next connection. Anything else closes it.
//!
//! ```text
//! frame    kind (1 byte), length (3 bytes, big-endian), as many bytes
//! source   ASK instance
//! other    GRANT                      | REFUSE why
//! both     DATA …, then END each      |
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::hop::HopTarget;
use super::link::{ConfigKey, DialError, Dialer, TlsFault};
use super::tls::Protocol;
use super::tls_socket::TlsSocket;
use super::{socket, tcp};

/// One end of a lane. Reads and writes are those of the connection that it carries.
#[derive(Debug)]
pub struct Lane {
    socket: TlsSocket,
    reading: Reading,
    /// Whether we have told our end.
    ended: bool,
    opened: Instant,
    /// Dropped with it.
    held: Option<Box<dyn std::fmt::Debug + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// So many bytes of the next header are there.
    Header([u8; HEADER_BYTES], usize),
    /// So many bytes of data are to come.
    Data(usize),
    /// The other end is told.
    Ended,
}

/// Reaches a service on another host over a lane of its own and proves both ends, as [`dial_hop`](super::dial_hop) does over TCP.
/// `None`: the peer is of a version that knows no lanes.
///
/// Cancel safe: a dropped future leaves nothing behind.
pub async fn dial_lane(dialer: &Dialer, target: HopTarget<'_>) -> Result<Option<Lane>, DialError> {
    let expect = target.expect.clone();
    let key = ConfigKey { protocol: Protocol::Lane, from: Some(target.from.clone()), expect };
    match tcp::dial(dialer, target.address, Some(target.sni), &key).await {
        Ok((stream, _)) => {
            let (socket, session) = stream.into_inner();
            let failed = |source| DialError::Connect { address: target.address, source };
            socket::keep_alive(&socket, tcp::KEEP_ALIVE).map_err(failed)?;
            Ok(Some(Lane::new(TlsSocket::new(socket, session))))
        }
        Err(DialError::Tls { fault: TlsFault::NoProtocol, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Lane {
    pub(super) fn new(socket: TlsSocket) -> Self {
        Self { socket, reading: Reading::NEXT, ended: false, opened: Instant::now(), held: None }
    }

    /// Holds something for as long as it lives.
    #[must_use]
    pub fn holding(mut self, held: impl std::fmt::Debug + Send + Sync + 'static) -> Self {
        self.held = Some(Box::new(held));
        self
    }

    /// Returns what carries it, to set options of the socket.
    pub fn socket(&self) -> &TlsSocket {
        &self.socket
    }

    /// Returns how long ago both ends were proven.
    pub fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Asks for an instance and waits for the answer. `Err` within: the peer refuses, in its own words.
    ///
    /// Not cancel safe: the lane is of no more use.
    pub async fn ask(&mut self, instance: &str) -> io::Result<Result<(), String>> {
        self.tell(ASK, instance.as_bytes()).await?;
        match self.told().await? {
            Some((GRANT, _)) => {
                self.begin();
                Ok(Ok(()))
            }
            Some((REFUSE, why)) => Ok(Err(String::from_utf8(why).map_err(|_| malformed())?)),
            Some(_) => Err(malformed()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits for the source to ask for an instance. `None`: it has closed the lane.
    ///
    /// Not cancel safe: the lane is of no more use.
    pub async fn asked(&mut self) -> io::Result<Option<String>> {
        match self.told().await? {
            Some((ASK, instance)) => Ok(Some(String::from_utf8(instance).map_err(|_| malformed())?)),
            Some(_) => Err(malformed()),
            None => Ok(None),
        }
    }

    /// Grants what was asked for: the connection begins.
    pub async fn grant(&mut self) -> io::Result<()> {
        self.begin();
        self.tell(GRANT, b"").await
    }

    /// Refuses what was asked for; the source may ask for something else.
    pub async fn refuse(&mut self, why: &str) -> io::Result<()> {
        self.tell(REFUSE, why.as_bytes()).await
    }

    /// Whether the connection it carried has ended in order on both sides.
    pub fn is_free(&self) -> bool {
        self.reading == Reading::Ended && self.ended && self.socket.is_written()
    }

    fn begin(&mut self) {
        self.reading = Reading::NEXT;
        self.ended = false;
    }

    async fn tell(&mut self, kind: u8, words: &[u8]) -> io::Result<()> {
        let words = &words[..words.len().min(MOST_WORDS)];
        let mut frame = header(kind, words.len()).to_vec();
        frame.extend_from_slice(words);
        self.socket.write_all(&frame).await?;
        self.socket.flush().await
    }

    /// Reads a frame that is no data. `None`: an orderly end before it.
    async fn told(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        if poll_fn(|cx| self.socket.poll_chunk(cx).map_ok(<[u8]>::is_empty)).await? {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.socket.read_exact(&mut header).await?;
        let (kind, length) = parsed(header);
        if length > MOST_WORDS || !matches!(kind, ASK | GRANT | REFUSE) {
            return Err(malformed());
        }
        let mut words = vec![0; length];
        self.socket.read_exact(&mut words).await?;
        Ok(Some((kind, words)))
    }

    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let chunk = ready!(self.socket.poll_chunk(cx))?;
        if chunk.is_empty() {
            // Closed in order, but amidst a connection.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let count = match &mut self.reading {
            Reading::Ended => 0,
            Reading::Data(left) => {
                let count = chunk.len().min(*left).min(buf.remaining());
                buf.put_slice(&chunk[..count]);
                *left -= count;
                if *left == 0 {
                    self.reading = Reading::NEXT;
                }
                count
            }
            Reading::Header(bytes, have) => {
                let count = chunk.len().min(HEADER_BYTES - *have);
                bytes[*have..*have + count].copy_from_slice(&chunk[..count]);
                *have += count;
                if *have == HEADER_BYTES {
                    self.reading = match parsed(*bytes) {
                        (DATA, length @ 1..) => Reading::Data(length),
                        (END, 0) => Reading::Ended,
                        _ => return Poll::Ready(Err(malformed())),
                    };
                }
                count
            }
        };
        self.socket.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl Reading {
    const NEXT: Self = Self::Header([0; HEADER_BYTES], 0);
}

impl AsyncRead for Lane {
    /// Reads all that is there, from as many frames as fit.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while buf.remaining() > 0 && this.reading != Reading::Ended {
            match this.poll_some(cx, buf) {
                Poll::Ready(Ok(())) => {}
                // What was read goes first; an error comes again.
                _ if buf.filled().len() > before => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lane {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let bytes = &bytes[..bytes.len().min(MOST_DATA)];
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let header = header(DATA, bytes.len());
        ready!(this.socket.poll_parts(cx, &[io::IoSlice::new(&header), io::IoSlice::new(bytes)]))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    /// Tells the end of our direction; the lane stays.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            ready!(this.socket.poll_parts(cx, &[io::IoSlice::new(&header(END, 0))]))?;
            this.ended = true;
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }
}

fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [.., a, b, c] = length.to_be_bytes();
    [kind, a, b, c]
}

fn parsed([kind, a, b, c]: [u8; HEADER_BYTES]) -> (u8, usize) {
    (kind, usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "not what a lane carries: the peer is no meshd of a fitting version",
    )
}

const ASK: u8 = 1;
const GRANT: u8 = 2;
const REFUSE: u8 = 3;
const DATA: u8 = 4;
const END: u8 = 5;
const HEADER_BYTES: usize = 4;
/// An instance's id, or why it is refused.
const MOST_WORDS: usize = 1024;
/// Data of one frame: with its header, what [`TlsSocket`] takes at once.
const MOST_DATA: usize = 128 * 1024 - HEADER_BYTES;

#[cfg(test)]
mod tests;
