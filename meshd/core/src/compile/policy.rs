//! Traffic policies: what a `DestinationRule` says, defaults put in.
//!
//! Source: Istio `MergeTrafficPolicy`, `MergeSubsetTrafficPolicy`, `applyConnectionPool`, `applyOutlierDetection`,
//! `applyLoadBalancer`, `buildUpstreamTLS`, `setUpstreamProtocol`.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_proto::registration::Protocol;
use mesh_proto::resource::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule,
    H2UpgradePolicy, HttpCookie, LoadBalancerSettings, LocalityFailover, LocalityLbSetting, MeshConfig,
    MeshH2UpgradePolicy, OutlierDetection, ProxyProtocol, ProxyProtocolVersion, Resolution, SimpleLb, Subset,
    TrafficPolicy, TunnelSettings, ZoneAwareLbSetting,
};

use super::hosts::{Entry, Port, Service};
use super::mesh::Settings;
use crate::identity::sni;
use crate::plan::{
    Balancer, CircuitLimits, ClusterName, Detour, Distribution, HashKey, HashPolicy, HeadPart, Locality,
    LocalityPolicy, OutlierPolicy, ProxyVersion, RetryBudget, TlsMaterial, TlsOrigination, UpstreamProtocol,
    UpstreamTls, Warmup, ZonePolicy,
};

/// The blocks that count for one port of one subset.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effective<'a> {
    pub(super) pool: Option<&'a ConnectionPoolSettings>,
    pub(super) balancer: Option<&'a LoadBalancerSettings>,
    pub(super) outlier: Option<&'a OutlierDetection>,
    pub(super) tls: Option<&'a ClientTlsSettings>,
    proxy_protocol: Option<&'a ProxyProtocol>,
    tunnel: Option<&'a TunnelSettings>,
    retry_budget: Option<&'a mesh_proto::resource::RetryBudget>,
}

impl<'a> Effective<'a> {
    /// Takes the host's policy, then the subset's over it, block by block. The settings of a port replace all of the
    /// policy they stand in; of what they have a field for, nothing is inherited.
    pub(super) fn of(host: Option<&'a TrafficPolicy>, subset: Option<&'a Subset>, port: u16) -> Self {
        let base = host.map_or_else(Self::default, |host| Self::default().over(host, port));
        match subset.and_then(|subset| subset.traffic_policy.as_deref()) {
            Some(policy) => base.over(policy, port),
            None => base,
        }
    }

    /// Takes a connection pool alone.
    pub(super) fn of_pool(pool: &'a ConnectionPoolSettings) -> Self {
        Self { pool: Some(pool), ..Self::default() }
    }

    fn over(self, policy: &'a TrafficPolicy, port: u16) -> Self {
        let proxy_protocol = policy.proxy_protocol.as_ref().or(self.proxy_protocol);
        let retry_budget = policy.retry_budget.as_ref().or(self.retry_budget);
        let tunnel = policy.tunnel.as_deref().or(self.tunnel);
        let for_port = policy
            .port_level_settings
            .iter()
            .find(|settings| settings.port.is_some_and(|selector| selector.number == port));
        if let Some(settings) = for_port {
            return Self {
                pool: settings.connection_pool.as_deref(),
                balancer: settings.load_balancer.as_deref(),
                outlier: settings.outlier_detection.as_deref(),
                tls: settings.tls.as_deref(),
                proxy_protocol,
                tunnel,
                retry_budget,
            };
        }
        Self {
            pool: policy.connection_pool.as_deref().or(self.pool),
            balancer: policy.load_balancer.as_deref().or(self.balancer),
            outlier: policy.outlier_detection.as_deref().or(self.outlier),
            tls: policy.tls.as_deref().or(self.tls),
            proxy_protocol,
            tunnel,
            retry_budget,
        }
    }
}

