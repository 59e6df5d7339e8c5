//! Which server to follow: this host's own first, then the others in random order, with pauses that grow.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::command::HostId;

/// The servers known, and whose turn it is.
pub(super) struct Servers {
    own: HostId,
    known: BTreeMap<HostId, SocketAddr>,
    turn: VecDeque<HostId>,
    failures: u32,
}

impl Servers {
    /// Starts with what `init` or `join` wrote down.
    pub(super) fn new(own: HostId, known: BTreeMap<HostId, SocketAddr>) -> Self {
        Self { own, known, turn: VecDeque::new(), failures: 0 }
    }

    /// Every server known.
    pub(super) fn known(&self) -> &BTreeMap<HostId, SocketAddr> {
        &self.known
    }

    /// Replaces the list by what a server says.
    pub(super) fn learn(&mut self, servers: BTreeMap<HostId, SocketAddr>) -> bool {
        if servers.is_empty() || servers == self.known {
            return false;
        }
        self.known = servers;
        self.turn.clear();
        true
    }

    /// Takes over newer addresses of known servers.
    pub(super) fn correct(&mut self, addresses: &BTreeMap<HostId, SocketAddr>) {
        for (id, address) in &mut self.known {
            if let Some(newer) = addresses.get(id) {
                *address = *newer;
            }
        }
    }

    /// Whose turn it is.
    ///
    /// # Panics
    /// Never: a host that is in a mesh was told of at least one server.
    pub(super) fn next(&mut self) -> (HostId, SocketAddr) {
        if self.turn.is_empty() {
            let mut order: Vec<HostId> = self.known.keys().copied().collect();
            fastrand::shuffle(&mut order);
            order.sort_by_key(|id| *id != self.own);
            self.turn = order.into();
        }
        self.failures = self.failures.saturating_add(1);
        let id = self.turn.pop_front().unwrap_or(self.own);
        (id, self.known.get(&id).copied().unwrap_or_else(|| ([127, 0, 0, 1], 15008).into()))
    }

    /// A server answered: the next failure begins with a short pause again.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
    }

    /// A server said what makes no sense here: saying it again at once will not help, though it answers.
    pub(super) fn made_no_sense(&mut self) {
        self.turn.clear();
        self.failures = u32::MAX;
    }

    /// How long to wait before the next one: none while others are untried, then full jitter under a bound that
    /// doubles from 200 ms to 5 s.
    pub(super) fn pause(&self) -> Duration {
        if !self.turn.is_empty() && (self.failures as usize) < self.known.len() {
            return Duration::from_millis(fastrand::u64(5..50));
        }
        let rounds = self.failures / u32::try_from(self.known.len().max(1)).unwrap_or(1);
        let bound = (200_u64 << rounds.min(5)).min(5_000);
        Duration::from_millis(fastrand::u64(50..=bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(ids: &[u64]) -> BTreeMap<HostId, SocketAddr> {
        let address = |id: u64| SocketAddr::from(([198, 18, 0, u8::try_from(id).unwrap_or(0)], 15008));
        ids.iter().map(|id| (HostId(*id), address(*id))).collect()
    }

    #[test]
    fn its_own_server_comes_first_then_every_other_once() {
        let mut list = Servers::new(HostId(2), servers(&[1, 2, 3]));

        let order: Vec<u64> = (0..3).map(|_| list.next().0.0).collect();

        assert_eq!(order[0], 2);
        assert_eq!(order.iter().sum::<u64>(), 6);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_shrink_after_an_answer() {
        fastrand::seed(7);
        let mut list = Servers::new(HostId(1), servers(&[1]));
        for _ in 0..40 {
            list.next();
            assert!(list.pause() <= Duration::from_secs(5));
        }
        list.answered();
        list.next();
        assert!(list.pause() <= Duration::from_millis(400));
    }

    #[test]
    fn a_server_that_makes_no_sense_is_not_asked_again_at_once() {
        fastrand::seed(7);
        let mut list = Servers::new(HostId(1), servers(&[1, 2]));
        let mut waited = Duration::ZERO;
        for _ in 0..40 {
            list.next();
            list.answered();
            list.made_no_sense();
            waited += list.pause();
        }
        assert!(waited > Duration::from_mins(1), "{waited:?}");
    }

    #[test]
    fn an_empty_list_from_a_server_is_not_believed() {
        let mut list = Servers::new(HostId(1), servers(&[1, 2]));
        assert!(!list.learn(BTreeMap::new()));
        assert_eq!(list.known().len(), 2);
    }
}
