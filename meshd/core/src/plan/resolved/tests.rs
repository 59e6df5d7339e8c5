use std::sync::atomic::Ordering;

use super::*;
use crate::balance::fixture::{assert_shares, count, endpoint, located, outlier};
use crate::balance::{self, Hint};
use crate::endpoint::Moment;
use crate::plan::{Balancer, LocalityPolicy};
use crate::resilience::outlier::{Answer, record};

fn named(name: &str, port: u16, weight: u32) -> Endpoint {
    let via = Via::Name { host: name.into(), port, spread: true };
    endpoint(0).but(|facts| (facts.id, facts.via, facts.weight) = (name.into(), via, weight))
}

fn cluster(endpoints: Vec<Endpoint>, balancer: Balancer) -> Cluster {
    let ignore = LocalityPolicy::Ignore;
    located(endpoints, balancer, &ignore, "").resolvable(None, ignore, &Locality::default())
}

fn answers(all: &[(&str, &[&str])]) -> Answers {
    let parse = |(name, addresses): &(&str, &[&str])| {
        (Arc::from(*name), addresses.iter().map(|address| address.parse().expect("an address")).collect())
    };
    all.iter().map(parse).collect()
}

fn now(cluster: &Cluster) -> Arc<Cluster> {
    cluster.addressed().expect("names among the endpoints")
}

fn reached(cluster: &Cluster) -> Vec<String> {
    cluster.endpoints.all.iter().map(crate::views::address).collect()
}

#[test]
fn every_address_is_an_endpoint_with_the_weight_of_its_name() {
    let endpoints = vec![named("a.example", 80, 1), named("b.example", 81, 3), endpoint(9)];
    let cluster = cluster(endpoints, Balancer::RoundRobin);
    assert_eq!(reached(&now(&cluster)), ["a.example:80", "b.example:81", "198.18.0.9:8080"]);

    let changed = cluster.settle(&answers(&[
        ("a.example", &["192.0.2.2", "192.0.2.1", "192.0.2.2"]),
        ("b.example", &["2001:db8::1"]),
    ]));

    assert!(changed);
    let now = now(&cluster);
    assert_eq!(reached(&now), ["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:81", "198.18.0.9:8080"]);
    assert_shares(&count(&now, &Hint::default(), 40_000, 1), &[1, 1, 3, 1]);
}

#[test]
fn the_same_answer_in_another_order_changes_nothing_that_is_known() {
    let cluster = cluster(vec![named("a.example", 80, 1)], Balancer::RoundRobin);
    cluster.settle(&answers(&[("a.example", &["192.0.2.1", "192.0.2.2"])]));
    let before = now(&cluster);
    assert!(!cluster.settle(&answers(&[("a.example", &["192.0.2.1", "192.0.2.2"])])));
    cluster.settle(&answers(&[("a.example", &["192.0.2.2", "192.0.2.1"])]));
    let same = |(one, other): (&Endpoint, &Endpoint)| Arc::ptr_eq(&one.state, &other.state);
    assert!(before.endpoints.all.iter().zip(&now(&cluster).endpoints.all).all(same));
}

#[test]
fn an_address_that_stays_keeps_its_ejection_and_one_that_comes_begins_anew() {
    let mut plain =
        located(vec![named("a.example", 80, 1)], Balancer::RoundRobin, &LocalityPolicy::Ignore, "");
    plain.outlier = Some(outlier().into());
    let cluster = plain.resolvable(None, LocalityPolicy::Ignore, &Locality::default());
    cluster.settle(&answers(&[("a.example", &["192.0.2.1", "192.0.2.2"])]));
    let two = now(&cluster);
    for _ in 0..5 {
        record(&two, &two.endpoints.all[0], Answer::Status(503), Moment(1));
    }
    assert!(two.endpoints.all[0].state.is_ejected());

    cluster.settle(&answers(&[("a.example", &["192.0.2.1", "192.0.2.3"])]));

    let now = now(&cluster);
    let ejected: Vec<bool> = now.endpoints.all.iter().map(|one| one.state.is_ejected()).collect();
    assert_eq!(
        (reached(&now), ejected),
        (vec!["192.0.2.1:80".into(), "192.0.2.3:80".into()], vec![true, false])
    );
    assert_eq!(count(&now, &Hint::default(), 20, 1), [0, 20]);
}

#[test]
fn a_name_without_an_address_has_no_endpoint() {
    let cluster = cluster(vec![named("a.example", 80, 1)], Balancer::LeastRequest);
    cluster.settle(&answers(&[("a.example", &[])]));
    let picked = now(&cluster);
    let picked =
        balance::pick(&picked, &Hint::default(), Moment(1), &mut crate::balance::chance::SeededRng(1));
    assert!(picked.is_none());
}

#[test]
fn the_next_cluster_has_the_addresses_and_states_of_the_one_before() {
    let before = cluster(vec![named("a.example", 80, 1)], Balancer::LeastRequest);
    before.settle(&answers(&[("a.example", &["192.0.2.1"])]));
    now(&before).endpoints.all[0].state.requests.store(7, Ordering::Relaxed);

    let next = located(vec![named("a.example", 80, 5)], Balancer::Random, &LocalityPolicy::Ignore, "");
    let next = next.resolvable(Some(&before), LocalityPolicy::Ignore, &Locality::default());

    let now = now(&next);
    assert_eq!(reached(&now), ["192.0.2.1:80"]);
    assert_eq!(now.endpoints.all[0].weight, 5);
    assert_eq!(now.endpoints.all[0].state.requests.load(Ordering::Relaxed), 7);
    assert!(matches!(now.balancer, Balancer::Random));
}

#[test]
fn ranks_follow_the_addresses() {
    let policy = LocalityPolicy::Priority { ranks: vec![1, 0], regions: None };
    let endpoints = vec![named("far.example", 80, 1), named("near.example", 80, 1)];
    let mut plain = located(endpoints, Balancer::Random, &policy, "");
    plain.outlier = Some(outlier().into());
    let cluster = plain.resolvable(None, policy, &Locality::default());
    cluster.settle(&answers(&[
        ("far.example", &["192.0.2.1", "192.0.2.2"]),
        ("near.example", &["192.0.2.3", "192.0.2.4"]),
    ]));
    assert_shares(&count(&now(&cluster), &Hint::default(), 10_000, 3), &[0, 0, 1, 1]);
}
