//! Rules of `DestinationRule`.

use super::{Check, Exports, each, text};
use crate::resource::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule,
    H2UpgradePolicy, HttpCookie, HttpSettings, LoadBalancerSettings, LocalityDistribute, LocalityFailover,
    LocalityLbSetting, MeshConfig, OutlierDetection, PortTrafficPolicy, TcpSettings, TrafficPolicy,
    WarmupConfiguration, ZoneAwareLbSetting,
};

pub(super) fn check(check: &mut Check, spec: &DestinationRule) {
    if check.required("spec.host", &spec.host) {
        check.rule("spec.host", text::wildcard_host(&spec.host));
    }
    if let Some(part) = &spec.traffic_policy {
        traffic_policy(check, "spec.trafficPolicy", part);
    }
    for (path, subset) in each("spec.subsets", &spec.subsets) {
        check.rule(format!("{path}.name"), text::label(&subset.name));
        check.rule(format!("{path}.labels"), text::labels(&subset.labels));
        if let Some(part) = &subset.traffic_policy {
            traffic_policy(check, &format!("{path}.trafficPolicy"), part);
        }
    }
    let names = each("spec.subsets", &spec.subsets);
    check.unique("the subset", names.map(|(path, subset)| (format!("{path}.name"), subset.name.as_str())));
    if let Some(selector) = &spec.workload_selector {
        super::security::selected(check, "spec.workloadSelector", selector);
    }
    let own = spec.workload_selector.is_some();
    check.export_to(&spec.export_to, if own { Exports::Own } else { Exports::Rules });
}

fn traffic_policy(check: &mut Check, path: &str, policy: &TrafficPolicy) {
    if *policy == TrafficPolicy::default() {
        check.error(path, "must not be empty");
    }
    let common = PortTrafficPolicy {
        port: None,
        load_balancer: policy.load_balancer.clone(),
        connection_pool: policy.connection_pool.clone(),
        outlier_detection: policy.outlier_detection.clone(),
        tls: policy.tls.clone(),
    };
    blocks(check, path, &common);
    for (path, port) in each(&format!("{path}.portLevelSettings"), &policy.port_level_settings) {
        match port.port {
            Some(selector) => check.port(format!("{path}.port.number"), selector.number),
            None => check.error(format!("{path}.port"), "must be there"),
        }
        if (PortTrafficPolicy { port: None, ..port.clone() }) == PortTrafficPolicy::default() {
            check.error(path.clone(), "must have loadBalancer, connectionPool, outlierDetection or tls");
        }
        blocks(check, &path, port);
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        check.error(path, "only one of tunnel and proxyProtocol may be set");
    }
    if let Some(tunnel) = &policy.tunnel {
        let path = format!("{path}.tunnel");
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            check.error(format!("{path}.protocol"), "must be CONNECT or POST");
        }
        if !text::address(&tunnel.target_host) {
            check.rule(format!("{path}.targetHost"), text::fqdn(&tunnel.target_host));
        }
        check.port(format!("{path}.targetPort"), tunnel.target_port);
    }
    if let Some(percent) = policy.retry_budget.as_ref().and_then(|budget| budget.percent) {
        check.percent(format!("{path}.retryBudget.percent"), percent);
    }
}

fn blocks(check: &mut Check, path: &str, policy: &PortTrafficPolicy) {
    if let Some(part) = &policy.load_balancer {
        load_balancer(check, &format!("{path}.loadBalancer"), part);
        if policy.outlier_detection.is_none() {
            without_outlier_detection(check, &format!("{path}.loadBalancer"), part);
        }
    }
    if let Some(part) = &policy.connection_pool {
        connection_pool(check, &format!("{path}.connectionPool"), part);
    }
    if let Some(part) = &policy.outlier_detection {
        outlier_detection(check, &format!("{path}.outlierDetection"), part);
    }
    if let Some(part) = &policy.tls {
        client_tls(check, &format!("{path}.tls"), part);
    }
}

