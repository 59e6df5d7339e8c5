//! Consistent hashing: each endpoint's share of the keys, and how many keys move when one leaves or joins.
//!
//! Keys and ids are fixed, so a test that passes once passes always. The bounds say how far off a right one could be:
//! in one of a million draws of ids and keys for each figure, where nothing else is said.

use super::*;

/// The endpoint that each of [`PICKS`] keys belongs to, by number.
fn owners(cluster: &Cluster) -> Vec<usize> {
    let number = |id: String| id[1..].parse().expect("e0, e1, …");
    (0..PICKS).map(|key| number(owner(cluster, key).expect("an owner"))).collect()
}

fn counts(owners: &[usize], endpoints: usize) -> Vec<u64> {
    let mut counts = vec![0; endpoints];
    for owner in owners {
        counts[*owner] += 1;
    }
    counts
}

/// Endpoints `e0`, `e1`, …, any number of them.
fn many(count: usize) -> Vec<Endpoint> {
    (0..count).map(|number| endpoint(0).but(|facts| facts.id = format!("e{number}").into())).collect()
}

/// Keys that have another owner, but for those that `one` has or had.
fn moved_needlessly(before: &[usize], after: &[usize], one: usize) -> u64 {
    let pairs = before.iter().zip(after);
    pairs.filter(|(before, after)| before != after && **before != one && **after != one).count() as u64
}

/// Asserts how many of the keys lie behind `points` of the `all` points of a ring.
///
/// The gaps between points are those of uniform draws, so that what lies behind v of V points is Beta(v, V − v): its
/// mean is p = v / V, its variance p (1 − p) / (V + 1). The keys add their own, p (1 − p) / keys.
#[track_caller]
fn assert_arc(hits: u64, points: u64, all: u64) {
    assert_spread(hits, PICKS, float(points) / float(all), 1.0 / float(all + 1));
}

/// Asserts a share whose variance is p (1 − p) times `variance` and what the draws add.
#[track_caller]
fn assert_spread(hits: u64, of: u64, share: f64, variance: f64) {
    let deviation = (share * (1.0 - share) * (variance + 1.0 / float(of))).sqrt();
    let found = float(hits) / float(of);
    // 4.892 deviations: one in a million.
    let bound = 4.892 * deviation;
    assert!((found - share).abs() <= bound, "{hits} of {of}: {found:.4}, expected {share:.4} ± {bound:.4}");
}

fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("a small count"))
}

/// Points of an endpoint of weight 1 in [`ring`], while there is plenty of room.
const POINTS: u64 = 1_024;

#[test]
fn a_ring_gives_each_its_share() {
    for count in [2, 4, 10, 100] {
        let owners = owners(&cluster(many(count), ring()));
        for hits in counts(&owners, count) {
            assert_arc(hits, POINTS, POINTS * count as u64);
        }
    }
}

#[test]
fn who_leaves_a_ring_moves_only_its_own_keys_and_all_others_get_some() {
    for count in [2, 4, 10] {
        let mut left = many(count);
        left.remove(1);
        let (before, after) = (owners(&cluster(many(count), ring())), owners(&cluster(left, ring())));
        assert_eq!(moved_needlessly(&before, &after, 1), 0, "{count} endpoints");

        let orphans: Vec<usize> =
            before.iter().zip(&after).filter(|(before, _)| **before == 1).map(|(_, after)| *after).collect();
        let heirs = count as u64 - 1;
        // An endpoint's arcs go to whoever comes next on the ring, each to one at random. The lengths of arcs are
        // exponential, so that the mean of their squares is twice the square of their mean.
        for (heir, hits) in counts(&orphans, count).into_iter().enumerate().filter(|(heir, _)| *heir != 1) {
            assert!(hits > 0, "e{heir} got nothing");
            assert_spread(hits, orphans.len() as u64, 1.0 / float(heirs), 2.0 / float(POINTS));
        }
    }
}

#[test]
fn who_joins_a_ring_takes_its_share_and_nothing_else_moves() {
    for count in [1, 4, 9] {
        let before = owners(&cluster(many(count), ring()));
        let after = owners(&cluster(many(count + 1), ring()));
        assert_eq!(moved_needlessly(&before, &after, count), 0, "{count} endpoints");
        assert_arc(counts(&after, count + 1)[count], POINTS, POINTS * (count as u64 + 1));
    }
}

