//! Copying bytes both ways, with large buffers that are lent only while bytes flow.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::proxy::measure::OpenConnection;
use crate::proxy::wire::Wire;
use crate::transport::lent::{Lent, lend};

/// Two directions under way.
pub(super) struct BothWays {
    there: OneWay,
    back: OneWay,
    spoke: Rc<Cell<Instant>>,
    /// Where it is counted, while bytes pass.
    counted: Option<Rc<OpenConnection>>,
    told: (u64, u64),
}

impl BothWays {
    pub(super) fn new(counted: Option<Rc<OpenConnection>>) -> Self {
        Self {
            there: OneWay::default(),
            back: OneWay::default(),
            spoke: Rc::new(Cell::new(Instant::now())),
            counted,
            told: (0, 0),
        }
    }

    /// Returns when a byte moved last.
    pub(super) fn spoke(&self) -> Rc<Cell<Instant>> {
        self.spoke.clone()
    }

    /// Returns how many bytes went there and back.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.there.count, self.back.count)
    }

    /// Counts what has passed since this was last asked.
    fn tell(&mut self) {
        let (there, back) = self.counts();
        if let Some(counted) = self.counted.as_ref().filter(|_| self.told != (there, back)) {
            counted.passed(there - self.told.0, back - self.told.1);
            self.told = (there, back);
        }
    }

    /// Copies until both directions have ended, each for itself, or one fails.
    pub(super) async fn run(&mut self, caller: &mut Wire, endpoint: &mut Wire) -> io::Result<()> {
        poll_fn(|cx| {
            let there = self.there.poll(cx, caller, endpoint, &self.spoke);
            let back = self.back.poll(cx, endpoint, caller, &self.spoke);
            self.tell();
            let (there, back) = (there?, back?);
            if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
}

/// One direction.
#[derive(Default)]
struct OneWay {
    /// What was read and is not written, and where.
    held: Option<(Lent, usize, usize)>,
    count: u64,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// All that was written has gone out.
    #[default]
    Flushed,
    /// Something may wait to go out.
    Written,
    /// Nothing more comes.
    Ending,
    /// The other end was told.
    Ended,
}

impl OneWay {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        to: &mut Wire,
        spoke: &Cell<Instant>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..MOST_ROUNDS {
            if self.held.is_some() {
                ready!(self.poll_write(cx, to, spoke))?;
            }
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                }
                State::Flushed | State::Written => {
                    if self.poll_read(cx, from, spoke)?.is_pending() {
                        if self.state == State::Written {
                            ready!(Pin::new(&mut *to).poll_flush(cx))?;
                            self.state = State::Flushed;
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        // Others of this worker want their turn, too.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        spoke: &Cell<Instant>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = lend();
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let length = read.filled().len();
        spoke.set(Instant::now());
        if length == 0 {
            self.state = State::Ending;
        } else {
            self.count += length as u64;
            self.held = Some((buffer, 0, length));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Wire,
        spoke: &Cell<Instant>,
    ) -> Poll<io::Result<()>> {
        let Some((buffer, start, end)) = &mut self.held else { return Poll::Ready(Ok(())) };
        while start < end {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[*start..*end]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *start += count;
            // A slow reader is not silent. Source: Envoy's idle timer of a TCP proxy counts bytes sent, too.
            spoke.set(Instant::now());
            self.state = State::Written;
        }
        self.held = None;
        Poll::Ready(Ok(()))
    }
}

/// Buffers that one direction fills before others have their turn: a megabyte, about a millisecond.
const MOST_ROUNDS: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::proxy::wire::Stream;

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not_silent() {
        let (mut far, near) = duplex(1_024);
        let (mut application, there) = duplex(1 << 16);
        application.write_all(&vec![7; 20_480]).await.expect("room");
        application.shutdown().await.expect("open");
        let (mut caller, mut endpoint) = (Wire::new(Stream::Pipe(near)), Wire::new(Stream::Pipe(there)));
        let mut copy = BothWays::new(None);
        let spoke = copy.spoke();
        let read = async {
            let (mut count, mut buffer) = (0, [0; 1_024]);
            loop {
                tokio::time::sleep(Duration::from_millis(60)).await;
                let silent = spoke.get().elapsed();
                // All but the last was written a moment ago.
                let is_fresh = silent < Duration::from_millis(100) || count >= 20_480 - 1_024;
                assert!(is_fresh, "{count} bytes read, silent for {silent:?}");
                match far.read(&mut buffer).await.expect("open") {
                    0 => break,
                    more => count += more,
                }
            }
            drop(far);
            count
        };

        let (copied, count) = tokio::join!(copy.run(&mut caller, &mut endpoint), read);

        assert_eq!((copied.ok(), count), (Some(()), 20_480));
    }
}
