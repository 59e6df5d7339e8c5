//! What a caller may reach: the services and rules that its `Sidecar` takes in, of those exported to its namespace.
//!
//! A `Sidecar` whose selector picks the caller counts, else one of its namespace without selector, else the root
//! namespace's; without any, everything that is exported to the namespace is there. Each of its egress listeners has
//! services and rules of its own; what routes of those rules lead to may be sent to as well.
//!
//! Source: Istio `PushContext.getSidecarScope`, `convertIstioListenerToWrapper`, `selectServices`,
//! `SelectVirtualServices`, `collectImportedServices`, `pickBestVisibleNamespace`.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;
use mesh_proto::resource::{
    Destination, IstioEgressListener, Kind, OutboundTrafficPolicyMode, Sidecar, Spec,
};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::fingerprint;
use super::hosts::{Service, Services, full_name, has_all, meet, of_kind, takes};
use super::mesh::Settings;
use super::rules::Rules;
use crate::plan::{Locality, Node, UnknownHosts, Workload};
use crate::world::World;

/// What callers of one kind may reach.
pub(crate) struct Scope<'a> {
    /// Tells it from the others of one compilation.
    pub(crate) number: usize,
    /// One of the callers.
    pub(crate) caller: &'a Workload,
    /// The `Sidecar` that counts.
    pub(crate) sidecar: Option<(&'a Stored, &'a Sidecar)>,
    /// What it listens for. One that takes every port comes last.
    pub(crate) egress: Vec<Egress<'a>>,
    /// What happens to hosts nobody knows.
    pub(crate) unknown: UnknownHosts,
    /// A number for all that decided about services and rules here.
    pub(crate) stamp: u64,
    /// Services by host; `None`: all of them.
    reach: Option<HashMap<&'a str, Reach<'a>>>,
    services: &'a Services<'a>,
}

/// A service that may be sent to.
struct Reach<'a> {
    service: &'a Service<'a>,
    /// On these ports; `None`: all.
    ports: Option<Vec<u16>>,
}

/// What is taken in for one egress listener.
pub(crate) struct Egress<'a> {
    /// The listener; `None`: of a caller without `Sidecar`, or of one that names none.
    pub(crate) listener: Option<&'a IstioEgressListener>,
    /// Services, in order of host.
    pub(crate) services: Vec<&'a Service<'a>>,
    /// Rules, in order of precedence.
    pub(crate) rules: Vec<&'a Rules<'a>>,
}

impl Egress<'_> {
    /// Returns the port it is for; `None`: every port that no other is for.
    pub(crate) fn port(&self) -> Option<u16> {
        self.listener.and_then(|listener| Some(listener.port.as_ref()?.number)).filter(|port| *port != 0)
    }

    /// Whether it is a forward proxy: requests say which port they are for.
    pub(crate) fn is_proxy(&self) -> bool {
        let protocol = self.listener.and_then(|listener| Some(listener.port.as_ref()?.protocol.as_str()));
        protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case("HTTP_PROXY"))
    }

    /// The one port that services must have to be taken in.
    fn wanted_port(&self) -> Option<u16> {
        self.port().filter(|_| !self.is_proxy())
    }
}

/// Every `Sidecar`.
pub(crate) struct Sidecars<'a> {
    /// By namespace: those with a selector first, then the older.
    of: BTreeMap<&'a str, Vec<(&'a Stored, &'a Sidecar)>>,
    root: Option<(&'a Stored, &'a Sidecar)>,
}

impl<'a> Sidecars<'a> {
    /// Loads them.
    pub(crate) fn load(world: &'a World, mesh: &Settings<'a>) -> Self {
        let mut all: Vec<(&'a Stored, &'a Sidecar)> = of_kind(world, Kind::Sidecar)
            .filter_map(|stored| match &stored.object.spec {
                Spec::Sidecar(spec) => Some((stored, &**spec)),
                _ => None,
            })
            .collect();
        all.sort_by_cached_key(|(stored, spec)| {
            (spec.workload_selector.is_none(), stored.created, stored.object.key())
        });
        let is_root = |(stored, spec): &&(&'a Stored, &'a Sidecar)| {
            *stored.object.metadata.namespace == *mesh.root_namespace() && spec.workload_selector.is_none()
        };
        let root = all.iter().find(is_root).copied();
        let mut of: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for one in all {
            of.entry(&one.0.object.metadata.namespace).or_default().push(one);
        }
        Self { of, root }
    }

