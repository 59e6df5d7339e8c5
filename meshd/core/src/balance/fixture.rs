//! Clusters for tests, and the bounds of chance they are judged by.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::EndpointSet;
use super::chance::SeededRng;
use super::{Hint, pick};
use crate::endpoint::Moment;
use crate::plan::{
    Balancer, Cluster, ClusterName, Endpoint, EndpointFacts, HashKey, HashPolicy, Locality, LocalityPolicy,
    OutlierPolicy, Via,
};

/// An endpoint `e0`, `e1`, … of weight 1 at 198.18.0.N:8080.
pub(crate) fn endpoint(number: u8) -> Endpoint {
    Endpoint::new(EndpointFacts::new(
        format!("e{number}"),
        Via::Plain(SocketAddr::from((Ipv4Addr::new(198, 18, 0, number), 8080))),
    ))
}

pub(crate) fn endpoints(count: u8) -> Vec<Endpoint> {
    (0..count).map(endpoint).collect()
}

pub(crate) fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    (0..).zip(weights).map(|(number, weight)| endpoint(number).but(|facts| facts.weight = *weight)).collect()
}

pub(crate) fn cluster(endpoints: Vec<Endpoint>, balancer: Balancer) -> Cluster {
    located(endpoints, balancer, &LocalityPolicy::Ignore, "")
}

pub(crate) fn located(
    endpoints: Vec<Endpoint>,
    balancer: Balancer,
    locality: &LocalityPolicy,
    from: &str,
) -> Cluster {
    let set = EndpointSet::new(endpoints, &balancer, locality, &Locality::parse(from));
    Cluster {
        name: ClusterName { host: "reviews.default.svc.cluster.local".into(), port: 9080, subset: "".into() },
        balancer,
        endpoints: Arc::new(set),
        ..Cluster::default()
    }
}

/// Istio's defaults, but everybody may be ejected.
pub(crate) fn outlier() -> OutlierPolicy {
    OutlierPolicy {
        consecutive_5xx: 5,
        consecutive_gateway: 0,
        consecutive_local: None,
        error_codes: Vec::new(),
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

pub(crate) fn ring() -> Balancer {
    Balancer::RingHash { policy: Box::new(HashPolicy { key: HashKey::SourceIp }), minimum_ring_size: 1_024 }
}

pub(crate) fn maglev() -> Balancer {
    Balancer::Maglev { policy: Box::new(HashPolicy { key: HashKey::SourceIp }), table_size: 65_537 }
}

/// Ejects the endpoint at a position, as outlier detection does.
pub(crate) fn eject(cluster: &Cluster, position: usize) {
    cluster.endpoints.all[position].state.ejected_until.store(u64::MAX, Ordering::Relaxed);
    cluster.state.ejected.fetch_add(1, Ordering::Relaxed);
    cluster.state.ejection_epoch.fetch_add(1, Ordering::Release);
}

/// Picks often; returns how often each endpoint was picked, by position.
pub(crate) fn count(cluster: &Cluster, hint: &Hint<'_>, picks: u64, seed: u64) -> Vec<u64> {
    let mut rng = SeededRng(seed);
    let mut counts = vec![0; cluster.endpoints.all.len()];
    for _ in 0..picks {
        let picked = pick(cluster, hint, Moment(1), &mut rng).expect("an endpoint");
        counts[position(cluster, picked)] += 1;
    }
    counts
}

pub(crate) fn position(cluster: &Cluster, endpoint: &Endpoint) -> usize {
    let mut all = cluster.endpoints.all.iter();
    all.position(|other| other.id == endpoint.id).expect("an endpoint of the cluster")
}

/// Asserts that counts follow the weights: chi-square, with odds of a false alarm of 10⁻⁶.
#[track_caller]
pub(crate) fn assert_shares(counts: &[u64], weights: &[u64]) {
    let total = number(counts.iter().sum());
    let weight: f64 = number(weights.iter().sum());
    let mut square = 0.0;
    for (count, share) in counts.iter().zip(weights) {
        let expected = total * number(*share) / weight;
        if *share == 0 {
            assert_eq!(*count, 0, "an endpoint without a share was picked: {counts:?}");
        } else {
            square += (number(*count) - expected).powi(2) / expected;
        }
    }
    let freedom = number(weights.iter().filter(|share| **share > 0).count() as u64 - 1);
    if freedom < 1.0 {
        return;
    }
    // Wilson and Hilferty's approximation of the quantile.
    let part = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - part + ONE_IN_A_MILLION * part.sqrt()).powi(3);
    assert!(square <= bound, "chi-square {square:.1} > {bound:.1}: {counts:?} for {weights:?}");
}

/// Asserts a share: binomial, with odds of a false alarm of 10⁻⁶.
#[track_caller]
pub(crate) fn assert_share(hits: u64, of: u64, share: f64) {
    let expected = number(of) * share;
    let bound = 4.892 * (expected * (1.0 - share)).sqrt() + 1.0;
    assert!((number(hits) - expected).abs() <= bound, "{hits} of {of}, expected {expected:.0} ± {bound:.0}");
}

/// Quantile of the normal distribution for 10⁻⁶ on one side.
const ONE_IN_A_MILLION: f64 = 4.753;

fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("a small count"))
}
