//! Clusters: what one may send to, under which limits, and the endpoints behind it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;
use mesh_proto::resource::{LocalityLbSetting, ObjectKey};

use super::origination::UpstreamTls;
use super::{Locality, Party, Shared};
use crate::endpoint::EndpointState;
use crate::identity::Identity;

/// Host, port and subset of a cluster. Prints as Istio names it: `outbound|PORT|SUBSET|HOST`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName {
    /// Full host name.
    pub host: Arc<str>,
    /// Service port.
    pub port: u16,
    /// Subset, empty for all instances.
    pub subset: Arc<str>,
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound|{}|{}|{}", self.port, self.subset, self.host)
    }
}

/// Something one may send to.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// What the application behind it speaks.
    pub protocol: UpstreamProtocol,
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// Its endpoints in a fixed order (host id, instance id), ready to be chosen from.
    pub endpoints: Arc<crate::balance::EndpointSet>,
    /// Limits and timeouts.
    pub limits: Shared<CircuitLimits>,
    /// When an endpoint is left alone for a while.
    pub outlier: Option<Shared<OutlierPolicy>>,
    /// TLS towards the application; between hosts of the mesh the hop is mutual TLS besides.
    pub tls: UpstreamTls,
    /// Whether each connection begins by telling who called.
    pub proxy_protocol: Option<ProxyVersion>,
    /// TCP connections go through an HTTP proxy, which the endpoints are; `None`: straight to them.
    pub detour: Option<Box<Detour>>,
    /// New endpoints get their share by and by; `None`: at once.
    pub warmup: Option<Warmup>,
    /// The same with an endpoint for each address of a name; `None` where no endpoint is a name.
    pub resolved: Option<Arc<super::Resolved>>,
    /// Counters that outlive the Plan.
    pub state: Arc<ClusterState>,
    /// The `DestinationRule`s that shaped it.
    pub origins: Arc<[ObjectKey]>,
}

/// What locality counts for when an endpoint is chosen.
///
/// Prepared into the [`EndpointSet`](crate::balance::EndpointSet); a Plan is only read by the set it made.
/// Source: Istio `localityLbSetting`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalityPolicy {
    /// Nothing: all endpoints are alike. The default, and always so without outlier detection and `distribute`.
    #[default]
    Ignore,
    /// Near endpoints first, the next nearer ones when too few of them are well. Only with outlier detection.
    Failover {
        /// `(from, to)`: callers of region `from` go to region `to` before any other.
        regions: Vec<(String, String)>,
    },
    /// As `failoverPriority` orders the endpoints, by labels they share with the caller. Only with outlier detection.
    Priority {
        /// The rank of each endpoint, in their order; 0 is the first.
        ranks: Vec<u32>,
        /// With rules for regions, the nearness within one rank.
        regions: Option<Vec<(String, String)>>,
    },
    /// Fixed shares.
    Distribute(Vec<Distribution>),
    /// The own region first, and there the own zone as far as every endpoint still gets its even share.
    Zones(Box<ZonePolicy>),
}

/// How zones count.
///
/// Source: Istio `zoneAwareLbSetting`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZonePolicy {
    /// How many instances like the caller there are where.
    pub sources: Vec<(Locality, u32)>,
    /// With fewer endpoints in the own region zones do not count (`minClusterSize`). Default 6, Envoy's.
    pub least: u64,
    /// `(from, to)`: callers of region `from` go to region `to` before any other.
    pub regions: Vec<(String, String)>,
    /// The rank of each endpoint as `failoverPriority` orders them, where it does.
    pub ranks: Option<Vec<u32>>,
}

