//! The part of a World that a batch has to do with: enough to see that there is nothing to say about it.
//!
//! In a large mesh nearly every batch is sound, and looking at all rules for each would take longer than all the rest of
//! an `apply`. What the part has findings about is looked at again in the whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashSet;
use mesh_proto::command::{Batch, HostId};
use mesh_proto::registration::Registration;
use mesh_proto::resource::{Destination, HttpRoute, Kind, ObjectKey, ServiceEntry, Spec, VirtualService};
use mesh_proto::watch::Stored;

use crate::compile::Mine;
use crate::compile::hosts::{full_name, takes};
use crate::parted::PartedMap;
use crate::world::World;

/// Cuts out what a batch may make strange, of the World `after` it; `None`: it reaches beyond any part.
///
/// Without a finding in the part there is none in the whole that is about the batch's own objects or new. The part has the
/// batch's objects, every `VirtualService` that shares a host with them, leads to one of theirs, or delegates to one; and all
/// that these name: services, `DestinationRules`, delegates.
pub(super) fn part(world: &World, after: &World, batch: &Batch) -> Option<World> {
    let mut around =
        Around { after, touched: HashSet::default(), shaped: HashSet::default(), own: HashSet::default() };
    for change in &batch.changes {
        around.own.insert(&change.key);
        for known in [world, after] {
            if let Some(stored) = known.resources.get(&change.key) {
                around.touch(stored)?;
            }
        }
    }
    let mut resources: PartedMap<ObjectKey, Arc<Stored>> = PartedMap::default();
    let mut named = around.touched.clone();
    for (key, stored) in &around.of_kind(Kind::VirtualService) {
        let Spec::VirtualService(spec) = &stored.object.spec else { continue };
        if around.concerns(key, spec) {
            resources.insert((*key).clone(), (*stored).clone());
            around.name(&key.namespace, spec, &mut named);
            for (key, delegate) in around.delegates(&key.namespace, spec) {
                if let Spec::VirtualService(spec) = &delegate.object.spec {
                    around.name(&key.namespace, spec, &mut named);
                }
                resources.insert(key, delegate);
            }
        }
    }
    for (key, stored) in around.of_kind(Kind::DestinationRule) {
        let Spec::DestinationRule(spec) = &stored.object.spec else { continue };
        let host = around.full(&spec.host, &key.namespace);
        let is_named = if host.starts_with('*') {
            named.iter().any(|named| takes(&host, named))
        } else {
            named.contains(&*host)
        };
        if is_named {
            resources.insert(key.clone(), stored.clone());
        }
    }
    for (key, stored) in around.of_kind(Kind::ServiceEntry) {
        let Spec::ServiceEntry(spec) = &stored.object.spec else { continue };
        if hosts(spec).any(|host| named.contains(&*host)) {
            resources.insert(key.clone(), stored.clone());
        }
    }
    resources.extend(
        around.of_kind(Kind::MeshConfig).into_iter().map(|(key, stored)| (key.clone(), stored.clone())),
    );
    Some(World { resources, registrations: around.registrations(&named), ..after.seen() })
}

struct Around<'a> {
    after: &'a World,
    /// Hosts that the batch's objects are about, in full.
    touched: HashSet<String>,
    /// Those of them whose service or `DestinationRule` it changes: what leads there may be told of.
    shaped: HashSet<String>,
    own: HashSet<&'a ObjectKey>,
}

impl<'a> Around<'a> {
    /// Notes which hosts an object of the batch is about; `None`: it may be about any.
    fn touch(&mut self, stored: &Stored) -> Option<()> {
        let namespace = &stored.object.metadata.namespace;
        match &stored.object.spec {
            Spec::VirtualService(spec) => {
                let full: Vec<_> =
                    spec.hosts.iter().map(|host| self.full(host, namespace).into_owned()).collect();
                self.touched.extend(full);
            }
            Spec::DestinationRule(spec) => {
                let host = self.full(&spec.host, namespace).into_owned();
                if host.contains('*') {
                    return None;
                }
                self.shaped.insert(host.clone());
                self.touched.insert(host);
            }
            Spec::ServiceEntry(spec) => {
                self.shaped.extend(hosts(spec).map(Cow::into_owned));
                self.touched.extend(hosts(spec).map(Cow::into_owned));
            }
            // No finding at `apply` is about these.
            Spec::WorkloadEntry(_) | Spec::WorkloadGroup(_) => {}
            _ => return None,
        }
        Some(())
    }

