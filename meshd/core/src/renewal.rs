//! When a certificate of an authority outside the mesh (ACME) is ordered, and how often at most.
//!
//! What is there and what was tried come in, a moment comes out; ordering is `meshd`'s `secrets::acme`. An authority counts
//! what it is asked, and shuts out who asks too often: so that no mistake, restart or clock leads to more than a few
//! orders a day. Source: RFC 8555 leaves this to its clients; two thirds of the life is Let's Encrypt's advice.

use std::time::{Duration, SystemTime};

use crate::identity::lifetime::Validity;

/// What is there for some names, and what was tried.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// From when to when the certificate that is there is valid; `None`: none is there that will do.
    pub validity: Option<Validity>,
    /// A number that stays the same for as long as the certificate does: hosts that began together do not order together.
    pub chance: u32,
    /// When orders were begun, the oldest first.
    pub begun: Vec<SystemTime>,
    /// How many of the last orders failed, one after the other.
    pub failures: u32,
    /// How long the last certificate that came lives; `None`: none has come yet.
    pub life: Option<Duration>,
}

impl Standing {
    /// Returns when the next order is due; it may have passed.
    ///
    /// Two thirds into the certificate's life, give or take a thirtieth of it; after a failure not before 1 min, doubled
    /// with each up to 6 h (an eighth of the life, where that is less), of which the last quarter is chance; and never more
    /// than [`MOST_A_DAY`] in 24 h (in half the life, where that is less).
    pub fn due(&self) -> SystemTime {
        let due = self.validity.map_or(SystemTime::UNIX_EPOCH, |validity| self.worn(&validity));
        [Some(due), self.tired(), self.bounded()].into_iter().flatten().max().unwrap_or(due)
    }

    /// Returns when somebody who asks may have an order begun, whatever failed before.
    pub fn earliest(&self) -> SystemTime {
        self.bounded().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn worn(&self, validity: &Validity) -> SystemTime {
        let life = validity.life();
        validity.not_before + life * 2 / 3 + self.share(life / 15) - life / 30
    }

    fn tired(&self) -> Option<SystemTime> {
        let doublings = self.failures.checked_sub(1)?.min(16);
        let longest = self.life.map_or(LAST_PAUSE, |life| (life / 8).clamp(FIRST_PAUSE, LAST_PAUSE));
        let pause = (FIRST_PAUSE * 2u32.pow(doublings)).min(longest);
        Some(*self.begun.last()? + pause - self.share(pause / 4))
    }

    fn bounded(&self) -> Option<SystemTime> {
        let oldest = self.begun.len().checked_sub(MOST_A_DAY)?;
        let window = self.life.map_or(DAY, |life| (life / 2).min(DAY));
        Some(*self.begun.get(oldest)? + window)
    }

    fn share(&self, of: Duration) -> Duration {
        of.mul_f64(f64::from(self.chance) / f64::from(u32::MAX))
    }
}

/// Orders in 24 h, whatever happens: failures alone make 10. Let's Encrypt takes 5 failures an hour for a name.
pub const MOST_A_DAY: usize = 12;
const DAY: Duration = Duration::from_hours(24);
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LAST_PAUSE: Duration = Duration::from_hours(6);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn days(days: u64) -> SystemTime {
        at(days * 86_400)
    }

    #[test]
    fn what_is_missing_is_due_at_once() {
        assert_eq!(Standing::default().due(), SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life_give_or_take_a_thirtieth() {
        let validity = Some(Validity { not_before: days(100), not_after: days(190) });
        for (chance, expected) in [(0, days(157)), (u32::MAX, days(163))] {
            assert_eq!(Standing { validity, chance, ..Standing::default() }.due(), expected, "{chance}");
        }
    }

    #[test]
    fn failures_make_it_wait_longer_and_longer() {
        let due =
            |failures, chance| Standing { begun: vec![at(0)], failures, chance, ..Standing::default() }.due();
        for (failures, seconds) in
            [(0, 0), (1, 60), (2, 120), (5, 960), (9, 15_360), (10, 21_600), (40, 21_600)]
        {
            assert_eq!(due(failures, 0), at(seconds), "{failures} failures");
            assert_eq!(due(failures, u32::MAX), at(seconds * 3 / 4), "{failures} failures");
        }
    }

    #[test]
    fn what_lives_for_an_hour_is_tried_again_within_minutes() {
        // 36 a day came, then the authority was away.
        let begun: Vec<_> = (0..36).map(|order| at(order * 2_400)).collect();
        let last = *begun.last().expect("some");
        let life = Some(Duration::from_hours(1));
        let standing = Standing { begun, failures: 9, life, ..Standing::default() };
        assert_eq!(standing.due(), last + Duration::from_secs(450));
        assert!(standing.earliest() < last);
    }

    #[test]
    fn no_day_sees_more_than_a_few_orders() {
        // Each is begun the moment it is due, and succeeds; but what it brings is always gone again.
        let (mut begun, mut now) = (Vec::new(), days(1));
        while now < days(8) {
            let standing = Standing { begun: begun.clone(), ..Standing::default() };
            now = now.max(standing.due());
            assert_eq!(standing.due().max(standing.earliest()), standing.due());
            begun.push(now);
            now += Duration::from_secs(1);
        }
        for window in begun.windows(MOST_A_DAY + 1) {
            assert!(window[MOST_A_DAY].duration_since(window[0]).expect("in order") >= DAY, "{window:?}");
        }
        assert_eq!(begun.iter().filter(|begun| **begun < days(2)).count(), MOST_A_DAY);
    }
}
