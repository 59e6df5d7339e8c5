//! What a connection of a caller is doing and since when, for those who cut the slow ones; and what its bytes
//! ([`gate`](super::gate)) and its requests tell each other. differs: under Istio, Envoy lets heads take for ever.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use mesh_core::wire::guard::Refusal;

use super::budget::Intake;

/// What a connection is doing and since when.
///
/// Time is the worker's tick, whole seconds: a deadline is never early and at most a second late. Atomics only because hyper wants what it
/// reads from to be `Send`; one thread uses it.
#[derive(Debug)]
pub(crate) struct Watch {
    clock: Arc<AtomicU64>,
    /// What its worker takes in.
    pub(crate) intake: Arc<Intake>,
    since: AtomicU64,
    doing: AtomicU8,
    requests: AtomicU32,
    /// HTTP/2: bytes between requests (pings) begin no head.
    multiplexed: AtomicBool,
    /// A head has begun and is not complete, since then.
    partial: Mark,
    /// Refused and told so, since then.
    ending: Mark,
    /// A request's body has come that far then, and is not complete.
    upload: Mark,
    /// Its head did not arrive in time.
    late: AtomicBool,
    /// Heads of HTTP/1 that were handed to the parser and have come out of it.
    handled: AtomicU64,
    /// Which of them is refused; the highest number: none.
    refused_at: AtomicU64,
    refusal: OnceLock<Refusal>,
    /// How a request to switch protocols was answered.
    switch: AtomicU8,
    /// Which request of HTTP/1 may still be told an informational answer; 0: none.
    interim_for: AtomicU64,
    /// Which request of HTTP/1 was told one.
    interim_told: AtomicU64,
    /// One that waits to be written.
    has_interim: AtomicBool,
    interim: Mutex<Vec<u8>>,
    /// HTTP/1: the parser holds no bytes in either direction.
    parser_is_empty: AtomicBool,
    /// It has been idle for long enough to doze.
    drowsy: AtomicBool,
    signal: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

/// A moment, or none.
#[derive(Debug, Default)]
struct Mark(AtomicU64);

impl Mark {
    fn set(&self, now: u64) {
        if self.0.load(Relaxed) == 0 {
            self.0.store(now + 1, Relaxed);
        }
    }

    fn move_to(&self, now: u64) {
        self.0.store(now + 1, Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// Whether it was set that long ago.
    fn is_older(&self, now: u64, limit: Duration) -> bool {
        let at = self.0.load(Relaxed);
        at != 0 && now + 1 > at + limit.as_secs()
    }
}

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Nothing: go on.
    None,
    /// Finish what is under way, begin nothing new.
    Leave,
    /// End now.
    Cut,
}

/// What became of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// In time.
    No,
    /// A head is late: the caller is told so.
    Late,
    /// It was cut.
    Cut,
    /// Refused before, it was cut now.
    Ended,
}

/// How a request to switch protocols was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// Not yet.
    Undecided,
    /// It stays HTTP.
    Stay,
    /// Bytes from now on.
    Switched,
}

/// Opened, nothing came yet; or a head has begun and is not complete.
const HEAD: u8 = 0;
/// At least one request is under way, or it carries bytes.
const BUSY: u8 = 1;
/// Between requests.
const IDLE: u8 = 2;

impl Watch {
    pub(crate) fn new(clock: Arc<AtomicU64>, intake: Arc<Intake>) -> Self {
        Self {
            since: AtomicU64::new(clock.load(Relaxed)),
            clock,
            intake,
            doing: AtomicU8::new(HEAD),
            requests: AtomicU32::new(0),
            multiplexed: AtomicBool::new(false),
            partial: Mark::default(),
            ending: Mark::default(),
            upload: Mark::default(),
            late: AtomicBool::new(false),
            handled: AtomicU64::new(0),
            refused_at: AtomicU64::new(u64::MAX),
            refusal: OnceLock::new(),
            switch: AtomicU8::new(0),
            interim_for: AtomicU64::new(0),
            interim_told: AtomicU64::new(0),
            has_interim: AtomicBool::new(false),
            interim: Mutex::default(),
            parser_is_empty: AtomicBool::new(false),
            drowsy: AtomicBool::new(false),
            signal: AtomicU8::new(0),
            waker: Mutex::default(),
        }
    }