impl LocalityPolicy {
    /// Reads the setting of a `DestinationRule`, or without one that of the mesh.
    ///
    /// `watched`: the cluster has outlier detection; without it nothing but fixed shares counts. With it failover is
    /// on by default. Labels that order instances (`failoverPriority`) are not read here.
    /// Source: Istio `GetLocalityLbSetting`, `ApplyLocalityLoadBalancer`.
    pub fn of(rule: Option<&LocalityLbSetting>, mesh: Option<&LocalityLbSetting>, watched: bool) -> Self {
        let setting = rule.or(mesh);
        if setting.is_some_and(|setting| setting.enabled == Some(false)) {
            return Self::Ignore;
        }
        let rules = setting.map_or(&[][..], |setting| &setting.distribute);
        if !rules.is_empty() {
            let shares =
                |to: &BTreeMap<String, u32>| to.iter().map(|(to, share)| (to.clone(), *share)).collect();
            let rules =
                rules.iter().map(|rule| Distribution { from: rule.from.clone(), to: shares(&rule.to) });
            return Self::Distribute(rules.collect());
        }
        if !watched {
            return Self::Ignore;
        }
        let regions = setting.map_or(&[][..], |setting| &setting.failover);
        Self::Failover { regions: regions.iter().map(|rule| (rule.from.clone(), rule.to.clone())).collect() }
    }
}

/// The shares of traffic that begins in one locality.
///
/// Localities are written `region/zone/subzone`; `*` or a missing part stands for any.
/// Source: Istio `localityLbSetting.distribute`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Where it begins.
    pub from: String,
    /// Where it goes and how much of it; localities that are not named get nothing.
    pub to: Vec<(String, u32)>,
}

/// What is spoken to the application behind a cluster.
///
/// Source: Istio `setUpstreamProtocol`: that of the service port, whatever the client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// The client's own version (`useClientProtocol`, and undeclared ports).
    AsClient,
    /// Opaque bytes.
    Tcp,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default)]
pub enum Balancer {
    /// The less busy of two drawn at random. The default, as in Istio.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// To where the connection was going.
    Passthrough,
    /// To the name that each request asks for, resolved then (`DYNAMIC_DNS`).
    ByName {
        /// The port there.
        port: u16,
    },
    /// By a ring of hashes.
    RingHash {
        /// What is hashed.
        policy: Box<HashPolicy>,
        /// At least this many points on the ring. Default 1,024.
        minimum_ring_size: u64,
    },
    /// By a Maglev table.
    Maglev {
        /// What is hashed.
        policy: Box<HashPolicy>,
        /// Size of the table, a prime. Default 65,537.
        table_size: u64,
    },
}

/// What consistent hashing looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// The key.
    pub key: HashKey,
}

/// The key of consistent hashing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// A request header.
    Header(http::HeaderName),
    /// What stands in the request line, or in its place in HTTP/2.
    Head(HeadPart),
    /// A cookie; with a `ttl` it is made where absent (0: a session cookie).
    Cookie {
        /// Its name.
        name: String,
        /// Its path, may be empty.
        path: String,
        /// Its lifetime; `None`: never made.
        ttl: Option<Duration>,
        /// Further attributes of one that is made, ready to be written: `; SameSite=Strict; Secure`.
        attributes: String,
    },
    /// The caller's address.
    SourceIp,
    /// A query parameter.
    Query(String),
}