    /// Whether any picks its callers by their labels.
    pub(crate) fn looks_at_labels(&self) -> bool {
        self.of.values().flatten().any(|(_, spec)| spec.workload_selector.is_some())
    }

    /// Finds the one that counts for a workload.
    pub(crate) fn of(&self, namespace: &str, labels: &Labels) -> Option<(&'a Stored, &'a Sidecar)> {
        let picks = |spec: &Sidecar| {
            spec.workload_selector.as_ref().is_none_or(|selector| has_all(labels, &selector.labels))
        };
        let own = self.of.get(namespace).and_then(|own| own.iter().find(|(_, spec)| picks(spec)));
        own.copied().or(self.root)
    }
}

/// What scopes are made from.
pub(crate) struct Facts<'a> {
    pub(crate) mesh: &'a Settings<'a>,
    pub(crate) services: &'a Services<'a>,
    pub(crate) rules: &'a [Rules<'a>],
    pub(crate) domain: &'a str,
}

impl<'a> Scope<'a> {
    /// Makes the scope of a caller under its `Sidecar`.
    pub(crate) fn new(
        number: usize,
        facts: &Facts<'a>,
        caller: &'a Workload,
        sidecar: Option<(&'a Stored, &'a Sidecar)>,
    ) -> Self {
        let listeners = sidecar.map_or(&[][..], |(_, spec)| &spec.egress);
        let egress: Vec<Egress<'a>> = if listeners.is_empty() {
            vec![facts.open(caller)]
        } else {
            listeners.iter().map(|listener| facts.listener(caller, listener)).collect()
        };
        let reach = (!listeners.is_empty() || !facts.services.is_plain).then(|| facts.reach(caller, &egress));
        let policy = sidecar.and_then(|(_, spec)| spec.outbound_traffic_policy.as_ref());
        let unknown = match policy.map(|policy| policy.mode) {
            None => facts.mesh.unknown_hosts(),
            Some(Some(OutboundTrafficPolicyMode::AllowAny)) => UnknownHosts::Allow,
            // The enumeration's first value is what a message without one says.
            Some(Some(OutboundTrafficPolicyMode::RegistryOnly) | None) => UnknownHosts::Refuse,
        };
        let key = sidecar.map(|(stored, _)| {
            (&stored.object.metadata.namespace, &stored.object.metadata.name, stored.changed)
        });
        let stamp = fingerprint(&(key, &caller.namespace, &caller.labels));
        Self { number, caller, sidecar, egress, unknown, stamp, reach, services: facts.services }
    }

    /// Makes the scope of a gateway, for which no `Sidecar` counts.
    pub(crate) fn gateway(number: usize, facts: &Facts<'a>, workload: &'a Workload) -> Self {
        Self { unknown: UnknownHosts::NotFound, ..Self::new(number, facts, workload, None) }
    }

    /// Finds the service that callers mean by a full host name.
    pub(crate) fn find(&self, host: &str) -> Option<&'a Service<'a>> {
        match &self.reach {
            None => self.services.find(host),
            Some(reach) => reach.get(host).map(|found| found.service),
        }
    }

    /// Whether callers may use this port of a service.
    pub(crate) fn has_port(&self, service: &Service<'_>, number: u16) -> bool {
        let Some(reach) = &self.reach else { return true };
        reach
            .get(&*service.host)
            .and_then(|found| found.ports.as_ref())
            .is_none_or(|ports| ports.contains(&number))
    }

    /// Returns every service that may be sent to, in order of host.
    pub(crate) fn reachable(&self) -> Vec<&'a Service<'a>> {
        let Some(reach) = &self.reach else { return self.services.all.iter().collect() };
        let mut found: Vec<_> = reach.values().map(|found| found.service).collect();
        found.sort_by(|one, other| one.host.cmp(&other.host));
        found
    }

    /// Returns where callers are.
    pub(crate) fn locality<'n>(&'n self, node: &'n Node) -> &'n Locality {
        if self.caller.locality.is_empty() { &node.locality } else { &self.caller.locality }
    }
}

