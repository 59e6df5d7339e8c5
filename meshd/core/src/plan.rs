//! What one host does about the World: compiled, immutable, swapped whole.
//!
//! `compile` makes a [`Plan`]; the proxy, DNS, `explain` and the admin views read it. A request sees one Plan from
//! its first byte to its access log. The few facts that must outlive a Plan (requests in flight, ejections)
//! hang on it as `Arc`s of atomics ([`EndpointState`](crate::endpoint::EndpointState), [`ClusterState`]) and are carried over.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use ipnet::IpNet;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::registration::Protocol;
use mesh_proto::value::Labels;

use crate::parted::PartedMap;

pub use cluster::{
    Balancer, CircuitLimits, Cluster, ClusterName, ClusterState, Detour, Distribution, Endpoint,
    EndpointFacts, HashKey, HashPolicy, HeadPart, HopTo, LocalityPolicy, OutlierPolicy, ProxyVersion,
    RetryBudget, Traits, UpstreamProtocol, Via, Warmup, ZonePolicy,
};
pub use doors::{Credential, Door, DoorKind, Doors, GatewayDoor, Inside, Roots, ServerTls, TlsServer};
pub use hosts::HostTable;
pub use inbound::{Inbound, LocalInstance, LocalPort};
pub use origination::{TlsMaterial, TlsOrigination, UpstreamTls};
pub use party::{Field as PartyField, Party};
pub use resolved::{Answers, Named, Resolved};
pub use route::{
    Abort, Action, Cors, Delay, DirectResponse, Fault, Forward, HeaderOps, HeaderRules, HeaderTarget,
    HeaderTemplate, Matcher, Mirror, Origin, PathMatch, PortSource, Redirect, RetryOn, RetryPolicy, Rewrite,
    Route, Shown, TemplatePart, ValueMatch, Variable, WeightedCluster,
};
pub use shared::Shared;
pub use telling::{
    Carrier, Collector, LogTarget, Logging, METRICS, Metering, Metric, MetricRule, TagSource, Telling,
    Tracing, WantedHeaders,
};

mod cluster;
mod doors;
mod hosts;
mod inbound;
mod origination;
mod party;
mod resolved;
mod route;
mod shared;
mod telling;

/// The World as seen from one host, ready to be followed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The revision it was compiled from.
    pub revision: Revision,
    /// Whose Plan it is.
    pub node: Arc<Node>,
    /// What each caller of [`Node::callers`] may do, by the caller's position there.
    pub outbounds: Vec<Arc<Outbound>>,
    /// The listeners that rules ask for.
    pub doors: Arc<Doors>,
    /// What other hosts may ask of the instances here.
    pub inbound: Arc<Inbound>,
    /// What DNS answers.
    pub names: Arc<Names>,
    /// Every cluster of every caller, by name: for views, and to carry state into the next Plan.
    pub clusters: PartedMap<ClusterName, Arc<Cluster>>,
    /// Clusters whose endpoints are names: whoever asks DNS puts the answers there.
    pub named: Named,
    /// What could not be carried out although it was accepted, `object: reason`. Told to the servers.
    pub problems: Vec<String>,
    /// What the next Plan may share with this one.
    pub memory: crate::compile::Memory,
    /// The hosts and instances it was made of, by which the next Plan knows which endpoints are new.
    pub seen: crate::compile::Seen,
}

/// Who this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its id in the mesh.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// DNS suffix of services, `cluster.local` by default.
    pub domain: String,
    /// `region/zone/subzone`.
    pub locality: Locality,
    /// Labels of the host.
    pub labels: Labels,
    /// Who calls from here: position 0 is the host's own default, then the workloads named by listeners and the
    /// accounts of local instances. Distinct.
    pub callers: Vec<Workload>,
}

/// A caller, as rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// Namespace: short names in its calls resolve here.
    pub namespace: String,
    /// Service account: the last part of its SPIFFE id.
    pub account: String,
    /// Labels that `sourceLabels` match.
    pub labels: Labels,
    /// Its locality; empty: the host's.
    pub locality: Locality,
}

/// `region/zone/subzone`; each part may be empty, from the right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone within the region.
    pub zone: String,
    /// Subzone within the zone.
    pub subzone: String,
}

impl Locality {
    /// Reads `region/zone/subzone`; missing parts are empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.subzone);
        f.write_str(text.trim_end_matches('/'))
    }
}

