//! When a peer is tried over UDP: always at first; where UDP is silent but TCP gets through, only now and then.
//!
//! A firewall that drops UDP costs the first connection [`UDP_PATIENCE`], and every later one nothing until UDP is tried
//! again. A peer that answers neither way is down, which says nothing about UDP; nor does one that hands over: for some
//! seconds it refuses, and then nobody reads what comes until its successor does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a handshake over UDP may take before TCP is tried.
pub(super) const UDP_PATIENCE: Duration = Duration::from_millis(300);
/// How long UDP is left alone when TCP alone got through for the first time; doubles up to [`UDP_REST`].
pub(super) const UDP_FIRST_REST: Duration = Duration::from_secs(5);
/// How long UDP is left alone at most.
pub(super) const UDP_REST: Duration = Duration::from_mins(5);

/// What is known about UDP to one peer.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Until when TCP is used without trying.
    until: Option<Instant>,
    /// Whether UDP was silent a moment ago and it is not known yet whether TCP gets through.
    undecided: bool,
    /// How often in a row UDP was silent while TCP got through.
    blocked: u32,
    /// When the meshd there was last known to leave.
    left: Option<Instant>,
}

impl Rest {
    /// Whether TCP is to be used without trying UDP.
    pub(super) fn is_on(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes that UDP was silent: others go straight to TCP; whether that works decides for how long.
    pub(super) fn silent(&mut self) {
        if self.left.is_some_and(|left| left.elapsed() < SUCCEEDED_WITHIN) {
            // Its successor does not read yet.
            self.until = Some(Instant::now() + MOVES_FOR);
            return;
        }
        self.until = Some(Instant::now() + UDP_PAUSE);
        self.undecided = true;
    }

    /// Notes that the meshd there takes no more over QUIC and says so: for a moment TCP gets through, and UDP does not.
    pub(super) fn moved(&mut self) {
        self.left();
        self.until = Some(Instant::now() + MOVES_FOR);
    }

    /// Notes that the meshd there has closed its connections; its successor may answer already.
    pub(super) fn left(&mut self) {
        self.left = Some(Instant::now());
    }

    /// Notes whether TCP got through. Returns for how long UDP is left alone from now on, where that is news.
    pub(super) fn learn(&mut self, tcp_works: bool) -> Option<Duration> {
        if !std::mem::take(&mut self.undecided) {
            return None;
        }
        if !tcp_works {
            self.until = None;
            return None;
        }
        // A host that has just started answers TCP a moment before UDP: the first rest is short.
        let rest = UDP_FIRST_REST.saturating_mul(1 << self.blocked.min(8)).min(UDP_REST);
        self.until = Some(Instant::now() + rest);
        self.blocked = self.blocked.saturating_add(1);
        Some(rest)
    }
}

/// What is known about UDP to every peer that a dialer was silent to.
#[derive(Debug, Default)]
pub(super) struct Rests(Mutex<HashMap<SocketAddr, Rest>>);

impl Rests {
    /// Whether TCP is to be used to a peer without trying UDP.
    pub(super) fn is_on(&self, address: SocketAddr) -> bool {
        self.peers().get(&address).is_some_and(Rest::is_on)
    }

    /// Notes that UDP was silent.
    pub(super) fn silent(&self, address: SocketAddr) {
        self.note(address, Rest::silent);
    }

    /// Notes that the meshd there takes no more over QUIC: see [`Rest::moved`].
    pub(super) fn moved(&self, address: SocketAddr) {
        self.note(address, Rest::moved);
    }

    /// Notes that the meshd there has closed its connections: see [`Rest::left`].
    pub(super) fn left(&self, address: SocketAddr) {
        self.note(address, Rest::left);
    }

    fn note(&self, address: SocketAddr, what: impl FnOnce(&mut Rest)) {
        let mut peers = self.peers();
        if peers.len() >= MAX_PEERS {
            peers.retain(|_, rest| rest.is_on());
        }
        if peers.len() < MAX_PEERS {
            what(peers.entry(address).or_default());
        }
    }

    /// Notes whether TCP got through to a peer: see [`Rest::learn`].
    pub(super) fn learn(&self, address: SocketAddr, tcp_works: bool) -> Option<Duration> {
        self.peers().get_mut(&address)?.learn(tcp_works)
    }

    /// Forgets that a peer was silent.
    pub(super) fn answered(&self, address: SocketAddr) {
        self.peers().remove(&address);
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Rest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long UDP is left alone where a meshd hands over: longer than its hops take to end, as a rule.
const MOVES_FOR: Duration = Duration::from_secs(2);
/// Within which a successor reads what its predecessor does not any more: it takes over in a few seconds, and may take thirty.
const SUCCEEDED_WITHIN: Duration = Duration::from_secs(30);
/// How long UDP is left alone until it is known whether TCP gets through: longer than a TCP handshake may take.
const UDP_PAUSE: Duration = Duration::from_secs(12);
/// How many silent peers a dialer remembers; beyond it they are tried each time.
const MAX_PEERS: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    async fn until_it_ends(rest: &Rest) -> Duration {
        let began = Instant::now();
        while rest.is_on() {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_rest_is_twice_as_long_up_to_five_minutes() {
        let mut rest = Rest::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            assert!(!rest.is_on());
            rest.silent();
            rest.learn(true);
            rests.push(until_it_ends(&rest).await.as_secs());
        }
        assert_eq!(rests, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_down_is_tried_over_udp_at_once() {
        let (rests, address) = (Rests::default(), SocketAddr::from(([198, 18, 0, 2], 15008)));
        rests.silent(address);
        assert!(rests.is_on(address));
        assert_eq!(rests.learn(address, false), None);
        assert!(!rests.is_on(address));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_after_a_goodbye_is_no_blocked_udp_until_a_successor_is_long_due() {
        let (rests, address) = (Rests::default(), SocketAddr::from(([198, 18, 0, 2], 15008)));
        rests.moved(address);
        let began = Instant::now();
        let mut news = Vec::new();
        while news.is_empty() {
            assert!(rests.is_on(address));
            while rests.is_on(address) {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            rests.silent(address);
            news.extend(rests.learn(address, true).map(|rest| (began.elapsed(), rest)));
        }
        assert_eq!(news, [(SUCCEEDED_WITHIN, UDP_FIRST_REST)]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_goodbye_alone_udp_is_tried_at_once() {
        let (rests, address) = (Rests::default(), SocketAddr::from(([198, 18, 0, 2], 15008)));
        rests.left(address);
        assert!(!rests.is_on(address));
        rests.silent(address);
        assert!(rests.is_on(address));
        assert_eq!(rests.learn(address, true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_forgets_every_silence() {
        let (rests, address) = (Rests::default(), SocketAddr::from(([198, 18, 0, 2], 15008)));
        rests.silent(address);
        assert_eq!(rests.learn(address, true), Some(UDP_FIRST_REST));
        rests.answered(address);
        rests.silent(address);
        assert_eq!(rests.learn(address, true), Some(UDP_FIRST_REST));
    }
}
