//! Puts what was compiled of a slice in the place of what was there: what the old slice came to goes, what the new one
//! comes to comes, for the hosts that are the slice's own.
//!
//! A name that somebody else has, or may want once it is free, is for the whole to give: `None` then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::registration::Protocol;

use super::super::hosts::short_names;
use super::index::Index;
use crate::plan::{Cluster, HostTable, Names, Outbound, Plan, PortTable, ServicePort};
use crate::world::{VIRTUAL_V4, VIRTUAL_V6};

/// Whose names are put.
pub(super) struct Mine<'a> {
    pub(super) hosts: &'a BTreeSet<String>,
    pub(super) index: &'a Index,
    pub(super) domain: &'a str,
}

/// Changes a Plan; `None`: it does not fit, and the Plan is of no use.
pub(super) fn put(plan: &mut Plan, old: &Plan, new: &Plan, mine: &Mine<'_>) -> Option<()> {
    let doors = [old, new].iter().all(|made| made.doors.open.is_empty());
    let callers = [old, new].iter().all(|made| made.outbounds.len() == plan.outbounds.len());
    if !doors || !callers {
        return None;
    }
    clusters(plan, old, new, mine)?;
    // Callers that share a table go on sharing it.
    let mut tables = HashMap::default();
    for ((place, old), new) in plan.outbounds.iter_mut().zip(&old.outbounds).zip(&new.outbounds) {
        *place = Arc::new(outbound(place, old, new, mine, &mut tables)?);
    }
    names(plan, &old.names, &new.names, mine)?;
    let told = plan.problems.iter().filter(|problem| !old.problems.contains(problem));
    let told: BTreeSet<String> = told.chain(&new.problems).cloned().collect();
    plan.problems = told.into_iter().collect();
    Some(())
}

impl Mine<'_> {
    fn has(&self, host: &str) -> bool {
        self.hosts.contains(host)
    }

    /// Whether somebody else may want a name.
    fn is_wanted_elsewhere(&self, name: &str) -> bool {
        let is_rule = |host: &str| self.index.links(host).is_some_and(|links| !links.rules.is_empty());
        if !self.has(name) && is_rule(name) {
            return true;
        }
        if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.is_declared(address);
        }
        let is_other = |host: &str| {
            !self.has(host) && self.index.links(host).is_some_and(super::index::Links::is_service)
        };
        let full = name.strip_suffix('.').unwrap_or(name);
        if full != name && is_other(full) {
            return true;
        }
        // As a short name of a service here, or of one that only an entry knows.
        let domain = self.domain;
        is_other(&format!("{name}.svc.{domain}"))
            || is_other(&format!("{name}.{domain}"))
            || self.index.foreign > 0
    }

    fn is_declared(&self, address: IpAddr) -> bool {
        let is_virtual = match address {
            IpAddr::V4(address) => address.octets()[..2] == VIRTUAL_V4.octets()[..2],
            IpAddr::V6(address) => address.octets()[..6] == VIRTUAL_V6.octets()[..6],
        };
        !is_virtual || self.index.addressed > 0
    }
}

fn clusters(plan: &mut Plan, old: &Plan, new: &Plan, mine: &Mine<'_>) -> Option<()> {
    for key in old.memory.keys().filter(|key| mine.has(&key.0.host)) {
        plan.memory.remove(key);
        plan.clusters.remove(&key.0);
    }
    for (key, cluster) in new.memory.iter() {
        if mine.has(&key.0.host) {
            plan.memory.insert(key.clone(), cluster.clone());
        } else if plan.memory.get(key).is_some_and(|place| !Arc::ptr_eq(&place.1, &cluster.1)) {
            return None;
        }
    }
    let made = new.clusters.iter().filter(|(name, _)| mine.has(&name.host));
    plan.clusters.extend(made.map(|(name, cluster)| (name.clone(), cluster.clone())));
    named(plan, old, new, mine);
    Some(())
}

/// The clusters whose endpoints are names.
fn named(plan: &mut Plan, old: &Plan, new: &Plan, mine: &Mine<'_>) {
    let is_mine = |cluster: &&Arc<Cluster>| mine.has(&cluster.name.host);
    if !old.named.clusters.iter().chain(new.named.clusters.iter()).any(|cluster| is_mine(&cluster)) {
        return;
    }
    let kept = plan.named.clusters.iter().filter(|cluster| !is_mine(cluster));
    plan.named.clusters = kept.chain(new.named.clusters.iter().filter(is_mine)).cloned().collect();
}

/// Tables already patched, by where the Plan's and the slices' are.
type Tables = HashMap<[usize; 3], Option<Arc<PortTable>>>;

fn outbound(
    before: &Outbound,
    old: &Outbound,
    new: &Outbound,
    mine: &Mine<'_>,
    tables: &mut Tables,
) -> Option<Outbound> {
    let mut next = before.clone();
    let ports: BTreeSet<u16> = old.ports.keys().chain(new.ports.keys()).copied().collect();
    for number in ports {
        let three = [&next, old, new].map(|outbound| outbound.ports.get(&number));
        let at = three.map(|table| table.map_or(0, |table| Arc::as_ptr(table) as usize));
        let patched = match tables.get(&at) {
            Some(known) => known.clone(),
            None => table(number, three, mine)?,
        };
        tables.insert(at, patched.clone());
        match patched {
            Some(table) => drop(next.ports.insert(number, table)),
            None => drop(next.ports.remove(&number)),
        }
    }
    addresses(&mut next, old, new, mine)?;
    ranges(&mut next, old, new, mine)?;
    Some(next)
}

