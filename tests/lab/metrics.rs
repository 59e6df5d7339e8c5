//! Every metric that `docs/metrics.md` names, on a mesh that has had some of everything: it is there, and it is right.
//!
//! That page is made from the code's own list: a metric that no line below speaks of fails this story.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Guarded, Lab, eventually, eventually_within, story};
use serde_json::Value;

/// What a metric must say: the sum of the samples that have the labels, or each of them.
#[derive(Clone, Copy, Debug)]
enum Says {
    Exactly(f64),
    AtLeast(f64),
    /// Each sample lies above the one and is at most the other.
    Each(f64, f64),
}

use Says::{AtLeast, Each, Exactly};

/// Its name (of a histogram, one of its parts), the number of the host, labels, and what it says there.
type Line = (&'static str, usize, &'static [(&'static str, &'static str)], Says);

#[test]
fn every_metric_is_there_and_right() {
    story("metrics::every_metric_is_there_and_right", || {
        let mut lab = mesh_with_some_of_everything()?;
        let kept = some_of_everything(&mut lab)?;

        let mut lines = LINES.to_vec();
        eventually_within(Duration::from_secs(40), "every metric says what it must", || {
            let status = status(&mut lab)?;
            lines.truncate(LINES.len());
            lines.extend(of_the_mesh(&status)?);
            let pages = (1..=3).map(|host| page(&mut lab, host)).collect::<Result<Vec<_>>>()?;
            let wrong: Vec<String> =
                lines.iter().filter_map(|line| wrong(line, &pages[line.1 - 1])).collect();
            ensure!(wrong.is_empty(), "{}\n{status}", wrong.join("\n"));
            Ok(())
        })?;

        kept.into_iter().for_each(Guarded::kill);
        let spoken_of: BTreeSet<String> = lines.iter().map(|(name, ..)| whole(name).to_owned()).collect();
        ensure!(spoken_of == documented()?, "{:?}", spoken_of.symmetric_difference(&documented()?));
        Ok(())
    });
}

/// Requests that were made of `reviews`: 40 by GET, 5 with a body of 100 bytes, one with a body too large to be mirrored,
/// and the one of the connection that is kept.
const REVIEWS: f64 = 47.0;
/// Larger than what of a body is kept for another try, or for a mirror.
const LARGE: usize = 4 << 20;
const LARGE_BYTES: f64 = 4_194_304.0;
const OF_REVIEWS: &[(&str, &str)] =
    &[("reporter", "source"), ("destination_service_name", "reviews"), ("response_code", "200")];
const OF_ORDERS: &[(&str, &str)] = &[("reporter", "source"), ("destination_service_name", "orders")];
const OF_ECHO: &[(&str, &str)] = &[("reporter", "source"), ("destination_service_name", "echo")];
const NONE: &[(&str, &str)] = &[];

