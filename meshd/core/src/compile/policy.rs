//! Traffic policies: what a `DestinationRule` says, defaults put in.
//!
//! Source: Istio `MergeTrafficPolicy`, `MergeSubsetTrafficPolicy`, `applyConnectionPool`, `applyOutlierDetection`,
//! `applyLoadBalancer`, `buildUpstreamTLS`, `setUpstreamProtocol`.

use mesh_proto::registration::Protocol;
use mesh_proto::resource::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, H2UpgradePolicy,
    LoadBalancerSettings, LocalityLbSetting, MeshH2UpgradePolicy, OutlierDetection, SimpleLb, Subset,
    TrafficPolicy,
};

use super::hosts::Service;
use super::mesh::Settings;
use crate::plan::{
    Balancer, CircuitLimits, Distribution, HashKey, HashPolicy, LocalityPolicy, OutlierPolicy,
    TlsOrigination, UpstreamProtocol, UpstreamTls,
};

/// The blocks that count for one port of one subset.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effective<'a> {
    pub(super) pool: Option<&'a ConnectionPoolSettings>,
    pub(super) balancer: Option<&'a LoadBalancerSettings>,
    pub(super) outlier: Option<&'a OutlierDetection>,
    pub(super) tls: Option<&'a ClientTlsSettings>,
}

impl<'a> Effective<'a> {
    /// Takes the host's policy, then the subset's over it, block by block. The settings of a port replace all of the
    /// policy they stand in; nothing is inherited.
    pub(super) fn of(host: Option<&'a TrafficPolicy>, subset: Option<&'a Subset>, port: u16) -> Self {
        let base = host.map_or_else(Self::default, |host| Self::default().over(host, port));
        match subset.and_then(|subset| subset.traffic_policy.as_ref()) {
            Some(policy) => base.over(policy, port),
            None => base,
        }
    }

    /// Takes a connection pool alone.
    pub(super) fn of_pool(pool: &'a ConnectionPoolSettings) -> Self {
        Self { pool: Some(pool), ..Self::default() }
    }

    fn over(self, policy: &'a TrafficPolicy, port: u16) -> Self {
        let for_port = policy
            .port_level_settings
            .iter()
            .find(|settings| settings.port.is_some_and(|selector| selector.number == port));
        if let Some(settings) = for_port {
            return Self {
                pool: settings.connection_pool.as_ref(),
                balancer: settings.load_balancer.as_ref(),
                outlier: settings.outlier_detection.as_ref(),
                tls: settings.tls.as_ref(),
            };
        }
        Self {
            pool: policy.connection_pool.as_ref().or(self.pool),
            balancer: policy.load_balancer.as_ref().or(self.balancer),
            outlier: policy.outlier_detection.as_ref().or(self.outlier),
            tls: policy.tls.as_ref().or(self.tls),
        }
    }
}

/// How endpoints are chosen. Default: least request. `passthrough`: the service has no endpoints of its own.
pub(super) fn balancer(policy: &Effective<'_>, passthrough: bool) -> Balancer {
    if passthrough {
        return Balancer::Passthrough;
    }
    let Some(settings) = policy.balancer else { return Balancer::LeastRequest };
    if let Some(hash) = &settings.consistent_hash {
        return consistent_hash(hash).unwrap_or_default();
    }
    match settings.simple.unwrap_or_default() {
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => Balancer::LeastRequest,
        SimpleLb::RoundRobin => Balancer::RoundRobin,
        SimpleLb::Random => Balancer::Random,
        SimpleLb::Passthrough => Balancer::Passthrough,
    }
}

fn consistent_hash(hash: &ConsistentHashLb) -> Option<Balancer> {
    let header = || hash.http_header_name.as_ref().and_then(|name| name.parse().ok()).map(HashKey::Header);
    let cookie = || {
        hash.http_cookie.as_ref().map(|cookie| HashKey::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.map(Into::into),
        })
    };
    let source = || hash.use_source_ip.unwrap_or(false).then_some(HashKey::SourceIp);
    let query = || hash.http_query_parameter_name.clone().map(HashKey::Query);
    let policy = HashPolicy { key: header().or_else(cookie).or_else(source).or_else(query)? };
    if let Some(maglev) = &hash.maglev {
        return Some(Balancer::Maglev { policy, table_size: maglev.table_size.unwrap_or(65_537) });
    }
    let size = hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |ring| ring.minimum_ring_size);
    Some(Balancer::RingHash { policy, minimum_ring_size: size.unwrap_or(1_024) })
}

/// What locality counts for: nothing without outlier detection, unless shares are given.
pub(super) fn locality(policy: &Effective<'_>, mesh: &Settings<'_>, has_outlier: bool) -> LocalityPolicy {
    let own = policy.balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    let setting = own.or_else(|| mesh.config.and_then(|config| config.locality_lb_setting.as_ref()));
    let empty = LocalityLbSetting::default();
    let setting = setting.unwrap_or(&empty);
    if setting.enabled == Some(false) {
        return LocalityPolicy::Ignore;
    }
    if !setting.distribute.is_empty() {
        let shares = setting.distribute.iter().map(|distribute| Distribution {
            from: distribute.from.clone(),
            to: distribute.to.iter().map(|(to, share)| (to.clone(), *share)).collect(),
        });
        return LocalityPolicy::Distribute(shares.collect());
    }
    if !has_outlier {
        return LocalityPolicy::Ignore;
    }
    let regions = setting.failover.iter().map(|failover| (failover.from.clone(), failover.to.clone()));
    LocalityPolicy::Failover { regions: regions.collect() }
}

