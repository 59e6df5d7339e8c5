//! The table: one line a field. To switch a field on, make its line `honoured`.

use super::Status;
use crate::resource::Kind;

/// A line.
pub(super) enum Row {
    /// What is done with a field, and with all below it.
    Field(&'static str, Status),
    /// The fields of a message that stands in several places.
    Message(&'static str, &'static [Self]),
}

const fn honoured(path: &'static str) -> Row {
    Row::Field(path, Status::Honoured)
}

const fn only(path: &'static str, values: &'static [&'static str], reason: &'static str) -> Row {
    Row::Field(path, Status::Only(values, reason))
}

const fn refused(path: &'static str, reason: &'static str) -> Row {
    Row::Field(path, Status::Refused(reason))
}

const fn without_effect(path: &'static str, reason: &'static str) -> Row {
    Row::Field(path, Status::WithoutEffect(reason))
}

const fn message(path: &'static str, rows: &'static [Row]) -> Row {
    Row::Message(path, rows)
}

/// Returns the lines of a kind.
pub(super) const fn of(kind: Kind) -> &'static [Row] {
    match kind {
        Kind::VirtualService => VIRTUAL_SERVICE,
        Kind::DestinationRule => DESTINATION_RULE,
        Kind::ServiceEntry => SERVICE_ENTRY,
        Kind::WorkloadEntry => WORKLOAD_ENTRY,
        Kind::WorkloadGroup => WORKLOAD_GROUP,
        Kind::Gateway => GATEWAY,
        Kind::Sidecar => SIDECAR,
        Kind::PeerAuthentication => PEER_AUTHENTICATION,
        Kind::AuthorizationPolicy => AUTHORIZATION_POLICY,
        Kind::RequestAuthentication => REQUEST_AUTHENTICATION,
        Kind::Telemetry => TELEMETRY,
        Kind::MeshConfig => MESH_CONFIG,
    }
}

const NO_GATEWAYS: &str = "there are no gateways yet";

const VIRTUAL_SERVICE: &[Row] = &[
    honoured("hosts"),
    only("gateways", &["mesh"], NO_GATEWAYS),
    honoured("exportTo"),
    message("http[]", HTTP_ROUTE),
    message("tls[]", TLS_ROUTE),
    message("tcp[]", TCP_ROUTE),
];

const HTTP_ROUTE: &[Row] = &[
    honoured("name"),
    honoured("match[].name"),
    honoured("match[].uri"),
    honoured("match[].scheme"),
    honoured("match[].method"),
    honoured("match[].authority"),
    honoured("match[].headers"),
    honoured("match[].withoutHeaders"),
    honoured("match[].queryParams"),
    honoured("match[].port"),
    honoured("match[].ignoreUriCase"),
    honoured("match[].sourceLabels"),
    honoured("match[].sourceNamespace"),
    only("match[].gateways", &["mesh"], NO_GATEWAYS),
    without_effect("match[].statPrefix", "it names statistics of Envoy; meshd counts by the route's name"),
    message("route[].destination", DESTINATION),
    honoured("route[].weight"),
    message("route[].headers", HEADERS),
    message("headers", HEADERS),
    honoured("redirect.uri"),
    honoured("redirect.prefixRewrite"),
    honoured("redirect.authority"),
    honoured("redirect.port"),
    honoured("redirect.derivePort"),
    honoured("redirect.scheme"),
    honoured("redirect.redirectCode"),
    honoured("directResponse.status"),
    honoured("directResponse.body.string"),
    honoured("directResponse.body.bytes"),
    honoured("delegate.name"),
    honoured("delegate.namespace"),
    honoured("rewrite.uri"),
    honoured("rewrite.authority"),
    honoured("rewrite.uriRegexRewrite.match"),
    honoured("rewrite.uriRegexRewrite.rewrite"),
    honoured("timeout"),
    honoured("retries.attempts"),
    honoured("retries.perTryTimeout"),
    honoured("retries.retryOn"),
    honoured("retries.retryIgnorePreviousHosts"),
    honoured("retries.backoff"),
    refused("retries.retryRemoteLocalities", "is not enforced yet: retries go wherever balancing sends them"),
    honoured("fault.delay.fixedDelay"),
    honoured("fault.delay.percentage.value"),
    honoured("fault.delay.percent"),
    refused("fault.delay.exponentialDelay", "is not enforced, nor by Istio; use fixedDelay"),
    honoured("fault.abort.httpStatus"),
    honoured("fault.abort.grpcStatus"),
    honoured("fault.abort.percentage.value"),
    refused("fault.abort.http2Error", "is not enforced, nor by Istio; use httpStatus or grpcStatus"),
    message("mirror", DESTINATION),
    honoured("mirrorPercent"),
    honoured("mirror_percent"),
    honoured("mirrorPercentage.value"),
    message("mirrors[].destination", DESTINATION),
    honoured("mirrors[].percentage.value"),
    honoured("corsPolicy.allowOrigin"),
    honoured("corsPolicy.allowOrigins"),
    honoured("corsPolicy.allowMethods"),
    honoured("corsPolicy.allowHeaders"),
    honoured("corsPolicy.exposeHeaders"),
    honoured("corsPolicy.maxAge"),
    honoured("corsPolicy.allowCredentials"),
    honoured("corsPolicy.unmatchedPreflights"),
];

const DESTINATION: &[Row] = &[honoured("host"), honoured("subset"), honoured("port.number")];

const HEADERS: &[Row] = &[
    honoured("request.set"),
    honoured("request.add"),
    honoured("request.remove"),
    honoured("response.set"),
    honoured("response.add"),
    honoured("response.remove"),
];

const TLS_ROUTE: &[Row] = &[
    honoured("match[].sniHosts"),
    honoured("match[].destinationSubnets"),
    honoured("match[].port"),
    honoured("match[].sourceLabels"),
    honoured("match[].sourceNamespace"),
    only("match[].gateways", &["mesh"], NO_GATEWAYS),
    message("route[].destination", DESTINATION),
    honoured("route[].weight"),
];

const TCP_ROUTE: &[Row] = &[
    honoured("match[].destinationSubnets"),
    honoured("match[].port"),
    honoured("match[].sourceLabels"),
    honoured("match[].sourceNamespace"),
    only("match[].gateways", &["mesh"], NO_GATEWAYS),
    refused("match[].sourceSubnet", "is not enforced, nor by Istio; use sourceLabels or sourceNamespace"),
    message("route[].destination", DESTINATION),
    honoured("route[].weight"),
];

const DESTINATION_RULE: &[Row] = &[
    honoured("host"),
    honoured("exportTo"),
    message("trafficPolicy", TRAFFIC_POLICY),
    honoured("subsets[].name"),
    honoured("subsets[].labels"),
    message("subsets[].trafficPolicy", TRAFFIC_POLICY),
    honoured("workloadSelector.matchLabels"),
];

const TRAFFIC_POLICY: &[Row] = &[
    message("loadBalancer", LOAD_BALANCER),
    message("connectionPool", CONNECTION_POOL),
    message("outlierDetection", OUTLIER_DETECTION),
    message("tls", CLIENT_TLS),
    honoured("portLevelSettings[].port.number"),
    message("portLevelSettings[].loadBalancer", LOAD_BALANCER),
    message("portLevelSettings[].connectionPool", CONNECTION_POOL),
    message("portLevelSettings[].outlierDetection", OUTLIER_DETECTION),
    message("portLevelSettings[].tls", CLIENT_TLS),
    honoured("tunnel.protocol"),
    honoured("tunnel.targetHost"),
    honoured("tunnel.targetPort"),
    honoured("proxyProtocol.version"),
    honoured("retryBudget.percent"),
    honoured("retryBudget.budgetInterval"),
    honoured("retryBudget.minRetryConcurrency"),
];

const LOAD_BALANCER: &[Row] = &[
    honoured("simple"),
    honoured("consistentHash.httpHeaderName"),
    honoured("consistentHash.httpCookie.name"),
    honoured("consistentHash.httpCookie.path"),
    honoured("consistentHash.httpCookie.ttl"),
    honoured("consistentHash.httpCookie.attributes[].name"),
    honoured("consistentHash.httpCookie.attributes[].value"),
    honoured("consistentHash.useSourceIp"),
    honoured("consistentHash.httpQueryParameterName"),
    honoured("consistentHash.ringHash.minimumRingSize"),
    honoured("consistentHash.maglev.tableSize"),
    honoured("consistentHash.minimumRingSize"),
    honoured("localityLbSetting.enabled"),
    honoured("localityLbSetting.distribute[].from"),
    honoured("localityLbSetting.distribute[].to"),
    honoured("localityLbSetting.failover[].from"),
    honoured("localityLbSetting.failover[].to"),
    honoured("localityLbSetting.failoverPriority"),
    refused("zoneAwareLbSetting", "is not enforced yet; use localityLbSetting"),
    honoured("warmupDurationSecs"),
    honoured("warmup.duration"),
    honoured("warmup.minimumPercent"),
    honoured("warmup.aggression"),
];

const CONNECTION_POOL: &[Row] = &[
    honoured("tcp.maxConnections"),
    honoured("tcp.connectTimeout"),
    honoured("tcp.tcpKeepalive.probes"),
    honoured("tcp.tcpKeepalive.time"),
    honoured("tcp.tcpKeepalive.interval"),
    honoured("tcp.maxConnectionDuration"),
    honoured("tcp.idleTimeout"),
    honoured("http.http1MaxPendingRequests"),
    honoured("http.http2MaxRequests"),
    honoured("http.maxRequestsPerConnection"),
    honoured("http.maxRetries"),
    honoured("http.idleTimeout"),
    honoured("http.h2UpgradePolicy"),
    honoured("http.useClientProtocol"),
    honoured("http.maxConcurrentStreams"),
    honoured("http.http2KeepAlive.interval"),
    honoured("http.http2KeepAlive.timeout"),
];

const OUTLIER_DETECTION: &[Row] = &[
    honoured("consecutive5xxErrors"),
    honoured("consecutiveGatewayErrors"),
    honoured("interval"),
    honoured("baseEjectionTime"),
    honoured("maxEjectionPercent"),
    honoured("minHealthPercent"),
    refused("consecutiveErrors", "is no longer read by Istio either; use consecutive5xxErrors"),
    honoured("splitExternalLocalOriginErrors"),
    honoured("consecutiveLocalOriginFailures"),
    honoured("outlierDetectionHttpErrorCodes"),
];

const CLIENT_TLS: &[Row] = &[
    honoured("mode"),
    honoured("sni"),
    honoured("subjectAltNames"),
    honoured("caCertificates"),
    honoured("clientCertificate"),
    honoured("privateKey"),
    honoured("insecureSkipVerify"),
    honoured("credentialName"),
    honoured("caCrl"),
];

const SERVICE_ENTRY: &[Row] = &[
    honoured("hosts"),
    honoured("addresses"),
    honoured("ports[].number"),
    honoured("ports[].name"),
    honoured("ports[].protocol"),
    honoured("ports[].targetPort"),
    honoured("location"),
    honoured("resolution"),
    message("endpoints[]", WORKLOAD_ENTRY),
    honoured("workloadSelector.labels"),
    honoured("exportTo"),
    honoured("subjectAltNames"),
];

const WORKLOAD_ENTRY: &[Row] = &[
    honoured("address"),
    honoured("ports"),
    honoured("labels"),
    honoured("locality"),
    honoured("weight"),
    honoured("serviceAccount"),
    honoured("network"),
];

const WORKLOAD_GROUP: &[Row] =
    &[refused("", "is not enforced yet: hosts register their services themselves")];
const GATEWAY: &[Row] = &[refused("", "is not enforced yet: no gateway would open")];
const SIDECAR: &[Row] = &[refused("", "is not enforced yet: every workload would still reach everything")];
const PEER_AUTHENTICATION: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const AUTHORIZATION_POLICY: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const REQUEST_AUTHENTICATION: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const TELEMETRY: &[Row] = &[refused("", "is not enforced yet: metrics and logs are as meshd.toml says")];

const MESH_CONFIG: &[Row] = &[
    honoured("outboundTrafficPolicy.mode"),
    refused(
        "outboundTrafficPolicy.egressProxy",
        "is not enforced yet: traffic to unknown hosts goes straight there",
    ),
    only("rootNamespace", &["istio-system"], "the root namespace is fixed"),
    only("enableAutoMtls", &["true"], "mutual TLS is always on between hosts"),
    refused("pathNormalization", "is not enforced yet: it is BASE"),
    refused("defaultHttpRetryPolicy", "is not enforced yet; write retries in each route"),
    refused("accessLogFile", "is not enforced yet"),
    refused("accessLogFormat", "is not enforced yet"),
    refused("accessLogEncoding", "is not enforced yet"),
    only("enableTracing", &["false"], "requests are not traced"),
    refused(
        "connectTimeout",
        "is not enforced yet; use connectionPool.tcp.connectTimeout of a DestinationRule",
    ),
    refused("tcpKeepalive", "is not enforced yet"),
    refused("protocolDetectionTimeout", "is not enforced yet"),
    refused("trustDomain", "is not enforced: it is given once, by \"meshd init\""),
    refused("trustDomainAliases", "is not enforced yet"),
    refused("defaultServiceExportTo", "is not enforced yet; write exportTo in each ServiceEntry"),
    refused("defaultVirtualServiceExportTo", "is not enforced yet; write exportTo in each VirtualService"),
    refused("defaultDestinationRuleExportTo", "is not enforced yet; write exportTo in each DestinationRule"),
    refused("localityLbSetting", "is not enforced yet; use localityLbSetting of a DestinationRule"),
    refused("dnsRefreshRate", "is not enforced yet"),
    refused("h2UpgradePolicy", "is not enforced yet; use h2UpgradePolicy of a DestinationRule"),
];
