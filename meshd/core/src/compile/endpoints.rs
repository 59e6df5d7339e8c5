//! Which addresses are behind a cluster, and how each is reached.
//!
//! Every instance is there, also one that is ill or whose host is gone: choosing looks at health and liveness, views
//! show them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::command::{HostId, Liveness};
use mesh_proto::registration::{Health, PortBinding};
use mesh_proto::resource::{Resolution, WorkloadEntry};

use super::Problems;
use super::hosts::{Entry, Port, Service, Source, has_all};
use super::nearness::Nearness;
use crate::endpoint::EndpointState;
use crate::identity::{Identity, sni};
use crate::plan::{Cluster, Endpoint, Locality, Node, Via};
use crate::world::{InstanceRef, ServiceName, World};

/// Where endpoints are looked at from.
pub(super) struct Place<'a> {
    pub(super) world: &'a World,
    pub(super) node: &'a Node,
    /// Hosts whose name belongs to another now.
    pub(super) namesakes: &'a BTreeSet<HostId>,
    pub(super) problems: &'a Problems,
    /// What endpoints are ranked by, where a rule asks for it.
    pub(super) nearness: Option<&'a Nearness<'a>>,
}

/// The states of a cluster's endpoints in the Plan before.
pub(super) struct Carried<'a> {
    before: &'a [Endpoint],
    by_id: OnceCell<HashMap<&'a str, &'a Endpoint>>,
}

impl<'a> Carried<'a> {
    pub(super) fn of(cluster: Option<&'a Cluster>) -> Self {
        let before = cluster.map_or(&[][..], |cluster| &cluster.endpoints.all);
        Self { before, by_id: OnceCell::new() }
    }

    /// Returns the endpoint of that id; `at` is where it most likely is.
    fn find(&self, at: usize, id: &str) -> Option<&'a Endpoint> {
        if let Some(found) = self.before.get(at).filter(|endpoint| &*endpoint.id == id) {
            return Some(found);
        }
        let index = || self.before.iter().map(|endpoint| (&*endpoint.id, endpoint)).collect();
        self.by_id.get_or_init(index).get(id).copied()
    }
}

/// Returns the hosts that share their name with the one that bears it now.
pub(super) fn namesakes(world: &World) -> BTreeSet<HostId> {
    let mut seen: HashMap<&str, usize> = HashMap::default();
    for host in world.hosts.values() {
        *seen.entry(&host.name).or_default() += 1;
    }
    let shared = world.hosts.iter().filter(|(_, host)| seen[host.name.as_str()] > 1);
    let other =
        shared.filter(|(id, host)| world.host_named(&host.name).is_none_or(|(named, _)| named != **id));
    other.map(|(id, _)| *id).collect()
}

/// Whether two lists of endpoints are alike in everything but what is known of them at run time.
pub(super) fn same(one: &[Endpoint], other: &[Endpoint]) -> bool {
    let alike = |(one, other): (&Endpoint, &Endpoint)| {
        one.id == other.id
            && one.via == other.via
            && one.weight == other.weight
            && one.locality == other.locality
            && one.version == other.version
            && one.health == other.health
            && one.liveness == other.liveness
    };
    one.len() == other.len() && one.iter().zip(other).all(alike)
}

