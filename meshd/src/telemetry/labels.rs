//! Who called whom, how: what tells the series of Istio's metrics apart, and how they are labelled.

use std::fmt::Write;
use std::sync::Arc;

use mesh_core::plan::{Metering, Metric, Party, PartyField};
use mesh_core::resilience::Flags;

/// Which end of a call tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The calling host.
    Source,
    /// The called host.
    Destination,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Spoken {
    /// Requests.
    Http,
    /// Requests that are gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// What tells series apart, but for how a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// Which end tells.
    pub reporter: Reporter,
    /// What is spoken.
    pub spoken: Spoken,
    /// Whether both ends have proven who they are.
    pub mutual: bool,
    /// Who calls.
    pub source: Party,
    /// Who is called; unknown where no endpoint was chosen, or one outside the mesh.
    pub destination: Party,
    /// Full host name of the service.
    pub service: Arc<str>,
    /// Why an opaque connection came to nothing.
    pub flags: Flags,
    /// What differs for its metrics.
    pub metering: Option<Arc<Metering>>,
}

impl SeriesKey {
    /// What stands for all series beyond the limit.
    pub(super) fn other(&self) -> Self {
        Self {
            source: Party::default(),
            destination: Party::default(),
            service: OTHER.into(),
            flags: Flags::default(),
            metering: None,
            ..self.clone()
        }
    }

    /// Writes the labels of a metric, in the order in which Istio documents them; `ended` are those that an answer decides.
    /// `None`: it is not told.
    pub(super) fn text(&self, metric: Metric, ended: &[(&str, &str)]) -> Option<String> {
        let rule = self.metering.as_ref().map(|metering| &metering.0[metric as usize]);
        if rule.is_some_and(|rule| rule.disabled) {
            return None;
        }
        let mut text = String::with_capacity(1_024);
        let mut left: Vec<&(String, String)> = rule.map_or(Vec::new(), |rule| rule.set.iter().collect());
        let mut add = |name: &str, value: &str| {
            if rule.is_some_and(|rule| rule.removed.iter().any(|removed| removed == name)) {
                return;
            }
            let set = left.iter().position(|(other, _)| other == name).map(|at| left.swap_remove(at));
            push(&mut text, name, set.map_or(value, |(_, value)| value.as_str()));
        };
        add("reporter", if self.reporter == Reporter::Source { "source" } else { "destination" });
        for (end, party) in [("source", &self.source), ("destination", &self.destination)] {
            for (label, field) in FIELDS {
                add(&format!("{end}_{label}"), party.get(field).unwrap_or(UNKNOWN));
            }
            let revision = party.get(PartyField::Revision);
            // Istio's servers take a source that does not say for the latest.
            let unsaid = if self.reporter == Reporter::Destination { "latest" } else { UNKNOWN };
            add(&format!("{end}_canonical_revision"), revision.unwrap_or(unsaid));
            let principal = party.principal().filter(|_| self.mutual);
            add(&format!("{end}_principal"), principal.as_deref().unwrap_or(UNKNOWN));
        }
        let (name, namespace) = service_of(&self.service);
        let home = self.destination.get(PartyField::Namespace).or(namespace);
        add("destination_service", &self.service);
        add("destination_service_name", name);
        add("destination_service_namespace", home.unwrap_or(UNKNOWN));
        add("connection_security_policy", self.security());
        add(
            "request_protocol",
            match self.spoken {
                Spoken::Http => "http",
                Spoken::Grpc => "grpc",
                Spoken::Tcp => "tcp",
            },
        );
        for (name, value) in ended {
            add(name, value);
        }
        for (name, value) in rule.iter().flat_map(|rule| &rule.set) {
            if left.iter().any(|(other, _)| other == name) {
                push(&mut text, name, value);
            }
        }
        Some(text)
    }

    /// Source: Istio: only the called end knows.
    fn security(&self) -> &'static str {
        match (self.reporter, self.mutual) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, true) => "mutual_tls",
            (Reporter::Destination, false) => "none",
        }
    }
}

/// Adds a label to others.
pub(super) fn push(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    let _ = write!(text, "{name}=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// Splits the name of a service: its short name, and its namespace where the name has it.
pub(super) fn service_of(host: &str) -> (&str, Option<&str>) {
    let mut parts = host.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name, Some(namespace)),
        _ => (host, None),
    }
}

const FIELDS: [(&str, PartyField); 6] = [
    ("workload", PartyField::Workload),
    ("workload_namespace", PartyField::Namespace),
    ("app", PartyField::App),
    ("version", PartyField::Version),
    ("cluster", PartyField::TrustDomain),
    ("canonical_service", PartyField::Service),
];

/// Every label of [`SeriesKey::text`].
pub(super) const COMMON: [&str; 22] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "source_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "connection_security_policy",
    "request_protocol",
];

const UNKNOWN: &str = "unknown";
/// The service under which series beyond the limit are counted.
const OTHER: &str = "other";