/// What one caller's connections and requests may reach.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// The caller.
    pub caller: Workload,
    /// What happens to traffic for hosts that nobody has declared.
    pub unknown: UnknownHosts,
    /// Where such traffic goes instead of where it was going (`egressProxy`).
    pub egress_proxy: Option<Arc<ServicePort>>,
    /// How the paths of requests are brought to one form.
    pub paths: Normalization,
    /// What is told of the caller's traffic.
    pub telling: Arc<Telling>,
    /// For the first bytes on a port whose protocol nobody declared; `None`: as this host is set.
    pub sniff: Option<std::time::Duration>,
    /// What is on each service port, for requests chosen by Host or SNI.
    pub ports: HashMap<u16, Arc<PortTable>>,
    /// What is behind each virtual or declared address and port.
    pub addresses: PartedMap<(IpAddr, u16), Arc<ServicePort>>,
    /// What is behind address ranges (`addresses: [10.0.0.0/8]` of a `ServiceEntry`), most specific first.
    pub ranges: Vec<(IpNet, u16, Arc<ServicePort>)>,
}

impl Outbound {
    /// Brings the ranges in the order in which they are looked through.
    pub(crate) fn sort_ranges(&mut self) {
        self.ranges.sort_by(|(net, port, to), (other_net, other_port, other)| {
            let longest_first = other_net.prefix_len().cmp(&net.prefix_len());
            longest_first.then_with(|| (net, port, &to.host).cmp(&(other_net, other_port, &other.host)))
        });
    }
}

/// What happens to traffic for hosts that nobody has declared.
///
/// Source: Istio `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownHosts {
    /// It goes where it was going (`ALLOW_ANY`, the default).
    #[default]
    Allow,
    /// HTTP: 502; TCP: closed (`REGISTRY_ONLY`).
    Refuse,
    /// HTTP: 404; TCP: closed. A gateway knows its hosts and no others.
    NotFound,
}

/// How the paths of requests are brought to one form before rules see them.
///
/// Source: Istio `MeshConfig.pathNormalization`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// Not at all.
    None,
    /// Dots, backslashes and escapes of plain characters are resolved. The default.
    #[default]
    Base,
    /// And several slashes are one.
    MergeSlashes,
    /// And escaped slashes are slashes.
    DecodeAndMergeSlashes,
}

/// Everything on one service port.
#[derive(Clone, Debug, Default)]
pub struct PortTable {
    /// The service port.
    pub number: u16,
    /// Virtual hosts, chosen by the Host of a request.
    pub http: HostTable<VirtualHost>,
    /// TLS services, chosen by SNI.
    pub tls: HostTable<TlsHost>,
    /// What a connection gets whose address says nothing (explicit listeners): the TCP service of this port, the
    /// first by name where there are several.
    pub tcp: Option<Arc<ServicePort>>,
}

impl PortTable {
    /// Whether a connection to this port may carry HTTP (its Host then decides).
    pub fn has_http(&self) -> bool {
        !self.http.is_empty()
    }
}

/// One host of HTTP requests on one port.
#[derive(Clone, Debug, Default)]
pub struct VirtualHost {
    /// Its full name, for views and metrics.
    pub host: String,
    /// The service port.
    pub port: u16,
    /// Its routes, the first that matches counts.
    pub routes: Vec<Arc<Route>>,
    /// Stands for the rules and services it was made of: with the same stamp and the same clusters it is the same.
    pub stamp: u64,
}

/// One host of TLS connections that are passed through.
#[derive(Clone, Debug)]
pub struct TlsHost {
    /// Its full name.
    pub host: String,
    /// Where its connections go.
    pub rules: TcpRules,
}

/// A port of a service, found by address.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Full host name of the service.
    pub host: String,
    /// The service port.
    pub number: u16,
    /// What is spoken: decides whether HTTP rules, SNI or TCP rules apply.
    pub protocol: Protocol,
    /// What TCP connections do (also those sniffed to be neither HTTP nor TLS).
    pub tcp: TcpRules,
}

/// Where the connections of a TCP service or SNI host go: the first rule that applies counts.
#[derive(Clone, Debug, Default)]
pub struct TcpRules {
    /// In order. The last one usually has no condition.
    pub rules: Vec<TcpRule>,
}

/// One rule for connections. Conditions on the caller were decided when compiling.
#[derive(Clone, Debug)]
pub struct TcpRule {
    /// The original destination must lie in one of these; empty: any.
    pub destination_subnets: Vec<IpNet>,
    /// Where connections go, by weight. Never empty; clusters without a definition close the connection.
    pub destinations: Vec<WeightedCluster>,
    /// Who says so.
    pub origin: Origin,
}

/// What DNS answers for the mesh.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Lower-case names without trailing dot, every spelling that callers here may use, to their addresses.
    pub exact: PartedMap<Box<str>, Arc<[IpAddr]>>,
    /// Suffixes of wildcard `ServiceEntry` hosts that have addresses, longest first: `(".example.com", …)`.
    pub wildcard: Vec<(Box<str>, Arc<[IpAddr]>)>,
}

impl Names {
    /// Finds the addresses of a name (lower case, no trailing dot), of both families.
    pub fn find(&self, name: &str) -> Option<&Arc<[IpAddr]>> {
        self.exact.get(name).or_else(|| {
            let fits = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
            self.wildcard.iter().find(|(suffix, _)| fits(suffix)).map(|(_, addresses)| addresses)
        })
    }
}
