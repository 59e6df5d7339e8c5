//! The next Plan of a large mesh where little has changed: what did change is compiled alone and put in its place.
//!
//! What a host name leads to depends on its own service, the `VirtualServices` for it, the services those lead to, and
//! the `DestinationRules` of all of these. For every host that a change may touch, that slice is cut out of the World,
//! as it was and as it is now, and both are compiled as every World is (`whole`): what the first came to goes out of the
//! Plan, what the second comes to goes in. So nothing here knows what rules mean.
//!
//! `affected` finds the hosts, `index` the way from a host to all that it is made of, `put` changes the Plan. Where a
//! change reaches beyond any slice (settings, `Sidecars`, gateways here, selectors of `ServiceEntries`, services that not
//! everybody sees), or two hosts want one name, `next` says `None`, and the Plan is compiled from the whole World.

use std::collections::BTreeSet;
use std::sync::Arc;

use foldhash::HashSet;

pub(super) use index::Index;
pub(crate) use index::Mine;

use super::seen::Stale;
use super::{Problems, inbound, mesh, scope, telemetry, whole};
use crate::plan::{Inbound, Node, Plan};
use crate::world::World;

mod affected;
mod index;
mod put;

/// How many hosts a slice may replace: with more, it is not much cheaper than the whole.
const HOSTS_MAX: usize = 1_024;

/// Makes the next Plan out of the one before; `None`: the whole World must be looked at.
pub(super) fn next(world: &World, node: &Arc<Node>, before: &Plan) -> Option<Plan> {
    let then = &before.seen.world;
    let index = before.seen.index.as_deref()?;
    let is_same = before.node == *node
        && before.doors.open.is_empty()
        && before.doors.seats.is_empty()
        && then.mesh == world.mesh;
    if !is_same {
        return None;
    }
    let (hosts, now) = affected::affected(then, world, node, index)?;
    let mut next = before.clone();
    if !hosts.is_empty() {
        let beside = tcp_of_ports(before, then, world, index, &now, &hosts);
        let old = index.slice(then, node, &hosts, &beside)?;
        let new = now.slice(world, node, &hosts, &beside)?;
        let old = whole(&old, node, Some(before), unchanged(before), false);
        let new = whole(&new, node, Some(before), Stale::All, false);
        put::put(&mut next, &old, &new, &put::Mine { hosts: &hosts, index: &now, domain: &node.domain })?;
    }
    let of_here = |world: &World| world.registrations.get(&node.host).cloned();
    let is_same = match (of_here(then), of_here(world)) {
        (Some(one), Some(other)) => Arc::ptr_eq(&one, &other),
        (one, other) => one.is_none() && other.is_none(),
    };
    if !is_same {
        next.inbound = Arc::new(inbound_of(world, node, before));
    }
    next.revision = world.revision;
    next.seen.follow(world, now);
    Some(next)
}

/// A slice of the World as it was has the endpoints of the Plan before, unless some could not be made: that is told again,
/// so that it can be taken out of what was told.
fn unchanged(before: &Plan) -> Stale {
    let is_sound = !before.problems.iter().any(|problem| problem.starts_with("instance "));
    if is_sound { Stale::Hosts(HashSet::default()) } else { Stale::All }
}

/// What others may ask of this host. What cannot be carried out of it was told by the slices.
fn inbound_of(world: &World, node: &Node, before: &Plan) -> Inbound {
    let settings = mesh::Settings::of(world);
    let problems = Problems::default();
    let here = inbound::Scene {
        world,
        node,
        mesh: &settings,
        sidecars: &scope::Sidecars::load(world, &settings),
        telemetry: &telemetry::Rules::load(world, &settings, &problems),
        previous: Some(before),
        problems: &problems,
    };
    inbound::inbound(&here)
}

/// Returns the services that now get the connections which nothing else tells apart, on every port of these hosts.
fn tcp_of_ports(
    before: &Plan,
    then: &World,
    world: &World,
    old: &Index,
    new: &Index,
    hosts: &BTreeSet<String>,
) -> BTreeSet<String> {
    let mut ports = old.ports_of_all(then, hosts);
    ports.extend(new.ports_of_all(world, hosts));
    let tables = before.outbounds.iter().flat_map(|outbound| &outbound.ports);
    let theirs = tables.filter(|(number, _)| ports.contains(number));
    theirs.filter_map(|(_, table)| Some(table.tcp.as_ref()?.host.clone())).collect()
}
