//! The way from a host name to all that it is made of, and the slice of a World that holds just that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashSet;
use mesh_proto::command::HostId;
use mesh_proto::registration::{Instance, Registration};
use mesh_proto::resource::{Destination, Kind, ObjectKey, ServiceEntry, Spec, VirtualService};
use mesh_proto::watch::Stored;

use super::super::hosts::{Service, Services, Source, full_name, of_kind, takes};
use super::super::policy;
use crate::parted::PartedMap;
use crate::plan::Node;
use crate::world::{Alike, Private, ServiceName, World};

/// What each host name is made of.
#[derive(Clone, Debug, Default)]
pub(in crate::compile) struct Index {
    names: PartedMap<Arc<str>, Arc<Links>>,
    /// `VirtualServices` that name a delegate, by its namespace and name.
    roots: PartedMap<(String, String), Arc<Vec<Arc<Stored>>>>,
    /// `VirtualServices` for wildcards.
    pub(super) wild: Vec<Arc<Stored>>,
    /// What every slice has: settings, rules for wildcards, all that is no rule for hosts.
    common: BTreeMap<ObjectKey, Arc<Stored>>,
    /// A service with the port on which hosts of rules are that are no service.
    pub(super) on_http_port: Option<Arc<str>>,
    /// How many `ServiceEntries` declare addresses: two may declare the same.
    pub(super) addressed: usize,
    /// How many hosts of `ServiceEntries` have short names and are not of this domain.
    pub(super) foreign: usize,
}

/// What a host name is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Links {
    /// Hosts with instances of it.
    instances: Vec<HostId>,
    /// `VirtualServices` for it.
    pub(super) rules: Vec<Arc<Stored>>,
    /// `VirtualServices` for others that lead to it.
    pub(super) leading: Vec<Arc<Stored>>,
    /// `DestinationRules` for it.
    shapes: Vec<Arc<Stored>>,
    /// `ServiceEntries` that declare it.
    pub(super) entries: Vec<Arc<Stored>>,
}

impl Links {
    /// Whether it is a service.
    pub(super) fn is_service(&self) -> bool {
        !self.instances.is_empty() || !self.entries.is_empty()
    }

    /// Whether more than one service claims it.
    pub(super) fn is_contested(&self) -> bool {
        self.entries.len() + usize::from(!self.instances.is_empty()) > 1
    }
}

/// How many objects every slice may have: with more, a slice is not much cheaper than the whole.
const COMMON_MAX: usize = 256;

/// Where hosts of rules are that are no service.
const HTTP_PORT: u16 = 80;

impl Index {
    /// Makes the index of a World; `None`: its parts do not stand alone.
    pub(in crate::compile) fn of(world: &World, node: &Node, services: &Services<'_>) -> Option<Self> {
        let alone = services.is_plain
            && services.shadowed.is_empty()
            && !services.all.iter().any(Service::is_joined)
            && of_kind(world, Kind::Sidecar).next().is_none()
            && super::super::gateways::selected(world, node).is_empty();
        if !alone {
            return None;
        }
        let mut index = Self::default();
        for service in &services.all {
            if service.port(HTTP_PORT).is_some() && index.on_http_port.is_none() {
                index.on_http_port = Some(service.host.clone());
            }
            if let Source::Registered(instances) = &service.source {
                let mut hosts: Vec<HostId> = instances.iter().map(|instance| instance.host).collect();
                hosts.dedup();
                hosts.shrink_to_fit();
                let links = Links { instances: hosts, ..Links::default() };
                index.names.insert(service.host.clone(), Arc::new(links));
            }
        }
        for stored in world.resources.values() {
            index.add(world, stored, &node.domain)?;
        }
        Some(index)
    }

