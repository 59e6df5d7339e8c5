//! What locality counts for: levels of nearness for failover, parts with fixed shares for `distribute`.
//!
//! Source: Istio `localityLbSetting`; its `applyLocalityFailover` and `applyLocalityWeights`.

use std::collections::BTreeMap;

use super::draw::{Group, Weighted};
use super::level::{Level, MOST_LEVELS};
use super::zones::Zones;
use crate::plan::{Balancer, Distribution, Endpoint, Locality, LocalityPolicy, ZonePolicy};

/// Sorts members (positions in `all`) into levels, the nearest first; none is empty.
pub(super) fn levels<'a>(
    all: &'a [Endpoint],
    members: &[u32],
    balancer: &Balancer,
    policy: &LocalityPolicy,
    from: &'a Locality,
) -> Vec<Level> {
    let locality = |at: &u32| all.get(*at as usize).map(|endpoint| &*endpoint.traits.locality);
    let mut near = Nearness { from, last: None };
    let groups = match policy {
        LocalityPolicy::Ignore => vec![alike(all, members, balancer)],
        LocalityPolicy::Failover { regions } => ranked(all, members, balancer, |at| {
            locality(&at).map_or(FARTHEST, |there| near.distance(there, regions))
        }),
        LocalityPolicy::Priority { ranks, regions } => ranked(all, members, balancer, |at| {
            let rank = ranks.get(at as usize).map_or(usize::MAX, |rank| *rank as usize);
            let near = regions.as_ref().zip(locality(&at));
            let distance = near.map_or(0, |(regions, there)| distance(from, there, regions));
            rank.saturating_mul(FARTHEST + 1).saturating_add(distance)
        }),
        LocalityPolicy::Distribute(rules) => match rules.iter().find(|rule| covers(&rule.from, from)) {
            Some(rule) => vec![shares(all, members, balancer, rule)],
            None => vec![alike(all, members, balancer)],
        },
        LocalityPolicy::Zones(policy) => return zones(all, members, balancer, policy, from),
    };
    let mut levels: Vec<Level> = groups.into_iter().filter_map(Level::of).collect();
    levels.shrink_to_fit();
    levels
}

/// How far localities are from here. Mostly many endpoints in a row have the very same.
struct Nearness<'a> {
    from: &'a Locality,
    last: Option<(&'a Locality, usize)>,
}

impl<'a> Nearness<'a> {
    fn distance(&mut self, there: &'a Locality, regions: &[(String, String)]) -> usize {
        if let Some((last, distance)) = self.last
            && std::ptr::eq(last, there)
        {
            return distance;
        }
        let distance = distance(self.from, there, regions);
        self.last = Some((there, distance));
        distance
    }
}

impl Level {
    fn of(groups: Vec<Group>) -> Option<Self> {
        (!groups.is_empty()).then_some(Self { groups, zones: None })
    }
}

/// The own region first, its zones apart; then the others.
fn zones(
    all: &[Endpoint],
    members: &[u32],
    balancer: &Balancer,
    policy: &ZonePolicy,
    from: &Locality,
) -> Vec<Level> {
    let lists = by_rank(members, |at| {
        let there = all.get(at as usize).map(|endpoint| &*endpoint.traits.locality);
        let region = match there.map_or(FARTHEST, |there| distance(from, there, &policy.regions)) {
            0..=2 => 0,
            farther => farther,
        };
        let rank = policy.ranks.as_ref().and_then(|ranks| ranks.get(at as usize)).copied().unwrap_or(0);
        (rank as usize).saturating_mul(FARTHEST + 1).saturating_add(region)
    });
    let mut levels: Vec<Level> =
        lists.iter().filter_map(|members| Level::of(alike(all, members, balancer))).collect();
    // Hashing alone decides where a key goes: with Envoy it knows no zones either.
    let is_hashed = matches!(balancer, Balancer::RingHash { .. } | Balancer::Maglev { .. });
    if let (Some(first), Some(members), false) = (levels.first_mut(), lists.first(), is_hashed)
        && let Some(apart) = by_zone(all, members, balancer, policy, from)
    {
        *first = apart;
    }
    levels
}

/// One level with a group for each zone; `None` where zones cannot count.
fn by_zone(
    all: &[Endpoint],
    members: &[u32],
    balancer: &Balancer,
    policy: &ZonePolicy,
    from: &Locality,
) -> Option<Level> {
    let mut parts: BTreeMap<&Locality, Vec<u32>> = BTreeMap::new();
    for at in members {
        parts.entry(&all.get(*at as usize)?.traits.locality).or_default().push(*at);
    }
    let localities: Vec<Locality> = parts.keys().copied().cloned().collect();
    let whole = alike(all, members, balancer).pop()?;
    let zones = Zones::new(whole, &localities, &policy.sources, from, policy.least)?;
    let groups = parts.values().flat_map(|members| alike(all, members, balancer)).collect();
    Some(Level { groups, zones: Some(Box::new(zones)) })
}

/// Members by rank, the nearest first; the last of too many ranks are one.
fn ranked(
    all: &[Endpoint],
    members: &[u32],
    balancer: &Balancer,
    rank: impl FnMut(u32) -> usize,
) -> Vec<Vec<Group>> {
    by_rank(members, rank).iter().map(|members| alike(all, members, balancer)).collect()
}

