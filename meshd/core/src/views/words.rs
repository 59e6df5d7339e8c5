//! Rules in words.

use std::time::Duration;

use ipnet::IpNet;

use super::ClusterName;
use crate::plan::{
    Action, Cluster, Fault, Forward, HeaderTarget, Matcher, OutlierPolicy, PathMatch, RetryOn, RetryPolicy,
    Rewrite, Route, UpstreamTls, ValueMatch, WeightedCluster,
};

/// When a route applies: `uri prefix /reviews and header end-user = jason`; alternatives with `or`.
pub(super) fn when(matchers: &[Matcher]) -> String {
    let alternatives: Vec<_> = matchers.iter().map(conditions).collect();
    if alternatives.is_empty() || alternatives.iter().any(String::is_empty) {
        return "always".into();
    }
    alternatives.join(" or ")
}

/// What a route does. `host` is whose route it is: destinations there are named by subset only.
pub(super) fn then(action: &Action, host: &str) -> String {
    match action {
        Action::Forward(forward) => destinations(&forward.destinations, host),
        Action::Redirect(redirect) => {
            let code = redirect.code.as_u16();
            let scheme = redirect.scheme.as_ref().map(|scheme| format!("{scheme}://")).unwrap_or_default();
            let authority = redirect.authority.as_deref().unwrap_or_default();
            let path = redirect.path.as_deref().or(redirect.prefix.as_deref()).unwrap_or_default();
            format!("redirect {code} to {scheme}{authority}{path}")
        }
        Action::Direct(direct) => format!("answer {}", direct.status.as_u16()),
    }
}

/// Destinations and their shares: `reviews v1 90 %, v2 10 %`.
pub(super) fn destinations(list: &[WeightedCluster], host: &str) -> String {
    let total: u64 = list.iter().map(|one| u64::from(one.weight)).sum();
    let mut before = "";
    let mut parts = Vec::new();
    for one in list {
        let mut words = Vec::new();
        if *one.name.host != *before {
            words.push(short(&one.name, host));
        }
        before = &one.name.host;
        if !one.name.subset.is_empty() {
            words.push(one.name.subset.to_string());
        }
        if list.len() > 1 {
            words.push(percent(u64::from(one.weight), total));
        }
        if one.cluster.is_none() {
            words.push("(not there: 503)".into());
        }
        parts.push(words.join(" "));
    }
    parts.join(", ")
}

/// When a rule for connections applies.
pub(super) fn connection(sni: &str, subnets: &[IpNet]) -> String {
    let to = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (sni, to.as_str()) {
        ("", "") => "any connection".into(),
        (sni, "") => sni.to_owned(),
        ("", to) => format!("to {to}"),
        (sni, to) => format!("{sni} and to {to}"),
    }
}

/// Further effects of a route.
pub(super) fn with(route: &Route) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(fault) = &route.fault {
        words.extend(faults(fault));
    }
    if let Action::Forward(forward) = &route.action {
        words.extend(forward.timeout.map(|timeout| format!("timeout {timeout:?}")));
        words.extend(retries(forward));
        words.extend(forward.rewrite.as_deref().map(rewrite));
        for mirror in &forward.mirrors {
            let share = percent(u64::from(mirror.parts_per_million), 1_000_000);
            words.push(format!("mirror {share} to {}", named(&mirror.name)));
        }
    }
    if route.headers.is_some() {
        words.push("header rules".into());
    }
    if route.cors.is_some() {
        words.push("cors".into());
    }
    words
}

/// Limits of a cluster that are set.
pub(crate) fn limits(cluster: &Cluster) -> Vec<String> {
    let limits = &cluster.limits;
    let numbers = [
        (limits.max_connections, "connections"),
        (limits.max_pending, "pending requests"),
        (limits.max_requests, "requests"),
        (limits.max_retries, "retries"),
        (limits.max_requests_per_connection, "requests a connection"),
    ];
    let mut words: Vec<String> =
        numbers.iter().filter_map(|(limit, what)| limit.map(|limit| format!("{limit} {what}"))).collect();
    if limits.connect_timeout != crate::plan::CircuitLimits::default().connect_timeout {
        words.push(format!("connect within {:?}", limits.connect_timeout));
    }
    if let Some(budget) = &limits.retry_budget {
        let share = percent(u64::from(budget.parts_per_million), 1_000_000);
        words.push(format!("retries {share} of requests, at least {}", budget.at_least));
    }
    words.extend(limits.max_concurrent_streams.map(|most| format!("{most} streams a connection")));
    words.extend(limits.max_connection_duration.map(|most| format!("connections for {most:?}")));
    let usual = crate::plan::CircuitLimits::default();
    if (limits.idle_timeout, limits.tcp_idle_timeout) != (usual.idle_timeout, usual.tcp_idle_timeout) {
        let most =
            |time: Option<Duration>| time.map_or_else(|| "ever".to_owned(), |time| format!("{time:?}"));
        words.push(format!("idle for {}", most(limits.idle_timeout)));
        if limits.tcp_idle_timeout != limits.idle_timeout {
            words.push(format!("TCP silent for {}", most(limits.tcp_idle_timeout)));
        }
    }
    if let Some((interval, timeout)) = limits.http2_keep_alive {
        words.push(format!("ping every {interval:?}, answered within {timeout:?}"));
    }
    words.extend(cluster.warmup.map(|warmup| format!("warm up for {:?}", warmup.duration)));
    words.extend(cluster.outlier.as_deref().map(ejects));
    words.extend(begins(cluster));
    words
}