/// With more than 256 endpoints the points are divided; each may then lose some when one joins.
#[test]
fn in_a_large_ring_who_joins_moves_at_most_as_much_again() {
    const ROOM: u64 = 262_144;
    for count in [256, 300, 1_000] {
        let before = owners(&cluster(many(count), ring()));
        let after = owners(&cluster(many(count + 1), ring()));
        let each = |count: usize| (ROOM / count as u64).min(POINTS);
        let lost = (each(count) - each(count + 1)) * count as u64;
        let moved = moved_needlessly(&before, &after, count);
        if lost == 0 {
            assert_eq!(moved, 0, "{count} endpoints");
        } else {
            assert_arc(moved, lost, each(count) * count as u64);
        }
        assert!(lost <= each(count) + count as u64, "its share, and at most one point of each");
    }
}

#[test]
fn a_table_gives_each_its_share() {
    for count in [2, 10, 100] {
        let owners = owners(&cluster(many(count), maglev()));
        assert_shares(&counts(&owners, count), &vec![1; count]);
    }
}

/// Where the order of filling changes, so do slots of others, more with more endpoints. Measured here: 0.05 % of all keys
/// for 4, 0.16 % for 10, 0.5 % for 50.
#[test]
fn who_leaves_or_joins_a_table_moves_little_more_than_its_own_keys() {
    for count in [2, 4, 10, 50] {
        let whole = owners(&cluster(many(count), maglev()));
        for gone in [0, count - 1] {
            let mut left = many(count);
            left.remove(gone);
            let needless = moved_needlessly(&whole, &owners(&cluster(left, maglev())), gone);
            assert!(needless * 100 <= PICKS, "{count} endpoints without e{gone}: {needless} of {PICKS}");
        }
    }
}

#[test]
fn hashing_follows_the_weights() {
    let weights = [1, 2, 5];
    let table = owners(&cluster(weighted(&weights), maglev()));
    assert_shares(&counts(&table, 3), &[1, 2, 5]);

    let ring = owners(&cluster(weighted(&weights), ring()));
    for (hits, weight) in counts(&ring, 3).into_iter().zip(weights) {
        assert_arc(hits, POINTS * u64::from(weight), POINTS * 8);
    }
}

#[test]
fn a_hash_knows_no_zones() {
    use crate::plan::ZonePolicy;
    let sources = vec![(Locality::parse("eu/a/1"), 1), (Locality::parse("eu/b/1"), 1)];
    let policy = LocalityPolicy::Zones(Box::new(ZonePolicy { sources, least: 1, ..ZonePolicy::default() }));
    let places = ["eu/a/1", "eu/b/1"];
    let at = |number: usize| Arc::new(Locality::parse(places[number]));
    let two =
        (0..).zip(many(2)).map(|(number, one)| one.but(|facts| facts.traits.locality = at(number))).collect();
    let cluster = located(two, ring(), &policy, "eu/a/1");
    for hits in counts(&owners(&cluster), 2) {
        assert_arc(hits, POINTS, 2 * POINTS);
    }
}

#[test]
fn keys_of_an_ejected_endpoint_move_and_come_back() {
    for balancer in [ring(), maglev()] {
        let cluster = watched(cluster(endpoints(5), balancer));
        let before: Vec<_> = (0..500).map(|key| owner(&cluster, key)).collect();
        eject(&cluster, 2);
        for (key, before) in (0..).zip(&before) {
            let now = owner(&cluster, key);
            assert!(now.is_some() && now.as_deref() != Some("e2"));
            assert!(before.as_deref() == Some("e2") || now == *before, "only its own keys move");
        }
        cluster.endpoints.all[2].state.ejected_until.store(0, Ordering::Relaxed);
        cluster.state.ejection_epoch.fetch_add(1, Ordering::Release);
        assert_eq!((0..500).map(|key| owner(&cluster, key)).collect::<Vec<_>>(), before);
    }
}
