//! One edge of the graph of calls: from a caller here to a version of a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::resilience::Flag;
use mesh_proto::api::EdgeStats;

use super::Histogram;

/// What names an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    /// Calling workload, `namespace/account`.
    pub source: Arc<str>,
    /// Full host name called.
    pub destination: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Subset the rule chose, may be empty.
    pub subset: Arc<str>,
    /// `version` label of the instance, may be empty.
    pub version: Arc<str>,
}

impl EdgeKey {
    /// What stands for all edges beyond the limit.
    pub(super) fn other() -> Self {
        let other: Arc<str> = "other".into();
        Self { source: other.clone(), destination: other, port: 0, subset: "".into(), version: "".into() }
    }
}

/// The counters of an edge in one worker.
#[derive(Debug)]
pub struct EdgeCell {
    /// Which edge.
    pub key: EdgeKey,
    requests: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
    micros: AtomicU64,
    latency: Histogram,
    outcomes: [Slot; SLOTS],
}

/// How often requests ended with one status and flag. Filled by its worker alone.
#[derive(Debug, Default)]
struct Slot {
    /// Status, and flag + 1 above 16 bits; 0: free.
    what: AtomicU32,
    count: AtomicU64,
}

/// More different ends than this count under the last.
const SLOTS: usize = 24;

impl EdgeCell {
    pub(super) fn new(key: EdgeKey) -> Self {
        Self {
            key,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            micros: AtomicU64::new(0),
            latency: Histogram::default(),
            outcomes: Default::default(),
        }
    }

    /// Counts a request that ended. `status` 0: the caller got no answer. `flag`: the first that was raised.
    ///
    /// A failure is a status of 500 or more, or none; also a gRPC answer that says so in its headers, for which
    /// `failed` is set.
    pub fn finished(&self, status: u16, flag: Option<Flag>, failed: bool, retries: u32, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if failed || status == 0 || status >= 500 {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        if retries > 0 {
            self.retries.fetch_add(retries.into(), Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.latency.record(micros);
        self.count(u32::from(status) | flag.map_or(0, |flag| (flag as u32 + 1) << 16));
    }

    fn count(&self, what: u32) {
        let last = self.outcomes.len() - 1;
        for (index, slot) in self.outcomes.iter().enumerate() {
            let holds = slot.what.load(Ordering::Relaxed);
            if holds == 0 {
                slot.what.store(what | FILLED, Ordering::Relaxed);
            }
            if holds == 0 || holds == what | FILLED || index == last {
                slot.count.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Returns status, flag and count of every way requests ended.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (u16, Option<Flag>, u64)> {
        self.outcomes.iter().filter_map(|slot| {
            let what = slot.what.load(Ordering::Relaxed);
            let status = u16::try_from(what & 0xffff).unwrap_or(0);
            let flag =
                (what >> 16 & 0xff).checked_sub(1).and_then(|index| Flag::ALL.get(index as usize).copied());
            (what != 0).then(|| (status, flag, slot.count.load(Ordering::Relaxed)))
        })
    }

    pub(super) fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    pub(super) fn latency(&self) -> &Histogram {
        &self.latency
    }
}

/// Marks a slot as used, also for status 0 without flag.
const FILLED: u32 = 1 << 31;

/// Sums the cells of one edge.
pub(super) fn sum(key: &EdgeKey, cells: &[Arc<EdgeCell>]) -> EdgeStats {
    let total = |read: fn(&EdgeCell) -> &AtomicU64| -> u64 {
        cells.iter().map(|cell| read(cell).load(Ordering::Relaxed)).sum()
    };
    let mut latency = std::collections::BTreeMap::new();
    for (bound, count) in cells.iter().flat_map(|cell| cell.latency.buckets()) {
        *latency.entry(bound).or_insert(0) += count;
    }
    EdgeStats {
        source: key.source.to_string(),
        destination: key.destination.to_string(),
        port: key.port,
        subset: key.subset.to_string(),
        version: key.version.to_string(),
        requests: total(|cell| &cell.requests),
        failures: total(|cell| &cell.failures),
        retries: total(|cell| &cell.retries),
        latency_us: latency.into_iter().collect(),
    }
}
