//! Everything that is counted, as one text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::plan;

use super::catalog::{self, Metric};
use super::labels::{SeriesKey, Spoken, push};
use super::page::{Exposition, Page};
use super::series::{BOUNDS, Buckets, Outcome};
use super::{Counters, Sample, Series, Stats};

/// Writes everything.
pub(super) fn write(stats: &Stats, exposition: Exposition) -> String {
    let mut page = Page::new(exposition);
    let lines = lines(stats);
    requests(&mut page, &lines);
    messages(&mut page, &lines);
    connections(&mut page, &lines);
    for (metric, read) in Counters::table() {
        page.begin(&metric);
        page.sample(metric.name, "", stats.total(read));
    }
    own(&mut page, &stats.samples());
    page.end()
}

/// A series, and its numbers in every worker.
type Line = (SeriesKey, Vec<Arc<Series>>);

fn lines(stats: &Stats) -> Vec<Line> {
    let mut by_key: BTreeMap<SeriesKey, Vec<Arc<Series>>> = BTreeMap::new();
    for series in stats.all_series() {
        by_key.entry(series.key.clone()).or_default().push(series);
    }
    by_key.into_iter().collect()
}

#[derive(Default)]
struct Filled {
    counts: [u64; BOUNDS.len() + 1],
    sum: u64,
}

fn requests(page: &mut Page, lines: &[Line]) {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut filled: [BTreeMap<String, Filled>; HISTOGRAMS.len()] = Default::default();
    for (key, series) in lines.iter().filter(|(key, _)| key.spoken != Spoken::Tcp) {
        let mut ends: BTreeMap<_, Vec<&Outcome>> = BTreeMap::new();
        for outcome in series.iter().flat_map(|series| series.outcomes()) {
            ends.entry((outcome.status, outcome.flags, outcome.grpc)).or_default().push(outcome);
        }
        for ((status, flags, grpc), outcomes) in ends {
            let (status, flags) = (status.to_string(), flags.to_string());
            let grpc = grpc.map_or_else(String::new, |status| status.to_string());
            let ended =
                [("response_code", &*status), ("response_flags", &*flags), ("grpc_response_status", &*grpc)];
            if let Some(labels) = key.text(plan::Metric::RequestCount, &ended) {
                let count: u64 = outcomes.iter().map(|outcome| outcome.count.load(Ordering::Relaxed)).sum();
                *counts.entry(labels).or_default() += count;
            }
            for ((_, metric, _, read), filled) in HISTOGRAMS.iter().zip(&mut filled) {
                let Some(labels) = key.text(*metric, &ended) else { continue };
                let filled = filled.entry(labels).or_default();
                for outcome in &outcomes {
                    read(outcome).add_to(&mut filled.counts, &mut filled.sum);
                }
            }
        }
    }
    page.begin(&catalog::REQUESTS);
    for (labels, count) in &counts {
        page.sample(catalog::REQUESTS.name, labels, count);
    }
    for ((metric, _, parts, _), filled) in HISTOGRAMS.iter().zip(&filled) {
        histogram(page, metric, *parts, filled.iter());
    }
}

/// A histogram of requests: its name, what rules call it, how many of what is added up make one of what the bounds
/// count, and where its numbers are.
type HistogramOf = (Metric, plan::Metric, f64, fn(&Outcome) -> &Buckets);

const HISTOGRAMS: [HistogramOf; 3] = [
    (catalog::DURATION, plan::Metric::RequestDuration, 1_000.0, |outcome| &outcome.duration),
    (catalog::REQUEST_BYTES, plan::Metric::RequestSize, 1.0, |outcome| &outcome.request_bytes),
    (catalog::RESPONSE_BYTES, plan::Metric::ResponseSize, 1.0, |outcome| &outcome.response_bytes),
];

/// `parts`: how many of what was added up make one of what the bounds count.
#[expect(clippy::cast_precision_loss, reason = "sums that a double holds for centuries")]
fn histogram<'a>(
    page: &mut Page,
    metric: &Metric,
    parts: f64,
    filled: impl Iterator<Item = (&'a String, &'a Filled)>,
) {
    page.begin(metric);
    for (labels, filled) in filled {
        let mut below = 0;
        let within = BOUNDS.iter().zip(filled.counts).map(|(twice, count)| {
            below += count;
            (*twice as f64 / 2.0, below)
        });
        let count: u64 = filled.counts.iter().sum();
        page.histogram(metric.name, labels, within, (count, filled.sum as f64 / parts));
    }
}

/// A counter of ours, its name in rules, and where a series keeps it.
type Counter<'a> = (&'a Metric, plan::Metric, fn(&Series) -> &AtomicU64);

fn messages(page: &mut Page, lines: &[Line]) {
    let counts: [Counter<'_>; 2] = [
        (&catalog::REQUEST_MESSAGES, plan::Metric::GrpcRequestMessages, |series| &series.request_messages),
        (&catalog::RESPONSE_MESSAGES, plan::Metric::GrpcResponseMessages, |series| &series.response_messages),
    ];
    for (metric, name, read) in counts {
        let of_grpc = lines.iter().filter(|(key, _)| key.spoken == Spoken::Grpc);
        counter(page, metric, of_grpc.map(|(key, series)| (key.text(name, &[]), total(series, read))));
    }
}

fn connections(page: &mut Page, lines: &[Line]) {
    let counts: [Counter<'_>; 4] = [
        (&catalog::OPENED, plan::Metric::TcpOpenedConnections, |series| &series.opened),
        (&catalog::CLOSED, plan::Metric::TcpClosedConnections, |series| &series.closed),
        (&catalog::SENT, plan::Metric::TcpSentBytes, |series| &series.sent),
        (&catalog::RECEIVED, plan::Metric::TcpReceivedBytes, |series| &series.received),
    ];
    for (metric, name, read) in counts {
        let of_tcp = lines.iter().filter(|(key, _)| key.spoken == Spoken::Tcp);
        let labels = |key: &SeriesKey| key.text(name, &[("response_flags", &*key.flags.to_string())]);
        counter(page, metric, of_tcp.map(|(key, series)| (labels(key), total(series, read))));
    }
}

/// Writes a counter; series that rules have made alike are one.
fn counter(page: &mut Page, metric: &Metric, counts: impl Iterator<Item = (Option<String>, u64)>) {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (labels, count) in counts.filter_map(|(labels, count)| Some((labels?, count))) {
        *sums.entry(labels).or_default() += count;
    }
    page.begin(metric);
    for (labels, count) in &sums {
        page.sample(metric.name, labels, count);
    }
}

fn total(series: &[Arc<Series>], read: fn(&Series) -> &AtomicU64) -> u64 {
    series.iter().map(|series| read(series).load(Ordering::Relaxed)).sum()
}

fn own(page: &mut Page, samples: &[Sample]) {
    for metric in catalog::OWN {
        let mut mine = samples.iter().filter(|sample| sample.metric == metric.name).peekable();
        if mine.peek().is_none() {
            continue;
        }
        page.begin(&metric);
        for sample in mine {
            let mut labels = String::new();
            for (name, value) in metric.labels.iter().zip(&sample.labels) {
                push(&mut labels, name, value);
            }
            let mut value = String::new();
            let _ = write!(value, "{}", sample.value);
            page.sample(metric.name, &labels, value);
        }
    }
}
