//! Counters in Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use mesh_core::resilience::Flag;

use super::{Counters, EdgeCell, EdgeKey, Stats};

/// Writes everything.
pub(super) fn write(stats: &Stats) -> String {
    let mut out = String::new();
    let edges = stats.edges();
    let mut edges: Vec<_> = edges.iter().map(|(key, cells)| (labels(key), cells)).collect();
    edges.sort_by(|a, b| a.0.cmp(&b.0));
    head(&mut out, "istio_requests_total", "counter", "Requests ended, counted at their source.");
    for (labels, cells) in &edges {
        write_requests(&mut out, labels, cells);
    }
    head(
        &mut out,
        "istio_request_duration_milliseconds",
        "histogram",
        "How long requests took, at their source.",
    );
    for (labels, cells) in &edges {
        write_durations(&mut out, labels, cells);
    }
    for (name, kind, help, read) in Counters::table() {
        let name = format!("meshd_{name}");
        head(&mut out, &name, kind, help.trim());
        let _ = writeln!(out, "{name} {}", stats.total(read));
    }
    head(&mut out, "meshd_task_panics_total", "counter", "Tasks that ended in a panic. The bar is 0.");
    let _ = writeln!(out, "meshd_task_panics_total {}", super::task_panics());
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn write_requests(out: &mut String, labels: &str, cells: &[Arc<EdgeCell>]) {
    let mut sums: BTreeMap<(u16, Option<Flag>), u64> = BTreeMap::new();
    for (status, flag, count) in cells.iter().flat_map(|cell| cell.outcomes()) {
        *sums.entry((status, flag)).or_default() += count;
    }
    for ((status, flag), count) in sums {
        let flag = flag.map_or("-", Flag::letters);
        let _ = writeln!(
            out,
            "istio_requests_total{{{labels},response_code=\"{status}\",response_flags=\"{flag}\"}} {count}"
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "sums of microseconds: 285 years fit exactly")]
fn write_durations(out: &mut String, labels: &str, cells: &[Arc<EdgeCell>]) {
    const NAME: &str = "istio_request_duration_milliseconds";
    let buckets: Vec<_> = cells.iter().flat_map(|cell| cell.latency().buckets()).collect();
    for bound in BOUNDS_MS {
        let within = |upper: u64| upper as f64 <= bound * 1_000.0;
        let count: u64 = buckets.iter().filter(|(upper, _)| within(*upper)).map(|(_, count)| count).sum();
        let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {count}");
    }
    let all: u64 = buckets.iter().map(|(_, count)| count).sum();
    let millis = cells.iter().map(|cell| cell.micros()).sum::<u64>() as f64 / 1_000.0;
    let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {all}");
    let _ = writeln!(out, "{NAME}_sum{{{labels}}} {millis}\n{NAME}_count{{{labels}}} {all}");
}

/// Istio's labels; `destination_subset` and `destination_port` are meshd's own.
fn labels(key: &EdgeKey) -> String {
    let (namespace, account) = key.source.split_once('/').unwrap_or(("", &key.source));
    let service = key.destination.split('.').next().unwrap_or_default();
    format!(
        "reporter=\"source\",source_workload=\"{}\",source_workload_namespace=\"{}\",destination_service=\"{}\",\
         destination_service_name=\"{}\",destination_version=\"{}\",destination_port=\"{}\",\
         destination_subset=\"{}\",request_protocol=\"http\"",
        escape(account),
        escape(namespace),
        escape(&key.destination),
        escape(service),
        escape(&key.version),
        key.port,
        escape(&key.subset),
    )
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Istio's buckets, in milliseconds.
const BOUNDS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