/// When endpoints are left alone.
fn ejects(outlier: &OutlierPolicy) -> String {
    let local = match outlier.consecutive_local {
        Some(limit) => format!(" or {limit} to connect"),
        None => String::new(),
    };
    let codes = outlier.error_codes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let of = if codes.is_empty() { codes } else { format!(" ({codes})") };
    let (rest, most) = (outlier.base_ejection, outlier.max_ejection_percent);
    let failures = match (outlier.consecutive_5xx, outlier.consecutive_gateway) {
        (0, 0) => "no answer at all".to_owned(),
        (0, limit) => format!("{limit} gateway errors{of}"),
        (limit, 0) => format!("{limit} failures{of}"),
        (limit, gateway) => format!("{limit} failures{of} or {gateway} gateway errors"),
    };
    let unless = match outlier.min_health_percent {
        0 => String::new(),
        least => format!(", unless fewer than {least} % are well"),
    };
    format!("eject for {rest:?} after {failures}{local}, at most {most} %{unless}")
}

/// What is said on connections before the application's protocol.
fn begins(cluster: &Cluster) -> Vec<String> {
    let mut words = Vec::new();
    match &cluster.tls {
        UpstreamTls::Disable => {}
        UpstreamTls::Mesh(tls) => words.push(format!("mesh certificates to {}", tls.sni)),
        UpstreamTls::Originate(tls) => {
            let kind = if tls.mutual { "mutual tls" } else { "tls" };
            let unchecked = if tls.insecure_skip_verify { ", unchecked" } else { "" };
            let name = if tls.sni.is_empty() { "the host" } else { &tls.sni };
            words.push(format!("{kind} to {name}{unchecked}"));
        }
    }
    words.extend(cluster.proxy_protocol.map(|version| format!("PROXY {version:?}")));
    if let Some(detour) = &cluster.detour {
        let method = if detour.post { "POST" } else { "CONNECT" };
        words.push(format!("{method} to {}", detour.authority));
    }
    words
}

pub(crate) fn conditions(matcher: &Matcher) -> String {
    let mut words = Vec::new();
    match &matcher.path {
        Some(PathMatch::Exact { value, ignore_case }) => {
            words.push(format!("uri = {value}{}", case(*ignore_case)));
        }
        Some(PathMatch::Prefix { value, ignore_case }) => {
            words.push(format!("uri prefix {value}{}", case(*ignore_case)));
        }
        Some(PathMatch::Regex(regex)) => words.push(format!("uri ~ {}", pattern(regex))),
        None => {}
    }
    let pseudo =
        [("method", &matcher.method), ("scheme", &matcher.scheme), ("authority", &matcher.authority)];
    words.extend(
        pseudo.iter().filter_map(|(name, value)| Some(format!("{name} {}", condition(value.as_ref()?)))),
    );
    let headers = matcher.headers.iter();
    words.extend(headers.map(|(name, value)| format!("header {} {}", target(name), condition(value))));
    let without = matcher.without_headers.iter();
    words.extend(without.map(|(name, value)| format!("not header {} {}", target(name), condition(value))));
    words.extend(matcher.query.iter().map(|(name, value)| format!("query {name} {}", condition(value))));
    words.join(" and ")
}

fn case(ignored: bool) -> &'static str {
    if ignored { " in any case" } else { "" }
}

pub(crate) fn condition(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Present => "present".into(),
        ValueMatch::Exact(text) => format!("= {text}"),
        ValueMatch::Prefix(text) => format!("prefix {text}"),
        ValueMatch::Regex(regex) => format!("~ {}", pattern(regex)),
    }
}

