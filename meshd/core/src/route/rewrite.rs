//! What becomes of path and Location: `rewrite` and `redirect`.
//!
//! Source: Istio `applyHTTPRouteDestination`, `ApplyRedirect`; Envoy `finalizePathHeader`, `newUri`.

use super::Call;
use crate::plan::{Matcher, PathMatch, PortSource, Redirect, Rewrite};

/// Returns the path after a rewrite, without query (which always stays); `None`: it is as before.
///
/// A prefix match loses the matched prefix only, byte for byte (`/strip` to `/` turns `/strip/a` into `//a`); an exact
/// or regex match loses the whole path; without a match on the path the prefix is `/`.
pub fn path(rewrite: &Rewrite, matcher: Option<&Matcher>, path: &str) -> Option<String> {
    if let Some((regex, replacement)) = &rewrite.path_regex {
        return Some(regex.replace_all(path, replacement.as_str()).into_owned());
    }
    let new = rewrite.path.as_ref()?;
    Some(replace_matched(matcher, path, new))
}

/// Returns the Location of a redirect.
///
/// `listener_port` is the service port that was called, for `FROM_REQUEST_PORT`.
pub fn location(
    redirect: &Redirect,
    call: &Call<'_>,
    matcher: Option<&Matcher>,
    listener_port: u16,
) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(call.scheme);
    let port = match redirect.port {
        PortSource::Number(port) => Some(port),
        PortSource::FromRequest => Some(listener_port),
        PortSource::Keep | PortSource::ProtocolDefault => None,
    };
    // A port that goes without saying is not written; the Host's own then stays. The rule alone decides: Istio leaves
    // the port out before it knows how a caller came.
    let written = redirect.scheme.as_deref().unwrap_or("http");
    let port = port.filter(|port| !matches!((*port, written), (80, "http") | (443, "https")));
    let host = match &redirect.authority {
        Some(authority) => authority.as_str(),
        None => request_host(call, scheme, port.is_some()),
    };
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    let path = match (&redirect.path, &redirect.prefix) {
        (Some(path), _) if path.contains('?') => path.clone(),
        (Some(path), _) => with_query(path, call.query),
        (None, Some(prefix)) => with_query(&replace_matched(matcher, call.path, prefix), call.query),
        (None, None) => call.path_and_query().into_owned(),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}{port}{slash}{path}")
}

fn replace_matched(matcher: Option<&Matcher>, path: &str, new: &str) -> String {
    let matched = match matcher.and_then(|matcher| matcher.path.as_ref()) {
        Some(PathMatch::Exact { .. } | PathMatch::Regex(_)) => path.len(),
        Some(PathMatch::Prefix { value, .. }) => value.len(),
        None => 1,
    };
    format!("{new}{}", path.get(matched..).unwrap_or_default())
}

fn with_query(path: &str, query: Option<&str>) -> String {
    query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
}

/// Returns the request's Host; its port goes when a new one comes, and when it was the default of a scheme that
/// changes.
fn request_host<'a>(call: &Call<'a>, scheme: &str, new_port: bool) -> &'a str {
    let authority = call.authority;
    let colon = if authority.starts_with('[') {
        authority.rfind("]:").map(|bracket| bracket + 1)
    } else {
        authority.rfind(':')
    };
    let Some(colon) = colon else { return authority };
    let (host, port) = authority.split_at(colon);
    let forwarded = call.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    let came_by = forwarded.unwrap_or("http");
    let was_default = scheme != came_by && matches!((came_by, port), ("https", ":443") | ("http", ":80"));
    if new_port || was_default { host } else { authority }
}
