//! The counters of one worker.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;

use super::{Counters, EdgeCell, EdgeKey};

/// The counters of one worker.
#[derive(Debug, Default)]
pub struct Shard {
    /// Those that belong to no edge.
    pub counters: Counters,
    edges: Mutex<HashMap<EdgeKey, Arc<EdgeCell>>>,
}

/// Beyond so many edges new ones are counted together under [`EdgeKey::other`]: names come from rules, but a hostile
/// World should not fill the memory.
const MAX_EDGES: usize = 20_000;

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

    /// Returns every cell.
    pub(super) fn edges(&self) -> Vec<Arc<EdgeCell>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
