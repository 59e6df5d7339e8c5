//! Counts what the visitors saw against what the rules asked, and says whether it is more than chance.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::odds::{ODDS, bounds};
use super::story::Shares;
use super::traffic::Sample;

/// The time over which live numbers are taken.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// Observations after a change whose requests are not judged: hosts may differ for a moment.
const UNSETTLED: u32 = 2;

/// What the rules ask: of visitors, and of jason.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Asked {
    /// Of everybody; `None` where the rules do not say.
    pub(crate) all: Option<Shares>,
    /// Of jason.
    pub(crate) user: Option<Shares>,
}

/// The requests made while the same was asked.
#[derive(Clone, Debug)]
struct Segment {
    signed_in: bool,
    asked: Shares,
    counts: BTreeMap<String, u64>,
}

/// One line of the verdict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    /// Whether it is about jason's requests.
    pub(crate) signed_in: bool,
    /// The version.
    pub(crate) version: String,
    /// The share asked.
    pub(crate) asked: f64,
    /// Requests it got.
    pub(crate) got: u64,
    /// Of so many.
    pub(crate) of: u64,
    /// The fewest and the most that chance allows.
    pub(crate) bounds: (u64, u64),
}

impl Line {
    /// Whether the count lies within the bounds.
    pub(crate) fn holds(&self) -> bool {
        (self.bounds.0..=self.bounds.1).contains(&self.got)
    }

    /// The share measured.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub(crate) fn share(&self) -> f64 {
        self.got as f64 / self.of.max(1) as f64
    }
}

/// All that was counted.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    segments: Vec<Segment>,
    window: VecDeque<Sample>,
    last: Option<Asked>,
    settled_after: u32,
    /// Requests ended.
    pub(crate) requests: u64,
    /// Of them, failed.
    pub(crate) failed: u64,
    /// Reasons of failures, and how often each.
    pub(crate) reasons: BTreeMap<String, u64>,
}

/// The most reasons kept apart.
const MAX_REASONS: usize = 20;

impl Judge {
    /// Takes in the requests that ended since the last observation; `asked` is what the rules ask now.
    pub(crate) fn take(&mut self, samples: Vec<Sample>, asked: &Asked, now: Instant) {
        let same = self.last.as_ref() == Some(asked);
        if same {
            self.settled_after = self.settled_after.saturating_sub(1);
        } else {
            // The first look at the rules finds a mesh that has settled: visitors come after it has.
            self.settled_after = if self.last.is_some() { UNSETTLED } else { 0 };
            // What was seen under other rules says nothing about these.
            self.window.clear();
        }
        let first = self.last.is_none();
        self.last = Some(asked.clone());
        for sample in samples {
            self.count(&sample);
            if (same || first) && self.settled_after == 0 {
                self.judge(&sample, asked);
            }
            self.window.push_back(sample);
        }
        while self.window.front().is_some_and(|old| now.saturating_duration_since(old.done) > WINDOW) {
            self.window.pop_front();
        }
    }

    fn count(&mut self, sample: &Sample) {
        self.requests += 1;
        let Err(reason) = &sample.outcome else { return };
        self.failed += 1;
        let known = self.reasons.contains_key(reason) || self.reasons.len() < MAX_REASONS;
        let reason = if known { reason.as_str() } else { "other reasons" };
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
    }

    fn judge(&mut self, sample: &Sample, asked: &Asked) {
        let shares = if sample.signed_in { &asked.user } else { &asked.all };
        let (Some(shares), Ok(version)) = (shares, &sample.outcome) else { return };
        let is_known = |one: &Segment| one.signed_in == sample.signed_in && one.asked == *shares;
        let index = self.segments.iter().position(is_known).unwrap_or_else(|| {
            let signed_in = sample.signed_in;
            self.segments.push(Segment { signed_in, asked: shares.clone(), counts: BTreeMap::new() });
            self.segments.len() - 1
        });
        *self.segments[index].counts.entry(version.clone()).or_default() += 1;
    }

    /// Compares every count with what chance allows; all lines together are wrong with odds of at most 10⁻⁶.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for segment in &self.segments {
            let of = segment.counts.values().sum();
            let mut versions: Vec<_> = segment.asked.keys().chain(segment.counts.keys()).collect();
            versions.sort();
            versions.dedup();
            for version in versions {
                lines.push(Line {
                    signed_in: segment.signed_in,
                    version: version.clone(),
                    asked: segment.asked.get(version).copied().unwrap_or(0.0),
                    got: segment.counts.get(version).copied().unwrap_or(0),
                    of,
                    bounds: (0, 0),
                });
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
        let odds = ODDS / lines.len().max(1) as f64;
        for line in &mut lines {
            line.bounds = bounds(line.of, line.asked, odds);
        }
        lines
    }

    /// Whether every share holds, at least one was measured, and no request failed.
    pub(crate) fn holds(&self) -> bool {
        let lines = self.lines();
        self.failed == 0 && !lines.is_empty() && lines.iter().all(Line::holds)
    }

