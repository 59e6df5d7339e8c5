//! What is wrong or strange about rules beside other rules and services: findings that need the whole World.
//!
//! Destinations that are not there, routes that are never reached, two rules for one host. All are warnings, as in
//! Istio, but for what no host could carry out. What one object alone gets wrong was said by `proto::validate`.

use std::collections::BTreeSet;

use foldhash::HashMap;
use mesh_proto::command::Batch;
use mesh_proto::finding::{Finding, Severity};
use mesh_proto::resource::{Destination, Headers, HttpRoute, Kind, ObjectKey, Spec};

use crate::compile::destinations::Rules as DestinationRules;
use crate::compile::hosts::{Service, Services, full_name, of_kind, services, takes};
use crate::compile::mesh::Settings;
use crate::compile::rules::{HttpRule, Rules, is_catch_all, load};
use crate::compile::{Problems, routes};
use crate::plan::{Node, Workload};
use crate::sketch;
use crate::world::World;

mod around;
mod doubles;
mod never;
mod scope;
mod selectors;
mod shadow;

/// Tells what a batch would make strange: everything about its own objects, and what it breaks for others.
pub fn check(world: &World, batch: &Batch) -> Vec<Finding> {
    let after = sketch::after(world, batch);
    // Mostly there is nothing to say, which is seen in the part of the World that the batch has to do with.
    if around::part(world, &after, batch).is_some_and(|part| all(&part).is_empty()) {
        return Vec::new();
    }
    check_whole(world, &after, batch)
}

fn check_whole(world: &World, after: &World, batch: &Batch) -> Vec<Finding> {
    let own: BTreeSet<String> = batch.changes.iter().map(|change| change.key.to_string()).collect();
    let is_own = |finding: &Finding| finding.object.as_ref().is_some_and(|object| own.contains(object));
    let mut findings = all(after);
    if findings.iter().any(|finding| !is_own(finding)) {
        let known = all(world);
        let known: Vec<Finding> = known.into_iter().map(without_names).collect();
        findings.retain(|finding| is_own(finding) || !known.contains(&without_names(finding.clone())));
    }
    findings
}

/// The same finding without the names that there are to choose from: that others came or went makes it no new one.
fn without_names(mut finding: Finding) -> Finding {
    let message = &finding.message;
    let list = message.find(" has: ").and_then(|middle| {
        let begin =
            message[..middle].rfind(" (").filter(|begin| !message[begin + 2..middle].contains(' '))?;
        Some((begin, middle + message[middle..].find(')')?))
    });
    if let Some((begin, end)) = list {
        finding.message.replace_range(begin..=end, "");
    }
    finding
}

/// Tells everything strange about the rules of a World that their author should know at `apply`.
pub fn all(world: &World) -> Vec<Finding> {
    tell(world, false)
}

/// Tells everything strange about a World, also what is only worth a look: for `meshctl analyze`.
pub fn thorough(world: &World) -> Vec<Finding> {
    let mut findings = tell(world, true);
    for finding in &mut findings {
        if ERRORS.contains(&&*finding.code) {
            finding.severity = Severity::Error;
        }
    }
    findings
}

/// What Istio's analyzer calls an error. At `apply` it is a warning, as with Istio.
const ERRORS: [&str; 8] =
    ["IST0101", "IST0109", "IST0110", "IST0111", "IST0145", "IST0159", "IST0160", "IST0173"];

