//! Levels of nearness: how much of the traffic each gets, by how many of its endpoints are well.
//!
//! The nearest level takes everything while at least 5 of 7 of its endpoints are well; below that the next ones take
//! over in proportion. Source: Envoy's priority levels with its overprovisioning factor of 1.4.

use rand_core::RngCore;

use super::chance::below;
use super::draw::Group;
use super::zones::Zones;
use crate::plan::Endpoint;

/// Endpoints that are equally near.
#[derive(Debug)]
pub(super) struct Level {
    /// Parts with fixed shares; a single one without `distribute`. Never empty.
    pub(super) groups: Vec<Group>,
    /// What decides among them, where they are zones; else their shares do.
    pub(super) zones: Option<Box<Zones>>,
}

/// What outlier detection says now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// Changes with every ejection and return.
    pub(super) epoch: u32,
    /// Below this share ejections are ignored, in percent.
    pub(super) min_health_percent: u32,
}

/// Levels to be left alone, a bit each.
pub(super) type Left = u32;

/// Which endpoints are spared: none, or those ejected at an epoch.
pub(super) type Spare = Option<u32>;

/// Levels that are told apart: the five of nearness, or those of `failoverPriority`. What is farther shares the last.
pub(super) const MOST_LEVELS: usize = 32;

/// Envoy's overprovisioning factor, in percent.
const OVERPROVISIONING: u64 = 140;

/// Chooses a level, and whether ejected endpoints are spared there.
///
/// With a hash the same key gets the same level. `left` are levels that are to be left alone while another can be
/// used. Source: Envoy's `previous_priorities`.
pub(super) fn choose<'a>(
    levels: &'a [Level],
    all: &[Endpoint],
    watch: Option<Watch>,
    hash: Option<u64>,
    left: Left,
    rng: &mut impl RngCore,
) -> Option<(&'a Level, Spare)> {
    let first = levels.first()?;
    let Some(watch) = watch else {
        let other = levels.iter().zip(0_u32..).find(|(_, at)| left & 1 << at == 0);
        return Some((other.map_or(first, |(level, _)| level), None));
    };
    let spare = Some(watch.epoch);
    let mut health = [0; MOST_LEVELS];
    for (health, level) in health.iter_mut().zip(levels) {
        *health = level.health(all, watch.epoch);
    }
    leave(left, &mut health);
    if health[0] == 100 {
        return Some((first, spare));
    }
    let total = health.iter().sum::<u64>().min(100);
    let panics = |level: &Level| total < 100 && level.panics(all, watch);
    if levels.iter().all(panics) {
        return by_size(levels, hash, rng).map(|level| (level, None));
    }
    let level = by_health(levels, &health, total, hash, rng)?;
    Some((level, if panics(level) { None } else { spare }))
}

/// Takes the levels that are to be left alone out, unless nobody is well on any other.
fn leave(left: Left, health: &mut [u64; MOST_LEVELS]) {
    let is_left = |at: usize| left & 1 << at != 0;
    let others = health.iter().enumerate().filter(|(at, _)| !is_left(*at));
    if left == 0 || others.map(|(_, health)| health).sum::<u64>() == 0 {
        return;
    }
    for (at, health) in health.iter_mut().enumerate() {
        if is_left(at) {
            *health = 0;
        }
    }
}

/// Chooses by health; `None` when nobody is well.
fn by_health<'a>(
    levels: &'a [Level],
    health: &[u64; MOST_LEVELS],
    total: u64,
    hash: Option<u64>,
    rng: &mut impl RngCore,
) -> Option<&'a Level> {
    let best = health.iter().position(|health| *health > 0)?;
    let mut lot = lot(100, hash, rng);
    for (level, health) in levels.iter().zip(health) {
        let load = health * 100 / total;
        if lot < load {
            return Some(level);
        }
        lot -= load;
    }
    // What rounding has left over.
    levels.get(best)
}

/// Chooses by size, when ejections are ignored everywhere.
fn by_size<'a>(levels: &'a [Level], hash: Option<u64>, rng: &mut impl RngCore) -> Option<&'a Level> {
    let mut lot = lot(levels.iter().map(Level::size).sum(), hash, rng);
    for level in levels {
        if lot < level.size() {
            return Some(level);
        }
        lot -= level.size();
    }
    levels.first()
}

fn lot(bound: u64, hash: Option<u64>, rng: &mut impl RngCore) -> u64 {
    match hash {
        Some(hash) => hash % bound.max(1),
        None => below(bound, rng),
    }
}

impl Level {
    /// Chooses a part: by its share, less where many are ejected; by its size when ejections are ignored.
    ///
    /// Source: Envoy's locality weighted load balancing.
    /// `watched`: there is outlier detection; it then ignores ejections where none are to be spared.
    pub(super) fn group(
        &self,
        all: &[Endpoint],
        spare: Spare,
        watched: bool,
        rng: &mut impl RngCore,
    ) -> Option<&Group> {
        if let Some(zones) = &self.zones {
            return Some(zones.choose(&self.groups, all, spare, watched && spare.is_none(), rng));
        }
        if let [only] = &*self.groups {
            return Some(only);
        }
        let weight = |group: &Group| match spare {
            None => group.share * 1_000,
            Some(epoch) => group.share * (1_400 * group.available(all, epoch) / group.size()).min(1_000),
        };
        let mut lot = below(self.groups.iter().map(weight).sum(), rng);
        for group in &self.groups {
            let weight = weight(group);
            if lot < weight {
                return Some(group);
            }
            lot -= weight;
        }
        None
    }

    /// How many percent of the traffic it can take; at least 1 while one endpoint is well.
    fn health(&self, all: &[Endpoint], epoch: u32) -> u64 {
        let available = self.available(all, epoch);
        let health = OVERPROVISIONING * available / self.size();
        // differs: Envoy rounds down to 0 and can leave a lone healthy endpoint of a far level alone.
        health.clamp(u64::from(available > 0), 100)
    }

    fn panics(&self, all: &[Endpoint], watch: Watch) -> bool {
        self.available(all, watch.epoch) * 100 < u64::from(watch.min_health_percent) * self.size()
    }

    fn available(&self, all: &[Endpoint], epoch: u32) -> u64 {
        self.groups.iter().map(|group| group.available(all, epoch)).sum()
    }

    /// How many endpoints it has, never 0.
    fn size(&self) -> u64 {
        self.groups.iter().map(Group::size).sum::<u64>().max(1)
    }
}
