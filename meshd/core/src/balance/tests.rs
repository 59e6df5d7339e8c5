//! What picking promises: shares, order, who is never chosen, who stays when somebody leaves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;
use proptest::prelude::*;

use super::chance::SeededRng;
use super::fixture::*;
use super::hash::xxh64;
use super::{Hint, pick};
use crate::endpoint::Moment;
use crate::plan::{
    Balancer, Cluster, Distribution, Endpoint, EndpointFacts, Locality, LocalityPolicy, OutlierPolicy,
};

mod hashing;

/// Of each figure. Bounds are of the fixture: one false alarm in a million.
const PICKS: u64 = 40_000;

fn watched(mut cluster: Cluster) -> Cluster {
    cluster.outlier = Some(outlier().into());
    cluster
}

/// Whom a key belongs to.
fn owner(cluster: &Cluster, key: u64) -> Option<String> {
    let hint = Hint { hash: Some(xxh64(&key.to_le_bytes(), 0)), ..Hint::default() };
    pick(cluster, &hint, Moment(1), &mut SeededRng(key)).map(|endpoint| endpoint.id.to_string())
}

#[test]
fn a_cluster_without_endpoints_has_none_to_pick() {
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, ring(), maglev()] {
        let cluster = cluster(Vec::new(), balancer);
        assert!(pick(&cluster, &Hint::default(), Moment(1), &mut SeededRng(1)).is_none());
    }
}

/// Source: Envoy's `RandomLoadBalancer`; recorded in `tests/conformance/cases/service-entry-kinds`.
#[test]
fn random_takes_no_notice_of_weights_but_of_none() {
    assert_shares(&count(&cluster(endpoints(7), Balancer::Random), &Hint::default(), PICKS, 1), &[1; 7]);
    let cluster = cluster(weighted(&[1, 2, 3, 0, 50]), Balancer::Random);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 2), &[1, 1, 1, 0, 1]);
}

#[test]
fn random_is_even_among_those_that_are_not_ejected() {
    let cluster = watched(cluster(weighted(&[1, 2, 3, 50]), Balancer::Random));
    eject(&cluster, 3);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 3), &[1, 1, 1, 0]);
}

#[test]
fn least_request_is_even_while_all_are_idle() {
    let cluster = cluster(endpoints(5), Balancer::LeastRequest);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 4), &[1; 5]);
}

#[test]
fn least_request_leaves_a_busy_one_of_two_a_quarter() {
    let cluster = cluster(endpoints(2), Balancer::LeastRequest);
    let _busy = cluster.endpoints.all[0].state.enter();
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 5), &[1, 3]);
}

#[test]
fn least_request_with_weights_follows_weight_over_load() {
    let small = cluster(weighted(&[1, 2, 7]), Balancer::LeastRequest);
    assert_shares(&count(&small, &Hint::default(), PICKS, 6), &[1, 2, 7]);
    let _busy = small.endpoints.all[2].state.enter();
    assert_shares(&count(&small, &Hint::default(), PICKS, 7), &[2, 4, 7]);

    let many: Vec<u32> = (0..40).map(|number| 1 + number % 3).collect();
    let large = cluster(weighted(&many), Balancer::LeastRequest);
    let expected: Vec<u64> = many.iter().map(|weight| u64::from(*weight)).collect();
    assert_shares(&count(&large, &Hint::default(), PICKS, 8), &expected);
}

/// Sends one request a tick; endpoint 0 takes ten times as long as the others. Returns its share in percent.
fn share_of_the_slow_one(balancer: Balancer) -> u64 {
    const TICKS: u64 = 20_000;
    let cluster = cluster(endpoints(4), balancer);
    let mut rng = SeededRng(9);
    let mut busy: [VecDeque<(u64, crate::endpoint::InFlight)>; 2] = Default::default();
    let mut slow = 0;
    for tick in 0..TICKS {
        for queue in &mut busy {
            while queue.front().is_some_and(|(done, _)| *done <= tick) {
                queue.pop_front();
            }
        }
        let picked = pick(&cluster, &Hint::default(), Moment(1), &mut rng).expect("an endpoint");
        let is_slow = position(&cluster, picked) == 0;
        slow += u64::from(is_slow);
        let takes = if is_slow { 120 } else { 12 };
        busy[usize::from(is_slow)].push_back((tick + takes, picked.state.enter()));
    }
    slow * 100 / TICKS
}