fn tell(world: &World, thorough: bool) -> Vec<Finding> {
    let node = Node { domain: world.mesh.domain.clone(), ..Node::default() };
    let mesh = Settings::of(world);
    let services = services(world, &node, &mesh);
    let problems = Problems::default();
    let rules = load(world, &mesh, &node.domain, &problems);
    let destination_rules = DestinationRules::load(world, &mesh, &node.domain);
    let scene = Scene { domain: &node.domain, services: &services, destination_rules: &destination_rules };
    let mut findings = Vec::new();
    let mut older: HashMap<&str, Vec<&Rules<'_>>> = HashMap::default();
    for one in &rules {
        scene.check_rules(one, &older, &mut findings);
        for host in one.hosts.iter().filter(|_| one.in_mesh) {
            older.entry(host).or_default().push(one);
        }
        if thorough {
            shadow::check(one, &mut findings);
            never::check(one, &mut findings);
        }
    }
    scope::merging(world, &node.domain, &mut findings);
    selectors::doubles(world, thorough, &mut findings);
    doubles::check(world, &mut findings);
    if thorough {
        scope::check(world, &services, &node.domain, &mut findings);
        selectors::check(world, &mesh, &mut findings);
        doubles::doubtful(world, &mut findings);
    }
    check_delegates(world, &mut findings);
    scene.check_destination_rules(world, &mut findings);
    for (stored, host) in &services.shadowed {
        let namespace = &stored.object.metadata.namespace;
        let owner = services.of_host(host).iter().find(|service| *service.namespace == **namespace);
        let owner = owner.map_or_else(String::new, owned_by);
        let text = format!("host {host} is {owner} already: this ServiceEntry is ignored for it");
        let hint = "ServiceEntries of a host are united where resolution, workloadSelector, exportTo and labels are the same";
        findings.push(
            Finding::warning("host-taken", "spec.hosts", text).with_hint(hint).on(&stored.object.key()),
        );
    }
    findings
}

/// What checks look at.
struct Scene<'a> {
    domain: &'a str,
    services: &'a Services<'a>,
    destination_rules: &'a DestinationRules<'a>,
}

