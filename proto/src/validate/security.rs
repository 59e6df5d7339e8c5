//! Rules of the security kinds and `Telemetry`.

use super::{Check, each, text};
use crate::resource::{
    AuthorizationAction, AuthorizationPolicy, JwtRule, MatchLabels, ObjectMeta, Operation,
    PeerAuthentication, PolicyTargetReference, RequestAuthentication, Source, TagOperation, Telemetry,
};

pub(super) fn check_peer(check: &mut Check, spec: &PeerAuthentication) {
    selector(check, spec.selector.as_ref(), None, &[]);
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selects {
        check.error("spec.portLevelMtls", "needs a selector with labels");
    }
    for port in spec.port_level_mtls.keys() {
        check.port(format!("spec.portLevelMtls.{port}"), *port);
    }
}

/// Who a policy is for: labels, or references, not both.
fn selector(
    check: &mut Check,
    labels: Option<&MatchLabels>,
    one: Option<&PolicyTargetReference>,
    several: &[PolicyTargetReference],
) {
    if let Some(selector) = labels {
        check.rule("spec.selector.matchLabels", text::labels(&selector.match_labels));
    }
    let used = [labels.is_some(), one.is_some(), !several.is_empty()];
    if used.iter().filter(|used| **used).count() > 1 {
        check.error("spec", "only one of selector, targetRef and targetRefs may be set");
    }
    let single = one.map(|reference| ("spec.targetRef".to_owned(), reference));
    for (path, reference) in single.into_iter().chain(each("spec.targetRefs", several)) {
        check.required(format!("{path}.name"), &reference.name);
        check.required(format!("{path}.kind"), &reference.kind);
        if !reference.namespace.is_empty() {
            check.error(format!("{path}.namespace"), "must not be set: a policy is for its own namespace");
        }
        if !reference.group.is_empty() {
            check.rule(format!("{path}.group"), text::fqdn(&reference.group));
        }
    }
}

pub(super) fn check_authorization(check: &mut Check, meta: &ObjectMeta, spec: &AuthorizationPolicy) {
    if let Some(value) = meta.annotations.get(DRY_RUN) {
        dry_run(check, value, spec.action);
    }
    selector(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    let provider = spec.provider.as_ref().is_some_and(|provider| !provider.name.is_empty());
    if spec.action == AuthorizationAction::Custom && !provider {
        check.error("spec.provider.name", "must be there for CUSTOM");
    }
    if spec.action != AuthorizationAction::Custom && spec.provider.is_some() {
        check.error("spec.provider", "is for the action CUSTOM only");
    }
    for (path, rule) in each("spec.rules", &spec.rules) {
        // Absent means anybody; empty was hardly meant so.
        let empty = [
            ("from", rule.from.as_ref().is_some_and(Vec::is_empty)),
            ("to", rule.to.as_ref().is_some_and(Vec::is_empty)),
        ];
        for (field, _) in empty.iter().filter(|(_, empty)| *empty) {
            check.error(format!("{path}.{field}"), "must not be empty; leave it out for any");
        }
        for (path, from) in each(&format!("{path}.from"), rule.from.as_deref().unwrap_or_default()) {
            match &from.source {
                Some(part) if *part != Source::default() => source(check, &format!("{path}.source"), part),
                _ => check.error(format!("{path}.source"), "must not be empty"),
            }
        }
        for (path, to) in each(&format!("{path}.to"), rule.to.as_deref().unwrap_or_default()) {
            match &to.operation {
                Some(part) if *part != Operation::default() => {
                    operation(check, &format!("{path}.operation"), part);
                }
                _ => check.error(format!("{path}.operation"), "must not be empty"),
            }
        }
        for (path, condition) in each(&format!("{path}.when"), &rule.when) {
            check.required(format!("{path}.key"), &condition.key);
            if condition.values.is_empty() && condition.not_values.is_empty() {
                check.error(path.clone(), "must have values or notValues");
            }
            let address = matches!(condition.key.as_str(), "source.ip" | "destination.ip" | "remote.ip");
            for (field, values) in [("values", &condition.values), ("notValues", &condition.not_values)] {
                texts(check, &format!("{path}.{field}"), values);
                for (path, value) in each(&format!("{path}.{field}"), values).filter(|_| address) {
                    check.rule(path, text::subnet(value));
                }
            }
        }
    }
}

const DRY_RUN: &str = "istio.io/dry-run";

fn dry_run(check: &mut Check, value: &str, action: AuthorizationAction) {
    let path = crate::yaml::join("metadata.annotations", DRY_RUN);
    if !matches!(value, "true" | "false") {
        check.error(path, format!("{value:?} is neither true nor false"));
    } else if !matches!(action, AuthorizationAction::Allow | AuthorizationAction::Deny) {
        check.error(path, "is for the actions ALLOW and DENY only");
    }
}

fn texts(check: &mut Check, path: &str, values: &[String]) {
    for (path, value) in each(path, values) {
        if value.is_empty() {
            check.error(path, "must not be empty");
        }
    }
}

fn source(check: &mut Check, path: &str, source: &Source) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    for (field, values) in lists {
        texts(check, &format!("{path}.{field}"), values);
    }
    let blocks = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    for (field, values) in blocks {
        for (path, value) in each(&format!("{path}.{field}"), values) {
            check.rule(path, text::subnet(value));
        }
    }
    let accounts = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if accounts && others.iter().any(|list| !list.is_empty()) {
        check.error(path, "serviceAccounts cannot stand beside principals or namespaces");
    }
}

