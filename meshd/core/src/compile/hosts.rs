//! Services: what hosts have registered, and what `ServiceEntries` declare, in one shape.
//!
//! A registered service is `NAME.NAMESPACE.svc.DOMAIN`, with the ports of all its instances. Of two services with one
//! host in one namespace the registered one counts; `ServiceEntries` are united where they agree on all but ports and
//! endpoints, else the older counts. Which of several namespaces counts is decided for each caller (`scope`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use ipnet::IpNet;
use mesh_proto::command::Revision;
use mesh_proto::registration::Protocol;
use mesh_proto::resource::{Kind, Object, ObjectKey, Resolution, ServiceEntry, Spec, WorkloadEntry};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::mesh::Settings;
use super::visibility;
use crate::plan::Node;
use crate::world::{InstanceRef, ServiceName, World, virtual_addresses};

/// A service.
pub(crate) struct Service<'a> {
    /// Full host name, lower case; `*.example.com` where a `ServiceEntry` says so.
    pub(crate) host: Arc<str>,
    /// Its namespace.
    pub(crate) namespace: &'a str,
    /// Its ports, in order of number.
    pub(crate) ports: Vec<Port>,
    /// Addresses of it: declared, else virtual.
    pub(crate) addresses: Vec<IpNet>,
    /// How its endpoints are known.
    pub(crate) source: Source<'a>,
    /// Younger `ServiceEntries` for the same host whose ports and endpoints are added to it.
    joined: Vec<Entry<'a>>,
    export_to: &'a [String],
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    /// Its number.
    pub(crate) number: u16,
    /// Its name, may be empty.
    pub(crate) name: String,
    /// What is spoken.
    pub(crate) protocol: Protocol,
    /// Where endpoints answer, unless they say otherwise (`ServiceEntry` `targetPort`).
    pub(crate) target: u16,
}

/// Where the endpoints of a service come from.
pub(crate) enum Source<'a> {
    /// Hosts registered them.
    Registered(Vec<InstanceRef<'a>>),
    /// A `ServiceEntry`.
    Entry(Entry<'a>),
}

/// A `ServiceEntry` and what it selects.
pub(crate) struct Entry<'a> {
    pub(crate) stored: &'a Stored,
    pub(crate) spec: &'a ServiceEntry,
    /// `WorkloadEntries` of its namespace that its selector picks: name and content.
    pub(crate) workloads: Vec<(&'a str, &'a WorkloadEntry)>,
    /// Registered instances of its namespace that its selector picks.
    pub(crate) instances: Vec<InstanceRef<'a>>,
}

impl<'a> Service<'a> {
    /// Finds a port.
    pub(crate) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Whether callers of a namespace see it.
    pub(crate) fn seen_from(&self, namespace: &str) -> bool {
        visibility::sees(self.export_to, self.namespace, namespace)
    }

