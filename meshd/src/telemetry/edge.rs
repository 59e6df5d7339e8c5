//! One edge of the graph of calls: from a caller here to a version of a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    latency: Histogram,
}

impl EdgeCell {
    pub(super) fn new(key: EdgeKey) -> Self {
        Self {
            key,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            latency: Histogram::default(),
        }
    }

    /// Counts a request that ended. `status` 0: the caller got no answer.
    ///
    /// A failure is a status of 500 or more, or none; also a gRPC answer that says so in its headers, for which
    /// `failed` is set.
    pub fn finished(&self, status: u16, failed: bool, retries: u32, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        if failed || status == 0 || status >= 500 {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        if retries > 0 {
            self.retries.fetch_add(retries.into(), Ordering::Relaxed);
        }
        self.latency.record(micros);
    }
}

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
