//! Routes that no request reaches, because routes before them take all of theirs.
//!
//! One condition covers another when every request that meets the other meets it too; only what is sure counts. Source:
//! Istio's analyzer `schema.VirtualServiceUnreachableRule`, which knows equal conditions; prefixes are ours.

use mesh_proto::finding::Finding;
use mesh_proto::resource::HttpMatchRequest;
use mesh_proto::value::StringMatch;

use crate::compile::hosts::{has_all, takes};
use crate::compile::rules::{HttpRule, Rules};

/// Tells of routes, and of single conditions, that earlier routes take everything from.
///
/// Routes of HTTP behind one without conditions are told of elsewhere.
pub(super) fn check(rules: &Rules<'_>, findings: &mut Vec<Finding>) {
    connections(rules, findings);
    for (number, rule) in rules.http.iter().enumerate() {
        let owner = rule.origin.object.as_ref().unwrap_or(&rules.key);
        let conditions = &rule.http.r#match;
        let covering: Vec<Option<(usize, usize)>> = conditions
            .iter()
            .enumerate()
            .map(|(at, condition)| covered(&rules.http[..number], conditions, at, condition))
            .collect();
        if conditions.is_empty() || covering.iter().all(Option::is_none) {
            continue;
        }
        if covering.iter().all(|by| by.is_some_and(|(by, _)| by < number)) {
            let names: Vec<String> =
                covering.iter().flatten().map(|(by, at)| place(&rules.http[*by], *at)).collect();
            let text = format!(
                "VirtualService rule #{number} not used (all matches used by prior rules: {})",
                names.join(", ")
            );
            let path = format!("spec.{}", rule.origin.path);
            let hint = "put the narrower route first";
            findings.push(Finding::warning("IST0130", path, text).with_hint(hint).on(owner));
            continue;
        }
        for (at, (by, _)) in covering.iter().enumerate().filter_map(|(at, by)| Some((at, (*by)?))) {
            let text = format!(
                "VirtualService rule #{number} match #{at} is not used (duplicate/overlapping match in rule #{by})"
            );
            findings.push(
                Finding::info("IST0131", format!("spec.{}.match[{at}]", rule.origin.path), text).on(owner),
            );
        }
    }
}

/// A condition of a route for connections.
struct Connection<'a> {
    sni_hosts: &'a [String],
    destination_subnets: &'a [String],
    port: Option<u16>,
    source_labels: &'a mesh_proto::value::Labels,
    source_namespace: &'a str,
    gateways: &'a [String],
}

impl Connection<'_> {
    fn covers(&self, narrow: &Self) -> bool {
        let subnets = self.destination_subnets.is_empty()
            || !narrow.destination_subnets.is_empty()
                && narrow.destination_subnets.iter().all(|net| self.destination_subnets.contains(net));
        let server = |name: &String| self.sni_hosts.iter().any(|wide| takes(wide, name));
        narrow.sni_hosts.iter().all(server)
            && subnets
            && (self.port.is_none() || self.port == narrow.port)
            && has_all(narrow.source_labels, self.source_labels)
            && (self.source_namespace.is_empty() || self.source_namespace == narrow.source_namespace)
            && self.gateways == narrow.gateways
    }
}

/// Routes of TLS and TCP. One of TCP without conditions takes every connection.
fn connections(rules: &Rules<'_>, findings: &mut Vec<Finding>) {
    let tls = rules.spec.tls.iter().map(|route| {
        let conditions = route.r#match.iter().map(|one| Connection {
            sni_hosts: &one.sni_hosts,
            destination_subnets: &one.destination_subnets,
            port: one.port,
            source_labels: &one.source_labels,
            source_namespace: &one.source_namespace,
            gateways: &one.gateways,
        });
        conditions.collect::<Vec<_>>()
    });
    let tcp = rules.spec.tcp.iter().map(|route| {
        let conditions = route.r#match.iter().map(|one| Connection {
            sni_hosts: &[],
            destination_subnets: &one.destination_subnets,
            port: one.port,
            source_labels: &one.source_labels,
            source_namespace: &one.source_namespace,
            gateways: &one.gateways,
        });
        conditions.collect::<Vec<_>>()
    });
    for (block, routes) in [("tls", tls.collect::<Vec<_>>()), ("tcp", tcp.collect())] {
        for (number, conditions) in routes.iter().enumerate() {
            let mut told = Told { rules, block, number, findings: &mut *findings };
            if let Some(first) = routes[..number].iter().position(Vec::is_empty) {
                told.unused(&format!("{block}[{first}] before it takes every connection"));
                continue;
            }
            let by = |at: usize, condition: &Connection<'_>| {
                let earlier =
                    routes[..number].iter().position(|all| all.iter().any(|one| one.covers(condition)));
                earlier.or_else(|| conditions[..at].iter().any(|one| one.covers(condition)).then_some(number))
            };
            let covering: Vec<Option<usize>> =
                conditions.iter().enumerate().map(|(at, condition)| by(at, condition)).collect();
            if !covering.is_empty() && covering.iter().all(|by| by.is_some_and(|by| by < number)) {
                told.unused("all matches used by prior rules");
                continue;
            }
            for (at, by) in covering.iter().enumerate().filter_map(|(at, by)| Some((at, (*by)?))) {
                told.ineffective(at, by);
            }
        }
    }
}

