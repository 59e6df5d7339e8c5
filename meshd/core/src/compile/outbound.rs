//! What a caller may reach: virtual hosts on each port, TLS and TCP services, addresses.
//!
//! Source: Istio `BuildSidecarOutboundVirtualHosts`, `buildSidecarVirtualHostsForVirtualService`,
//! `separateVSHostsAndServices`, `generateVirtualHostDomains`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::registration::Protocol;
use mesh_proto::resource::Destination;

use super::clusters::Builder;
use super::hosts::{Service, full_name, short_names, takes};
use super::mesh::Settings;
use super::routes::Context;
use super::rules::{Asker, Rules};
use super::scope::{Egress, Scope};
use super::{Problems, fingerprint, retry, tcp, telemetry};
use crate::plan::{
    Action, Cluster, ClusterName, Forward, Node, Origin, Outbound, PortTable, Route, ServicePort, TcpRule,
    TcpRules, UnknownHosts, VirtualHost, WeightedCluster,
};

/// What all callers of a host have in common.
pub(super) struct Scene<'a> {
    pub(super) node: &'a Node,
    pub(super) mesh: &'a Settings<'a>,
    pub(super) clusters: &'a Builder<'a>,
    pub(super) telemetry: &'a telemetry::Rules<'a>,
    pub(super) problems: &'a Problems,
    pub(super) topology: u64,
}

/// Compiles what callers of a scope may reach.
pub(super) fn outbound(scene: &Scene<'_>, scope: &Scope<'_>, before: Option<&Outbound>) -> Outbound {
    // First, one service after the other: what the clusters of one have in common is gathered once.
    for service in scope.reachable() {
        scene.clusters.all(scope, service);
    }
    let mut outbound = new(scene, scope);
    let mut taken = BTreeSet::new();
    for egress in scope.egress.iter().filter(|egress| !egress.is_proxy()) {
        View::new(scene, scope, egress, before).add_to(&mut outbound, &mut taken);
    }
    outbound
}

/// Compiles what visitors of a forward proxy that a `Sidecar` opens may reach: every port of what it takes in.
pub(super) fn through_proxy(
    scene: &Scene<'_>,
    scope: &Scope<'_>,
    egress: &Egress<'_>,
    before: Option<&Outbound>,
) -> Outbound {
    let mut outbound = new(scene, scope);
    let all = Egress { listener: None, services: egress.services.clone(), rules: egress.rules.clone() };
    View::new(scene, scope, &all, before).add_to(&mut outbound, &mut BTreeSet::new());
    outbound
}

/// Where traffic for hosts that nobody knows goes instead. Source: Istio `util.OutboundTrafficPolicy.EgressProxy`:
/// with `ALLOW_ANY` only; names are relative to the `Sidecar`'s namespace.
fn egress_proxy(scene: &Scene<'_>, scope: &Scope<'_>) -> Option<Arc<ServicePort>> {
    let (stored, spec) = scope.sidecar?;
    let wanted = spec.outbound_traffic_policy.as_ref()?.egress_proxy.as_ref()?;
    if scope.unknown != UnknownHosts::Allow {
        return None;
    }
    let (name, cluster) = scene.find(scope, wanted, &stored.object.metadata.namespace, HTTP_PORT);
    let origin = Origin {
        object: Some(stored.object.key()),
        path: "outboundTrafficPolicy.egressProxy".into(),
        name: String::new(),
    };
    let port = name.port;
    let host = name.host.to_string();
    let destinations = vec![WeightedCluster { weight: 1, cluster, name, headers: None }];
    let rule = TcpRule { destination_subnets: Vec::new(), destinations, origin };
    Some(Arc::new(ServicePort {
        host,
        number: port,
        protocol: Protocol::Auto,
        tcp: TcpRules { rules: vec![rule] },
    }))
}

fn new(scene: &Scene<'_>, scope: &Scope<'_>) -> Outbound {
    Outbound {
        caller: scope.caller.clone(),
        unknown: scope.unknown,
        egress_proxy: egress_proxy(scene, scope),
        paths: scene.mesh.paths(),
        sniff: scene.mesh.sniff(),
        telling: scene.telemetry.client(scope.caller),
        ..Outbound::default()
    }
}