#[test]
fn least_request_spares_a_slow_endpoint_and_round_robin_does_not() {
    assert_eq!(share_of_the_slow_one(Balancer::RoundRobin), 25);
    // With as many requests in flight everywhere it would get 3 % (x / 120 + 3 x / 12 = 1 request a tick); two draws
    // let it have about twice as many as the others.
    let share = share_of_the_slow_one(Balancer::LeastRequest);
    assert!(share <= 8, "the slow one of four got {share} %");
}

#[test]
fn round_robin_takes_turns() {
    let cluster = cluster(endpoints(3), Balancer::RoundRobin);
    let mut rng = SeededRng(10);
    let mut next = || position(&cluster, pick(&cluster, &Hint::default(), Moment(1), &mut rng).expect("one"));
    let first = next();
    for turn in 1..10 {
        assert_eq!(next(), (first + turn) % 3);
    }
}

#[test]
fn round_robin_begins_anywhere() {
    let first = |seed| {
        let cluster = cluster(endpoints(3), Balancer::RoundRobin);
        position(&cluster, pick(&cluster, &Hint::default(), Moment(1), &mut SeededRng(seed)).expect("one"))
    };
    let mut counts = [0; 3];
    (0..3_000).for_each(|seed| counts[first(seed)] += 1);
    assert_shares(&counts, &[1; 3]);
}

#[test]
fn round_robin_with_weights_is_exact_in_every_round() {
    let cluster = cluster(weighted(&[90, 10]), Balancer::RoundRobin);
    for _ in 0..5 {
        assert_eq!(count(&cluster, &Hint::default(), 10, 11), [9, 1]);
    }
}

#[test]
fn round_robin_stays_even_around_an_ejected_endpoint() {
    let plain = watched(cluster(endpoints(4), Balancer::RoundRobin));
    eject(&plain, 1);
    assert_eq!(count(&plain, &Hint::default(), 300, 12), [100, 0, 100, 100]);

    let heavy = watched(cluster(weighted(&[3, 4, 1]), Balancer::RoundRobin));
    eject(&heavy, 1);
    assert_eq!(count(&heavy, &Hint::default(), 400, 13), [300, 0, 100]);
}

#[test]
fn the_unhealthy_the_draining_the_gone_and_the_weightless_get_nothing() {
    let never: [fn(&mut EndpointFacts); 5] = [
        |endpoint| endpoint.health = Health::Unhealthy,
        |endpoint| endpoint.health = Health::Draining,
        |endpoint| endpoint.liveness = Liveness::Gone,
        |endpoint| endpoint.liveness = Liveness::Left,
        |endpoint| endpoint.weight = 0,
    ];
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, ring(), maglev()] {
        for change in never {
            let mut some = endpoints(3);
            change(&mut some[1]);
            let counts = count(&cluster(some.clone(), balancer.clone()), &Hint::default(), 300, 14);
            assert!(counts[0] > 0 && counts[1] == 0 && counts[2] > 0, "{counts:?} {balancer:?}");
            // There is no panic mode for these: better none than one that is known to be bad.
            for endpoint in &mut some {
                change(endpoint);
            }
            let nobody = cluster(some, balancer.clone());
            assert!(pick(&nobody, &Hint::default(), Moment(1), &mut SeededRng(1)).is_none());
        }
    }
}

#[test]
fn endpoints_of_silent_hosts_serve_only_when_no_other_can() {
    let mut some = endpoints(3);
    some[0].liveness = Liveness::Suspect;
    let cluster = watched(cluster(some, Balancer::LeastRequest));
    let counts = count(&cluster, &Hint::default(), 300, 15);
    assert!(counts[0] == 0 && counts[1] > 0 && counts[2] > 0, "{counts:?}");
    eject(&cluster, 1);
    assert_eq!(count(&cluster, &Hint::default(), 100, 16), [0, 0, 100]);
    eject(&cluster, 2);
    assert_eq!(count(&cluster, &Hint::default(), 100, 17), [100, 0, 0]);
}

#[test]
fn with_all_ejected_there_is_none_to_pick() {
    let cluster = watched(cluster(endpoints(2), Balancer::LeastRequest));
    eject(&cluster, 0);
    eject(&cluster, 1);
    assert!(pick(&cluster, &Hint::default(), Moment(1), &mut SeededRng(1)).is_none());
}