impl Scene<'_> {
    /// `older`: rules for callers inside the mesh that come before, by host.
    fn check_rules(
        &self,
        rules: &Rules<'_>,
        older: &HashMap<&str, Vec<&Rules<'_>>>,
        findings: &mut Vec<Finding>,
    ) {
        let key = &rules.key;
        for (index, host) in rules.hosts.iter().enumerate() {
            let path = format!("spec.hosts[{index}]");
            if !rules.in_mesh {
                continue;
            }
            let same = older.get(host.as_str()).into_iter().flatten();
            if let Some(first) = same.copied().find(|other| other.seen_from(rules.namespace)) {
                let text = format!(
                    "The VirtualServices {}/{},{}/{} associated with mesh gateway define the same host {host}: those of \
                     {} count (it is older, or the first by namespace and name), these are ignored for it",
                    first.key.namespace, first.key.name, key.namespace, key.name, first.key
                );
                findings.push(
                    Finding::warning("IST0109", &path, text)
                        .with_hint("put all routes of a host into one VirtualService, or delegate")
                        .on(key),
                );
            }
            let looks_like_a_service = host.ends_with(&format!(".svc.{}", self.domain));
            if looks_like_a_service && !host.starts_with('*') && self.services.find(host).is_none() {
                let text = format!(
                    "host {host} is no service: its routes hold on port 80 only{}",
                    self.known(rules.namespace)
                );
                findings.push(Finding::warning("unknown-host", &path, text).on(key));
            }
        }
        check_reach(rules, findings);
        for rule in &rules.http {
            // Routes of a delegate are told of under its own name.
            let owner = rule.origin.object.as_ref().unwrap_or(key);
            self.check_http(rule, owner, findings);
        }
        for (index, tcp) in rules.spec.tcp.iter().enumerate() {
            for (entry, route) in tcp.route.iter().enumerate() {
                let path = format!("spec.tcp[{index}].route[{entry}].destination");
                self.check_destination(route.destination.as_ref(), key, &path, findings);
            }
        }
        for (index, tls) in rules.spec.tls.iter().enumerate() {
            for (entry, route) in tls.route.iter().enumerate() {
                let path = format!("spec.tls[{index}].route[{entry}].destination");
                self.check_destination(route.destination.as_ref(), key, &path, findings);
            }
        }
    }

    fn check_http(&self, rule: &HttpRule<'_>, owner: &ObjectKey, findings: &mut Vec<Finding>) {
        let http: &HttpRoute = &rule.http;
        let path = format!("spec.{}", rule.origin.path);
        check_headers(http.headers.as_deref(), owner, &format!("{path}.headers"), findings);
        for (index, entry) in http.route.iter().enumerate() {
            let path = format!("{path}.route[{index}]");
            self.check_destination(
                entry.destination.as_ref(),
                owner,
                &format!("{path}.destination"),
                findings,
            );
            check_headers(entry.headers.as_deref(), owner, &format!("{path}.headers"), findings);
        }
        self.check_destination(http.mirror.as_deref(), owner, &format!("{path}.mirror"), findings);
        for (index, mirror) in http.mirrors.iter().enumerate() {
            let path = format!("{path}.mirrors[{index}].destination");
            self.check_destination(mirror.destination.as_ref(), owner, &path, findings);
        }
    }

    fn check_destination(
        &self,
        wanted: Option<&Destination>,
        key: &ObjectKey,
        path: &str,
        findings: &mut Vec<Finding>,
    ) {
        let Some(wanted) = wanted else { return };
        let is_mirror = path.contains(".mirror");
        let host = full_name(&wanted.host, &key.namespace, self.domain);
        let seen = self.services.find(&host).filter(|service| service.seen_from(&key.namespace));
        let Some(service) = seen else {
            let text = format!(
                "Referenced {}host not found: {:?}: no service that namespace {} sees has the host {host}{}: {}",
                if is_mirror { "mirror " } else { "" },
                wanted.host,
                key.namespace,
                self.known(&key.namespace),
                if is_mirror { "nothing is mirrored" } else { "requests are answered 503" }
            );
            let full = format!("{host}.svc.{}", self.domain);
            let mut finding = Finding::warning("IST0101", format!("{path}.host"), text).on(key);
            if self.services.find(&full).is_some() {
                finding = finding.with_hint(format!("a name with a dot is not completed; write {full}"));
            }
            return findings.push(finding);
        };
        if let Some(port) = wanted.port.filter(|port| service.port(port.number).is_none()) {
            let numbers: Vec<_> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let text = format!(
                "Referenced host:port not found: \"{}:{}\": {host} has no port {} (has: {}): requests are answered 503",
                wanted.host,
                port.number,
                port.number,
                listed(&numbers)
            );
            findings.push(Finding::warning("IST0101", format!("{path}.port.number"), text).on(key));
        }
        if wanted.subset.is_empty() {
            return;
        }
        let caller = Workload { namespace: key.namespace.to_string(), ..Workload::default() };
        let merged = self.destination_rules.of(&caller, service);
        let subsets = merged.iter().flat_map(|merged| &merged.subsets);
        let names: Vec<_> = subsets.map(|subset| subset.name.clone()).collect();
        if !names.contains(&wanted.subset) {
            let text = format!(
                "Referenced {}+subset in destinationrule not found: \"{}+{}\": subset {:?} is not in any DestinationRule \
                 for {host} (has: {}): {}",
                if is_mirror { "mirror" } else { "host" },
                wanted.host,
                wanted.subset,
                wanted.subset,
                listed(&names),
                if is_mirror { "nothing is mirrored" } else { "requests are answered 503" }
            );
            findings.push(Finding::warning("IST0101", format!("{path}.subset"), text).on(key));
        }
    }

    fn check_destination_rules(&self, world: &World, findings: &mut Vec<Finding>) {
        for stored in of_kind(world, Kind::DestinationRule) {
            let Spec::DestinationRule(spec) = &stored.object.spec else { continue };
            let key = stored.object.key();
            let host = full_name(&spec.host, &key.namespace, self.domain);
            let fits =
                |service: &Service<'_>| takes(&host, &service.host) && service.seen_from(&key.namespace);
            let candidates =
                if host.starts_with('*') { &self.services.all } else { self.services.of_host(&host) };
            if candidates.iter().any(fits) {
                continue;
            }
            let text = format!(
                "The host {} defined in the DestinationRule does not match any services in the mesh: no service has host \
                 {host}{}: the rule shapes nothing yet",
                spec.host,
                self.known(&key.namespace)
            );
            findings.push(Finding::warning("IST0174", "spec.host", text).on(&key));
        }
    }

    /// Names the services of a namespace, to choose from.
    fn known(&self, namespace: &str) -> String {
        let seen = self.services.all.iter().filter(|service| service.namespace == namespace);
        let names: Vec<_> = seen
            .map(|service| {
                service.host.trim_end_matches(&format!(".{namespace}.svc.{}", self.domain)).to_owned()
            })
            .collect();
        if names.is_empty() { String::new() } else { format!(" ({namespace} has: {})", listed(&names)) }
    }
}

