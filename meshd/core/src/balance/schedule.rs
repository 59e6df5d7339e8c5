//! The order of turns where weights differ: each endpoint as often as its weight says, spread evenly.

use super::draw::Weighted;

/// Most slots of an order: a share is off by at most half of one in so many.
const MOST_SLOTS: u64 = 8_192;

/// Returns the order of turns; `None` when all weights are equal and the members simply take turns.
///
/// Weights 3 and 1 make `a a b a`: the k-th of n turns of an endpoint lies at (k + ½) / n of the round, which is what
/// Envoy's schedule of earliest deadlines comes to.
pub(super) fn order(members: &[Weighted]) -> Option<Box<[u32]>> {
    let (_, first) = members.first()?;
    if members.iter().all(|(_, weight)| weight == first) {
        return None;
    }
    let mut slots: Vec<(u64, u32)> = Vec::new();
    for (at, turns) in turns(members) {
        slots.extend((0..turns).map(|turn| (((2 * turn + 1) << 40) / turns, at)));
    }
    slots.sort_unstable();
    Some(slots.into_iter().map(|(_, at)| at).collect())
}

/// How many turns each gets in one round; at least one.
fn turns(members: &[Weighted]) -> impl Iterator<Item = (u32, u64)> {
    let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let total: u128 = members.iter().map(|(_, weight)| u128::from(weight / divisor)).sum();
    let most = u128::from(MOST_SLOTS).max(2 * members.len() as u128);
    members.iter().map(move |(at, weight)| {
        let weight = u128::from(weight / divisor);
        let turns = if total <= most { weight } else { (weight * most + total / 2) / total };
        (*at, u64::try_from(turns).unwrap_or(1).max(1))
    })
}

/// Greatest common divisor; that of 0 and a number is the number.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_need_no_order() {
        assert_eq!(order(&[(0, 7), (1, 7)]), None);
    }

    #[test]
    fn turns_are_spread_over_the_round() {
        assert_eq!(order(&[(0, 3), (1, 1)]).as_deref(), Some(&[0, 0, 1, 0][..]));
        assert_eq!(order(&[(0, 20), (1, 10), (2, 10)]).as_deref(), Some(&[0, 1, 2, 0][..]));
    }

    #[test]
    fn a_round_has_a_bound_and_leaves_nobody_out() {
        let members: Vec<Weighted> = (0..1_000).map(|at| (at, 1 + u64::from(at) * 65_521)).collect();
        let order = order(&members).expect("weights differ");
        assert!(order.len() <= 10_000, "{}", order.len());
        assert!(order.contains(&0));
    }
}
