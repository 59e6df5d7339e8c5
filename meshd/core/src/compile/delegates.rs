//! Delegation: routes of a root `VirtualService` that another one spells out.
//!
//! Conditions of both are merged pairwise; a delegate's route in conflict with every condition of the root vanishes,
//! and so does a root's route whose delegate is not there. Source: Istio `mergeVirtualServicesIfNeeded`,
//! `mergeHTTPRoutes`, `hasConflict`, `stringMatchConflict`.

use std::collections::BTreeMap;

use mesh_proto::command::Revision;
use mesh_proto::resource::{Destination, HttpMatchRequest, HttpRoute, ObjectKey, VirtualService};
use mesh_proto::value::{SmallMap, StringMatch};
use mesh_proto::watch::Stored;

use super::hosts::full_name;
use super::rules::{HttpRule, MESH, Written, gateway_name};
use super::{Problems, visibility};
use crate::plan::Origin;

/// `VirtualServices` without hosts, by namespace and name.
pub(super) type Delegates<'a> = BTreeMap<(&'a str, &'a str), Delegate<'a>>;

/// One of them.
pub(super) struct Delegate<'a> {
    pub(super) stored: &'a Stored,
    pub(super) spec: &'a VirtualService,
    pub(super) export_to: &'a [String],
}

/// Returns a `VirtualService`'s HTTP routes with its delegates' in place.
pub(super) fn put_in<'a>(
    key: &ObjectKey,
    spec: &'a VirtualService,
    delegates: &Delegates<'a>,
    domain: &str,
    made_of: &mut Vec<(ObjectKey, Revision)>,
    problems: &Problems,
) -> Vec<HttpRule<'a>> {
    let mut rules = Vec::with_capacity(spec.http.len());
    for (index, root) in spec.http.iter().enumerate() {
        let Some(wanted) = &root.delegate else {
            let origin =
                Origin { object: Some(key.clone()), path: format!("http[{index}]"), name: root.name.clone() };
            rules.push(HttpRule { http: Written::Here(root), origin });
            continue;
        };
        let namespace = if wanted.namespace.is_empty() { &*key.namespace } else { wanted.namespace.as_str() };
        let found = delegates.get(&(namespace, wanted.name.as_str()));
        let Some(delegate) =
            found.filter(|delegate| visibility::sees(delegate.export_to, namespace, &key.namespace))
        else {
            problems.note(format!(
                "{key}: http[{index}] delegates to VirtualService {namespace}/{}, which is not there: this route is left out",
                wanted.name
            ));
            continue;
        };
        let delegate_key = delegate.stored.object.key();
        made_of.push((delegate_key.clone(), delegate.stored.changed));
        let mut root = root.clone();
        in_full(&mut root, &key.namespace, domain);
        for (index, route) in delegate.spec.http.iter().enumerate() {
            let mut route = route.clone();
            in_full(&mut route, namespace, domain);
            let Some(merged) = merge(&root, route) else { continue };
            let origin = Origin {
                object: Some(delegate_key.clone()),
                path: format!("http[{index}]"),
                name: merged.name.clone(),
            };
            rules.push(HttpRule { http: Written::Merged(Box::new(merged)), origin });
        }
    }
    rules
}

/// Writes every name of a route in full: of hosts and of gateways.
fn in_full(route: &mut HttpRoute, namespace: &str, domain: &str) {
    let full = |destination: Option<&mut Destination>| {
        if let Some(destination) = destination {
            destination.host = full_name(&destination.host, namespace, domain);
        }
    };
    for gateway in route.r#match.iter_mut().flat_map(|condition| &mut condition.gateways) {
        if gateway != MESH {
            *gateway = gateway_name(gateway, namespace);
        }
    }
    full(route.mirror.as_deref_mut());
    route.route.iter_mut().for_each(|entry| full(entry.destination.as_mut()));
    route.mirrors.iter_mut().for_each(|mirror| full(mirror.destination.as_mut()));
}