    /// Takes an object in; `None`: it does not stand alone.
    pub(super) fn add(&mut self, world: &World, stored: &Arc<Stored>, domain: &str) -> Option<()> {
        let namespace = &stored.object.metadata.namespace;
        match &stored.object.spec {
            Spec::VirtualService(spec) => {
                let ways = Ways::of(world, spec, namespace, domain);
                for to in ways.leading() {
                    self.edit(to, |links| add(&mut links.leading, stored));
                }
                for host in &ways.hosts {
                    self.edit(host, |links| add(&mut links.rules, stored));
                }
                for delegate in delegates(spec, namespace) {
                    let mut roots = self.roots.get(&delegate).cloned().unwrap_or_default();
                    add(Arc::make_mut(&mut roots), stored);
                    self.roots.insert(delegate, roots);
                }
                if ways.is_wild() {
                    add(&mut self.wild, stored);
                }
            }
            // Where callers are counts for how near their services are.
            Spec::DestinationRule(spec) if policy::looks_at_zones(spec) => return None,
            Spec::MeshConfig(spec) if spec.zone_aware_lb_setting.is_some() => return None,
            Spec::DestinationRule(spec) => {
                let host = full_name(&spec.host, namespace, domain);
                if host.contains('*') {
                    self.common.insert(stored.object.key(), stored.clone());
                } else {
                    self.edit(&host, |links| add(&mut links.shapes, stored));
                }
            }
            Spec::ServiceEntry(spec) => {
                if spec.workload_selector.is_some() {
                    return None;
                }
                for host in hosts_of_entry(spec) {
                    self.edit(&host, |links| add(&mut links.entries, stored));
                    self.foreign += usize::from(is_foreign(&host, domain));
                }
                self.addressed += usize::from(!spec.addresses.is_empty());
            }
            // Only selectors of entries ask for these.
            Spec::WorkloadEntry(_) | Spec::WorkloadGroup(_) => {}
            _ => drop(self.common.insert(stored.object.key(), stored.clone())),
        }
        (self.common.len() + self.wild.len() <= COMMON_MAX).then_some(())
    }

    /// Takes an object out that was taken in when `world` was as it is.
    pub(super) fn remove(&mut self, world: &World, stored: &Arc<Stored>, domain: &str) {
        let namespace = &stored.object.metadata.namespace;
        match &stored.object.spec {
            Spec::VirtualService(spec) => {
                let ways = Ways::of(world, spec, namespace, domain);
                for to in ways.leading() {
                    self.edit(to, |links| remove(&mut links.leading, stored));
                }
                for host in &ways.hosts {
                    self.edit(host, |links| remove(&mut links.rules, stored));
                }
                for delegate in delegates(spec, namespace) {
                    let mut roots = self.roots.get(&delegate).cloned().unwrap_or_default();
                    remove(Arc::make_mut(&mut roots), stored);
                    if roots.is_empty() {
                        self.roots.remove(&delegate);
                    } else {
                        self.roots.insert(delegate, roots);
                    }
                }
                remove(&mut self.wild, stored);
            }
            Spec::DestinationRule(spec) => {
                let host = full_name(&spec.host, namespace, domain);
                self.common.remove(&stored.object.key());
                self.edit(&host, |links| remove(&mut links.shapes, stored));
            }
            Spec::ServiceEntry(spec) => {
                for host in hosts_of_entry(spec) {
                    self.edit(&host, |links| remove(&mut links.entries, stored));
                    self.foreign -= usize::from(is_foreign(&host, domain));
                }
                self.addressed -= usize::from(!spec.addresses.is_empty());
            }
            _ => drop(self.common.remove(&stored.object.key())),
        }
    }

    /// Notes whether a host has instances of a service.
    pub(super) fn set_instances(&mut self, service: &str, on: HostId, has: bool) {
        self.edit(service, |links| match (links.instances.binary_search(&on), has) {
            (Err(at), true) => links.instances.insert(at, on),
            (Ok(at), false) => drop(links.instances.remove(at)),
            _ => {}
        });
    }

    fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Links)) {
        let known = self.names.get(name);
        let mut links = known.cloned().unwrap_or_default();
        edit(Arc::make_mut(&mut links));
        if *links == Links::default() {
            self.names.remove(name);
        } else {
            self.names.insert(name.into(), links);
        }
    }

    /// Returns what a host name is made of.
    pub(super) fn links(&self, name: &str) -> Option<&Links> {
        self.names.get(name).map(AsRef::as_ref)
    }

    /// Returns the `VirtualServices` that name a delegate.
    pub(super) fn roots(&self, namespace: &str, name: &str) -> &[Arc<Stored>] {
        let known = self.roots.get(&(namespace.to_owned(), name.to_owned()));
        known.map_or(&[], |roots| roots)
    }

    /// Returns the services that a host with a wildcard takes; `None`: more than `most`.
    pub(super) fn taken(&self, pattern: &str, most: usize) -> Option<Vec<&str>> {
        let fits = |(name, links): &(&Arc<str>, &Arc<Links>)| links.is_service() && takes(pattern, name);
        let found: Vec<&str> =
            self.names.iter().filter(fits).map(|(name, _)| &**name).take(most + 1).collect();
        (found.len() <= most).then_some(found)
    }

    /// Returns the ports of a service, with whether hosts registered them.
    pub(super) fn ports(&self, world: &World, name: &str) -> BTreeSet<u16> {
        let Some(links) = self.links(name) else { return BTreeSet::new() };
        let on = links.instances.iter().filter_map(|id| world.registrations.get(id));
        let mine = on
            .flat_map(|registration| registration.instances.values())
            .filter(|instance| is_of(instance, name));
        let registered = mine.flat_map(|instance| &instance.ports).map(|port| port.number);
        let declared = links.entries.iter().filter_map(|stored| match &stored.object.spec {
            Spec::ServiceEntry(spec) => Some(&spec.ports),
            _ => None,
        });
        registered.chain(declared.flatten().map(|port| port.number)).collect()
    }

    /// Returns the ports of several services together.
    pub(super) fn ports_of_all(&self, world: &World, names: &BTreeSet<String>) -> BTreeSet<u16> {
        let links = names.iter().filter_map(|name| self.links(name));
        let (mut on, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for links in links {
            on.extend(links.instances.iter().copied());
            for stored in &links.entries {
                if let Spec::ServiceEntry(spec) = &stored.object.spec {
                    ports.extend(spec.ports.iter().map(|port| port.number));
                }
            }
        }
        let mine = Mine::of(names.iter().map(String::as_str));
        for registration in on.iter().filter_map(|id| world.registrations.get(id)) {
            let instances = registration.instances.values().filter(|instance| mine.has(instance));
            ports.extend(instances.flat_map(|instance| &instance.ports).map(|port| port.number));
        }
        ports
    }

    /// Whether a service has the port on which hosts of rules are that are no service.
    pub(super) fn has_http_port(&self, world: &World, name: &str) -> bool {
        self.ports(world, name).contains(&HTTP_PORT)
    }

    /// Cuts out of the World all that these hosts are made of; `beside` are further services.
    pub(super) fn slice(
        &self,
        world: &World,
        node: &Node,
        hosts: &BTreeSet<String>,
        beside: &BTreeSet<String>,
    ) -> Option<World> {
        let mut objects = self.common.clone();
        let mut services: BTreeSet<String> = hosts.union(beside).cloned().collect();
        services.extend(self.on_http_port.iter().map(ToString::to_string));
        let rules = hosts.iter().filter_map(|host| self.links(host)).flat_map(|links| &links.rules);
        for stored in rules.chain(&self.wild) {
            let Spec::VirtualService(spec) = &stored.object.spec else { return None };
            let namespace = &stored.object.metadata.namespace;
            let ways = Ways::of(world, spec, namespace, &node.domain);
            services.extend(ways.leads_to);
            // Whether a host of a rule is a service decides where it is.
            services.extend(ways.hosts);
            objects.insert(stored.object.key(), stored.clone());
            for (namespace, name) in delegates(spec, namespace) {
                let key = ObjectKey::new(Kind::VirtualService, namespace, name);
                if let Some(delegate) = world.resources.get(&key) {
                    objects.insert(key, delegate.clone());
                }
            }
        }
        for links in services.iter().filter_map(|service| self.links(service)) {
            let all = links.shapes.iter().chain(&links.entries);
            objects.extend(all.map(|stored| (stored.object.key(), stored.clone())));
        }
        let addresses = services.iter().filter_map(|host| Some((host.clone(), *world.addresses.get(host)?)));
        Some(World {
            revision: world.revision,
            mesh: world.mesh.clone(),
            hosts: world.hosts.clone(),
            registrations: self.registrations(world, &services),
            resources: objects.into_iter().collect(),
            addresses: addresses.collect(),
            alike: Alike::default(),
            private: Private::default(),
        })
    }

    /// Returns the registrations of these services alone.
    fn registrations(
        &self,
        world: &World,
        services: &BTreeSet<String>,
    ) -> PartedMap<HostId, Arc<Registration>> {
        let mut wanted: BTreeMap<HostId, Vec<&str>> = BTreeMap::new();
        for service in services {
            for id in self.links(service).iter().flat_map(|links| &links.instances) {
                wanted.entry(*id).or_default().push(service);
            }
        }
        let of_host = |(id, services): (HostId, Vec<&str>)| {
            let mine = Mine::of(services.into_iter());
            let all = world.registrations.get(&id)?.instances.iter();
            let kept = all.filter(|(_, instance)| mine.has(instance));
            let instances = kept.map(|(name, instance)| (name.clone(), instance.clone())).collect();
            Some((id, Arc::new(Registration { instances })))
        };
        wanted.into_iter().filter_map(of_host).collect()
    }
}

/// Services by name and namespace: with many of them, an instance's is found without a look at each.
pub(crate) struct Mine<'a>(HashSet<(&'a str, &'a str)>);

impl<'a> Mine<'a> {
    /// Takes full host names, which are lower case.
    pub(crate) fn of(hosts: impl Iterator<Item = &'a str>) -> Self {
        Self(hosts.filter_map(|host| host.split_once(".svc.")?.0.split_once('.')).collect())
    }

