//! What the demo shows, as data: the view, the plain lines and the summary are three ways to write it down.

use std::time::Duration;

use mesh_proto::api::Status;

use super::hosts::{HostState, Hosts};
use super::judge::{Judge, Recent};
use super::observe::Observation;
use super::story::{SERVICE, Shares};
use crate::cmd::status;
use crate::cmd::top::rates::Rate;
use crate::output::Tone;
use crate::words::{latency, percent};

/// One moment of the demo.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Since the first visitor.
    pub(crate) elapsed: Duration,
    /// A row per version of reviews.
    pub(crate) versions: Vec<VersionRow>,
    /// A row per host.
    pub(crate) hosts: Vec<HostRow>,
    /// From the visitors' side.
    pub(crate) recent: Recent,
    /// Failed requests since the start.
    pub(crate) failed: u64,
    /// The commonest reason of failures.
    pub(crate) reason: Option<String>,
    /// The leader, or why there is none.
    pub(crate) leader: std::result::Result<String, String>,
    /// The newest revision known.
    pub(crate) revision: u64,
    /// What jason got, if it is not what everybody got.
    pub(crate) jason: Option<String>,
}

/// A version of reviews.
#[derive(Clone, Debug, Default)]
pub(crate) struct VersionRow {
    /// Its name.
    pub(crate) version: String,
    /// The share asked for.
    pub(crate) asked: Option<f64>,
    /// The share of the answers in the last ten seconds.
    pub(crate) measured: f64,
    /// What productpage's host counted in the last ten seconds.
    pub(crate) edge: Option<Rate>,
}

/// A host.
#[derive(Clone, Debug)]
pub(crate) struct HostRow {
    /// Its name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: String,
    /// Its role, the leader marked.
    pub(crate) role: (String, Tone),
    /// Whether it runs and answers.
    pub(crate) state: (String, Tone),
    /// The revision it runs.
    pub(crate) revision: String,
    /// Healthy instances of all it offers.
    pub(crate) services: String,
}

/// The versions that reviews comes in.
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

impl Picture {
    /// Puts together what is known.
    pub(crate) fn new(
        elapsed: Duration,
        judge: &Judge,
        seen: &Observation,
        edges: &[Rate],
        hosts: &Hosts,
    ) -> Self {
        let recent = judge.recent();
        let asked = seen.asked.all.as_ref();
        let versions = VERSIONS.iter().map(|version| row(version, asked, &recent, edges)).collect();
        let reason =
            judge.reasons.iter().max_by_key(|(_, number)| **number).map(|(reason, _)| reason.clone());
        let mut picture = Self {
            elapsed,
            versions,
            hosts: hosts.all.iter().map(|host| host_row(host, seen.status.as_ref())).collect(),
            failed: judge.failed,
            reason,
            leader: leader(seen.status.as_ref()),
            revision: seen.changed.0,
            jason: None,
            recent,
        };
        if seen.asked.user != seen.asked.all {
            picture.jason = Some(shares_of(&picture.recent.user));
        }
        picture
    }

    /// One line for where no terminal is.
    pub(crate) fn line(&self) -> String {
        let shares: Vec<_> = self
            .versions
            .iter()
            .filter(|row| row.measured > 0.0 || row.asked.is_some_and(|asked| asked > 0.0))
            .map(|row| {
                let asked =
                    row.asked.map_or_else(String::new, |asked| format!(" (asked {})", percent(asked)));
                format!("{} {}{asked}", row.version, percent(row.measured))
            })
            .collect();
        let who = match &self.leader {
            Ok(leader) => format!("leader {leader}"),
            Err(why) => why.clone(),
        };
        format!(
            "{:>3} s  {}  {:.0} req/s  success {}  p50 {}  p99 {}  {who}  revision {}",
            self.elapsed.as_secs(),
            shares.join("  "),
            self.recent.rate(),
            percent(self.recent.success()),
            time(self.recent.p50_us),
            time(self.recent.p99_us),
            self.revision
        )
    }
}

/// A duration in microseconds, or a dash.
pub(crate) fn time(micros: Option<u64>) -> String {
    micros.map_or_else(|| "-".into(), latency)
}

fn row(version: &str, asked: Option<&Shares>, recent: &Recent, edges: &[Rate]) -> VersionRow {
    VersionRow {
        version: version.to_owned(),
        asked: asked.map(|shares| shares.get(version).copied().unwrap_or(0.0)),
        measured: recent.share(version),
        edge: edge(version, edges),
    }
}