/// The expression as a user wrote it, nearly: without the anchors.
fn pattern(regex: &regex::Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$")).unwrap_or(text)
}

pub(crate) fn target(target: &HeaderTarget) -> &str {
    match target {
        HeaderTarget::Field(name) => name.as_str(),
        HeaderTarget::Path => ":path",
        HeaderTarget::Method => ":method",
        HeaderTarget::Authority => ":authority",
        HeaderTarget::Scheme => ":scheme",
    }
}

pub(crate) fn faults(fault: &Fault) -> Vec<String> {
    let share = |parts: u32| percent(u64::from(parts), 1_000_000);
    let delay =
        fault.delay.map(|delay| format!("delay {:?} for {}", delay.fixed, share(delay.parts_per_million)));
    let abort = fault.abort.map(|abort| {
        let what = match abort.grpc_status {
            Some(code) => format!("grpc status {code}"),
            None => abort.status.as_u16().to_string(),
        };
        format!("abort {what} for {}", share(abort.parts_per_million))
    });
    delay.into_iter().chain(abort).collect()
}

/// The retry policy, unless it is the default one.
fn retries(forward: &Forward) -> Option<String> {
    let RetryPolicy { attempts, per_try_timeout, on, other_localities, .. } = &forward.retry;
    let default = *attempts == 2
        && !other_localities
        && per_try_timeout.is_none()
        && conditions_of(*on).len() == 5
        && on.retriable_status_codes;
    if default {
        return None;
    }
    Some(retry(&forward.retry))
}

/// A retry policy.
pub(crate) fn retry(policy: &RetryPolicy) -> String {
    let RetryPolicy { attempts, per_try_timeout, on, status_codes, other_localities, .. } = policy;
    if *attempts == 0 {
        return "no retries".into();
    }
    let mut conditions: Vec<String> = conditions_of(*on).into_iter().map(str::to_owned).collect();
    conditions.extend(status_codes.iter().map(|code| code.as_u16().to_string()));
    let timeout = per_try_timeout.map(|timeout| format!(", {timeout:?} each")).unwrap_or_default();
    let elsewhere = if *other_localities { ", also in other localities" } else { "" };
    format!("{attempts} retries on {}{timeout}{elsewhere}", conditions.join(", "))
}

fn conditions_of(on: RetryOn) -> Vec<&'static str> {
    let words = [
        (on.server_error, "5xx"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
        (on.reset_before_request, "reset-before-request"),
        (on.connect_failure, "connect-failure"),
        (on.refused_stream, "refused-stream"),
        (on.retriable_4xx, "retriable-4xx"),
        (on.retriable_status_codes, "retriable-status-codes"),
        (on.envoy_ratelimited, "envoy-ratelimited"),
        (on.grpc_cancelled, "cancelled"),
        (on.grpc_deadline_exceeded, "deadline-exceeded"),
        (on.grpc_internal, "internal"),
        (on.grpc_resource_exhausted, "resource-exhausted"),
        (on.grpc_unavailable, "unavailable"),
    ];
    words.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect()
}

pub(crate) fn rewrite(rewrite: &Rewrite) -> String {
    let mut words = Vec::new();
    words.extend(rewrite.path.as_ref().map(|path| format!("path to {path}")));
    let regex = rewrite.path_regex.as_ref();
    words.extend(regex.map(|(regex, new)| format!("path {} to {new}", regex.as_str())));
    words.extend(rewrite.authority.as_ref().map(|authority| format!("host to {authority}")));
    format!("rewrite {}", words.join(", "))
}

fn short(name: &ClusterName, host: &str) -> String {
    if *name.host == *host && host.contains(".svc.") {
        return host.split('.').next().unwrap_or(host).to_owned();
    }
    let text = name.host.split_once(".svc.").map_or(&*name.host, |(text, _)| text);
    format!("{text}:{}", name.port)
}

pub(crate) fn named(name: &ClusterName) -> String {
    format!("{} {}", short(name, ""), name.subset).trim_end().to_owned()
}

/// A share in percent with as many places as it needs, at most four: 1 of 8 is `12.5 %`.
pub(crate) fn percent(part: u64, of: u64) -> String {
    let parts_per_million = (u128::from(part) * 1_000_000).checked_div(u128::from(of)).unwrap_or(0);
    let (whole, rest) = (parts_per_million / 10_000, parts_per_million % 10_000);
    let rest = format!("{rest:04}");
    match rest.trim_end_matches('0') {
        "" => format!("{whole} %"),
        rest => format!("{whole}.{rest} %"),
    }
}
