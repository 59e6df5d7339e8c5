//! The security kinds and `Telemetry`, function by function of Istio's validator.

use super::{agrees, findings};
use crate::finding::Severity;

/// Source: Istio `pkg/config/validation`, the function that is named; `pkg/config/security` where it says so; `schema`
/// is the rules of the kind's definition.
const CASES: &[(&str, bool, &str, &str)] = &[
    ("validateWorkloadSelector", false, PA, "{selector: {matchLabels: {'': x}}}"),
    ("validateWorkloadSelector", false, PA, "{selector: {matchLabels: {app: 'a*'}}}"),
    ("validateWorkloadSelector", false, PA, "{selector: {matchLabels: {'a*': a}}}"),
    ("validateWorkloadSelector", true, PA, "{selector: {matchLabels: {app: 'a b'}}}"),
    ("validateWorkloadSelector", true, PA, "{selector: {}}"),
    ("ValidatePeerAuthentication", false, PA, "{portLevelMtls: {80: {mode: STRICT}}}"),
    ("ValidatePeerAuthentication", false, PA, "{selector: {}, portLevelMtls: {80: {mode: STRICT}}}"),
    ("ValidatePeerAuthentication", false, PA, "{SELECT, portLevelMtls: {}}"),
    ("ValidatePeerAuthentication", false, PA, "{SELECT, portLevelMtls: {0: {mode: STRICT}}}"),
    ("ValidatePeerAuthentication", false, PA, "{SELECT, portLevelMtls: {65536: {mode: STRICT}}}"),
    ("ValidatePeerAuthentication", true, PA, "{SELECT, portLevelMtls: {65535: {mode: STRICT}}}"),
    ("ValidatePeerAuthentication", true, PA, "{mtls: {mode: UNSET}}"),
    ("validateOneOfSelectorType", false, AP, "{SELECT, targetRef: {kind: Service, name: a}}"),
    ("validateOneOfSelectorType", false, AP, "{SELECT, targetRefs: [{kind: Service, name: a}]}"),
    (
        "validateOneOfSelectorType",
        false,
        RA,
        "{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: a}]}",
    ),
    ("validatePolicyTargetReference", true, AP, "{targetRef: {kind: Service, name: a}}"),
    ("validatePolicyTargetReference", true, AP, "{targetRef: {group: core, kind: Service, name: a}}"),
    ("validatePolicyTargetReference", false, AP, "{targetRef: {group: apps, kind: Service, name: a}}"),
    ("validatePolicyTargetReference", false, AP, "{targetRef: {kind: Service, name: ''}}"),
    ("validatePolicyTargetReference", false, AP, "{targetRef: {name: a}}"),
    ("validatePolicyTargetReference", false, AP, "{targetRef: {kind: Deployment, name: a}}"),
    ("validatePolicyTargetReference", false, AP, "{targetRef: {kind: ServiceEntry, name: a}}"),
    (
        "validatePolicyTargetReference",
        true,
        AP,
        "{targetRef: {group: networking.istio.io, kind: ServiceEntry, name: a}}",
    ),
    (
        "validatePolicyTargetReference",
        false,
        AP,
        "{targetRef: {group: networking.istio.io, kind: Gateway, name: a}}",
    ),
    (
        "validatePolicyTargetReference",
        true,
        RA,
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a}]}",
    ),
    (
        "validatePolicyTargetReference",
        true,
        TE,
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: a}]}",
    ),
    ("validatePolicyTargetReference", false, TE, "{targetRef: {kind: Service, name: a, namespace: default}}"),
    ("ValidateAuthorizationPolicy", true, AP, "{}"),
    ("ValidateAuthorizationPolicy", true, AP, "{action: AUDIT}"),
    ("ValidateAuthorizationPolicy", false, AP, "{action: DENY}"),
    ("ValidateAuthorizationPolicy", true, AP, "{action: DENY, rules: [{}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{action: CUSTOM, provider: {name: p}}"),
    ("ValidateAuthorizationPolicy", true, AP, "{action: CUSTOM, provider: {name: p}, rules: [{}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{action: CUSTOM, rules: [{}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{action: CUSTOM, provider: {}, rules: [{}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{action: DENY, provider: {name: p}, rules: [{}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{CUSTOM, rules: [{from: [{source: {namespaces: [a]}}]}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{CUSTOM, rules: [{from: [{source: {notNamespaces: [a]}}]}]}"),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{from: [{source: {serviceAccounts: [a]}}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{from: [{source: {notServiceAccounts: [a]}}]}]}",
    ),
    ("ValidateAuthorizationPolicy", false, AP, "{CUSTOM, rules: [{from: [{source: {trustDomains: [a]}}]}]}"),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{from: [{source: {notTrustDomains: [a]}}]}]}",
    ),
    ("ValidateAuthorizationPolicy", false, AP, "{CUSTOM, rules: [{from: [{source: {principals: [a]}}]}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{CUSTOM, rules: [{from: [{source: {notPrincipals: [a]}}]}]}"),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{from: [{source: {requestPrincipals: [a]}}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{from: [{source: {notRequestPrincipals: [a]}}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        true,
        AP,
        "{CUSTOM, rules: [{from: [{source: {ipBlocks: [192.0.2.1]}}], to: [{operation: {paths: [/a]}}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{when: [{key: source.namespace, values: [a]}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{when: [{key: source.serviceAccount, values: [a]}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{when: [{key: source.trustDomain, values: [a]}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{when: [{key: source.principal, values: [a]}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{CUSTOM, rules: [{when: [{key: 'request.auth.claims[iss]', values: [a]}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        true,
        AP,
        "{CUSTOM, rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]}",
    ),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{from: []}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{to: []}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{from: [{}]}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{to: [{}]}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{from: [{source: {}}]}]}"),
    ("ValidateAuthorizationPolicy", false, AP, "{rules: [{to: [{operation: {}}]}]}"),
    ("ValidateAuthorizationPolicy", true, AP, "{rules: [{from: [{source: {trustDomains: [a]}}]}]}"),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{rules: [{from: [{source: {principals: [a], serviceAccounts: [b]}}]}]}",
    ),
    (
        "ValidateAuthorizationPolicy",
        false,
        AP,
        "{rules: [{from: [{source: {notNamespaces: [a], notServiceAccounts: [b]}}]}]}",
    ),
    ("security.ValidateIPs", false, AP, "{rules: [{from: [{source: {ipBlocks: [192.0.2.0/33]}}]}]}"),
    ("security.ValidateIPs", false, AP, "{rules: [{from: [{source: {notIpBlocks: [192.0.2]}}]}]}"),
    ("security.ValidateIPs", false, AP, "{rules: [{from: [{source: {remoteIpBlocks: ['']}}]}]}"),
    (
        "security.ValidateIPs",
        true,
        AP,
        "{rules: [{from: [{source: {notRemoteIpBlocks: ['2001:db8::/32']}}]}]}",
    ),
    ("security.CheckEmptyValues", false, AP, "{rules: [{from: [{source: {requestPrincipals: ['']}}]}]}"),
    ("security.CheckEmptyValues", false, AP, "{rules: [{to: [{operation: {notHosts: ['']}}]}]}"),
    ("security.CheckServiceAccount", true, AP, "{rules: [{from: [{source: {serviceAccounts: [a, b/c]}}]}]}"),
    ("security.CheckServiceAccount", false, AP, "{rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]}"),
    ("security.CheckServiceAccount", false, AP, "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}"),
    ("security.CheckServiceAccount", false, AP, "{rules: [{from: [{source: {notServiceAccounts: [/b]}}]}]}"),
    ("security.CheckServiceAccount", false, AP, "{rules: [{from: [{source: {notServiceAccounts: [b/]}}]}]}"),
    ("security.CheckServiceAccount", false, AP, "{rules: [{from: [{source: {notServiceAccounts: ['']}}]}]}"),
    (
        "security.CheckTrustDomainValues",
        true,
        AP,
        "{rules: [{from: [{source: {trustDomains: ['*', 'a*', '*a']}}]}]}",
    ),
    ("security.CheckTrustDomainValues", false, AP, "{rules: [{from: [{source: {trustDomains: ['a*b']}}]}]}"),
    (
        "security.CheckTrustDomainValues",
        false,
        AP,
        "{rules: [{from: [{source: {notTrustDomains: ['*a*']}}]}]}",
    ),
    ("security.CheckTrustDomainValues", false, AP, "{rules: [{from: [{source: {notTrustDomains: [a/b]}}]}]}"),
    ("security.CheckTrustDomainValues", false, AP, "{rules: [{from: [{source: {trustDomains: ['']}}]}]}"),
    ("security.ValidatePorts", true, AP, "{rules: [{to: [{operation: {ports: ['0', '65535']}}]}]}"),
    ("security.ValidatePorts", false, AP, "{rules: [{to: [{operation: {ports: ['65536']}}]}]}"),
    ("security.ValidatePorts", false, AP, "{rules: [{to: [{operation: {notPorts: ['+80']}}]}]}"),
    ("security.ValidatePorts", false, AP, "{rules: [{to: [{operation: {notPorts: ['80-90']}}]}]}"),
    (
        "security.CheckValidPathTemplate",
        true,
        AP,
        "{rules: [{to: [{operation: {paths: ['/a/{*}/b/{**}']}}]}]}",
    ),
    (
        "security.CheckValidPathTemplate",
        true,
        AP,
        "{rules: [{to: [{operation: {paths: ['/a*', '*/b', '*']}}]}]}",
    ),
    ("security.CheckValidPathTemplate", true, AP, "{rules: [{to: [{operation: {notPaths: ['/{**}/a']}}]}]}"),
    ("security.CheckValidPathTemplate", false, AP, "{rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]}"),
    ("security.CheckValidPathTemplate", false, AP, "{rules: [{to: [{operation: {paths: ['/{a}']}}]}]}"),
    ("security.CheckValidPathTemplate", false, AP, "{rules: [{to: [{operation: {notPaths: ['/a{*}']}}]}]}"),
    ("security.CheckValidPathTemplate", false, AP, "{rules: [{to: [{operation: {notPaths: ['/{*}/a*']}}]}]}"),
    ("security.CheckValidPathTemplate", false, AP, "{rules: [{to: [{operation: {notPaths: ['/a//{*}']}}]}]}"),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: 'request.headers[User-Agent]', values: [a]}]}]}",
    ),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: request.headers, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: 'request.headers[a', values: [a]}]}]}"),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: 'request.auth.claims[a][b]', values: [a]}]}]}",
    ),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: request.auth.claims, values: [a]}]}]}"),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: 'experimental.envoy.filters.network.mysql_proxy[db.table]', values: [a]}]}]}",
    ),
    (
        "security.ValidateAttribute",
        false,
        AP,
        "{rules: [{when: [{key: experimental.envoy.filters.a, values: [a]}]}]}",
    ),
    ("security.ValidateAttribute", true, AP, "{rules: [{when: [{key: source.ip, values: [192.0.2.0/24]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: source.ip, notValues: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: remote.ip, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: destination.ip, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: destination.port, values: ['x']}]}]}"),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: destination.port, notValues: ['80']}]}]}",
    ),
    (
        "security.ValidateAttribute",
        false,
        AP,
        "{rules: [{when: [{key: source.serviceAccount, values: ['a*']}]}]}",
    ),
    (
        "security.ValidateAttribute",
        false,
        AP,
        "{rules: [{when: [{key: source.trustDomain, values: ['a*b']}]}]}",
    ),
    ("security.ValidateAttribute", true, AP, "{rules: [{when: [{key: source.trustDomain, values: [a/b]}]}]}"),
    ("security.ValidateAttribute", true, AP, "{rules: [{when: [{key: source.namespace, values: ['a*b']}]}]}"),
    ("security.ValidateAttribute", true, AP, "{rules: [{when: [{key: connection.sni, values: [a.com]}]}]}"),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: request.auth.presenter, values: [a]}]}]}",
    ),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: request.auth.audiences, values: [a]}]}]}",
    ),
    (
        "security.ValidateAttribute",
        true,
        AP,
        "{rules: [{when: [{key: request.auth.principal, values: [a]}]}]}",
    ),
    ("security.ValidateAttribute", true, AP, "{rules: [{when: [{key: source.principal, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: source.principal, values: ['']}]}]}"),
    (
        "security.ValidateAttribute",
        false,
        AP,
        "{rules: [{when: [{key: destination.namespace, values: [a]}]}]}",
    ),
    (
        "security.ValidateAttribute",
        false,
        AP,
        "{rules: [{when: [{key: 'destination.labels[a]', values: [a]}]}]}",
    ),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: destination.name, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: destination.user, values: [a]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: request.method, values: [GET]}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{key: source.ip}]}]}"),
    ("security.ValidateAttribute", false, AP, "{rules: [{when: [{values: [a]}]}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{issuer: a}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{jwksUri: 'https://a.com/keys'}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, audiences: ['']}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwksUri: 'ftp://a.com'}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwksUri: a.com}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwksUri: 'https://a.com:x/'}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{issuer: a, jwksUri: 'https://[2001:db8::1]:443/'}]}"),
    ("schema", false, RA, "{jwtRules: [{issuer: a, jwksUri: 'https://a.com', jwks: '{\"keys\": []}'}]}"),
    ("schema", false, RA, "{jwtRules: [{issuer: a, jwksUri: 'https://a.com', jwks_uri: 'https://a.com'}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{issuer: a, jwks: '{\"keys\": []}'}]}"),
    (
        "validateJwtRule",
        true,
        RA,
        "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\", \"n\": \"AQ\", \"e\": \"AQAB\"}]}'}]}",
    ),
    (
        "validateJwtRule",
        false,
        RA,
        "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"RSA\", \"n\": \"AQ\"}]}'}]}",
    ),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"DSA\"}]}'}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwks: '{\"keys\": 1}'}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, jwks: 'keys'}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, fromHeaders: [{prefix: 'Bearer '}]}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{issuer: a, fromHeaders: [{name: 'a b'}]}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, fromParams: ['']}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, fromCookies: ['']}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: x}]}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, outputClaimToHeaders: [{claim: x}]}]}"),
    (
        "validateJwtRule",
        true,
        RA,
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: x_a-1, claim: x}]}]}",
    ),
    (
        "validateJwtRule",
        false,
        RA,
        "{jwtRules: [{issuer: a, outputClaimToHeaders: [{header: x.a, claim: x}]}]}",
    ),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, timeout: 0s}]}"),
    ("validateJwtRule", false, RA, "{jwtRules: [{issuer: a, timeout: 1.5ms}]}"),
    ("validateJwtRule", true, RA, "{jwtRules: [{issuer: a, timeout: 5s}]}"),
    ("validateTelemetryTracing", true, TE, "{tracing: [{}, {}]}"),
    ("validateTelemetryTracing", true, TE, "{tracing: [{providers: [{name: a}, {name: b}]}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{randomSamplingPercentage: 100.5}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{randomSamplingPercentage: -1}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{customTags: {'': {literal: {value: a}}}}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{customTags: {a: {literal: {}}}}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{customTags: {a: {header: {defaultValue: x}}}}]}"),
    ("validateTelemetryTracing", false, TE, "{tracing: [{customTags: {a: {environment: {}}}}]}"),
    ("schema", false, TE, "{tracing: [{customTags: {a: {formatter: {value: ''}}}}]}"),
    ("schema", false, TE, "{tracing: [{customTags: {a: {literal: {value: a}, header: {name: b}}}}]}"),
    ("validateTelemetryProviders", false, TE, "{tracing: [{providers: [{}]}]}"),
    ("validateTelemetryProviders", false, TE, "{metrics: [{providers: [{name: ''}]}]}"),
    ("validateTelemetryProviders", false, TE, "{accessLogging: [{providers: [{}]}]}"),
    (
        "validateTelemetryMetrics",
        false,
        TE,
        "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}",
    ),
    (
        "validateTelemetryMetrics",
        false,
        TE,
        "{metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: b}}}]}]}",
    ),
    (
        "validateTelemetryMetrics",
        true,
        TE,
        "{metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE}}}]}]}",
    ),
    ("validateTelemetryMetrics", false, TE, "{metrics: [{overrides: [{match: {customMetric: ''}}]}]}"),
    ("schema", false, TE, "{metrics: [{overrides: [{match: {customMetric: a, metric: REQUEST_COUNT}}]}]}"),
    ("schema", false, TE, "{metrics: [{reportingInterval: 0.1ms}]}"),
    (
        "validateTelemetryFilter",
        true,
        TE,
        "{accessLogging: [{filter: {expression: 'size(request.path) > 3'}}]}",
    ),
    ("validateTelemetryFilter", false, TE, "{accessLogging: [{filter: {expression: 'response.code >='}}]}"),
    ("validateTelemetryFilter", false, TE, "{accessLogging: [{filter: {expression: \"'open\"}}]}"),
];