#[test]
fn below_the_minimum_health_ejections_are_ignored() {
    let cases = [
        (50, [100, 100, 0, 0], false),
        (50, [100, 0, 0, 0], true),
        (30, [100, 0, 0, 0], true),
        (20, [100, 0, 0, 0], false),
    ];
    for (min_health_percent, well, panics) in cases {
        let mut cluster = cluster(endpoints(4), Balancer::Random);
        cluster.outlier = Some(OutlierPolicy { min_health_percent, ..outlier() }.into());
        (0..4).filter(|position| well[*position] == 0).for_each(|position| eject(&cluster, position));
        let counts = count(&cluster, &Hint::default(), PICKS, 18);
        let expected = if panics { [1; 4] } else { well };
        assert_shares(&counts, &expected);
    }
}

#[test]
fn ejections_do_not_count_without_outlier_detection() {
    let cluster = cluster(endpoints(2), Balancer::RoundRobin);
    eject(&cluster, 0);
    assert_eq!(count(&cluster, &Hint::default(), 10, 19), [5, 5]);
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random] {
        let cluster = cluster(endpoints(3), balancer);
        let tried: Vec<Arc<str>> = vec!["e0".into(), "e2".into()];
        let hint = Hint { avoid: &tried, ..Hint::default() };
        assert_eq!(count(&cluster, &hint, 1_000, 20), [0, 1_000, 0]);
        let all: Vec<Arc<str>> = vec!["e0".into(), "e1".into(), "e2".into()];
        let hint = Hint { avoid: &all, ..Hint::default() };
        assert_eq!(count(&cluster, &hint, 100, 21).iter().sum::<u64>(), 100);
    }
}

#[test]
fn a_retry_with_a_hash_goes_to_the_same_endpoint() {
    for balancer in [ring(), maglev()] {
        let cluster = cluster(endpoints(3), balancer);
        let first = owner(&cluster, 77).expect("an owner");
        let tried: Vec<Arc<str>> = vec![first.as_str().into()];
        let hint = Hint { hash: Some(xxh64(&77_u64.to_le_bytes(), 0)), avoid: &tried, ..Hint::default() };
        let again = pick(&cluster, &hint, Moment(1), &mut SeededRng(1)).expect("an owner");
        assert_eq!(*again.id, *first);
    }
}

#[test]
fn passthrough_goes_where_the_connection_was_going() {
    let cluster = cluster(endpoints(3), Balancer::Passthrough);
    let to = |address: &str| Hint { destination: address.parse().ok(), ..Hint::default() };
    assert_eq!(count(&cluster, &to("198.18.0.2:8080"), 10, 22), [0, 0, 10]);
    assert!(pick(&cluster, &to("198.18.0.9:8080"), Moment(1), &mut SeededRng(1)).is_none());
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 23), &[1; 3]);
}

/// Two endpoints in each locality.
fn spread(localities: &[&str]) -> Vec<Endpoint> {
    let at = |number: u8| Arc::new(Locality::parse(localities[usize::from(number) / 2]));
    let count = u8::try_from(2 * localities.len()).expect("few localities");
    (0..count).map(|number| endpoint(number).but(|facts| facts.traits.locality = at(number))).collect()
}

#[test]
fn failover_prefers_the_near_and_spills_over_as_they_fail() {
    let policy = LocalityPolicy::Failover { regions: Vec::new() };
    let localities = ["eu/b/1", "eu/a/1", "us/a/1"];
    let cluster = watched(located(spread(&localities), Balancer::Random, &policy, "eu/a/1"));
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 24), &[0, 0, 1, 1, 0, 0]);
    // One of two is well: 70 % of the traffic stays.
    eject(&cluster, 2);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 25), &[15, 15, 0, 70, 0, 0]);
    eject(&cluster, 3);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 26), &[1, 1, 0, 0, 0, 0]);
    eject(&cluster, 0);
    eject(&cluster, 1);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 27), &[0, 0, 0, 0, 1, 1]);
    eject(&cluster, 4);
    eject(&cluster, 5);
    assert!(pick(&cluster, &Hint::default(), Moment(1), &mut SeededRng(1)).is_none());
}

#[test]
fn a_retry_that_may_go_far_leaves_the_levels_that_were_tried() {
    let policy = LocalityPolicy::Failover { regions: Vec::new() };
    let localities = ["eu/a/1", "eu/b/1", "us/a/1"];
    let cluster = watched(located(spread(&localities), Balancer::Random, &policy, "eu/a/1"));
    let picks = |leave: &[&str]| {
        let leave: Vec<Arc<str>> = leave.iter().map(|id| Arc::from(*id)).collect();
        count(&cluster, &Hint { leave: &leave, ..Hint::default() }, PICKS, 31)
    };
    assert_shares(&picks(&["e0"]), &[0, 0, 1, 1, 0, 0]);
    assert_shares(&picks(&["e0", "e3"]), &[0, 0, 0, 0, 1, 1]);
    // With all levels tried it begins anew.
    assert_shares(&picks(&["e0", "e3", "e5"]), &[1, 1, 0, 0, 0, 0]);
    // A level of which nobody is well is none to go to.
    eject(&cluster, 2);
    eject(&cluster, 3);
    assert_shares(&picks(&["e0"]), &[0, 0, 0, 0, 1, 1]);
}

