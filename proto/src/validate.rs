//! Whether what an object says makes sense: Istio's own rules, without a look at other objects.
//!
//! Errors refuse the object; warnings are for what is taken as written and probably not meant. Whether a route's
//! subset exists is a question about several objects, and not asked here. Findings carry field paths only; the reader
//! of a file adds places ([`Document::place`](crate::yaml::Document::place)).
//!
//! Source: Istio `pkg/config/validation`, and the rules in the schema of its kinds.

mod authorization;
mod destination_rule;
mod http;
mod regex;
mod security;
mod service_entry;
mod telemetry;
mod text;
mod tokens;
mod traffic;
mod virtual_service;

use crate::finding::Finding;
use crate::resource::{Kind, Object, Spec, WorkloadSelector};
use crate::value::Duration;

/// Says everything about an object that makes no sense.
pub fn validate(object: &Object) -> Vec<Finding> {
    let mut check = Check { namespace: object.metadata.namespace.to_string(), found: Vec::new() };
    metadata(&mut check, object);
    match &object.spec {
        Spec::VirtualService(spec) => virtual_service::check(&mut check, spec),
        Spec::DestinationRule(spec) => destination_rule::check(&mut check, spec),
        Spec::ServiceEntry(spec) => service_entry::check(&mut check, &object.metadata, spec),
        Spec::WorkloadEntry(spec) => service_entry::check_workload(&mut check, "spec", spec),
        Spec::WorkloadGroup(spec) => service_entry::check_group(&mut check, spec),
        Spec::Gateway(spec) => traffic::check_gateway(&mut check, &object.metadata.name, spec),
        Spec::Sidecar(spec) => traffic::check_sidecar(&mut check, spec),
        Spec::PeerAuthentication(spec) => security::check_peer(&mut check, spec),
        Spec::AuthorizationPolicy(spec) => authorization::check(&mut check, &object.metadata, spec),
        Spec::RequestAuthentication(spec) => tokens::check(&mut check, spec),
        Spec::Telemetry(spec) => telemetry::check(&mut check, spec),
        Spec::MeshConfig(spec) => destination_rule::check_mesh(&mut check, spec),
    }
    for finding in &mut check.found {
        finding.object = Some(object.key().to_string());
    }
    check.found
}

/// What Istio's annotations ask for that cannot be.
fn metadata(check: &mut Check, object: &Object) {
    let path = |name: &str| crate::yaml::join("metadata.annotations", name);
    if object.metadata.annotations.contains_key(DRY_RUN) && object.kind() != Kind::AuthorizationPolicy {
        check.error(path(DRY_RUN), "only an AuthorizationPolicy can be tried without effect");
    }
    if object.metadata.annotations.contains_key(ALWAYS_REJECT) {
        check.error(path(ALWAYS_REJECT), "asks for the object to be refused");
    }
}

const DRY_RUN: &str = "istio.io/dry-run";
/// What is said of a selector without labels.
const EVERYBODY: &str =
    "has no labels, so it selects every workload of the namespace; leave it out to say so";
const ALWAYS_REJECT: &str = "internal.istio.io/webhook-always-reject";

/// Collects findings.
struct Check {
    /// Of the object.
    namespace: String,
    found: Vec<Finding>,
}

/// Who may be exported to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exports {
    /// Namespaces, or all.
    Rules,
    /// Also nobody (`~`): services of one workload.
    Services,
    /// The own namespace alone: rules for some workloads of it.
    Own,
}

