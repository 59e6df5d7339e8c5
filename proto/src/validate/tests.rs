mod security;
mod warnings;

use crate::finding::{Finding, Severity};
use crate::resource::Kind;
use crate::yaml;

/// Returns what is said about a specification, without places.
fn about(kind: &str, spec: &str) -> Vec<String> {
    let text =
        format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n{spec}\n");
    let (documents, findings) = yaml::read("a.yaml", &text);
    assert!(findings.is_empty(), "{findings:?}");
    super::validate(&documents[0].object)
        .into_iter()
        .map(|finding| {
            assert_eq!(finding.object.as_deref(), Some(format!("{kind} default/a").as_str()));
            format!("{}: {}", finding.path, finding.message)
        })
        .collect()
}

#[test]
fn a_route_behind_a_catch_all_is_a_warning() {
    assert_eq!(
        about(
            "VirtualService",
            "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n  - route: [{destination: {host: b}}]"
        ),
        ["spec.http[1]: is never reached: spec.http[0] takes every request"]
    );
}

#[test]
fn a_route_does_one_thing() {
    assert_eq!(
        about(
            "VirtualService",
            "  hosts: [a]\n  http:\n  - redirect: {uri: /}\n    route: [{destination: {host: a}}]\n    directResponse: {status: 200}"
        ),
        ["spec.http[0]: only one of route and redirect and directResponse may be set"]
    );
}

#[test]
fn weights_may_be_anything_but_negative_or_all_zero() {
    let weights = |first: i32, second: i32| {
        about(
            "VirtualService",
            &format!(
                "  hosts: [a]\n  http:\n  - route: [{{destination: {{host: a}}, weight: {first}}}, {{destination: {{host: b}}, weight: {second}}}]"
            ),
        )
    };
    assert!(weights(1, 2).is_empty());
    assert!(weights(0, 1).is_empty());
    assert_eq!(weights(0, 0), ["spec.http[0].route: the weights add up to 0: nothing would go anywhere"]);
    assert_eq!(weights(-1, 5), ["spec.http[0].route[0].weight: -1 is negative"]);
    let single =
        about("VirtualService", "  hosts: [a]\n  http: [{route: [{destination: {host: a}, weight: 0}]}]");
    assert!(single.is_empty());
}

#[test]
fn a_header_value_is_a_format_string() {
    let value = |value: &str| {
        about(
            "VirtualService",
            &format!("  hosts: [a]\n  http: [{{route: [{{destination: {{host: a}}}}], headers: {{request: {{set: {{x: {value:?}}}}}}}}}]"),
        )
        .is_empty()
    };
    assert!(value("plain"));
    assert!(value("100%%"));
    assert!(value("%REQ(x-id):12%-%PROTOCOL%"));
    assert!(!value("100%"));
    assert!(!value("%lower%"));
}

#[test]
fn an_attribute_of_a_cookie_is_one_attribute() {
    let with = |name: &str, value: &str| {
        let cookie = format!("{{name: u, attributes: [{{name: {name:?}, value: {value:?}}}]}}");
        let hash = format!("{{consistentHash: {{httpCookie: {cookie}}}}}");
        about("DestinationRule", &format!("  host: a\n  trafficPolicy: {{loadBalancer: {hash}}}"))
    };
    assert!(with("SameSite", "Strict").is_empty() && with("Secure", "").is_empty());
    let refused = "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0]";
    let why = "only printable ASCII without `;` can be in a cookie";
    assert_eq!(with("x; Domain", ""), [format!("{refused}.name: {why}")]);
    assert_eq!(with("x", "é"), [format!("{refused}.value: {why}")]);
}

#[test]
fn subsets_have_names_of_their_own() {
    assert_eq!(
        about("DestinationRule", "  host: a\n  subsets: [{name: v1}, {name: v1}]"),
        ["spec.subsets[1].name: the subset \"v1\" is here twice (first at spec.subsets[0].name)"]
    );
}