/// Nothing moves elsewhere before outlier detection finds that instances fail.
fn without_outlier_detection(check: &mut Check, path: &str, settings: &LoadBalancerSettings) {
    let locality = settings.locality_lb_setting.as_ref();
    let zones = settings.zone_aware_lb_setting.as_ref();
    let moving = [
        ("localityLbSetting.failover", locality.is_some_and(|setting| !setting.failover.is_empty())),
        (
            "localityLbSetting.failoverPriority",
            locality.is_some_and(|setting| !setting.failover_priority.is_empty()),
        ),
        ("zoneAwareLbSetting.failover", zones.is_some_and(|setting| !setting.failover.is_empty())),
        (
            "zoneAwareLbSetting.failoverPriority",
            zones.is_some_and(|setting| !setting.failover_priority.is_empty()),
        ),
    ];
    for (field, _) in moving.iter().filter(|(_, used)| *used) {
        check.warning(
            format!("{path}.{field}"),
            "needs outlierDetection beside loadBalancer, which finds out who fails; without it nothing moves",
        );
    }
}

/// Checks what a `MeshConfig` says about localities.
pub(super) fn check_mesh(check: &mut Check, spec: &MeshConfig) {
    if spec.locality_lb_setting.is_some() && spec.zone_aware_lb_setting.is_some() {
        check.error("spec", "only one of localityLbSetting and zoneAwareLbSetting may be set");
    }
    if let Some(locality) = &spec.locality_lb_setting {
        locality_lb(check, "spec.localityLbSetting", locality);
    }
    if let Some(zones) = &spec.zone_aware_lb_setting {
        zone_aware_lb(check, "spec.zoneAwareLbSetting", zones);
    }
}

fn load_balancer(check: &mut Check, path: &str, settings: &LoadBalancerSettings) {
    if settings.simple.is_some() && settings.consistent_hash.is_some() {
        check.error(path, "only one of simple and consistentHash may be set");
    }
    if let Some(hash) = &settings.consistent_hash {
        consistent_hash(check, &format!("{path}.consistentHash"), hash);
    }
    if settings.locality_lb_setting.is_some() && settings.zone_aware_lb_setting.is_some() {
        check.error(path, "only one of localityLbSetting and zoneAwareLbSetting may be set");
    }
    if let Some(locality) = &settings.locality_lb_setting {
        locality_lb(check, &format!("{path}.localityLbSetting"), locality);
    }
    if let Some(zones) = &settings.zone_aware_lb_setting {
        zone_aware_lb(check, &format!("{path}.zoneAwareLbSetting"), zones);
    }
    check.duration(format!("{path}.warmupDurationSecs"), settings.warmup_duration_secs);
    if let Some(warmup) = &settings.warmup {
        warmup_rules(check, &format!("{path}.warmup"), warmup);
    }
}

fn warmup_rules(check: &mut Check, path: &str, warmup: &WarmupConfiguration) {
    if warmup.duration.is_none() {
        check.error(format!("{path}.duration"), "must be there");
    }
    check.duration(format!("{path}.duration"), warmup.duration);
    if let Some(percent) = warmup.minimum_percent {
        check.percent(format!("{path}.minimumPercent"), percent);
    }
    if warmup.aggression.is_some_and(|aggression| aggression.is_nan() || aggression <= 0.0) {
        check.error(format!("{path}.aggression"), "must be more than 0");
    }
}

fn consistent_hash(check: &mut Check, path: &str, hash: &ConsistentHashLb) {
    let keys = [
        ("httpHeaderName", hash.http_header_name.is_some()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("useSourceIp", hash.use_source_ip.is_some()),
        ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
    ];
    one_of(check, path, &keys);
    let rings = [
        ("ringHash", hash.ring_hash.is_some()),
        ("maglev", hash.maglev.is_some()),
        ("minimumRingSize", hash.minimum_ring_size.is_some()),
    ];
    one_of(check, path, &rings);
    if hash.minimum_ring_size.is_some_and(|size| size > 0) {
        check.warning(format!("{path}.minimumRingSize"), "has a newer form: ringHash: {minimumRingSize: …}");
    }
    // Envoy has what stands in the request line among its headers.
    let of_fields = |name: &&String| !HEAD_PARTS.contains(&name.to_ascii_lowercase().as_str());
    if let Some(name) = hash.http_header_name.as_ref().filter(of_fields) {
        check.rule(format!("{path}.httpHeaderName"), text::header_name(name));
    }
    if let Some(name) = &hash.http_query_parameter_name {
        check.required(format!("{path}.httpQueryParameterName"), name);
    }
    if let Some(cookie) = &hash.http_cookie {
        http_cookie(check, &format!("{path}.httpCookie"), cookie);
    }
    match hash.maglev.as_ref().map(|maglev| maglev.table_size.unwrap_or_default()) {
        Some(0) => check.error(format!("{path}.maglev.tableSize"), "must be there: a prime, such as 65537"),
        Some(size) if size >= MOST_MAGLEV || !is_prime(size) => {
            check.error(
                format!("{path}.maglev.tableSize"),
                format!("{size} is not a prime below {MOST_MAGLEV}"),
            );
        }
        _ => {}
    }
    let ring = hash.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size);
    for (field, size) in [("ringHash.minimumRingSize", ring), ("minimumRingSize", hash.minimum_ring_size)] {
        if size.is_some_and(|size| size > MOST_RING) {
            check.error(format!("{path}.{field}"), format!("more than {MOST_RING} points"));
        }
    }
}

