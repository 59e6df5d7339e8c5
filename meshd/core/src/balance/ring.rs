//! A ring of hashes: every endpoint owns points, a key belongs to the next point; who leaves moves only its own keys.
//!
//! Source: Envoy's `RING_HASH` (ketama).

use std::fmt::Write;

use super::draw::Weighted;
use super::hash::xxh64;
use super::schedule::gcd;
use crate::plan::Endpoint;

/// Points of all endpoints, sorted.
#[derive(Debug)]
pub(super) struct Ring {
    points: Box<[u64]>,
    owners: Box<[u32]>,
}

/// Points up to which every endpoint keeps its full number: 3 MiB.
const PLENTY: u64 = 1 << 18;

/// Envoy's `maximum_ring_size`.
const MOST_POINTS: u64 = 8 << 20;

impl Ring {
    /// Places the points, at least `minimum` of them (at most 4 Mi).
    ///
    /// differs: Envoy divides `minimum` among the endpoints, so that all get more points, and keys, when one leaves.
    /// Here each has `minimum` points per unit of weight, whoever else is there; only where that makes more than
    /// 262,144 in all these are divided, so that one of more than 256 equal endpoints that leaves moves at most as many
    /// keys again as it had. The unit is the greatest common divisor of the weights: an endpoint that changes it
    /// changes how many points all have.
    pub(super) fn new(all: &[Endpoint], members: &[Weighted], minimum: u64) -> Self {
        let unit = members.iter().fold(0, |unit, (_, weight)| gcd(unit, *weight)).max(1);
        let units: u128 = members.iter().map(|(_, weight)| u128::from(weight / unit)).sum();
        let minimum = minimum.clamp(1, MOST_POINTS / 2);
        let most = u128::from(PLENTY.max(2 * minimum));
        let whole = (units * u128::from(minimum)).max(1);
        let mut points = Vec::new();
        for (at, weight) in members {
            let Some(endpoint) = all.get(*at as usize) else { continue };
            let wanted = u128::from(weight / unit) * u128::from(minimum);
            let count = if whole <= most { wanted } else { wanted * most / whole }.max(1);
            points.extend(numbered(&endpoint.id, count).map(|point| (point, *at)));
        }
        points.sort_unstable();
        Self {
            points: points.iter().map(|(point, _)| *point).collect(),
            owners: points.iter().map(|(_, owner)| *owner).collect(),
        }
    }

    /// Walks the owners once around the ring, from a key on.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = u32> {
        let start = self.points.partition_point(|point| *point < key);
        let (before, after) = self.owners.split_at(start);
        after.iter().chain(before).copied()
    }
}

/// Hashes `id_0`, `id_1`, …
fn numbered(id: &str, count: u128) -> impl Iterator<Item = u64> {
    let mut name = format!("{id}_");
    let bare = name.len();
    (0..count).map(move |number| {
        name.truncate(bare);
        // Writing into a String cannot fail.
        let _ = write!(name, "{number}");
        xxh64(name.as_bytes(), 0)
    })
}
