//! Which addresses are behind a cluster, and how each is reached.
//!
//! Every instance is there, also one that is ill or whose host is gone: choosing looks at health and liveness, views
//! show them.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use mesh_proto::command::{HostId, Liveness};
use mesh_proto::registration::{Health, Instance, PortBinding};
use mesh_proto::resource::{Resolution, WorkloadEntry};
use mesh_proto::value::Labels;

use super::Problems;
use super::hosts::{Entry, Port, Service, Source, has_all};
use super::nearness::Nearness;
use crate::identity::{Identity, IdentityError, sni};
use crate::plan::{Endpoint, EndpointFacts, HopTo, Locality, Node, Party, Shared, Traits, Via, Workload};
use crate::world::{InstanceRef, ServiceName, World};

/// Where endpoints are looked at from.
pub(super) struct Place<'a> {
    world: &'a World,
    node: &'a Node,
    problems: &'a Problems,
    /// Hosts whose name belongs to another now.
    namesakes: BTreeSet<HostId>,
    /// Each once, however many endpoints have it.
    localities: RefCell<HashMap<String, Arc<Locality>>>,
    versions: RefCell<HashSet<Arc<str>>>,
    parties: RefCell<HashSet<Party>>,
    traits: RefCell<HashMap<Traits, Shared<Traits>>>,
    /// How each host was reached last.
    hops: RefCell<HashMap<HostId, Arc<HopTo>>>,
    /// Where the instances lie that were looked at last, and who they are: many hosts may offer the very same.
    last: RefCell<[(usize, Party); LAST]>,
}

/// An endpoint without what is known of it at run time, and what it is chosen by.
pub(super) struct Found<'a> {
    facts: Shared<EndpointFacts>,
    labels: &'a Labels,
    /// The host of the mesh it is on, else empty.
    host: &'a str,
    /// The network it is in, where an entry says so.
    network: &'a str,
}

/// The endpoints of one cluster.
pub(super) struct Selected<'f, 'a>(Vec<&'f Found<'a>>);

impl<'f, 'a> Selected<'f, 'a> {
    /// Selects those that have all of `labels`.
    pub(super) fn of(all: &'f [Found<'a>], labels: Option<&Labels>) -> Self {
        let is_wanted = |found: &&Found<'_>| labels.is_none_or(|wanted| has_all(found.labels, wanted));
        Self(all.iter().filter(is_wanted).collect())
    }

    /// Whether they are those of the Plan before in everything but what is known of them at run time.
    pub(super) fn are(&self, before: &[Endpoint]) -> bool {
        self.0.len() == before.len()
            && self.0.iter().zip(before).all(|(found, before)| *found.facts == **before)
    }

    /// Returns how near each is, 0 the nearest.
    pub(super) fn ranks(&self, nearness: &Nearness<'_>) -> Vec<u32> {
        self.0
            .iter()
            .map(|found| nearness.rank(found.labels, &found.facts.traits.locality, found.host, found.network))
            .collect()
    }

    /// Makes endpoints of them; `before` are those of the Plan before, whose states move over.
    pub(super) fn make(&self, before: &[Endpoint]) -> Vec<Endpoint> {
        let by_id: OnceCell<HashMap<&str, &Endpoint>> = OnceCell::new();
        let search = |id: &str| {
            let index = || before.iter().map(|endpoint| (&*endpoint.id, endpoint)).collect();
            if before.is_empty() { None } else { by_id.get_or_init(index).get(id).copied() }
        };
        let made = self.0.iter().enumerate().map(|(at, found)| {
            // Most are where they were.
            let here = before.get(at).filter(|before| before.id == found.facts.id);
            let known = here.or_else(|| search(&found.facts.id));
            let state = known.map_or_else(Arc::default, |known| known.state.clone());
            Endpoint::with_state(found.facts.clone(), state)
        });
        made.collect()
    }
}

/// Returns the hosts that share their name with the one that bears it now.
fn namesakes(world: &World) -> BTreeSet<HostId> {
    let mut seen: HashMap<&str, usize> = HashMap::default();
    for host in world.hosts.values() {
        *seen.entry(&host.name).or_default() += 1;
    }
    let shared = world.hosts.iter().filter(|(_, host)| seen[host.name.as_str()] > 1);
    let other =
        shared.filter(|(id, host)| world.host_named(&host.name).is_none_or(|(named, _)| named != **id));
    other.map(|(id, _)| *id).collect()
}

impl<'a> Place<'a> {
    pub(super) fn new(world: &'a World, node: &'a Node, problems: &'a Problems) -> Self {
        Self {
            world,
            node,
            problems,
            namesakes: namesakes(world),
            localities: RefCell::default(),
            versions: RefCell::default(),
            parties: RefCell::default(),
            traits: RefCell::default(),
            hops: RefCell::default(),
            last: RefCell::default(),
        }
    }

