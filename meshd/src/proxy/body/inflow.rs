//! Bodies that come in, over either version of HTTP: of callers' requests and of endpoints' answers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A body that comes in.
pub(crate) enum Inflow {
    /// None.
    Empty,
    /// Over HTTP/1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(Received),
}

/// A body that comes on a stream of HTTP/2.
pub(crate) struct Received {
    stream: RecvStream,
    /// What is still to come, where the head says it.
    left: Option<u64>,
    had_all_data: bool,
    of: Message,
}

/// What a body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A caller's: whole only once its end has come.
    Request,
    /// An endpoint's: it may end before its request was read, and says so by a reset without error. Source: RFC 9113, section 8.1.
    Answer,
}

/// Why a body that comes in ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflowError {
    /// A connection of HTTP/1 broke.
    #[error("{0}")]
    Http1(#[from] hyper::Error),
    /// A stream of HTTP/2 broke.
    #[error("{0}")]
    Http2(#[from] h2::Error),
}

impl Inflow {
    /// Takes the body that follows a head over HTTP/2.
    pub(crate) fn http2(of: Message, headers: &HeaderMap, stream: RecvStream) -> Self {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = length.or(stream.is_end_stream().then_some(0));
        Self::Http2(Received { stream, left, had_all_data: false, of })
    }
}

impl Received {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, InflowError>>> {
        if !self.had_all_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.end_of(error)),
                None => self.had_all_data = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(self.end_of(error)),
        }
    }

    fn end_of(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, InflowError>> {
        let is_end = self.of == Message::Answer && error.reason() == Some(Reason::NO_ERROR);
        (!is_end).then(|| Err(error.into()))
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = InflowError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, InflowError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(InflowError::Http1),
            Self::Http2(received) => received.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(received) => received.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(received) => received.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