#[test]
fn shares_of_a_locality_add_up_to_100() {
    assert_eq!(
        about(
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r1/*, to: {r1/*: 60, r2/*: 30}}]}}}"
        ),
        [
            "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the shares add up to 90, not to 100"
        ]
    );
}

#[test]
fn an_endpoint_names_ports_of_its_service() {
    assert_eq!(
        about(
            "ServiceEntry",
            "  hosts: [a.com]\n  resolution: STATIC\n  ports: [{number: 80, name: http, protocol: HTTP}]\n  endpoints: [{address: 192.0.2.1, ports: {web: 8080}}]"
        ),
        ["spec.endpoints[0].ports.web: \"web\" is no port of spec.ports (has: http)"]
    );
}

/// Each line is what Istio's validator says: `yes` or `no`, a kind, and a specification.
///
/// Source: the functions of `pkg/config/validation` that are named, and `pkg/config/validation/agent`.
const ISTIO: &[(&str, bool, &str, &str)] = &[
    (
        "validateHTTPRouteMatchRequest",
        true,
        "VirtualService",
        "{hosts: [a], http: [{match: [{uri: {prefix: ''}}], ROUTE}]}",
    ),
    (
        "validateHTTPRouteMatchRequest",
        false,
        "VirtualService",
        "{hosts: [a], http: [{match: [{method: {prefix: ''}}], ROUTE}]}",
    ),
    (
        "validateHTTPRouteMatchRequest",
        true,
        "VirtualService",
        "{hosts: [a], http: [{match: [{port: 0}], ROUTE}]}",
    ),
    (
        "validateHTTPRouteMatchRequest",
        true,
        "VirtualService",
        "{hosts: [a], http: [{match: [{sourceNamespace: web}], ROUTE}]}",
    ),
    (
        "validateHTTPRouteMatchRequest",
        false,
        "VirtualService",
        "{hosts: [a], http: [{match: [{sourceNamespace: w_b}], ROUTE}]}",
    ),
    (
        "ValidateHTTPHeaderOperationName",
        false,
        "VirtualService",
        "{hosts: [a], http: [{headers: {response: {set: {host: x}}}, ROUTE}]}",
    ),
    (
        "ValidateHTTPHeaderOperationName",
        false,
        "VirtualService",
        "{hosts: [a], http: [{headers: {response: {add: {':authority': x}}}, ROUTE}]}",
    ),
    (
        "ValidateHTTPHeaderOperationName",
        false,
        "VirtualService",
        "{hosts: [a], http: [{headers: {request: {remove: [Host]}}, ROUTE}]}",
    ),
    (
        "ValidateHTTPHeaderWithAuthorityOperationName",
        true,
        "VirtualService",
        "{hosts: [a], http: [{headers: {request: {add: {':authority': x}}}, ROUTE}]}",
    ),
    (
        "validateAuthorityRewrite",
        false,
        "VirtualService",
        "{hosts: [a], http: [{headers: {request: {set: {host: x, ':authority': y}}}, ROUTE}]}",
    ),
    (
        "validateAuthorityRewrite",
        false,
        "VirtualService",
        "{hosts: [a], http: [{headers: {request: {add: {host: x}}}, rewrite: {authority: y}, ROUTE}]}",
    ),
    (
        "validateHTTPRedirect",
        true,
        "VirtualService",
        "{hosts: [a], http: [{match: [{uri: {prefix: /a}}, {method: {exact: GET}}], redirect: {prefixRewrite: /b}}]}",
    ),
    (
        "validateHTTPFaultInjectionAbort",
        true,
        "VirtualService",
        "{hosts: [a], http: [{fault: {abort: {percentage: {value: 1}}}, ROUTE}]}",
    ),
    (
        "validateHTTPFaultInjectionAbort",
        false,
        "VirtualService",
        "{hosts: [a], http: [{fault: {abort: {http2Error: x, percentage: {value: 1}}}, ROUTE}]}",
    ),
    (
        "validateHTTPFaultInjectionDelay",
        true,
        "VirtualService",
        "{hosts: [a], http: [{fault: {delay: {percentage: {value: 1}}}, ROUTE}]}",
    ),
    (
        "validateHTTPFaultInjectionDelay",
        false,
        "VirtualService",
        "{hosts: [a], http: [{fault: {delay: {exponentialDelay: 1s}}, ROUTE}]}",
    ),
    (
        "validatePercentage",
        false,
        "VirtualService",
        "{hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}, ROUTE}]}",
    ),
    (
        "validatePercentage",
        true,
        "VirtualService",
        "{hosts: [a], http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 0.0001}}}, ROUTE}]}",
    ),
    (
        "validateHTTPMirrors",
        true,
        "VirtualService",
        "{hosts: [a], http: [{mirrors: [{destination: {host: b}, percentage: {value: 0.00001}}], ROUTE}]}",
    ),
    ("validateGatewayNames", false, "VirtualService", "{hosts: [a], gateways: [ns/a.b], http: [{ROUTE}]}"),
    ("validateGatewayNames", true, "VirtualService", "{hosts: [a], gateways: [a.b], http: [{ROUTE}]}"),
    ("ValidateVirtualService", false, "VirtualService", "{hosts: ['*.a.com', x.a.com], http: [{ROUTE}]}"),
    ("ValidateVirtualService", false, "VirtualService", "{hosts: ['*.a.com', '*.com'], http: [{ROUTE}]}"),
    ("ValidateVirtualService", true, "VirtualService", "{hosts: ['*.a.com', a.com], http: [{ROUTE}]}"),
    ("ValidateWildcardDomain", false, "VirtualService", "{hosts: [reviews.10], http: [{ROUTE}]}"),
    ("ValidateWildcardDomain", true, "VirtualService", "{hosts: ['10'], http: [{ROUTE}]}"),
    (
        "ValidateWildcardDomainForVirtualServiceBoundToGateway",
        false,
        "VirtualService",
        "{hosts: ['outbound_.80_._.a.com'], tls: [{match: [{sniHosts: ['outbound_.80_._.a.com']}], ROUTE}]}",
    ),
    (
        "ValidateWildcardDomainForVirtualServiceBoundToGateway",
        true,
        "VirtualService",
        "{hosts: ['outbound_.80_._.a.com'], gateways: [g], tls: [{match: [{sniHosts: ['outbound_.80_._.a.com']}], ROUTE}]}",
    ),
    (
        "validateTLSMatch",
        true,
        "VirtualService",
        "{hosts: [a.com], tls: [{match: [{sniHosts: [a.com], port: 0}], ROUTE}]}",
    ),
    ("validateExportTo", false, "VirtualService", "{hosts: [a], exportTo: ['~'], http: [{ROUTE}]}"),
    ("validateExportTo", false, "VirtualService", "{hosts: [a], exportTo: [., default], http: [{ROUTE}]}"),
    ("validateExportTo", true, "ServiceEntry", "{hosts: [a.com], exportTo: ['~'], PORTS, resolution: DNS}"),
    (
        "validateExportTo",
        false,
        "DestinationRule",
        "{host: a, workloadSelector: {matchLabels: {app: a}}, exportTo: [other]}",
    ),
    (
        "validateExportTo",
        true,
        "DestinationRule",
        "{host: a, workloadSelector: {matchLabels: {app: a}}, exportTo: [.]}",
    ),
    (
        "validateTrafficPolicy",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {tunnel: {targetHost: b, targetPort: 1}, proxyProtocol: {}}}",
    ),
    (
        "validatePortTrafficPolicies",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}}]}}",
    ),
    (
        "validateOutlierDetection",
        true,
        "DestinationRule",
        "{host: a, trafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 0}}}",
    ),
    (
        "validateOutlierDetection",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 1}}}",
    ),
    (
        "validateConnectionPool",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {time: 0.1ms}}}}}",
    ),
    (
        "validateLoadBalancer",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}}",
    ),
    (
        "validateLoadBalancer",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 5000011}}}}}",
    ),
    (
        "validateLoadBalancer",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 1s, aggression: 0}}}}",
    ),
    (
        "ValidateLocalityLbSetting",
        true,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: us/*, to: {us: 100}}, {from: '*', to: {us: 100}}]}}}}",
    ),
    (
        "ValidateLocalityLbSetting",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {us: 100}}, {from: us/a, to: {us: 100}}]}}}}",
    ),
    (
        "ValidateLocalityLbSetting",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {us: 50, us/a: 50}}]}}}}",
    ),
    (
        "ValidateLocalityLbSetting",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/region]}}}}",
    ),
    (
        "ValidateZoneAwareLbSetting",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}}}}",
    ),
    (
        "ValidateTLS",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: s, caCrl: /x}}}",
    ),
    (
        "ValidateTLS",
        false,
        "DestinationRule",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: s, insecureSkipVerify: true}}}",
    ),
    (
        "ValidateServiceEntry",
        false,
        "ServiceEntry",
        "{hosts: [a.com, b.com], ports: [{number: 1, name: tcp, protocol: TCP}], resolution: DNS}",
    ),
    (
        "ValidateServiceEntry",
        true,
        "ServiceEntry",
        "{hosts: [a.com, b.com], ports: [{number: 1, name: tcp, protocol: TCP}], resolution: NONE}",
    ),
    ("ValidateServiceEntry", true, "ServiceEntry", "{hosts: [a.com, b.com], PORTS, resolution: DNS}"),
    (
        "ValidateServiceEntry",
        true,
        "ServiceEntry",
        "{hosts: [a.com], ports: [{number: 1, name: http, protocol: HTTP, targetPort: 0}], resolution: DNS}",
    ),
    (
        "ValidateServiceEntry",
        false,
        "ServiceEntry",
        "{hosts: [a.com], PORTS, resolution: DNS, endpoints: [{network: n}]}",
    ),
    (
        "ValidateServiceEntry",
        false,
        "ServiceEntry",
        "{hosts: ['*.a.com'], PORTS, resolution: DYNAMIC_DNS, addresses: [192.0.2.1]}",
    ),
    (
        "ValidateServiceEntry",
        false,
        "ServiceEntry",
        "{hosts: ['*.a.com'], ports: [{number: 1, name: tcp, protocol: TCP}], resolution: DYNAMIC_DNS}",
    ),
    (
        "ValidateProtocol",
        false,
        "ServiceEntry",
        "{hosts: [a.com], ports: [{number: 1, name: a, protocol: HBONE}], resolution: DNS}",
    ),
    (
        "validateReadinessProbe",
        false,
        "WorkloadGroup",
        "{template: {}, probe: {httpGet: {port: 80, scheme: http}}}",
    ),
    (
        "validateReadinessProbe",
        true,
        "WorkloadGroup",
        "{template: {}, probe: {httpGet: {port: 80, scheme: HTTPS}}}",
    ),
    (
        "ValidateProbeHeaderName",
        false,
        "WorkloadGroup",
        "{template: {}, probe: {httpGet: {port: 80, httpHeaders: [{name: a_b, value: x}]}}}",
    ),
    ("ValidateGateway", false, "Gateway", "{servers: [SERVER, SERVER]}"),
    ("ValidateGateway", true, "Gateway", "{servers: [SERVER]}"),
    (
        "validateServerBind",
        false,
        "Gateway",
        "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], bind: here}]}",
    ),
    (
        "validateServerBind",
        false,
        "Gateway",
        "{servers: [{port: {number: 0, name: http, protocol: HTTP}, hosts: ['*'], bind: 'unix://here'}]}",
    ),
    (
        "validateServerPort",
        false,
        "Gateway",
        "{servers: [{port: {number: 80, name: http, protocol: HTTP, targetPort: 81}, hosts: ['*']}]}",
    ),
    (
        "validateServer",
        false,
        "Gateway",
        "{servers: [{port: {number: 80, name: tcp, protocol: TCP}, hosts: ['*'], tls: {mode: PASSTHROUGH}}]}",
    ),
    (
        "validateServer",
        true,
        "Gateway",
        "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}}]}",
    ),
    (
        "validateServer",
        false,
        "Gateway",
        "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true, mode: SIMPLE, credentialName: s}}]}",
    ),
    (
        "validateTLSOptions",
        false,
        "Gateway",
        "{servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k, caCrl: /r}}]}",
    ),
    (
        "validateSidecarOrGatewayHostnamePart",
        false,
        "Gateway",
        "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*a.com']}]}",
    ),
    (
        "ValidateSidecar",
        true,
        "Sidecar",
        "{ingress: [{port: {number: 80, name: http, protocol: HTTP}, defaultEndpoint: ':8080'}]}",
    ),
    (
        "ValidateSidecar",
        false,
        "Sidecar",
        "{ingress: [{port: {number: 80, name: http, protocol: HTTP}, defaultEndpoint: '192.0.2.1:8080'}]}",
    ),
    (
        "ValidateSidecar",
        false,
        "Sidecar",
        "{ingress: [{port: {number: 443, name: tls, protocol: TLS}, tls: {mode: ISTIO_MUTUAL}}]}",
    ),
    ("ValidateSidecar", false, "Sidecar", "{ingress: [{port: {number: 80, name: h_p, protocol: HTTP}}]}"),
    (
        "validateSidecarEgressPortBindAndCaptureMode",
        false,
        "Sidecar",
        "{egress: [{port: {number: 0, name: http, protocol: HTTP}, hosts: ['*/*']}]}",
    ),
    (
        "validateSidecarEgressPortBindAndCaptureMode",
        false,
        "Sidecar",
        "{egress: [{port: {number: 80, name: http, protocol: HTTP}, bind: 'unix:///x', hosts: ['*/*']}]}",
    ),
    (
        "validateSidecarEgressPortBindAndCaptureMode",
        true,
        "Sidecar",
        "{egress: [{port: {number: 0, name: http, protocol: HTTP}, bind: 'unix:///x', hosts: ['*/*']}]}",
    ),
    (
        "validateSidecarOutboundTrafficPolicy",
        false,
        "Sidecar",
        "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.com}}}",
    ),
    ("ValidateNamespaceSlashWildcardHostname", false, "Sidecar", "{egress: [{hosts: ['./reviews']}]}"),
    ("ValidateNamespaceSlashWildcardHostname", true, "Sidecar", "{egress: [{hosts: ['~./*']}]}"),
];

/// Returns all that is said about a specification, but for what meshd does not enforce.
fn findings(kind: &str, spec: &str) -> Vec<Finding> {
    let version = kind.parse::<Kind>().expect("a kind").api_version();
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
    let (documents, mut findings) = yaml::read("a.yaml", &text);
    findings.extend(documents.iter().flat_map(|document| super::validate(&document.object)));
    findings.retain(|finding| !finding.code.starts_with("refused"));
    findings
}

/// Fails with every specification that Istio sees otherwise.
fn agrees(cases: &[(&str, bool, &str, &str)]) {
    let mut wrong = Vec::new();
    for (function, taken, kind, spec) in cases {
        let spec = spec
            .replace("ROUTE", "route: [{destination: {host: b}}]")
            .replace("PORTS", "ports: [{number: 80, name: http, protocol: HTTP}]")
            .replace("SERVER", "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}");
        let mut errors = findings(kind, &spec);
        errors.retain(|finding| finding.severity == Severity::Error);
        if errors.is_empty() != *taken {
            wrong.push(format!("{function}: {kind} {spec}: Istio says {taken}, and here: {errors:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_istio_takes_is_taken_and_what_it_refuses_is_refused() {
    agrees(ISTIO);
}

#[test]
fn annotations_that_istio_refuses_are_refused() {
    for (annotation, kind) in
        [("istio.io/dry-run", "VirtualService"), ("internal.istio.io/webhook-always-reject", "Sidecar")]
    {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, annotations: {{{annotation}: 'true'}}}}\nspec: {{}}\n"
        );
        let (documents, _) = yaml::read("a.yaml", &text);
        let findings = super::validate(&documents[0].object);
        assert!(findings.iter().any(|finding| finding.path.contains(annotation)), "{findings:?}");
    }
}