/// Whether a route stands behind one that takes every request of every caller on every port.
fn check_reach(rules: &Rules<'_>, findings: &mut Vec<Finding>) {
    let takes_all = |rule: &HttpRule<'_>| {
        rule.http.r#match.is_empty()
            || rule.http.r#match.iter().any(|condition| {
                is_catch_all(condition)
                    && condition.port.is_none()
                    && condition.source_labels.is_empty()
                    && condition.source_namespace.is_empty()
                    && condition.gateways.is_empty()
            })
    };
    let Some(last) = rules.http.iter().position(takes_all) else { return };
    let place = |rule: &HttpRule<'_>| match rule.origin.object.as_ref().filter(|owner| **owner != rules.key) {
        Some(owner) => format!("{} of {owner}", rule.origin.path),
        None => rule.origin.path.clone(),
    };
    for rule in &rules.http[last + 1..] {
        let text = format!(
            "VirtualService rule {} not used ({} before it takes every request)",
            place(rule),
            place(&rules.http[last])
        );
        findings.push(
            Finding::warning("IST0130", format!("spec.{}", rule.origin.path), text)
                .with_hint("put routes with conditions first")
                .on(&rules.key),
        );
    }
}

/// A header value that no host can make is an error: the route would be left out.
fn check_headers(headers: Option<&Headers>, key: &ObjectKey, path: &str, findings: &mut Vec<Finding>) {
    if let Err(reason) = routes::header_rules(headers) {
        findings.push(Finding::error("header-value", path, reason).on(key));
    }
}

fn check_delegates(world: &World, findings: &mut Vec<Finding>) {
    for stored in of_kind(world, Kind::VirtualService) {
        let Spec::VirtualService(spec) = &stored.object.spec else { continue };
        let key = stored.object.key();
        for (index, http) in spec.http.iter().enumerate() {
            let Some(delegate) = &http.delegate else { continue };
            let namespace =
                if delegate.namespace.is_empty() { &*key.namespace } else { delegate.namespace.as_str() };
            let wanted = ObjectKey::new(Kind::VirtualService, namespace, delegate.name.as_str());
            if !world.resources.contains_key(&wanted) {
                let name = format!("{}/{}", wanted.namespace, wanted.name);
                let text = format!("Referenced delegate not found: {name:?}: this route is left out");
                findings
                    .push(Finding::warning("IST0101", format!("spec.http[{index}].delegate"), text).on(&key));
            }
        }
    }
}

fn owned_by(service: &Service<'_>) -> String {
    match service.entry() {
        Some(entry) => entry.stored.object.key().to_string(),
        None => format!("a registered service of namespace {}", service.namespace),
    }
}

/// Lists names, the first few where there are many.
fn listed(names: &[String]) -> String {
    const MOST: usize = 8;
    match names.len() {
        0 => "none".into(),
        count if count > MOST => format!("{} and {} more", names[..MOST].join(", "), count - MOST),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests;
