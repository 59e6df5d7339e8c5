//! The deltas of the last while, in order of revision, bounded in age, number and bytes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::command::Revision;

/// Deltas from `floor` up to the last one pushed.
#[derive(Debug)]
pub(super) struct Ring {
    /// Whoever has this revision, or a later one, can resume.
    floor: Revision,
    deltas: VecDeque<Delta>,
    changes: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Delta {
    to: Revision,
    at: Instant,
    changes: usize,
    frame: Bytes,
}

/// What a subscriber needs next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// This delta, which leads to this revision.
    Delta(Revision, Bytes),
    /// Nothing yet: it has everything.
    Nothing,
    /// What lies between is gone: a whole World.
    World,
}

impl Ring {
    pub(super) fn new(floor: Revision) -> Self {
        Self { floor, deltas: VecDeque::new(), changes: 0, bytes: 0 }
    }

    /// The last revision at which something changed.
    pub(super) fn last(&self) -> Revision {
        self.deltas.back().map_or(self.floor, |delta| delta.to)
    }

    pub(super) fn push(&mut self, at: Instant, to: Revision, changes: usize, frame: Bytes) {
        self.changes += changes;
        self.bytes += frame.len();
        self.deltas.push_back(Delta { to, at, changes, frame });
        while self.has_too_much(at) {
            let Some(oldest) = self.deltas.pop_front() else { return };
            self.changes -= oldest.changes;
            self.bytes -= oldest.frame.len();
            self.floor = oldest.to;
        }
    }

    pub(super) fn next(&self, cursor: Revision) -> Next {
        if cursor < self.floor {
            return Next::World;
        }
        let index = self.deltas.partition_point(|delta| delta.to <= cursor);
        match self.deltas.get(index) {
            Some(delta) => Next::Delta(delta.to, delta.frame.clone()),
            None => Next::Nothing,
        }
    }

    /// Old *and* many, or simply too large.
    fn has_too_much(&self, now: Instant) -> bool {
        let oldest = self.deltas.front().map(|delta| now.saturating_duration_since(delta.at));
        let old = oldest.is_some_and(|age| age > KEEP_FOR);
        (old && self.changes > KEEP_CHANGES) || self.bytes > KEEP_BYTES
    }
}

/// Deltas younger than this are kept …
const KEEP_FOR: Duration = Duration::from_secs(600);
/// … and as many changes as this, however old …
const KEEP_CHANGES: usize = 100_000;
/// … as long as they fit: 100,000 endpoints are 19 MB as JSON.
const KEEP_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn subscriber_gets_each_delta_once_and_in_order() {
        let (mut ring, now) = (Ring::new(Revision(10)), Instant::now());
        ring.push(now, Revision(12), 1, frame("a"));
        ring.push(now, Revision(15), 1, frame("b"));
        assert_eq!(ring.next(Revision(10)), Next::Delta(Revision(12), frame("a")));
        assert_eq!(ring.next(Revision(12)), Next::Delta(Revision(15), frame("b")));
        assert_eq!(ring.next(Revision(15)), Next::Nothing);
    }

    #[test]
    fn subscriber_between_two_deltas_resumes_with_the_later_one() {
        let (mut ring, now) = (Ring::new(Revision(10)), Instant::now());
        ring.push(now, Revision(12), 1, frame("a"));
        ring.push(now, Revision(15), 1, frame("b"));
        assert_eq!(ring.next(Revision(13)), Next::Delta(Revision(15), frame("b")));
    }

    #[test]
    fn subscriber_older_than_the_ring_needs_a_world() {
        assert_eq!(Ring::new(Revision(10)).next(Revision(9)), Next::World);
    }

    #[test]
    fn subscriber_ahead_of_this_server_waits() {
        assert_eq!(Ring::new(Revision(10)).next(Revision(99)), Next::Nothing);
    }

    #[test]
    fn bytes_are_bounded_and_the_floor_rises() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        let large = Bytes::from(vec![b'x'; KEEP_BYTES / 2]);
        for revision in 1..=3 {
            ring.push(now, Revision(revision), 1, large.clone());
        }
        assert_eq!(ring.next(Revision(0)), Next::World);
        assert!(matches!(ring.next(Revision(1)), Next::Delta(Revision(2), _)));
        assert!(ring.bytes <= KEEP_BYTES);
    }

    #[test]
    fn old_deltas_stay_while_they_are_few() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        ring.push(now, Revision(1), 1, frame("a"));
        ring.push(now + 2 * KEEP_FOR, Revision(2), 1, frame("b"));
        assert!(matches!(ring.next(Revision(0)), Next::Delta(Revision(1), _)));
        ring.push(now + 2 * KEEP_FOR, Revision(3), KEEP_CHANGES, frame("c"));
        assert_eq!(ring.next(Revision(0)), Next::World);
    }
}
