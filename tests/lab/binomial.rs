//! Bounds for shares: wide enough that a right share fails once in a million runs, no wider.

/// Whether `hits` of `tries` may come from a true share of `share`, at odds of one in a million.
///
/// By Bernstein's inequality, which holds for every number of tries: no normal approximation.
pub(crate) fn plausible(hits: u32, tries: u32, share: f64) -> bool {
    let (n, k) = (f64::from(tries), f64::from(hits));
    let log = (2.0_f64 / 1e-6).ln();
    let variance = n * share * (1.0 - share);
    let width = (2.0 * variance * log + (log / 3.0).powi(2)).sqrt() + log / 3.0;
    (k - n * share).abs() <= width
}

#[test]
fn a_right_share_is_plausible_and_a_wrong_one_is_not() {
    assert!(plausible(100, 1_000, 0.1));
    assert!(plausible(60, 1_000, 0.1));
    assert!(!plausible(200, 1_000, 0.1));
    assert!(!plausible(30, 1_000, 0.1));
    assert!(plausible(0, 1_000, 0.0));
    assert!(!plausible(20, 1_000, 0.0));
}
