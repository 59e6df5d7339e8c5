//! Whether a condition holds for a request.
//!
//! Source: Istio `TranslateRouteMatch`, Envoy's `HeaderUtility`, `QueryParameterMatcher`, `PathMatcher`.

use http::header::{HeaderMap, HeaderName};

use super::Call;
use crate::plan::{HeaderTarget, Matcher, PathMatch, ValueMatch};

/// Whether every condition holds.
pub(crate) fn holds(matcher: &Matcher, call: &Call<'_>) -> bool {
    unmet(matcher, call).is_none()
}

/// The condition of a [`Matcher`] that a request fails first: what `explain` tells of a route passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmet {
    Path,
    Method,
    Scheme,
    Authority,
    /// By position among the headers.
    Header(usize),
    /// By position among the headers that must not match.
    Without(usize),
    /// By position among the query parameters.
    Query(usize),
}

/// Returns the first condition that does not hold; `None`: all do.
pub(crate) fn unmet(matcher: &Matcher, call: &Call<'_>) -> Option<Unmet> {
    let fails = |condition: &Option<ValueMatch>, value: &str| {
        condition.as_ref().is_some_and(|condition| !value_holds(condition, value.as_bytes()))
    };
    if matcher.path.as_ref().is_some_and(|path| !path_holds(path, call.path)) {
        return Some(Unmet::Path);
    }
    if fails(&matcher.method, call.method) {
        return Some(Unmet::Method);
    }
    if fails(&matcher.scheme, call.scheme) {
        return Some(Unmet::Scheme);
    }
    if fails(&matcher.authority, call.authority) {
        return Some(Unmet::Authority);
    }
    let header = |(target, condition): &(HeaderTarget, ValueMatch)| !header_holds(target, condition, call);
    if let Some(at) = matcher.headers.iter().position(header) {
        return Some(Unmet::Header(at));
    }
    let without = |(target, condition): &(HeaderTarget, ValueMatch)| unwanted(target, condition, call);
    if let Some(at) = matcher.without_headers.iter().position(without) {
        return Some(Unmet::Without(at));
    }
    let query = |(name, condition): &(String, ValueMatch)| !query_holds(name, condition, call.query);
    matcher.query.iter().position(query).map(Unmet::Query)
}

/// Whether a path without query meets a condition. Prefixes are plain bytes: `/api/v1` takes `/api/v1beta`.
pub(crate) fn path_holds(condition: &PathMatch, path: &str) -> bool {
    match condition {
        PathMatch::Exact { value, ignore_case: false } => path == value,
        PathMatch::Exact { value, ignore_case: true } => path.eq_ignore_ascii_case(value),
        PathMatch::Prefix { value, ignore_case: false } => path.starts_with(value.as_str()),
        PathMatch::Prefix { value, ignore_case: true } => {
            path.as_bytes().get(..value.len()).is_some_and(|head| head.eq_ignore_ascii_case(value.as_bytes()))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

/// Whether a value that is there meets a condition. Bytes that are not UTF-8 match no expression, as in RE2.
pub(crate) fn value_holds(condition: &ValueMatch, value: &[u8]) -> bool {
    match condition {
        ValueMatch::Present => true,
        ValueMatch::Exact(text) => value == text.as_bytes(),
        ValueMatch::Prefix(text) => value.starts_with(text.as_bytes()),
        ValueMatch::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
    }
}

/// Whether any line of a header meets the condition. An absent header meets none.
fn header_holds(target: &HeaderTarget, condition: &ValueMatch, call: &Call<'_>) -> bool {
    match target {
        HeaderTarget::Field(name) => field_holds(name, condition, call.headers),
        HeaderTarget::Path => value_holds(condition, call.path_and_query().as_bytes()),
        HeaderTarget::Method => value_holds(condition, call.method.as_bytes()),
        HeaderTarget::Authority => value_holds(condition, call.authority.as_bytes()),
        HeaderTarget::Scheme => value_holds(condition, call.scheme.as_bytes()),
    }
}

/// Whether a header is as `withoutHeaders` forbids. An absent one counts as the empty string, except that
/// "present" asks whether it is there.
fn unwanted(target: &HeaderTarget, condition: &ValueMatch, call: &Call<'_>) -> bool {
    match target {
        HeaderTarget::Field(name)
            if !call.headers.contains_key(name) && !matches!(condition, ValueMatch::Present) =>
        {
            value_holds(condition, b"")
        }
        _ => header_holds(target, condition, call),
    }
}

fn field_holds(name: &HeaderName, condition: &ValueMatch, headers: &HeaderMap) -> bool {
    headers.get_all(name).iter().any(|line| value_holds(condition, line.as_bytes()))
}

/// Whether the first occurrence of a query parameter meets the condition; bytes are compared as sent. `?v` and `?v=`
/// both have an empty `v`.
fn query_holds(name: &str, condition: &ValueMatch, query: Option<&str>) -> bool {
    query
        .and_then(|query| query_value(query, name))
        .is_some_and(|value| value_holds(condition, value.as_bytes()))
}

/// Finds the first occurrence of a query parameter.
pub(crate) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut parameters = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
    parameters.find(|(found, _)| *found == name).map(|(_, value)| value)
}