impl Check {
    fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push(Finding::error("invalid", path, message));
    }

    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.found.push(Finding::warning("doubtful", path, message));
    }

    /// Takes the verdict of a rule about one value.
    fn rule(&mut self, path: impl Into<String>, verdict: Result<(), String>) {
        if let Err(message) = verdict {
            self.error(path, message);
        }
    }

    fn required(&mut self, path: impl Into<String>, text: &str) -> bool {
        if text.is_empty() {
            self.error(path, "must be there");
        }
        !text.is_empty()
    }

    /// Every text of a list says something.
    fn filled(&mut self, path: &str, values: &[String]) {
        for (path, _) in each(path, values).filter(|(_, value)| value.is_empty()) {
            self.error(path, "must not be empty");
        }
    }

    /// Source: `maxItems`, `maxProperties` of the schema.
    fn at_most(&mut self, path: &str, count: usize, most: usize) {
        if count > most {
            self.error(path, format!("has {count} entries (at most {most})"));
        }
    }

    /// Source: `maxLength` of the schema, which counts characters.
    fn no_longer(&mut self, path: impl Into<String>, text: &str, most: usize) {
        let length = text.chars().count();
        if length > most {
            self.error(path, format!("is {length} characters long (at most {most})"));
        }
    }

    /// The labels of a selector by `labels`.
    ///
    /// Source: Istio `ValidateAlphaWorkloadSelector`.
    fn selector(&mut self, path: &str, selector: &WorkloadSelector) {
        self.rule(format!("{path}.labels"), text::labels(&selector.labels));
        self.at_most(&format!("{path}.labels"), selector.labels.len(), 256);
        for (name, value) in &selector.labels {
            self.no_longer(crate::yaml::join(&format!("{path}.labels"), name), value, 63);
        }
        if selector.labels.is_empty() {
            self.warning(path, EVERYBODY);
        }
    }

    fn port(&mut self, path: impl Into<String>, port: u16) {
        if port == 0 {
            self.error(path, "0 is not a port (1 to 65535)");
        }
    }

    /// Istio's rule: at least a millisecond, and whole milliseconds.
    fn duration(&mut self, path: impl Into<String>, span: Option<Duration>) {
        let Some(span) = span else { return };
        let nanos = span.get().as_nanos();
        if nanos < 1_000_000 {
            self.error(path, format!("{span} is too short (at least 1ms)"));
        } else if nanos % 1_000_000 != 0 {
            self.error(path, format!("{span} is finer than a millisecond"));
        }
    }

    fn percent(&mut self, path: impl Into<String>, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(path, format!("{value} is not a percentage (0 to 100)"));
        }
    }

    fn not_negative(&mut self, path: impl Into<String>, value: i32) {
        if value < 0 {
            self.error(path, format!("{value} is negative"));
        }
    }

    /// Reports names that come again.
    fn unique<'t>(&mut self, what: &str, names: impl IntoIterator<Item = (String, &'t str)>) {
        let mut seen = std::collections::BTreeMap::new();
        for (path, name) in names {
            if let Some(first) = seen.get(name) {
                self.error(path, format!("{what} {name:?} is here twice (first at {first})"));
            } else {
                seen.insert(name, path);
            }
        }
    }

    /// Who sees an object: `.`, `*`, `~` or namespaces.
    ///
    /// Source: Istio `validateExportTo`.
    fn export_to(&mut self, names: &[String], exports: Exports) {
        let own = self.namespace.clone();
        let full = |name: &String| if name == "." { own.clone() } else { name.clone() };
        let path = |index: usize| format!("spec.exportTo[{index}]");
        for (index, name) in names.iter().enumerate() {
            match name.as_str() {
                "~" if exports != Exports::Services => {
                    self.error(path(index), "\"~\", nobody, is for a ServiceEntry only");
                }
                "." | "*" | "~" => {}
                name if text::label(name).is_err() => self
                    .error(path(index), format!("{name:?} is neither a namespace nor \".\", \"*\" or \"~\"")),
                _ => {}
            }
            if matches!(name.as_str(), "*" | "~") && names.len() > 1 {
                self.error(path(index), format!("{name:?} must stand alone"));
            } else if exports == Exports::Own && full(name) != own {
                self.error(
                    path(index),
                    format!("a rule with a workloadSelector is for its own namespace, {own}, only"),
                );
            }
        }
        let names: Vec<String> = names.iter().map(full).collect();
        self.unique(
            "the namespace",
            names.iter().enumerate().map(|(index, name)| (path(index), name.as_str())),
        );
    }
}

/// Returns every item with its path.
fn each<'i, T>(path: &str, items: &'i [T]) -> impl Iterator<Item = (String, &'i T)> {
    items.iter().enumerate().map(move |(index, item)| (format!("{path}[{index}]"), item))
}

#[cfg(test)]
mod tests;
