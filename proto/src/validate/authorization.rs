//! Rules of `AuthorizationPolicy`.
//!
//! Source: Istio `ValidateAuthorizationPolicy`, `pkg/config/security`, and the schema.

use super::{Check, each, security, text};
use crate::resource::{
    AuthorizationAction, AuthorizationPolicy, Condition, ObjectMeta, Operation, Rule, Source,
};
use crate::yaml::shorten;

pub(super) fn check(check: &mut Check, meta: &ObjectMeta, spec: &AuthorizationPolicy) {
    if let Some(value) = meta.annotations.get(super::DRY_RUN) {
        dry_run(check, value, spec.action);
    }
    security::target(check, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    action(check, spec);
    check.at_most("spec.rules", spec.rules.len(), 512);
    for (path, rule) in each("spec.rules", &spec.rules) {
        conditions(check, &path, rule);
        match spec.action {
            AuthorizationAction::Custom => within_custom(check, &path, rule),
            AuthorizationAction::Deny if asks_of_requests_only(rule) => check.warning(
                path,
                "asks of requests only, so it denies every connection of a TCP port; name ports in to[].operation.ports",
            ),
            _ => {}
        }
    }
}

fn dry_run(check: &mut Check, value: &str, action: AuthorizationAction) {
    let path = crate::yaml::join("metadata.annotations", super::DRY_RUN);
    if !TRUTHS.contains(&value) {
        check.error(path, format!("{:?} is neither true nor false", shorten(value)));
    } else if !matches!(action, AuthorizationAction::Allow | AuthorizationAction::Deny) {
        check.error(path, "is for the actions ALLOW and DENY only");
    }
}

/// Source: Go `strconv.ParseBool`.
const TRUTHS: [&str; 12] = ["true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False"];

fn action(check: &mut Check, spec: &AuthorizationPolicy) {
    let is_custom = spec.action == AuthorizationAction::Custom;
    if spec.rules.is_empty() && (is_custom || spec.action == AuthorizationAction::Deny) {
        let name = if is_custom { "CUSTOM" } else { "DENY" };
        check.error(
            "spec.rules",
            format!("{name} without rules is never met; write \"rules: [{{}}]\" for every request"),
        );
    }
    match &spec.provider {
        Some(provider) if is_custom => {
            check.required("spec.provider.name", &provider.name);
        }
        Some(_) => check.error("spec.provider", "is for the action CUSTOM only"),
        None if is_custom => check.error("spec.provider.name", "must be there: it says who decides"),
        None => {}
    }
}

fn conditions(check: &mut Check, path: &str, rule: &Rule) {
    let from = rule.from.as_deref();
    let to = rule.to.as_deref();
    // Absent means anybody; empty was hardly meant so.
    for (field, is_empty) in
        [("from", from.is_some_and(<[_]>::is_empty)), ("to", to.is_some_and(<[_]>::is_empty))]
    {
        if is_empty {
            check.error(format!("{path}.{field}"), "must not be empty; leave it out for any");
        }
    }
    let from = from.unwrap_or_default();
    check.at_most(&format!("{path}.from"), from.len(), 512);
    for (path, from) in each(&format!("{path}.from"), from) {
        match &from.source {
            Some(part) if *part != Source::default() => source(check, &format!("{path}.source"), part),
            _ => check.error(format!("{path}.source"), "must not be empty"),
        }
    }
    for (path, to) in each(&format!("{path}.to"), to.unwrap_or_default()) {
        match &to.operation {
            Some(part) if *part != Operation::default() => {
                operation(check, &format!("{path}.operation"), part);
            }
            _ => check.error(format!("{path}.operation"), "must not be empty"),
        }
    }
    for (path, one) in each(&format!("{path}.when"), &rule.when) {
        condition(check, &path, one);
    }
}

fn source(check: &mut Check, path: &str, source: &Source) {
    let names = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ];
    for (field, values) in names {
        check.filled(&format!("{path}.{field}"), values);
    }
    for (field, values) in
        [("serviceAccounts", &source.service_accounts), ("notServiceAccounts", &source.not_service_accounts)]
    {
        accounts(check, &format!("{path}.{field}"), values);
    }
    for (field, values) in
        [("trustDomains", &source.trust_domains), ("notTrustDomains", &source.not_trust_domains)]
    {
        let path = format!("{path}.{field}");
        wildcards(check, &path, values);
        for (path, _) in each(&path, values).filter(|(_, value)| value.contains('/')) {
            check.error(path, "a trust domain has no \"/\"");
        }
    }
    let blocks = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    for (field, values) in blocks {
        addresses(check, &format!("{path}.{field}"), values);
    }
    let by_account = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let others = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if by_account && others.iter().any(|list| !list.is_empty()) {
        check.error(path, "serviceAccounts cannot stand beside principals or namespaces");
    }
}