#[test]
fn a_region_that_helps_comes_before_others() {
    let regions = vec![("eu".to_owned(), "us".to_owned())];
    let policy = LocalityPolicy::Failover { regions };
    let cluster = located(spread(&["ap/a/1", "us/a/1"]), Balancer::Random, &policy, "eu/a/1");
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 28), &[0, 0, 1, 1]);
}

fn distribution() -> LocalityPolicy {
    let to = vec![("eu/a/*".to_owned(), 80), ("us/*".to_owned(), 20)];
    LocalityPolicy::Distribute(vec![Distribution { from: "eu/a/*".into(), to }])
}

#[test]
fn distribute_gives_fixed_shares_and_nothing_to_the_unnamed() {
    let localities = ["eu/a/1", "eu/b/1", "us/a/1"];
    let cluster = located(spread(&localities), Balancer::LeastRequest, &distribution(), "eu/a/1");
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 29), &[40, 40, 0, 0, 10, 10]);
    let elsewhere = located(spread(&localities), Balancer::LeastRequest, &distribution(), "ap/a/1");
    assert_shares(&count(&elsewhere, &Hint::default(), PICKS, 30), &[1; 6]);
}

/// Recorded in `tests/conformance/cases/locality-priorities`.
#[test]
fn of_localities_that_overlap_the_more_specific_gets_its_share_first() {
    let to = vec![("*".to_owned(), 20), ("eu/a/1".to_owned(), 80)];
    let policy = LocalityPolicy::Distribute(vec![Distribution { from: "eu/a/1".into(), to }]);
    let cluster = located(spread(&["eu/a/1", "eu/a/2", "us/a/1"]), Balancer::Random, &policy, "eu/a/1");
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 25), &[8, 8, 1, 1, 1, 1]);
}

#[test]
fn distribute_with_a_hash_keeps_each_key_at_one_endpoint() {
    let localities = ["eu/a/1", "eu/b/1", "us/a/1"];
    let cluster = located(spread(&localities), maglev(), &distribution(), "eu/a/1");
    let mut counts = [0; 6];
    for key in 0..PICKS {
        let first = owner(&cluster, key).expect("an owner");
        assert_eq!(owner(&cluster, key).as_deref(), Some(first.as_str()));
        counts[first[1..].parse::<usize>().expect("a number")] += 1;
    }
    assert_shares(&counts, &[40, 40, 0, 0, 10, 10]);
}

#[test]
fn locality_counts_only_with_outlier_detection_or_fixed_shares() {
    use mesh_proto::resource::{LocalityDistribute, LocalityFailover, LocalityLbSetting};
    let failover = vec![LocalityFailover { from: "eu".into(), to: "us".into() }];
    let helped = LocalityLbSetting { failover, ..LocalityLbSetting::default() };
    let off = LocalityLbSetting { enabled: Some(false), ..helped.clone() };
    let to = [("us/*".to_owned(), 20), ("eu/a/*".to_owned(), 80)].into();
    let distribute = vec![LocalityDistribute { from: "eu/a/*".into(), to }];
    let shared = LocalityLbSetting { distribute, ..LocalityLbSetting::default() };
    let near = || LocalityPolicy::Failover { regions: Vec::new() };
    let help = || LocalityPolicy::Failover { regions: vec![("eu".into(), "us".into())] };
    let cases = [
        (None, None, false, LocalityPolicy::Ignore),
        (None, None, true, near()),
        (None, Some(&helped), true, help()),
        (None, Some(&off), true, LocalityPolicy::Ignore),
        (Some(&helped), Some(&off), true, help()),
        (Some(&helped), None, false, LocalityPolicy::Ignore),
        (Some(&off), Some(&helped), true, LocalityPolicy::Ignore),
        (Some(&shared), None, false, distribution()),
        (Some(&shared), None, true, distribution()),
    ];
    for (rule, mesh, watched, expected) in cases {
        assert_eq!(LocalityPolicy::of(rule, mesh, watched), expected, "{rule:?} {mesh:?} {watched}");
    }
}

