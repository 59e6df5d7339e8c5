//! When a voter stands for election.
//!
//! openraft draws its election timeout once per process, so two survivors with close timeouts can
//! split votes for long. Here a fresh one is drawn after every sign of life and after every
//! attempt. Before it stands, a voter asks the others whether they too have lost the leader
//! ([`may_stand`]): one that was merely cut off does not depose a healthy leader on its return.
//!
//! Pure: the time and the chance come in as arguments.
//!
//! Source: Raft dissertation §3.4 (random timeouts) and §9.6 (pre-vote).

use std::time::{Duration, Instant};

use rand_core::RngCore;

/// The shortest silence after which a voter stands.
///
/// Three heartbeats: one may be lost and one late.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(300);
/// The longest silence a voter waits for.
pub const TIMEOUT_MAX: Duration = Duration::from_millis(600);
/// How often a leader shows that it is there.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// What this server is in its Raft group, as far as elections care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads; has nothing to stand for.
    Leader,
    /// Votes, and may stand.
    Voter,
    /// The only voter; nobody else could be elected.
    SoleVoter,
    /// A standby, or not a member.
    Bystander,
}

/// The election timer of one server.
#[derive(Clone, Debug)]
pub struct Driver {
    heard: Instant,
    timeout: Duration,
}

/// What a voter answers when asked before an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// How long ago it heard from a leader; `None` if never.
    pub silence: Option<Duration>,
    /// Whether its log reaches further than the candidate's.
    pub log_is_longer: bool,
}

impl Driver {
    /// Starts a timer at `now`, as if a leader had just been heard.
    pub fn new(now: Instant, rng: &mut impl RngCore) -> Self {
        Self { heard: now, timeout: draw(rng) }
    }

    /// Notes when a leader was last heard or a vote last given; a later time draws a new timeout.
    pub fn heard(&mut self, at: Instant, rng: &mut impl RngCore) {
        if at > self.heard {
            self.heard = at;
            self.timeout = draw(rng);
        }
    }

    /// Notes an attempt, won or not: the next one waits a fresh timeout from now.
    pub fn attempted(&mut self, now: Instant, rng: &mut impl RngCore) {
        self.heard = self.heard.max(now);
        self.timeout = draw(rng);
    }

    /// Returns when to stand, or `None` if this server has nothing to stand for.
    pub fn due(&self, role: Role) -> Option<Instant> {
        match role {
            Role::Leader | Role::Bystander => None,
            Role::SoleVoter => Some(self.heard),
            Role::Voter => Some(self.heard + self.timeout),
        }
    }
}

/// Says whether enough voters would hear a candidate out.
///
/// `voters` counts all voters, the candidate included; `opinions` are the answers of the others.
/// A voter agrees that has heard no leader for [`TIMEOUT_MIN`] and whose log is not longer.
pub fn may_stand(voters: usize, opinions: &[Opinion]) -> bool {
    let agreeing = opinions.iter().filter(|opinion| {
        !opinion.log_is_longer && opinion.silence.is_none_or(|silence| silence >= TIMEOUT_MIN)
    });
    agreeing.count() + 1 > voters / 2
}

/// A timeout between the two bounds, each as likely as the next (to 1 part in 2³²).
fn draw(rng: &mut impl RngCore) -> Duration {
    let span = TIMEOUT_MAX.saturating_sub(TIMEOUT_MIN);
    let share = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    TIMEOUT_MIN + span.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some moment; which one does not matter.
    #[expect(clippy::disallowed_methods, reason = "an Instant cannot be made otherwise")]
    fn some_moment() -> Instant {
        Instant::now()
    }

    struct Counting(u32);

    impl RngCore for Counting {
        fn next_u32(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.0
        }
        fn next_u64(&mut self) -> u64 {
            u64::from(self.next_u32()) << 32 | u64::from(self.next_u32())
        }
        fn fill_bytes(&mut self, bytes: &mut [u8]) {
            bytes.fill_with(|| self.next_u32().to_le_bytes()[3]);
        }
    }

    fn silent(millis: u64) -> Opinion {
        Opinion { silence: Some(Duration::from_millis(millis)), log_is_longer: false }
    }

    #[test]
    fn timeout_is_drawn_anew_after_each_sign_of_life() {
        let (start, mut rng) = (some_moment(), Counting(7));
        let mut driver = Driver::new(start, &mut rng);
        let mut seen = std::collections::BTreeSet::new();
        for beat in 1..=50 {
            let at = start + HEARTBEAT * beat;
            driver.heard(at, &mut rng);
            let waits = driver.due(Role::Voter).expect("a voter stands") - at;
            assert!((TIMEOUT_MIN..=TIMEOUT_MAX).contains(&waits), "{waits:?}");
            seen.insert(waits);
        }
        assert!(seen.len() > 45, "{} different timeouts of 50", seen.len());
    }

    #[test]
    fn old_news_moves_nothing() {
        let (start, mut rng) = (some_moment(), Counting(7));
        let mut driver = Driver::new(start, &mut rng);
        let due = driver.due(Role::Voter);
        driver.heard(start, &mut rng);
        assert_eq!(driver.due(Role::Voter), due);
    }

    #[test]
    fn only_voters_stand() {
        let (start, mut rng) = (some_moment(), Counting(7));
        let driver = Driver::new(start, &mut rng);
        assert_eq!(driver.due(Role::Leader), None);
        assert_eq!(driver.due(Role::Bystander), None);
        assert_eq!(driver.due(Role::SoleVoter), Some(start));
    }

    #[test]
    fn candidate_needs_a_majority_that_lost_the_leader_too() {
        assert!(may_stand(1, &[]));
        assert!(!may_stand(3, &[]));
        assert!(may_stand(3, &[silent(400)]));
        assert!(!may_stand(3, &[silent(50)]));
        assert!(may_stand(3, &[silent(50), silent(300)]));
        assert!(!may_stand(5, &[silent(900)]));
        assert!(may_stand(5, &[silent(900), silent(900)]));
    }

    #[test]
    fn longer_log_refuses() {
        let longer = Opinion { silence: None, log_is_longer: true };
        assert!(!may_stand(3, &[longer]));
        assert!(may_stand(3, &[longer, silent(300)]));
    }
}