/// Merges a root's route into one of the delegate's; `None`: they contradict each other.
fn merge(root: &HttpRoute, mut route: HttpRoute) -> Option<HttpRoute> {
    route.r#match = merge_conditions(&root.r#match, std::mem::take(&mut route.r#match))?;
    route.name = joined(&root.name, &route.name);
    or(&mut route.rewrite, &root.rewrite);
    or(&mut route.direct_response, &root.direct_response);
    or(&mut route.timeout, &root.timeout);
    or(&mut route.retries, &root.retries);
    or(&mut route.fault, &root.fault);
    or(&mut route.mirror, &root.mirror);
    or(&mut route.mirror_percent, &root.mirror_percent);
    or(&mut route.mirror_percent_snake, &root.mirror_percent_snake);
    or(&mut route.mirror_percentage, &root.mirror_percentage);
    or(&mut route.cors_policy, &root.cors_policy);
    or(&mut route.headers, &root.headers);
    if route.mirrors.is_empty() {
        route.mirrors.clone_from(&root.mirrors);
    }
    Some(route)
}

fn merge_conditions(
    root: &[HttpMatchRequest],
    delegate: Vec<HttpMatchRequest>,
) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(delegate);
    }
    if delegate.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for leaf in &delegate {
        let before = merged.len();
        let fitting = root.iter().filter(|root| !conflict(root, leaf));
        merged.extend(fitting.map(|root| merge_condition(root, leaf.clone())));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_condition(root: &HttpMatchRequest, mut leaf: HttpMatchRequest) -> HttpMatchRequest {
    leaf.name = joined(&root.name, &leaf.name);
    or(&mut leaf.uri, &root.uri);
    or(&mut leaf.scheme, &root.scheme);
    or(&mut leaf.method, &root.method);
    or(&mut leaf.authority, &root.authority);
    or(&mut leaf.port, &root.port);
    over(&mut leaf.headers, &root.headers);
    over(&mut leaf.without_headers, &root.without_headers);
    over(&mut leaf.query_params, &root.query_params);
    over(&mut leaf.source_labels, &root.source_labels);
    if leaf.source_namespace.is_empty() {
        leaf.source_namespace.clone_from(&root.source_namespace);
    }
    if leaf.gateways.is_empty() {
        leaf.gateways.clone_from(&root.gateways);
    }
    leaf
}

fn conflict(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let in_map = |(root, leaf): (&SmallMap<String, StringMatch>, &SmallMap<String, StringMatch>)| {
        leaf.iter().any(|(name, leaf)| root.get(name).is_some_and(|root| text_conflict(root, leaf)))
    };
    let gateway_is_new = |gateway: &String| !root.gateways.contains(gateway);
    texts.iter().any(|pair| matches!(pair, (Some(root), Some(leaf)) if text_conflict(root, leaf)))
        || maps.into_iter().any(in_map)
        || root.ignore_uri_case != leaf.ignore_uri_case
        || matches!((root.port, leaf.port), (Some(root), Some(leaf)) if root != leaf)
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || leaf
            .source_labels
            .iter()
            .any(|(name, value)| root.source_labels.get(name).is_some_and(|other| other != value))
        || (!root.gateways.is_empty() && leaf.gateways.iter().any(gateway_is_new))
}

/// A leaf may be narrower than its root, and that must be plain to see: any expression is a conflict.
fn text_conflict(root: &StringMatch, leaf: &StringMatch) -> bool {
    use StringMatch::{Exact, Prefix, Present, Regex};
    match (root, leaf) {
        // Also where one only asks that it be there: pilot's `stringMatchConflict`.
        (Present | Regex(_), _) | (_, Present | Regex(_)) | (Exact(_), Prefix(_)) => true,
        // An empty text on the root's side counts as none there.
        (Exact(root) | Prefix(root), _) if root.is_empty() => true,
        (Exact(root), Exact(leaf)) => root != leaf,
        (Prefix(root), Exact(leaf) | Prefix(leaf)) => !leaf.starts_with(root.as_str()),
    }
}

fn joined(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        (only, "") | ("", only) => only.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

#[expect(clippy::ref_option, reason = "both sides are fields of one message")]
fn or<T: Clone>(leaf: &mut Option<T>, root: &Option<T>) {
    if leaf.is_none() {
        leaf.clone_from(root);
    }
}

fn over<V: Clone>(leaf: &mut SmallMap<String, V>, root: &SmallMap<String, V>) {
    for (name, value) in root {
        leaf.insert_missing(name.clone(), || value.clone());
    }
}