fn by_rank(members: &[u32], mut rank: impl FnMut(u32) -> usize) -> Vec<Vec<u32>> {
    let mut ranks: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for at in members {
        ranks.entry(rank(*at)).or_default().push(*at);
    }
    let mut lists: Vec<Vec<u32>> = ranks.into_values().collect();
    if lists.len() > MOST_LEVELS {
        let rest = lists.split_off(MOST_LEVELS).into_iter().flatten();
        lists[MOST_LEVELS - 1].extend(rest);
    }
    lists
}

/// All members in one group.
fn alike(all: &[Endpoint], members: &[u32], balancer: &Balancer) -> Vec<Group> {
    let weighted: Vec<Weighted> = members.iter().map(|at| (*at, weight(all, *at))).collect();
    Group::new(all, &weighted, balancer, 1).into_iter().collect()
}

/// Parts by the shares of a rule; localities it does not name get nothing.
fn shares(all: &[Endpoint], members: &[u32], balancer: &Balancer, rule: &Distribution) -> Vec<Group> {
    let mut left = members.to_vec();
    let mut parts: Vec<(u64, Vec<u32>)> = Vec::new();
    // differs: Istio goes through them in no order of any kind.
    let mut patterns: Vec<&(String, u32)> = rule.to.iter().collect();
    patterns.sort_by_key(|(pattern, _)| std::cmp::Reverse(specific(pattern)));
    for (pattern, share) in patterns {
        let here = |at: &u32| {
            all.get(*at as usize).is_some_and(|endpoint| covers(pattern, &endpoint.traits.locality))
        };
        let (part, rest): (Vec<u32>, Vec<u32>) = left.into_iter().partition(here);
        left = rest;
        if *share > 0 && !part.is_empty() {
            parts.push((u64::from(*share), part));
        }
    }
    if !matches!(balancer, Balancer::RingHash { .. } | Balancer::Maglev { .. }) {
        let group = |(share, part): &(u64, Vec<u32>)| {
            let weighted: Vec<Weighted> = part.iter().map(|at| (*at, weight(all, *at))).collect();
            Group::new(all, &weighted, balancer, *share)
        };
        return parts.iter().filter_map(group).collect();
    }
    // One ring for all, or a key would not stay with its endpoint: shares become weights.
    let weighted: Vec<Weighted> =
        parts.iter().flat_map(|(share, part)| shared_weights(all, part, *share)).collect();
    Group::new(all, &weighted, balancer, 1).into_iter().collect()
}

/// Divides a share among endpoints in proportion to their weights.
fn shared_weights(all: &[Endpoint], part: &[u32], share: u64) -> Vec<Weighted> {
    // Fine enough that rounding does not show.
    const UNIT: u128 = 1 << 20;
    let total: u128 = part.iter().map(|at| u128::from(weight(all, *at))).sum();
    let divide = |at: u32| {
        let weight = u128::from(weight(all, at)) * u128::from(share) * UNIT / total.max(1);
        (at, u64::try_from(weight).unwrap_or(u64::MAX).max(1))
    };
    part.iter().map(|at| divide(*at)).collect()
}

fn weight(all: &[Endpoint], at: u32) -> u64 {
    all.get(at as usize).map_or(0, |endpoint| u64::from(endpoint.weight))
}

/// Neither our region nor the one that helps it.
const FARTHEST: usize = 4;

/// How far a locality is: 0 same subzone, 1 same zone, 2 same region, 3 another region, 4 another region than the one
/// that helps ours.
fn distance(from: &Locality, there: &Locality, regions: &[(String, String)]) -> usize {
    if from.region == there.region {
        return match (from.zone == there.zone, from.subzone == there.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
    }
    match regions.iter().find(|(region, _)| *region == from.region) {
        Some((_, helper)) if *helper != there.region => FARTHEST,
        _ => 3,
    }
}

/// How many parts of a locality a pattern names.
fn specific(pattern: &str) -> usize {
    pattern.split('/').filter(|part| !matches!(*part, "*" | "")).count()
}

/// Whether a pattern such as `region/zone/*` covers a locality. `*` or a missing part stands for any.
fn covers(pattern: &str, locality: &Locality) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let mut fits = |value: &str, may_be_missing: bool| match parts.next() {
        Some("*") => true,
        Some("") | None => may_be_missing,
        Some(part) => part == value,
    };
    fits(&locality.region, false) && fits(&locality.zone, true) && fits(&locality.subzone, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearness_goes_by_region_zone_and_subzone() {
        let from = Locality::parse("eu/a/1");
        let help = [("eu".to_owned(), "us".to_owned())];
        let cases =
            [("eu/a/1", 0), ("eu/a/2", 1), ("eu/b/1", 2), ("eu", 2), ("us/a/1", 3), ("ap/a/1", 4), ("", 4)];
        for (there, expected) in cases {
            assert_eq!(distance(&from, &Locality::parse(there), &help), expected, "{there}");
        }
        assert_eq!(distance(&from, &Locality::parse("ap"), &[]), 3, "without a rule all regions are alike");
    }

    #[test]
    fn patterns_cover_with_stars_and_missing_parts() {
        let there = Locality::parse("eu/a/1");
        for pattern in ["eu/a/1", "eu/a/*", "eu/*", "eu", "*", "eu/*/1"] {
            assert!(covers(pattern, &there), "{pattern}");
        }
        for pattern in ["us", "eu/b/*", "eu/a/2", ""] {
            assert!(!covers(pattern, &there), "{pattern}");
        }
    }
}