const PA: &str = "PeerAuthentication";
const AP: &str = "AuthorizationPolicy";
const RA: &str = "RequestAuthentication";
const TE: &str = "Telemetry";

#[test]
fn security_and_telemetry_are_taken_and_refused_as_by_istio() {
    let written: Vec<_> = CASES
        .iter()
        .map(|(function, taken, kind, spec)| {
            let spec = spec
                .replace("SELECT", "selector: {matchLabels: {app: a}}")
                .replace("{CUSTOM,", "{action: CUSTOM, provider: {name: p},");
            (*function, *taken, *kind, spec)
        })
        .collect();
    let cases: Vec<_> = written
        .iter()
        .map(|(function, taken, kind, spec)| (*function, *taken, *kind, spec.as_str()))
        .collect();
    agrees(&cases);
}

#[test]
fn what_is_odd_in_security_and_telemetry_is_a_warning() {
    let deny = |rule: &str| format!("{{action: DENY, rules: [{{{rule}}}]}}");
    let warned = [
        (PA, "{selector: {}}".to_owned(), true),
        (PA, "{selector: {matchLabels: {app: a}}}".to_owned(), false),
        (AP, deny("to: [{operation: {paths: [/a]}}]"), true),
        (AP, deny("to: [{operation: {paths: [/a], ports: ['80']}}]"), false),
        (AP, deny("from: [{source: {requestPrincipals: [a]}}]"), true),
        (AP, deny("from: [{source: {namespaces: [a]}}]"), false),
        (AP, deny("from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]"), true),
        (AP, "{rules: [{to: [{operation: {paths: [/a]}}]}]}".to_owned(), false),
        (
            RA,
            "{jwtRules: [{issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"AQ\"}]}'}]}".to_owned(),
            true,
        ),
        (TE, "{tracing: [{}, {}]}".to_owned(), true),
        (TE, "{tracing: [{providers: [{name: a}, {name: b}]}]}".to_owned(), true),
    ];
    for (kind, spec, is_odd) in warned {
        let found = findings(kind, &spec);
        let warnings = found.iter().filter(|finding| finding.severity == Severity::Warning).count();
        assert_eq!(
            (found.len(), warnings),
            (usize::from(is_odd), usize::from(is_odd)),
            "{kind} {spec}: {found:?}"
        );
    }
}

#[test]
fn an_unknown_attribute_is_answered_with_those_that_are_known() {
    let found = findings(AP, "{rules: [{when: [{key: source.ips, values: [a]}]}]}");
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.path, "spec.rules[0].when[0].key");
    assert!(
        finding.message.starts_with("\"source.ips\" is no attribute; known are request.headers[name]"),
        "{finding}"
    );
}
