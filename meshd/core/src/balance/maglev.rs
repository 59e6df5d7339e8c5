//! Maglev's table: one look-up per key, the evenest spread; who leaves moves little more than its own keys.
//!
//! Source: Eisenbud et al., "Maglev" (2016), section 3.4; Envoy's `MAGLEV` for weights.

use super::draw::Weighted;
use super::hash::xxh64;
use crate::plan::Endpoint;

/// Owners of the slots.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[u32]>,
}

/// Envoy's and Istio's bound, a prime.
const MOST_SLOTS: u64 = 5_000_011;

const FREE: u32 = u32::MAX;

impl Table {
    /// Fills a table of `size` slots; the next prime where that is none, at most 5,000,011.
    pub(super) fn new(all: &[Endpoint], members: &[Weighted], size: u64) -> Self {
        let size = prime(size.max(members.len() as u64));
        let heaviest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
        let mut turns: Vec<Turn> =
            members.iter().filter_map(|member| Turn::new(all, member, heaviest, size)).collect();
        let mut slots = vec![FREE; usize::try_from(size).unwrap_or(0)].into_boxed_slice();
        let mut free = if turns.is_empty() { 0 } else { slots.len() };
        while free > 0 {
            for turn in &mut turns {
                if free > 0 && turn.comes() {
                    turn.take(&mut slots, size);
                    free -= 1;
                }
            }
        }
        Self { slots }
    }

    /// Walks the owners once around the table, from a key on.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = u32> {
        let start = key.checked_rem(self.slots.len() as u64).unwrap_or(0);
        let (before, after) = self.slots.split_at(usize::try_from(start).unwrap_or(0));
        after.iter().chain(before).copied()
    }
}

/// An endpoint while the table is filled.
struct Turn {
    at: u32,
    weight: u64,
    heaviest: u64,
    /// Weight saved up; a turn costs as much as the heaviest weighs.
    saved: u64,
    slot: u64,
    skip: u64,
}

impl Turn {
    fn new(all: &[Endpoint], (at, weight): &Weighted, heaviest: u64, size: u64) -> Option<Self> {
        let id = all.get(*at as usize)?.id.as_bytes();
        let (slot, skip) = (xxh64(id, 0) % size, xxh64(id, 1) % (size - 1) + 1);
        Some(Self { at: *at, weight: (*weight).max(1), heaviest: heaviest.max(1), saved: 0, slot, skip })
    }

    fn comes(&mut self) -> bool {
        self.saved += self.weight;
        let comes = self.saved >= self.heaviest;
        if comes {
            self.saved -= self.heaviest;
        }
        comes
    }

    /// Takes the next free slot of its own order, which visits every slot since the size is a prime.
    fn take(&mut self, slots: &mut [u32], size: u64) {
        for _ in 0..size {
            let slot = usize::try_from(self.slot).ok().and_then(|slot| slots.get_mut(slot));
            self.slot = (self.slot + self.skip) % size;
            if let Some(slot) = slot.filter(|slot| **slot == FREE) {
                *slot = self.at;
                return;
            }
        }
    }
}

/// Returns the first prime from `from` on, between 3 and [`MOST_SLOTS`].
fn prime(from: u64) -> u64 {
    let is_prime = |number: &u64| (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor));
    (from.max(3)..MOST_SLOTS).find(is_prime).unwrap_or(MOST_SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_is_no_prime_is_raised_to_one() {
        assert_eq!(prime(65_537), 65_537);
        assert_eq!(prime(65_536), 65_537);
        assert_eq!(prime(0), 3);
        assert_eq!(prime(u64::MAX), MOST_SLOTS);
    }
}
