//! Frames on a stream: a length (u32, big-endian), then that many bytes.
//!
//! Knows nothing of what is inside. A length above the limit is an error before a byte of it is stored, and
//! memory grows with the bytes that came, never with the bytes announced.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// The limit of one frame where nothing larger is expected: 16 MiB.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
/// The limit of one frame on streams that carry a whole World or a snapshot: 256 MiB.
pub const MAX_BULK_FRAME_BYTES: usize = 256 << 20;
/// How many bytes stand before each frame.
pub const HEADER_BYTES: usize = 4;

/// Why frames cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A frame longer than the limit of the stream: sent by the peer, or about to be sent.
    #[error("a frame of {length} bytes is longer than the limit of {limit} bytes")]
    TooLong {
        /// The length announced.
        length: usize,
        /// The limit of this stream.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, after {got} of {length} bytes")]
    CutOff {
        /// How many bytes had come.
        got: usize,
        /// How many were announced (or the size of the header).
        length: usize,
    },
    /// An earlier send was dropped half way, so nothing more can be sent.
    #[error("an earlier send on this stream was given up half way")]
    Broken,
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header of a frame; `Ok(None)` where bytes are missing.
///
/// Fails with [`FrameError::TooLong`] above `limit`.
pub fn length_of(bytes: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    Ok(Some(length))
}

/// Any stream of bytes, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream of frames, both ways.
pub struct FrameStream {
    sender: FrameSender,
    receiver: FrameReceiver,
}

/// The sending half of a [`FrameStream`].
pub struct FrameSender {
    io: WriteHalf<Box<dyn Stream>>,
    limit: usize,
    state: SendState,
    /// A byte that goes out before the first frame.
    preface: Option<u8>,
}

/// The receiving half of a [`FrameStream`].
pub struct FrameReceiver {
    io: ReadHalf<Box<dyn Stream>>,
    limit: usize,
    buffer: BytesMut,
}

impl FrameStream {
    /// Carries frames of at most `limit` bytes over a stream.
    pub fn new(io: impl Stream + 'static, limit: usize) -> Self {
        let (read, write) = tokio::io::split(Box::new(io) as Box<dyn Stream>);
        Self {
            sender: FrameSender { io: write, limit, state: SendState::Whole, preface: None },
            receiver: FrameReceiver { io: read, limit, buffer: BytesMut::new() },
        }
    }

    /// Sends one frame and flushes. Not cancel safe: see [`FrameSender::send`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), FrameError> {
        self.sender.send(frame).await
    }

    /// Receives one frame; `None` at the orderly end. Cancel safe.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, FrameError> {
        self.receiver.recv().await
    }

    /// Ends the sending direction; the other one goes on.
    pub async fn finish(&mut self) -> Result<(), FrameError> {
        self.sender.finish().await
    }

    /// Parts the two directions, for tasks that send and receive at the same time.
    pub fn into_split(self) -> (FrameSender, FrameReceiver) {
        (self.sender, self.receiver)
    }

    /// Sends `byte` ahead of the first frame, in the same write.
    pub(crate) fn with_preface(mut self, byte: u8) -> Self {
        self.sender.preface = Some(byte);
        self
    }

    /// Sets another limit for both directions.
    pub fn set_limit(&mut self, limit: usize) {
        self.sender.limit = limit;
        self.receiver.limit = limit;
    }

    /// Tells whether nothing waits to be read and the peer has not ended: fit for another call.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.receiver.is_idle()
    }
}

impl FrameSender {
    /// Sends one frame and flushes.
    ///
    /// Not cancel safe: a send that was dropped half way breaks the stream, and every later send says so.
    /// Fails before writing anything where the frame is longer than the limit.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), FrameError> {
        let length = frame.len();
        let header = match u32::try_from(length) {
            Ok(header) if length <= self.limit => header.to_be_bytes(),
            _ => {
                return Err(FrameError::TooLong { length, limit: self.limit });
            }
        };
        if std::mem::replace(&mut self.state, SendState::Midway) == SendState::Midway {
            return Err(FrameError::Broken);
        }
        let head: Bytes = self.preface.take().into_iter().chain(header).collect();
        let mut both = head.chain(frame);
        self.io.write_all_buf(&mut both).await?;
        self.io.flush().await?;
        self.state = SendState::Whole;
        Ok(())
    }

    /// Ends this direction in order: the peer's `recv` returns `None`.
    pub async fn finish(&mut self) -> Result<(), FrameError> {
        Ok(self.io.shutdown().await?)
    }
}

impl FrameReceiver {
    /// Receives one frame; `None` where the peer ended between two frames.
    ///
    /// Cancel safe: bytes that came stay in the buffer.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return self.end(),
                // TLS without close_notify: a frame knows its own length, so nothing can be cut off unseen.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.end(),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a whole frame out of the buffer, or makes room for more of it.
    fn take(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = length_of(&self.buffer, self.limit)? else {
            self.buffer.reserve(READ_BYTES);
            return Ok(None);
        };
        let whole = HEADER_BYTES + length;
        if self.buffer.len() < whole {
            let missing = whole - self.buffer.len();
            self.buffer.reserve(missing.min(READ_BYTES));
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn end(&self) -> Result<Option<Bytes>, FrameError> {
        let got = self.buffer.len();
        if got == 0 {
            return Ok(None);
        }
        let length = length_of(&self.buffer, self.limit)?;
        Err(FrameError::CutOff {
            got: got.saturating_sub(if length.is_some() { HEADER_BYTES } else { 0 }),
            length: length.unwrap_or(HEADER_BYTES),
        })
    }

    fn is_idle(&mut self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut byte = [0u8; 1];
        let mut room = tokio::io::ReadBuf::new(&mut byte);
        self.buffer.is_empty()
            && std::pin::Pin::new(&mut self.io).poll_read(&mut context, &mut room).is_pending()
    }
}

impl std::fmt::Debug for FrameStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameStream").field("limit", &self.receiver.limit).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Whole,
    Midway,
}

/// How much room one read is given; a frame that is larger doubles the buffer as it arrives.
const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;
