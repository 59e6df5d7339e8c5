//! A body on its way into a stream of HTTP/2: a request's to an endpoint, an answer's to a caller.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Moves a body into a stream, as far as there is room for it. As a future it is over when all was moved, or the stream
/// is no more.
pub(crate) struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data that waits for room, and whether it is the last.
    held: Option<(Bytes, bool)>,
    is_over: bool,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
{
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, held: None, is_over: false }
    }

    /// Whether nothing is left to be moved.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Moves what can be moved now; may be asked again after its end.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.is_over {
            // Asked before each wait: a reset by the endpoint wakes this task.
            if self.stream.poll_reset(cx).is_ready() {
                self.is_over = true;
            } else if let Some((data, is_last)) = self.held.take() {
                if !data.is_empty() && self.stream.capacity() == 0 {
                    self.held = Some((data, is_last));
                    let room = ready!(self.stream.poll_capacity(cx));
                    self.is_over = !matches!(room, Some(Ok(_)));
                } else {
                    self.is_over = self.stream.send_data(data, is_last).is_err() || is_last;
                }
            } else {
                let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
                self.take(frame);
            }
        }
        Poll::Ready(())
    }

    fn take(&mut self, frame: Option<Result<http_body::Frame<Bytes>, B::Error>>) {
        match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
            None => self.held = Some((Bytes::new(), true)),
            Some(Err(error)) => {
                self.stream.send_reset(reason_of(&error));
                self.is_over = true;
            }
            // Empty frames say nothing, and count against a connection that many streams share.
            Some(Ok(Ok(data))) if data.is_empty() && !self.body.is_end_stream() => {}
            Some(Ok(Ok(data))) => {
                // Only asked for once there is data, and little: room that is held takes that of other streams.
                self.stream.reserve_capacity(usize::from(!data.is_empty()));
                self.held = Some((data, self.body.is_end_stream()));
            }
            Some(Ok(Err(frame))) => {
                if let Ok(trailers) = frame.into_trailers() {
                    let _ = self.stream.send_trailers(trailers);
                    self.is_over = true;
                }
            }
        }
    }
}

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll_send(cx)
    }
}

/// Who is at the other end is told what has been told to us, where that was a reset.
fn reason_of(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(reset) = inner.downcast_ref::<h2::Error>() {
            return reset.reason().unwrap_or(Reason::INTERNAL_ERROR);
        }
        cause = inner.source();
    }
    Reason::INTERNAL_ERROR
}
