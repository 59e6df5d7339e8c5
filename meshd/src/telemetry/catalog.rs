//! Every metric, with its type, unit, labels and meaning: what `/metrics` says and what `docs/metrics.md` is made from.

use std::fmt::Write;

use super::Counters;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many of which size.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What is counted, or the unit.
    pub unit: &'static str,
    /// Labels of its own; those of Istio have [`labels of both ends`](COMMON_LABELS) besides.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// Labels that every metric of Istio's has.
pub const COMMON_LABELS: [&str; 22] = super::labels::COMMON;

const ENDED: &[&str] = &["response_code", "response_flags", "grpc_response_status"];

const fn istio(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

pub(super) const REQUESTS: Metric = istio(
    "istio_requests_total",
    Kind::Counter,
    "requests",
    ENDED,
    "Requests that ended, at the calling and at the called host.",
);
pub(super) const DURATION: Metric = istio(
    "istio_request_duration_milliseconds",
    Kind::Histogram,
    "milliseconds",
    ENDED,
    "How long requests took, from their first byte to the last of the answer.",
);
pub(super) const REQUEST_BYTES: Metric =
    istio("istio_request_bytes", Kind::Histogram, "bytes", ENDED, "Sizes of the bodies of requests.");
pub(super) const RESPONSE_BYTES: Metric =
    istio("istio_response_bytes", Kind::Histogram, "bytes", ENDED, "Sizes of the bodies of answers.");
pub(super) const REQUEST_MESSAGES: Metric = istio(
    "istio_request_messages_total",
    Kind::Counter,
    "messages",
    &[],
    "Messages of gRPC from callers, counted as they pass.",
);
pub(super) const RESPONSE_MESSAGES: Metric = istio(
    "istio_response_messages_total",
    Kind::Counter,
    "messages",
    &[],
    "Messages of gRPC to callers, counted as they pass.",
);
pub(super) const OPENED: Metric = istio(
    "istio_tcp_connections_opened_total",
    Kind::Counter,
    "connections",
    &["response_flags"],
    "Opaque connections opened, at the calling and at the called host.",
);
pub(super) const CLOSED: Metric = istio(
    "istio_tcp_connections_closed_total",
    Kind::Counter,
    "connections",
    &["response_flags"],
    "Opaque connections closed.",
);
pub(super) const SENT: Metric = istio(
    "istio_tcp_sent_bytes_total",
    Kind::Counter,
    "bytes",
    &["response_flags"],
    "Bytes to callers on opaque connections, counted as they pass.",
);
pub(super) const RECEIVED: Metric = istio(
    "istio_tcp_received_bytes_total",
    Kind::Counter,
    "bytes",
    &["response_flags"],
    "Bytes from callers on opaque connections, counted as they pass.",
);

/// Istio's.
pub const ISTIO: [Metric; 10] = [
    REQUESTS,
    DURATION,
    REQUEST_BYTES,
    RESPONSE_BYTES,
    REQUEST_MESSAGES,
    RESPONSE_MESSAGES,
    OPENED,
    CLOSED,
    SENT,
    RECEIVED,
];

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

/// What runs here.
pub const BUILD: Metric = gauge("meshd_build_info", "always 1", &["version"], "Which meshd runs here.");
/// The same under Istio's name.
pub const ISTIO_BUILD: Metric =
    gauge("istio_build", "always 1", &["component", "tag"], "Which meshd runs here, under Istio's name.");
/// Revision of the Plan.
pub const CONFIG_REVISION: Metric = gauge(
    "meshd_config_revision",
    "revision",
    &[],
    "The revision of the mesh that the data plane here runs.",
);
/// Revisions that the Plan is behind.
pub const CONFIG_LAG: Metric = gauge(
    "meshd_config_lag_revisions",
    "revisions",
    &[],
    "How many revisions the data plane here is behind the newest that this host knows.",
);
/// What could not be carried out.
pub const CONFIG_PROBLEMS: Metric = gauge(
    "meshd_config_problems",
    "problems",
    &[],
    "What this host could not carry out of the resources; meshctl status names them.",
);
/// Time until certificates end.
pub const CERTIFICATE_LIFETIME: Metric = gauge(
    "meshd_certificate_lifetime_seconds",
    "seconds",
    &["identity"],
    "How long the certificate of an identity of this host is still valid; negative: it is over.",
);
/// Failures to renew certificates.
pub const CERTIFICATE_FAILURES: Metric = gauge(
    "meshd_certificate_failures",
    "failures",
    &["identity"],
    "Failed attempts, one after the other, to renew the certificate of an identity of this host.",
);
/// Whether there is a leader.
pub const RAFT_HAS_LEADER: Metric = gauge(
    "meshd_raft_has_leader",
    "0 or 1",
    &[],
    "Whether this server knows a leader. On servers only, as all of meshd_raft.",
);
/// Whether this server leads.
pub const RAFT_IS_LEADER: Metric =
    gauge("meshd_raft_is_leader", "0 or 1", &[], "Whether this server is the leader.");
/// Members by role.
pub const RAFT_MEMBERS: Metric = gauge(
    "meshd_raft_members",
    "servers",
    &["role"],
    "Servers in the Raft group, by role: voter or standby.",
);
/// Revision that is applied.
pub const RAFT_REVISION: Metric =
    gauge("meshd_raft_revision", "revision", &[], "The newest revision that this server has applied.");
/// Whether the server works.
pub const RAFT_FAILED: Metric = gauge(
    "meshd_raft_failed",
    "0 or 1",
    &[],
    "Whether this server has stopped because its disk or its log failed.",
);
/// Memory in use.
pub const MEMORY: Metric = gauge("meshd_memory_bytes", "bytes", &[], "Memory that meshd holds.");
/// Memory that may be used.
pub const MEMORY_LIMIT: Metric = gauge(
    "meshd_memory_limit_bytes",
    "bytes",
    &[],
    "Memory that meshd may hold; near it, new requests are refused (limits.memory_bytes).",
);
/// Descriptors in use for connections.
pub const DESCRIPTORS: Metric =
    gauge("meshd_descriptors", "descriptors", &[], "Descriptors in use for connections.");
/// Descriptors that may be used.
pub const DESCRIPTORS_LIMIT: Metric =
    gauge("meshd_descriptors_limit", "descriptors", &[], "Descriptors that connections may use.");
pub(super) const PANICS: Metric = Metric {
    name: "meshd_task_panics_total",
    kind: Kind::Counter,
    unit: "tasks",
    labels: &[],
    help: "Tasks that ended in a panic. The bar is 0.",
};
pub(super) const DNS: Metric = Metric {
    name: "meshd_dns_questions_total",
    kind: Kind::Counter,
    unit: "questions",
    labels: &["outcome"],
    help: "Questions asked of meshd's DNS: answered by the mesh, passed on, or failed because nobody answered.",
};
pub(super) const LOG_DROPPED: Metric = Metric {
    name: "meshd_access_log_dropped_total",
    kind: Kind::Counter,
    unit: "lines",
    labels: &[],
    help: "Lines of access logs dropped because their file could not keep up, or could not be written.",
};

/// meshd's own, but for those that workers count.
pub const OWN: [Metric; 19] = [
    BUILD,
    ISTIO_BUILD,
    CONFIG_REVISION,
    CONFIG_LAG,
    CONFIG_PROBLEMS,
    CERTIFICATE_LIFETIME,
    CERTIFICATE_FAILURES,
    RAFT_HAS_LEADER,
    RAFT_IS_LEADER,
    RAFT_MEMBERS,
    RAFT_REVISION,
    RAFT_FAILED,
    MEMORY,
    MEMORY_LIMIT,
    DESCRIPTORS,
    DESCRIPTORS_LIMIT,
    PANICS,
    DNS,
    LOG_DROPPED,
];

/// Returns those that workers count, of which each has its own name.
pub fn of_workers() -> impl Iterator<Item = Metric> {
    Counters::table().into_iter().map(|(metric, _)| metric)
}

/// Returns every metric.
pub fn all() -> Vec<Metric> {
    ISTIO.into_iter().chain(OWN).chain(of_workers()).collect()
}

/// Writes the tables of `docs/metrics.md`.
pub fn reference() -> String {
    let mut page = String::from("\n## Istio's\n\n");
    table(&mut page, &ISTIO);
    page.push_str("\nEach of them has these labels besides: ");
    let names: Vec<String> = COMMON_LABELS.iter().map(|label| format!("`{label}`")).collect();
    page.push_str(&names.join(", "));
    page.push_str(".\n\n## meshd's own\n\n");
    table(&mut page, &OWN);
    page.push_str("\nWhat workers count:\n\n");
    table(&mut page, &of_workers().collect::<Vec<_>>());
    page
}

fn table(page: &mut String, metrics: &[Metric]) {
    page.push_str("| name | type | unit | labels of its own | meaning |\n|---|---|---|---|---|\n");
    for Metric { name, kind, unit, labels, help } in metrics {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{kind:?}").to_lowercase();
        let _ = writeln!(page, "| `{name}` | {kind} | {unit} | {} | {} |", labels.join(", "), help.trim());
    }
}
