//! From counters to rates: two readings and the time between them.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::api::{EdgeStats, HostStats};
use serde::Serialize;

use crate::cli::By;

/// What went over one edge in some time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// Host that counted, where rows stand for hosts; else empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) host: String,
    /// Calling workload.
    pub(crate) source: String,
    /// Host called.
    pub(crate) destination: String,
    /// Its port.
    pub(crate) port: u16,
    /// Subset chosen, may be empty.
    pub(crate) subset: String,
    /// Version that answered, may be empty.
    pub(crate) version: String,
    /// Requests in the time.
    pub(crate) requests: u64,
    /// Requests a second.
    pub(crate) requests_per_second: f64,
    /// Share (0 to 1) among all requests of this source to this destination and port.
    pub(crate) share: f64,
    /// Share (0 to 1) of requests that did not fail.
    pub(crate) success: f64,
    /// Retries a second.
    pub(crate) retries_per_second: f64,
    /// Median duration in microseconds: the upper bound of its bucket.
    pub(crate) p50_us: Option<u64>,
    /// 99th percentile in microseconds.
    pub(crate) p99_us: Option<u64>,
    /// Requests that failed.
    #[serde(skip)]
    pub(crate) failures: u64,
    /// Durations: upper bound in microseconds, and how many.
    #[serde(skip)]
    pub(crate) buckets: BTreeMap<u64, u64>,
}

impl Rate {
    /// The host called, without the domain of the mesh's own services.
    pub(crate) fn to(&self) -> String {
        format!("{}:{}", short_host(&self.destination), self.port)
    }
}

/// `reviews.default.svc.cluster.local` is `reviews.default` to people.
pub(crate) fn short_host(host: &str) -> &str {
    host.find(".svc.").map_or(host, |end| &host[..end])
}

/// Host, source, destination, port, subset, version: what is not told apart is empty.
type Edge = (String, String, String, u16, String, String);

#[derive(Clone, Default)]
struct Sum {
    requests: u64,
    failures: u64,
    retries: u64,
    buckets: BTreeMap<u64, u64>,
}

/// Computes what went over each edge, to each service, or from each host, between two readings; what had no requests is
/// left out.
///
/// A host that restarted in between counts from zero, so all of its second reading is new.
pub(crate) fn rates(before: &[HostStats], after: &[HostStats], time: Duration, by: By) -> Vec<Rate> {
    let sums = sums(before, after, by);
    // Of an edge, its share among what its source sends to that destination; else among all.
    let group = |edge: &Edge| match by {
        By::Edge => (edge.1.clone(), edge.2.clone(), edge.3),
        By::Service | By::Host => (String::new(), String::new(), 0),
    };
    let mut totals: BTreeMap<(String, String, u16), u64> = BTreeMap::new();
    for (edge, sum) in &sums {
        *totals.entry(group(edge)).or_default() += sum.requests;
    }
    sums.iter()
        .filter(|(_, sum)| sum.requests > 0)
        .map(|(edge, sum)| rate(edge, sum, totals.get(&group(edge)).copied().unwrap_or(0), time))
        .collect()
}

/// Adds rates of one time up.
pub(crate) fn merged(rates: &[&Rate]) -> Rate {
    let mut sum = Sum::default();
    let mut whole = Rate { success: 1.0, ..Rate::default() };
    for rate in rates {
        sum.requests += rate.requests;
        sum.failures += rate.failures;
        for (bound, number) in &rate.buckets {
            *sum.buckets.entry(*bound).or_default() += number;
        }
        whole.requests_per_second += rate.requests_per_second;
        whole.retries_per_second += rate.retries_per_second;
    }
    whole.requests = sum.requests;
    whole.success = success(&sum);
    whole.p50_us = percentile(&sum.buckets, 50);
    whole.p99_us = percentile(&sum.buckets, 99);
    whole
}

fn sums(before: &[HostStats], after: &[HostStats], by: By) -> BTreeMap<Edge, Sum> {
    let mut sums: BTreeMap<Edge, Sum> = BTreeMap::new();
    for host in after {
        let earlier = before.iter().find(|was| was.host == host.host && was.uptime_ms <= host.uptime_ms);
        let earlier: BTreeMap<_, _> =
            earlier.iter().flat_map(|was| &was.edges).map(|edge| (key(edge), edge)).collect();
        for edge in &host.edges {
            let key = key(edge);
            let was = earlier.get(&key).copied();
            let row = match by {
                By::Edge => key,
                By::Service => {
                    let none = String::new;
                    (none(), none(), edge.destination.clone(), edge.port, none(), none())
                }
                By::Host => {
                    (host.host.clone(), String::new(), String::new(), 0, String::new(), String::new())
                }
            };
            add(sums.entry(row).or_default(), edge, was);
        }
    }
    sums
}

fn key(edge: &EdgeStats) -> Edge {
    let (source, destination) = (edge.source.clone(), edge.destination.clone());
    (String::new(), source, destination, edge.port, edge.subset.clone(), edge.version.clone())
}