fn one_of(check: &mut Check, path: &str, fields: &[(&str, bool)]) {
    let used: Vec<_> = fields.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    if used.len() > 1 {
        check.error(path, format!("only one of {} may be set", used.join(" and ")));
    }
}

/// Envoy's bound on a Maglev table.
const MOST_MAGLEV: u64 = 5_000_011;
/// What a request line says, as Envoy names it among headers.
const HEAD_PARTS: [&str; 4] = [":method", ":scheme", ":authority", ":path"];
/// Envoy's bound on a ring.
const MOST_RING: u64 = 8 << 20;

fn is_prime(number: u64) -> bool {
    number >= 1 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

fn http_cookie(check: &mut Check, path: &str, cookie: &HttpCookie) {
    if check.required(format!("{path}.name"), &cookie.name) {
        check.rule(format!("{path}.name"), text::header_name(&cookie.name));
    }
    for (path, attribute) in each(&format!("{path}.attributes"), &cookie.attributes) {
        check.required(format!("{path}.name"), &attribute.name);
        check.rule(format!("{path}.name"), of_cookie(&attribute.name));
        check.rule(format!("{path}.value"), of_cookie(&attribute.value));
    }
    let names = each(&format!("{path}.attributes"), &cookie.attributes)
        .map(|(path, attribute)| (path, attribute.name.as_str()))
        .collect::<Vec<_>>();
    check.unique("the attribute", names);
}

/// What would end an attribute and begin another one, or the header, cannot be a part of it. Source: RFC 6265, 4.1.1.
fn of_cookie(text: &str) -> Result<(), String> {
    let is_sound = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b';';
    if text.bytes().all(is_sound) {
        Ok(())
    } else {
        Err("only printable ASCII without `;` can be in a cookie".into())
    }
}

fn locality_lb(check: &mut Check, path: &str, setting: &LocalityLbSetting) {
    if !setting.distribute.is_empty() && !setting.failover.is_empty() {
        check.error(path, "only one of distribute and failover may be set");
    }
    for (path, share) in each(&format!("{path}.distribute"), &setting.distribute) {
        distribute(check, &path, share);
    }
    apart(
        check,
        each(&format!("{path}.distribute"), &setting.distribute)
            .map(|(path, share)| (format!("{path}.from"), share.from.as_str())),
    );
    if !setting.failover.is_empty()
        && let Some((path, label)) = each(&format!("{path}.failoverPriority"), &setting.failover_priority)
            .find(|(_, key)| is_topology(key))
    {
        check.error(path, format!("{label:?} cannot stand beside failover, which orders regions too"));
    }
    failover(check, path, &setting.failover, &setting.failover_priority);
}

/// Labels of places, which have fields of their own.
fn is_topology(key: &str) -> bool {
    matches!(
        key,
        "topology.kubernetes.io/region" | "topology.kubernetes.io/zone" | "topology.istio.io/subzone"
    )
}

/// No locality may stand for a place that one before it has; what is left (`*` after `us/*`) it may.
///
/// Source: Istio `validateLocalities`.
fn apart<'l>(check: &mut Check, localities: impl Iterator<Item = (String, &'l str)>) {
    let all: Vec<_> = localities.collect();
    for (at, (path, one)) in all.iter().enumerate() {
        if let Some((_, other)) = all[..at].iter().find(|(_, before)| takes(before, one)) {
            check.error(path.clone(), format!("{one:?} is among {other:?} already"));
        }
    }
}

