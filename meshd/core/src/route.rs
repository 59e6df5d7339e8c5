//! Which route: a request's Host chooses the virtual host, its head chooses the route.
//!
//! Decides nothing about endpoints, retries or bytes: it reads a compiled Plan. A plain route (one prefix, or no
//! condition) is found without an allocation, and ten thousand hosts cost what one costs.
//!
//! Source: Envoy's `RouteMatcher`; Istio's reading of it.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderMap;
use rand_core::RngCore;

use crate::plan::{Matcher, PortTable, Route, VirtualHost, WeightedCluster};

pub mod connection;
pub mod cors;
pub mod headers;
pub(crate) mod matcher;
pub mod path;
pub mod pattern;
pub mod rewrite;
pub mod template;

/// The head of a request, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Method, as sent.
    pub method: &'a str,
    /// Scheme, see [`scheme_of`].
    pub scheme: &'a str,
    /// Host as sent: port and case kept.
    pub authority: &'a str,
    /// Normalised path without query, see [`path::normalise`].
    pub path: &'a str,
    /// What follows the `?`, without it; `None`: there was no `?`.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: &'a HeaderMap,
}

impl Call<'_> {
    /// Returns path and query as they stand in a request line.
    pub fn path_and_query(&self) -> Cow<'_, str> {
        match self.query {
            None => Cow::Borrowed(self.path),
            Some(query) => Cow::Owned(format!("{}?{query}", self.path)),
        }
    }
}

/// A route that applies.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// It.
    pub route: &'a Arc<Route>,
    /// Which of its conditions held; `None`: it has none. Prefix rewrites need to know.
    pub matcher: Option<&'a Matcher>,
}

impl Matched<'_> {
    /// Returns the name that the route's author gave it, with that of the condition that held: `route.condition`.
    ///
    /// Source: Istio `TranslateRoute`; Envoy's `%ROUTE_NAME%`.
    pub fn route_name(&self) -> Cow<'_, str> {
        let name = self.route.origin.name.as_str();
        match self.matcher.map_or("", |matcher| matcher.name.as_str()) {
            "" => Cow::Borrowed(name),
            condition => Cow::Owned(format!("{name}.{condition}")),
        }
    }
}

/// Returns the name in a Host: lower case, without port. A trailing dot stays, for it is part of the name.
///
/// Whatever follows the last colon is the port, also where it is no number; an IPv6 address keeps its brackets.
/// Borrows unless a letter has to be lowered.
///
/// Source: Envoy `ignore_port_in_host_matching` (Istio sets it), `HeaderUtility::getPortStart`.
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let host = match authority.rfind(':') {
        Some(colon) if authority.rfind(']').is_none_or(|bracket| bracket < colon) => &authority[..colon],
        _ => authority,
    };
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    Cow::Borrowed(host)
}

/// Finds the virtual host of a request; `None`: nobody has declared it, and `Outbound::unknown` decides.
pub fn find_host<'a>(table: &'a PortTable, authority: &str) -> Option<&'a Arc<VirtualHost>> {
    table.http.find(&host_of(authority))
}

/// Returns the first route that applies; `None`: the answer is 404 with an empty body (`NR`). To what has no path (`*`)
/// none does.
pub fn route<'a>(host: &'a VirtualHost, call: &Call<'_>) -> Option<Matched<'a>> {
    if !call.path.starts_with('/') {
        return None;
    }
    host.routes.iter().find_map(|route| {
        if route.matchers.is_empty() {
            return Some(Matched { route, matcher: None });
        }
        let matcher = route.matchers.iter().find(|matcher| matcher::holds(matcher, call))?;
        Some(Matched { route, matcher: Some(matcher) })
    })
}

/// Picks a destination by weight.
///
/// `total` is the sum of the weights. A single destination gets everything, whatever its weight; among several,
/// weight 0 gets nothing.
///
/// # Panics
/// If `destinations` is empty, which no Plan has.
///
/// Source: Envoy `weighted_clusters`; Istio `applyHTTPRouteDestination`.
pub fn split<'a>(
    destinations: &'a [WeightedCluster],
    total: u32,
    rng: &mut impl RngCore,
) -> &'a WeightedCluster {
    if let [only] = destinations {
        return only;
    }
    // Multiplying instead of taking the remainder: the bias is below 2⁻³².
    let mut point = (u128::from(rng.next_u64()) * u128::from(total)) >> 64;
    for destination in destinations {
        let weight = u128::from(destination.weight);
        if point < weight {
            return destination;
        }
        point -= weight;
    }
    &destinations[0]
}

/// Returns the scheme that rules see, in lower case: of an absolute-form target or `:scheme`, else the caller's
/// `x-forwarded-proto` where it is one, else `http`.
///
/// Source: Envoy `ConnectionManagerUtility::mutateRequestHeaders` without `use_remote_address`.
pub fn scheme_of(sent: Option<&str>, headers: &HeaderMap) -> &'static str {
    let forwarded = || headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    let named = sent.or_else(forwarded).unwrap_or("http");
    if named.eq_ignore_ascii_case("https") { "https" } else { "http" }
}

#[cfg(test)]
mod tests;