fn operation(check: &mut Check, path: &str, operation: &Operation) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
    ];
    for (field, values) in lists {
        check.filled(&format!("{path}.{field}"), values);
    }
    for (field, values) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        let path = format!("{path}.{field}");
        check.filled(&path, values);
        for (path, value) in each(&path, values) {
            check.rule(path, path_template(value));
        }
    }
    for (field, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        ports(check, &format!("{path}.{field}"), values);
    }
}

/// `{*}` stands for one segment of a path, `{**}` for all that are left.
fn path_template(value: &str) -> Result<(), String> {
    let (one, rest) = ("{*}", "{**}");
    let is_template = value.contains(one) || value.contains(rest);
    let literal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte);
    let mut ended = false;
    for segment in value.trim_matches('/').split('/') {
        let is_operator = segment == one || segment == rest;
        let shown = shorten(value);
        if is_operator && ended {
            return Err(format!("{shown:?}: nothing but plain segments may follow {{**}}"));
        }
        ended |= segment == rest;
        if is_operator {
            continue;
        }
        if segment.contains(['{', '}']) {
            return Err(format!("{shown:?}: braces are for whole segments: {{*}} is one, {{**}} the rest"));
        }
        if is_template && (segment.is_empty() || !segment.bytes().all(literal)) {
            return Err(format!(
                "{shown:?}: the segment {segment:?} is not plain text beside {{*}} or {{**}}"
            ));
        }
    }
    Ok(())
}

fn condition(check: &mut Check, path: &str, condition: &Condition) {
    if !check.required(format!("{path}.key"), &condition.key) {
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        return check.error(path, "must have values or notValues");
    }
    let values = [("values", &condition.values), ("notValues", &condition.not_values)];
    let values = values.map(|(field, values)| (format!("{path}.{field}"), values));
    for (path, values) in &values {
        check.filled(path, values);
    }
    let (name, argument) = match condition.key.find('[') {
        Some(open) => condition.key.split_at(open),
        None => (condition.key.as_str(), ""),
    };
    let path = format!("{path}.key");
    if let Some(each_value) = PLAIN.iter().find(|(known, _)| *known == condition.key).map(|(_, rule)| rule) {
        for (path, values) in &values {
            each_value(check, path, values);
        }
    } else if NAMED.iter().any(|known| name.starts_with(known)) {
        if argument.len() < 3 || !argument.ends_with(']') {
            check.error(path, format!("{:?} lacks a name: write {name}[name]", shorten(&condition.key)));
        }
    } else if let Some((_, instead)) = GONE.iter().find(|(gone, _)| name == *gone) {
        check.error(path, format!("{name} {instead}"));
    } else {
        let known: Vec<_> = PLAIN.iter().map(|(known, _)| (*known).to_owned()).collect();
        let named: Vec<_> = NAMED[..2].iter().map(|known| format!("{known}[name]")).collect();
        check.error(
            path,
            format!(
                "{:?} is no attribute; known are {}",
                shorten(&condition.key),
                [named, known].concat().join(", ")
            ),
        );
    }
}

type EachValue = fn(&mut Check, &str, &[String]);

/// Attributes, with what their values must be.
const PLAIN: &[(&str, EachValue)] = &[
    ("source.ip", addresses),
    ("remote.ip", addresses),
    ("source.namespace", anything),
    ("source.serviceAccount", accounts),
    ("source.principal", anything),
    ("source.trustDomain", wildcards),
    ("request.auth.principal", anything),
    ("request.auth.audiences", anything),
    ("request.auth.presenter", anything),
    ("destination.ip", addresses),
    ("destination.port", ports),
    ("connection.sni", anything),
];