    /// Many requests at a time are carried (HTTP/2).
    pub(crate) fn multiplex(&self) {
        self.multiplexed.store(true, Relaxed);
    }

    /// It carries bytes, not requests: no deadline of ours applies.
    pub(crate) fn carries_bytes(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.doing.store(BUSY, Relaxed);
    }

    /// Returns the time: seconds since some moment.
    pub(crate) fn second(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    /// Something was read.
    pub(crate) fn saw_bytes(&self) {
        if self.doing.load(Relaxed) == IDLE && !self.multiplexed.load(Relaxed) {
            self.begin(HEAD);
        }
    }

    /// An HTTP/2 connection is open: it may wait for its first request.
    pub(crate) fn settled(&self) {
        if self.doing.load(Relaxed) == HEAD {
            self.begin(IDLE);
        }
    }

    /// A head has begun and is not complete, or is.
    pub(crate) fn head_is_partial(&self, partial: bool) {
        if partial {
            self.partial.set(self.second());
        } else {
            self.partial.clear();
        }
    }

    /// A request's head is complete.
    pub(crate) fn request_began(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.doing.store(BUSY, Relaxed);
    }

    /// A request is over.
    pub(crate) fn request_ended(&self) {
        if self.requests.fetch_sub(1, Relaxed) == 1 {
            let next = if self.partial.is_set() && !self.multiplexed.load(Relaxed) { HEAD } else { IDLE };
            self.begin(next);
        }
    }

    /// A request's body begins, or more of it was read.
    pub(crate) fn upload_moved(&self) {
        self.upload.move_to(self.second());
    }

    /// A request's body is complete, or of no interest any more.
    pub(crate) fn upload_ended(&self) {
        self.upload.clear();
    }

    /// The parser of HTTP/1 holds bytes, or none.
    pub(crate) fn parser_is_empty(&self, is_empty: bool) {
        self.parser_is_empty.store(is_empty, Relaxed);
    }

    fn may_doze(&self) -> bool {
        self.doing.load(Relaxed) == IDLE && self.parser_is_empty.load(Relaxed)
    }

    /// Whether the connection is to doze off now; says so once for each time it is idle.
    pub(crate) fn dozes_off(&self) -> bool {
        self.drowsy.load(Relaxed) && self.may_doze()
    }

    fn begin(&self, doing: u8) {
        self.drowsy.store(false, Relaxed);
        self.since.store(self.second(), Relaxed);
        self.doing.store(doing, Relaxed);
    }

    /// Cuts the connection if what it does takes too long, or has it told when a head is late.
    pub(crate) fn expire(&self, head: Duration, idle: Duration) -> Expiry {
        let now = self.second();
        if self.ending.is_set() {
            let ended = self.cut(self.ending.is_older(now, LINGER));
            return if ended == Expiry::Cut { Expiry::Ended } else { ended };
        }
        let age = now.saturating_sub(self.since.load(Relaxed));
        let is_over = |limit: Duration| age > limit.as_secs();
        let multiplexed = self.multiplexed.load(Relaxed);
        match self.doing.load(Relaxed) {
            HEAD if is_over(head) && self.partial.is_set() && !multiplexed => {
                self.ending.set(now);
                self.late.store(true, Relaxed);
                self.wake();
                Expiry::Late
            }
            HEAD => self.cut(is_over(head)),
            _ if multiplexed && self.partial.is_older(now, head) => self.cut(true),
            // Memory is short: what waits for an application that does not read, or comes from a caller who has gone
            // unnoticed behind it, is given up for those who come.
            BUSY if !multiplexed && self.intake.is_short() => self.cut(self.upload.is_older(now, STALLED)),
            IDLE if is_over(idle) => self.cut(true),
            IDLE if is_over(DOZE_AFTER) && self.may_doze() && !self.drowsy.load(Relaxed) => {
                self.drowsy.store(true, Relaxed);
                self.wake();
                Expiry::No
            }
            _ => Expiry::No,
        }
    }

    fn cut(&self, expired: bool) -> Expiry {
        if expired {
            self.tell(Signal::Cut);
            return Expiry::Cut;
        }
        Expiry::No
    }

    /// Whether the head did not arrive in time; says so once.
    pub(crate) fn takes_late(&self) -> bool {
        self.late.load(Relaxed) && self.late.swap(false, Relaxed)
    }

    /// The bytes of the connection refuse a request of HTTP/1, by its number from 1; nothing is read behind it.
    pub(crate) fn refuse(&self, request: u64, refusal: Refusal) {
        let _ = self.refusal.set(refusal);
        self.refused_at.store(request, Relaxed);
    }

    /// All was said: the connection ends soon, also if the caller does not read it.
    pub(crate) fn ends(&self) {
        self.ending.set(self.second());
    }

    /// Counts a request of HTTP/1 that came out of the parser; says whether its bytes have refused it.
    pub(crate) fn next_request(&self) -> Option<Refusal> {
        self.handled.store(self.handled.load(Relaxed) + 1, Relaxed);
        self.refused()
    }

    /// Whether the bytes have refused the request that is under way (HTTP/1).
    pub(crate) fn refused(&self) -> Option<Refusal> {
        if self.refused_at.load(Relaxed) > self.handled.load(Relaxed) {
            return None;
        }
        self.refusal.get().copied()
    }

    /// The request under way (HTTP/1) may be told an informational answer from now on. Returns its number.
    pub(crate) fn interim_begins(&self) -> u64 {
        let request = self.handled.load(Relaxed);
        self.interim_for.store(request, Relaxed);
        request
    }

    /// Its answer is there: it is too late for informational ones.
    pub(crate) fn interim_ends(&self) {
        self.interim_for.store(0, Relaxed);
    }

    /// Has a request told an informational answer, if it may be and was not told one before.
    pub(crate) fn interim(&self, request: u64, head: impl FnOnce() -> Vec<u8>) {
        let is_open = self.interim_for.load(Relaxed) == request;
        if !is_open || self.interim_told.swap(request, Relaxed) == request {
            return;
        }
        *self.interim.lock().unwrap_or_else(PoisonError::into_inner) = head();
        self.has_interim.store(true, Relaxed);
        self.wake();
    }

    /// Whether a request was told an informational answer.
    pub(crate) fn has_told_interim(&self, request: u64) -> bool {
        self.interim_told.load(Relaxed) == request
    }

    /// Takes the informational answer that waits to be written.
    pub(crate) fn take_interim(&self) -> Option<Vec<u8>> {
        let waits = self.has_interim.load(Relaxed) && self.has_interim.swap(false, Relaxed);
        waits.then(|| std::mem::take(&mut *self.interim.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Tells how a request to switch protocols was answered; once it has switched, it does not stay.
    pub(crate) fn decide(&self, switch: Switch) {
        self.switch.fetch_max(switch as u8, Relaxed);
        self.wake();
    }

    /// Returns how the request to switch was answered; the next one is undecided again.
    pub(crate) fn take_decision(&self) -> Switch {
        match self.switch.swap(0, Relaxed) {
            0 => Switch::Undecided,
            1 => Switch::Stay,
            _ => Switch::Switched,
        }
    }

    /// Tells the connection something, unless it was told worse.
    pub(crate) fn tell(&self, signal: Signal) {
        self.signal.fetch_max(signal as u8, Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }

    /// Wakes this task when something is told. Once is enough: a connection lives in one task.
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
    }

    /// Returns what was told.
    pub(crate) fn told(&self) -> Signal {
        match self.signal.load(Relaxed) {
            0 => Signal::None,
            1 => Signal::Leave,
            _ => Signal::Cut,
        }
    }
}

/// A request under way on a connection; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Watch>);

impl Busy {
    pub(crate) fn new(watch: &Arc<Watch>) -> Self {
        watch.request_began();
        Self(watch.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// Between requests for longer than that, a connection gives back its parser: making it anew costs less than keeping
/// some 20 KiB for nothing.
const DOZE_AFTER: Duration = Duration::from_secs(1);
/// How long a request's body may stand still while memory is short.
const STALLED: Duration = Duration::from_secs(2);
/// How long a refused caller may take to read why.
const LINGER: Duration = Duration::from_secs(2);