/// How endpoints are chosen. Default: least request. A service without endpoints of its own has its own way.
pub(super) fn balancer(policy: &Effective<'_>, service: &Service<'_>, port: &Port) -> Balancer {
    match service.entry().map(|entry| entry.spec.resolution()) {
        Some(Resolution::None) => return Balancer::Passthrough,
        Some(Resolution::DynamicDns) => return Balancer::ByName { port: port.target },
        _ => {}
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
    let header = || hash.http_header_name.as_deref().and_then(header_key);
    let cookie = || {
        hash.http_cookie.as_ref().map(|cookie| HashKey::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl: cookie.ttl.map(Into::into),
            attributes: attributes(cookie),
        })
    };
    let source = || hash.use_source_ip.unwrap_or(false).then_some(HashKey::SourceIp);
    let query = || hash.http_query_parameter_name.clone().map(HashKey::Query);
    let policy = Box::new(HashPolicy { key: header().or_else(cookie).or_else(source).or_else(query)? });
    if let Some(maglev) = &hash.maglev {
        return Some(Balancer::Maglev { policy, table_size: maglev.table_size.unwrap_or(65_537) });
    }
    let size = hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |ring| ring.minimum_ring_size);
    Some(Balancer::RingHash { policy, minimum_ring_size: size.unwrap_or(1_024) })
}

fn header_key(name: &str) -> Option<HashKey> {
    Some(match name.to_ascii_lowercase().as_str() {
        ":method" => HashKey::Head(HeadPart::Method),
        ":scheme" => HashKey::Head(HeadPart::Scheme),
        ":authority" | "host" => HashKey::Head(HeadPart::Authority),
        ":path" => HashKey::Head(HeadPart::Path),
        field => HashKey::Header(field.parse().ok()?),
    })
}

/// Writes the attributes of a made cookie. One that could end the header or begin another attribute is left out.
fn attributes(cookie: &HttpCookie) -> String {
    let sound = |text: &str| text.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b';');
    let sound = cookie.attributes.iter().filter(|one| sound(&one.name) && sound(&one.value));
    let written = sound.map(|one| match one.value.as_str() {
        "" => format!("; {}", one.name),
        value => format!("; {}={value}", one.name),
    });
    written.collect()
}

/// How new endpoints come to their share. Only with balancers that look at weights; Envoy ignores it elsewhere.
pub(super) fn warmup(policy: &Effective<'_>, balancer: &Balancer) -> Option<Warmup> {
    let settings = policy.balancer?;
    if !matches!(balancer, Balancer::LeastRequest | Balancer::RoundRobin) {
        return None;
    }
    let warmup = settings.warmup.as_ref();
    let duration = warmup.and_then(|warmup| warmup.duration).or(settings.warmup_duration_secs)?.get();
    Some(Warmup {
        duration,
        minimum: warmup.and_then(|warmup| warmup.minimum_percent).unwrap_or(10.0).clamp(0.0, 100.0) / 100.0,
        aggression: warmup.and_then(|warmup| warmup.aggression).filter(|value| *value > 0.0).unwrap_or(1.0),
    })
}

/// The HTTP proxy that TCP goes through.
pub(super) fn detour(policy: &Effective<'_>) -> Option<Detour> {
    let tunnel = policy.tunnel?;
    let host = match tunnel.target_host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => tunnel.target_host.clone(),
    };
    let http = policy.pool.and_then(|pool| pool.http.as_ref());
    Some(Detour {
        authority: format!("{host}:{}", tunnel.target_port),
        post: tunnel.protocol == "POST",
        http2: http.is_some_and(|http| http.h2_upgrade_policy == H2UpgradePolicy::Upgrade),
    })
}

