//! How long certificates live, and when to renew them.

use std::time::{Duration, SystemTime};

use rand_core::RngCore;

/// How long a certificate of a workload, a host or a person lives.
///
/// Default 24 h, as in Istio, Linkerd and SPIRE's upper range.
pub const LEAF: Duration = Duration::from_hours(24);
/// How long a voter's own intermediate lives.
pub const INTERMEDIATE: Duration = Duration::from_hours(7 * 24);
/// How long the root lives: ten years of 365 days.
pub const ROOT: Duration = Duration::from_hours(10 * 365 * 24);
/// How far a certificate is back-dated, so that a clock that lags a little accepts it.
pub const BACKDATE: Duration = Duration::from_mins(5);

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Valid from this time on.
    pub not_before: SystemTime,
    /// Valid up to this time.
    pub not_after: SystemTime,
}

impl Validity {
    /// Returns the whole life; zero where the times are the wrong way round.
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Returns the time left; zero once expired.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// Tells whether less than a quarter of the life is left: the watchdog's line.
    pub fn is_running_out(&self, now: SystemTime) -> bool {
        self.remaining(now) < self.life() / 4
    }

    /// Picks when to renew: half life, shifted by up to 10 % of it either way, so that hosts that started
    /// together do not ask together.
    ///
    /// Source: SPIRE's half life; at least 45 % of the life is left.
    pub fn renew_at(&self, rng: &mut impl RngCore) -> SystemTime {
        let half = self.life() / 2;
        let earliest = half.saturating_sub(half / 10);
        self.not_before + earliest + scaled(half / 5, rng)
    }
}

/// Picks how long to wait after the `failures`-th failure in a row (1 is the first): 1 s, doubled each time up
/// to 5 min, of which the last quarter is chance.
pub fn retry_after(failures: u32, rng: &mut impl RngCore) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = (FIRST_RETRY * 2u32.pow(doublings)).min(LAST_RETRY);
    full.saturating_sub(scaled(full / 4, rng))
}

/// Picks an even share of `span`.
fn scaled(span: Duration, rng: &mut impl RngCore) -> Duration {
    span.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(5);
