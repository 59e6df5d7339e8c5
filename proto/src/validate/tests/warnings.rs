//! What Istio's validator only warns of.

use super::findings;
use crate::finding::Severity;

/// Source: Istio's function that is named. The place is where the warning stands; none: there is no warning.
const CASES: &[(&str, &str, &str, &str)] = &[
    (
        "validateHTTPRoute",
        VS,
        "{hosts: [a], http: [{mirror: {host: b}, mirrorPercent: 5, ROUTE}]}",
        "spec.http[0].mirrorPercent",
    ),
    (
        "validateHTTPRoute",
        VS,
        "{hosts: [a], http: [{mirror: {host: b}, mirror_percent: 5, ROUTE}]}",
        "spec.http[0].mirror_percent",
    ),
    (
        "validateHTTPRoute",
        VS,
        "{hosts: [a], http: [{mirror: {host: b}, mirrorPercentage: {value: 5}, ROUTE}]}",
        "",
    ),
    (
        "validateGatewayNames",
        VS,
        "{hosts: [a], gateways: [g.ns.svc.cluster.local], http: [{ROUTE}]}",
        "spec.gateways[0]",
    ),
    ("validateGatewayNames", VS, "{hosts: [a], gateways: [ns/g, g], http: [{ROUTE}]}", ""),
    (
        "validateSniHost",
        VS,
        "{hosts: [192.0.2.1], tls: [{match: [{sniHosts: [192.0.2.1]}], ROUTE}]}",
        "spec.tls[0].match[0].sniHosts[0]",
    ),
    (
        "validateHTTPFaultInjectionAbort",
        VS,
        "{hosts: [a], http: [{fault: {abort: {percentage: {value: 1}}}, ROUTE}]}",
        "spec.http[0].fault.abort",
    ),
    (
        "validateLoadBalancer",
        DR,
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 5}}}}",
        "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
    ),
    (
        "ValidateLocalityLbSetting",
        DR,
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}}",
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failover",
    ),
    (
        "ValidateLocalityLbSetting",
        DR,
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: [x]}}}}",
        "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
    ),
    (
        "ValidateLocalityLbSetting",
        DR,
        "{host: a, trafficPolicy: {outlierDetection: {interval: 1s}, loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}}",
        "",
    ),
    (
        "ValidateLocalityLbSetting",
        DR,
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 100}}]}}}}",
        "",
    ),
    (
        "ValidateZoneAwareLbSetting",
        DR,
        "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 1}, loadBalancer: {zoneAwareLbSetting: {failoverPriority: [x]}}}]}}",
        "spec.trafficPolicy.portLevelSettings[0].loadBalancer.zoneAwareLbSetting.failoverPriority",
    ),
    ("validateWorkloadSelector", DR, "{host: a, workloadSelector: {}}", "spec.workloadSelector"),
    (
        "ValidateAlphaWorkloadSelector",
        SC,
        "{egress: [{hosts: ['*/*']}], workloadSelector: {}}",
        "spec.workloadSelector",
    ),
    ("ValidateSidecar", SC, "{egress: [{hosts: [a/b.c, a/b.c]}]}", "spec.egress[0].hosts[1]"),
    ("ValidateSidecar", SC, "{egress: [{hosts: [./b.c, default/*]}]}", "spec.egress[0].hosts[1]"),
    ("ValidateSidecar", SC, "{egress: [{hosts: ['*/*', a/b.c]}]}", "spec.egress[0].hosts"),
    ("ValidateSidecar", SC, "{egress: [{hosts: ['*/*', '~a/b.c']}]}", ""),
    ("ValidateSidecar", SC, "{egress: [{hosts: [a/b.c, b/b.c, a/d.c]}]}", ""),
    (
        "ValidateSidecar",
        SC,
        "{ingress: [{port: {number: 1, name: tcp, protocol: TCP}, connectionPool: {http: {maxRetries: 1}}}]}",
        "spec.ingress[0].connectionPool.http",
    ),
    (
        "ValidateServiceEntry",
        SE,
        "{hosts: [a.com], PORTS, resolution: STATIC, workloadSelector: {}}",
        "spec.workloadSelector",
    ),
    (
        "ValidateServiceEntry",
        SE,
        "{hosts: [a.com], PORTS, resolution: NONE, workloadSelector: {labels: {a: b}}}",
        "spec.workloadSelector",
    ),
    ("ValidateServiceEntry", SE, "{hosts: ['*a.com'], PORTS, resolution: NONE}", "spec.hosts[0]"),
    ("ValidateServiceEntry", SE, "{hosts: ['*.a.com'], PORTS, resolution: NONE}", ""),
    (
        "ValidateServiceEntry",
        SE,
        "{hosts: [a.com, b.com], addresses: [192.0.2.1], ports: [{number: 1, name: tls, protocol: TLS}], resolution: DNS}",
        "spec.addresses",
    ),
    (
        "ValidateServiceEntry",
        SE,
        "{hosts: [a.com, b.com], addresses: [192.0.2.1], PORTS, resolution: DNS}",
        "",
    ),
    ("validateWorkloadEntry", "WorkloadEntry", "{network: west}", "spec.address"),
    (
        "validateTLSOptions",
        "Gateway",
        "{servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH, credentialName: a}}]}",
        "spec.servers[0].tls",
    ),
    (
        "ValidateGateway",
        "Gateway",
        "{servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: PASSTHROUGH, httpsRedirect: true}}]}",
        "spec.servers[0].tls.httpsRedirect",
    ),
];

const VS: &str = "VirtualService";
const DR: &str = "DestinationRule";
const SC: &str = "Sidecar";
const SE: &str = "ServiceEntry";

#[test]
fn what_istio_warns_of_is_a_warning() {
    let mut wrong = Vec::new();
    for (function, kind, spec, place) in CASES {
        let spec = spec
            .replace("ROUTE", "route: [{destination: {host: b}}]")
            .replace("PORTS", "ports: [{number: 80, name: http, protocol: HTTP}]");
        let found = findings(kind, &spec);
        let places: Vec<&str> = found.iter().map(|finding| finding.path.as_str()).collect();
        let wanted: Vec<&str> = if place.is_empty() { Vec::new() } else { vec![place] };
        if places != wanted || found.iter().any(|finding| finding.severity != Severity::Warning) {
            wrong.push(format!("{function}: {kind} {spec}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