/// Whether connections begin with a header that says who calls.
pub(super) fn proxy_protocol(policy: &Effective<'_>) -> Option<ProxyVersion> {
    Some(match policy.proxy_protocol?.version {
        ProxyProtocolVersion::V1 => ProxyVersion::V1,
        ProxyProtocolVersion::V2 => ProxyVersion::V2,
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 to 100 percent")]
fn retry_budget(budget: &mesh_proto::resource::RetryBudget) -> RetryBudget {
    RetryBudget {
        parts_per_million: (budget.percent.unwrap_or(20.0).clamp(0.0, 100.0) * 10_000.0) as u32,
        at_least: if budget.min_retry_concurrency == 0 { 3 } else { budget.min_retry_concurrency },
        interval: budget.budget_interval.map(Into::into).unwrap_or_default(),
    }
}

/// What locality counts for: nothing without outlier detection, unless shares are given.
///
/// `ranks` are those of the endpoints by [`failover_priority`]; empty where that asks for none. `sources` is how many
/// instances like the caller there are where.
pub(super) fn locality(
    policy: &Effective<'_>,
    mesh: &Settings<'_>,
    has_outlier: bool,
    ranks: Vec<u32>,
    sources: Vec<(Locality, u32)>,
) -> LocalityPolicy {
    if let Some(zones) = zones(policy, mesh) {
        return LocalityPolicy::Zones(Box::new(ZonePolicy {
            sources,
            least: zones.min_cluster_size.unwrap_or(6),
            regions: regions(&zones.failover),
            ranks: (!zones.failover_priority.is_empty()).then_some(ranks),
        }));
    }
    if zone_setting(policy, mesh).is_some() {
        return LocalityPolicy::Ignore;
    }
    let empty = LocalityLbSetting::default();
    let setting = locality_setting(policy, mesh).unwrap_or(&empty);
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
    let regions = regions(&setting.failover);
    if setting.failover_priority.is_empty() {
        return LocalityPolicy::Failover { regions };
    }
    LocalityPolicy::Priority { ranks, regions: (!regions.is_empty()).then_some(regions) }
}

fn regions(rules: &[LocalityFailover]) -> Vec<(String, String)> {
    rules.iter().map(|rule| (rule.from.clone(), rule.to.clone())).collect()
}

/// Returns how zones count, where they do.
pub(super) fn zones<'a>(policy: &Effective<'a>, mesh: &Settings<'a>) -> Option<&'a ZoneAwareLbSetting> {
    zone_setting(policy, mesh).filter(|setting| setting.enabled != Some(false))
}

/// Returns what is said of zones: by the rule, else by the mesh unless the rule has a setting of its own. Where it says
/// that they do not count, localities do not either: it wins over what is said of those.
///
/// Source: Istio `GetEffectiveLbSetting`.
fn zone_setting<'a>(policy: &Effective<'a>, mesh: &Settings<'a>) -> Option<&'a ZoneAwareLbSetting> {
    let own = policy.balancer.filter(|balancer| {
        balancer.locality_lb_setting.is_some() || balancer.zone_aware_lb_setting.is_some()
    });
    match own {
        Some(own) => own.zone_aware_lb_setting.as_ref(),
        None => mesh.config.and_then(|config| config.zone_aware_lb_setting.as_ref()),
    }
}

/// Whether any policy of a rule looks at zones.
pub(super) fn looks_at_zones(rule: &DestinationRule) -> bool {
    balancers_of(rule).any(|balancer| balancer.zone_aware_lb_setting.is_some())
}

/// Returns the labels that order endpoints, where a rule says so and endpoints can be left for others at all.
pub(super) fn failover_priority<'a>(policy: &Effective<'a>, mesh: &Settings<'a>) -> &'a [String] {
    if let Some(setting) = zone_setting(policy, mesh) {
        return if setting.enabled == Some(false) { &[] } else { &setting.failover_priority };
    }
    let setting = locality_setting(policy, mesh).filter(|setting| {
        policy.outlier.is_some() && setting.enabled != Some(false) && setting.distribute.is_empty()
    });
    setting.map_or(&[], |setting| &setting.failover_priority)
}

/// Whether any policy of a rule orders endpoints by the labels they share with the caller.
pub(super) fn orders_by_labels(rule: &DestinationRule) -> bool {
    balancers_of(rule).any(|balancer| {
        let by_locality = balancer.locality_lb_setting.as_ref().map(|setting| &setting.failover_priority);
        let by_zone = balancer.zone_aware_lb_setting.as_ref().map(|setting| &setting.failover_priority);
        by_locality.into_iter().chain(by_zone).any(|labels| !labels.is_empty())
    })
}

/// Whether the mesh orders endpoints by the labels they share with the caller, where no rule says otherwise.
pub(super) fn mesh_orders_by_labels(config: &MeshConfig) -> bool {
    let by_locality = config.locality_lb_setting.as_ref().map(|setting| &setting.failover_priority);
    let by_zone = config.zone_aware_lb_setting.as_ref().map(|setting| &setting.failover_priority);
    by_locality.into_iter().chain(by_zone).any(|labels| !labels.is_empty())
}

fn balancers_of(rule: &DestinationRule) -> impl Iterator<Item = &LoadBalancerSettings> {
    let policies = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_deref());
    let policies = policies.chain(rule.traffic_policy.as_deref());
    policies.flat_map(|policy| {
        let of_ports = policy.port_level_settings.iter().filter_map(|port| port.load_balancer.as_deref());
        of_ports.chain(policy.load_balancer.as_deref())
    })
}

fn locality_setting<'a>(policy: &Effective<'a>, mesh: &Settings<'a>) -> Option<&'a LocalityLbSetting> {
    let own = policy.balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    own.or_else(|| mesh.config.and_then(|config| config.locality_lb_setting.as_ref()))
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
            limits.tcp_idle_timeout = limits.idle_timeout;
        }
        limits.max_connection_duration = tcp.max_connection_duration.map(Into::into);
        keepalive = tcp.tcp_keepalive.as_ref().or(keepalive);
    }
    if let Some(http) = policy.pool.and_then(|pool| pool.http.as_ref()) {
        limits.max_pending = at_most(http.http1_max_pending_requests);
        limits.max_requests = at_most(http.http2_max_requests);
        limits.max_retries = at_most(http.max_retries);
        limits.max_requests_per_connection = at_most(http.max_requests_per_connection);
        limits.max_concurrent_streams = at_most(http.max_concurrent_streams);
        let pings = http.http2_keep_alive.as_ref();
        limits.http2_keep_alive = pings.and_then(|pings| Some((pings.interval?.get(), pings.timeout?.get())));
        if let Some(idle) = http.idle_timeout {
            limits.idle_timeout = Some(idle.get()).filter(|idle| !idle.is_zero());
        }
    }
    limits.retry_budget = policy.retry_budget.map(retry_budget);
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
        consecutive_local: detection
            .split_external_local_origin_errors
            .then(|| detection.consecutive_local_origin_failures.filter(|limit| *limit > 0).unwrap_or(5)),
        error_codes: detection
            .outlier_detection_http_error_codes
            .iter()
            .filter_map(|code| u16::try_from(*code).ok())
            .collect(),
        interval: detection.interval.map_or(std::time::Duration::from_secs(10), Into::into),
        base_ejection: detection.base_ejection_time.map_or(std::time::Duration::from_secs(30), Into::into),
        max_ejection_percent: match detection.max_ejection_percent {
            0 => 10,
            value => percent(value),
        },
        min_health_percent: percent(detection.min_health_percent),
    })
}

