//! The numbers of one series of Istio's metrics, in one worker.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::resilience::Flags;

use super::labels::SeriesKey;

/// The numbers of one series in one worker. Written by that worker alone, read by whoever asks.
#[derive(Debug)]
pub struct Series {
    /// What it is told apart by.
    pub key: SeriesKey,
    /// A minute, counted by the shard, in which somebody held it.
    pub(super) used: AtomicU64,
    outcomes: [OnceLock<Box<Outcome>>; OUTCOMES],
    /// Messages of gRPC requests.
    pub(super) request_messages: AtomicU64,
    /// Messages of gRPC answers.
    pub(super) response_messages: AtomicU64,
    /// Opaque connections opened.
    pub(super) opened: AtomicU64,
    /// Opaque connections closed.
    pub(super) closed: AtomicU64,
    /// Bytes to callers on opaque connections.
    pub(super) sent: AtomicU64,
    /// Bytes from callers on opaque connections.
    pub(super) received: AtomicU64,
}

/// How requests ended, of one status, flags and gRPC status.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) flags: Flags,
    pub(super) grpc: Option<u16>,
    pub(super) count: AtomicU64,
    /// In milliseconds.
    pub(super) duration: Buckets,
    pub(super) request_bytes: Buckets,
    pub(super) response_bytes: Buckets,
}

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// 0: the caller got no answer.
    pub status: u16,
    /// Why it ended so.
    pub flags: Flags,
    /// `grpc-status`, of gRPC.
    pub grpc: Option<u16>,
    /// From its first byte to the answer's last.
    pub took: Duration,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// Different ends of one series: more count under the last. A service that answers with every status there is still has
/// most requests in few.
const OUTCOMES: usize = 32;

impl Series {
    pub(super) fn new(key: SeriesKey, minute: u64) -> Self {
        Self {
            key,
            used: AtomicU64::new(minute),
            outcomes: [const { OnceLock::new() }; OUTCOMES],
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// Counts a request that ended.
    pub fn finished(&self, end: &Finished) {
        let outcome = self.outcome(end);
        bump(&outcome.count, 1);
        let micros = u64::try_from(end.took.as_micros()).unwrap_or(u64::MAX);
        outcome.duration.record(micros, 1_000);
        outcome.request_bytes.record(end.received, 1);
        outcome.response_bytes.record(end.sent, 1);
    }

    fn outcome(&self, end: &Finished) -> &Outcome {
        for (index, slot) in self.outcomes.iter().enumerate() {
            let outcome = slot.get_or_init(|| Box::new(Outcome::new(end)));
            let is_it =
                outcome.status == end.status && outcome.flags == end.flags && outcome.grpc == end.grpc;
            if is_it || index == OUTCOMES - 1 {
                return outcome;
            }
        }
        unreachable!("the last slot takes everything")
    }

    /// Counts messages of gRPC, as they pass.
    pub fn messages(&self, request: u64, response: u64) {
        bump(&self.request_messages, request);
        bump(&self.response_messages, response);
    }

    /// Counts an opaque connection that was opened.
    pub fn opened(&self) {
        bump(&self.opened, 1);
    }

    /// Counts an opaque connection that was closed.
    pub fn closed(&self) {
        bump(&self.closed, 1);
    }

    /// Counts bytes of an opaque connection, from its caller and to it.
    pub fn bytes(&self, received: u64, sent: u64) {
        bump(&self.received, received);
        bump(&self.sent, sent);
    }

    /// Returns every way in which requests ended.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().map_while(|slot| slot.get().map(Box::as_ref))
    }
}

impl Outcome {
    fn new(end: &Finished) -> Self {
        Self {
            status: end.status,
            flags: end.flags,
            grpc: end.grpc,
            count: AtomicU64::new(0),
            duration: Buckets::default(),
            request_bytes: Buckets::default(),
            response_bytes: Buckets::default(),
        }
    }
}

/// A histogram with Istio's bounds.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    /// What is above the last bound comes last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Buckets {
    /// Counts a value that is `parts` times what the bounds count.
    fn record(&self, value: u64, parts: u64) {
        // Twice, for the bound of one half.
        let at = BOUNDS.iter().position(|bound| value.saturating_mul(2) <= bound.saturating_mul(parts));
        bump(&self.counts[at.unwrap_or(BOUNDS.len())], 1);
        bump(&self.sum, value);
    }

    /// Adds what it has counted: those of each bucket, and the sum of the values.
    pub(super) fn add_to(&self, counts: &mut [u64; BOUNDS.len() + 1], sum: &mut u64) {
        for (into, count) in counts.iter_mut().zip(&self.counts) {
            *into += count.load(Ordering::Relaxed);
        }
        *sum += self.sum.load(Ordering::Relaxed);
    }
}

/// Adds without locking the bus: one worker writes.
fn bump(counter: &AtomicU64, by: u64) {
    if by > 0 {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }
}

/// Twice the bounds of Envoy's default buckets, which Istio's histograms have, those of bytes too.
pub(super) const BOUNDS: [u64; 19] = [
    1, 2, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 60_000, 120_000, 600_000,
    1_200_000, 3_600_000, 7_200_000,
];
