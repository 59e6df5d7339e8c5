//! Expectations: Istio's integration test of `zoneAwareLbSetting`, and the worked example of Envoy's documentation.

use std::sync::Arc;

use crate::balance::Hint;
use crate::balance::fixture::{assert_shares, count, eject, endpoint, located, outlier};
use crate::plan::{Balancer, Cluster, Endpoint, Locality, LocalityPolicy, ZonePolicy};

const PICKS: u64 = 40_000;

fn at(localities: &[&str]) -> Vec<Endpoint> {
    let place = |(number, text): (u8, &&str)| {
        endpoint(number).but(|facts| facts.traits.locality = Arc::new(Locality::parse(text)))
    };
    (0..).zip(localities).map(place).collect()
}

fn policy(sources: &[(&str, u32)], least: u64) -> ZonePolicy {
    let sources = sources.iter().map(|(text, count)| (Locality::parse(text), *count)).collect();
    ZonePolicy { sources, least, ..ZonePolicy::default() }
}

fn cluster(endpoints: &[&str], policy: ZonePolicy, balancer: Balancer) -> Cluster {
    located(at(endpoints), balancer, &LocalityPolicy::Zones(Box::new(policy)), "eu/a/1")
}

/// Asserts the shares with every balancer that draws.
#[track_caller]
fn shares(sources: &[(&str, u32)], least: u64, endpoints: &[&str], expected: &[u64]) {
    for balancer in [Balancer::Random, Balancer::LeastRequest, Balancer::RoundRobin] {
        let cluster = cluster(endpoints, policy(sources, least), balancer);
        assert_shares(&count(&cluster, &Hint::default(), PICKS, 1), expected);
    }
}

const ONE_ZONE: &[(&str, u32)] = &[("eu/a/1", 1)];
const TWO_ZONES: &[(&str, u32)] = &[("eu/a/1", 1), ("eu/b/1", 1)];

#[test]
fn as_istios_own_cases_expect() {
    shares(ONE_ZONE, 1, &["eu/a/1"], &[1]);
    shares(ONE_ZONE, 1, &["eu/a/1", "eu/b/1"], &[1, 1]);
    shares(TWO_ZONES, 1, &["eu/a/1", "eu/b/1"], &[1, 0]);
    shares(TWO_ZONES, 10, &["eu/a/1", "eu/b/1"], &[1, 1]);
    shares(TWO_ZONES, 1, &["eu/c/1", "eu/d/1"], &[1, 1]);
    shares(ONE_ZONE, 1, &["eu/a/1", "us/x/1"], &[1, 0]);
    shares(ONE_ZONE, 1, &["eu/b/1", "us/x/1"], &[1, 0]);
    shares(ONE_ZONE, 1, &["us/x/1"], &[1]);
}

#[test]
fn what_does_not_fit_into_the_own_zone_goes_where_there_is_room() {
    // Callers 40, 40, 20 %; endpoints 25, 50, 25 %: 62.5 % stay, and the rest goes to the others as 10 to 5.
    let sources = [("eu/a/1", 2), ("eu/b/1", 2), ("eu/c/1", 1)];
    let endpoints = ["eu/a/1", "eu/b/1", "eu/b/1", "eu/c/1"];
    shares(&sources, 4, &endpoints, &[625, 125, 125, 125]);
}

#[test]
fn a_caller_whose_zone_has_no_instances_of_its_own_knows_no_zones() {
    shares(&[("eu/b/1", 1), ("eu/c/1", 1)], 1, &["eu/a/1", "eu/b/1"], &[1, 1]);
}

#[test]
fn ejections_move_the_shares() {
    let mut cluster =
        cluster(&["eu/a/1", "eu/a/1", "eu/b/1", "eu/b/1"], policy(TWO_ZONES, 1), Balancer::Random);
    cluster.outlier = Some(outlier().into());
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 2), &[1, 1, 0, 0]);
    // A third of the endpoints for half of the callers: two thirds of the traffic stay.
    eject(&cluster, 0);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 3), &[0, 2 * 3333, 3333 / 2, 3333 / 2]);
    eject(&cluster, 1);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 4), &[0, 0, 1, 1]);
}

#[test]
fn too_few_well_endpoints_are_as_too_few_endpoints() {
    let mut cluster =
        cluster(&["eu/a/1", "eu/a/1", "eu/b/1", "eu/b/1"], policy(TWO_ZONES, 4), Balancer::Random);
    cluster.outlier = Some(outlier().into());
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 5), &[1, 1, 0, 0]);
    eject(&cluster, 2);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 6), &[1, 1, 0, 1]);
}

#[test]
fn another_region_helps_when_the_own_one_is_down_and_the_named_one_first() {
    let regions = vec![("eu".to_owned(), "us".to_owned())];
    let policy = ZonePolicy { regions, ..policy(TWO_ZONES, 1) };
    let mut cluster = cluster(&["eu/b/1", "ap/x/1", "us/x/1"], policy, Balancer::Random);
    cluster.outlier = Some(outlier().into());
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 7), &[1, 0, 0]);
    eject(&cluster, 0);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 8), &[0, 0, 1]);
    eject(&cluster, 2);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 9), &[0, 1, 0]);
}

#[test]
fn labels_come_before_regions() {
    let policy = ZonePolicy { ranks: Some(vec![1, 1, 0]), ..policy(TWO_ZONES, 1) };
    let mut cluster = cluster(&["eu/a/1", "us/x/1", "us/x/1"], policy, Balancer::Random);
    cluster.outlier = Some(outlier().into());
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 10), &[0, 0, 1]);
    eject(&cluster, 2);
    assert_shares(&count(&cluster, &Hint::default(), PICKS, 11), &[1, 0, 0]);
}
