//! Fair draws from a source of chance.

use rand_core::RngCore;

/// Draws a number below `bound` with equal chance for each; 0 for a bound of 0.
///
/// Multiplies instead of dividing (Lemire). The bias is below `bound` / 2⁶⁴: nothing one could measure.
pub(crate) fn below(bound: u64, rng: &mut impl RngCore) -> u64 {
    let wide = u128::from(rng.next_u64()) * u128::from(bound);
    u64::try_from(wide >> 64).unwrap_or(0)
}

/// Draws an index below `len`; 0 for an empty list.
pub(crate) fn index(len: usize, rng: &mut impl RngCore) -> usize {
    usize::try_from(below(len as u64, rng)).unwrap_or(0)
}

/// Draws yes with a share of `parts` millionths.
pub(crate) fn parts_per_million(parts: u32, rng: &mut impl RngCore) -> bool {
    // The ends draw nothing: most faults are off or at 100 %.
    parts >= 1_000_000 || (parts > 0 && below(1_000_000, rng) < u64::from(parts))
}
