//! Durations in buckets that grow with them: an error of at most 3.2 %, from 1 µs to 71 minutes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts durations in microseconds. Longer ones than the last bucket count there.
///
/// Buckets of one power of two are made with the first duration among them: edges are many, and most take about as long
/// each time.
#[derive(Debug, Default)]
pub struct Histogram([OnceLock<Box<Powers>>; BUCKETS / POWER]);

/// The buckets of one power of two.
type Powers = [AtomicU64; POWER];

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, micros: u64) {
        let bucket = bucket_of(micros);
        self.0[bucket / POWER].get_or_init(Box::default)[bucket % POWER].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the upper bound (inclusive, in microseconds) and count of every bucket that is not empty, in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let made = self.0.iter().enumerate().filter_map(|(power, counts)| Some((power, counts.get()?)));
        let counts = made.flat_map(|(power, counts)| {
            counts
                .iter()
                .enumerate()
                .map(move |(at, count)| (power * POWER + at, count.load(Ordering::Relaxed)))
        });
        counts.filter(|(_, count)| *count > 0).map(|(index, count)| (upper_bound(index), count))
    }
}

/// Below [`LINEAR`] every microsecond has its bucket; above, every power of two has [`LINEAR`] of them.
fn bucket_of(micros: u64) -> usize {
    if micros < LINEAR {
        return usize::try_from(micros).unwrap_or(0);
    }
    let power = u64::from(micros.ilog2() - LINEAR.ilog2());
    let index = LINEAR + power * LINEAR + ((micros >> power) - LINEAR);
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < LINEAR {
        return index;
    }
    let power = (index - LINEAR) / LINEAR;
    let step = (index - LINEAR) % LINEAR + LINEAR;
    ((step + 1) << power) - 1
}

const LINEAR: u64 = 32;
const POWER: usize = 32;
/// Up to 2³² µs.
const BUCKETS: usize = POWER + 27 * POWER;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bucket_is_wrong_by_more_than_five_percent() {
        let mut micros = 1;
        while micros < 4_000_000_000 {
            let bound = upper_bound(bucket_of(micros));
            assert!(bound >= micros && (bound - micros) * 100 <= micros * 5, "{micros} is in {bound}");
            micros += micros / 7 + 1;
        }
    }

    #[test]
    fn what_is_counted_is_told_in_order() {
        let histogram = Histogram::default();
        for micros in [70_000, 3, 3, 0, u64::MAX] {
            histogram.record(micros);
        }
        let told: Vec<_> = histogram.buckets().collect();
        assert_eq!(
            told,
            [(0, 1), (3, 2), (upper_bound(bucket_of(70_000)), 1), (upper_bound(BUCKETS - 1), 1)]
        );
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for index in 1..BUCKETS {
            assert_eq!(bucket_of(upper_bound(index - 1) + 1), index);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
