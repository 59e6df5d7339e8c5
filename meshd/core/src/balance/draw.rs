//! Draws among endpoints that are equally near, by the cluster's balancer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand_core::RngCore;

use super::chance::{below, index};
use super::level::Spare;
use super::maglev::Table;
use super::ring::Ring;
use super::{Hint, schedule};
use crate::plan::{Balancer, Endpoint, Via};

/// Endpoints among which the balancer decides alone.
#[derive(Debug)]
pub(super) struct Group {
    /// Its share among the groups of its level.
    pub(super) share: u64,
    /// Positions in [`EndpointSet::all`](super::EndpointSet::all). Never empty.
    members: Box<[u32]>,
    /// How one is drawn.
    pub(super) method: Method,
    /// How many were not ejected (low half) at an epoch (high half): counted once per ejection, not once per pick.
    counted: AtomicU64,
}

/// How an endpoint is drawn, prepared.
#[derive(Debug)]
pub(super) enum Method {
    Least(Weights),
    /// In this order; `None`: that of the members.
    Turn(Option<Box<[u32]>>),
    Random(Weights),
    Passthrough(Weights),
    Ring(Ring),
    Maglev(Table),
}

/// Weights of the members.
#[derive(Debug)]
pub(super) enum Weights {
    /// All alike.
    Equal,
    /// Running sums in the order of the members.
    Sums(Box<[u64]>),
}

/// A member: its position, and its weight where localities are weighed in.
pub(super) type Weighted = (u32, u64);

/// Nothing was counted yet.
const UNCOUNTED: u64 = u64::MAX;

/// Draws that may hit an ejected endpoint before all are looked through.
const TRIES: usize = 16;

/// Endpoints looked at where weights differ.
const CANDIDATES: usize = 16;

/// Repeated draws of a retry. Source: Istio's `host_selection_retry_max_attempts`.
const RETRY_DRAWS: usize = 5;

impl Group {
    /// Prepares a group; `None` without members.
    pub(super) fn new(
        all: &[Endpoint],
        members: &[Weighted],
        balancer: &Balancer,
        share: u64,
    ) -> Option<Self> {
        if members.is_empty() {
            return None;
        }
        let method = match balancer {
            Balancer::LeastRequest => Method::Least(Weights::new(members)),
            Balancer::RoundRobin => Method::Turn(schedule::order(members)),
            // Source: Envoy's `RandomLoadBalancer`, which takes no notice of weights.
            Balancer::Random => Method::Random(Weights::Equal),
            Balancer::Passthrough | Balancer::ByName { .. } => Method::Passthrough(Weights::new(members)),
            Balancer::RingHash { minimum_ring_size, .. } => {
                Method::Ring(Ring::new(all, members, *minimum_ring_size))
            }
            Balancer::Maglev { table_size, .. } => Method::Maglev(Table::new(all, members, *table_size)),
        };
        let members = members.iter().map(|(at, _)| *at).collect();
        Some(Self { share, members, method, counted: AtomicU64::new(UNCOUNTED) })
    }

    /// How many it has.
    pub(super) fn size(&self) -> u64 {
        self.members.len() as u64
    }

    /// Positions of its members.
    pub(super) fn members(&self) -> &[u32] {
        &self.members
    }

    /// Whether it has any of these endpoints.
    pub(super) fn has_any(&self, all: &[Endpoint], ids: &[Arc<str>]) -> bool {
        let is_one = |at: &u32| all.get(*at as usize).is_some_and(|endpoint| ids.contains(&endpoint.id));
        self.members.iter().any(is_one)
    }

    /// How many are not ejected.
    pub(super) fn available(&self, all: &[Endpoint], epoch: u32) -> u64 {
        let counted = self.counted.load(Ordering::Relaxed);
        if counted != UNCOUNTED && counted >> 32 == u64::from(epoch) {
            return counted & u64::from(u32::MAX);
        }
        let well = |at: &&u32| all.get(**at as usize).is_some_and(|endpoint| !endpoint.state.is_ejected());
        let available = self.members.iter().filter(well).count() as u64;
        self.counted.store(u64::from(epoch) << 32 | available, Ordering::Relaxed);
        available
    }

    /// Looks at it as it is now.
    pub(super) fn field<'a>(&'a self, all: &'a [Endpoint], spare: Spare) -> Field<'a> {
        let available = spare.map_or(self.size(), |epoch| self.available(all, epoch));
        Field { all, group: self, available, everyone: available == self.size() }
    }
}

