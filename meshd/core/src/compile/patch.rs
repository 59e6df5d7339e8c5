//! The next Plan of a large mesh where little has changed: what did change is compiled alone and put in its place.
//!
//! What a host name leads to depends on its own service, the `VirtualServices` for it, the services those lead to, and
//! the `DestinationRules` of all of these. For changed `VirtualServices` and changed instances that slice is cut out of
//! the World, compiled as every World is (`whole`), and its hosts replace those of the Plan before.
//!
//! Where anything else has changed, or reaches beyond its slice (`Sidecars`, wildcards, delegates, selectors, TLS and
//! TCP rules), nothing is patched: `next` says `None`, and the Plan is compiled from the whole World.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::command::HostId;
use mesh_proto::registration::{Instance, Registration};
use mesh_proto::resource::{Destination, Kind, ObjectKey, Spec, VirtualService};
use mesh_proto::watch::Stored;

use super::hosts::{Services, Source, full_name, of_kind};
use super::seen::Stale;
use super::{Problems, inbound, mesh, policy, scope, whole};
use crate::plan::{Node, Outbound, Plan, PortTable};
use crate::world::{ServiceName, World};

/// The way from a host name to all that it is made of. The objects stand for their names: what they say is looked up.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Hosts with instances, by the full host name of their service.
    services: HashMap<Arc<str>, Box<[HostId]>>,
    /// `VirtualServices`, by each of their hosts.
    rules: HashMap<String, Vec<Arc<Stored>>>,
    /// `VirtualServices` that lead to a host other than their only one.
    leading: HashMap<String, Vec<Arc<Stored>>>,
    /// `DestinationRules`, by host.
    shapes: HashMap<String, Vec<Arc<Stored>>>,
    /// What every slice has: settings, `ServiceEntries` and what they may be made of, rules for wildcards.
    common: Vec<ObjectKey>,
    /// Hosts of `ServiceEntries`.
    entries: BTreeSet<String>,
    /// A service with the port on which hosts of rules are that are no service.
    on_http_port: Option<Arc<str>>,
}

/// How many objects every slice may have: with more, a slice is not much cheaper than the whole.
const COMMON_MAX: usize = 256;

/// How many hosts a slice may replace, for the same reason.
const HOSTS_MAX: usize = 64;

/// Where hosts of rules are that are no service.
const HTTP_PORT: u16 = 80;

impl Index {
    /// Makes the index of a World; `None`: its parts do not stand alone.
    pub(super) fn of(world: &World, node: &Node, services: &Services<'_>) -> Option<Self> {
        let alone = services.is_plain
            && services.shadowed.is_empty()
            && of_kind(world, Kind::Sidecar).next().is_none()
            && super::gateways::selected(world, node).is_empty();
        if !alone {
            return None;
        }
        let mut index = Self::default();
        for service in &services.all {
            if service.port(HTTP_PORT).is_some() && index.on_http_port.is_none() && service.is_registered() {
                index.on_http_port = Some(service.host.clone());
            }
            if let Source::Registered(instances) = &service.source {
                let mut hosts: Vec<HostId> = instances.iter().map(|instance| instance.host).collect();
                hosts.dedup();
                index.services.insert(service.host.clone(), hosts.into());
            }
        }
        for (key, stored) in &world.resources {
            index.add(key, stored, &node.domain)?;
        }
        (index.common.len() <= COMMON_MAX).then_some(index)
    }

    fn add(&mut self, key: &ObjectKey, stored: &Arc<Stored>, domain: &str) -> Option<()> {
        match &stored.object.spec {
            Spec::VirtualService(spec) => {
                if !stands_alone(spec) {
                    return None;
                }
                let hosts = hosts_of(spec, &key.namespace, domain);
                for to in leads_to(spec, &key.namespace, domain) {
                    if hosts.len() != 1 || hosts[0] != to {
                        self.leading.entry(to).or_default().push(stored.clone());
                    }
                }
                for host in hosts {
                    self.rules.entry(host).or_default().push(stored.clone());
                }
            }
            Spec::DestinationRule(spec) => {
                // Where callers are counts for how near their services are.
                if policy::looks_at_zones(spec) {
                    return None;
                }
                let host = full_name(&spec.host, &key.namespace, domain);
                if host.contains('*') {
                    self.common.push(key.clone());
                } else {
                    self.shapes.entry(host).or_default().push(stored.clone());
                }
            }
            Spec::ServiceEntry(spec) => {
                if spec.workload_selector.is_some() {
                    return None;
                }
                self.entries.extend(spec.hosts.iter().map(|host| host.to_ascii_lowercase()));
                self.common.push(key.clone());
            }
            Spec::MeshConfig(spec) if spec.zone_aware_lb_setting.is_some() => return None,
            Spec::MeshConfig(_) => self.common.push(key.clone()),
            _ => {}
        }
        Some(())
    }

