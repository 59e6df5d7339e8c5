//! Rules of one HTTP route.

use super::virtual_service::{check_weights, destination};
use super::{Check, each, regex, text};
use crate::resource::{
    CorsPolicy, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
    HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute,
};
use crate::value::{Percent, SmallMap, StringMatch, grpc};
use crate::yaml::{join, shorten};

pub(super) fn check(check: &mut Check, path: &str, route: &HttpRoute, delegate: bool) {
    outcome(check, path, route, delegate);
    for (path, matching) in each(&format!("{path}.match"), &route.r#match) {
        request(check, &path, matching, route);
    }
    for (path, to) in each(&format!("{path}.route"), &route.route) {
        destination(check, &format!("{path}.destination"), to.destination.as_ref());
        headers(check, &path, to.headers.as_deref());
    }
    let weights: Vec<_> = route.route.iter().map(|to| to.weight).collect();
    check_weights(check, &format!("{path}.route"), &weights);
    headers(check, path, route.headers.as_deref());
    authority(check, path, route);
    check.duration(format!("{path}.timeout"), route.timeout);
    if let Some(part) = &route.retries {
        retries(check, &format!("{path}.retries"), part);
    }
    if let Some(part) = &route.redirect {
        redirect(check, &format!("{path}.redirect"), part);
    }
    if let Some(part) = &route.direct_response {
        direct_response(check, &format!("{path}.directResponse"), part);
    }
    if let Some(part) = &route.rewrite {
        rewrite(check, &format!("{path}.rewrite"), part);
    }
    if let Some(part) = &route.fault {
        fault(check, &format!("{path}.fault"), part);
    }
    if let Some(part) = &route.cors_policy {
        cors(check, &format!("{path}.corsPolicy"), part);
    }
    mirrors(check, path, route);
}

/// Whether no request passes this route by.
pub(super) fn catches_all(route: &HttpRoute) -> bool {
    let all = |matching: &HttpMatchRequest| {
        let rest = HttpMatchRequest {
            uri: None,
            name: String::new(),
            stat_prefix: String::new(),
            ..matching.clone()
        };
        let uri = match &matching.uri {
            None => true,
            Some(StringMatch::Prefix(prefix)) => prefix == "/",
            Some(StringMatch::Regex(expression)) => expression == ".*",
            Some(_) => false,
        };
        uri && HttpMatchRequest { ignore_uri_case: false, ..rest } == HttpMatchRequest::default()
    };
    route.r#match.is_empty() || route.r#match.iter().any(all)
}