    /// The last ten seconds, or less where the rules changed in them.
    pub(crate) fn recent(&self) -> Recent {
        let mut recent = Recent::default();
        let mut latencies = Vec::with_capacity(self.window.len());
        for sample in &self.window {
            recent.requests += 1;
            latencies.push(sample.latency_us);
            match &sample.outcome {
                Ok(version) => {
                    let counts = if sample.signed_in { &mut recent.user } else { &mut recent.all };
                    *counts.entry(version.clone()).or_default() += 1;
                }
                Err(_) => recent.failed += 1,
            }
        }
        latencies.sort_unstable();
        recent.p50_us = rank(&latencies, 50);
        recent.p99_us = rank(&latencies, 99);
        if let (Some(first), Some(last)) = (self.window.front(), self.window.back()) {
            recent.time = last.done.saturating_duration_since(first.done);
        }
        recent
    }
}

/// What visitors saw in the last ten seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    /// Answers by version.
    pub(crate) all: BTreeMap<String, u64>,
    /// Answers to jason by version.
    pub(crate) user: BTreeMap<String, u64>,
    /// Requests ended.
    pub(crate) requests: u64,
    /// Of them, failed.
    pub(crate) failed: u64,
    /// Between the first and the last.
    pub(crate) time: Duration,
    /// Median from the visitor's side.
    pub(crate) p50_us: Option<u64>,
    /// 99th percentile.
    pub(crate) p99_us: Option<u64>,
}

#[expect(clippy::cast_precision_loss, reason = "counts of ten seconds")]
impl Recent {
    /// Share of requests that did not fail.
    pub(crate) fn success(&self) -> f64 {
        1.0 - self.failed as f64 / self.requests.max(1) as f64
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64().max(0.5)
    }

    /// Share of a version among the answers.
    pub(crate) fn share(&self, version: &str) -> f64 {
        let all: u64 = self.all.values().sum();
        self.all.get(version).copied().unwrap_or(0) as f64 / all.max(1) as f64
    }
}

fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pairs: &[(&str, f64)]) -> Shares {
        pairs.iter().map(|(version, share)| ((*version).to_owned(), *share)).collect()
    }

    fn asked(v2: f64) -> Asked {
        let shares = Some(shares(&[("v1", 1.0 - v2), ("v2", v2)]));
        Asked { all: shares.clone(), user: shares }
    }

    fn samples(now: Instant, v1: usize, v2: usize, failed: usize) -> Vec<Sample> {
        let one = |outcome| Sample { done: now, signed_in: false, outcome, latency_us: 1_000 };
        let mut all = vec![one(Ok("v1".to_owned())); v1];
        all.extend(vec![one(Ok("v2".to_owned())); v2]);
        all.extend(vec![one(Err("503".to_owned())); failed]);
        all
    }

    #[test]
    fn shares_within_chance_hold() {
        let now = Instant::now();
        let mut judge = Judge::default();

        judge.take(samples(now, 1_790, 210, 0), &asked(0.1), now);

        assert!(judge.holds(), "{:?}", judge.lines());
    }

    #[test]
    fn shares_beyond_chance_do_not() {
        let now = Instant::now();
        let mut judge = Judge::default();

        judge.take(samples(now, 1_600, 400, 0), &asked(0.1), now);

        assert!(!judge.holds());
    }

    #[test]
    fn one_failed_request_is_enough() {
        let now = Instant::now();
        let mut judge = Judge::default();

        judge.take(samples(now, 900, 100, 1), &asked(0.1), now);

        assert!(!judge.holds());
        assert_eq!(judge.reasons.get("503"), Some(&1));
    }

    #[test]
    fn silence_proves_nothing() {
        let now = Instant::now();
        let mut judge = Judge::default();
        judge.take(Vec::new(), &asked(0.1), now);

        assert!(!judge.holds());
    }

    #[test]
    fn requests_around_a_change_are_counted_but_not_judged() {
        let now = Instant::now();
        let mut judge = Judge::default();
        judge.take(samples(now, 900, 100, 0), &asked(0.1), now);
        // Until the change has settled, anything may be seen.
        judge.take(samples(now, 100, 0, 0), &asked(0.5), now);
        judge.take(samples(now, 100, 0, 0), &asked(0.5), now);
        judge.take(samples(now, 500, 500, 0), &asked(0.5), now);

        assert!(judge.holds(), "{:?}", judge.lines());
        assert_eq!(judge.requests, 2_200);
        assert_eq!(judge.lines().len(), 4);
    }

    #[test]
    fn a_version_nobody_asked_for_does_not_hold() {
        let now = Instant::now();
        let mut judge = Judge::default();
        let mut seen = samples(now, 900, 100, 0);
        seen.push(Sample { outcome: Ok("v3".into()), ..seen[0].clone() });

        judge.take(seen, &asked(0.1), now);

        assert!(!judge.holds());
    }

    #[test]
    fn the_window_begins_anew_with_other_rules() {
        let now = Instant::now();
        let mut judge = Judge::default();
        judge.take(samples(now, 10, 0, 0), &asked(0.1), now);

        judge.take(samples(now, 0, 3, 0), &asked(0.5), now);

        assert_eq!(judge.recent().requests, 3);
    }

    #[test]
    fn the_window_forgets() {
        let now = Instant::now();
        let mut judge = Judge::default();
        judge.take(samples(now, 10, 0, 0), &asked(0.1), now);

        judge.take(samples(now + WINDOW * 2, 0, 5, 0), &asked(0.1), now + WINDOW * 2);

        assert_eq!(judge.recent().requests, 5);
        assert!((judge.recent().share("v2") - 1.0).abs() < 1e-9);
    }
}
