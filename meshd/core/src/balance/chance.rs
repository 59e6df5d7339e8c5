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

/// A small seeded generator (`SplitMix64`), for tests and for looking ahead.
#[derive(Clone, Debug)]
pub(crate) struct SeededRng(pub(crate) u64);

impl RngCore for SeededRng {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).unwrap_or(0)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