    /// Finds everything behind a port of a service, in a fixed order.
    pub(super) fn all<'s>(&'s self, service: &'s Service<'a>, port: &Port) -> Vec<Found<'s>> {
        let mut found = Vec::new();
        match &service.source {
            Source::Registered(instances) => {
                let name = sni::format(port.number, "", &service.host).into();
                for one in instances {
                    let binding = one.instance.ports.iter().find(|binding| binding.number == port.number);
                    if let Some(binding) = binding {
                        self.add_instance(&mut found, one, binding, &name);
                    }
                }
            }
            Source::Entry(_) => {
                for (number, entry) in service.entries().enumerate() {
                    // Each says for itself where its endpoints answer.
                    if let Some(port) = entry.port(port.number) {
                        self.add_entry(&mut found, service, (number, entry), &port);
                    }
                }
            }
        }
        found
    }

    /// Counts the instances of a caller's account by locality; of one that has none, the hosts of the mesh.
    ///
    /// Source: Istio's `local_cluster`. differs: that has the proxies of the caller's workload, by its name.
    pub(super) fn callers(&self, caller: &Workload) -> Vec<(Locality, u32)> {
        let mut counts: BTreeMap<Locality, u32> = BTreeMap::new();
        for found in self.world.instances() {
            let Some(host) = self.world.hosts.get(&found.host) else { continue };
            let instance = found.instance;
            let is_one = instance.namespace == caller.namespace && instance.account == caller.account;
            if is_one && host.liveness == Liveness::Live && instance.health == Health::Healthy {
                let locality = instance.locality.as_deref().unwrap_or(&host.facts.locality);
                *counts.entry(Locality::parse(locality)).or_default() += 1;
            }
        }
        if counts.is_empty() {
            for host in self.world.hosts.values().filter(|host| host.liveness == Liveness::Live) {
                *counts.entry(Locality::parse(&host.facts.locality)).or_default() += 1;
            }
        }
        counts.into_iter().collect()
    }

    fn add_entry<'s>(
        &'s self,
        list: &mut Vec<Found<'s>>,
        service: &'s Service<'a>,
        (number, entry): (usize, &'s Entry<'a>),
        port: &Port,
    ) {
        for (index, endpoint) in entry.spec.endpoints.iter().enumerate() {
            let id = match number {
                0 => format!("{}#{index}", endpoint.address),
                _ => format!("{}#{number}.{index}", endpoint.address),
            };
            self.add_outsider(list, &id, endpoint, port, entry);
        }
        for (name, workload) in &entry.workloads {
            self.add_outsider(list, name, workload, port, entry);
        }
        for found in &entry.instances {
            let by_name = |binding: &&PortBinding| !port.name.is_empty() && binding.name == port.name;
            let by_number = |binding: &&PortBinding| binding.number == port.target;
            let ports = &found.instance.ports;
            if let Some(binding) = ports.iter().find(by_number).or_else(|| ports.iter().find(by_name)) {
                let host = ServiceName::of(found.instance).fqdn(&self.node.domain);
                self.add_instance(list, found, binding, &sni::format(binding.number, "", &host).into());
            }
        }
        let names = matches!(entry.spec.resolution(), Resolution::Dns | Resolution::DnsRoundRobin);
        let alone = entry.spec.endpoints.is_empty() && entry.spec.workload_selector.is_none();
        let is_there = list.iter().any(|found| found.facts.id == service.host);
        if names && alone && !is_there && !service.host.starts_with('*') {
            let spread = entry.spec.resolution() == Resolution::Dns;
            let via = Via::Name { host: service.host.clone(), port: port.target, spread };
            let facts = EndpointFacts::new(service.host.clone(), via).into();
            list.push(Found { facts, labels: &NO_LABELS, host: "", network: "" });
        }
    }

    /// Adds an instance that a host has registered.
    fn add_instance<'s>(
        &'s self,
        list: &mut Vec<Found<'s>>,
        one: &'s InstanceRef<'a>,
        binding: &PortBinding,
        sni: &Arc<str>,
    ) {
        let Some(host) = self.world.hosts.get(&one.host) else { return };
        let instance = one.instance;
        // A host that is gone and one that came back under its name may both be here.
        let id: Arc<str> = if self.namesakes.contains(&one.host) {
            format!("{}@{}#{}", one.id, host.name, one.host).into()
        } else {
            format!("{}@{}", one.id, host.name).into()
        };
        let via = if let Some(address) = instance.address {
            Via::Plain(SocketAddr::new(address, binding.target.port()))
        } else if one.host == self.node.host {
            Via::Local(binding.target)
        } else {
            match self.hop_to(list, (one.host, host.facts.address), instance) {
                Ok(to) => Via::Mesh { to, sni: sni.clone(), instance: one.id.into() },
                Err(error) => {
                    self.problems.note(format!("instance {id}: {error}"));
                    return;
                }
            }
        };
        let locality = instance.locality.as_deref().unwrap_or(&host.facts.locality);
        let facts = EndpointFacts {
            weight: instance.weight,
            health: instance.health,
            liveness: host.liveness,
            traits: self.traits(&instance.labels, locality, self.party(instance)),
            ..EndpointFacts::new(id, via)
        };
        list.push(Found { facts: facts.into(), labels: &instance.labels, host: &host.name, network: "" });
    }

    /// How an instance's host is reached: mostly as for the instance of that host that was looked at before. Whom its
    /// certificate must name is mostly the same as for the instance before it.
    fn hop_to(
        &self,
        list: &[Found<'_>],
        (host, hop): (HostId, SocketAddr),
        instance: &Instance,
    ) -> Result<Arc<HopTo>, IdentityError> {
        let is_wanted = |to: &&Arc<HopTo>| to.identity.is_workload_of(&instance.namespace, &instance.account);
        let mut known = self.hops.borrow_mut();
        if let Some(to) = known.get(&host).filter(is_wanted) {
            return Ok(to.clone());
        }
        let before = match list.last().map(|last| &last.facts.via) {
            Some(Via::Mesh { to, .. }) if is_wanted(&to) => Some(to.identity.clone()),
            _ => None,
        };
        let trust_domain = &self.world.mesh.trust_domain;
        let made = || Identity::workload(trust_domain, &instance.namespace, &instance.account).map(Arc::new);
        let identity = before.map_or_else(made, Ok)?;
        let to = Arc::new(HopTo { hop, identity });
        known.insert(host, to.clone());
        Ok(to)
    }

    /// Adds an endpoint outside the mesh.
    fn add_outsider<'s>(
        &self,
        list: &mut Vec<Found<'s>>,
        id: &str,
        endpoint: &'s WorkloadEntry,
        port: &Port,
        entry: &Entry<'_>,
    ) {
        let number = endpoint.ports.get(&port.name).copied().unwrap_or(port.target);
        let via = match endpoint.address.parse::<IpAddr>() {
            Ok(address) => Via::Plain(SocketAddr::new(address, number)),
            Err(_) if endpoint.address.starts_with(UNIX) => {
                Via::Socket(endpoint.address[UNIX.len()..].into())
            }
            Err(_) if endpoint.address.contains('/') || endpoint.address.is_empty() => {
                self.problems.note(format!(
                    "{}: endpoint {:?} is neither an address nor a host name: it is left out",
                    entry.stored.object.key(),
                    endpoint.address
                ));
                return;
            }
            Err(_) => Via::Name {
                host: endpoint.address.to_ascii_lowercase().into(),
                port: number,
                spread: entry.spec.resolution() == Resolution::Dns,
            },
        };
        let facts = EndpointFacts {
            weight: endpoint.weight.filter(|weight| *weight > 0).unwrap_or(1),
            traits: self.traits(&endpoint.labels, &endpoint.locality, Party::default()),
            ..EndpointFacts::new(id, via)
        };
        let (labels, network) = (&endpoint.labels, &endpoint.network);
        list.push(Found { facts: facts.into(), labels, host: "", network });
    }

    /// What is said of an endpoint as of many others: held once.
    fn traits(&self, labels: &Labels, locality: &str, party: Party) -> Shared<Traits> {
        let version = self.version(labels.get("version").map_or("", String::as_str));
        let traits = Traits { locality: self.locality(locality), party, version };
        let mut known = self.traits.borrow_mut();
        known.entry(traits).or_insert_with_key(|traits| traits.clone().into()).clone()
    }

    fn locality(&self, text: &str) -> Arc<Locality> {
        let mut known = self.localities.borrow_mut();
        if let Some(locality) = known.get(text) {
            return locality.clone();
        }
        let locality = Arc::new(Locality::parse(text));
        known.insert(text.to_owned(), locality.clone());
        locality
    }

    /// Who an instance is: mostly the same as one of those looked at last.
    fn party(&self, instance: &Instance) -> Party {
        let place = std::ptr::from_ref(instance) as usize;
        let mut last = self.last.borrow_mut();
        if let Some((_, party)) = last.iter().find(|(other, _)| *other == place) {
            return party.clone();
        }
        let trust_domain = &self.world.mesh.trust_domain;
        let party = Party::new(trust_domain, &instance.namespace, &instance.account, &instance.labels);
        let mut known = self.parties.borrow_mut();
        let party = known.get(&party).cloned().unwrap_or(party);
        known.insert(party.clone());
        last.rotate_right(1);
        last[0] = (place, party.clone());
        party
    }

    fn version(&self, text: &str) -> Arc<str> {
        let mut known = self.versions.borrow_mut();
        if let Some(version) = known.get(text) {
            return version.clone();
        }
        let version: Arc<str> = text.into();
        known.insert(version.clone());
        version
    }
}

static NO_LABELS: Labels = Labels::new();

/// How many instances are remembered: a service has a few versions, each the same on all hosts.
const LAST: usize = 8;

/// How the address of a unix socket begins.
const UNIX: &str = "unix://";
