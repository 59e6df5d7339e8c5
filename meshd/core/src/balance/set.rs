//! The endpoints of a cluster, prepared for choosing.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;
use rand_core::RngCore;

use super::draw::{Group, Method};
use super::level::{Left, Level, MOST_LEVELS, Watch};
use super::warmup::Warming;
use super::{Hint, level, locality};
use crate::plan::{Balancer, Endpoint, Locality, LocalityPolicy};

/// The endpoints of a cluster, prepared for choosing.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// All of them, in a fixed order (host id, instance id), also those that may not be chosen.
    pub all: Vec<Endpoint>,
    /// Endpoints of live hosts, by nearness.
    live: Vec<Level>,
    /// Endpoints of hosts that fell silent, for when no live one can be used.
    suspect: Vec<Level>,
    /// How many may be chosen while none is ejected.
    members: u32,
}

impl EndpointSet {
    /// Prepares endpoints for choosing.
    ///
    /// `endpoints` are in a fixed order (host id, instance id), so that every host makes the same rings; `from` is the
    /// caller's locality.
    pub fn new(
        endpoints: Vec<Endpoint>,
        balancer: &Balancer,
        locality: &LocalityPolicy,
        from: &Locality,
    ) -> Self {
        let of = |liveness: Liveness| -> Vec<u32> {
            let fits = |endpoint: &Endpoint| may_serve(endpoint) && endpoint.liveness == liveness;
            (0_u32..).zip(&endpoints).filter(|(_, endpoint)| fits(endpoint)).map(|(at, _)| at).collect()
        };
        let (live, suspect) = (of(Liveness::Live), of(Liveness::Suspect));
        let levels = |members: &[u32]| locality::levels(&endpoints, members, balancer, locality, from);
        let (near, silent) = (levels(&live), levels(&suspect));
        let members = u32::try_from(live.len() + suspect.len()).unwrap_or(u32::MAX);
        Self { live: near, suspect: silent, members, all: endpoints }
    }

    /// How many may be chosen while none is ejected: what `maxEjectionPercent` is a share of.
    pub fn members(&self) -> u32 {
        self.members
    }

    /// Where endpoints stand: for each position its level, and how many levels there are. The nearest is 0; those of silent
    /// hosts come after all others; who may never be chosen is on none.
    pub fn levels(&self) -> (Vec<Option<usize>>, usize) {
        let mut of = vec![None; self.all.len()];
        let levels = self.live.iter().chain(&self.suspect);
        for (level, members) in levels.enumerate() {
            for at in members.groups.iter().flat_map(Group::members) {
                if let Some(place) = of.get_mut(*at as usize) {
                    *place = Some(level);
                }
            }
        }
        (of, self.live.len() + self.suspect.len())
    }

    /// Picks an endpoint; `watch` is `None` without outlier detection.
    pub(super) fn pick(
        &self,
        hint: &Hint<'_>,
        watch: Option<Watch>,
        warming: Option<Warming>,
        turn: &AtomicU64,
        rng: &mut impl RngCore,
    ) -> Option<&Endpoint> {
        [&self.live, &self.suspect]
            .into_iter()
            .find_map(|levels| self.pick_from(levels, hint, watch, warming, turn, rng))
    }

    fn pick_from<'a>(
        &'a self,
        levels: &'a [Level],
        hint: &Hint<'_>,
        watch: Option<Watch>,
        warming: Option<Warming>,
        turn: &AtomicU64,
        rng: &mut impl RngCore,
    ) -> Option<&'a Endpoint> {
        let left = self.left(levels, hint.leave);
        let (level, spare) = level::choose(levels, &self.all, watch, hint.hash, left, rng)?;
        let group = level.group(&self.all, spare, watch.is_some(), rng)?;
        let field = group.field(&self.all, spare);
        let drawn = field.draw(hint, turn, rng)?;
        let chosen = match (warming, &group.method) {
            (Some(warming), Method::Least(_) | Method::Turn(_)) => warming.settle(drawn, &field, rng),
            _ => drawn,
        };
        // A hash or a destination says where to, also when that has just failed.
        let decided = match group.method {
            Method::Ring(_) | Method::Maglev(_) => true,
            Method::Passthrough(_) => hint.destination.is_some(),
            Method::Least(_) | Method::Turn(_) | Method::Random(_) => false,
        };
        if decided || hint.avoid.is_empty() {
            return Some(chosen);
        }
        Some(field.elsewhere(chosen, hint, turn, rng))
    }
}

impl EndpointSet {
    /// Returns the levels that endpoints are on.
    fn left(&self, levels: &[Level], ids: &[Arc<str>]) -> Left {
        if ids.is_empty() {
            return 0;
        }
        let has = |level: &Level| level.groups.iter().any(|group| group.has_any(&self.all, ids));
        levels.iter().take(MOST_LEVELS).zip(0_u32..).map(|(level, at)| u32::from(has(level)) << at).sum()
    }
}

/// Whether an endpoint may be chosen as far as its health check, its host and its weight say.
fn may_serve(endpoint: &Endpoint) -> bool {
    endpoint.health == Health::Healthy
        && matches!(endpoint.liveness, Liveness::Live | Liveness::Suspect)
        && endpoint.weight > 0
}