    /// Whether all ways of a changed `VirtualService` are known.
    fn knows(&self, spec: &VirtualService, key: &ObjectKey, domain: &str) -> bool {
        let hosts = hosts_of(spec, &key.namespace, domain);
        let has_key = |stored: &Arc<Stored>| stored.object.key() == *key;
        leads_to(spec, &key.namespace, domain).iter().all(|to| {
            (hosts.len() == 1 && hosts[0] == *to)
                || self.leading.get(to).is_some_and(|all| all.iter().any(has_key))
        })
    }
}

/// Whether a rule says nothing but what becomes of HTTP requests for its own, exact hosts.
fn stands_alone(spec: &VirtualService) -> bool {
    !spec.hosts.is_empty()
        && spec.hosts.iter().all(|host| !host.contains('*'))
        && spec.http.iter().all(|route| route.delegate.is_none())
}

fn hosts_of(spec: &VirtualService, namespace: &str, domain: &str) -> Vec<String> {
    spec.hosts.iter().map(|host| full_name(host, namespace, domain)).collect()
}

/// Returns every host that a rule leads to, whoever asks.
fn leads_to(spec: &VirtualService, namespace: &str, domain: &str) -> BTreeSet<String> {
    let http = spec.http.iter().flat_map(|route| {
        let routes = route.route.iter().filter_map(|to| to.destination.as_ref());
        let mirrors = route.mirrors.iter().filter_map(|to| to.destination.as_ref());
        routes.chain(&route.mirror).chain(mirrors)
    });
    let tcp = spec.tcp.iter().flat_map(|block| &block.route);
    let tls = spec.tls.iter().flat_map(|block| &block.route);
    let connections = tcp.chain(tls).filter_map(|to| to.destination.as_ref());
    let full = |to: &Destination| full_name(&to.host, namespace, domain);
    http.chain(connections).map(full).collect()
}

/// Makes the next Plan out of the one before; `None`: the whole World must be looked at.
pub(super) fn next(world: &World, node: &Arc<Node>, before: &Plan) -> Option<Plan> {
    let index = before.seen.index.as_deref()?;
    let is_same = before.node == *node
        && before.problems.is_empty()
        && before.doors.open.is_empty()
        && before.doors.seats.is_empty()
        && before.seen.is_same_place(world);
    if !is_same {
        return None;
    }
    let mut hosts = changed_rules(world, node, before, index)?;
    hosts.extend(changed_services(world, node, before, index)?);
    if hosts.len() > HOSTS_MAX || hosts.iter().any(|host| index.entries.contains(host)) {
        return None;
    }
    let problems = Problems::default();
    let mut next = before.clone();
    if !hosts.is_empty() {
        let slice = index.slice(world, node, &hosts)?;
        let made = whole(&slice, node, Some(before), Stale::All, false);
        if !made.problems.is_empty() || !made.doors.open.is_empty() {
            return None;
        }
        put_in(&mut next, made, &hosts)?;
    }
    let settings = mesh::Settings::of(world);
    let sidecars = scope::Sidecars::load(world, &settings);
    let here = inbound::Scene {
        world,
        node,
        mesh: &settings,
        sidecars: &sidecars,
        previous: Some(before),
        problems: &problems,
    };
    next.inbound = Arc::new(inbound::inbound(&here));
    next.revision = world.revision;
    next.seen.follow(world);
    problems.into_list().is_empty().then_some(next)
}

