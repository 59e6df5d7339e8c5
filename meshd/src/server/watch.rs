//! Fan-out: what changed, told to every agent that watches.
//!
//! The [`Hub`] keeps the deltas of the last while, each encoded once and shared by all. A subscriber
//! is a cursor into it, so one that does not read costs one frame and no queue; when the hub has
//! moved on without it, it begins again with a whole World. Both sides say something at least every
//! 2 s; what agents say goes to [`Heard`](super::leases::Heard).

mod ring;
mod stream;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use mesh_proto::command::Revision;
use mesh_proto::watch::{Change, Down};
use serde::Serialize;
use tokio::sync::watch;

pub(super) use self::ring::Next;
use self::ring::{KEEP_BYTES, Ring};
pub(super) use self::stream::{StreamEnd, Streams};

/// The deltas of the last while and the newest revision. One per server.
#[derive(Debug)]
pub(super) struct Hub {
    ring: Mutex<Ring>,
    head: watch::Sender<Revision>,
}

impl Hub {
    /// Keeps little until the log is read: who follows has nearly all of it.
    pub(super) fn new() -> Self {
        let mut ring = Ring::new(Revision(0));
        ring.bound(KEEP_OF_LOG);
        Self { ring: Mutex::new(ring), head: watch::Sender::new(Revision(0)) }
    }

    /// Forgets all deltas: the World was replaced by one at `revision`.
    pub(super) fn restart(&self, revision: Revision) {
        self.ring().restart(revision);
        self.head.send_replace(revision);
    }

    /// Adds what leads who has exactly the World at `from` to the one that [`Hub::restart`] has just begun at.
    pub(super) fn bridge(&self, from: Revision, changes: Vec<Change>) {
        let to = *self.head.borrow();
        self.ring().bridge(from, encode(&Down::Delta { from, to, changes }));
    }

    /// The log is read: from now on what changes is kept for a while.
    pub(super) fn begun(&self) {
        self.ring().bound(KEEP_BYTES);
    }

    /// Adds what the entry at `revision` changed; nothing, for a refused one.
    ///
    /// Called by one task only, in the order of the log.
    pub(super) fn publish(&self, revision: Revision, changes: Vec<Change>) {
        let (from, count) = (*self.head.borrow(), changes.len());
        if count > 0 {
            let delta = encode(&Down::Delta { from, to: revision, changes });
            self.ring().push(Instant::now(), (from, revision), count, delta);
        }
        self.head.send_replace(revision);
    }

    /// The newest revision, and waiting for it.
    pub(super) fn head(&self) -> watch::Receiver<Revision> {
        self.head.subscribe()
    }

    /// What a subscriber at `cursor` needs next.
    pub(super) fn next(&self, cursor: Revision) -> Next {
        self.ring().next(cursor)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of deltas that are kept of the log at the start: some thousand changes.
const KEEP_OF_LOG: usize = 1 << 20;

/// Messages to agents are plain data: they always encode.
fn encode(message: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("plain data with string keys encodes as JSON"))
}

#[cfg(test)]
mod tests;