impl Place<'_> {
    /// Returns the endpoints of a service's port that have all of `labels`, in a fixed order; and their ranks, where
    /// there is something to rank them by.
    pub(super) fn endpoints(
        &self,
        service: &Service<'_>,
        port: &Port,
        labels: Option<&BTreeMap<String, String>>,
        carried: &Carried<'_>,
    ) -> (Vec<Endpoint>, Vec<u32>) {
        let mut list = List {
            labels,
            carried,
            nearness: self.nearness,
            made: Vec::new(),
            ranks: Vec::new(),
            localities: BTreeMap::new(),
        };
        match &service.source {
            Source::Registered(instances) => {
                let name = sni::format(port.number, "", &service.host).into();
                for found in instances {
                    let binding = found.instance.ports.iter().find(|binding| binding.number == port.number);
                    if let Some(binding) = binding {
                        self.add_instance(&mut list, found, binding, &name);
                    }
                }
            }
            Source::Entry(entry) => self.add_entry(&mut list, service, entry, port),
        }
        (list.made, list.ranks)
    }

    fn add_entry(&self, list: &mut List<'_, '_>, service: &Service<'_>, entry: &Entry<'_>, port: &Port) {
        for (index, endpoint) in entry.spec.endpoints.iter().enumerate() {
            let id = format!("{}#{index}", endpoint.address);
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
        if names && alone && !service.host.starts_with('*') {
            let spread = entry.spec.resolution() == Resolution::Dns;
            let via = Via::Name { host: service.host.clone(), port: port.target, spread };
            list.add(service.host.clone(), &BTreeMap::new(), || Bare { via, ..Bare::default() });
        }
    }

    /// Adds an instance that a host has registered.
    fn add_instance(
        &self,
        list: &mut List<'_, '_>,
        found: &InstanceRef<'_>,
        binding: &PortBinding,
        sni: &Arc<str>,
    ) {
        let Some(host) = self.world.hosts.get(&found.host) else { return };
        let instance = found.instance;
        // A host that is gone and one that came back under its name may both be here.
        let id: Arc<str> = if self.namesakes.contains(&found.host) {
            format!("{}@{}#{}", found.id, host.name, found.host).into()
        } else {
            format!("{}@{}", found.id, host.name).into()
        };
        let via = if let Some(address) = instance.address {
            Via::Plain(SocketAddr::new(address, binding.target.port()))
        } else if found.host == self.node.host {
            Via::Local(binding.target)
        } else {
            let trust_domain = &self.world.mesh.trust_domain;
            match Identity::workload(trust_domain, &instance.namespace, &instance.account) {
                Ok(identity) => Via::Mesh {
                    hop: host.facts.address,
                    identity,
                    sni: sni.clone(),
                    instance: found.id.into(),
                },
                Err(error) => {
                    self.problems.note(format!("instance {id}: {error}"));
                    return;
                }
            }
        };
        let locality = instance.locality.as_deref().unwrap_or(&host.facts.locality);
        list.add(id, &instance.labels, || Bare {
            via,
            weight: instance.weight,
            locality: locality.to_owned(),
            health: instance.health,
            liveness: host.liveness,
            host: &host.name,
            network: "",
        });
    }

    /// Adds an endpoint outside the mesh.
    fn add_outsider(
        &self,
        list: &mut List<'_, '_>,
        id: &str,
        endpoint: &WorkloadEntry,
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
        list.add(id.into(), &endpoint.labels, || Bare {
            via,
            weight: endpoint.weight.filter(|weight| *weight > 0).unwrap_or(1),
            locality: endpoint.locality.clone(),
            network: &endpoint.network,
            ..Bare::default()
        });
    }
}

/// How the address of a unix socket begins.
const UNIX: &str = "unix://";

/// Endpoints being gathered.
struct List<'a, 'c> {
    labels: Option<&'a BTreeMap<String, String>>,
    carried: &'a Carried<'c>,
    nearness: Option<&'a Nearness<'a>>,
    made: Vec<Endpoint>,
    ranks: Vec<u32>,
    localities: BTreeMap<String, Arc<Locality>>,
}

/// What is particular to an endpoint.
struct Bare<'h> {
    via: Via,
    weight: u32,
    locality: String,
    health: Health,
    liveness: Liveness,
    /// The host of the mesh it is on, else empty.
    host: &'h str,
    /// The network it is in, where an entry says so.
    network: &'h str,
}

impl Default for Bare<'_> {
    fn default() -> Self {
        Self {
            via: Via::Name { host: "".into(), port: 0, spread: false },
            weight: 1,
            locality: String::new(),
            health: Health::Healthy,
            liveness: Liveness::Live,
            host: "",
            network: "",
        }
    }
}

impl List<'_, '_> {
    /// Adds an endpoint if it has the labels wanted.
    fn add<'h>(&mut self, id: Arc<str>, labels: &BTreeMap<String, String>, make: impl FnOnce() -> Bare<'h>) {
        if self.labels.is_some_and(|wanted| !has_all(labels, wanted)) {
            return;
        }
        let bare = make();
        let before = self.carried.find(self.made.len(), &id);
        let version = labels.get("version").map_or("", String::as_str);
        let locality = self.localities.entry(bare.locality);
        let locality = locality.or_insert_with_key(|text| Arc::new(Locality::parse(text))).clone();
        self.ranks
            .extend(self.nearness.map(|nearness| nearness.rank(labels, &locality, bare.host, bare.network)));
        self.made.push(Endpoint {
            id: before.map_or(id, |before| before.id.clone()),
            via: bare.via,
            weight: bare.weight,
            locality,
            version: before
                .filter(|before| &*before.version == version)
                .map_or_else(|| version.into(), |before| before.version.clone()),
            health: bare.health,
            liveness: bare.liveness,
            state: before.map_or_else(|| Arc::new(EndpointState::default()), |before| before.state.clone()),
        });
    }
}