/// A route does one thing.
fn outcome(check: &mut Check, path: &str, route: &HttpRoute, delegate: bool) {
    let outcomes = [
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ];
    let named: Vec<_> = outcomes.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    match named.as_slice() {
        [] => check.error(path, "must have one of route, redirect, directResponse and delegate"),
        [_] => {}
        several => check.error(path, format!("only one of {} may be set", several.join(" and "))),
    }
    if delegate && route.delegate.is_some() {
        check.error(
            format!("{path}.delegate"),
            "a VirtualService without hosts is a delegate, and must not delegate further",
        );
    }
    if let Some(target) = &route.delegate
        && check.required(format!("{path}.delegate.name"), &target.name)
    {
        check.rule(format!("{path}.delegate.name"), text::fqdn(&target.name));
    }
    for (answer, used) in
        [("redirect", route.redirect.is_some()), ("directResponse", route.direct_response.is_some())]
    {
        for (field, beside) in [("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())] {
            if used && beside {
                check.error(format!("{path}.{field}"), format!("cannot stand beside {answer}"));
            }
        }
    }
    // Istio wants prefixes; beside an exact path it replaces the whole, as in Envoy.
    let regex = |matching: &HttpMatchRequest| matches!(matching.uri, Some(StringMatch::Regex(_)));
    if route.redirect.as_ref().is_some_and(|redirect| !redirect.prefix_rewrite.is_empty())
        && route.r#match.iter().any(regex)
    {
        check.error(format!("{path}.redirect.prefixRewrite"), "cannot be used where uri is matched by regex");
    }
}

fn request(check: &mut Check, path: &str, matching: &HttpMatchRequest, _: &HttpRoute) {
    let single = [
        ("uri", &matching.uri),
        ("scheme", &matching.scheme),
        ("method", &matching.method),
        ("authority", &matching.authority),
    ];
    for (field, wanted) in single {
        // Every path begins with nothing; Envoy takes an empty prefix here, and nowhere else.
        let is_any = field == "uri" && *wanted == Some(StringMatch::Prefix(String::new()));
        if let Some(wanted) = wanted.as_ref().filter(|_| !is_any) {
            string_match(check, &format!("{path}.{field}"), wanted);
        }
    }
    for (field, wanted) in [("headers", &matching.headers), ("queryParams", &matching.query_params)] {
        for (name, wanted) in wanted {
            let path = join(&format!("{path}.{field}"), name);
            if field == "headers" {
                check.rule(path.clone(), matched_header(name));
            } else if name.is_empty() {
                check.error(path.clone(), "the name of a query parameter must not be empty");
            }
            string_match(check, &path, wanted);
        }
    }
    for (name, wanted) in &matching.without_headers {
        let path = join(&format!("{path}.withoutHeaders"), name);
        check.rule(path.clone(), matched_header(name));
        // Istio takes this one, for "present".
        if *wanted != StringMatch::Regex("*".to_owned()) {
            string_match(check, &path, wanted);
        }
    }
    check.rule(format!("{path}.sourceLabels"), text::labels(&matching.source_labels));
    if !matching.source_namespace.is_empty() {
        check.rule(format!("{path}.sourceNamespace"), text::label(&matching.source_namespace));
    }
    for (path, gateway) in each(&format!("{path}.gateways"), &matching.gateways) {
        check.rule(path, text::gateway(gateway));
    }
}

/// A header name, or one of HTTP/2's pseudo headers.
fn matched_header(name: &str) -> Result<(), String> {
    match name {
        ":path" | ":method" | ":authority" | ":scheme" => Ok(()),
        _ if is_claim(name) => Err(format!(
            "{:?}: claims of a token are not known before RequestAuthentication is enforced",
            shorten(name)
        )),
        _ => text::header_name(name),
    }
}

/// Whether a header stands for a claim of a token. Source: Istio `jwt.ToRoutingClaim`.
pub(super) fn is_claim(name: &str) -> bool {
    const BEGINS: &str = "@request.auth.claims";
    name.get(..BEGINS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(BEGINS))
}

fn string_match(check: &mut Check, path: &str, wanted: &StringMatch) {
    match wanted {
        StringMatch::Prefix(prefix) if prefix.is_empty() => {
            check.error(format!("{path}.prefix"), "a prefix must not be empty");
        }
        StringMatch::Regex(expression) => check.rule(format!("{path}.regex"), regex::check(expression)),
        _ => {}
    }
}

fn headers(check: &mut Check, path: &str, headers: Option<&Headers>) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        if let Some(operations) = operations {
            header_operations(check, &format!("{path}.headers.{side}"), operations, side == "request");
        }
    }
}

fn header_operations(check: &mut Check, path: &str, operations: &HeaderOperations, asks: bool) {
    for (field, values) in [("set", &operations.set), ("add", &operations.add)] {
        header_values(check, &format!("{path}.{field}"), values, asks);
    }
    for (path, name) in each(&format!("{path}.remove"), &operations.remove) {
        check.rule(path.clone(), text::header_name(name));
        if name.eq_ignore_ascii_case("host") {
            check.error(path, "the host cannot be removed");
        }
    }
}