/// Returns the table of a port as it is now; `None` within: there is nothing on the port.
#[expect(clippy::option_option, reason = "it does not fit, or there is nothing: two answers")]
fn table(
    number: u16,
    [before, old, new]: [Option<&Arc<PortTable>>; 3],
    mine: &Mine<'_>,
) -> Option<Option<Arc<PortTable>>> {
    let nothing = PortTable { number, ..PortTable::default() };
    let [old, new] = [old, new].map(|table| table.map_or(&nothing, AsRef::as_ref));
    let mut next = before.map_or_else(|| nothing.clone(), |table| PortTable::clone(table));
    hosts(&mut next.http, &old.http, &new.http, |host| &host.host, mine)?;
    hosts(&mut next.tls, &old.tls, &new.tls, |host| &host.host, mine)?;
    next.tcp = tcp(next.tcp.as_ref(), new.tcp.as_ref(), mine)?;
    let is_any = next.has_http() || !next.tls.is_empty() || next.tcp.is_some();
    Some(is_any.then(|| Arc::new(next)))
}

fn hosts<T>(
    table: &mut HostTable<T>,
    old: &HostTable<T>,
    new: &HostTable<T>,
    owner: impl Fn(&T) -> &str,
    mine: &Mine<'_>,
) -> Option<()> {
    let is_mine = |host: &Arc<T>| mine.has(owner(host));
    for (name, _) in old.iter().filter(|(_, host)| is_mine(host)) {
        if !is_mine(table.get(&name)?) {
            return None;
        }
        if new.get(&name).is_some_and(is_mine) {
            continue;
        }
        if mine.is_wanted_elsewhere(&name) {
            return None;
        }
        table.remove(&name);
    }
    for (name, host) in new.iter().filter(|(_, host)| is_mine(host)) {
        if table.get(&name).is_some_and(|place| !is_mine(place)) {
            return None;
        }
        table.put(&name, host.clone());
    }
    Some(())
}

/// Decides which service gets the connections that nothing else tells apart: the slice has the one that did.
#[expect(clippy::option_option, reason = "it does not fit, or there is none: two answers")]
fn tcp(
    before: Option<&Arc<ServicePort>>,
    new: Option<&Arc<ServicePort>>,
    mine: &Mine<'_>,
) -> Option<Option<Arc<ServicePort>>> {
    let Some(before) = before else {
        // Nobody outside the slice wanted them.
        return Some(new.filter(|new| mine.has(&new.host)).cloned());
    };
    if !mine.has(&before.host) {
        let better = new.filter(|new| mine.has(&new.host));
        return Some(Some(better.unwrap_or(before).clone()));
    }
    // Its successor may be one that is not in the slice, unless that goes before it.
    let rank = |one: &ServicePort| (one.protocol == Protocol::Auto, one.host.clone());
    let new = new.filter(|new| mine.has(&new.host) && rank(new) <= rank(before))?;
    Some(Some(new.clone()))
}

fn addresses(next: &mut Outbound, old: &Outbound, new: &Outbound, mine: &Mine<'_>) -> Option<()> {
    for (at, _) in old.addresses.iter().filter(|(_, to)| mine.has(&to.host)) {
        if !mine.has(&next.addresses.get(at)?.host) {
            return None;
        }
        if new.addresses.get(at).is_some_and(|to| mine.has(&to.host)) {
            continue;
        }
        if mine.is_declared(at.0) {
            return None;
        }
        next.addresses.remove(at);
    }
    for (at, to) in new.addresses.iter().filter(|(_, to)| mine.has(&to.host)) {
        if next.addresses.get(at).is_some_and(|place| !mine.has(&place.host)) {
            return None;
        }
        next.addresses.insert(*at, to.clone());
    }
    Some(())
}

fn ranges(next: &mut Outbound, old: &Outbound, new: &Outbound, mine: &Mine<'_>) -> Option<()> {
    let is_mine = |to: &Arc<ServicePort>| mine.has(&to.host);
    if ![old, new].iter().any(|made| made.ranges.iter().any(|(_, _, to)| is_mine(to))) {
        return Some(());
    }
    next.ranges.retain(|(_, _, to)| !is_mine(to));
    next.ranges.extend(new.ranges.iter().filter(|(_, _, to)| is_mine(to)).cloned());
    next.sort_ranges();
    Some(())
}

/// Which name is whose is not written in what DNS answers: a name may go or change where it is what the old slice said.
fn names(plan: &mut Plan, old: &Names, new: &Names, mine: &Mine<'_>) -> Option<()> {
    if mine.hosts.iter().any(|host| host.starts_with('*')) && old.wildcard != new.wildcard {
        return None;
    }
    let mut changed: BTreeMap<String, Option<&Arc<[IpAddr]>>> = BTreeMap::new();
    for host in mine.hosts {
        let short = plan.outbounds.iter().flat_map(|outbound| short_names(host, &outbound.caller.namespace));
        for name in short.chain(std::iter::once(host.clone())) {
            let (old, new) = (old.exact.get(name.as_str()), new.exact.get(name.as_str()));
            if old == new {
                continue;
            }
            if plan.names.exact.get(name.as_str()) != old
                || (new.is_none() && mine.is_wanted_elsewhere(&name))
            {
                return None;
            }
            changed.insert(name, new);
        }
    }
    if !changed.is_empty() {
        let names = Arc::make_mut(&mut plan.names);
        for (name, addresses) in changed {
            match addresses {
                Some(addresses) => drop(names.exact.insert(name.into(), addresses.clone())),
                None => drop(names.exact.remove(name.as_str())),
            }
        }
    }
    Some(())
}
