//! `docs/metrics.md` says what the code counts, and dashboards ask for nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use meshd::telemetry::catalog::{self, Kind};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_tables_of_metrics_are_what_the_code_says() {
    super::check(
        &root().join("docs/metrics.md"),
        ("<!-- metrics: made by a test -->\n", "<!-- metrics: end -->\n"),
        &catalog::reference(),
    );
}

/// What a query asks for: metrics with the labels beside them, and labels that it groups by.
#[derive(Debug, Default)]
struct Asked {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

impl Asked {
    fn of(query: &str) -> Self {
        let mut asked = Self::default();
        let mut rest = query;
        while let Some(begin) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
            let word = &rest[begin..];
            let length = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len());
            let (word, after) = word.split_at(length);
            rest = after;
            if word.starts_with("istio_") || word.starts_with("meshd_") {
                asked.metrics.insert(word.to_owned());
                if let Some(inner) = after.strip_prefix('{') {
                    let end = inner.find('}').expect("braces that close");
                    asked.selectors(&inner[..end]);
                    rest = &inner[end..];
                }
            } else if word == "by" {
                let list = after.trim_start().strip_prefix('(').expect("a list after by");
                let end = list.find(')').expect("parentheses that close");
                asked.labels.extend(list[..end].split(',').map(|label| label.trim().to_owned()));
                rest = &list[end..];
            }
        }
        asked
    }

    fn selectors(&mut self, text: &str) {
        let mut quoted = false;
        let outside: String = text
            .chars()
            .filter(|c| {
                quoted ^= *c == '"';
                !quoted && *c != '"'
            })
            .collect();
        let names = outside.split(',').map(|part| part.trim_end_matches(['=', '~', '!']).trim().to_owned());
        self.labels.extend(names.filter(|name| !name.is_empty()));
    }

    /// Says what of it is not told.
    fn missing(&self) -> Vec<String> {
        let all = catalog::all();
        let mut missing = Vec::new();
        // Prometheus adds those.
        let mut labels: BTreeSet<&str> = BTreeSet::from(["instance", "job"]);
        for name in &self.metrics {
            let found = all.iter().find(|metric| match metric.kind {
                Kind::Histogram => {
                    ["_bucket", "_sum", "_count"].iter().any(|end| *name == format!("{}{end}", metric.name))
                }
                Kind::Counter | Kind::Gauge => metric.name == name,
            });
            let Some(metric) = found else {
                missing.push(format!("metric {name}"));
                continue;
            };
            labels.extend(metric.labels);
            if metric.name.starts_with("istio_") && metric.name != "istio_build" {
                labels.extend(catalog::COMMON_LABELS);
            }
            if name.ends_with("_bucket") {
                labels.insert("le");
            }
        }
        let unknown = self.labels.iter().filter(|label| !labels.contains(label.as_str()));
        missing.extend(unknown.map(|label| format!("label {label}")));
        missing
    }
}

/// Every query of a dashboard: of panels, and of variables.
fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, child) in map {
                match child.as_str() {
                    Some(text) if name == "expr" => found.push(text.to_owned()),
                    Some(text) if name == "query" && text.contains("label_values(") => {
                        let inner = text.trim_start_matches("label_values(").trim_end_matches(')');
                        let (metric, label) = inner.rsplit_once(", ").expect("a metric and a label");
                        found.push(format!("sum by ({label}) ({metric})"));
                    }
                    _ => queries(child, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn dashboards_ask_for_what_is_told() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("packaging/grafana")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a dashboard");
        let board: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let mut all = Vec::new();
        queries(&board, &mut all);
        count += all.len();
        for query in all {
            let asked = Asked::of(&query);
            assert!(!asked.metrics.is_empty(), "{query} asks for no metric");
            wrong.extend(
                asked.missing().into_iter().map(|what| format!("{}: {what}: {query}", path.display())),
            );
        }
    }
    assert!(count > 50, "only {count} queries");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the panels of Istio's dashboards for mesh, services and workloads ask for, without those about its own
/// control plane and about containers. Source: Istio 1.27, `manifests/addons/dashboards`.
const ISTIO_ASKS: [(&str, &[&str]); 8] = [
    (
        "istio_requests_total",
        &[
            "reporter",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "destination_workload",
            "destination_workload_namespace",
            "destination_canonical_service",
            "destination_canonical_revision",
            "destination_version",
            "source_workload",
            "source_workload_namespace",
            "source_canonical_service",
            "source_canonical_revision",
            "source_app",
            "request_protocol",
            "response_code",
            "response_flags",
            "grpc_response_status",
            "connection_security_policy",
            "source_principal",
            "destination_principal",
            "source_cluster",
            "destination_cluster",
        ],
    ),
    (
        "istio_request_duration_milliseconds_bucket",
        &["le", "reporter", "destination_service", "source_workload"],
    ),
    ("istio_request_bytes_bucket", &["le", "reporter", "destination_workload", "connection_security_policy"]),
    (
        "istio_response_bytes_bucket",
        &["le", "reporter", "destination_workload", "connection_security_policy"],
    ),
    ("istio_tcp_received_bytes_total", &["reporter", "destination_service", "source_workload_namespace"]),
    ("istio_tcp_sent_bytes_total", &["reporter", "destination_workload", "connection_security_policy"]),
    ("istio_tcp_connections_opened_total", &["reporter", "destination_service", "response_flags"]),
    ("istio_build", &["component", "tag"]),
];

#[test]
fn istios_own_dashboards_find_their_names_and_labels() {
    for (metric, labels) in ISTIO_ASKS {
        let asked = Asked::of(&format!("sum by ({}) ({metric})", labels.join(",")));
        assert_eq!(asked.missing(), Vec::<String>::new(), "{metric}");
    }
}
