//! Durations in buckets that grow with them: an error of at most 3.2 %, from 1 µs to 71 minutes.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts durations in microseconds. Longer ones than the last bucket count there.
#[derive(Debug)]
pub struct Histogram(Box<[AtomicU64]>);

impl Default for Histogram {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, micros: u64) {
        self.0[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the upper bound (inclusive, in microseconds) and count of every bucket that is not empty, in order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
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
/// Up to 2³² µs.
const BUCKETS: usize = 32 + 27 * 32;

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
    fn buckets_follow_each_other_without_a_gap() {
        for index in 1..BUCKETS {
            assert_eq!(bucket_of(upper_bound(index - 1) + 1), index);
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
