//! Header rules carried out, in Istio's order.
//!
//! Within one block: remove, then set, then add; values are made from the headers as they stand after the removal.
//! With one destination its block and the route's are one: all removals, then what is set, the destination's last, then
//! what is added. With several the destination's block runs first, then the route's. Source: Istio `processDestination`, `processWeightedDestination`; Envoy `HeaderParser::evaluateHeaders`.
//!
//! Left to the proxy: `server: envoy` (which overwrites whatever a rule says) and the `x-` headers it adds itself.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::Call;
use super::template::{self, Seen};
use crate::plan::{ClusterName, HeaderOps, HeaderRules, Rewrite};
use crate::resilience::Flags;
use crate::wire::fold;

/// What variables in header values may ask for. The request's parts are those before any rewrite.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Method.
    pub method: &'a str,
    /// Scheme.
    pub scheme: &'a str,
    /// Host as sent.
    pub authority: &'a str,
    /// Path and query.
    pub path_and_query: &'a str,
    /// What the caller speaks.
    pub version: Version,
    /// The caller's address, as those before us have it.
    pub downstream: SocketAddr,
    /// Who opened the connection.
    pub direct: SocketAddr,
    /// What was called, where that is known.
    pub local: Option<SocketAddr>,
    /// When the request began, since 1970.
    pub started: Duration,
    /// Name of this host.
    pub host_name: &'a str,
    /// Names of the route and of the condition that held.
    pub route_name: &'a str,
    /// Where it is sent.
    pub cluster: Option<&'a ClusterName>,
    /// What became of it so far.
    pub answer: AnswerFacts<'a>,
}

/// What variables may ask for of an answer; of a request, nothing of it is there yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerFacts<'a> {
    /// Its status.
    pub status: Option<StatusCode>,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// What the endpoint speaks.
    pub upstream_version: Option<Version>,
    /// How often it was sent.
    pub attempts: u32,
    /// Why it ended as it did.
    pub flags: Flags,
    /// The same in words.
    pub details: &'a str,
}

impl<'a> Facts<'a> {
    /// What a call itself says. `target` is its path and query.
    pub fn of(call: &Call<'a>, target: &'a str, caller: SocketAddr) -> Self {
        Self {
            method: call.method,
            scheme: call.scheme,
            authority: call.authority,
            path_and_query: target,
            version: Version::HTTP_11,
            downstream: caller,
            direct: caller,
            local: None,
            started: Duration::ZERO,
            host_name: "",
            route_name: "",
            cluster: None,
            answer: AnswerFacts { attempts: 1, ..AnswerFacts::default() },
        }
    }
}

/// Changes a request's headers.
///
/// `many_destinations`: whether the route lists two or more, whatever their weights.
pub fn request(
    route: Option<&HeaderRules>,
    destination: Option<&HeaderRules>,
    many_destinations: bool,
    headers: &mut HeaderMap,
    facts: &Facts<'_>,
) {
    for block in blocks(route, destination, many_destinations) {
        let make = |template: &_, headers: &HeaderMap| {
            template::render(template, facts, &Seen { request: headers, response: None })
        };
        change(block.map(|rules| rules.map(|rules| &rules.request)), headers, make);
    }
    // What was added to a field of one value became part of it.
    fold::fold(headers, false);
}

/// Changes an answer's headers. `sent` are the headers of its request.
///
/// Also for answers of the proxy's own (redirects, direct responses, aborts, 503), with `destination` where one was
/// chosen; not for 404 "no route".
pub fn response(
    route: Option<&HeaderRules>,
    destination: Option<&HeaderRules>,
    many_destinations: bool,
    headers: &mut HeaderMap,
    sent: &HeaderMap,
    facts: &Facts<'_>,
) {
    for block in blocks(route, destination, many_destinations) {
        let make = |template: &_, headers: &HeaderMap| {
            template::render(template, facts, &Seen { request: sent, response: Some(headers) })
        };
        change(block.map(|rules| rules.map(|rules| &rules.response)), headers, make);
    }
    fold::fold_answer(headers);
}

/// Returns the authority a request is sent on with, where a rule changes it: `rewrite.authority`, else the route's
/// `set` of `host`, else the destination's.
pub fn authority<'a>(
    rewrite: Option<&'a Rewrite>,
    route: Option<&'a HeaderRules>,
    destination: Option<&'a HeaderRules>,
) -> Option<&'a str> {
    let rewritten = rewrite.and_then(|rewrite| rewrite.authority.as_deref());
    let set = |rules: Option<&'a HeaderRules>| rules.and_then(|rules| rules.authority.as_deref());
    rewritten.or_else(|| set(route)).or_else(|| set(destination))
}

/// Returns the authority that a rewrite replaced, for `x-envoy-original-host`; `Some(None)` is the request's own.
///
/// `None` where the header is not sent: nothing was rewritten, or only by one of several destinations. With several, the
/// chosen one's rewrite comes first, then the route's.
pub fn authority_before<'a>(
    rewrite: Option<&'a Rewrite>,
    route: Option<&'a HeaderRules>,
    destination: Option<&'a HeaderRules>,
    many_destinations: bool,
) -> Option<Option<&'a str>> {
    let first = destination.filter(|_| many_destinations);
    let last = destination.filter(|_| !many_destinations);
    authority(rewrite, route, last)?;
    Some(first.and_then(|rules| rules.authority.as_deref()))
}

/// What runs together, in order.
fn blocks<'a>(
    route: Option<&'a HeaderRules>,
    destination: Option<&'a HeaderRules>,
    many_destinations: bool,
) -> [[Option<&'a HeaderRules>; 2]; 2] {
    if many_destinations {
        [[destination, None], [route, None]]
    } else {
        [[route, destination], [None, None]]
    }
}

fn change(
    block: [Option<&HeaderOps>; 2],
    headers: &mut HeaderMap,
    make: impl Fn(&crate::plan::HeaderTemplate, &HeaderMap) -> Option<HeaderValue>,
) {
    let all = || block.into_iter().flatten();
    for name in all().flat_map(|ops| &ops.remove) {
        headers.remove(name);
    }
    let one = |(name, template): &(HeaderName, _)| Some((name.clone(), make(template, headers)?));
    let set: Vec<_> = all().flat_map(|ops| &ops.set).filter_map(one).collect();
    let add: Vec<_> = all().flat_map(|ops| &ops.add).filter_map(one).collect();
    for (name, value) in set {
        headers.insert(name, value);
    }
    for (name, value) in add {
        headers.append(name, value);
    }
}