    /// Returns the entry it comes from.
    pub(crate) fn entry(&self) -> Option<&Entry<'a>> {
        match &self.source {
            Source::Registered(_) => None,
            Source::Entry(entry) => Some(entry),
        }
    }

    /// Returns every entry it is made of, the oldest first; none where hosts registered it.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<'a>> {
        self.entry().into_iter().chain(&self.joined)
    }

    /// Whether it is made of more than one entry.
    pub(super) fn is_joined(&self) -> bool {
        !self.joined.is_empty()
    }

    /// To whom it is exported; empty: everybody.
    pub(super) fn export_to(&self) -> &'a [String] {
        self.export_to
    }

    fn is_public(&self) -> bool {
        visibility::is_public(self.export_to)
    }

    /// How near it is to a namespace that sees it.
    pub(crate) fn nearness(&self, from: &str) -> visibility::Nearness {
        visibility::nearness(self.export_to, self.namespace, from)
    }

    /// Whether hosts of the mesh registered it.
    pub(crate) fn is_registered(&self) -> bool {
        matches!(self.source, Source::Registered(_))
    }

    /// When what it is made of was last changed.
    pub(super) fn entry_revisions(&self) -> (Option<Revision>, Vec<Revision>) {
        let of = |entry: &Entry<'_>| entry.stored.changed;
        (self.entry().map(of), self.joined.iter().map(of).collect())
    }

    /// Whether a younger `ServiceEntry` for the same host is of the same service: of its namespace, and like it in all but
    /// ports and endpoints.
    ///
    /// Source: Istio `canMergeServices`.
    fn agrees_with(&self, other: &Self) -> bool {
        fn selected<'e>(entry: &'e Entry<'_>) -> Option<&'e Labels> {
            entry.spec.workload_selector.as_ref().map(|selector| &selector.labels)
        }
        let (Some(own), Some(new)) = (self.entry(), other.entry()) else { return false };
        self.namespace == other.namespace
            && own.spec.resolution() == new.spec.resolution()
            && own.stored.object.metadata.labels == new.stored.object.metadata.labels
            && selected(own) == selected(new)
            && self.export_to == other.export_to
    }

    /// Adds the ports of such an entry that it has not got, and the endpoints.
    ///
    /// Source: Istio `appendSidecarServices`; endpoints are kept by host, namespace and port.
    fn join(&mut self, other: Self) {
        for port in other.ports {
            if self.port(port.number).is_none() {
                self.ports.push(port);
            }
        }
        self.ports.sort_by_key(|port| port.number);
        if let Source::Entry(entry) = other.source {
            self.joined.push(entry);
        }
    }

    /// Whether it has no endpoints of its own: connections go where they were going, or to the name they ask for.
    pub(crate) fn is_passthrough(&self) -> bool {
        self.entry()
            .is_some_and(|entry| matches!(entry.spec.resolution(), Resolution::None | Resolution::DynamicDns))
    }

    /// Returns its single addresses.
    pub(crate) fn single_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).map(IpNet::addr)
    }
}

/// Every service, and the way to it.
pub(crate) struct Services<'a> {
    /// In order of host; of one host the registered ones first, then the older `ServiceEntry`.
    pub(crate) all: Vec<Service<'a>>,
    /// Where those of a host begin, and how many they are.
    by_host: HashMap<Arc<str>, (usize, usize)>,
    /// `ServiceEntries` that lost a host to another service of their namespace: their stored object, the host.
    pub(crate) shadowed: Vec<(&'a Stored, String)>,
    /// Whether all callers see the same: everything, and no host twice.
    pub(crate) is_plain: bool,
}

impl<'a> Services<'a> {
    /// Finds a service by its full host name; of several, the one that goes before the others.
    pub(crate) fn find(&self, host: &str) -> Option<&Service<'a>> {
        self.of_host(host).first()
    }

    /// Returns the services of a host, in different namespaces: registered ones first, then the older.
    pub(crate) fn of_host(&self, host: &str) -> &[Service<'a>] {
        self.by_host.get(host).map_or(&[], |(begin, count)| &self.all[*begin..begin + count])
    }
}

/// Gathers every service.
pub(crate) fn services<'a>(world: &'a World, node: &Node, mesh: &Settings<'a>) -> Services<'a> {
    let mut found: BTreeMap<Arc<str>, Vec<Service<'a>>> = registered(world, mesh, &node.domain);
    let mut shadowed = Vec::new();
    let mut entries: Vec<&Stored> = of_kind(world, Kind::ServiceEntry).collect();
    // They come in order of namespace and name.
    entries.sort_by_key(|stored| stored.created);
    let selectable = Selectable::of(world);
    for stored in entries {
        let Spec::ServiceEntry(spec) = &stored.object.spec else { continue };
        for host in &spec.hosts {
            let host: Arc<str> = host.to_ascii_lowercase().into();
            let others = found.entry(host.clone()).or_default();
            let service = declared(world, mesh, stored, spec, host.clone(), &selectable);
            // Whoever sees the one sees the other, too; entries that are exported elsewhere are services of their own.
            let hides = |other: &Service<'_>| {
                other.namespace == service.namespace
                    && (other.is_registered() || other.export_to == service.export_to)
            };
            if let Some(older) = others.iter_mut().find(|other| other.agrees_with(&service)) {
                older.join(service);
            } else if others.iter().any(hides) {
                // differs: Istio still uses its endpoints for ports that both have.
                shadowed.push((stored, host.to_string()));
            } else {
                others.push(service);
            }
        }
    }
    let mut by_host = HashMap::with_capacity_and_hasher(found.len(), foldhash::fast::RandomState::default());
    let mut all = Vec::with_capacity(found.len());
    for (host, services) in found {
        by_host.insert(host, (all.len(), services.len()));
        all.extend(services);
    }
    let is_plain = by_host.len() == all.len() && all.iter().all(Service::is_public);
    Services { all, by_host, shadowed, is_plain }
}