    /// Whether a rule is the batch's, or may have a finding by what the batch changes.
    fn concerns(&self, key: &ObjectKey, spec: &VirtualService) -> bool {
        let has = |hosts: &HashSet<String>, host: &str, namespace: &str| {
            hosts.contains(&*self.full(host, namespace))
        };
        let leads = |spec: &VirtualService, namespace: &str| {
            !self.shaped.is_empty() && destinations(spec).any(|to| has(&self.shaped, &to.host, namespace))
        };
        let delegates = || delegate_keys(&key.namespace, spec);
        self.own.contains(key)
            || spec.hosts.iter().any(|host| has(&self.touched, host, &key.namespace))
            || leads(spec, &key.namespace)
            || delegates().any(|delegate| self.own.contains(&delegate))
            // What a delegate leads to is told of where its root is looked at.
            || delegates().any(|delegate| match self.after.resources.get(&delegate).map(|stored| &stored.object.spec) {
                Some(Spec::VirtualService(spec)) => leads(spec, &delegate.namespace),
                _ => false,
            })
    }

    /// Takes up every host that a rule names.
    fn name(&self, namespace: &str, spec: &VirtualService, named: &mut HashSet<String>) {
        let all = spec.hosts.iter().chain(destinations(spec).map(|to| &to.host));
        named.extend(all.map(|host| self.full(host, namespace).into_owned()));
    }

    fn delegates(&self, namespace: &str, spec: &VirtualService) -> Vec<(ObjectKey, Arc<Stored>)> {
        let found = delegate_keys(namespace, spec);
        found.filter_map(|key| Some((key.clone(), self.after.resources.get(&key)?.clone()))).collect()
    }

    fn of_kind(&self, kind: Kind) -> Vec<(&'a ObjectKey, &'a Arc<Stored>)> {
        let all = self.after.resources.range_from(&ObjectKey::new(kind, "", ""));
        all.take_while(|(key, _)| key.kind == kind).collect()
    }

    /// Returns the registrations of these services alone.
    fn registrations(&self, named: &HashSet<String>) -> PartedMap<HostId, Arc<Registration>> {
        let mine = Mine::of(named.iter().map(String::as_str));
        let of_host = |(host, registration): (&HostId, &Arc<Registration>)| {
            let all = registration.instances.iter().filter(|(_, instance)| mine.has(instance));
            let instances: BTreeMap<_, _> = all.map(|(id, one)| (id.clone(), one.clone())).collect();
            (!instances.is_empty()).then(|| (*host, Arc::new(Registration { instances })))
        };
        self.after.registrations.iter().filter_map(of_host).collect()
    }

    fn full<'h>(&self, host: &'h str, namespace: &str) -> Cow<'h, str> {
        let is_full = host.contains('.') && host.bytes().all(|byte| !byte.is_ascii_uppercase());
        if is_full { host.into() } else { full_name(host, namespace, &self.after.mesh.domain).into() }
    }
}

/// The hosts of an entry, as services have them.
fn hosts(spec: &ServiceEntry) -> impl Iterator<Item = Cow<'_, str>> {
    let lower = |host: &'_ str| host.bytes().all(|byte| !byte.is_ascii_uppercase());
    spec.hosts
        .iter()
        .map(move |host| if lower(host) { host.as_str().into() } else { host.to_ascii_lowercase().into() })
}

/// Every destination that a rule names.
fn destinations(spec: &VirtualService) -> impl Iterator<Item = &Destination> {
    let http = spec.http.iter().flat_map(|route: &HttpRoute| {
        let routes = route.route.iter().filter_map(|entry| entry.destination.as_ref());
        let mirrors = route.mirrors.iter().filter_map(|mirror| mirror.destination.as_ref());
        routes.chain(route.mirror.as_deref()).chain(mirrors)
    });
    let tcp = spec.tcp.iter().flat_map(|block| &block.route);
    let tls = spec.tls.iter().flat_map(|block| &block.route);
    http.chain(tcp.chain(tls).filter_map(|entry| entry.destination.as_ref()))
}

fn delegate_keys(namespace: &str, spec: &VirtualService) -> impl Iterator<Item = ObjectKey> {
    let named = spec.http.iter().filter_map(|route| route.delegate.as_deref());
    named.map(move |delegate| {
        let home = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
        ObjectKey::new(Kind::VirtualService, home, delegate.name.as_str())
    })
}