/// A part of a request's head that is no field of it. Source: Envoy, which has them among its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPart {
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`, `host`.
    Authority,
    /// `:path`, with its query.
    Path,
}

/// Limits of a cluster; `None` is "no limit", Istio's default.
///
/// Source: Istio `connectionPool`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CircuitLimits {
    /// Connections to all endpoints together (`tcp.maxConnections`).
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection, including one being opened (`http1MaxPendingRequests`).
    pub max_pending: Option<u32>,
    /// Requests in flight (`http2MaxRequests`; bounds HTTP/1.1 too).
    pub max_requests: Option<u32>,
    /// Retries in flight (`maxRetries`).
    pub max_retries: Option<u32>,
    /// Bounds retries instead of `max_retries`, where a rule sets it.
    pub retry_budget: Option<RetryBudget>,
    /// Requests on one connection before it is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Requests at once on one HTTP/2 connection to the application (`maxConcurrentStreams`).
    pub max_concurrent_streams: Option<u32>,
    /// Default 10 s, Istio's.
    pub connect_timeout: Duration,
    /// Idle connections are closed after this. Default 1 h, Envoy's; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// TCP connections on which neither end says anything are closed after this. Default 1 h; `None`: never.
    pub tcp_idle_timeout: Option<Duration>,
    /// Connections get no new requests after this, and TCP is cut (`maxConnectionDuration`).
    pub max_connection_duration: Option<Duration>,
    /// Pings on HTTP/2 connections: how often, and how long an answer may take (`http2KeepAlive`).
    pub http2_keep_alive: Option<(Duration, Duration)>,
    /// TCP keepalive: probes, idle time, interval.
    pub tcp_keepalive: Option<(Option<u32>, Option<Duration>, Option<Duration>)>,
}

impl Default for CircuitLimits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_pending: None,
            max_requests: None,
            max_retries: None,
            retry_budget: None,
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_hours(1)),
            tcp_idle_timeout: Some(Duration::from_hours(1)),
            max_connection_duration: None,
            http2_keep_alive: None,
            tcp_keepalive: None,
        }
    }
}

/// How many retries may be under way, as a share of the requests.
///
/// Source: Istio `retryBudget`; Envoy's `retry_budget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// The share, in parts of a million. Default 200,000.
    pub parts_per_million: u32,
    /// This many are always allowed. Default 3.
    pub at_least: u32,
    /// Requests begun in this time count; zero: those under way or waiting. Default zero.
    pub interval: Duration,
}

/// How a new endpoint comes to its share.
///
/// Source: Istio `warmup`; Envoy's `slow_start_config`: weight × max(minimum, (age / duration) ^ (1 / aggression)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// How long until the full share.
    pub duration: Duration,
    /// The share at the beginning, 0 to 1. Default 0.1.
    pub minimum: f64,
    /// 1: the share grows evenly; more: faster at the beginning. Default 1.
    pub aggression: f64,
}

/// What an HTTP proxy on the way is asked for.
///
/// Source: Istio `tunnel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detour {
    /// Host and port where it should lead.
    pub authority: String,
    /// By `POST` instead of `CONNECT`.
    pub post: bool,
    /// Over HTTP/2 (`h2UpgradePolicy: UPGRADE`).
    pub http2: bool,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// When an endpoint is left alone for a while.
///
/// Source: Istio `outlierDetection`; Envoy's `outlier_detection`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutlierPolicy {
    /// 5xx (or no answer) in a row that eject; 0: off. Default 5.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 or failed connections in a row that eject; 0: off. Default 0.
    pub consecutive_gateway: u32,
    /// Failures to connect and to be heard, in a row, that eject; where set they are counted apart from 5xx. 0: off.
    pub consecutive_local: Option<u32>,
    /// The statuses that are failures; empty: 5xx. Others are successes then.
    pub error_codes: Vec<u16>,
    /// Between two sweeps that let endpoints return. Default 10 s.
    pub interval: Duration,
    /// First ejection; the n-th lasts n times as long. Default 30 s.
    pub base_ejection: Duration,
    /// At most this share may be ejected, in percent. Default 10.
    pub max_ejection_percent: u32,
    /// Below this share of healthy endpoints, ejections are ignored, in percent. Default 0.
    pub min_health_percent: u32,
}

/// One address that a cluster may send to.
///
/// What the mesh says of it is the same in every cluster that has it (all instances, and subsets) and held once; what is
/// known of it at run time is each cluster's own.
#[derive(Clone, Debug)]
pub struct Endpoint {
    facts: Shared<EndpointFacts>,
    /// What is known of it at run time.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// Makes one of which nothing is known at run time yet.
    pub fn new(facts: impl Into<Shared<EndpointFacts>>) -> Self {
        Self { facts: facts.into(), state: Arc::default() }
    }

    /// Makes one that goes on with what is known at run time.
    pub(crate) fn with_state(facts: Shared<EndpointFacts>, state: Arc<EndpointState>) -> Self {
        Self { facts, state }
    }

    /// Returns the same with other facts.
    #[must_use]
    pub fn but(mut self, change: impl FnOnce(&mut EndpointFacts)) -> Self {
        change(&mut self.facts);
        self
    }
}

impl Deref for Endpoint {
    type Target = EndpointFacts;