fn add(sum: &mut Sum, now: &EdgeStats, was: Option<&EdgeStats>) {
    let past = |count: fn(&EdgeStats) -> u64| was.map_or(0, count);
    sum.requests += now.requests.saturating_sub(past(|edge| edge.requests));
    sum.failures += now.failures.saturating_sub(past(|edge| edge.failures));
    sum.retries += now.retries.saturating_sub(past(|edge| edge.retries));
    let old: BTreeMap<u64, u64> =
        was.map(|edge| edge.latency_us.iter().copied().collect()).unwrap_or_default();
    for (bound, number) in &now.latency_us {
        let new = number.saturating_sub(old.get(bound).copied().unwrap_or(0));
        if new > 0 {
            *sum.buckets.entry(*bound).or_default() += new;
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests in seconds are far below 2^52")]
fn rate(edge: &Edge, sum: &Sum, total: u64, time: Duration) -> Rate {
    let (host, source, destination, port, subset, version) = edge.clone();
    let seconds = time.as_secs_f64().max(1e-3);
    Rate {
        host,
        source,
        destination,
        port,
        subset,
        version,
        requests: sum.requests,
        requests_per_second: sum.requests as f64 / seconds,
        share: sum.requests as f64 / total.max(1) as f64,
        success: success(sum),
        retries_per_second: sum.retries as f64 / seconds,
        p50_us: percentile(&sum.buckets, 50),
        p99_us: percentile(&sum.buckets, 99),
        failures: sum.failures,
        buckets: sum.buckets.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests in seconds are far below 2^52")]
fn success(sum: &Sum) -> f64 {
    1.0 - sum.failures as f64 / sum.requests.max(1) as f64
}

/// Returns the upper bound of the bucket that holds the given percentile.
pub(crate) fn percentile(buckets: &BTreeMap<u64, u64>, percent: u64) -> Option<u64> {
    let all: u64 = buckets.values().sum();
    let rank = (all * percent).div_ceil(100).max(1);
    let mut seen = 0;
    buckets.iter().find_map(|(bound, number)| {
        seen += number;
        (seen >= rank).then_some(*bound)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(version: &str, requests: u64, failures: u64, latency_us: &[(u64, u64)]) -> EdgeStats {
        EdgeStats {
            source: "default/productpage".into(),
            destination: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            subset: version.into(),
            version: version.into(),
            requests,
            failures,
            retries: 0,
            latency_us: latency_us.to_vec(),
        }
    }

    fn host(name: &str, uptime_ms: u64, edges: Vec<EdgeStats>) -> HostStats {
        HostStats { host: name.into(), uptime_ms, edges }
    }

    #[test]
    fn rates_are_differences_over_time_and_shares_add_up() {
        let before = [host("vm1", 1_000, vec![edge("v1", 100, 0, &[(1_000, 100)])])];
        let after = [host(
            "vm1",
            3_000,
            vec![edge("v1", 280, 0, &[(1_000, 280)]), edge("v2", 20, 1, &[(2_000, 20)])],
        )];

        let rows = rates(&before, &after, Duration::from_secs(2), By::Edge);

        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].requests, rows[0].requests_per_second, rows[0].share), (180, 90.0, 0.9));
        assert_eq!((rows[1].requests, rows[1].share, rows[1].success), (20, 0.1, 0.95));
        assert_eq!((rows[1].p50_us, rows[0].p99_us), (Some(2_000), Some(1_000)));
        assert_eq!(rows[0].to(), "reviews.default:9080");
    }

    #[test]
    fn a_restarted_host_counts_from_zero() {
        let before = [host("vm1", 90_000, vec![edge("v1", 5_000, 0, &[])])];
        let after = [host("vm1", 500, vec![edge("v1", 40, 0, &[])])];

        assert_eq!(rates(&before, &after, Duration::from_secs(1), By::Edge)[0].requests, 40);
    }

    #[test]
    fn the_same_edge_on_two_hosts_is_one_row() {
        let after =
            [host("vm1", 1, vec![edge("v1", 1, 0, &[])]), host("vm2", 1, vec![edge("v1", 2, 0, &[])])];

        let rows = rates(&[], &after, Duration::from_secs(1), By::Edge);

        assert_eq!((rows.len(), rows[0].requests), (1, 3));
    }

    #[test]
    fn a_quiet_edge_is_left_out() {
        let reading = [host("vm1", 1, vec![edge("v1", 7, 0, &[])])];

        assert!(rates(&reading, &reading, Duration::from_secs(1), By::Edge).is_empty());
    }

    #[test]
    fn rows_of_services_and_of_hosts_add_edges_up() {
        let after = [
            host("vm1", 1, vec![edge("v1", 90, 0, &[(1_000, 90)]), edge("v2", 10, 10, &[(9_000, 10)])]),
            host("vm2", 1, vec![edge("v1", 100, 0, &[(1_000, 100)])]),
        ];

        let services = rates(&[], &after, Duration::from_secs(1), By::Service);
        let hosts = rates(&[], &after, Duration::from_secs(1), By::Host);

        assert_eq!((services.len(), services[0].requests, services[0].success), (1, 200, 0.95));
        assert_eq!(services[0].p99_us, Some(9_000));
        let shares: Vec<_> = hosts.iter().map(|row| (row.host.as_str(), row.share)).collect();
        assert_eq!(shares, [("vm1", 0.5), ("vm2", 0.5)]);
    }
}