/// Returns the hosts of the `VirtualServices` that have changed; `None`: something else did.
fn changed_rules(world: &World, node: &Node, before: &Plan, index: &Index) -> Option<BTreeSet<String>> {
    let then = &before.seen.resources;
    if then.len() != world.resources.len() {
        return None;
    }
    let mut hosts = BTreeSet::new();
    for (old, (key, new)) in then.iter().zip(&world.resources) {
        if Arc::ptr_eq(old, new) {
            continue;
        }
        let (Spec::VirtualService(was), Spec::VirtualService(is)) = (&old.object.spec, &new.object.spec)
        else {
            return None;
        };
        let alike = old.object.key() == *key
            && old.created == new.created
            && was.hosts == is.hosts
            && was.gateways == is.gateways
            && was.export_to == is.export_to
            && stands_alone(is)
            && index.knows(is, key, &node.domain);
        if !alike || !was.tcp.is_empty() || !was.tls.is_empty() {
            return None;
        }
        hosts.extend(hosts_of(is, &key.namespace, &node.domain));
    }
    Some(hosts)
}

/// Returns the services whose instances have changed, and the hosts whose rules lead to them; `None`: services have
/// come, gone, or changed their ports.
fn changed_services(world: &World, node: &Node, before: &Plan, index: &Index) -> Option<BTreeSet<String>> {
    let then = &before.seen.registrations;
    if then.len() != world.registrations.len() {
        return None;
    }
    let mut hosts = BTreeSet::new();
    for ((id, old), (other, new)) in then.iter().zip(&world.registrations) {
        if id != other {
            return None;
        }
        if Arc::ptr_eq(old, new) {
            continue;
        }
        if old.instances.len() != new.instances.len() {
            return None;
        }
        for ((name, was), (other, is)) in old.instances.iter().zip(&new.instances) {
            if name != other || !alike(was, is) {
                return None;
            }
            if was != is {
                hosts.insert(ServiceName::of(is).fqdn(&node.domain).to_ascii_lowercase());
            }
        }
    }
    let services: Vec<String> = hosts.iter().cloned().collect();
    for rules in services.iter().filter_map(|service| index.leading.get(service)).flatten() {
        let Some(Spec::VirtualService(spec)) =
            world.resources.get(&rules.object.key()).map(|stored| &stored.object.spec)
        else {
            return None;
        };
        hosts.extend(hosts_of(spec, &rules.object.metadata.namespace, &node.domain));
    }
    Some(hosts)
}

/// Whether two states of an instance make the same service of it.
fn alike(one: &Instance, other: &Instance) -> bool {
    one.service == other.service
        && one.namespace == other.namespace
        && one.ports.len() == other.ports.len()
        && one.ports.iter().zip(&other.ports).all(|(one, other)| {
            one.number == other.number && one.name == other.name && one.protocol == other.protocol
        })
}

impl Index {
    /// Cuts out of the World all that these hosts are made of.
    fn slice(&self, world: &World, node: &Node, hosts: &BTreeSet<String>) -> Option<World> {
        let mut keys: BTreeSet<ObjectKey> = self.common.iter().cloned().collect();
        let mut services: BTreeSet<String> = hosts.clone();
        services.extend(self.on_http_port.iter().map(ToString::to_string));
        for rules in hosts.iter().filter_map(|host| self.rules.get(host)).flatten() {
            let key = rules.object.key();
            let Spec::VirtualService(spec) = &world.resources.get(&key)?.object.spec else { return None };
            if !spec.tcp.is_empty() || !spec.tls.is_empty() {
                return None;
            }
            services.extend(leads_to(spec, &key.namespace, &node.domain));
            // Whether a host of a rule is a service decides where it is.
            services.extend(hosts_of(spec, &key.namespace, &node.domain));
            keys.insert(key);
        }
        let shapes = services.iter().filter_map(|host| self.shapes.get(host)).flatten();
        keys.extend(shapes.map(|stored| stored.object.key()));
        let resources = keys
            .into_iter()
            .map(|key| world.resources.get(&key).cloned().map(|stored| (key, stored)))
            .collect::<Option<_>>()?;
        let addressed = services.iter().chain(&self.entries);
        let addresses = addressed.filter_map(|host| Some((host.clone(), *world.addresses.get(host)?)));
        Some(World {
            revision: world.revision,
            mesh: world.mesh.clone(),
            hosts: world.hosts.clone(),
            registrations: self.registrations(world, node, &services)?,
            resources,
            addresses: addresses.collect(),
            private: crate::world::Private::default(),
        })
    }

