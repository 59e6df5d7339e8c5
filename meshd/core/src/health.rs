//! Whether an instance is well, from what its health check found: thresholds and damping.
//!
//! Asking the instance, and when, is left to `meshd::health`.

use std::collections::VecDeque;

use mesh_proto::registration::{Health, HealthCheck};

use crate::endpoint::Moment;

#[cfg(test)]
mod tests;

/// Judges one instance. Begins with `Unhealthy`: an instance with a check gets no traffic before its first success.
#[derive(Clone, Debug)]
pub struct Judge {
    unhealthy_threshold: u32,
    healthy_threshold: u32,
    health: Health,
    /// Findings in a row that speak against `health`.
    against: u32,
    /// When it flipped, within [`DAMPING_MS`], oldest first.
    flips: VecDeque<Moment>,
}

impl Judge {
    /// Takes the thresholds of a check; 0 counts as 1.
    pub fn new(check: &HealthCheck) -> Self {
        Self {
            unhealthy_threshold: check.unhealthy_threshold.max(1),
            healthy_threshold: check.healthy_threshold.max(1),
            health: Health::Unhealthy,
            against: 0,
            flips: VecDeque::new(),
        }
    }

    /// Returns the present word.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Hears what a probe found. Returns the new word when it changes.
    ///
    /// Three flips in 30 s are flapping: from then on the instance stays unhealthy until 30 s have passed without a
    /// flip. Falling ill is never delayed; only recovery is, so that callers are not sent to and fro.
    pub fn hear(&mut self, is_well: bool, now: Moment) -> Option<Health> {
        if is_well == (self.health == Health::Healthy) {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let needed = if is_well { self.healthy_threshold } else { self.unhealthy_threshold };
        if self.against < needed || (is_well && self.is_flapping(now)) {
            return None;
        }
        self.health = if is_well { Health::Healthy } else { Health::Unhealthy };
        self.against = 0;
        self.flips.push_back(now);
        if self.flips.len() > FLAPPING {
            self.flips.pop_front();
        }
        Some(self.health)
    }

    /// Whether the last [`FLAPPING`] flips came within the time of damping, and the last one is not longer ago.
    fn is_flapping(&self, now: Moment) -> bool {
        let (Some(first), Some(last)) = (self.flips.front(), self.flips.back()) else { return false };
        self.flips.len() == FLAPPING
            && last.0.saturating_sub(first.0) <= DAMPING_MS
            && now.0.saturating_sub(last.0) < DAMPING_MS
    }
}

/// So many flips within [`DAMPING_MS`] are flapping.
const FLAPPING: usize = 3;
/// Milliseconds.
const DAMPING_MS: u64 = 30_000;