impl<'a> Facts<'a> {
    /// Everything that is exported to a caller's namespace.
    fn open(&self, caller: &Workload) -> Egress<'a> {
        let services = if self.services.is_plain {
            self.services.all.iter().collect()
        } else {
            self.chosen(caller, |_| true)
        };
        Egress { listener: None, services, rules: self.seen_rules(caller) }
    }

    fn listener(&self, caller: &Workload, listener: &'a IstioEgressListener) -> Egress<'a> {
        let taken = Taken::of(&listener.hosts, &caller.namespace);
        let mut egress = Egress { listener: Some(listener), services: Vec::new(), rules: Vec::new() };
        let port = egress.wanted_port();
        egress.services = self.chosen(caller, |service| {
            taken.has(service) && port.is_none_or(|port| service.port(port).is_some())
        });
        egress.rules = self.seen_rules(caller);
        egress.rules.retain(|rules| taken.has_rules(rules));
        egress
    }

    /// For each host the service that counts, of those seen and taken in: of the own namespace, else one that hosts
    /// registered, else the first.
    fn chosen(&self, caller: &Workload, takes_in: impl Fn(&Service<'_>) -> bool) -> Vec<&'a Service<'a>> {
        let mut chosen: Vec<&'a Service<'a>> = Vec::new();
        let rank = |service: &Service<'_>| {
            let is_own = service.namespace == caller.namespace;
            (!is_own, !service.is_registered(), service.nearness(&caller.namespace))
        };
        for service in &self.services.all {
            if !service.seen_from(&caller.namespace) || !takes_in(service) {
                continue;
            }
            match chosen.last_mut().filter(|last| last.host == service.host) {
                Some(last) if rank(service) < rank(last) => *last = service,
                Some(_) => {}
                None => chosen.push(service),
            }
        }
        chosen
    }

    /// The rules for callers inside the mesh that a namespace sees: its own first, then the older.
    fn seen_rules(&self, caller: &Workload) -> Vec<&'a Rules<'a>> {
        let seen = |rules: &&Rules<'_>| rules.in_mesh && rules.seen_from(&caller.namespace);
        let mut rules: Vec<&Rules<'_>> = self.rules.iter().filter(seen).collect();
        rules.sort_by_key(|rules| rules.nearness(&caller.namespace));
        rules
    }

    /// What may be sent to: what listeners take in, and where their rules lead.
    fn reach(&self, caller: &Workload, egress: &[Egress<'a>]) -> HashMap<&'a str, Reach<'a>> {
        let mut reach: HashMap<&'a str, Reach<'a>> = HashMap::default();
        for listener in egress {
            let port = listener.wanted_port();
            for service in &listener.services {
                add(&mut reach, service, port.map(|port| vec![port]));
            }
            let hidden = |service: &Service<'_>| {
                service.namespace == caller.namespace && !service.seen_from(&caller.namespace)
            };
            if listener.listener.is_none() && !self.services.all.iter().any(hidden) {
                // Rules lead to nothing that is not there already.
                continue;
            }
            for rules in &listener.rules {
                for (host, ports) in rules.destinations(&caller.namespace, self.domain) {
                    let Some(service) = self.best(caller, &host) else { continue };
                    let wanted: Option<BTreeSet<u16>> = match port {
                        Some(port) => Some(BTreeSet::from([port])),
                        None => ports,
                    };
                    let has = |port: &u16| service.port(*port).is_some();
                    let ports: Option<Vec<u16>> =
                        wanted.map(|wanted| wanted.into_iter().filter(has).collect());
                    if ports.as_ref().is_none_or(|ports| !ports.is_empty()) {
                        add(&mut reach, service, ports);
                    }
                }
            }
        }
        reach
    }

    /// The service that a rule means which no listener took in.
    fn best(&self, caller: &Workload, host: &str) -> Option<&'a Service<'a>> {
        let all = self.services.of_host(host);
        let own = all.iter().find(|service| service.namespace == caller.namespace);
        own.or_else(|| all.iter().find(|service| service.seen_from(&caller.namespace)))
    }
}