fn header_values(check: &mut Check, path: &str, values: &SmallMap<String, String>, asks: bool) {
    for (name, value) in values {
        let path = join(path, name);
        if !is_authority(name) {
            check.rule(path.clone(), text::header_name(name));
        } else if !asks {
            check.error(path.clone(), "an answer has no host");
        }
        check.rule(path, text::header_value(value));
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// Setting or adding the host is a rewrite of the authority; two rewrites contradict each other.
fn authority(check: &mut Check, path: &str, route: &HttpRoute) {
    let mut sets = route.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
    let Some(request) = route.headers.as_ref().and_then(|headers| headers.request.as_ref()) else { return };
    for (field, values) in [("set", &request.set), ("add", &request.add)] {
        for _ in values.keys().filter(|name| is_authority(name)) {
            if sets {
                check.error(
                    format!("{path}.headers.request.{field}"),
                    "sets the host, which is set already (by rewrite.authority, host or :authority); use one",
                );
            }
            sets = true;
        }
    }
}

fn retries(check: &mut Check, path: &str, retries: &HttpRetry) {
    let attempts = retries.attempts.unwrap_or_default();
    check.not_negative(format!("{path}.attempts"), attempts);
    let more = retries.per_try_timeout.is_some()
        || !retries.retry_on.is_empty()
        || retries.retry_remote_localities.is_some();
    if attempts == 0 && more {
        check.error(path, "attempts is 0 (or absent), so the rest would have no effect");
    }
    check.duration(format!("{path}.perTryTimeout"), retries.per_try_timeout);
    check.duration(format!("{path}.backoff"), retries.backoff);
    if retries.retry_on.is_empty() {
        return;
    }
    for condition in retries.retry_on.split(',') {
        if let Err(message) = retry_condition(condition) {
            check.error(format!("{path}.retryOn"), message);
        }
    }
}

fn retry_condition(condition: &str) -> Result<(), String> {
    if RETRY_ON.contains(&condition) {
        return Ok(());
    }
    let status = condition.parse::<u16>().ok().and_then(|code| http::StatusCode::from_u16(code).ok());
    if status.is_some_and(|code| code.canonical_reason().is_some()) {
        return Ok(());
    }
    if condition != condition.trim() && RETRY_ON.contains(&condition.trim()) {
        return Err(format!("{condition:?} has a blank; write commas without blanks"));
    }
    let hint = crate::yaml::nearest(condition, RETRY_ON.iter().copied());
    let hint = hint.map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
    Err(format!("{:?} is neither a retry condition nor a status code{hint}", shorten(condition)))
}

/// Source: Envoy `x-envoy-retry-on` and `x-envoy-retry-grpc-on`, as far as Istio takes them.
const RETRY_ON: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn redirect(check: &mut Check, path: &str, redirect: &HttpRedirect) {
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        check.error(path, "only one of uri and prefixRewrite may be set");
    }
    let empty = HttpRedirect { redirect_code: redirect.redirect_code, ..HttpRedirect::default() };
    if *redirect == empty {
        check.error(path, "must change something: uri, prefixRewrite, authority, scheme or port");
    }
    if redirect.redirect_code != 0 && !(300..400).contains(&redirect.redirect_code) {
        check.error(
            format!("{path}.redirectCode"),
            format!("{} is no redirect (300 to 399)", redirect.redirect_code),
        );
    }
    if let Some(port) = redirect.port {
        check.port(format!("{path}.port"), port);
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        check.error(path, "only one of port and derivePort may be set");
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        check.error(
            format!("{path}.scheme"),
            format!("{:?} is neither http nor https", shorten(&redirect.scheme)),
        );
    }
}

fn direct_response(check: &mut Check, path: &str, response: &HttpDirectResponse) {
    if !(200..600).contains(&response.status) {
        check.error(
            format!("{path}.status"),
            format!("{} is no status of an answer (200 to 599)", response.status),
        );
    }
    let Some(body) = &response.body else { return };
    if body.string.is_some() && body.bytes.is_some() {
        check.error(format!("{path}.body"), "only one of string and bytes may be set");
    }
    let bytes =
        body.string.as_ref().map_or(0, String::len).max(body.bytes.as_ref().map_or(0, |bytes| bytes.0.len()));
    if bytes > MOST_BODY_BYTES {
        check.error(
            format!("{path}.body"),
            format!("the body has {bytes} bytes; at most {MOST_BODY_BYTES} are allowed"),
        );
    } else if bytes > LARGE_BODY_BYTES {
        check.warning(format!("{path}.body"), format!("the body has {bytes} bytes, kept by every host"));
    }
}

/// Istio's bounds.
const MOST_BODY_BYTES: usize = 1 << 20;
const LARGE_BODY_BYTES: usize = 100 << 10;

fn rewrite(check: &mut Check, path: &str, rewrite: &HttpRewrite) {
    if *rewrite == HttpRewrite::default() {
        check.error(path, "must have one of uri, uriRegexRewrite and authority");
    }
    let Some(by_regex) = &rewrite.uri_regex_rewrite else { return };
    if !rewrite.uri.is_empty() {
        check.error(path, "only one of uri and uriRegexRewrite may be set");
    }
    let path = format!("{path}.uriRegexRewrite");
    if check.required(format!("{path}.match"), &by_regex.r#match) {
        check.rule(format!("{path}.match"), regex::check(&by_regex.r#match));
    }
    check.required(format!("{path}.rewrite"), &by_regex.rewrite);
}

fn fault(check: &mut Check, path: &str, fault: &HttpFaultInjection) {
    if fault.delay.is_none() && fault.abort.is_none() {
        check.error(path, "must have a delay or an abort");
    }
    if let Some(delay) = &fault.delay {
        fault_delay(check, &format!("{path}.delay"), delay);
    }
    if let Some(abort) = &fault.abort {
        fault_abort(check, &format!("{path}.abort"), abort);
    }
}

fn fault_delay(check: &mut Check, path: &str, delay: &FaultDelay) {
    if let Some(percent) = delay.percent {
        check.percent(format!("{path}.percent"), f64::from(percent));
    }
    percentage(check, path, delay.percentage);
    if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
        check.warning(path, "has no fixedDelay, so nothing waits");
    }
    if delay.exponential_delay.is_some() {
        check.error(format!("{path}.exponentialDelay"), "is carried out by nobody; write fixedDelay");
    }
    check.duration(format!("{path}.fixedDelay"), delay.fixed_delay);
}

fn fault_abort(check: &mut Check, path: &str, abort: &FaultAbort) {
    percentage(check, path, abort.percentage);
    let names_http2 = !abort.http2_error.is_empty();
    if names_http2 {
        let message = "is carried out by nobody; write httpStatus or grpcStatus";
        check.error(format!("{path}.http2Error"), message);
    }
    match abort.http_status {
        Some(status) if !abort.grpc_status.is_empty() => {
            check.error(path, format!("only one of httpStatus ({status}) and grpcStatus may be set"));
        }
        Some(status) if !(200..600).contains(&status) => {
            check.error(
                format!("{path}.httpStatus"),
                format!("{status} is no status of an answer (200 to 599)"),
            );
        }
        Some(_) => {}
        None if abort.grpc_status.is_empty() && !names_http2 => {
            check.warning(path, "has neither httpStatus nor grpcStatus, so nothing is aborted");
        }
        None => grpc_status(check, path, &abort.grpc_status),
    }
    if abort.percentage.is_none() {
        check.warning(
            path,
            "has no percentage, so it never happens; write percentage: {value: 100} for always",
        );
    }
}

fn grpc_status(check: &mut Check, path: &str, status: &str) {
    if !status.is_empty() && grpc::code(status).is_none() {
        let message =
            format!("{:?} is no gRPC status: write one of {}", shorten(status), grpc::NAMES.join(", "));
        check.error(format!("{path}.grpcStatus"), message);
    }
}

/// A share of faults: none, or at least one request of a million.
fn percentage(check: &mut Check, path: &str, percentage: Option<Percent>) {
    let Some(share) = percentage else { return };
    let path = format!("{path}.percentage.value");
    if share.value > 0.0 && share.value < 0.0001 {
        check.error(path, format!("{} is less than the least share, 0.0001 (percent)", share.value));
    } else {
        check.percent(path, share.value);
    }
}

fn mirrors(check: &mut Check, path: &str, route: &HttpRoute) {
    if route.mirror.is_some() {
        destination(check, &format!("{path}.mirror"), route.mirror.as_deref());
        if !route.mirrors.is_empty() {
            check.error(path, "only one of mirror and mirrors may be set");
        }
    }
    for (field, percent) in
        [("mirrorPercent", route.mirror_percent), ("mirror_percent", route.mirror_percent_snake)]
    {
        if let Some(percent) = percent {
            check.percent(format!("{path}.{field}"), f64::from(percent));
            check.warning(format!("{path}.{field}"), "has a newer form: mirrorPercentage: {value: …}");
        }
    }
    if let Some(share) = route.mirror_percentage {
        check.percent(format!("{path}.mirrorPercentage.value"), share.value);
    }
    for (path, mirror) in each(&format!("{path}.mirrors"), &route.mirrors) {
        destination(check, &format!("{path}.destination"), mirror.destination.as_ref());
        if let Some(share) = mirror.percentage {
            check.percent(format!("{path}.percentage.value"), share.value);
        }
    }
}

fn cors(check: &mut Check, path: &str, cors: &CorsPolicy) {
    for (path, origin) in each(&format!("{path}.allowOrigins"), &cors.allow_origins) {
        match origin {
            StringMatch::Exact(text) if text.is_empty() => {
                check.error(format!("{path}.exact"), "an origin must not be empty");
            }
            StringMatch::Present => check.error(path, "must have one of exact, prefix and regex"),
            other => string_match(check, &path, other),
        }
    }
    for (path, method) in each(&format!("{path}.allowMethods"), &cors.allow_methods) {
        if method != "*" && !METHODS.contains(&method.as_str()) {
            check.error(path, format!("{:?} is no method (one of {})", shorten(method), METHODS.join(", ")));
        }
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (path, name) in each(&format!("{path}.{field}"), names) {
            check.rule(path, text::header_name(name));
        }
    }
    check.duration(format!("{path}.maxAge"), cors.max_age);
    if cors.max_age.is_some_and(|age| age.get().subsec_nanos() > 0) {
        check.error(format!("{path}.maxAge"), "must be whole seconds");
    }
}

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
