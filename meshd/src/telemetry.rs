//! What meshd counts and tells: one shard of counters for each worker, summed when asked, and the access log.
//!
//! Workers hold handles to their cells ([`EdgeCell`], [`Counters`]) and write them with relaxed additions; the only
//! lock guards the list of cells, taken when a new edge appears and when someone reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::{HashMap, HashMapExt};
use mesh_proto::api::EdgeStats;

pub use access_log::{AccessLog, Format, Record, Sink};
pub use counters::Counters;
pub use edge::{EdgeCell, EdgeKey};
pub use histogram::Histogram;
pub use shard::Shard;
pub use tap::{Tap, TapError, Told};

mod access_log;
mod counters;
mod edge;
mod histogram;
mod prometheus;
mod shard;
mod tap;

/// Tells of a task that ended in a panic. The bar is 0.
pub fn task_panicked(task: &'static str) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(task, "task panicked");
}

/// Returns how many tasks have panicked since the start.
pub fn task_panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// All counters of the data plane.
#[derive(Debug)]
pub struct Stats {
    shards: Vec<Arc<Shard>>,
}

impl Stats {
    /// Makes the counters of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers.max(1)).map(|_| Arc::default()).collect() }
    }

    /// Returns the shard of a worker; workers beyond the number made share.
    pub fn shard(&self, worker: usize) -> Arc<Shard> {
        self.shards[worker % self.shards.len()].clone()
    }

    /// Sums every edge over the workers, ordered by its names.
    pub fn snapshot(&self) -> Vec<EdgeStats> {
        let mut rows: Vec<_> = self.edges().iter().map(|(key, cells)| edge::sum(key, cells)).collect();
        rows.sort_by(|a, b| order(a).cmp(&order(b)));
        rows
    }

    /// Sums a counter over the workers.
    pub fn total(&self, read: impl Fn(&Counters) -> u64) -> u64 {
        self.shards.iter().map(|shard| read(&shard.counters)).sum()
    }

    /// Writes everything in Prometheus' text format: Istio's names where it has one, `meshd_…` else.
    pub fn prometheus(&self) -> String {
        prometheus::write(self)
    }

    fn edges(&self) -> HashMap<EdgeKey, Vec<Arc<EdgeCell>>> {
        let mut edges: HashMap<EdgeKey, Vec<Arc<EdgeCell>>> = HashMap::new();
        for shard in &self.shards {
            for cell in shard.edges() {
                edges.entry(cell.key.clone()).or_default().push(cell);
            }
        }
        edges
    }
}

fn order(row: &EdgeStats) -> (&str, &str, u16, &str, &str) {
    (&row.source, &row.destination, row.port, &row.subset, &row.version)
}

#[cfg(test)]
mod tests;
