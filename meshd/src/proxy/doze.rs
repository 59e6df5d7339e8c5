//! Dozing: a connection of HTTP/1 that has been between requests for a while gives back its parser, with all buffers and
//! futures, and keeps its socket and the guard of its bytes. The next byte makes a new parser.
//!
//! hyper does not hand back what it reads from while it may switch protocols; so it is only lent to it, and comes home
//! when the parser is dropped. That nothing is lost is the guard's to know: `Watch::parser_is_empty`.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::watch::Signal;
use super::wire::Wire;

/// Where a connection's bytes come back to. A lock only because hyper wants what it reads from to be `Send`; it is taken
/// each time it dozes.
#[derive(Default)]
pub(super) struct Home(Arc<Mutex<Option<Wire>>>);

/// A connection's bytes, lent to a parser.
pub(super) struct Away {
    /// There until it is dropped.
    wire: Option<Wire>,
    home: Arc<Mutex<Option<Wire>>>,
}

/// How dozing ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dozed {
    /// There is something to read.
    Awake,
    /// The connection is over.
    Over,
}

/// Waits for the first byte; or closes, where the caller has gone, `told` says that the connection is cut, or nothing
/// comes within `last_request` after it was told to leave: the caller may be asking at that very moment.
pub(super) async fn wait(
    wire: &mut Wire,
    last_request: Duration,
    mut told: impl FnMut(&Context<'_>) -> Signal,
) -> Dozed {
    let mut silent = pin!(None::<tokio::time::Sleep>);
    let arrived = poll_fn(|cx| {
        match told(cx) {
            Signal::None => {}
            Signal::Cut => return Poll::Ready(Ok(false)),
            Signal::Leave => silent.set(Some(tokio::time::sleep(last_request))),
        }
        match silent.as_mut().as_pin_mut().map(|silent| silent.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Ok(false)),
            _ => wire.poll_arrival(cx),
        }
    });
    let arrived = arrived.await;
    if let Ok(true) = arrived {
        return Dozed::Awake;
    }
    let _ = tokio::time::timeout(GOODBYE, wire.shutdown()).await;
    Dozed::Over
}

/// Parsers of one worker that were given back and lie in the allocator, which returns nothing before it is used again.
#[derive(Default)]
pub(super) struct Leftovers {
    parsers: Cell<u32>,
    at_last_look: Cell<u32>,
}

impl Leftovers {
    pub(super) fn add(&self) {
        self.parsers.set(self.parsers.get().saturating_add(1));
    }

    /// Whether the allocator is to return them: they are many, or some and no more come. Asked once a second.
    pub(super) fn are_due(&self) -> bool {
        let parsers = self.parsers.get();
        let grew = self.at_last_look.replace(parsers) != parsers;
        let are_due = parsers >= MANY || (parsers >= SOME && !grew);
        if are_due {
            self.parsers.set(0);
        }
        are_due
    }
}

impl Home {
    pub(super) fn lend(&self, wire: Wire) -> Away {
        Away { wire: Some(wire), home: self.0.clone() }
    }

    /// Returns what has come home.
    pub(super) fn take(self) -> Option<Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Away {
    fn wire(self: Pin<&mut Self>) -> Pin<&mut Wire> {
        Pin::new(self.get_mut().wire.as_mut().expect("there until it is dropped"))
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.wire.take();
    }
}

impl AsyncRead for Away {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_read(cx, buf)
    }
}

impl AsyncWrite for Away {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wire().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire().poll_shutdown(cx)
    }
}