fn any_endpoint() -> impl Strategy<Value = (Endpoint, bool)> {
    let health =
        prop_oneof![4 => Just(Health::Healthy), 1 => Just(Health::Unhealthy), 1 => Just(Health::Draining)];
    let liveness = prop_oneof![
        4 => Just(Liveness::Live),
        2 => Just(Liveness::Suspect),
        1 => Just(Liveness::Gone),
        1 => Just(Liveness::Left),
    ];
    let locality = prop::sample::select(vec!["", "eu/a/1", "eu/b/1", "us/a/1", "ap"]);
    (health, liveness, 0_u32..4, locality, any::<bool>()).prop_map(
        |(health, liveness, weight, locality, ejected)| {
            let locality = Arc::new(Locality::parse(locality));
            let one = endpoint(0).but(|facts| {
                (facts.weight, facts.traits.locality) = (weight, locality);
                (facts.health, facts.liveness) = (health, liveness);
            });
            (one, ejected)
        },
    )
}

fn any_balancer() -> impl Strategy<Value = Balancer> {
    let table = Balancer::Maglev { policy: policy_of(maglev()).into(), table_size: 251 };
    let points = Balancer::RingHash { policy: policy_of(ring()).into(), minimum_ring_size: 16 };
    let all = [
        Balancer::LeastRequest,
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::Passthrough,
        table,
        points,
    ];
    prop::sample::select(all.to_vec())
}

fn policy_of(balancer: Balancer) -> crate::plan::HashPolicy {
    match balancer {
        Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. } => *policy,
        _ => unreachable!("a hash balancer"),
    }
}

fn any_locality_policy() -> impl Strategy<Value = LocalityPolicy> {
    let help = LocalityPolicy::Failover { regions: vec![("eu".into(), "ap".into())] };
    let near = LocalityPolicy::Failover { regions: Vec::new() };
    prop::sample::select(vec![LocalityPolicy::Ignore, near, help, distribution()])
}

/// Who may be picked when nothing forces to ignore ejections: the silent only when no live one may.
fn eligible(cluster: &Cluster, policy: &LocalityPolicy) -> Vec<Arc<str>> {
    let named = |endpoint: &&Endpoint| {
        let there = endpoint.traits.locality.to_string();
        !matches!(policy, LocalityPolicy::Distribute(_))
            || there.starts_with("eu/a")
            || there.starts_with("us")
    };
    let of = |liveness: Liveness| -> Vec<Arc<str>> {
        let all = cluster.endpoints.all.iter().filter(named);
        let usable = all.filter(|endpoint| {
            let well = endpoint.health == Health::Healthy && endpoint.weight > 0;
            well && endpoint.liveness == liveness && !endpoint.state.is_ejected()
        });
        usable.map(|endpoint| endpoint.id.clone()).collect()
    };
    let live = of(Liveness::Live);
    if live.is_empty() { of(Liveness::Suspect) } else { live }
}

proptest! {
    #[test]
    fn picks_are_eligible_and_there_is_one_whenever_anybody_is(
        some in prop::collection::vec(any_endpoint(), 0..24),
        balancer in any_balancer(),
        policy in any_locality_policy(),
        hash in any::<Option<u64>>(),
        tried in prop::collection::vec(0_u8..24, 0..4),
        seed in any::<u64>(),
    ) {
        let numbered = (0..).zip(&some).map(|(number, (some, _))| {
            let mut one = some.clone().but(|facts| facts.id = endpoint(number).id.clone());
            one.state = Arc::default();
            one
        });
        let cluster = watched(located(numbered.collect(), balancer, &policy, "eu/a/1"));
        for (position, _) in some.iter().enumerate().filter(|(_, (_, ejected))| *ejected) {
            eject(&cluster, position);
        }
        let eligible = eligible(&cluster, &policy);
        let avoid: Vec<Arc<str>> = tried.into_iter().map(|number| endpoint(number).id.clone()).collect();
        let hint = Hint { hash, avoid: &avoid, ..Hint::default() };
        let mut rng = SeededRng(seed);
        for _ in 0..20 {
            match pick(&cluster, &hint, Moment(1), &mut rng) {
                Some(picked) => prop_assert!(eligible.contains(&picked.id), "{} of {eligible:?}", picked.id),
                None => prop_assert!(eligible.is_empty(), "none, although there are {eligible:?}"),
            }
        }
    }
}
