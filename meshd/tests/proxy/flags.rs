//! Answers of meshd's own: status, gRPC status and Envoy's letters in the access log, for every flag that can be raised.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use mesh_core::plan::{Abort, Cluster, Delay, Fault, Forward, Plan, Route, UnknownHosts};
use meshd::proxy::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use super::plan::*;

/// A host by the flag that its requests end with, the request, and what comes of it: status, gRPC status, flags.
struct Case(&'static str, &'static [(&'static str, &'static str)], u16, u32, &'static str);

const CASES: [Case; 16] = [
    Case("nowhere", &[], 502, 14, "NR"),
    Case("no-route", &[], 404, 12, "NR"),
    Case("no-cluster", &[], 503, 14, "NC"),
    Case("no-endpoint", &[], 503, 14, "UH"),
    Case("refused", &[], 503, 14, "UF"),
    Case("tried", &[], 503, 14, "UF,URX"),
    Case("full", &[], 503, 14, "UO"),
    Case("slow", &[("x-want-delay-ms", "900")], 504, 14, "UT"),
    Case("lost", &[("x-want-how", "reset")], 503, 14, "UC"),
    Case("reset", &[("x-want-how", "reset")], 503, 14, "UR"),
    Case("garbage", &[], 502, 14, "UPE"),
    Case("aborted", &[], 418, 2, "FI"),
    Case("delayed", &[], 200, 0, "DI"),
    Case("both", &[], 418, 2, "DI,FI"),
    Case("limit", &[("x-want-status", "503")], 503, 0, "URX"),
    Case("fine", &[], 200, 0, "-"),
];

fn once_only(cluster: Cluster) -> Forward {
    let mut forward = forward(vec![to(1, cluster)]);
    forward.retry.attempts = 0;
    forward
}

fn faulty(cluster: Cluster, delays: bool, aborts: bool) -> Route {
    let always = 1_000_000;
    let delay = delays.then_some(Delay { fixed: Duration::from_millis(5), parts_per_million: always });
    let status = StatusCode::IM_A_TEAPOT;
    let abort = aborts.then_some(Abort { status, grpc_status: None, parts_per_million: always });
    Route { fault: Some(Box::new(Fault { delay, abort })), ..forwarding(once_only(cluster)) }
}

/// An application that says no word of HTTP.
async fn garbage() -> std::net::SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Asked first: who speaks before is another story (row 52).
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"hello\r\n\r\n").await;
        }
    });
    address
}

async fn hosts() -> Plan {
    let (old, new) = (Backend::http1("v1").await, Backend::http2("v2").await);
    let one = |host: &str| cluster(host, vec![local(old.address)]);
    let mut full = one("full");
    full.limits.max_requests = Some(0);
    let mut reset = cluster("reset", vec![local(new.address)]);
    reset.protocol = mesh_core::plan::UpstreamProtocol::Http2;
    let mut slow = once_only(one("slow"));
    slow.timeout = Some(Duration::from_millis(100));
    let mut gone = forward(vec![to(1, one("no-cluster"))]);
    gone.destinations[0].cluster = None;
    let mut limit = forward(vec![to(1, one("limit"))]);
    limit.retry.on.server_error = true;
    let mut plan = plan(vec![
        ("no-route", vec![]),
        ("no-cluster", vec![forwarding(gone)]),
        ("no-endpoint", vec![simple(cluster("no-endpoint", vec![]))]),
        ("refused", vec![forwarding(once_only(cluster("refused", vec![local(nobody())])))]),
        ("tried", vec![simple(cluster("tried", vec![local(nobody())]))]),
        ("full", vec![simple(full)]),
        ("slow", vec![forwarding(slow)]),
        ("lost", vec![forwarding(once_only(one("lost")))]),
        ("reset", vec![forwarding(once_only(reset))]),
        ("garbage", vec![forwarding(once_only(cluster("garbage", vec![local(garbage().await)])))]),
        ("aborted", vec![faulty(one("aborted"), false, true)]),
        ("delayed", vec![faulty(one("delayed"), true, false)]),
        ("both", vec![faulty(one("both"), true, true)]),
        ("limit", vec![forwarding(limit)]),
        ("fine", vec![simple(one("fine"))]),
    ]);
    change(&mut plan, |outbound| outbound.unknown = UnknownHosts::Refuse);
    plan
}

/// Reads status and flags of a log's lines, once there are as many.
async fn logged(path: &Path, count: usize) -> Vec<(String, String)> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    until("all requests are logged", || read().lines().count() >= count).await;
    let fields = |line: &str| {
        let mut fields = line.split('"').nth(2).expect("status and flags").split_whitespace();
        (fields.next().unwrap_or_default().to_owned(), fields.next().unwrap_or_default().to_owned())
    };
    read().lines().map(fields).collect()
}

#[tokio::test]
async fn each_flag_has_its_status_its_grpc_status_and_its_letters() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let lab = start_logged(hosts().await, settings(), &log);

    let mut expected = Vec::new();
    for Case(host, headers, status, grpc, flags) in CASES {
        let asked = |more: &[(&str, &str)]| get("/", &[&[("host", host)], headers, more].concat());
        let plain = once(lab.address, asked(&[])).await;
        assert_eq!(plain.status.as_u16(), status, "{host}");
        let called = once(lab.address, asked(&[("content-type", "application/grpc")])).await;
        if grpc > 0 {
            let said = (called.status.as_u16(), called.header("grpc-status").map(str::to_owned));
            assert_eq!(said, (200, Some(grpc.to_string())), "{host}");
            assert_eq!(called.header("content-type"), Some("application/grpc"), "{host}");
        }
        expected.push((status.to_string(), flags.to_owned()));
        expected.push((called.status.as_u16().to_string(), flags.to_owned()));
    }

    assert_eq!(logged(&log, expected.len()).await, expected);
}

#[tokio::test]
async fn callers_that_leave_or_do_not_speak_http_have_flags_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let lab = start_logged(hosts().await, settings(), &log);

    bytes(lab.address, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    logged(&log, 1).await;
    let mut leaving = TcpStream::connect(lab.address).await.expect("a connection");
    let head = b"GET / HTTP/1.1\r\nHost: fine\r\nX-Want-Delay-Ms: 500\r\n\r\n";
    leaving.write_all(head).await.expect("open");
    until("the request is under way", || {
        lab.stats.total(|all| all.upstream_connections_total.load(std::sync::atomic::Ordering::Relaxed)) > 0
    })
    .await;
    drop(leaving);

    let told = logged(&log, 2).await;

    assert_eq!(told, [("400".into(), "DPE".into()), ("0".into(), "DC".into())]);
}

#[tokio::test]
async fn what_memory_is_too_short_for_is_flagged() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let held = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = held.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    let memory = pages * 4096 * 2 + (100 << 20);
    let lab = start_logged(hosts().await, Settings { memory, ..settings() }, &log);
    let mut client = Client::new(lab.address).await;
    let ask = || get("/", &[("host", "fine")]);
    assert_eq!(client.send(ask()).await.status, StatusCode::OK);

    let ballast = vec![1_u8; memory];
    let (mut status, mut sent) = (StatusCode::OK, 1);
    for _ in 0..500 {
        status = client.send(ask()).await.status;
        sent += 1;
        if status != StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(std::hint::black_box(ballast));

    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let told = logged(&log, sent).await;
    assert_eq!(told.last(), Some(&("503".into(), "OM".into())));
}