/// What does not hang on who leads: vm1 calls, vm2 and vm3 serve.
const LINES: &[Line] = &[
    ("istio_requests_total", 1, OF_REVIEWS, Exactly(REVIEWS)),
    (
        "istio_requests_total",
        2,
        &[("reporter", "destination"), ("destination_service_name", "reviews")],
        Exactly(REVIEWS),
    ),
    ("istio_request_duration_milliseconds_count", 1, OF_REVIEWS, Exactly(REVIEWS)),
    ("istio_request_duration_milliseconds_sum", 1, OF_REVIEWS, Each(0.0, 60_000.0)),
    ("istio_request_bytes_count", 1, OF_REVIEWS, Exactly(REVIEWS)),
    ("istio_request_bytes_sum", 1, OF_REVIEWS, Exactly(500.0 + LARGE_BYTES)),
    // Each answer is `reviews v1` and a newline.
    ("istio_response_bytes_sum", 1, OF_REVIEWS, Exactly(11.0 * REVIEWS)),
    ("istio_request_messages_total", 1, OF_ORDERS, Exactly(5.0)),
    ("istio_response_messages_total", 1, OF_ORDERS, Exactly(5.0)),
    ("istio_tcp_connections_opened_total", 1, OF_ECHO, Exactly(1.0)),
    ("istio_tcp_connections_closed_total", 1, OF_ECHO, Exactly(1.0)),
    ("istio_tcp_received_bytes_total", 1, OF_ECHO, Exactly(6.0)),
    ("istio_tcp_sent_bytes_total", 1, OF_ECHO, Exactly(6.0)),
    ("meshd_build_info", 1, &[("version", env!("CARGO_PKG_VERSION"))], Exactly(1.0)),
    (
        "istio_build",
        1,
        &[("component", "proxy"), ("tag", concat!("meshd-", env!("CARGO_PKG_VERSION")))],
        Exactly(1.0),
    ),
    // The secret of the gateway's HTTPS server is not there.
    ("meshd_config_problems", 1, NONE, Exactly(1.0)),
    ("meshd_config_problems", 2, NONE, Exactly(0.0)),
    ("meshd_certificate_lifetime_seconds", 1, NONE, Each(0.0, 86_400.0)),
    (
        "meshd_certificate_lifetime_seconds",
        2,
        &[("identity", "spiffe://cluster.local/ns/default/sa/reviews")],
        Each(0.0, 86_400.0),
    ),
    ("meshd_certificate_failures", 2, NONE, Each(-1.0, 0.0)),
    ("meshd_raft_has_leader", 1, NONE, Exactly(1.0)),
    ("meshd_raft_has_leader", 2, NONE, Exactly(1.0)),
    ("meshd_raft_has_leader", 3, NONE, Exactly(1.0)),
    ("meshd_raft_members", 1, &[("role", "voter")], Exactly(3.0)),
    ("meshd_raft_members", 1, &[("role", "standby")], Exactly(0.0)),
    ("meshd_raft_failed", 1, NONE, Exactly(0.0)),
    // A meshd that carries nothing needs some megabytes, and not a gigabyte.
    ("meshd_memory_bytes", 1, NONE, Each(1e6, 1e9)),
    ("meshd_memory_limit_bytes", 1, NONE, AtLeast(1e8)),
    ("meshd_descriptors", 1, NONE, Each(0.0, 200.0)),
    ("meshd_descriptors_limit", 1, NONE, AtLeast(201.0)),
    ("meshd_task_panics_total", 1, NONE, Exactly(0.0)),
    ("meshd_task_panics_total", 2, NONE, Exactly(0.0)),
    ("meshd_dns_questions_total", 1, &[("outcome", "answered")], AtLeast(4.0)),
    ("meshd_access_log_dropped_total", 1, NONE, Exactly(0.0)),
    ("meshd_downstream_connections_total", 1, NONE, AtLeast(8.0)),
    ("meshd_open_downstream_connections", 1, NONE, Exactly(3.0)),
    ("meshd_dozing_connections", 1, NONE, Exactly(1.0)),
    ("meshd_refused_requests_total", 1, NONE, Exactly(1.0)),
    // And maybe a leader's try over UDP, given up while this host began to read it.
    ("meshd_refused_hops_total", 2, NONE, AtLeast(1.0)),
    ("meshd_refused_tls_total", 1, NONE, Exactly(1.0)),
    ("meshd_upstream_connections_total", 1, NONE, AtLeast(2.0)),
    ("meshd_upstream_connect_failures_total", 2, NONE, AtLeast(1.0)),
    ("meshd_ejections_total", 1, NONE, Exactly(1.0)),
    ("meshd_mirrored_requests_total", 1, NONE, Exactly(REVIEWS - 2.0)),
    ("meshd_upstream_waiting_requests", 1, NONE, Exactly(1.0)),
    // The large one, and the one after `flaky` was ejected.
    ("meshd_dropped_mirrors_total", 1, NONE, Exactly(2.0)),
    ("meshd_tcp_connections_total", 1, NONE, Exactly(1.0)),
    ("meshd_tcp_received_bytes_total", 1, NONE, Exactly(6.0)),
    ("meshd_tcp_sent_bytes_total", 1, NONE, Exactly(6.0)),
    ("meshd_inbound_requests_total", 2, NONE, AtLeast(REVIEWS + 1.0)),
    ("meshd_inbound_requests_total", 3, NONE, AtLeast(REVIEWS)),
    ("meshd_open_upstream_connections", 1, NONE, AtLeast(2.0)),
    ("meshd_upstream_pools", 1, NONE, AtLeast(2.0)),
    // Nothing of this has happened; tests of the proxy and `load` make it happen.
    ("meshd_shed_requests_total", 1, NONE, Exactly(0.0)),
    ("meshd_dropped_trailers_total", 1, NONE, Exactly(0.0)),
    ("meshd_refused_connections_total", 1, NONE, Exactly(0.0)),
    ("meshd_refused_loops_total", 1, NONE, Exactly(0.0)),
    ("meshd_expired_connections_total", 1, NONE, Exactly(0.0)),
    ("meshd_sent_spans_total", 1, NONE, Exactly(0.0)),
    ("meshd_dropped_spans_total", 1, NONE, Exactly(0.0)),
    ("meshd_overflowed_series_total", 1, NONE, Exactly(0.0)),
];