/// Attributes with a name in brackets.
const NAMED: [&str; 3] = ["request.headers", "request.auth.claims", "experimental.envoy.filters."];

const GONE: [(&str, &str); 4] = [
    ("destination.namespace", "is not known any more: a policy is for its own namespace"),
    ("destination.labels", "is not known any more: write a selector"),
    ("destination.name", "is not known any more: write a selector"),
    ("destination.user", "is not known any more: write a selector"),
];

fn anything(_: &mut Check, _: &str, _: &[String]) {}

fn addresses(check: &mut Check, path: &str, values: &[String]) {
    for (path, value) in each(path, values) {
        check.rule(path, text::subnet(value));
    }
}

fn ports(check: &mut Check, path: &str, values: &[String]) {
    for (path, value) in each(path, values) {
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u16>() {
            Ok(0) => check.warning(path, "nobody listens on port 0"),
            Ok(_) if digits => {}
            _ => check.error(path, format!("{:?} is no port (1 to 65535)", shorten(value))),
        }
    }
}

/// At most one `*`, at the beginning or the end.
fn wildcards(check: &mut Check, path: &str, values: &[String]) {
    check.filled(path, values);
    for (path, value) in each(path, values) {
        let stars = value.matches('*').count();
        if stars > 1 || stars == 1 && !value.starts_with('*') && !value.ends_with('*') {
            check.error(
                path,
                format!("{:?}: one \"*\" may stand at the beginning or the end", shorten(value)),
            );
        }
    }
}

/// `name` or `namespace/name`.
fn accounts(check: &mut Check, path: &str, values: &[String]) {
    check.at_most(path, values.len(), 16);
    for (path, value) in each(path, values) {
        check.no_longer(path.clone(), value, 320);
        if value.contains('*') {
            check.error(path, format!("{:?}: accounts take no wildcards; principals do", shorten(value)));
        } else if value.split('/').any(str::is_empty) || value.split('/').count() > 2 {
            check.error(path, format!("{:?} is no account: write name or namespace/name", shorten(value)));
        }
    }
}

/// What a provider cannot be asked about: identities are proven after it decides.
fn within_custom(check: &mut Check, path: &str, rule: &Rule) {
    for (path, from) in each(&format!("{path}.from"), rule.from.as_deref().unwrap_or_default()) {
        let Some(source) = &from.source else { continue };
        let fields = [
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
        ];
        for (field, _) in fields.iter().filter(|(_, values)| !values.is_empty()) {
            check.error(format!("{path}.source.{field}"), "cannot be a condition of the action CUSTOM");
        }
    }
    for (path, condition) in each(&format!("{path}.when"), &rule.when) {
        let key = condition.key.as_str();
        let of_callers =
            ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];
        if of_callers.contains(&key) || key.starts_with("request.auth.") {
            check.error(format!("{path}.key"), format!("{key} cannot be a condition of the action CUSTOM"));
        }
    }
}

/// Whether a rule names callers or operations, and nothing that is known of every connection.
fn asks_of_requests_only(rule: &Rule) -> bool {
    let sources = || rule.from.iter().flatten().filter_map(|from| from.source.as_ref());
    let operations = || rule.to.iter().flatten().filter_map(|to| to.operation.as_ref());
    let of_connections = |source: &Source| {
        let lists = [
            &source.principals,
            &source.not_principals,
            &source.ip_blocks,
            &source.not_ip_blocks,
            &source.namespaces,
            &source.not_namespaces,
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            &source.service_accounts,
            &source.not_service_accounts,
        ];
        lists.iter().any(|list| !list.is_empty())
    };
    let from_anybody = sources().next().is_some() && !sources().any(of_connections);
    let to_anything = operations().next().is_some()
        && !operations().any(|operation| !operation.ports.is_empty() || !operation.not_ports.is_empty());
    from_anybody && operations().next().is_none() || to_anything
}