/// Adds a service; of two of one host the registered one counts, and ports of the same one are united.
fn add<'a>(reach: &mut HashMap<&'a str, Reach<'a>>, service: &'a Service<'a>, ports: Option<Vec<u16>>) {
    let Some(present) = reach.get_mut(&*service.host) else {
        reach.insert(&service.host, Reach { service, ports });
        return;
    };
    if present.service.namespace == service.namespace {
        match (&mut present.ports, ports) {
            (Some(known), Some(more)) => known.extend(more),
            (known, _) => *known = None,
        }
    } else if service.is_registered() && !present.service.is_registered() {
        *present = Reach { service, ports };
    }
}

/// The `hosts` of an egress listener.
struct Taken<'a> {
    hosts: Vec<Host<'a>>,
}

struct Host<'a> {
    /// `None`: every namespace.
    namespace: Option<&'a str>,
    /// Whether it takes out instead of in.
    out: bool,
    name: String,
}

impl Host<'_> {
    fn is_of(&self, namespace: &str) -> bool {
        self.namespace.is_none_or(|own| own == namespace)
    }
}

impl<'a> Taken<'a> {
    fn of(hosts: &'a [String], own: &'a str) -> Self {
        let one = |text: &'a String| {
            let (namespace, name) = text.split_once('/')?;
            let (out, namespace) = match namespace.strip_prefix('~') {
                Some("") => (true, "*"),
                Some(rest) => (true, rest),
                None => (false, namespace),
            };
            let namespace = match namespace {
                "*" => None,
                "." => Some(own),
                name => Some(name),
            };
            Some(Host { namespace, out, name: name.to_ascii_lowercase() })
        };
        Self { hosts: hosts.iter().filter_map(one).collect() }
    }

    fn is_out(&self, namespace: &str, host: &str) -> bool {
        self.hosts.iter().any(|one| one.out && one.is_of(namespace) && takes(&one.name, host))
    }

    fn has(&self, service: &Service<'_>) -> bool {
        let takes_in =
            |one: &Host<'_>| !one.out && one.is_of(service.namespace) && takes(&one.name, &service.host);
        !self.is_out(service.namespace, &service.host) && self.hosts.iter().any(takes_in)
    }

    /// Whether one of the hosts that rules are for is taken in. A wildcard on either side will do.
    fn has_rules(&self, rules: &Rules<'_>) -> bool {
        rules.hosts.iter().any(|host| {
            let takes_in = |one: &Host<'_>| !one.out && one.is_of(rules.namespace) && meet(&one.name, host);
            self.hosts.iter().any(takes_in) && !self.is_out(rules.namespace, host)
        })
    }
}

impl Rules<'_> {
    /// Returns the hosts that routes lead to, in full, each with its ports; `None`: some route names no port.
    ///
    /// Source: Istio `virtualServiceDestinationsFilteredBySourceNamespace`.
    fn destinations(&self, from: &str, domain: &str) -> BTreeMap<String, Option<BTreeSet<u16>>> {
        let mut found: BTreeMap<String, Option<BTreeSet<u16>>> = BTreeMap::new();
        let mut add = |destination: Option<&Destination>| {
            let Some(destination) = destination else { return };
            let host = full_name(&destination.host, self.namespace, domain);
            let ports = found.entry(host).or_insert_with(|| Some(BTreeSet::new()));
            match (ports.as_mut(), destination.port) {
                (Some(ports), Some(port)) => drop(ports.insert(port.number)),
                _ => *ports = None,
            }
        };
        for rule in &self.http {
            let named =
                |condition: &&mesh_proto::resource::HttpMatchRequest| !condition.source_namespace.is_empty();
            let mut others = rule.http.r#match.iter().filter(named).peekable();
            if others.peek().is_some() && !others.any(|condition| condition.source_namespace == from) {
                continue;
            }
            rule.http.route.iter().for_each(|route| add(route.destination.as_ref()));
            add(rule.http.mirror.as_deref());
            rule.http.mirrors.iter().for_each(|mirror| add(mirror.destination.as_ref()));
        }
        let tcp = self.spec.tcp.iter().flat_map(|block| &block.route);
        let tls = self.spec.tls.iter().flat_map(|block| &block.route);
        tcp.chain(tls).for_each(|route| add(route.destination.as_ref()));
        found
    }
}
