//! `DestinationRule`: how a service is reached, and its subsets.
//!
//! Source: Istio API `networking/v1/destination_rule.proto`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::message;
use super::selector::MatchLabels;
use crate::value::{Duration, Labels, PortSelector};

message! {
    /// What holds for the traffic to one host, after a route chose it.
    pub struct DestinationRule {
        /// The host: a name, a short name, or a wildcard.
        pub host: String,
        /// What holds for all subsets and ports.
        pub traffic_policy: Option<Box<TrafficPolicy>>,
        /// Named parts of the service.
        pub subsets: Vec<Subset>,
        /// The namespaces that see the rule: `.` this one, `*` all (the default), or names.
        pub export_to: Vec<String>,
        /// The calling workloads the rule is for. Default: all.
        pub workload_selector: Option<MatchLabels>,
    }

    /// A named part of a service.
    pub struct Subset {
        /// The name routes use.
        pub name: String,
        /// Labels an instance must have.
        pub labels: Labels,
        /// What holds for this part; each block replaces the rule's.
        pub traffic_policy: Option<Box<TrafficPolicy>>,
    }

    /// How connections are made, shared and watched.
    pub struct TrafficPolicy {
        /// Which instance gets a request.
        pub load_balancer: Option<Box<LoadBalancerSettings>>,
        /// How much may be under way at once.
        pub connection_pool: Option<Box<ConnectionPoolSettings>>,
        /// When an instance is left out for a while.
        pub outlier_detection: Option<Box<OutlierDetection>>,
        /// TLS towards the service.
        pub tls: Option<Box<ClientTlsSettings>>,
        /// What holds for single ports; replaces everything above for them.
        pub port_level_settings: Vec<PortTrafficPolicy>,
        /// Sends TCP through an HTTP CONNECT proxy.
        pub tunnel: Option<Box<TunnelSettings>>,
        /// Tells the service the caller's address by the PROXY protocol.
        pub proxy_protocol: Option<ProxyProtocol>,
        /// How many retries may be under way, as a share of requests.
        pub retry_budget: Option<RetryBudget>,
    }

    /// What holds for one port.
    pub struct PortTrafficPolicy {
        /// The port.
        pub port: Option<PortSelector>,
        /// Which instance gets a request.
        pub load_balancer: Option<Box<LoadBalancerSettings>>,
        /// How much may be under way at once.
        pub connection_pool: Option<Box<ConnectionPoolSettings>>,
        /// When an instance is left out for a while.
        pub outlier_detection: Option<Box<OutlierDetection>>,
        /// TLS towards the service.
        pub tls: Option<Box<ClientTlsSettings>>,
    }

    /// A CONNECT proxy on the way.
    pub struct TunnelSettings {
        /// `CONNECT` (the default) or `POST`.
        pub protocol: String,
        /// The host the proxy should connect to.
        pub target_host: String,
        /// Its port, 1 to 65535. Must be there.
        pub target_port: u16,
    }

    /// The PROXY protocol.
    pub struct ProxyProtocol {
        /// Which version. Default: V1.
        pub version: ProxyProtocolVersion,
    }

    /// A bound on retries.
    pub struct RetryBudget {
        /// Retries under way, in percent of requests under way. Default: 20.
        pub percent: Option<f64>,
        /// The time over which requests count. Default: 0, those under way.
        pub budget_interval: Option<Duration>,
        /// Retries that are always allowed at once. Default: 3.
        pub min_retry_concurrency: u32,
    }

    /// Which instance gets a request: one of `simple` and `consistentHash`.
    pub struct LoadBalancerSettings {
        /// A rule without memory. Default: `LEAST_REQUEST`.
        pub simple: Option<SimpleLb>,
        /// The same key goes to the same instance.
        pub consistent_hash: Option<ConsistentHashLb>,
        /// Preference for instances nearby.
        pub locality_lb_setting: Option<LocalityLbSetting>,
        /// Balancing over zones by size.
        pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
        /// The former form of `warmup`. Default: no warm-up.
        pub warmup_duration_secs: Option<Duration>,
        /// New instances get their share by and by.
        pub warmup: Option<WarmupConfiguration>,
    }

    /// How new instances get their share.
    pub struct WarmupConfiguration {
        /// How long until the full share. Must be there.
        pub duration: Option<Duration>,
        /// The share at the beginning, in percent. Default: 10.
        pub minimum_percent: Option<f64>,
        /// How the share grows: 1 is a straight line. More than 0. Default: 1.
        pub aggression: Option<f64>,
    }

    /// The same key goes to the same instance. One source of the key; one kind of ring.
    pub struct ConsistentHashLb {
        /// The key is this header.
        pub http_header_name: Option<String>,
        /// The key is this cookie.
        pub http_cookie: Option<HttpCookie>,
        /// The key is the caller's address. Default: false.
        pub use_source_ip: Option<bool>,
        /// The key is this query parameter.
        pub http_query_parameter_name: Option<String>,
        /// A ring with points.
        pub ring_hash: Option<RingHash>,
        /// A Maglev table.
        pub maglev: Option<Maglev>,
        /// The former form of `ringHash.minimumRingSize`. Default: 1024; at most 8,388,608.
        pub minimum_ring_size: Option<u64>,
    }

    /// A cookie as key, made by the proxy where it has a lifetime.
    pub struct HttpCookie {
        /// The name.
        pub name: String,
        /// The path of a made cookie.
        pub path: String,
        /// The lifetime of a made cookie; 0 is a session's. Absent: no cookie is made.
        pub ttl: Option<Duration>,
        /// More attributes of a made cookie.
        pub attributes: Vec<HttpCookieAttribute>,
    }

    /// An attribute of a cookie, such as `SameSite=Strict`.
    pub struct HttpCookieAttribute {
        /// The name.
        pub name: String,
        /// The value; empty for a flag.
        pub value: String,
    }

    /// A ring with points.
    pub struct RingHash {
        /// The least number of points. Default: 1024.
        pub minimum_ring_size: Option<u64>,
    }

    /// A Maglev table.
    pub struct Maglev {
        /// The number of slots, a prime up to 5,000,011. Default: 65,537.
        pub table_size: Option<u64>,
    }

    /// Preference for instances nearby.
    pub struct LocalityLbSetting {
        /// Fixed shares by locality.
        pub distribute: Vec<LocalityDistribute>,
        /// Which region helps which.
        pub failover: Vec<LocalityFailover>,
        /// Labels that order instances by likeness.
        pub failover_priority: Vec<String>,
        /// Whether locality counts. Default: the mesh's.
        pub enabled: Option<bool>,
    }

    /// Balancing over zones by size.
    pub struct ZoneAwareLbSetting {
        /// Whether it is on. Default: true, where the setting is there.
        pub enabled: Option<bool>,
        /// Which region helps which.
        pub failover: Vec<LocalityFailover>,
        /// Labels that order instances by likeness.
        pub failover_priority: Vec<String>,
        /// The least number of instances for it, at least 1. Default: 6.
        pub min_cluster_size: Option<u64>,
    }

    /// The shares of traffic that begins in one locality.
    pub struct LocalityDistribute {
        /// Where it begins: `region/zone/subzone`, `*` at the end allowed.
        pub from: String,
        /// Where it goes: percent by locality, 100 in all.
        pub to: BTreeMap<String, u32>,
    }

    /// Which region helps which.
    pub struct LocalityFailover {
        /// The region in trouble.
        pub from: String,
        /// The region that helps.
        pub to: String,
    }

    /// How much may be under way at once.
    pub struct ConnectionPoolSettings {
        /// Connections.
        pub tcp: Option<TcpSettings>,
        /// Requests.
        pub http: Option<HttpSettings>,
    }

    /// Bounds on connections.
    pub struct TcpSettings {
        /// The most connections to the service. 0 means no bound.
        pub max_connections: i32,
        /// The time for making one. Default: 10 s.
        pub connect_timeout: Option<Duration>,
        /// Probes on idle connections.
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// The longest life of a connection. Default: no bound.
        pub max_connection_duration: Option<Duration>,
        /// How long a connection may be idle. Default: 1 h.
        pub idle_timeout: Option<Duration>,
    }

    /// Probes on idle connections.
    pub struct TcpKeepalive {
        /// How many may go unanswered. Default: the system's (Linux: 9).
        pub probes: u32,
        /// How long a connection is idle before the first. Default: the system's (Linux: 2 h).
        pub time: Option<Duration>,
        /// The time between two. Default: the system's (Linux: 75 s).
        pub interval: Option<Duration>,
    }

    /// Bounds on requests.
    pub struct HttpSettings {
        /// The most requests that wait for a connection. 0 means no bound.
        pub http1_max_pending_requests: i32,
        /// The most requests under way, HTTP/1 and 2. 0 means no bound.
        pub http2_max_requests: i32,
        /// The most requests on one connection. 0 means no bound; 1 switches keep-alive off.
        pub max_requests_per_connection: i32,
        /// The most retries under way. 0 means no bound.
        pub max_retries: i32,
        /// How long a connection may be without a request. Default: 1 h.
        pub idle_timeout: Option<Duration>,
        /// Whether HTTP/1.1 becomes HTTP/2 on the way. Default: as the `MeshConfig` says.
        pub h2_upgrade_policy: H2UpgradePolicy,
        /// Whether the caller's protocol is kept. Default: false.
        pub use_client_protocol: bool,
        /// The most requests at once on one HTTP/2 connection. 0 means no bound.
        pub max_concurrent_streams: i32,
        /// Pings on HTTP/2 connections.
        pub http2_keep_alive: Option<Http2KeepAlive>,
    }

    /// Pings on HTTP/2 connections.
    pub struct Http2KeepAlive {
        /// The time between two. Must be there.
        pub interval: Option<Duration>,
        /// How long an answer may take. Must be there.
        pub timeout: Option<Duration>,
    }

    /// When an instance is left out for a while.
    pub struct OutlierDetection {
        /// Failures in a row: the former form of `consecutive5xxErrors`, which Istio no longer reads.
        pub consecutive_errors: i32,
        /// Whether failures to connect are counted apart. Default: false.
        pub split_external_local_origin_errors: bool,
        /// Failures to connect in a row, where counted apart. Default: 5.
        pub consecutive_local_origin_failures: Option<u32>,
        /// 502, 503, 504 and failures to connect in a row. Absent or 0: not counted.
        pub consecutive_gateway_errors: Option<u32>,
        /// 5xx and failures to connect in a row. Default: 5; 0: not counted.
        #[serde(rename = "consecutive5xxErrors")]
        pub consecutive_5xx_errors: Option<u32>,
        /// How often instances are looked at. Default: 10 s.
        pub interval: Option<Duration>,
        /// How long an instance is left out, times the number of times so far. Default: 30 s.
        pub base_ejection_time: Option<Duration>,
        /// The most instances left out, in percent. 0 means the default: 10.
        pub max_ejection_percent: i32,
        /// Below this share of healthy instances all are used. Default: 0, never.
        pub min_health_percent: i32,
        /// The statuses that count as failures.
        pub outlier_detection_http_error_codes: Vec<u32>,
    }

    /// TLS towards a service.
    pub struct ClientTlsSettings {
        /// What kind. Default: none.
        pub mode: ClientTlsMode,
        /// The file with our certificate, for `MUTUAL`.
        pub client_certificate: String,
        /// The file with its key, for `MUTUAL`.
        pub private_key: String,
        /// The file with the roots to trust. Default: the system's.
        pub ca_certificates: String,
        /// A secret that holds all of them (gateways only).
        pub credential_name: String,
        /// The names the service's certificate may show.
        pub subject_alt_names: Vec<String>,
        /// The server name to ask for.
        pub sni: String,
        /// Whether the service's certificate is not checked. Default: false.
        pub insecure_skip_verify: Option<bool>,
        /// The file with certificates taken back.
        pub ca_crl: String,
    }
}

/// A balancing rule without memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The mesh's choice: `LeastRequest`.
    #[default]
    Unspecified,
    /// The former name of `LeastRequest`.
    LeastConn,
    /// Any healthy instance.
    Random,
    /// The address the caller dialled.
    Passthrough,
    /// One after the other.
    RoundRobin,
    /// The less busy of two drawn at random.
    LeastRequest,
}

/// Whether HTTP/1.1 becomes HTTP/2 on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh's choice.
    #[default]
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

/// What kind of TLS is spoken to a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// None.
    #[default]
    Disable,
    /// The service shows a certificate.
    Simple,
    /// Both sides show one, ours from files.
    Mutual,
    /// Both sides show the mesh's.
    IstioMutual,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProxyProtocolVersion {
    /// Text.
    #[default]
    V1,
    /// Binary.
    V2,
}
