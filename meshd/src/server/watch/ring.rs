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
    /// Leads who has exactly this earlier revision to where the ring began.
    bridge: Option<(Revision, Bytes)>,
    deltas: VecDeque<Delta>,
    changes: usize,
    bytes: usize,
    /// Deltas beyond this many bytes are forgotten, the oldest first.
    most_bytes: usize,
}

#[derive(Debug)]
struct Delta {
    from: Revision,
    to: Revision,
    at: Instant,
    changes: usize,
    frame: Bytes,
}

/// What a subscriber needs next.
#[derive(Debug, PartialEq)]
pub(in crate::server) enum Next {
    /// This delta, which leads from one revision to another.
    Delta { from: Revision, to: Revision, frame: Bytes },
    /// Nothing yet: it has everything.
    Nothing,
    /// What lies between is gone: a whole World.
    World,
}

impl Ring {
    /// Keeps at most [`KEEP_BYTES`].
    pub(super) fn new(floor: Revision) -> Self {
        Self { floor, bridge: None, deltas: VecDeque::new(), changes: 0, bytes: 0, most_bytes: KEEP_BYTES }
    }

    /// Begins again at `floor`, within the same bounds.
    pub(super) fn restart(&mut self, floor: Revision) {
        *self = Self { most_bytes: self.most_bytes, ..Self::new(floor) };
    }

    /// Adds what leads from exactly `from` to where the ring has just begun again; nothing where that is too long.
    pub(super) fn bridge(&mut self, from: Revision, frame: Bytes) {
        if frame.len() <= self.most_bytes {
            self.bridge = Some((from, frame));
        }
    }

    /// From now on keeps deltas of at most this many bytes.
    pub(super) fn bound(&mut self, most_bytes: usize) {
        self.most_bytes = most_bytes;
        while self.bytes > most_bytes {
            self.forget_oldest();
        }
    }

    /// Adds what changed `between` two revisions that follow each other in the log.
    pub(super) fn push(&mut self, at: Instant, between: (Revision, Revision), changes: usize, frame: Bytes) {
        let (from, to) = between;
        self.changes += changes;
        self.bytes += frame.len();
        self.deltas.push_back(Delta { from, to, at, changes, frame });
        while self.has_too_much(at) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.deltas.pop_front() else { return };
        self.changes -= oldest.changes;
        self.bytes -= oldest.frame.len();
        self.floor = oldest.to;
        self.bridge = None;
    }

    pub(super) fn next(&self, cursor: Revision) -> Next {
        if cursor < self.floor {
            let bridge = self.bridge.as_ref().filter(|(from, _)| *from == cursor);
            return bridge.map_or(Next::World, |(from, frame)| Next::Delta {
                from: *from,
                to: self.floor,
                frame: frame.clone(),
            });
        }
        let index = self.deltas.partition_point(|delta| delta.to <= cursor);
        match self.deltas.get(index) {
            Some(delta) => Next::Delta { from: delta.from, to: delta.to, frame: delta.frame.clone() },
            None => Next::Nothing,
        }
    }

    /// Old *and* many, or simply too large.
    fn has_too_much(&self, now: Instant) -> bool {
        let oldest = self.deltas.front().map(|delta| now.saturating_duration_since(delta.at));
        let old = oldest.is_some_and(|age| age > KEEP_FOR);
        (old && self.changes > KEEP_CHANGES) || self.bytes > self.most_bytes
    }
}