/// Whether the places of a locality are among those of one before it, or the other way round where parts are missing.
fn takes(before: &str, one: &str) -> bool {
    let parts = |text: &'_ str| text.splitn(3, '/').map(str::to_owned).collect::<Vec<_>>();
    parts(before).iter().zip(parts(one)).all(|(before, one)| *before == one || before == "*")
}

fn zone_aware_lb(check: &mut Check, path: &str, setting: &ZoneAwareLbSetting) {
    failover(check, path, &setting.failover, &setting.failover_priority);
    if setting.min_cluster_size == Some(0) {
        check.error(format!("{path}.minClusterSize"), "must be at least 1");
    }
    for (path, label) in each(&format!("{path}.failoverPriority"), &setting.failover_priority) {
        if is_topology(label) {
            check.error(path, format!("{label:?} is not for zones, which are ordered by place already"));
        }
    }
}

fn failover(check: &mut Check, path: &str, regions: &[LocalityFailover], priority: &[String]) {
    for (path, pair) in each(&format!("{path}.failover"), regions) {
        for (field, region) in [("from", &pair.from), ("to", &pair.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                check.error(format!("{path}.{field}"), "must be one region, such as us-east");
            }
        }
        if pair.from == pair.to {
            check.error(path, "a region cannot help itself");
        }
    }
    for (path, label) in each(&format!("{path}.failoverPriority"), priority) {
        let key = label.split_once('=').map_or(label.as_str(), |(key, _)| key);
        if !text::label_key(key) {
            check.error(path, format!("{label:?} is no label"));
        }
    }
}

fn distribute(check: &mut Check, path: &str, share: &LocalityDistribute) {
    check.rule(format!("{path}.from"), locality(&share.from));
    let mut sum = 0_u64;
    for (to, weight) in &share.to {
        let path = crate::yaml::join(&format!("{path}.to"), to);
        check.rule(path.clone(), locality(to));
        if *weight == 0 || *weight > 100 {
            check.error(path, format!("{weight} is no share (1 to 100)"));
        }
        sum += u64::from(*weight);
    }
    if sum != 100 {
        check.error(format!("{path}.to"), format!("the shares add up to {sum}, not to 100"));
    }
    let to: Vec<&String> = share.to.keys().collect();
    for (at, one) in to.iter().enumerate() {
        // A map has no order: what would do in another one does.
        if let Some(other) = to[..at].iter().find(|other| takes(other, one) && takes(one, other)) {
            let path = crate::yaml::join(&format!("{path}.to"), one);
            check.error(path, format!("{one:?} is among {other:?} already"));
        }
    }
}

/// `region/zone/subzone`; only the last part may be `*`.
fn locality(text: &str) -> Result<(), String> {
    let parts: Vec<_> = text.split('/').collect();
    let whole = |part: &&str| !part.is_empty() && !part.contains('*');
    let Some((last, first)) = parts.split_last() else { return Ok(()) };
    if parts.len() > 3 || !first.iter().all(whole) || !(*last == "*" || whole(last)) {
        return Err(format!(
            "{text:?} is no locality: write region/zone/subzone, with \"*\" only at the end"
        ));
    }
    Ok(())
}

pub(super) fn connection_pool(check: &mut Check, path: &str, pool: &ConnectionPoolSettings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        check.error(path, "must have tcp or http");
    }
    if let Some(tcp) = &pool.tcp {
        tcp_settings(check, &format!("{path}.tcp"), tcp);
    }
    if let Some(http) = &pool.http {
        http_settings(check, &format!("{path}.http"), http);
    }
}

fn tcp_settings(check: &mut Check, path: &str, tcp: &TcpSettings) {
    check.not_negative(format!("{path}.maxConnections"), tcp.max_connections);
    check.duration(format!("{path}.connectTimeout"), tcp.connect_timeout);
    check.duration(format!("{path}.maxConnectionDuration"), tcp.max_connection_duration);
    if tcp.idle_timeout.is_some_and(|idle| !idle.get().is_zero()) {
        check.duration(format!("{path}.idleTimeout"), tcp.idle_timeout);
    }
    if let Some(probes) = &tcp.tcp_keepalive {
        check.duration(format!("{path}.tcpKeepalive.time"), probes.time);
        check.duration(format!("{path}.tcpKeepalive.interval"), probes.interval);
    }
}