fn operation(check: &mut Check, path: &str, operation: &Operation) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    for (field, values) in lists {
        texts(check, &format!("{path}.{field}"), values);
    }
    for (field, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        for (path, port) in each(&format!("{path}.{field}"), values) {
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                check.error(path, format!("{port:?} is no port (1 to 65535)"));
            }
        }
    }
}

pub(super) fn check_request(check: &mut Check, spec: &RequestAuthentication) {
    selector(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    for (path, rule) in each("spec.jwtRules", &spec.jwt_rules) {
        jwt_rule(check, &path, rule);
    }
}

fn jwt_rule(check: &mut Check, path: &str, rule: &JwtRule) {
    check.required(format!("{path}.issuer"), &rule.issuer);
    texts(check, &format!("{path}.audiences"), &rule.audiences);
    texts(check, &format!("{path}.fromParams"), &rule.from_params);
    texts(check, &format!("{path}.fromCookies"), &rule.from_cookies);
    texts(check, &format!("{path}.spaceDelimitedClaims"), &rule.space_delimited_claims);
    for (field, uri) in [("jwksUri", &rule.jwks_uri), ("jwks_uri", &rule.jwks_uri_snake)] {
        if uri.is_empty() {
            continue;
        }
        let parsed = uri.parse::<http::Uri>().ok();
        let right = parsed
            .is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && port_is_number(&uri));
        if !right {
            check.error(format!("{path}.{field}"), format!("{uri:?} is no http or https address"));
        }
    }
    if !rule.jwks.is_empty()
        && serde_json::from_str::<serde_json::Value>(&rule.jwks).map_or(true, |keys| !keys["keys"].is_array())
    {
        check.error(format!("{path}.jwks"), "must be a JSON Web Key Set, such as {\"keys\": […]}");
    }
    for (path, header) in each(&format!("{path}.fromHeaders"), &rule.from_headers) {
        check.rule(format!("{path}.name"), text::header_name(&header.name));
    }
    for (path, claim) in each(&format!("{path}.outputClaimToHeaders"), &rule.output_claim_to_headers) {
        check.rule(format!("{path}.header"), text::header_name(&claim.header));
        check.required(format!("{path}.claim"), &claim.claim);
    }
    check.duration(format!("{path}.timeout"), rule.timeout);
}

fn port_is_number(uri: &http::Uri) -> bool {
    uri.authority().is_some_and(|authority| {
        authority.port_u16().is_some()
            || !authority.as_str().rsplit(']').next().unwrap_or_default().contains(':')
    })
}

pub(super) fn check_telemetry(check: &mut Check, spec: &Telemetry) {
    selector(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    for (path, tracing) in each("spec.tracing", &spec.tracing) {
        if let Some(percent) = tracing.random_sampling_percentage {
            check.percent(format!("{path}.randomSamplingPercentage"), percent);
        }
        if tracing.providers.len() > 1 {
            check.warning(format!("{path}.providers"), "only the first provider of traces is used");
        }
    }
    for (path, metrics) in each("spec.metrics", &spec.metrics) {
        for (path, provider) in each(&format!("{path}.providers"), &metrics.providers) {
            check.required(format!("{path}.name"), &provider.name);
        }
        for (path, override_) in each(&format!("{path}.overrides"), &metrics.overrides) {
            if override_.r#match.as_ref().is_some_and(|part| part.custom_metric.as_deref() == Some("")) {
                check.error(format!("{path}.match.customMetric"), "must not be empty");
            }
            for (name, tag) in &override_.tag_overrides {
                let path = crate::yaml::join(&format!("{path}.tagOverrides"), name);
                match tag.operation {
                    TagOperation::Upsert => {
                        check.required(format!("{path}.value"), &tag.value);
                    }
                    TagOperation::Remove if !tag.value.is_empty() => {
                        check.error(format!("{path}.value"), "must not be set where the tag is removed");
                    }
                    TagOperation::Remove => {}
                }
            }
        }
    }
}