/// What hangs on what the mesh says of itself at this moment.
fn of_the_mesh(status: &Value) -> Result<Vec<Line>> {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2⁵³")]
    let newest = status["revision"].as_u64().context("revision")? as f64;
    let leader = status["leader"].as_str().context("a leader")?;
    let mut lines = Vec::new();
    for host in 1..=3 {
        let leads = f64::from(u8::from(leader == format!("vm{host}")));
        lines.extend([
            ("meshd_config_revision", host, NONE, Exactly(newest)),
            ("meshd_config_lag_revisions", host, NONE, Exactly(0.0)),
            ("meshd_raft_revision", host, NONE, Exactly(newest)),
            ("meshd_raft_is_leader", host, NONE, Exactly(leads)),
        ]);
    }
    Ok(lines)
}

/// vm1 calls and is a gateway; vm2 has `reviews`, `orders` (gRPC), `echo` (opaque) and `gone`, which nobody serves; vm3
/// has `flaky`, which gets a copy of what `reviews` gets. `slow` on vm1 itself takes one request at a time, and minutes for it.
fn mesh_with_some_of_everything() -> Result<Lab> {
    let mut lab = Lab::new(3)?;
    // Limits hold for each worker.
    lab.vm(1).write_config("[proxy]\nworkers = 1\n[host.labels]\nistio = \"ingressgateway\"\n")?;
    lab.form_mesh()?;
    lab.vm(2).serve("reviews", 9080, "reviews v1")?;
    lab.vm(2).serve_as("grpc", 50051)?;
    lab.vm(2).serve_echo("echo", 7000)?;
    lab.vm(3).serve("flaky", 9090, "flaky")?;
    lab.vm(1).serve_slowly("slow", 8088, 120_000, "at last")?;
    let service = |name: &str, port: u16, protocol: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\naccount = \"{name}\"\n[[service.port]]\nnumber = {port}\nprotocol = \"{protocol}\"\n"
        )
    };
    for (host, name, port, protocol) in [
        (2, "reviews", 9080, "http"),
        (2, "orders", 50051, "grpc"),
        (2, "echo", 7000, "tcp"),
        (2, "gone", 9999, "http"),
        (3, "flaky", 9090, "http"),
        (1, "slow", 8088, "http"),
    ] {
        lab.vm(host).services_file(&format!("{name}.toml"), &service(name, port, protocol))?;
    }
    eventually("all six are known on vm1", || {
        let list = lab.vm(1).meshctl(&["service", "list", "-o", "json"])?.success()?.stdout;
        ensure!(list.matches("\"health\": \"healthy\"").count() == 6, "{list}");
        Ok(())
    })?;
    let rules = lab.file("rules.yaml", RULES)?.display().to_string();
    lab.vm(1).meshctl(&["apply", &rules])?.success()?;
    eventually_within(Duration::from_secs(40), "all three vote", || {
        let status = lab.vm(1).status()?;
        let votes = status.hosts.iter().filter(|host| matches!(&*host.role, "leader" | "voter")).count();
        ensure!(votes == 3, "{status:?}");
        Ok(())
    })?;
    Ok(lab)
}

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews}}], mirror: {host: flaky}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: flaky}
spec:
  host: flaky
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: slow}
spec:
  host: slow
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
";