/// Returns the full form of a host name that a rule of a namespace uses: a name without a dot is a service of that
/// namespace, anything else is full already. Lower case.
///
/// Source: Istio `ResolveShortnameToFQDN`.
pub(crate) fn full_name(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.starts_with('*') || host.is_empty() {
        return host;
    }
    format!("{host}.{namespace}.svc.{domain}")
}

/// Returns the other names by which callers of a namespace may call a service: `reviews` (own namespace only),
/// `reviews.default.svc`, `reviews.default`. None for hosts that are not of the form `NAME.NAMESPACE.svc.…`.
///
/// Source: Istio `GenerateAltVirtualHosts`.
pub(crate) fn short_names(host: &str, namespace: &str) -> Vec<String> {
    let Some((name, rest)) = host.split_once('.') else { return Vec::new() };
    let Some((home, _)) = rest.split_once(".svc.") else { return Vec::new() };
    let middle = [format!("{name}.{home}.svc"), format!("{name}.{home}")];
    let short = (home == namespace && !name.starts_with('*')).then(|| name.to_owned());
    short.into_iter().chain(middle).collect()
}

/// Whether `pattern` (a host, perhaps with a wildcard) takes `host`, which may be a wildcard itself.
///
/// Source: Istio `host.Name.SubsetOf`.
pub(crate) fn takes(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => match host.strip_prefix('*') {
            Some(other) => other.ends_with(suffix),
            None => host.ends_with(suffix) && host.len() > suffix.len(),
        },
        None => pattern == host,
    }
}

/// Whether one of two hosts, each perhaps with a wildcard, takes the other.
///
/// Source: Istio `host.Name.Matches`, which goes both ways.
pub(crate) fn meet(one: &str, other: &str) -> bool {
    takes(one, other) || takes(other, one)
}

/// Returns the objects of a kind, in order of namespace and name.
pub(crate) fn of_kind(world: &World, kind: Kind) -> impl Iterator<Item = &Stored> {
    let first = ObjectKey::new(kind, "", "");
    world
        .resources
        .range_from(&first)
        .take_while(move |(key, _)| key.kind == kind)
        .map(|(_, stored)| &**stored)
}

fn registered<'a>(
    world: &'a World,
    mesh: &Settings<'a>,
    domain: &str,
) -> BTreeMap<Arc<str>, Vec<Service<'a>>> {
    let export_to = visibility::or_default(&[], mesh, |config| &config.default_service_export_to);
    let name = |one: &InstanceRef<'a>| (one.instance.namespace.as_str(), one.instance.service.as_str());
    let mut counts: HashMap<(&str, &str), usize> = HashMap::default();
    for instance in world.instances() {
        *counts.entry(name(&instance)).or_default() += 1;
    }
    // Lists that grow would leave room behind, of which there is much in a large mesh.
    let with_room = |(name, count)| (name, Vec::with_capacity(count));
    let mut groups: HashMap<(&str, &str), Vec<InstanceRef<'a>>> = counts.into_iter().map(with_room).collect();
    for instance in world.instances() {
        groups.entry(name(&instance)).or_default().push(instance);
    }
    groups
        .into_iter()
        .map(|((namespace, name), instances)| {
            let name = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
            let host: Arc<str> = name.fqdn(domain).to_ascii_lowercase().into();
            let service = Service {
                host: host.clone(),
                namespace,
                ports: united_ports(&instances),
                addresses: virtual_of(world, &host),
                source: Source::Registered(instances),
                joined: Vec::new(),
                export_to,
            };
            (host, vec![service])
        })
        .collect()
}

