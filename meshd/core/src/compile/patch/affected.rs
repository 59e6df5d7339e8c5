//! The hosts that a change may touch, and the index as it is after the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proto::command::HostId;
use mesh_proto::registration::Registration;
use mesh_proto::resource::{ObjectKey, ServiceEntry, Spec};
use mesh_proto::watch::Stored;

use super::super::hosts::{full_name, takes};
use super::super::mesh::Settings;
use super::super::visibility;
use super::HOSTS_MAX;
use super::index::{Index, Ways, hosts_of_entry, service_of};
use crate::plan::Node;
use crate::world::World;

/// Returns the hosts that must be compiled anew, and the index of the World as it is now; `None`: too many, or a change
/// that reaches beyond all slices.
pub(super) fn affected(
    then: &World,
    now: &World,
    node: &Node,
    index: &Index,
) -> Option<(BTreeSet<String>, Index)> {
    let mut found = Affected {
        then,
        now,
        domain: &node.domain,
        old: index,
        new: index.clone(),
        hosts: BTreeSet::new(),
        services: BTreeSet::new(),
    };
    found.registrations();
    found.machines();
    found.addresses();
    if found.services.len() > HOSTS_MAX {
        return None;
    }
    found.resources()?;
    found.http_port()?;
    found.follow()?;
    Some((found.hosts, found.new))
}

struct Affected<'a> {
    then: &'a World,
    now: &'a World,
    domain: &'a str,
    old: &'a Index,
    new: Index,
    /// Hosts whose rules or services differ.
    hosts: BTreeSet<String>,
    /// Services whose ports, endpoints or policies differ: what leads to them differs too.
    services: BTreeSet<String>,
}