fn http_settings(check: &mut Check, path: &str, http: &HttpSettings) {
    let bounds = [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ];
    for (field, bound) in bounds {
        check.not_negative(format!("{path}.{field}"), bound);
    }
    check.duration(format!("{path}.idleTimeout"), http.idle_timeout);
    if http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && http.use_client_protocol {
        check.error(path, "only one of h2UpgradePolicy: UPGRADE and useClientProtocol may be set");
    }
    if let Some(pings) = &http.http2_keep_alive {
        let path = format!("{path}.http2KeepAlive");
        for (field, span) in [("interval", pings.interval), ("timeout", pings.timeout)] {
            if span.is_none() {
                check.error(format!("{path}.{field}"), "must be there");
            }
            check.duration(format!("{path}.{field}"), span);
        }
    }
}

fn outlier_detection(check: &mut Check, path: &str, outlier: &OutlierDetection) {
    check.duration(format!("{path}.interval"), outlier.interval);
    check.duration(format!("{path}.baseEjectionTime"), outlier.base_ejection_time);
    check.percent(format!("{path}.maxEjectionPercent"), f64::from(outlier.max_ejection_percent));
    check.percent(format!("{path}.minHealthPercent"), f64::from(outlier.min_health_percent));
    if outlier.consecutive_local_origin_failures.is_some_and(|count| count > 0)
        && !outlier.split_external_local_origin_errors
    {
        check.error(
            format!("{path}.consecutiveLocalOriginFailures"),
            "needs splitExternalLocalOriginErrors: true",
        );
    }
    if outlier.consecutive_errors != 0 {
        check.not_negative(format!("{path}.consecutiveErrors"), outlier.consecutive_errors);
    }
    for (path, code) in
        each(&format!("{path}.outlierDetectionHttpErrorCodes"), &outlier.outlier_detection_http_error_codes)
    {
        if !(100..600).contains(code) {
            check.error(path, format!("{code} is no status (100 to 599)"));
        }
    }
}

fn client_tls(check: &mut Check, path: &str, tls: &ClientTlsSettings) {
    let unchecked = tls.insecure_skip_verify == Some(true);
    if unchecked && matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
        let beside = [
            ("caCertificates", !tls.ca_certificates.is_empty()),
            ("subjectAltNames", !tls.subject_alt_names.is_empty()),
            // Of a secret for both sides nobody knows whether roots are in it.
            ("credentialName", tls.mode == ClientTlsMode::Simple && !tls.credential_name.is_empty()),
        ];
        for (field, used) in beside {
            if used {
                check.error(format!("{path}.{field}"), "has no meaning beside insecureSkipVerify: true");
            }
        }
    }
    for (path, name) in each(&format!("{path}.subjectAltNames"), &tls.subject_alt_names) {
        check.required(path, name);
    }
    let files = [
        ("clientCertificate", &tls.client_certificate),
        ("privateKey", &tls.private_key),
        ("caCertificates", &tls.ca_certificates),
        ("caCrl", &tls.ca_crl),
        ("credentialName", &tls.credential_name),
    ];
    match tls.mode {
        ClientTlsMode::Mutual | ClientTlsMode::Simple if !tls.credential_name.is_empty() => {
            for (field, _) in files[..4].iter().filter(|(_, file)| !file.is_empty()) {
                check.error(format!("{path}.{field}"), "cannot stand beside credentialName");
            }
        }
        ClientTlsMode::Mutual => {
            for (field, file) in &files[..2] {
                check.required(format!("{path}.{field}"), file);
            }
        }
        ClientTlsMode::IstioMutual => {
            for (field, _) in files.iter().filter(|(_, file)| !file.is_empty()) {
                check.error(
                    format!("{path}.{field}"),
                    "cannot be set with ISTIO_MUTUAL: the mesh's own certificates are used",
                );
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Disable => {}
    }
}