/// Parsers that are worth the milliseconds that returning them takes: some 20 MB.
const MANY: u32 = 1_024;
/// The same, while nothing else is to be returned.
const SOME: u32 = 64;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use mesh_core::wire::guard::Limits;
    use tokio::io::{AsyncReadExt as _, DuplexStream};

    use super::super::budget::{Intake, Memory};
    use super::super::gate::Gate;
    use super::super::watch::{Busy, Watch};
    use super::super::wire::Stream;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    struct Bench {
        clock: Arc<AtomicU64>,
        watch: Arc<Watch>,
        wire: Wire,
        caller: DuplexStream,
    }

    impl Bench {
        /// A connection that takes 64 bytes of an answer.
        fn new() -> Self {
            let clock = Arc::new(AtomicU64::new(0));
            let watch =
                Arc::new(Watch::new(clock.clone(), Arc::new(Intake::new(Arc::new(Memory::new(usize::MAX))))));
            let (near, caller) = tokio::io::duplex(64);
            let gate = Gate::http1(Limits::default(), watch.clone());
            Self { clock, watch, wire: Wire::new(Stream::Pipe(near)).guarded(gate), caller }
        }

        async fn serve(&mut self, answer: &[u8]) {
            self.caller.write_all(REQUEST).await.expect("open");
            self.wire.read_exact(&mut [0; REQUEST.len()]).await.expect("a request");
            let busy = Busy::new(&self.watch);
            let _ = self.wire.write(answer).await.expect("room");
            drop(busy);
        }

        /// Asks for more than is there, as a parser does between requests.
        async fn hunger(&mut self) {
            let mut byte = [0];
            tokio::select! { biased; _ = self.wire.read(&mut byte) => panic!("nothing was sent"), () = std::future::ready(()) => {} }
        }

        /// Whether it dozes off after a while.
        fn dozes_off(&self) -> bool {
            self.clock.fetch_add(2, Ordering::Relaxed);
            self.watch.expire(PATIENCE, PATIENCE);
            self.watch.dozes_off()
        }
    }

    #[tokio::test]
    async fn who_has_answered_all_and_waits_for_more_dozes_off() {
        let mut bench = Bench::new();
        bench.serve(b"done").await;
        bench.wire.flush().await.expect("open");
        assert!(!bench.dozes_off(), "nobody waits for the next request");
        bench.hunger().await;
        assert!(bench.dozes_off());
    }

    #[tokio::test]
    async fn an_answer_that_the_caller_does_not_take_keeps_the_parser() {
        let mut bench = Bench::new();
        bench.serve(&[b'x'; 64]).await;
        bench.hunger().await;
        assert!(!bench.dozes_off(), "nothing said yet that all has gone out");
        let more = tokio::select! { biased; _ = bench.wire.write(b"y") => true, () = std::future::ready(()) => false };
        assert!(!more && !bench.dozes_off());

        bench.caller.read_exact(&mut [0; 64]).await.expect("an answer");
        bench.wire.flush().await.expect("open");
        assert!(bench.dozes_off());
    }

    #[tokio::test]
    async fn half_a_head_or_body_keeps_the_parser() {
        for begun in [&REQUEST[..9], b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nx"] {
            let mut bench = Bench::new();
            bench.serve(b"done").await;
            bench.wire.flush().await.expect("open");
            bench.caller.write_all(begun).await.expect("open");
            let mut read = [0; 256];
            loop {
                let count = tokio::select! { biased; count = bench.wire.read(&mut read) => count, () = std::future::ready(()) => break };
                count.expect("open");
            }
            // As if whoever answers had not read all of it.
            drop(Busy::new(&bench.watch));
            assert!(!bench.dozes_off(), "{begun:?}");
        }
    }

    #[tokio::test]
    async fn what_is_lent_comes_home() {
        let Bench { wire, mut caller, .. } = Bench::new();
        let home = Home::default();
        drop(home.lend(wire));
        let mut wire = home.take().expect("at home");
        caller.write_all(REQUEST).await.expect("open");

        assert!(wait(&mut wire, PATIENCE, |_| Signal::None).await == Dozed::Awake);
        let mut read = [0; REQUEST.len()];
        wire.read_exact(&mut read).await.expect("what woke it");
        assert_eq!(read, *REQUEST);
        drop(caller);
        assert!(wait(&mut wire, PATIENCE, |_| Signal::None).await == Dozed::Over);
    }

    #[test]
    fn what_parsers_leave_is_returned_when_it_is_much_or_no_more_comes() {
        let leftovers = Leftovers::default();
        let add = |count: u32| (0..count).for_each(|_| leftovers.add());

        add(SOME);
        assert!(!leftovers.are_due(), "more may come");
        assert!(leftovers.are_due());
        assert!(!leftovers.are_due(), "it was returned");
        add(SOME - 1);
        assert!(!leftovers.are_due() && !leftovers.are_due(), "it is not worth the time");
        add(MANY);
        assert!(leftovers.are_due(), "although more may come");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_to_leave_may_still_ask_for_a_moment() {
        let leave_once = || {
            let mut told = Some(Signal::Leave);
            move |_: &Context<'_>| told.take().unwrap_or(Signal::None)
        };
        let Bench { mut wire, mut caller, .. } = Bench::new();
        caller.write_all(REQUEST).await.expect("open");
        assert!(wait(&mut wire, PATIENCE, leave_once()).await == Dozed::Awake);

        wire.read_exact(&mut [0; REQUEST.len()]).await.expect("a request");
        assert!(wait(&mut wire, PATIENCE, leave_once()).await == Dozed::Over);
        assert!(wait(&mut wire, PATIENCE, |_| Signal::Cut).await == Dozed::Over);
    }
}