/// What an egress listener of one caller takes in.
pub(super) struct View<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) scope: &'a Scope<'a>,
    egress: &'a Egress<'a>,
    /// Rules it sees, in order of precedence.
    pub(super) rules: &'a [&'a Rules<'a>],
    /// Positions in `rules` of the rules for a host exactly.
    by_host: HashMap<&'a str, Vec<usize>>,
    /// The same for wildcards, with the pattern, the longest first.
    wildcards: Vec<(&'a str, usize)>,
    before: Option<&'a Outbound>,
}

impl<'a> View<'a> {
    fn new(
        scene: &'a Scene<'a>,
        scope: &'a Scope<'a>,
        egress: &'a Egress<'a>,
        before: Option<&'a Outbound>,
    ) -> Self {
        let rules = egress.rules.as_slice();
        let mut by_host: HashMap<&str, Vec<usize>> = HashMap::default();
        let mut wildcards = Vec::new();
        for (index, host) in rules
            .iter()
            .enumerate()
            .flat_map(|(index, rules)| rules.hosts.iter().map(move |host| (index, host)))
        {
            if host.starts_with('*') {
                wildcards.push((host.as_str(), index));
            } else {
                by_host.entry(host).or_default().push(index);
            }
        }
        wildcards.sort_by_key(|(host, index)| (std::cmp::Reverse(host.len()), *index));
        Self { scene, scope, egress, rules, by_host, wildcards, before }
    }

    /// Adds its ports, but for those that another listener has.
    fn add_to(&self, outbound: &mut Outbound, taken: &mut BTreeSet<u16>) {
        let mut ports: BTreeMap<u16, Vec<&Service<'_>>> = BTreeMap::new();
        for service in &self.egress.services {
            for port in &service.ports {
                ports.entry(port.number).or_default().push(service);
            }
        }
        // Hosts of rules that are no service are on port 80.
        if !self.rules.is_empty() {
            ports.entry(HTTP_PORT).or_default();
        }
        let only = self.egress.port();
        ports.retain(|number, _| only.is_none_or(|only| only == *number) && taken.insert(*number));
        taken.extend(only);
        for (number, services) in ports {
            let table = self.port_table(number, &services, outbound);
            if table.has_http() || !table.tls.is_empty() || table.tcp.is_some() {
                outbound.ports.insert(number, Arc::new(table));
            }
        }
        outbound.sort_ranges();
    }