    /// Returns the registrations of these services alone.
    fn registrations(
        &self,
        world: &World,
        node: &Node,
        services: &BTreeSet<String>,
    ) -> Option<BTreeMap<HostId, Arc<Registration>>> {
        let on = services.iter().filter_map(|host| self.services.get(host.as_str())).flatten();
        on.copied()
            .collect::<BTreeSet<HostId>>()
            .into_iter()
            .map(|id| {
                let mine = |instance: &Instance| {
                    let host = ServiceName::of(instance).fqdn(&node.domain).to_ascii_lowercase();
                    services.contains(&host)
                };
                let all = world.registrations.get(&id)?.instances.iter();
                let kept = all.filter(|(_, instance)| mine(instance));
                let instances = kept.map(|(name, instance)| (name.clone(), instance.clone())).collect();
                Some((id, Arc::new(Registration { instances })))
            })
            .collect()
    }
}

/// Puts what was made of a slice in the place of what was there for its hosts; `None`: it does not fit.
fn put_in(plan: &mut Plan, made: Plan, hosts: &BTreeSet<String>) -> Option<()> {
    if plan.outbounds.len() != made.outbounds.len() {
        return None;
    }
    for (key, cluster) in made.memory {
        let place = plan.memory.get_mut(&key)?;
        if hosts.contains(&*key.0.host) {
            *place = cluster;
        } else if !Arc::ptr_eq(&place.1, &cluster.1) {
            return None;
        }
    }
    for (name, cluster) in made.clusters {
        *plan.clusters.get_mut(&name)? = cluster;
    }
    // Callers that share a table go on sharing it.
    let mut tables = HashMap::default();
    for (place, made) in plan.outbounds.iter_mut().zip(&made.outbounds) {
        *place = Arc::new(outbound(place, made, hosts, &mut tables)?);
    }
    Some(())
}

/// Tables already patched, by where the old one and the slice's are.
type Tables = HashMap<(usize, usize), Arc<PortTable>>;

fn outbound(
    before: &Outbound,
    made: &Outbound,
    hosts: &BTreeSet<String>,
    tables: &mut Tables,
) -> Option<Outbound> {
    if made.ranges.iter().any(|(_, _, to)| hosts.contains(&to.host)) {
        return None;
    }
    let mut next = before.clone();
    for (number, place) in &mut next.ports {
        let Some(new) = made.ports.get(number) else {
            if has_any(place, hosts) {
                return None;
            }
            continue;
        };
        let at = (Arc::as_ptr(place) as usize, Arc::as_ptr(new) as usize);
        let patched = match tables.get(&at) {
            Some(known) => known.clone(),
            None => Arc::new(table(place, new, hosts)?),
        };
        tables.insert(at, patched.clone());
        *place = patched;
    }
    let is_new =
        |(number, table): (&u16, &Arc<PortTable>)| !next.ports.contains_key(number) && has_any(table, hosts);
    if made.ports.iter().any(is_new) {
        return None;
    }
    for (at, to) in made.addresses.iter().filter(|(_, to)| hosts.contains(&to.host)) {
        let place = next.addresses.get_mut(at).filter(|place| place.host == to.host)?;
        *place = to.clone();
    }
    Some(next)
}

/// Whether a table leads to any of these hosts.
fn has_any(table: &PortTable, hosts: &BTreeSet<String>) -> bool {
    hosts.iter().any(|host| table.http.get(host).is_some_and(|found| found.host == **host))
        || table.tcp.as_ref().is_some_and(|tcp| hosts.contains(&tcp.host))
}

fn table(before: &PortTable, made: &PortTable, hosts: &BTreeSet<String>) -> Option<PortTable> {
    // Connections told apart by SNI or by nothing are for the whole to sort out.
    if before.tcp.as_ref().is_some_and(|tcp| hosts.contains(&tcp.host))
        || made.tls.iter().any(|(_, to)| hosts.contains(&to.host))
    {
        return None;
    }
    for host in hosts {
        let has = |table: &PortTable| table.http.get(host).is_some_and(|found| found.host == **host);
        if has(before) != has(made) {
            return None;
        }
    }
    let mut next = before.clone();
    for (name, new) in made.http.iter() {
        let old = before.http.get(&name).map(|old| old.host.as_str());
        let is_mine = hosts.contains(&new.host);
        if is_mine && old == Some(new.host.as_str()) {
            next.http.replace(&name, new.clone());
        } else if is_mine || old.is_some_and(|old| hosts.contains(old)) {
            return None;
        }
    }
    Some(next)
}