    fn deref(&self) -> &EndpointFacts {
        &self.facts
    }
}

impl DerefMut for Endpoint {
    fn deref_mut(&mut self) -> &mut EndpointFacts {
        &mut self.facts
    }
}

/// What the mesh says of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// `instance@host`, unique in its cluster: what state is carried over by.
    pub id: Arc<str>,
    /// How it is reached.
    pub via: Via,
    /// Share among its cluster. 0: none.
    pub weight: u32,
    /// What many have in common.
    pub traits: Shared<Traits>,
    /// Its health check's word.
    pub health: Health,
    /// Whether its host answers.
    pub liveness: Liveness,
}

/// A mesh has them by the hundred thousand.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<EndpointFacts>() <= 80);

impl EndpointFacts {
    /// A healthy endpoint of weight 1 of which nothing else is known.
    pub fn new(id: impl Into<Arc<str>>, via: Via) -> Self {
        Self {
            id: id.into(),
            via,
            weight: 1,
            traits: Shared::default(),
            health: Health::Healthy,
            liveness: Liveness::Live,
        }
    }
}

/// What the mesh says of many endpoints alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Traits {
    /// Where they are.
    pub locality: Arc<Locality>,
    /// Who is there, where the mesh knows.
    pub party: Party,
    /// Their `version` label, for metrics; may be empty.
    pub version: Arc<str>,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// An instance on this host: straight to its socket.
    Local(SocketAddr),
    /// An instance on another host: over mutual TLS to that host's mesh port.
    Mesh {
        /// Which port of which host, and who must answer there; all instances of one account on a host have it.
        to: Arc<HopTo>,
        /// SNI of the hop, `outbound_.PORT_._.HOST`.
        sni: Arc<str>,
        /// The instance on that host.
        instance: Arc<str>,
    },
    /// Outside the mesh: plain, or TLS by the cluster's setting.
    Plain(SocketAddr),
    /// A unix socket of the calling host: its path; `@NAME` in the abstract namespace.
    Socket(Arc<str>),
    /// Outside the mesh, by a name that DNS resolves.
    Name {
        /// Host name.
        host: Arc<str>,
        /// Port.
        port: u16,
        /// Whether each of its addresses is an endpoint of its own (see [`Resolved`](super::Resolved)); else
        /// connections go to the first that answers.
        spread: bool,
    },
}

/// The other end of a hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HopTo {
    /// The host's mesh port.
    pub hop: SocketAddr,
    /// Whom the certificate must name.
    pub identity: Arc<Identity>,
}

impl fmt::Display for Via {
    /// As logs name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(address) | Self::Plain(address) => address.fmt(f),
            Self::Socket(path) => f.write_str(path),
            Self::Mesh { to, instance, .. } => write!(f, "{}/{instance}", to.hop),
            Self::Name { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

/// Counters of a cluster over all workers; outlives the Plan.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// Connections open or being opened.
    pub connections: AtomicU32,
    /// Requests waiting for a connection.
    pub pending: AtomicU32,
    /// Requests in flight.
    pub requests: AtomicU32,
    /// Retries in flight.
    pub retries: AtomicU32,
    /// Endpoints ejected now.
    pub ejected: AtomicU32,
    /// Grows with every ejection and return: what was counted before is out of date.
    pub ejection_epoch: AtomicU32,
    /// Endpoints that have returned since that was last told of.
    pub returned: AtomicU32,
    /// When endpoints are next allowed to return, [`Moment`](crate::endpoint::Moment) in milliseconds; 0: not yet set.
    pub next_sweep: AtomicU64,
    /// Turn of the round robin.
    pub turn: AtomicU64,
    /// When endpoints that have come are next looked for, [`Moment`](crate::endpoint::Moment) in milliseconds.
    pub next_arrivals: AtomicU64,
    /// Requests begun in the interval of the retry budget that has begun (low half) and in the one before (high half).
    pub begun: AtomicU64,
    /// When that interval began, [`Moment`](crate::endpoint::Moment) in milliseconds.
    pub begun_since: AtomicU64,
    /// Requests refused because a limit was reached.
    pub overflows: AtomicU64,
}