impl Affected<'_> {
    /// Instances that came, went, or are others now.
    fn registrations(&mut self) {
        let nothing = Arc::<Registration>::default();
        for (id, old, new) in self.now.registrations.changes(&self.then.registrations, Arc::ptr_eq) {
            let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
            let mut differing: BTreeMap<String, bool> = BTreeMap::new();
            for (one, other) in [(old, new), (new, old)] {
                for (name, instance) in &one.instances {
                    if !other.instances.get(name).is_some_and(|other| is_same(other, instance)) {
                        differing.insert(service_of(instance, self.domain), false);
                    }
                }
            }
            for instance in new.instances.values() {
                if let Some(has) = differing.get_mut(&service_of(instance, self.domain)) {
                    *has = true;
                }
            }
            for (service, has) in differing {
                self.new.set_instances(&service, *id, has);
                self.services.insert(service);
            }
        }
    }

    /// Hosts of the mesh that came, went, moved, or changed their standing.
    fn machines(&mut self) {
        let changes = self.now.hosts.changes(&self.then.hosts, is_same);
        for (id, old, new) in changes {
            self.all_services_on(*id);
            // The names of hosts are in the ids of endpoints, and two hosts may have had one name.
            let names = [old, new].map(|host| host.map(|host| host.name.as_str()));
            for world in [self.then, self.now] {
                let alike = world
                    .hosts
                    .iter()
                    .filter(|(other, host)| *other != id && names.contains(&Some(host.name.as_str())));
                for (other, _) in alike {
                    self.all_services_on(*other);
                }
            }
        }
    }

    fn all_services_on(&mut self, id: HostId) {
        for world in [self.then, self.now] {
            for instance in world.registrations.get(&id).iter().flat_map(|offer| offer.instances.values()) {
                self.services.insert(service_of(instance, self.domain));
            }
        }
    }

    fn addresses(&mut self) {
        let changes = self.now.addresses.changes(&self.then.addresses, PartialEq::eq);
        self.services.extend(changes.into_iter().map(|(host, ..)| host.clone()));
    }

    fn resources(&mut self) -> Option<()> {
        let changes = self.now.resources.changes(&self.then.resources, is_same);
        if changes.len() > HOSTS_MAX {
            return None;
        }
        // Roots stand for their delegates: each is taken out and in once, whatever of it has changed.
        let mut roots: BTreeMap<ObjectKey, Arc<Stored>> = BTreeMap::new();
        for (_, old, new) in &changes {
            for stored in [*old, *new].into_iter().flatten() {
                let metadata = &stored.object.metadata;
                if matches!(&stored.object.spec, Spec::VirtualService(_)) {
                    let using = self.old.roots(&metadata.namespace, &metadata.name);
                    roots.extend(using.iter().map(|root| (root.object.key(), root.clone())));
                }
            }
        }
        for (key, old, _) in &changes {
            match old {
                Some(old) if matches!(old.object.spec, Spec::VirtualService(_)) => {
                    roots.insert((*key).clone(), (*old).clone());
                }
                Some(old) => self.leaves(old)?,
                None => {}
            }
        }
        for old in roots.values() {
            self.leaves(old)?;
        }
        for (key, _, new) in &changes {
            roots.remove(*key);
            if let Some(new) = new {
                self.comes(new)?;
            }
        }
        roots.into_values().try_for_each(|root| self.comes(&root))
    }

    fn leaves(&mut self, stored: &Arc<Stored>) -> Option<()> {
        self.new.remove(self.then, stored, self.domain);
        self.touch(self.then, stored)
    }

    fn comes(&mut self, stored: &Arc<Stored>) -> Option<()> {
        self.new.add(self.now, stored, self.domain)?;
        self.touch(self.now, stored)
    }

    /// Notes what an object is for; `None`: for everything.
    fn touch(&mut self, world: &World, stored: &Arc<Stored>) -> Option<()> {
        let namespace = &stored.object.metadata.namespace;
        match &stored.object.spec {
            Spec::VirtualService(spec) => {
                self.hosts.extend(Ways::of(world, spec, namespace, self.domain).hosts);
            }
            Spec::DestinationRule(spec) => {
                let host = full_name(&spec.host, namespace, self.domain);
                if host.contains('*') {
                    for index in [self.old, &self.new] {
                        self.services.extend(index.taken(&host, HOSTS_MAX)?.into_iter().map(str::to_owned));
                    }
                }
                self.services.insert(host);
            }
            Spec::ServiceEntry(spec) => {
                if !is_public(world, spec) {
                    return None;
                }
                self.services.extend(hosts_of_entry(spec));
            }
            Spec::WorkloadEntry(_) | Spec::WorkloadGroup(_) => {}
            _ => return None,
        }
        Some(())
    }

    /// Whether there is a service on the port of hosts that are none decides where all of those are.
    fn http_port(&mut self) -> Option<()> {
        match &self.new.on_http_port {
            Some(service) if self.services.contains(&**service) => {
                self.new.has_http_port(self.now, service).then_some(())
            }
            Some(_) => Some(()),
            None => {
                let has = |service: &String| self.new.has_http_port(self.now, service);
                (!self.services.iter().any(has)).then_some(())
            }
        }
    }

    /// Follows the ways from what differs to what differs by that.
    fn follow(&mut self) -> Option<()> {
        let indices = [self.old, &self.new];
        // Who has a rule of its own is not a wildcard's; without any, the wildcard stands for itself.
        let wild = indices.iter().flat_map(|index| &index.wild);
        let patterns = wild.filter_map(|stored| match &stored.object.spec {
            Spec::VirtualService(spec) => Some(spec.hosts.iter().filter(|host| host.starts_with('*'))),
            _ => None,
        });
        let patterns: BTreeSet<String> = patterns.flatten().map(|host| host.to_ascii_lowercase()).collect();
        let fitting = |pattern: &&String| self.hosts.iter().any(|host| takes(pattern, host));
        let fitting: Vec<String> = patterns.iter().filter(fitting).cloned().collect();
        for service in &self.services {
            for links in indices.iter().filter_map(|index| index.links(service)) {
                for stored in &links.leading {
                    let Spec::VirtualService(spec) = &stored.object.spec else { continue };
                    let namespace = &stored.object.metadata.namespace;
                    self.hosts.extend(spec.hosts.iter().map(|host| full_name(host, namespace, self.domain)));
                }
                if links.is_contested() {
                    return None;
                }
            }
            // So with a service that comes, goes, or has other ports now.
            let mut over = patterns.iter().filter(|pattern| takes(pattern, service)).peekable();
            let is_moved = || self.old.ports(self.then, service) != self.new.ports(self.now, service);
            if over.peek().is_some() && is_moved() {
                self.hosts.extend(over.cloned());
            }
        }
        self.hosts.extend(fitting);
        self.hosts.extend(self.services.iter().cloned());
        self.spread()?;
        (self.hosts.len() <= HOSTS_MAX).then_some(())
    }

    /// Hosts of one rule decide about each other (on which ports names are that are no service, who asks for which
    /// server name), and a host with a wildcard stands for all services that it takes.
    fn spread(&mut self) -> Option<()> {
        let mut waiting: Vec<String> = self.hosts.iter().cloned().collect();
        while let Some(host) = waiting.pop() {
            let mut others = Vec::new();
            for index in [self.old, &self.new] {
                if host.starts_with('*') {
                    others.extend(index.taken(&host, HOSTS_MAX)?.into_iter().map(str::to_owned));
                }
                for stored in index.links(&host).iter().flat_map(|links| &links.rules) {
                    let Spec::VirtualService(spec) = &stored.object.spec else { continue };
                    let namespace = &stored.object.metadata.namespace;
                    others.extend(spec.hosts.iter().map(|host| full_name(host, namespace, self.domain)));
                }
            }
            waiting.extend(others.into_iter().filter(|other| self.hosts.insert(other.clone())));
            if self.hosts.len() > HOSTS_MAX {
                return None;
            }
        }
        Some(())
    }
}

/// A World that came anew holds what is equal, not what is the same.
fn is_same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn is_public(world: &World, spec: &ServiceEntry) -> bool {
    let settings = Settings::of(world);
    visibility::is_public(visibility::or_default(&spec.export_to, &settings, |config| {
        &config.default_service_export_to
    }))
}
