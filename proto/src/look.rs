//! What looking into a host tells: what ails it, what it runs, what it logs, and requests as they end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::{Revision, Timestamp};

/// What was found out about one thing that meshd needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, a word or two: `ports`, `firewall` …
    pub name: String,
    /// How it stands.
    pub grade: Grade,
    /// What was seen.
    pub what: String,
    /// What comes of it; empty where all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// A command, or words, that put it right; empty where nothing must be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// How something stands, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// It could not be looked at, and why is said.
    Skipped,
    /// As it should be.
    Good,
    /// Worth knowing.
    Info,
    /// It will hurt, or hurts some.
    Warning,
    /// It hurts now.
    Error,
}

impl Check {
    /// All is well.
    pub fn good(name: &str, what: impl Into<String>) -> Self {
        Self::seen(Grade::Good, name, what, "", "")
    }

    /// It could not be looked at.
    pub fn skipped(name: &str, what: impl Into<String>) -> Self {
        Self::seen(Grade::Skipped, name, what, "", "")
    }

    /// A finding, with what puts it right: never empty.
    pub fn new(
        grade: Grade,
        name: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let finding = Self::seen(grade, name, what, why, fix);
        debug_assert!(!finding.fix.is_empty(), "a finding without its remedy: {finding:?}");
        finding
    }

    fn seen(
        grade: Grade,
        name: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), grade, what: what.into(), why: why.into(), fix: fix.into() }
    }
}

/// Everything that was looked at on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// The host.
    pub host: String,
    /// Whether its meshd runs.
    pub running: bool,
    /// One for each thing looked at, several where several things are wrong with it.
    pub checks: Vec<Check>,
}

/// What a host runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostConfig {
    /// The host.
    pub host: String,
    /// Version of its meshd.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The revision its data plane runs.
    pub revision: Revision,
    /// SHA-256 over the Plan as `routes`, `clusters` and `services` show it, in hexadecimal: hosts of one kind that run
    /// the same have the same.
    pub plan: String,
    /// Its file; empty where it has none.
    pub file: String,
    /// Every key of `meshd.toml` in force.
    pub keys: Vec<KeyValue>,
    /// Where it listens.
    pub listeners: Vec<ListenerView>,
}

/// A key in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// `table.key`.
    pub key: String,
    /// Its value, as in the file.
    pub value: String,
    /// Whether the file says so; else it is the default.
    pub given: bool,
}

/// One socket that a meshd listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// The key of `meshd.toml` that asks for it, or the rule.
    pub by: String,
    /// `tcp`, `udp` or `unix`.
    pub kind: String,
    /// Address or path.
    pub address: String,
}

/// How much a host should log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAsk {
    /// Directives as of `log.level`; `None`: only tell.
    #[serde(default)]
    pub level: Option<String>,
    /// For so many seconds, then as `meshd.toml` says; `None`: until meshd ends. At most [`MAX_LOG_SECONDS`], which other
    /// hosts get where they name none.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// The longest time for which another host may change what is logged: an hour.
pub const MAX_LOG_SECONDS: u64 = 3_600;

/// How much a host logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The host.
    pub host: String,
    /// In force.
    pub level: String,
    /// As it began: from `meshd.toml`, or `RUST_LOG`.
    pub configured: String,
    /// Until when `level` is in force, if it ends.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// Which requests to show, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapAsk {
    /// Chosen by who asks; the same in every call of one tap. A tap that nobody asks about for 5 s ends.
    pub id: String,
    /// Which requests.
    #[serde(default)]
    pub filter: TapFilter,
    /// Show the fields of requests.
    #[serde(default)]
    pub headers: bool,
    /// Show values that are hidden else, where the host's `proxy.tap` is `"all"`.
    #[serde(default)]
    pub secrets: bool,
    /// Of the requests that fit, one in so many; 0 and 1: each.
    #[serde(default)]
    pub one_in: u32,
    /// Wait so long for the first, in milliseconds; at most 2,000.
    #[serde(default)]
    pub wait_ms: u64,
    /// Most requests of this answer; at most 1,000.
    #[serde(default)]
    pub limit: u32,
    /// The tap ends with this call.
    #[serde(default)]
    pub end: bool,
}

/// Which requests a tap shows: those of which everything that is said holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapFilter {
    /// The service called: its host name, short or full.
    #[serde(default)]
    pub service: Option<String>,
    /// How the path begins.
    #[serde(default)]
    pub path: Option<String>,
    /// The method.
    #[serde(default)]
    pub method: Option<String>,
    /// The status, or its class: `503`, `5xx`.
    #[serde(default)]
    pub status: Option<String>,
    /// The caller: `account` or `namespace/account`.
    #[serde(default)]
    pub from: Option<String>,
    /// Fields that must be there: name in lower case, and the value where one is asked for.
    #[serde(default)]
    pub headers: Vec<(String, Option<String>)>,
}

/// Requests that a tap saw since it was last asked about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tapped {
    /// The host that carried them.
    pub host: String,
    /// In the order in which they ended.
    pub requests: Vec<TappedRequest>,
    /// That would have fitted and were left out: more came than a tap takes (100 a second), or than were fetched.
    pub missed: u64,
}

/// A request that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TappedRequest {
    /// When it began.
    pub at: Timestamp,
    /// The calling workload, `namespace/account`.
    pub from: String,
    /// Cluster it went to, `outbound|PORT|SUBSET|HOST`; empty where it went to none.
    pub cluster: String,
    /// Endpoint that answered.
    pub endpoint: String,
    /// Method.
    pub method: String,
    /// Authority.
    pub authority: String,
    /// Path and query; values of sensitive names are hidden.
    pub path: String,
    /// `HTTP/1.1` …
    pub protocol: String,
    /// Status; 0: no answer was begun.
    pub status: u16,
    /// Envoy's flags.
    pub flags: String,
    /// Attempts beyond the first.
    pub retries: u32,
    /// Bytes of the request's body.
    pub received_bytes: u64,
    /// Bytes of the answer's body.
    pub sent_bytes: u64,
    /// Microseconds from the first byte of the request to the last of the answer.
    pub took_us: u64,
    /// `x-request-id`.
    pub id: String,
    /// The request's fields, where they were asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}
