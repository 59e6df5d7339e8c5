//! What meshd counts and tells: one shard of counters for each worker, summed when asked, and the access log.
//!
//! Workers hold handles to their cells ([`EdgeCell`], [`Counters`]) and write them with relaxed additions; the only
//! lock guards the list of cells, taken when a new edge appears and when someone reads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use foldhash::{HashMap, HashMapExt};
use mesh_proto::api::EdgeStats;

pub use access_log::{AccessLog, Format, Sink};
pub use counters::Counters;
pub use edge::{EdgeCell, EdgeKey};
pub use histogram::Histogram;
pub use labels::{Reporter, SeriesKey, Spoken};
pub use lines::Lines;
pub use page::Exposition;
pub use record::{Goal, Record, Texts};
pub use series::{Finished, Series};
pub use shard::Shard;
pub use tap::{Tap, TapError, Told};

mod access_log;
pub mod catalog;
mod counters;
mod edge;
mod histogram;
mod labels;
mod line;
mod lines;
pub mod otlp;
mod page;
mod prometheus;
mod record;
mod series;
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

/// Questions asked of DNS, by what became of them.
#[derive(Debug)]
pub struct Questions {
    /// The mesh has answered.
    pub answered: AtomicU64,
    /// They were passed on.
    pub forwarded: AtomicU64,
    /// Nobody has answered.
    pub failed: AtomicU64,
}

/// Questions asked of this process' DNS.
pub static QUESTIONS: Questions =
    Questions { answered: AtomicU64::new(0), forwarded: AtomicU64::new(0), failed: AtomicU64::new(0) };

/// A number that is looked up when somebody asks for metrics.
#[derive(Clone, Debug)]
pub struct Sample {
    metric: &'static str,
    labels: Vec<String>,
    value: f64,
}

impl Sample {
    /// A number of a metric without labels.
    pub fn new(metric: &catalog::Metric, value: f64) -> Self {
        Self { metric: metric.name, labels: Vec::new(), value }
    }

    /// A number of a metric with labels, in the order in which the metric has them.
    pub fn labelled(metric: &catalog::Metric, labels: &[&str], value: f64) -> Self {
        Self { labels: labels.iter().map(|label| (*label).to_owned()).collect(), ..Self::new(metric, value) }
    }
}

/// Looks numbers up.
type Source = Box<dyn Fn(&mut Vec<Sample>) + Send + Sync>;

/// All counters of the data plane, and what else is told under `/metrics`.
pub struct Stats {
    shards: RwLock<Vec<Arc<Shard>>>,
    sources: Mutex<Vec<Source>>,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("shards", &self.shards).finish_non_exhaustive()
    }
}

impl Stats {
    /// Makes the counters of so many workers.
    pub fn new(workers: usize) -> Self {
        let shards = (0..workers.max(1)).map(|_| Arc::default()).collect();
        Self { shards: RwLock::new(shards), sources: Mutex::default() }
    }

    /// Returns the shard of a worker, which must be the only one to write it.
    pub fn shard(&self, worker: usize) -> Arc<Shard> {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        if shards.len() <= worker {
            shards.resize_with(worker + 1, Arc::default);
        }
        shards[worker].clone()
    }

    /// Adds numbers that are looked up whenever somebody asks for metrics.
    pub fn watch(&self, source: impl Fn(&mut Vec<Sample>) + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Sums every edge over the workers, ordered by its names.
    pub fn snapshot(&self) -> Vec<EdgeStats> {
        let rows = self.edges().iter().map(|(key, cells)| edge::sum(key, cells)).collect::<Vec<_>>();
        // A pool of connections has its edge before anything was asked, and one of the way in never counts there.
        let mut rows: Vec<_> = rows.into_iter().filter(|row| row.requests > 0).collect();
        rows.sort_by(|a, b| order(a).cmp(&order(b)));
        rows
    }

    /// Sums a counter over the workers.
    pub fn total(&self, read: impl Fn(&Counters) -> u64) -> u64 {
        self.shards().iter().map(|shard| read(&shard.counters)).sum()
    }

    /// Writes everything for Prometheus: Istio's names where it has one, `meshd_…` else.
    pub fn prometheus(&self, exposition: Exposition) -> String {
        prometheus::write(self, exposition)
    }

    fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn all_series(&self) -> Vec<Arc<Series>> {
        self.shards().iter().flat_map(|shard| shard.all_series()).collect()
    }

    fn samples(&self) -> Vec<Sample> {
        let version = env!("CARGO_PKG_VERSION");
        let count = |counter: &AtomicU64| number(counter.load(Ordering::Relaxed));
        let question = |outcome, counter| Sample::labelled(&catalog::DNS, &[outcome], count(counter));
        let mut samples = vec![
            Sample::labelled(&catalog::BUILD, &[version], 1.0),
            Sample::labelled(&catalog::ISTIO_BUILD, &["proxy", &format!("meshd-{version}")], 1.0),
            Sample::new(&catalog::PANICS, number(task_panics())),
            Sample::new(&catalog::LOG_DROPPED, number(access_log::dropped())),
            question("answered", &QUESTIONS.answered),
            question("forwarded", &QUESTIONS.forwarded),
            question("failed", &QUESTIONS.failed),
        ];
        for source in self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut samples);
        }
        samples
    }

    fn edges(&self) -> HashMap<EdgeKey, Vec<Arc<EdgeCell>>> {
        let mut edges: HashMap<EdgeKey, Vec<Arc<EdgeCell>>> = HashMap::new();
        for shard in self.shards() {
            for cell in shard.edges() {
                edges.entry(cell.key.clone()).or_default().push(cell);
            }
        }
        edges
    }
}

/// A count as metrics tell it.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2⁵³")]
pub fn number(count: u64) -> f64 {
    count as f64
}

fn order(row: &EdgeStats) -> (&str, &str, u16, &str, &str) {
    (&row.source, &row.destination, row.port, &row.subset, &row.version)
}

#[cfg(test)]
mod tests;