impl Weights {
    fn new(members: &[Weighted]) -> Self {
        let Some((_, first)) = members.first() else { return Self::Equal };
        if members.iter().all(|(_, weight)| weight == first) {
            return Self::Equal;
        }
        let add = |sum: &mut u64, (_, weight): &Weighted| {
            *sum = sum.saturating_add(*weight);
            Some(*sum)
        };
        Self::Sums(members.iter().scan(0, add).collect())
    }
}

/// A group at the time of one pick.
pub(super) struct Field<'a> {
    all: &'a [Endpoint],
    group: &'a Group,
    /// How many may be chosen.
    available: u64,
    /// All may.
    everyone: bool,
}

impl<'a> Field<'a> {
    /// Draws one; `None` when all are ejected, or for passthrough to elsewhere.
    pub(super) fn draw(
        &self,
        hint: &Hint<'_>,
        turn: &AtomicU64,
        rng: &mut impl RngCore,
    ) -> Option<&'a Endpoint> {
        if self.available == 0 {
            return None;
        }
        match (&self.group.method, hint.destination) {
            (Method::Passthrough(_), Some(destination)) => self.at(destination),
            (Method::Least(weights) | Method::Passthrough(weights), _) => self.least(weights, rng),
            (Method::Random(weights), _) => self.random(weights, rng),
            (Method::Turn(order), _) => self.next(order.as_deref(), take_turn(turn, rng)),
            (Method::Ring(ring), _) => self.first(ring.from(hint.hash.unwrap_or_else(|| rng.next_u64()))),
            (Method::Maglev(table), _) => self.first(table.from(hint.hash.unwrap_or_else(|| rng.next_u64()))),
        }
    }

    /// Draws once more, whatever was drawn before: the less busy of two, or any turn.
    pub(super) fn again(&self, rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        match &self.group.method {
            Method::Least(weights) => self.least(weights, rng),
            Method::Turn(order) => self.next(order.as_deref(), rng.next_u64() >> 16),
            _ => None,
        }
    }

    /// Draws again while what was drawn was tried before; then takes any that was not; then what there is.
    ///
    /// differs: Envoy gives up after the repeated draws, so that with two endpoints one retry in 64 meets the
    /// endpoint that has just failed.
    pub(super) fn elsewhere(
        &self,
        drawn: &'a Endpoint,
        hint: &Hint<'_>,
        turn: &AtomicU64,
        rng: &mut impl RngCore,
    ) -> &'a Endpoint {
        let tried = |endpoint: &Endpoint| hint.avoid.contains(&endpoint.id);
        let mut chosen = drawn;
        for _ in 0..RETRY_DRAWS {
            if !tried(chosen) {
                return chosen;
            }
            let Some(again) = self.draw(hint, turn, rng) else { return chosen };
            chosen = again;
        }
        let start = index(self.group.members.len(), rng);
        let (before, after) = self.group.members.split_at(start);
        let round = after.iter().chain(before).copied();
        let other = round.filter_map(|at| self.usable(at)).find(|endpoint| !tried(endpoint));
        other.unwrap_or(chosen)
    }

    /// The less busy of two drawn; with unequal weights, by weight / (requests in flight + 1).
    ///
    /// The two may be the same one, as in Envoy: an endpoint that fails fast looks idle, and of two endpoints it then
    /// gets three quarters of the traffic, not all of it. Ties go to the first drawn.
    fn least(&self, weights: &Weights, rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        let Weights::Sums(sums) = weights else {
            let (first, second) = (self.even(rng)?, self.even(rng)?);
            return Some(if busy(second) < busy(first) { second } else { first });
        };
        self.least_by_weight(sums, rng)
    }

    /// Draws with a chance in proportion to weight / (requests in flight + 1): exactly in a small group; in a large one
    /// among candidates drawn by weight.
    ///
    /// Envoy reaches the same shares with a schedule of deadlines; that would need a lock here.
    fn least_by_weight(&self, sums: &[u64], rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        let members = &self.group.members;
        let mut candidates = [None; CANDIDATES];
        if members.len() <= CANDIDATES {
            for (slot, (position, at)) in candidates.iter_mut().zip(members.iter().enumerate()) {
                let weight = weight_of(sums, position);
                *slot = self.usable(*at).map(|endpoint| (endpoint, per_request(weight, endpoint)));
            }
        } else {
            for slot in &mut candidates {
                let drawn = self.by_weight(sums, rng)?;
                *slot = Some((drawn, per_request(1, drawn)));
            }
        }
        let mut lot = below(candidates.iter().flatten().map(|(_, chance)| chance).sum(), rng);
        for (endpoint, chance) in candidates.iter().flatten() {
            if lot < *chance {
                return Some(endpoint);
            }
            lot -= chance;
        }
        None
    }

    fn random(&self, weights: &Weights, rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        match weights {
            Weights::Equal => self.even(rng),
            Weights::Sums(sums) => self.by_weight(sums, rng),
        }
    }

    /// Draws with equal chances.
    fn even(&self, rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        let members = &self.group.members;
        for _ in 0..TRIES {
            if let Some(endpoint) = self.usable(*members.get(index(members.len(), rng))?) {
                return Some(endpoint);
            }
        }
        self.nth(members, below(self.available, rng))
    }

    /// Draws with chances in proportion to the weights.
    fn by_weight(&self, sums: &[u64], rng: &mut impl RngCore) -> Option<&'a Endpoint> {
        let members = &self.group.members;
        let total = *sums.last()?;
        for _ in 0..TRIES {
            let lot = below(total, rng);
            let position = sums.partition_point(|sum| *sum <= lot);
            if let Some(endpoint) = self.usable(*members.get(position)?) {
                return Some(endpoint);
            }
        }
        let usable = || {
            let weighed = members.iter().enumerate().map(|(position, at)| (at, weight_of(sums, position)));
            weighed.filter_map(|(at, weight)| Some((self.usable(*at)?, weight)))
        };
        let mut lot = below(usable().map(|(_, weight)| weight).sum(), rng);
        for (endpoint, weight) in usable() {
            if lot < weight {
                return Some(endpoint);
            }
            lot -= weight;
        }
        usable().next().map(|(endpoint, _)| endpoint)
    }

    /// Takes the one whose turn it is.
    fn next(&self, order: Option<&[u32]>, turn: u64) -> Option<&'a Endpoint> {
        let members: &[u32] = &self.group.members;
        let count = match order {
            None => self.available,
            Some(order) if self.everyone => order.len() as u64,
            Some(order) => order.iter().filter(|at| self.usable(**at).is_some()).count() as u64,
        };
        let order = order.unwrap_or(members);
        let nth = turn % count.max(1);
        if self.everyone {
            return self.usable(*order.get(usize::try_from(nth).ok()?)?);
        }
        self.nth(order, nth)
    }

    /// Takes the first usable one along a ring or table.
    fn first(&self, mut along: impl Iterator<Item = u32>) -> Option<&'a Endpoint> {
        along.find_map(|at| self.usable(at))
    }

    /// Finds the endpoint at an address: itself, else the host that has the address.
    fn at(&self, destination: SocketAddr) -> Option<&'a Endpoint> {
        let members = || self.group.members.iter().filter_map(|at| self.usable(*at));
        let exactly = |endpoint: &&Endpoint| match endpoint.via {
            Via::Local(address) | Via::Plain(address) => address == destination,
            Via::Mesh { .. } | Via::Name { .. } | Via::Socket(_) => false,
        };
        let host = |endpoint: &&Endpoint| match &endpoint.via {
            Via::Mesh { to, .. } => to.hop.ip() == destination.ip(),
            _ => false,
        };
        members().find(exactly).or_else(|| members().find(host))
    }

    /// Takes the n-th usable one; another one if somebody was ejected meanwhile.
    fn nth(&self, order: &[u32], nth: u64) -> Option<&'a Endpoint> {
        let usable = || order.iter().filter_map(|at| self.usable(*at));
        usable().nth(usize::try_from(nth).ok()?).or_else(|| usable().next())
    }

    fn usable(&self, at: u32) -> Option<&'a Endpoint> {
        self.all.get(at as usize).filter(|endpoint| self.everyone || !endpoint.state.is_ejected())
    }
}

/// Takes a turn. The first one is drawn, so that hosts that start together do not all begin with the same endpoint.
fn take_turn(turn: &AtomicU64, rng: &mut impl RngCore) -> u64 {
    match turn.fetch_add(1, Ordering::Relaxed) {
        0 => {
            let start = u64::from(rng.next_u32());
            turn.fetch_add(start, Ordering::Relaxed);
            start
        }
        turn => turn,
    }
}

fn busy(endpoint: &Endpoint) -> u32 {
    endpoint.state.busy()
}

/// Weight by (requests in flight + 1), in fixed point; at least 1.
fn per_request(weight: u64, endpoint: &Endpoint) -> u64 {
    // A weight has 32 bits and there are few candidates: their sum fits.
    ((weight << 24) / (u64::from(busy(endpoint)) + 1)).max(1)
}

fn weight_of(sums: &[u64], position: usize) -> u64 {
    let sum = |position: usize| sums.get(position).copied().unwrap_or(0);
    sum(position) - position.checked_sub(1).map_or(0, sum)
}