    /// Who asks.
    pub(super) fn asker(&self) -> Asker<'a> {
        Asker { caller: self.scope.caller, gateway: None }
    }

    /// Returns the rules of the host pattern that fits a service best, the oldest first.
    pub(super) fn rules_for(&self, host: &str) -> Vec<usize> {
        if let Some(exact) = self.by_host.get(host) {
            return exact.clone();
        }
        let fitting = || self.wildcards.iter().filter(|(pattern, _)| takes(pattern, host));
        let best = fitting().next().map(|(pattern, _)| *pattern);
        fitting().filter(|(pattern, _)| Some(*pattern) == best).map(|(_, index)| *index).collect()
    }

    fn port_table(&self, number: u16, services: &[&'a Service<'a>], outbound: &mut Outbound) -> PortTable {
        let mut table = PortTable { number, ..PortTable::default() };
        self.add_http(&mut table, services);
        for service in services {
            let Some(port) = service.port(number) else { continue };
            let rules = self.rules_for(&service.host);
            let connections = tcp::connections(self, service, port, &rules);
            for (sni, host) in connections.tls {
                table.tls.add(&sni, host);
            }
            let service_port = Arc::new(ServicePort {
                host: service.host.to_string(),
                number,
                protocol: port.protocol,
                tcp: connections.tcp,
            });
            if is_tcp(port.protocol) && table.tcp.as_ref().is_none_or(|other| !is_plain_tcp(other.protocol)) {
                let better = is_plain_tcp(port.protocol) || table.tcp.is_none();
                if better {
                    table.tcp = Some(service_port.clone());
                }
            }
            for net in &service.addresses {
                if net.prefix_len() == net.max_prefix_len() {
                    let at = (net.addr(), number);
                    if !outbound.addresses.contains_key(&at) {
                        outbound.addresses.insert(at, service_port.clone());
                    }
                } else {
                    outbound.ranges.push((*net, number, service_port.clone()));
                }
            }
        }
        table
    }

    /// Adds the virtual hosts of a port: of rules first, then of services without one.
    fn add_http(&self, table: &mut PortTable, services: &[&'a Service<'a>]) {
        let number = table.number;
        let here: BTreeMap<&str, &Service<'_>> =
            services.iter().map(|service| (&*service.host, *service)).collect();
        // For wildcards: which rules a service of this port would rather have.
        let mut covered: BTreeSet<&str> = BTreeSet::new();
        for index in self.rules_on(number, &here) {
            let rules = self.rules[index];
            let applicable = rules.applicable(self.asker(), number);
            if applicable.is_empty() {
                continue;
            }
            let (hosts, found) = self.separate(index, &here);
            let speaking: Vec<_> = found.iter().filter(|service| speaks_http(service, number)).collect();
            if speaking.is_empty() && number != HTTP_PORT {
                continue;
            }
            let stamp = fingerprint(&(self.scene.topology, &rules.made_of, number, self.scope.stamp));
            let mut routes: Option<Vec<Arc<Route>>> = None;
            let mut make = |host: &str| {
                if let Some(same) = self.unchanged(number, host, stamp) {
                    return same;
                }
                let routes = routes.get_or_insert_with(|| {
                    let find = |wanted: &Destination, namespace: &str| self.find(wanted, namespace, number);
                    let context =
                        Context { find: &find, mesh: self.scene.mesh, problems: self.scene.problems };
                    let made = applicable
                        .iter()
                        .filter_map(|(rule, conditions)| context.route(rules, rule, conditions));
                    made.map(Arc::new).collect()
                });
                Arc::new(VirtualHost { host: host.to_owned(), port: number, routes: routes.clone(), stamp })
            };
            for host in hosts {
                table.http.add(host, make(host));
            }
            for service in speaking {
                let host = make(&service.host);
                self.add_service(table, service, &host);
                covered.insert(&service.host);
            }
        }
        let rest = services
            .iter()
            .filter(|service| !covered.contains(&*service.host) && speaks_http(service, number));
        for service in rest {
            let stamp = fingerprint(&(self.scene.topology, number, self.scope.stamp));
            let host = self
                .unchanged(number, &service.host, stamp)
                .unwrap_or_else(|| Arc::new(self.plain_host(service, number, stamp)));
            self.add_service(table, service, &host);
        }
    }

    /// Returns the rules that may say something on a port, the oldest first: those for its services, and on port 80
    /// all.
    fn rules_on(&self, number: u16, here: &BTreeMap<&str, &Service<'_>>) -> BTreeSet<usize> {
        if number == HTTP_PORT {
            return (0..self.rules.len()).collect();
        }
        let exact = here.keys().filter_map(|host| self.by_host.get(host)).flatten().copied();
        let wild = self.wildcards.iter().filter(|(pattern, _)| here.keys().any(|host| takes(pattern, host)));
        exact.chain(wild.map(|(_, index)| *index)).collect()
    }

    /// Splits the hosts of a rule into those that are no service of this port, and the services.
    fn separate<'b>(
        &'b self,
        index: usize,
        here: &BTreeMap<&str, &'a Service<'a>>,
    ) -> (Vec<&'b str>, Vec<&'a Service<'a>>) {
        let (mut hosts, mut services) = (Vec::new(), Vec::new());
        let (wild, exact): (Vec<&String>, Vec<&String>) =
            self.rules[index].hosts.iter().partition(|host| host.starts_with('*'));
        for host in exact {
            match here.get(host.as_str()) {
                Some(service) => services.push(*service),
                // Without any service on this port, a service of other ports is not heard of here either.
                None if here.is_empty() && self.scope.find(host).is_some() => {}
                None => hosts.push(host.as_str()),
            }
        }
        for pattern in wild {
            // A service goes to the rule whose host fits it best, and only to that.
            let mine = |host: &str| takes(pattern, host) && self.rules_for(host).contains(&index);
            let found: Vec<_> = here.values().copied().filter(|service| mine(&service.host)).collect();
            if found.is_empty() {
                hosts.push(pattern);
            }
            services.extend(found);
        }
        (hosts, services)
    }

    /// Adds a service under all its names: full, with a trailing dot, short ones, addresses.
    fn add_service(&self, table: &mut PortTable, service: &Service<'_>, host: &Arc<VirtualHost>) {
        table.http.add(&service.host, host.clone());
        if !service.host.starts_with('*') {
            table.http.add(&format!("{}.", service.host), host.clone());
        }
        for name in short_names(&service.host, &self.scope.caller.namespace) {
            table.http.add(&name, host.clone());
        }
        for address in service.single_addresses() {
            let name = match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            table.http.add(&name, host.clone());
        }
    }

    /// Returns a virtual host of the Plan before, where nothing that it is made of has changed.
    fn unchanged(&self, number: u16, host: &str, stamp: u64) -> Option<Arc<VirtualHost>> {
        let before = self.before?.ports.get(&number)?.http.get(host)?;
        let is_same = before.stamp == stamp && before.host == host;
        (is_same && self.scene.has_same_clusters(self.scope, before)).then(|| before.clone())
    }

    /// The virtual host of a service without rules.
    fn plain_host(&self, service: &Service<'_>, number: u16, stamp: u64) -> VirtualHost {
        let name = ClusterName { host: service.host.clone(), port: number, subset: "".into() };
        let cluster = self.scene.clusters.find(self.scope, &name);
        let default_retry =
            self.scene.mesh.config.and_then(|config| config.default_http_retry_policy.as_ref());
        let forward = Forward {
            destinations: vec![WeightedCluster { weight: 1, cluster, name, headers: None }],
            total_weight: 1,
            timeout: None,
            retry: retry::policy(None, default_retry),
            rewrite: None,
            mirrors: Vec::new(),
        };
        let route = Route {
            origin: Origin { name: "default".into(), ..Origin::default() },
            matchers: Vec::new(),
            action: Action::Forward(Box::new(forward)),
            headers: None,
            fault: None,
            cors: None,
        };
        VirtualHost { host: service.host.to_string(), port: number, routes: vec![Arc::new(route)], stamp }
    }

    /// Finds the cluster of a destination on a listener's port.
    pub(super) fn find(
        &self,
        wanted: &Destination,
        namespace: &str,
        listener: u16,
    ) -> (ClusterName, Option<Arc<Cluster>>) {
        self.scene.find(self.scope, wanted, namespace, listener)
    }
}