    /// Whether an instance is of one of them.
    pub(crate) fn has(&self, instance: &Instance) -> bool {
        let lower = |text: &str| text.bytes().all(|byte| !byte.is_ascii_uppercase());
        if lower(&instance.service) && lower(&instance.namespace) {
            return self.0.contains(&(&*instance.service, &*instance.namespace));
        }
        let (name, namespace) =
            (instance.service.to_ascii_lowercase(), instance.namespace.to_ascii_lowercase());
        self.0.contains(&(name.as_str(), namespace.as_str()))
    }
}

/// Whether an instance is of the service of a full host name.
fn is_of(instance: &Instance, host: &str) -> bool {
    let after = |text: &str, word: &str| -> Option<usize> {
        let begin = text.get(..word.len())?;
        begin.eq_ignore_ascii_case(word).then_some(word.len())
    };
    let rest = after(host, &instance.service).and_then(|end| host[end..].strip_prefix('.'));
    let rest = rest.and_then(|rest| rest[after(rest, &instance.namespace)?..].strip_prefix(".svc."));
    rest.is_some()
}

/// Returns the full host name of an instance's service.
pub(super) fn service_of(instance: &Instance, domain: &str) -> String {
    ServiceName::of(instance).fqdn(domain).to_ascii_lowercase()
}

/// The hosts of a `VirtualService`, and those that it leads to.
pub(super) struct Ways {
    /// Its own, in full.
    pub(super) hosts: Vec<String>,
    /// All that it or its delegates lead to, whoever asks.
    pub(super) leads_to: BTreeSet<String>,
}

impl Ways {
    pub(super) fn of(world: &World, spec: &VirtualService, namespace: &str, domain: &str) -> Self {
        let hosts = spec.hosts.iter().map(|host| full_name(host, namespace, domain)).collect();
        let mut leads_to = leads_to(spec, namespace, domain);
        for (home, name) in delegates(spec, namespace) {
            let key = ObjectKey::new(Kind::VirtualService, home.as_str(), name);
            if let Some(Spec::VirtualService(delegate)) =
                world.resources.get(&key).map(|stored| &stored.object.spec)
            {
                leads_to.extend(self::leads_to(delegate, &home, domain));
            }
        }
        // One that is there to be delegated to leads nowhere by itself.
        Self { leads_to: if spec.hosts.is_empty() { BTreeSet::new() } else { leads_to }, hosts }
    }

    /// Where it leads, but for a service that is its only host.
    fn leading(&self) -> impl Iterator<Item = &String> {
        self.leads_to.iter().filter(|to| self.hosts.len() != 1 || self.hosts[0] != **to)
    }

    fn is_wild(&self) -> bool {
        self.hosts.iter().any(|host| host.contains('*'))
    }
}

/// Returns namespace and name of each delegate.
fn delegates(spec: &VirtualService, namespace: &str) -> BTreeSet<(String, String)> {
    let wanted = spec.http.iter().filter_map(|route| route.delegate.as_ref()).map(|delegate| {
        let home = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
        (home.to_owned(), delegate.name.clone())
    });
    wanted.collect()
}

fn is_foreign(host: &str, domain: &str) -> bool {
    host.contains(".svc.") && !host.strip_suffix(domain).is_some_and(|rest| rest.ends_with(".svc."))
}

/// Returns the hosts of an entry.
pub(super) fn hosts_of_entry(spec: &ServiceEntry) -> BTreeSet<String> {
    spec.hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
}

fn leads_to(spec: &VirtualService, namespace: &str, domain: &str) -> BTreeSet<String> {
    let http = spec.http.iter().flat_map(|route| {
        let routes = route.route.iter().filter_map(|to| to.destination.as_ref());
        let mirrors = route.mirrors.iter().filter_map(|to| to.destination.as_ref());
        routes.chain(route.mirror.as_deref()).chain(mirrors)
    });
    let tcp = spec.tcp.iter().flat_map(|block| &block.route);
    let tls = spec.tls.iter().flat_map(|block| &block.route);
    let connections = tcp.chain(tls).filter_map(|to| to.destination.as_ref());
    let full = |to: &Destination| full_name(&to.host, namespace, domain);
    http.chain(connections).map(full).collect()
}

fn add(list: &mut Vec<Arc<Stored>>, one: &Arc<Stored>) {
    list.reserve_exact(1);
    list.push(one.clone());
}

/// Removes the object of that name: in a World that came anew it is an equal one, not the same.
fn remove(list: &mut Vec<Arc<Stored>>, one: &Arc<Stored>) {
    let gone = &one.object.metadata;
    list.retain(|other| {
        let other = &other.object.metadata;
        other.name != gone.name || other.namespace != gone.namespace
    });
}
