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

const fn in_part(path: &'static str, reason: &'static str) -> Row {
    Row::Field(path, Status::InPart(reason))
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

const VIRTUAL_SERVICE: &[Row] = &[
    honoured("hosts"),
    honoured("gateways"),
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
    honoured("match[].gateways"),
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
    honoured("retries.retryRemoteLocalities"),
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
    honoured("match[].gateways"),
    message("route[].destination", DESTINATION),
    honoured("route[].weight"),
];

const TCP_ROUTE: &[Row] = &[
    honoured("match[].destinationSubnets"),
    honoured("match[].port"),
    honoured("match[].sourceLabels"),
    honoured("match[].sourceNamespace"),
    honoured("match[].gateways"),
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
    honoured("zoneAwareLbSetting.enabled"),
    honoured("zoneAwareLbSetting.failover[].from"),
    honoured("zoneAwareLbSetting.failover[].to"),
    honoured("zoneAwareLbSetting.failoverPriority"),
    honoured("zoneAwareLbSetting.minClusterSize"),
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
    in_part(
        "location",
        "gateways pass hops to services inside only, as in Istio; endpoints inside that are no hosts of the mesh are spoken to in plain text, where Envoy would try mutual TLS",
    ),
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
    in_part(
        "network",
        "failoverPriority looks at it, as in Istio; but every host reaches every other, where Envoy would go by the gateway of another network",
    ),
];

const WORKLOAD_GROUP: &[Row] = &[
    honoured("metadata.labels"),
    without_effect("metadata.annotations", "nothing reads annotations of instances"),
    message("template", WORKLOAD_ENTRY),
    honoured("probe.initialDelaySeconds"),
    honoured("probe.timeoutSeconds"),
    honoured("probe.periodSeconds"),
    honoured("probe.successThreshold"),
    honoured("probe.failureThreshold"),
    honoured("probe.httpGet.path"),
    honoured("probe.httpGet.port"),
    honoured("probe.httpGet.host"),
    honoured("probe.httpGet.scheme"),
    honoured("probe.httpGet.httpHeaders[].name"),
    honoured("probe.httpGet.httpHeaders[].value"),
    honoured("probe.tcpSocket.host"),
    honoured("probe.tcpSocket.port"),
    honoured("probe.exec.command"),
    honoured("probe.grpc.port"),
    honoured("probe.grpc.service"),
];
const GATEWAY: &[Row] = &[
    honoured("selector"),
    honoured("servers[].port.number"),
    without_effect("servers[].port.name", ONLY_A_NAME),
    honoured("servers[].port.protocol"),
    without_effect("servers[].port.targetPort", NOT_IN_ISTIO),
    honoured("servers[].bind"),
    honoured("servers[].hosts"),
    without_effect("servers[].defaultEndpoint", NOT_IN_ISTIO),
    without_effect("servers[].name", "it names statistics of Envoy; meshd counts by host and port"),
    honoured("servers[].tls.httpsRedirect"),
    honoured("servers[].tls.mode"),
    honoured("servers[].tls.serverCertificate"),
    honoured("servers[].tls.privateKey"),
    honoured("servers[].tls.caCertificates"),
    honoured("servers[].tls.caCrl"),
    honoured("servers[].tls.credentialName"),
    honoured("servers[].tls.credentialNames"),
    honoured("servers[].tls.caCertCredentialName"),
    honoured("servers[].tls.tlsCertificates[].serverCertificate"),
    honoured("servers[].tls.tlsCertificates[].privateKey"),
    honoured("servers[].tls.tlsCertificates[].caCertificates"),
    honoured("servers[].tls.subjectAltNames"),
    honoured("servers[].tls.verifyCertificateSpki"),
    honoured("servers[].tls.verifyCertificateHash"),
    only("servers[].tls.minProtocolVersion", TLS_VERSIONS, OLD_TLS),
    only("servers[].tls.maxProtocolVersion", TLS_VERSIONS, OLD_TLS),
    only(
        "servers[].tls.cipherSuites",
        TLS_CIPHERS,
        "only suites with forward secrecy and sealing are spoken",
    ),
    only("servers[].tls.insecureSkipVerify", &["false"], "visitors' certificates are always checked"),
];

const NOT_IN_ISTIO: &str = "Istio does nothing with it either";
const ONLY_A_NAME: &str = "it is a name for people; Istio does nothing with it either";
const OLD_TLS: &str = "TLS before 1.2 is not spoken";
const TLS_VERSIONS: &[&str] = &["TLS_AUTO", "TLSV1_2", "TLSV1_3"];
const TLS_CIPHERS: &[&str] = &[
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

const SIDECAR: &[Row] = &[
    honoured("workloadSelector.labels"),
    honoured("egress[].hosts"),
    honoured("egress[].port.number"),
    honoured("egress[].port.protocol"),
    without_effect("egress[].port.name", ONLY_A_NAME),
    without_effect("egress[].port.targetPort", NOT_IN_ISTIO),
    honoured("egress[].bind"),
    honoured("egress[].captureMode"),
    honoured("ingress[].port.number"),
    honoured("ingress[].port.protocol"),
    without_effect("ingress[].port.name", ONLY_A_NAME),
    without_effect("ingress[].port.targetPort", NOT_IN_ISTIO),
    honoured("ingress[].defaultEndpoint"),
    without_effect(
        "ingress[].bind",
        "it counts only with captureMode NONE, also in Istio: what is caught comes in elsewhere",
    ),
    only(
        "ingress[].captureMode",
        &["DEFAULT", "IPTABLES"],
        "what comes in is caught, or comes by the mesh port",
    ),
    refused(
        "ingress[].tls",
        "is off in Istio, too, unless its control plane is told otherwise: between hosts everything is mutual TLS",
    ),
    message("ingress[].connectionPool", INBOUND_POOL),
    message("inboundConnectionPool", INBOUND_POOL),
    honoured("outboundTrafficPolicy.mode"),
    honoured("outboundTrafficPolicy.egressProxy.host"),
    honoured("outboundTrafficPolicy.egressProxy.subset"),
    honoured("outboundTrafficPolicy.egressProxy.port.number"),
];

/// Towards the application on this host. What is about choosing among several, or about callers, has no place there.
const INBOUND_POOL: &[Row] = &[
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
    without_effect("http.maxRetries", "nothing is tried twice on its way in, nor by Istio"),
    honoured("http.idleTimeout"),
    without_effect("http.h2UpgradePolicy", "it is for the way out; Istio ignores it here"),
    without_effect("http.useClientProtocol", "it is for the way out; Istio ignores it here"),
    honoured("http.maxConcurrentStreams"),
    honoured("http.http2KeepAlive.interval"),
    honoured("http.http2KeepAlive.timeout"),
];
const PEER_AUTHENTICATION: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const AUTHORIZATION_POLICY: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const REQUEST_AUTHENTICATION: &[Row] =
    &[refused("", "is not enforced yet, and security is never promised without effect")];
const TARGET: &[Row] = &[
    honoured("group"),
    only("kind", &["Service"], "a Telemetry is for workloads, and for the instances of a service"),
    honoured("name"),
    refused("namespace", "is the object's own"),
];
const TELEMETRY: &[Row] = &[
    honoured("selector"),
    message("targetRef", TARGET),
    message("targetRefs[]", TARGET),
    honoured("tracing[].match.mode"),
    honoured("tracing[].providers[].name"),
    honoured("tracing[].randomSamplingPercentage"),
    honoured("tracing[].disableSpanReporting"),
    honoured("tracing[].disableContextPropagation"),
    honoured("tracing[].customTags{}.literal"),
    refused("tracing[].customTags{}.environment", "is not read: hosts have no environment that a mesh knows"),
    honoured("tracing[].customTags{}.header"),
    refused("tracing[].customTags{}.formatter", "is not enforced: write literal or header"),
    honoured("tracing[].enableIstioTags"),
    refused(
        "tracing[].useRequestIdForTraceSampling",
        "has no place: the trace's own headers say whether it is sampled",
    ),
    honoured("metrics[].providers[].name"),
    honoured("metrics[].overrides[].match.metric"),
    refused("metrics[].overrides[].match.customMetric", "there are no metrics but Istio's standard ones"),
    honoured("metrics[].overrides[].match.mode"),
    honoured("metrics[].overrides[].disabled"),
    honoured("metrics[].overrides[].tagOverrides{}.operation"),
    honoured("metrics[].overrides[].tagOverrides{}.value"),
    without_effect("metrics[].reportingInterval", "numbers are counted as things happen"),
    honoured("accessLogging[].match.mode"),
    honoured("accessLogging[].providers[].name"),
    honoured("accessLogging[].disabled"),
    honoured("accessLogging[].filter.expression"),
];

const MESH_CONFIG: &[Row] = &[
    honoured("outboundTrafficPolicy.mode"),
    refused(
        "outboundTrafficPolicy.egressProxy",
        "is of a Sidecar, also in Istio; for the whole mesh, write a Sidecar in the root namespace",
    ),
    honoured("rootNamespace"),
    only("enableAutoMtls", &["true"], "mutual TLS is always on between hosts"),
    honoured("pathNormalization.normalization"),
    honoured("defaultHttpRetryPolicy.attempts"),
    honoured("defaultHttpRetryPolicy.perTryTimeout"),
    honoured("defaultHttpRetryPolicy.retryOn"),
    honoured("defaultHttpRetryPolicy.retryIgnorePreviousHosts"),
    honoured("defaultHttpRetryPolicy.backoff"),
    honoured("defaultHttpRetryPolicy.retryRemoteLocalities"),
    honoured("accessLogFile"),
    honoured("accessLogFormat"),
    honoured("accessLogEncoding"),
    honoured("enableTracing"),
    honoured("extensionProviders[].name"),
    honoured("extensionProviders[].envoyFileAccessLog.path"),
    honoured("extensionProviders[].envoyFileAccessLog.logFormat.text"),
    honoured("extensionProviders[].envoyFileAccessLog.logFormat.labels"),
    honoured("extensionProviders[].opentelemetry.service"),
    honoured("extensionProviders[].opentelemetry.port"),
    honoured("extensionProviders[].opentelemetry.maxTagLength"),
    honoured("extensionProviders[].opentelemetry.grpc.timeout"),
    honoured("extensionProviders[].opentelemetry.grpc.initialMetadata[].name"),
    honoured("extensionProviders[].opentelemetry.grpc.initialMetadata[].value"),
    honoured("extensionProviders[].opentelemetry.http.path"),
    honoured("extensionProviders[].opentelemetry.http.timeout"),
    honoured("extensionProviders[].opentelemetry.http.headers[].name"),
    honoured("extensionProviders[].opentelemetry.http.headers[].value"),
    honoured("extensionProviders[].prometheus"),
    honoured("defaultProviders.metrics"),
    honoured("defaultProviders.tracing"),
    honoured("defaultProviders.accessLogging"),
    honoured("connectTimeout"),
    honoured("tcpKeepalive"),
    honoured("protocolDetectionTimeout"),
    refused("trustDomain", "is not enforced: it is given once, by \"meshd init\""),
    refused(
        "trustDomainAliases",
        "has no place: hosts of this mesh take certificates of its own trust domain only",
    ),
    honoured("defaultServiceExportTo"),
    honoured("defaultVirtualServiceExportTo"),
    honoured("defaultDestinationRuleExportTo"),
    honoured("localityLbSetting.enabled"),
    honoured("localityLbSetting.distribute[].from"),
    honoured("localityLbSetting.distribute[].to"),
    honoured("localityLbSetting.failover[].from"),
    honoured("localityLbSetting.failover[].to"),
    honoured("localityLbSetting.failoverPriority"),
    honoured("zoneAwareLbSetting.enabled"),
    honoured("zoneAwareLbSetting.failover[].from"),
    honoured("zoneAwareLbSetting.failover[].to"),
    honoured("zoneAwareLbSetting.failoverPriority"),
    honoured("zoneAwareLbSetting.minClusterSize"),
    honoured("dnsRefreshRate"),
    honoured("h2UpgradePolicy"),
];
