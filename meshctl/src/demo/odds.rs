//! How far a share may lie from what was asked before it is more than chance.

/// Odds at which a correct share may be called wrong. Source: settled for all tests of shares, 10⁻⁶.
pub(crate) const ODDS: f64 = 1e-6;

/// Returns the fewest and the most of `trials` that may fall to something with the given `share` (0 to 1), so that
/// a count outside happens by chance with probability at most `odds`.
///
/// Exact: sums the binomial distribution from both ends, half of `odds` at each.
pub(crate) fn bounds(trials: u64, share: f64, odds: f64) -> (u64, u64) {
    if share <= 0.0 || trials == 0 {
        return (0, 0);
    }
    if share >= 1.0 {
        return (trials, trials);
    }
    let low = lowest(trials, share, odds / 2.0);
    // Counting what falls elsewhere turns the upper end into a lower one.
    let high = trials - lowest(trials, 1.0 - share, odds / 2.0);
    (low, high)
}

/// The smallest count whose lower tail, itself included, is likelier than `tail`.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
fn lowest(trials: u64, share: f64, tail: f64) -> u64 {
    let n = trials as f64;
    let ratio = (share / (1.0 - share)).ln();
    // In logarithms: 0.9^10000 is no number otherwise.
    let mut log_mass = n * (1.0 - share).ln();
    let mut below = 0.0;
    for count in 0..trials {
        below += log_mass.exp();
        if below > tail {
            return count;
        }
        let k = count as f64;
        log_mass += ((n - k) / (k + 1.0)).ln() + ratio;
    }
    trials
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probability of a count of at most `count`, by multiplying out: for small numbers only.
    fn lower_tail(trials: u32, share: f64, count: u32) -> f64 {
        (0..=count)
            .map(|k| {
                let choose: f64 = (0..k).map(|i| f64::from(trials - i) / f64::from(i + 1)).product();
                choose * share.powi(k.cast_signed()) * (1.0 - share).powi((trials - k).cast_signed())
            })
            .sum()
    }

    #[test]
    fn the_bounds_are_the_tightest_that_keep_the_odds() {
        for (trials, share) in [(50, 0.1), (60, 0.5), (100, 0.9), (30, 0.37)] {
            let (low, high) = bounds(u64::from(trials), share, 0.01);
            let (low, high) = (u32::try_from(low).expect("small"), u32::try_from(high).expect("small"));

            assert!(low == 0 || lower_tail(trials, share, low - 1) <= 0.005, "{trials} {share}: low {low}");
            assert!(lower_tail(trials, share, low) > 0.005, "{trials} {share}: low {low} is not tight");
            assert!(1.0 - lower_tail(trials, share, high) <= 0.005 + 1e-12, "{trials} {share}: high {high}");
            assert!(
                1.0 - lower_tail(trials, share, high - 1) > 0.005,
                "{trials} {share}: high {high} is not tight"
            );
        }
    }

    #[test]
    fn two_thousand_requests_at_ten_percent_may_vary_by_a_third() {
        // Mean 200, deviation 13.4: 4.9 deviations are 10⁻⁶, a little more upwards.
        assert_eq!(bounds(2_000, 0.1, ODDS), (138, 269));
    }

    #[test]
    fn nothing_and_everything_leave_no_room_for_chance() {
        assert_eq!(bounds(500, 0.0, ODDS), (0, 0));
        assert_eq!(bounds(500, 1.0, ODDS), (500, 500));
        assert_eq!(bounds(0, 0.5, ODDS), (0, 0));
    }

    #[test]
    fn long_runs_do_not_underflow() {
        let (low, high) = bounds(1_000_000, 0.9, ODDS);

        assert!(low > 898_000 && low < 899_000, "{low}");
        assert!(high > 901_000 && high < 902_000, "{high}");
    }

    #[test]
    fn honest_draws_stay_within_the_bounds() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let hits = (0..1_000).filter(|_| rng.f64() < 0.1).count() as u64;
            let (low, high) = bounds(1_000, 0.1, ODDS);
            assert!((low..=high).contains(&hits), "{hits}");
        }
    }
}
