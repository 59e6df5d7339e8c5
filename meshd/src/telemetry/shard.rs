//! The counters of one worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;

use super::labels::SeriesKey;
use super::{Counters, EdgeCell, EdgeKey, Series};

/// The counters of one worker. Its worker alone writes its cells and series.
#[derive(Debug, Default)]
pub struct Shard {
    /// Those that belong to no edge.
    pub counters: Counters,
    edges: Mutex<HashMap<EdgeKey, Arc<EdgeCell>>>,
    series: Mutex<HashMap<SeriesKey, Arc<Series>>>,
    /// Minutes that its worker has counted.
    minute: AtomicU64,
}

/// Beyond so many edges new ones are counted together under [`EdgeKey::other`]: names come from rules, but a hostile
/// World should not fill the memory.
const MAX_EDGES: usize = 20_000;
/// Beyond so many series new ones are counted together under [`SeriesKey::other`].
const MAX_SERIES: usize = 20_000;
/// A series that nobody has held for so many minutes is forgotten: its workload or its caller is gone.
const FORGET_AFTER: u64 = 60;

impl Shard {
    /// Returns the cell of an edge, made when it is new. Takes a lock: keep what it returns.
    pub fn edge(&self, key: &EdgeKey) -> Arc<EdgeCell> {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = edges.get(key) {
            return cell.clone();
        }
        let key = if edges.len() < MAX_EDGES { key.clone() } else { EdgeKey::other() };
        edges.entry(key.clone()).or_insert_with(|| Arc::new(EdgeCell::new(key))).clone()
    }

    /// Returns a series, made when it is new. Takes a lock: keep what it returns.
    pub fn series(&self, key: &SeriesKey) -> Arc<Series> {
        self.series_within(MAX_SERIES, key)
    }

    pub(super) fn series_within(&self, most: usize, key: &SeriesKey) -> Arc<Series> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = series.get(key) {
            return known.clone();
        }
        let key = if series.len() < most {
            key.clone()
        } else {
            Counters::add(&self.counters.overflowed_series_total);
            key.other()
        };
        let minute = self.minute.load(Ordering::Relaxed);
        series.entry(key.clone()).or_insert_with(|| Arc::new(Series::new(key, minute))).clone()
    }

    /// Forgets series that nobody has held for long. Called once a minute.
    pub fn minute(&self) {
        let now = self.minute.fetch_add(1, Ordering::Relaxed) + 1;
        self.series.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, series| {
            if Arc::strong_count(series) > 1 {
                series.used.store(now, Ordering::Relaxed);
            }
            now - series.used.load(Ordering::Relaxed) <= FORGET_AFTER
        });
    }

    /// Returns every cell.
    pub(super) fn edges(&self) -> Vec<Arc<EdgeCell>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns every series.
    pub(super) fn all_series(&self) -> Vec<Arc<Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
