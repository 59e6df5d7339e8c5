//! New endpoints come to their share by and by.
//!
//! What the balancer has drawn is accepted with a chance that grows with the endpoint's age; else it is drawn again. So
//! shares are weight × factor, as with Envoy's schedule, at no cost once everybody is warm. An endpoint's age begins
//! when it is first seen able to serve, and anew when it is well again (differs: Envoy's with its arrival). Source: Istio `warmup`; Envoy's slow start.

use std::sync::atomic::Ordering;

use mesh_proto::registration::Health;
use rand_core::RngCore;

use super::draw::Field;
use crate::endpoint::Moment;
use crate::plan::{Cluster, Endpoint, Warmup};

/// The warm-up of a cluster at the time of one pick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Warming {
    pub(super) warmup: Warmup,
    pub(super) now: Moment,
}

/// Draws until one is accepted whatever its age: with everybody at a tenth of its share, one pick in 900 comes here.
const MOST_DRAWS: usize = 64;

/// How often arrivals are looked for.
const LOOK_EVERY: u64 = 1_000;

/// Notes which endpoints have come since it was last asked, once a second.
pub fn note_arrivals(cluster: &Cluster, now: Moment) {
    if cluster.warmup.is_none() {
        return;
    }
    let due = cluster.state.next_arrivals.load(Ordering::Relaxed);
    if now.0 < due {
        return;
    }
    let next = now.0.saturating_add(LOOK_EVERY);
    if cluster.state.next_arrivals.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    for endpoint in &cluster.endpoints.all {
        let since = &endpoint.state.warm_since;
        if endpoint.health != Health::Healthy {
            since.store(0, Ordering::Relaxed);
        } else if since.load(Ordering::Relaxed) == 0 {
            since.store(now.0.max(1), Ordering::Relaxed);
        }
    }
}

impl Warming {
    /// Takes what was drawn, or draws again, by age.
    pub(super) fn settle<'a>(
        self,
        drawn: &'a Endpoint,
        field: &Field<'a>,
        rng: &mut impl RngCore,
    ) -> &'a Endpoint {
        let mut chosen = drawn;
        for _ in 0..MOST_DRAWS {
            let factor = self.factor(chosen);
            if factor >= 1.0 || f64::from(rng.next_u32()) < factor * f64::from(u32::MAX) {
                return chosen;
            }
            let Some(again) = field.again(rng) else { return chosen };
            chosen = again;
        }
        chosen
    }

    /// The part of its weight that counts now.
    fn factor(self, endpoint: &Endpoint) -> f64 {
        let since = endpoint.state.warm_since.load(Ordering::Relaxed);
        let age = if since == 0 { 0 } else { self.now.0.saturating_sub(since) };
        let whole = self.warmup.duration.as_millis();
        if u128::from(age) >= whole {
            return 1.0;
        }
        // Both are below 2^53 for any sensible time; rounding would not show.
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a warm-up are small numbers")]
        let part = (age.max(1) as f64) / (whole as f64);
        part.powf(1.0 / self.warmup.aggression).max(self.warmup.minimum)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fixture::*;
    use super::super::{Hint, chance::SeededRng, pick};
    use super::*;
    use crate::plan::Balancer;

    const SECOND: u64 = 1_000;

    /// Three endpoints, the last of which comes when the others are warm.
    fn cluster_with_a_newcomer(balancer: Balancer, aggression: f64) -> Cluster {
        let mut cluster = cluster(weighted(&[1, 2, 1]), balancer);
        cluster.warmup = Some(Warmup { duration: Duration::from_secs(100), minimum: 0.1, aggression });
        note_arrivals(&cluster, Moment(1));
        cluster.endpoints.all[2].state.warm_since.store(1_000 * SECOND, Ordering::Relaxed);
        cluster
    }

    fn shares(cluster: &Cluster, now: u64) -> Vec<u64> {
        let mut rng = SeededRng(now);
        let mut counts = vec![0; 3];
        for _ in 0..40_000 {
            let picked = pick(cluster, &Hint::default(), Moment(now), &mut rng).expect("an endpoint");
            counts[position(cluster, picked)] += 1;
        }
        counts
    }

    #[test]
    fn a_newcomer_gets_its_share_by_and_by() {
        for balancer in [Balancer::LeastRequest, Balancer::RoundRobin] {
            let cluster = cluster_with_a_newcomer(balancer, 1.0);
            // Age in percent of the warm-up, the newcomer's weight in tenths.
            for (age, tenths) in [(0, 1), (5, 1), (50, 5), (80, 8)] {
                let counts = shares(&cluster, (1_000 + age) * SECOND);
                assert_share(counts[2], 40_000, f64::from(tenths) / f64::from(30 + tenths));
                assert_share(counts[0], 40_000, 10.0 / f64::from(30 + tenths));
            }
            assert_share(shares(&cluster, 1_100 * SECOND)[2], 40_000, 0.25);
        }
    }

    #[test]
    fn aggression_lets_it_grow_faster_at_first() {
        let cluster = cluster_with_a_newcomer(Balancer::LeastRequest, 2.0);
        let counts = shares(&cluster, 1_025 * SECOND);
        assert_share(counts[2], 40_000, 0.5 / 3.5);
    }

    #[test]
    fn who_is_well_again_begins_anew() {
        let mut cluster = cluster_with_a_newcomer(Balancer::LeastRequest, 1.0);
        let mut all = cluster.endpoints.all.clone();
        let mut turns = |health: Health, now: u64| {
            all[0].health = health;
            cluster.endpoints = super::super::fixture::cluster(all.clone(), Balancer::LeastRequest).endpoints;
            note_arrivals(&cluster, Moment(now));
        };
        turns(Health::Unhealthy, 2_000 * SECOND);
        turns(Health::Healthy, 2_002 * SECOND);
        assert_eq!(cluster.endpoints.all[0].state.warm_since.load(Ordering::Relaxed), 2_002 * SECOND);
        assert_eq!(cluster.endpoints.all[1].state.warm_since.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn while_all_are_new_all_are_alike() {
        let mut cluster = cluster(endpoints(3), Balancer::LeastRequest);
        cluster.warmup = Some(Warmup { duration: Duration::from_secs(100), minimum: 0.1, aggression: 1.0 });
        assert_shares(&shares(&cluster, 1), &[1; 3]);
    }
}