/// Lets happen what [`LINES`] counts; returns what goes on: a connection that is kept and says
/// nothing any more, a request that is under way, and one that waits for it.
fn some_of_everything(lab: &mut Lab) -> Result<[Guarded; 3]> {
    let hundred = "x".repeat(100);
    let large = lab.file("large", &"x".repeat(LARGE))?;
    let large = format!("@{}", large.display());
    eventually("reviews is reached", || lab.vm(1).shell("getent hosts reviews")?.success())?;
    for (arguments, answers) in [
        (vec!["http://reviews:9080/[1-40]"], 40),
        (vec!["--data-binary", &hundred, "http://reviews:9080/[1-5]"], 5),
        (vec!["-H", "expect:", "--data-binary", &large, "http://reviews:9080/"], 1),
        (vec!["http://flaky:9090/status/500"], 1),
        (vec!["http://flaky:9090/status/500"], 1),
        (vec!["http://gone:9999/"], 1),
    ] {
        let came = lab.vm(1).curl(&arguments)?;
        let expected = match (arguments[arguments.len() - 1], came.status) {
            (to, 500) => to.contains("flaky"),
            (to, 503) => to.contains("gone"),
            (_, 200) => came.body.matches("reviews v1").count() == answers,
            _ => false,
        };
        ensure!(expected, "{arguments:?}: {came:?}");
    }
    lab.vm(1).call(&["grpc-call", "orders:50051", "5"])?.success()?;
    let said = lab.vm(1).shell("bash -c 'exec 3<>/dev/tcp/echo/7000; echo hello >&3; cat <&3'")?.success()?;
    ensure!(said.stdout == "hello\n", "{said:?}");
    // What is refused: two lengths, a caller without a certificate, a visitor for whom there is none to show.
    lab.vm(1).shell("bash -c 'exec 3<>/dev/tcp/127.0.0.1/15080; printf \"GET / HTTP/1.1\\r\\nHost: reviews\\r\\nContent-Length: 1\\r\\nContent-Length: 2\\r\\n\\r\\n\" >&3; cat <&3'")?;
    for (host, to) in [(2, "https://localhost:15008/"), (1, "https://shop.example.com:8443/")] {
        let here = ["--insecure", "--resolve", "shop.example.com:8443:127.0.0.1", to];
        let refused = lab.vm(host).curl(&here)?;
        ensure!(refused.status == 0, "{to}: {refused:?}");
    }
    let slow = "exec curl -s -m 120 http://slow:8088/";
    Ok([
        lab.vm(1).keep("exec bash -c 'exec 3<>/dev/tcp/reviews/9080; printf \"GET / HTTP/1.1\\r\\nHost: reviews:9080\\r\\n\\r\\n\" >&3; exec cat <&3'")?,
        lab.vm(1).keep(slow)?,
        lab.vm(1).keep(slow)?,
    ])
}

fn status(lab: &mut Lab) -> Result<Value> {
    let told = lab.vm(1).meshctl(&["status", "-o", "json"])?.success()?;
    let status: Value = serde_json::from_str(&told.stdout).context(told.stdout.clone())?;
    Ok(status["items"][0].clone())
}

fn page(lab: &mut Lab, host: usize) -> Result<String> {
    let page = lab.vm(host).curl(&["http://127.0.0.1:15020/metrics"])?;
    ensure!(page.status == 200, "{page:?}");
    Ok(page.body)
}

/// What is wrong about a line, if anything is.
fn wrong((name, host, labels, says): &Line, page: &str) -> Option<String> {
    let samples = samples(page, name, labels);
    let sum: f64 = samples.iter().sum();
    let holds = !samples.is_empty()
        && match says {
            Exactly(value) => (sum - value).abs() < 1e-6,
            AtLeast(least) => sum >= *least,
            Each(above, most) => samples.iter().all(|sample| sample > above && sample <= most),
        };
    let all: Vec<&str> = page.lines().filter(|line| line.starts_with(whole(name))).collect();
    (!holds).then(|| format!("{name}{labels:?} on vm{host} is not {says:?}:\n{}", all.join("\n")))
}

/// The samples of a metric that have all of these labels.
fn samples(page: &str, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
    let of_name = page.lines().filter_map(|line| line.strip_prefix(name));
    let of_name = of_name.filter(|rest| rest.starts_with(['{', ' ']));
    let fits = |rest: &&str| labels.iter().all(|(name, value)| rest.contains(&format!("{name}=\"{value}\"")));
    of_name.filter(fits).filter_map(|rest| rest.rsplit(' ').next()?.parse().ok()).collect()
}

/// A histogram has parts.
fn whole(name: &str) -> &str {
    let is_histogram = name.starts_with("istio_request_duration")
        || name.ends_with("_bytes_sum")
        || name.ends_with("_bytes_count");
    match name.rsplit_once('_') {
        Some((whole, "sum" | "count")) if is_histogram => whole,
        _ => name,
    }
}

/// Every metric of the page that is made from the code.
fn documented() -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    Ok(names.map(str::to_owned).collect())
}
