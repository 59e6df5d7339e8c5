//! From counters to rates: two readings and the time between them.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::api::{EdgeStats, HostStats};
use serde::Serialize;

/// What went over one edge in some time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Rate {
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

type Edge = (String, String, u16, String, String);

#[derive(Clone, Default)]
struct Sum {
    requests: u64,
    failures: u64,
    retries: u64,
    buckets: BTreeMap<u64, u64>,
}

/// Computes what went over each edge between two readings; edges without requests are left out.
///
/// A host that restarted in between counts from zero, so all of its second reading is new.
pub(crate) fn rates(before: &[HostStats], after: &[HostStats], time: Duration) -> Vec<Rate> {
    let sums = sums(before, after);
    let mut totals: BTreeMap<(&str, &str, u16), u64> = BTreeMap::new();
    for ((source, destination, port, ..), sum) in &sums {
        *totals.entry((source, destination, *port)).or_default() += sum.requests;
    }
    sums.iter()
        .filter(|(_, sum)| sum.requests > 0)
        .map(|(edge, sum)| {
            let total = totals.get(&(edge.0.as_str(), edge.1.as_str(), edge.2)).copied().unwrap_or(0);
            rate(edge, sum, total, time)
        })
        .collect()
}

fn sums(before: &[HostStats], after: &[HostStats]) -> BTreeMap<Edge, Sum> {
    let mut sums: BTreeMap<Edge, Sum> = BTreeMap::new();
    for host in after {
        let earlier = before.iter().find(|was| was.host == host.host && was.uptime_ms <= host.uptime_ms);
        let earlier: BTreeMap<_, _> =
            earlier.iter().flat_map(|was| &was.edges).map(|edge| (key(edge), edge)).collect();
        for edge in &host.edges {
            let key = key(edge);
            let was = earlier.get(&key).copied();
            add(sums.entry(key).or_default(), edge, was);
        }
    }
    sums
}

fn key(edge: &EdgeStats) -> Edge {
    (edge.source.clone(), edge.destination.clone(), edge.port, edge.subset.clone(), edge.version.clone())
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
    let (source, destination, port, subset, version) = edge.clone();
    let seconds = time.as_secs_f64().max(1e-3);
    Rate {
        source,
        destination,
        port,
        subset,
        version,
        requests: sum.requests,
        requests_per_second: sum.requests as f64 / seconds,
        share: sum.requests as f64 / total.max(1) as f64,
        success: 1.0 - sum.failures as f64 / sum.requests.max(1) as f64,
        retries_per_second: sum.retries as f64 / seconds,
        p50_us: percentile(&sum.buckets, 50),
        p99_us: percentile(&sum.buckets, 99),
    }
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

        let rows = rates(&before, &after, Duration::from_secs(2));

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

        assert_eq!(rates(&before, &after, Duration::from_secs(1))[0].requests, 40);
    }

    #[test]
    fn the_same_edge_on_two_hosts_is_one_row() {
        let after =
            [host("vm1", 1, vec![edge("v1", 1, 0, &[])]), host("vm2", 1, vec![edge("v1", 2, 0, &[])])];

        let rows = rates(&[], &after, Duration::from_secs(1));

        assert_eq!((rows.len(), rows[0].requests), (1, 3));
    }

    #[test]
    fn a_quiet_edge_is_left_out() {
        let reading = [host("vm1", 1, vec![edge("v1", 7, 0, &[])])];

        assert!(rates(&reading, &reading, Duration::from_secs(1)).is_empty());
    }
}