impl Scene<'_> {
    /// Whether the clusters that a virtual host of the Plan before leads to are still the same.
    pub(super) fn has_same_clusters(&self, scope: &Scope<'_>, host: &VirtualHost) -> bool {
        let same = |name: &ClusterName, cluster: &Option<Arc<Cluster>>| match (
            self.clusters.find(scope, name),
            cluster,
        ) {
            (Some(now), Some(then)) => Arc::ptr_eq(&now, then),
            (None, None) => true,
            _ => false,
        };
        host.routes.iter().all(|route| match &route.action {
            Action::Forward(forward) => {
                forward.destinations.iter().all(|to| same(&to.name, &to.cluster))
                    && forward.mirrors.iter().all(|to| same(&to.name, &to.cluster))
            }
            Action::Redirect(_) | Action::Direct(_) => true,
        })
    }

    /// Finds the cluster of a destination on a listener's port.
    ///
    /// Without a port it is the listener's; where the service has not that one but a single other, it is that.
    /// Source: Istio `GetDestinationCluster`.
    pub(super) fn find(
        &self,
        scope: &Scope<'_>,
        wanted: &Destination,
        namespace: &str,
        listener: u16,
    ) -> (ClusterName, Option<Arc<Cluster>>) {
        let host = full_name(&wanted.host, namespace, &self.node.domain);
        let service = scope.find(&host);
        let only = service.and_then(|service| match service.ports.as_slice() {
            [only] => Some(only.number),
            _ => None,
        });
        let port = wanted.port.map(|port| port.number).or(only).unwrap_or(listener);
        let host = service.map_or_else(|| host.into(), |service| service.host.clone());
        let name = ClusterName { host, port, subset: wanted.subset.as_str().into() };
        let cluster = self.clusters.find(scope, &name);
        (name, cluster)
    }
}

/// Whether HTTP may come on a port of a service.
fn speaks_http(service: &Service<'_>, number: u16) -> bool {
    service.port(number).is_some_and(|port| port.protocol.is_http() || port.protocol == Protocol::Auto)
}

/// Whether a port may carry opaque bytes.
fn is_tcp(protocol: Protocol) -> bool {
    is_plain_tcp(protocol) || protocol == Protocol::Auto
}

fn is_plain_tcp(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Mongo | Protocol::MySql | Protocol::Redis)
}

/// Where hosts of rules are that are no service.
const HTTP_PORT: u16 = 80;