/// What is told of one route for connections.
struct Told<'a, 'r> {
    rules: &'a Rules<'r>,
    block: &'a str,
    number: usize,
    findings: &'a mut Vec<Finding>,
}

impl Told<'_, '_> {
    fn unused(&mut self, why: &str) {
        let text = format!("VirtualService rule #{} not used ({why})", self.number);
        let path = format!("spec.{}[{}]", self.block, self.number);
        let finding = Finding::warning("IST0130", path, text).with_hint("put the narrower route first");
        self.findings.push(finding.on(&self.rules.key));
    }

    fn ineffective(&mut self, at: usize, by: usize) {
        let number = self.number;
        let text = format!(
            "VirtualService rule #{number} match #{at} is not used (duplicate/overlapping match in rule #{by})"
        );
        let path = format!("spec.{}[{number}].match[{at}]", self.block);
        self.findings.push(Finding::info("IST0131", path, text).on(&self.rules.key));
    }
}

fn place(rule: &HttpRule<'_>, at: usize) -> String {
    format!("{}.match[{at}]", rule.origin.path)
}

/// Finds the earlier condition, of an earlier route or of the same, that covers one.
fn covered(
    before: &[HttpRule<'_>],
    own: &[HttpMatchRequest],
    at: usize,
    condition: &HttpMatchRequest,
) -> Option<(usize, usize)> {
    let earlier = before.iter().enumerate().flat_map(|(number, rule)| {
        rule.http.r#match.iter().enumerate().map(move |(at, other)| (number, at, other))
    });
    let same = own[..at].iter().enumerate().map(|(other, condition)| (before.len(), other, condition));
    earlier.chain(same).find(|(_, _, other)| covers(other, condition)).map(|(number, at, _)| (number, at))
}

/// Whether every request that meets `narrow` meets `wide`.
fn covers(wide: &HttpMatchRequest, narrow: &HttpMatchRequest) -> bool {
    let uri = match (&wide.uri, &narrow.uri) {
        (None | Some(StringMatch::Present), _) => true,
        (Some(wide_uri), Some(narrow_uri)) => {
            text_covers(wide_uri, narrow_uri, wide.ignore_uri_case, narrow.ignore_uri_case)
        }
        (Some(_), None) => false,
    };
    let one = |wide: &Option<StringMatch>, narrow: &Option<StringMatch>| match (wide, narrow) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => text_covers(wide, narrow, false, false),
        (Some(_), None) => false,
    };
    let all = |wide: &mesh_proto::value::SmallMap<String, StringMatch>,
               narrow: &mesh_proto::value::SmallMap<String, StringMatch>| {
        wide.iter().all(|(name, wide)| {
            narrow.get(name).is_some_and(|narrow| text_covers(wide, narrow, false, false))
        })
    };
    // What must not be there is compared as written.
    let without =
        wide.without_headers.iter().all(|(name, text)| narrow.without_headers.get(name) == Some(text));
    let labels = wide.source_labels.iter().all(|(name, value)| narrow.source_labels.get(name) == Some(value));
    let from = wide.source_namespace.is_empty() || wide.source_namespace == narrow.source_namespace;
    // `gateways` switches what is said of the caller off: only alike ones are compared.
    uri && one(&wide.scheme, &narrow.scheme)
        && one(&wide.method, &narrow.method)
        && one(&wide.authority, &narrow.authority)
        && all(&wide.headers, &narrow.headers)
        && all(&wide.query_params, &narrow.query_params)
        && without
        && labels
        && from
        && wide.gateways == narrow.gateways
        && (wide.port.is_none() || wide.port == narrow.port)
}

/// Whether every text that meets `narrow` meets `wide`.
fn text_covers(wide: &StringMatch, narrow: &StringMatch, wide_any_case: bool, narrow_any_case: bool) -> bool {
    use StringMatch::{Exact, Prefix, Present, Regex};
    if narrow_any_case && !wide_any_case {
        return wide == narrow && matches!(wide, Present);
    }
    let lower = |text: &String| if wide_any_case { text.to_ascii_lowercase() } else { text.clone() };
    match (wide, narrow) {
        (Present, _) => true,
        (Regex(wide), Regex(narrow)) => wide == narrow,
        (Regex(wide), _) => wide == ".*",
        (Exact(wide), Exact(narrow)) => lower(wide) == lower(narrow),
        (Prefix(wide), Exact(narrow) | Prefix(narrow)) => lower(narrow).starts_with(&lower(wide)),
        _ => false,
    }
}