/// Deltas younger than this are kept …
const KEEP_FOR: Duration = Duration::from_mins(10);
/// … and as many changes as this, however old …
const KEEP_CHANGES: usize = 100_000;
/// … as long as they fit: 100,000 endpoints are 19 MB as JSON.
pub(super) const KEEP_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn push(ring: &mut Ring, at: Instant, from: u64, to: u64, changes: usize) {
        ring.push(at, (Revision(from), Revision(to)), changes, frame(to));
    }

    fn frame(to: u64) -> Bytes {
        Bytes::from(to.to_string())
    }

    fn delta(from: u64, to: u64) -> Next {
        Next::Delta { from: Revision(from), to: Revision(to), frame: frame(to) }
    }

    #[test]
    fn subscriber_gets_each_delta_once_and_in_order() {
        let (mut ring, now) = (Ring::new(Revision(10)), Instant::now());
        push(&mut ring, now, 10, 12, 1);
        push(&mut ring, now, 14, 15, 1);
        assert_eq!(ring.next(Revision(10)), delta(10, 12));
        assert_eq!(ring.next(Revision(12)), delta(14, 15));
        assert_eq!(ring.next(Revision(15)), Next::Nothing);
    }

    #[test]
    fn subscriber_between_two_deltas_resumes_with_the_later_one() {
        let (mut ring, now) = (Ring::new(Revision(10)), Instant::now());
        push(&mut ring, now, 10, 12, 1);
        push(&mut ring, now, 14, 15, 1);
        assert_eq!(ring.next(Revision(13)), delta(14, 15));
    }

    #[test]
    fn subscriber_older_than_the_ring_needs_a_world() {
        assert_eq!(Ring::new(Revision(10)).next(Revision(9)), Next::World);
    }

    #[test]
    fn a_bridge_serves_exactly_the_revision_that_it_begins_at() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        ring.restart(Revision(10));
        ring.bridge(Revision(7), frame(10));
        push(&mut ring, now, 10, 12, 1);
        assert_eq!(ring.next(Revision(7)), delta(7, 10));
        assert_eq!(ring.next(Revision(10)), delta(10, 12));
        for other in [6, 8, 9] {
            assert_eq!(ring.next(Revision(other)), Next::World, "{other}");
        }
        ring.bound(0);
        assert_eq!(ring.next(Revision(7)), Next::World, "what it leads to is forgotten");
    }

    #[test]
    fn a_bridge_longer_than_the_bound_is_none() {
        let mut ring = Ring::new(Revision(0));
        ring.bound(1);
        ring.restart(Revision(10));
        ring.bridge(Revision(7), frame(10));
        assert_eq!(ring.next(Revision(7)), Next::World);
    }

    #[test]
    fn subscriber_ahead_of_this_server_waits() {
        assert_eq!(Ring::new(Revision(10)).next(Revision(99)), Next::Nothing);
    }

    #[test]
    fn bytes_are_bounded_and_the_floor_rises() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        let large = Bytes::from(vec![b'x'; KEEP_BYTES / 2]);
        for to in 1..=3 {
            ring.push(now, (Revision(to - 1), Revision(to)), 1, large.clone());
        }
        assert_eq!(ring.next(Revision(0)), Next::World);
        assert!(matches!(ring.next(Revision(1)), Next::Delta { to: Revision(2), .. }));
        assert!(ring.bytes <= KEEP_BYTES);
    }

    #[test]
    fn a_tighter_bound_keeps_the_newest() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        for to in 1..=3 {
            ring.push(now, (Revision(to - 1), Revision(to)), 1, Bytes::from(vec![b'x'; 100]));
        }
        ring.bound(200);
        assert_eq!(ring.next(Revision(0)), Next::World);
        assert!(matches!(ring.next(Revision(1)), Next::Delta { to: Revision(2), .. }));

        ring.restart(Revision(3));
        for to in 4..=6 {
            ring.push(now, (Revision(to - 1), Revision(to)), 1, Bytes::from(vec![b'x'; 100]));
        }
        assert_eq!(ring.next(Revision(3)), Next::World, "the bound stays");
    }

    #[test]
    fn old_deltas_stay_while_they_are_few() {
        let (mut ring, now) = (Ring::new(Revision(0)), Instant::now());
        push(&mut ring, now, 0, 1, 1);
        push(&mut ring, now + 2 * KEEP_FOR, 1, 2, 1);
        assert_eq!(ring.next(Revision(0)), delta(0, 1));
        push(&mut ring, now + 2 * KEEP_FOR, 2, 3, KEEP_CHANGES);
        assert_eq!(ring.next(Revision(0)), Next::World);
    }
}