/// The ports of all instances; the first host's word counts where two differ, which registration refuses.
fn united_ports(instances: &[InstanceRef<'_>]) -> Vec<Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for binding in instances.iter().flat_map(|instance| &instance.instance.ports) {
        ports.entry(binding.number).or_insert_with(|| Port {
            number: binding.number,
            name: binding.name.clone(),
            protocol: Protocol::of_port(binding.protocol, &binding.name),
            target: binding.number,
        });
    }
    ports.into_values().collect()
}

fn declared<'a>(
    world: &'a World,
    mesh: &Settings<'a>,
    stored: &'a Stored,
    spec: &'a ServiceEntry,
    host: Arc<str>,
    selectable: &Selectable<'a>,
) -> Service<'a> {
    let metadata = &stored.object.metadata;
    let declared: Vec<IpNet> = spec.addresses.iter().filter_map(|text| address(text)).collect();
    // A virtual address for traffic that goes where it was going would lead nowhere.
    let wants_virtual = spec.addresses.is_empty() && spec.resolution() != Resolution::None;
    let addresses = if wants_virtual { virtual_of(world, &host) } else { declared };
    let (workloads, instances) = selectable.pick(spec, &metadata.namespace);
    let mut ports: Vec<Port> = spec.ports.iter().map(declared_port).collect();
    ports.sort_by_key(|port| port.number);
    Service {
        host,
        namespace: &metadata.namespace,
        ports,
        addresses,
        source: Source::Entry(Entry { stored, spec, workloads, instances }),
        joined: Vec::new(),
        export_to: visibility::or_default(&spec.export_to, mesh, |config| &config.default_service_export_to),
    }
}

impl Entry<'_> {
    /// A port as this entry declares it.
    pub(super) fn port(&self, number: u16) -> Option<Port> {
        self.spec.ports.iter().find(|port| port.number == number).map(declared_port)
    }
}

fn declared_port(port: &mesh_proto::resource::ServicePort) -> Port {
    let declared = Protocol::parse(&port.protocol).unwrap_or_default();
    Port {
        number: port.number,
        name: port.name.clone(),
        protocol: Protocol::of_port(declared, &port.name),
        target: port.target_port.filter(|target| *target != 0).unwrap_or(port.number),
    }
}

fn address(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn virtual_of(world: &World, host: &str) -> Vec<IpNet> {
    let index = world.addresses.get(host);
    index.map_or_else(Vec::new, |index| virtual_addresses(*index).map(IpNet::from).to_vec())
}

/// What a `ServiceEntry`'s `workloadSelector` may pick.
struct Selectable<'a> {
    workloads: Vec<&'a Object>,
    instances: Vec<InstanceRef<'a>>,
}

impl<'a> Selectable<'a> {
    fn of(world: &'a World) -> Self {
        let selecting = of_kind(world, Kind::ServiceEntry)
            .filter(|stored| {
                matches!(&stored.object.spec, Spec::ServiceEntry(entry) if entry.workload_selector.is_some())
            })
            .map(|stored| &*stored.object.metadata.namespace)
            .collect::<BTreeSet<_>>();
        let workloads = of_kind(world, Kind::WorkloadEntry).map(|stored| &stored.object).collect();
        let wanted = |found: &InstanceRef<'_>| selecting.contains(found.instance.namespace.as_str());
        Self { workloads, instances: world.instances().filter(wanted).collect() }
    }

    fn pick(
        &self,
        spec: &ServiceEntry,
        namespace: &str,
    ) -> (Vec<(&'a str, &'a WorkloadEntry)>, Vec<InstanceRef<'a>>) {
        let Some(selector) = &spec.workload_selector else { return (Vec::new(), Vec::new()) };
        let picks = |labels: &Labels| has_all(labels, &selector.labels);
        let workloads = self.workloads.iter().filter_map(|object| match &object.spec {
            Spec::WorkloadEntry(entry) if *object.metadata.namespace == *namespace => {
                // Labels of the object count too, as in Istio.
                let fits = picks(&entry.labels) || picks(&object.metadata.labels);
                fits.then_some((&*object.metadata.name, &**entry))
            }
            _ => None,
        });
        let instances = self
            .instances
            .iter()
            .filter(|found| found.instance.namespace == namespace && picks(&found.instance.labels));
        (workloads.collect(), instances.copied().collect())
    }
}

/// Whether `labels` holds every one of `wanted`.
pub(crate) fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
