//! Rules of `PeerAuthentication`, and who the security kinds and `Telemetry` are for.
//!
//! Source: Istio `ValidatePeerAuthentication`, `validateWorkloadSelector`, `validatePolicyTargetReference`.

use super::{Check, each, text};
use crate::resource::{MatchLabels, PeerAuthentication, PolicyTargetReference};
use crate::yaml::{join, shorten};

pub(super) fn check_peer(check: &mut Check, spec: &PeerAuthentication) {
    target(check, spec.selector.as_ref(), None, &[]);
    let Some(ports) = &spec.port_level_mtls else { return };
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if ports.is_empty() {
        check.error("spec.portLevelMtls", "must not be empty; leave it out where no port differs");
    } else if !selects {
        check.error("spec.portLevelMtls", "needs a selector with labels: it is for single workloads");
    }
    for port in ports.keys() {
        check.port(format!("spec.portLevelMtls.{port}"), *port);
    }
}

/// Who a policy is for: workloads by their labels, or what is referred to, not both.
pub(super) fn target(
    check: &mut Check,
    labels: Option<&MatchLabels>,
    one: Option<&PolicyTargetReference>,
    several: &[PolicyTargetReference],
) {
    if let Some(selector) = labels {
        selected(check, "spec.selector", selector);
    }
    let used =
        [("selector", labels.is_some()), ("targetRef", one.is_some()), ("targetRefs", !several.is_empty())];
    let used: Vec<&str> = used.iter().filter(|(_, used)| *used).map(|(name, _)| *name).collect();
    if used.len() > 1 {
        check.error("spec", format!("only one of {} may be set", used.join(" and ")));
    }
    check.at_most("spec.targetRefs", several.len(), 16);
    let single = one.map(|reference| ("spec.targetRef".to_owned(), reference));
    for (path, reference) in single.into_iter().chain(each("spec.targetRefs", several)) {
        referred(check, &path, reference);
    }
}

/// The labels of a selector, which may be wider than those a workload can have.
pub(super) fn selected(check: &mut Check, path: &str, selector: &MatchLabels) {
    if selector.match_labels.is_empty() {
        check.warning(path, super::EVERYBODY);
    }
    let path = format!("{path}.matchLabels");
    check.at_most(&path, selector.match_labels.len(), 4096);
    for (key, value) in &selector.match_labels {
        let path = join(&path, key);
        if key.is_empty() {
            check.error(path, "a label has a name");
        } else if key.contains('*') || value.contains('*') {
            check.error(path, "a selector takes no wildcards: it compares whole labels");
        } else if value.chars().count() > 63 {
            check.error(path, "is longer than 63 characters");
        } else if text::labels(&[(key.clone(), value.clone())].into()).is_err() {
            check.warning(path, format!("no workload has the label {key:?} with the value {value:?}"));
        }
    }
}

/// What a policy may be for. (The first of a pair is the group, as it is written.)
const TARGETS: [(&str, &str); 5] = [
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

fn referred(check: &mut Check, path: &str, reference: &PolicyTargetReference) {
    if check.required(format!("{path}.name"), &reference.name) {
        check.no_longer(format!("{path}.name"), &reference.name, 253);
    }
    if !reference.namespace.is_empty() {
        check.error(format!("{path}.namespace"), "must not be set: a policy is for its own namespace");
    }
    if !check.required(format!("{path}.kind"), &reference.kind) {
        if !reference.group.is_empty() {
            check.rule(format!("{path}.group"), text::fqdn(&reference.group));
        }
        return;
    }
    let (group, kind) = (reference.group.as_str(), reference.kind.as_str());
    if !TARGETS.contains(&(group, kind)) {
        let right = TARGETS.iter().find(|(_, known)| *known == kind);
        match right {
            Some((right, _)) => {
                check.error(
                    format!("{path}.group"),
                    format!("{kind} is of the group {right:?}, not {group:?}"),
                );
            }
            None => check.error(
                format!("{path}.kind"),
                format!(
                    "{:?} cannot be referred to: Service, ServiceEntry, Gateway and GatewayClass can",
                    shorten(kind)
                ),
            ),
        }
    }
}