/// TLS towards the application.
///
/// With neither `sni` nor names in the rule, the certificate must be for the Host. Names of the `ServiceEntry` are
/// asked for besides, where the rule gives none.
pub(super) fn tls(
    policy: &Effective<'_>,
    service: &Service<'_>,
    name: &ClusterName,
    trust_domain: &str,
) -> UpstreamTls {
    let Some(settings) = policy.tls else { return UpstreamTls::Disable };
    match settings.mode {
        ClientTlsMode::Disable => return UpstreamTls::Disable,
        ClientTlsMode::IstioMutual => {
            return UpstreamTls::Mesh(mesh_tls(settings, service, name, trust_domain));
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
    let unchecked = settings.insecure_skip_verify.unwrap_or(false);
    let mutual = settings.mode == ClientTlsMode::Mutual;
    let of_entry = || names_of(service, trust_domain);
    let names = &settings.subject_alt_names;
    let by_request = service.entry().is_some_and(|entry| entry.spec.resolution() == Resolution::DynamicDns);
    let client = |file: &String| if mutual { file.clone() } else { String::new() };
    let material = if settings.credential_name.is_empty() {
        TlsMaterial::Files {
            ca_certificates: settings.ca_certificates.clone(),
            client_certificate: client(&settings.client_certificate),
            private_key: client(&settings.private_key),
        }
    } else {
        TlsMaterial::Secret(settings.credential_name.clone())
    };
    UpstreamTls::Originate(Arc::new(TlsOrigination {
        sni: settings.sni.clone(),
        check_host: !unchecked && (by_request || (settings.sni.is_empty() && names.is_empty())),
        subject_alt_names: if names.is_empty() { of_entry() } else { names.clone() },
        mutual,
        material,
        ca_crl: settings.ca_crl.clone(),
        insecure_skip_verify: unchecked,
    }))
}

/// TLS with the mesh's own certificates. Without a name in the rule, the server is asked for as hops ask for it, which
/// leads through gateways that pass them on. Source: Istio `constructUpstreamTLS`, its default SNI.
fn mesh_tls(
    settings: &ClientTlsSettings,
    service: &Service<'_>,
    name: &ClusterName,
    trust_domain: &str,
) -> Arc<TlsOrigination> {
    let of_entry = || names_of(service, trust_domain);
    let names = &settings.subject_alt_names;
    let own = || sni::format(name.port, &name.subset, &name.host);
    Arc::new(TlsOrigination {
        sni: if settings.sni.is_empty() { own() } else { settings.sni.clone() },
        subject_alt_names: if names.is_empty() { of_entry() } else { names.clone() },
        mutual: true,
        material: TlsMaterial::Mesh,
        ..TlsOrigination::default()
    })
}

/// The names that the certificates of a declared service may show: its own, and the accounts of its endpoints.
///
/// Source: Istio `ServiceAccounts` of an external service.
fn names_of(service: &Service<'_>, trust_domain: &str) -> Vec<String> {
    let Some(first) = service.entry() else { return Vec::new() };
    let of = |entry: &'_ Entry<'_>| {
        let workloads = entry.workloads.iter().map(|(_, workload)| *workload);
        let accounts = entry.spec.endpoints.iter().chain(workloads);
        accounts.map(|endpoint| endpoint.service_account.to_string()).collect::<Vec<_>>()
    };
    let accounts: BTreeSet<String> = service.entries().flat_map(of).collect();
    let identities = accounts
        .into_iter()
        .filter(|account| !account.is_empty())
        .map(|account| format!("spiffe://{trust_domain}/ns/{}/sa/{account}", service.namespace));
    first.spec.subject_alt_names.iter().cloned().chain(identities).collect()
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
    let asked = http.is_some_and(|http| http.h2_upgrade_policy == H2UpgradePolicy::Upgrade);
    match port {
        _ if port.upstream_is_http2() => UpstreamProtocol::Http2,
        // Who asks for it in a rule knows that HTTP is spoken there.
        Protocol::Auto if asked => UpstreamProtocol::Http2,
        Protocol::Auto => UpstreamProtocol::AsClient,
        _ if upgrades => UpstreamProtocol::Http2,
        _ => UpstreamProtocol::Http1,
    }
}