/// Limits; 0 and absent are "no limit".
pub(super) fn limits(policy: &Effective<'_>, mesh: &Settings<'_>) -> CircuitLimits {
    let mut limits = CircuitLimits { connect_timeout: mesh.connect_timeout(), ..CircuitLimits::default() };
    let keepalive = mesh.config.and_then(|config| config.tcp_keepalive.as_ref());
    let mut keepalive = keepalive;
    let at_most = |limit: i32| u32::try_from(limit).ok().filter(|limit| *limit > 0);
    if let Some(tcp) = policy.pool.and_then(|pool| pool.tcp.as_ref()) {
        limits.max_connections = at_most(tcp.max_connections);
        limits.connect_timeout = tcp.connect_timeout.map_or(limits.connect_timeout, Into::into);
        if let Some(idle) = tcp.idle_timeout {
            limits.idle_timeout = Some(idle.get()).filter(|idle| !idle.is_zero());
        }
        keepalive = tcp.tcp_keepalive.as_ref().or(keepalive);
    }
    if let Some(http) = policy.pool.and_then(|pool| pool.http.as_ref()) {
        limits.max_pending = at_most(http.http1_max_pending_requests);
        limits.max_requests = at_most(http.http2_max_requests);
        limits.max_retries = at_most(http.max_retries);
        limits.max_requests_per_connection = at_most(http.max_requests_per_connection);
        if let Some(idle) = http.idle_timeout {
            limits.idle_timeout = Some(idle.get()).filter(|idle| !idle.is_zero());
        }
    }
    limits.tcp_keepalive = keepalive.map(|keepalive| {
        let probes = (keepalive.probes > 0).then_some(keepalive.probes);
        (probes, keepalive.time.map(Into::into), keepalive.interval.map(Into::into))
    });
    limits
}

/// When endpoints are left alone; an empty block is Envoy's defaults.
pub(super) fn outlier(policy: &Effective<'_>) -> Option<OutlierPolicy> {
    let detection = policy.outlier?;
    let percent = |value: i32| u32::try_from(value).unwrap_or(0).min(100);
    Some(OutlierPolicy {
        consecutive_5xx: detection.consecutive_5xx_errors.unwrap_or(5),
        consecutive_gateway: detection.consecutive_gateway_errors.unwrap_or(0),
        interval: detection.interval.map_or(std::time::Duration::from_secs(10), Into::into),
        base_ejection: detection.base_ejection_time.map_or(std::time::Duration::from_secs(30), Into::into),
        max_ejection_percent: match detection.max_ejection_percent {
            0 => 10,
            value => percent(value),
        },
        min_health_percent: percent(detection.min_health_percent),
    })
}

/// TLS towards endpoints outside the mesh.
pub(super) fn tls(policy: &Effective<'_>, service: &Service<'_>) -> UpstreamTls {
    let Some(settings) = policy.tls else { return UpstreamTls::Disable };
    // Inside the mesh it is mutual anyway. An endpoint outside knows no mesh certificate: what was asked for as
    // ISTIO_MUTUAL must fail there, not go in plain text.
    if settings.mode == ClientTlsMode::Disable {
        return UpstreamTls::Disable;
    }
    let of_entry = || service.entry().map_or_else(Vec::new, |entry| entry.spec.subject_alt_names.clone());
    let names = &settings.subject_alt_names;
    let client =
        |file: &String| if settings.mode == ClientTlsMode::Mutual { file.clone() } else { String::new() };
    UpstreamTls::Originate(Box::new(TlsOrigination {
        sni: settings.sni.clone(),
        subject_alt_names: if names.is_empty() { of_entry() } else { names.clone() },
        ca_certificates: settings.ca_certificates.clone(),
        client_certificate: client(&settings.client_certificate),
        private_key: client(&settings.private_key),
        insecure_skip_verify: settings.insecure_skip_verify.unwrap_or(false),
    }))
}

/// What the application is spoken to in: that of the service port, whatever the client speaks.
pub(super) fn protocol(policy: &Effective<'_>, mesh: &Settings<'_>, port: Protocol) -> UpstreamProtocol {
    let http = policy.pool.and_then(|pool| pool.http.as_ref());
    if !port.is_http() && port != Protocol::Auto {
        return UpstreamProtocol::Tcp;
    }
    if http.is_some_and(|http| http.use_client_protocol) {
        return UpstreamProtocol::AsClient;
    }
    let mesh_upgrades =
        mesh.config.is_some_and(|config| config.h2_upgrade_policy == MeshH2UpgradePolicy::Upgrade);
    let upgrades = match http.map(|http| http.h2_upgrade_policy).unwrap_or_default() {
        H2UpgradePolicy::Upgrade => true,
        H2UpgradePolicy::Default => mesh_upgrades,
        H2UpgradePolicy::DoNotUpgrade => false,
    };
    match port {
        _ if port.upstream_is_http2() => UpstreamProtocol::Http2,
        Protocol::Auto => UpstreamProtocol::AsClient,
        _ if upgrades => UpstreamProtocol::Http2,
        _ => UpstreamProtocol::Http1,
    }
}
