//! Zones of one region: as much traffic as may be stays in the caller's zone, while every endpoint gets its even share.
//!
//! What share of all callers is in a zone is compared with what share of the endpoints is there. Where the endpoints
//! have at least the callers' share, all stays; else as much of it as they have, and the rest goes to zones that have
//! more endpoints than callers. Source: Envoy's zone aware routing; Istio `zoneAwareLbSetting`.

use rand_core::RngCore;

use super::chance::{below, index};
use super::draw::Group;
use super::level::Spare;
use crate::plan::{Endpoint, Locality};

/// The zones of a level, beside its groups: one group for each.
#[derive(Debug)]
pub(super) struct Zones {
    /// All endpoints of the level, for when zones do not count.
    whole: Group,
    /// The caller's own among the groups.
    own: Option<usize>,
    /// The share of callers in the zone of each group.
    callers: Box<[u64]>,
    /// With fewer endpoints zones do not count.
    least: u64,
}

/// All of it, in the parts that shares are counted in: Envoy's.
const ALL: u64 = 10_000;

impl Zones {
    /// Prepares zones; `None` where they cannot count: callers in one zone only, or none known in the own one.
    ///
    /// `localities` are those of the groups; `sources` is how many callers there are where.
    pub(super) fn new(
        whole: Group,
        localities: &[Locality],
        sources: &[(Locality, u32)],
        from: &Locality,
        least: u64,
    ) -> Option<Self> {
        let is_there = sources.iter().any(|(locality, count)| locality == from && *count > 0);
        if localities.len() < 2 || sources.len() < 2 || !is_there {
            return None;
        }
        let total: u64 = sources.iter().map(|(_, count)| u64::from(*count)).sum();
        let share = |locality: &Locality| {
            let count = sources.iter().find(|(there, _)| there == locality).map_or(0, |(_, count)| *count);
            u64::from(count) * ALL / total.max(1)
        };
        Some(Self {
            whole,
            own: localities.iter().position(|locality| locality == from),
            callers: localities.iter().map(share).collect(),
            least,
        })
    }

    /// Chooses a zone, or all endpoints; `spare` as for the level, `panics` where ejections are ignored.
    pub(super) fn choose<'a>(
        &'a self,
        groups: &'a [Group],
        all: &[Endpoint],
        spare: Spare,
        panics: bool,
        rng: &mut impl RngCore,
    ) -> &'a Group {
        let available = |group: &Group| spare.map_or(group.size(), |epoch| group.available(all, epoch));
        let total: u64 = groups.iter().map(available).sum();
        if panics || total < self.least.max(1) {
            return &self.whole;
        }
        let endpoints = |at: usize| groups.get(at).map_or(0, available) * ALL / total;
        let callers = |at: usize| self.callers.get(at).copied().unwrap_or(0);
        if let Some(own) = self.own {
            let (here, wanted) = (endpoints(own), callers(own));
            let stays = here > 0 && (here >= wanted || below(ALL, rng) < here * ALL / wanted.max(1));
            if let Some(group) = groups.get(own).filter(|_| stays) {
                return group;
            }
        }
        let room = |at: usize| match self.own {
            Some(own) if own == at => 0,
            _ => endpoints(at).saturating_sub(callers(at)),
        };
        let room_of_all: u64 = (0..groups.len()).map(room).sum();
        if room_of_all == 0 {
            // Only rounding comes here.
            let any = groups.get(index(groups.len(), rng)).filter(|group| available(group) > 0);
            return any.unwrap_or(&self.whole);
        }
        let mut lot = below(room_of_all, rng);
        for (at, group) in groups.iter().enumerate() {
            if lot < room(at) {
                return group;
            }
            lot -= room(at);
        }
        &self.whole
    }
}

#[cfg(test)]
mod tests;