/// The calls to one version of reviews. Those that no instance answered are of the subset that was chosen.
fn edge(version: &str, edges: &[Rate]) -> Option<Rate> {
    let mut of_version = edges.iter().filter(|edge| {
        let is_reviews = edge.destination == SERVICE || edge.destination.starts_with(&format!("{SERVICE}."));
        let name = if edge.version.is_empty() { &edge.subset } else { &edge.version };
        is_reviews && name == version
    });
    let mut sum = of_version.next()?.clone();
    for edge in of_version {
        merge(&mut sum, edge);
    }
    Some(sum)
}

#[expect(clippy::cast_precision_loss, reason = "counts of ten seconds")]
fn merge(sum: &mut Rate, edge: &Rate) {
    let all = (sum.requests + edge.requests).max(1) as f64;
    sum.success = (sum.success * sum.requests as f64 + edge.success * edge.requests as f64) / all;
    sum.requests += edge.requests;
    sum.requests_per_second += edge.requests_per_second;
    sum.p50_us = if edge.requests > sum.requests / 2 { edge.p50_us } else { sum.p50_us };
    sum.p99_us = sum.p99_us.max(edge.p99_us);
}

fn host_row(host: &super::hosts::Host, status: Option<&Status>) -> HostRow {
    let known = status.and_then(|status| status.hosts.iter().find(|known| known.name == host.name));
    let state = match (&host.state, known) {
        (HostState::Running, Some(known)) => status::state(known.liveness),
        (HostState::Running, None) => ("running".into(), Tone::Plain),
        (HostState::Stopping, _) => ("stopping".into(), Tone::Warn),
        (HostState::Stopped, _) => ("stopped".into(), Tone::Warn),
        (HostState::Ended(how), _) => (format!("ended: {how}"), Tone::Bad),
    };
    HostRow {
        name: host.name.to_owned(),
        address: host.ip.to_string(),
        role: known.map_or_else(|| ("-".into(), Tone::Dim), status::role),
        state,
        revision: known
            .and_then(|known| known.live_revision)
            .map_or_else(|| "-".into(), |live| live.to_string()),
        services: known.map_or_else(|| "-".into(), |known| status::services(known).0),
    }
}

fn leader(status: Option<&Status>) -> std::result::Result<String, String> {
    match status {
        None => Err("no leader: nobody answers".into()),
        Some(Status { no_quorum: Some(why), .. }) => Err(why.clone()),
        Some(status) => status.leader.clone().ok_or_else(|| "no leader: being elected".into()),
    }
}

fn shares_of(counts: &std::collections::BTreeMap<String, u64>) -> String {
    let all: u64 = counts.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of ten seconds")]
    let shares: Vec<_> = counts
        .iter()
        .map(|(version, number)| format!("{version} {}", percent(*number as f64 / all.max(1) as f64)))
        .collect();
    shares.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        Picture {
            elapsed: Duration::from_secs(12),
            versions: vec![
                VersionRow { version: "v1".into(), asked: Some(0.9), measured: 0.903, edge: None },
                VersionRow { version: "v2".into(), asked: Some(0.1), measured: 0.097, edge: None },
                VersionRow { version: "v3".into(), asked: Some(0.0), measured: 0.0, edge: None },
            ],
            recent: Recent {
                requests: 1_000,
                time: Duration::from_secs(10),
                p50_us: Some(1_900),
                p99_us: Some(4_100),
                ..Recent::default()
            },
            leader: Ok("vm1".into()),
            revision: 14,
            hosts: Vec::new(),
            failed: 0,
            reason: None,
            jason: None,
        }
    }

    #[test]
    fn a_moment_fits_one_line() {
        assert_eq!(
            picture().line(),
            " 12 s  v1 90.3 % (asked 90.0 %)  v2 9.7 % (asked 10.0 %)  100 req/s  success 100 %  p50 1.90 ms  \
             p99 4.10 ms  leader vm1  revision 14"
        );
    }

    #[test]
    fn calls_without_an_answer_count_for_the_subset_chosen() {
        let base = Rate {
            source: "default/bookinfo-productpage".into(),
            destination: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            subset: "v2".into(),
            version: "v2".into(),
            requests: 90,
            requests_per_second: 9.0,
            share: 0.9,
            success: 1.0,
            retries_per_second: 0.0,
            p50_us: Some(1_000),
            p99_us: Some(2_000),
            ..Rate::default()
        };
        let unanswered = Rate { version: String::new(), requests: 10, success: 0.0, ..base.clone() };

        let sum = edge("v2", &[base, unanswered]).expect("there");

        assert_eq!(sum.requests, 100);
        assert!((sum.success - 0.9).abs() < 1e-9);
    }
}
