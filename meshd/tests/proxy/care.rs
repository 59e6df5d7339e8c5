//! Care for the protocol: what passes through unchanged, what is ours to do on each connection, bad applications.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::plan::{CircuitLimits, Cluster, Inbound, LocalInstance, LocalPort, Plan, Route, Via};
use mesh_proto::registration::{Health, Protocol};
use meshd::proxy::{Declared, Settings, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use super::plan::*;

/// An application of fixed words: reads a head, writes its answer, and again; `true`: closes after the first.
pub(super) async fn scripted(answer: Vec<u8>, closes: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let (answer, counted) = (Arc::new(answer), connections.clone());
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            meshd::task::spawn("test", async move {
                let mut read = Vec::new();
                while read_head(&mut stream, &mut read).await {
                    read.clear();
                    if stream.write_all(&answer).await.is_err() || closes {
                        break;
                    }
                }
            });
        }
    });
    (address, connections)
}

/// Reads to the end of a head; `false`: the connection ended.
pub(super) async fn read_head(stream: &mut TcpStream, read: &mut Vec<u8>) -> bool {
    while !read.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte).await, Ok(1)) {
            return false;
        }
        read.push(byte[0]);
    }
    true
}

/// Reads until the text is there.
pub(super) async fn read_until(stream: &mut TcpStream, read: &mut Vec<u8>, text: &str) {
    while !String::from_utf8_lossy(read).contains(text) {
        let count = tokio::time::timeout(Duration::from_secs(5), stream.read_buf(read)).await;
        let shown = String::from_utf8_lossy(read);
        assert_ne!(count.expect("something").expect("open"), 0, "no {text:?} in {shown:?}");
    }
}

pub(super) fn to_address(address: SocketAddr) -> Lab {
    start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(address)]))])]))
}

async fn connect(lab: &Lab) -> TcpStream {
    TcpStream::connect(lab.address).await.expect("a connection")
}

#[tokio::test]
async fn chunks_pass_both_ways_one_by_one() {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut read = Vec::new();
        read_head(&mut stream, &mut read).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.expect("open");
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.expect("open");
        }
    });
    let lab = to_address(address);
    let mut stream = connect(&lab).await;
    let head = "POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("open");
    let mut read = Vec::new();
    read_until(&mut stream, &mut read, "\r\n\r\n").await;

    for word in ["one", "three", "seven"] {
        let chunk = format!("{:x}\r\n{word}\r\n", word.len());
        stream.write_all(chunk.as_bytes()).await.expect("open");
        read_until(&mut stream, &mut read, &chunk).await;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("open");
    read_until(&mut stream, &mut read, "0\r\n\r\n").await;
}

#[tokio::test]
async fn trailers_of_an_answer_pass() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 7\r\n\r\n";
    let (address, _) = scripted(answer.into(), false).await;
    let lab = to_address(address);
    let mut stream = connect(&lab).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\nTE: trailers\r\n\r\n").await.expect("open");

    let mut read = Vec::new();
    read_until(&mut stream, &mut read, "0\r\nx-sum: 7\r\n\r\n").await;
}

#[tokio::test]
async fn a_body_is_asked_for_where_the_caller_waits_to_be() {
    let backend = Backend::http1("v1").await;
    let lab = to_address(backend.address);
    let mut stream = connect(&lab).await;
    let head = "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("open");

    let mut read = Vec::new();
    read_until(&mut stream, &mut read, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"hi").await.expect("open");
    read_until(&mut stream, &mut read, "2\r\nhi\r\n").await;

    assert_eq!(at(&backend.last().2, "expect"), "100-continue", "as Envoy passes it on");
    let nowhere = start(plan(vec![("*", Vec::<Route>::new())]));
    let mut unasked = connect(&nowhere).await;
    unasked.write_all(head.as_bytes()).await.expect("open");
    let mut read = Vec::new();
    read_until(&mut unasked, &mut read, "\r\n\r\n").await;
    assert!(read.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&read));
}

pub(super) const HINTED: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n\
                      HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
                      HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn the_first_informational_answer_passes_and_is_not_the_answer() {
    let (address, _) = scripted(HINTED.into(), false).await;
    let lab = to_address(address);

    let both = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let read = bytes(lab.address, both).await;

    let heads: Vec<&str> = read.split("HTTP/1.1 ").skip(1).map(|head| &head[..3]).collect();
    assert_eq!(heads, ["103", "200", "103", "200"], "{read:?}");
    assert_eq!(read.matches("103 Early Hints\r\nlink: </a>\r\n\r\n").count(), 2, "{read:?}");
    let old = bytes(lab.address, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "{old:?}");
    let answer = once(lab.address, get("/", &[])).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str(), answer.header("link")), (200, "ok", None));
}

#[tokio::test]
async fn a_late_informational_answer_reaches_no_other_request() {
    // Answers the first request with nothing for a while, then with a hint: by then its caller was told 504.
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        let (mut late, _) = listener.accept().await.expect("a connection");
        let mut read = Vec::new();
        read_head(&mut late, &mut read).await;
        let (mut next, _) = listener.accept().await.expect("another connection");
        read_head(&mut next, &mut read).await;
        let _ = late.write_all(HINTED.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        next.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("open");
        read_head(&mut next, &mut read).await;
    });
    let mut route = forward(vec![to(1, cluster("reviews", vec![local(address)]))]);
    route.timeout = Some(Duration::from_millis(150));
    let lab = start(plan(vec![("*", vec![forwarding(route)])]));

    let both = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let read = bytes(lab.address, both).await;

    let heads: Vec<&str> = read.split("HTTP/1.1 ").skip(1).map(|head| &head[..3]).collect();
    assert_eq!(heads, ["504", "200"], "{read:?}");
}

#[tokio::test]
async fn a_body_nobody_asks_for_is_not_sent_and_one_without_a_word_is() {
    let refuses = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig";
    let (address, _) = scripted(refuses.into(), false).await;
    let lab = to_address(address);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";

    let refused = bytes(lab.address, head.as_bytes()).await;

    assert!(refused.starts_with("HTTP/1.1 413 ") && refused.contains("connection: close\r\n"), "{refused:?}");
    let silent = TcpListener::bind(loopback(0)).await.expect("a port");
    let lab = to_address(silent.local_addr().expect("an address"));
    let mut caller = connect(&lab).await;
    caller.write_all(format!("{head}hi").as_bytes()).await.expect("open");
    let (mut application, _) = silent.accept().await.expect("a connection");
    let mut read = Vec::new();
    read_until(&mut application, &mut read, "\r\n\r\nhi").await;
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_usable() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
    ] {
        let (address, connections) = scripted(answer.into(), false).await;
        let lab = to_address(address);
        let mut client = Client::new(lab.address).await;
        for _ in 0..3 {
            let answer = client.send(request(method.parse().expect("a method"), "/", &[], "")).await;
            assert_eq!(answer.body, "", "{method}");
            if method == "HEAD" {
                assert_eq!(answer.header("content-length"), Some("5000"));
            }
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1, "{method} {answer}");
    }
}

#[tokio::test]
async fn an_early_answer_arrives_before_the_request_is_complete() {
    let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let (address, _) = scripted(answer.into(), true).await;
    let lab = to_address(address);
    let mut stream = connect(&lab).await;
    let head = "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 100000\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.expect("open");

    let mut read = Vec::new();
    read_until(&mut stream, &mut read, "\r\n\r\nbig").await;

    assert!(read.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&read));
}

#[tokio::test]
async fn http10_closes_unless_it_asks_to_stay_and_gets_no_chunks() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (address, _) = scripted(answer.into(), false).await;
    let lab = to_address(address);

    let closed = bytes(lab.address, b"GET / HTTP/1.0\r\nHost: reviews\r\n\r\n").await;

    assert!(closed.starts_with("HTTP/1.0 200 OK\r\n") && closed.ends_with("\r\n\r\nok"), "{closed:?}");
    assert!(!closed.contains("chunked"), "{closed:?}");
    let backend = Backend::http1("v1").await;
    let lab = to_address(backend.address);
    let mut stream = connect(&lab).await;
    let mut read = Vec::new();
    for _ in 0..2 {
        stream
            .write_all(b"GET / HTTP/1.0\r\nHost: reviews\r\nConnection: keep-alive\r\n\r\n")
            .await
            .expect("open");
        read.clear();
        read_until(&mut stream, &mut read, "\r\n\r\nv1").await;
    }
}

#[tokio::test]
async fn requests_of_one_connection_are_routed_one_by_one() {
    let (one, two) = (Backend::http1("one").await, Backend::http1("two").await);
    let lab = start(plan(vec![
        ("one", vec![simple(cluster("one", vec![local(one.address)]))]),
        ("two", vec![simple(cluster("two", vec![local(two.address)]))]),
    ]));
    let pipelined = "GET / HTTP/1.1\r\nHost: one\r\n\r\nGET / HTTP/1.1\r\nHost: two\r\n\r\n\
                     POST / HTTP/1.1\r\nHost: one\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";

    let read = bytes(lab.address, pipelined.as_bytes()).await;

    let bodies: Vec<&str> = read.split("\r\n\r\n").skip(1).take(3).map(|part| &part[..3]).collect();
    assert_eq!(bodies, ["one", "two", "4\r\n"], "{read:?}");
}

#[tokio::test]
async fn what_tells_of_the_way_so_far_passes_unchanged() {
    let backend = Backend::http1("v1").await;
    let lab = to_address(backend.address);
    let sent = [
        ("via", "1.1 edge"),
        ("x-forwarded-for", "10.1.2.3, 10.9.9.9"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "6f1c"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"),
        ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"),
        ("x-b3-traceid", "80f198ee56343ba864fe8b2a57d3eff7"),
        ("x-b3-sampled", "1"),
    ];

    once(lab.address, get("/", &sent)).await;

    let (_, _, headers) = backend.last();
    for (name, value) in sent {
        assert_eq!(at(&headers, name), value, "{name}");
    }
}

#[tokio::test]
async fn large_heads_within_the_limit_pass_both_ways() {
    let value = "a".repeat(50_000);
    let answer = format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 0\r\n\r\n");
    let (address, _) = scripted(answer.into(), false).await;
    let lab = to_address(address);

    let answer = once(lab.address, get("/", &[("x-large", &value)])).await;

    assert_eq!(answer.header("x-large").map(str::len), Some(50_000));
}

#[tokio::test]
async fn an_application_that_cannot_be_trusted_is_502() {
    let cases = [
        ("51 two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab".to_owned()),
        ("51 no status", "hello\r\n\r\n".to_owned()),
        ("51 head of 1 MB", format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1 << 20))),
        ("51 endless head", format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(200_000))),
        (
            "51 length and chunked",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
                .to_owned(),
        ),
        (
            "51 unknown coding",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("51 bad length", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned()),
    ];
    for (name, answer) in cases {
        let (address, _) = scripted(answer.into(), false).await;
        let lab = to_address(address);
        let answer = once(lab.address, get("/", &[])).await;
        assert!([502, 503].contains(&answer.status.as_u16()), "{name}: {answer:?}");
        assert!(
            lab.stats
                .prometheus(meshd::telemetry::Exposition::Prometheus)
                .contains("response_flags=\"UPE\",grpc_response_status=\"\"} 1"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_ends_early_ends_early_for_the_caller() {
    let (address, _) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".into(), true).await;
    let lab = to_address(address);

    let read = bytes(lab.address, b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await;

    assert!(read.starts_with("HTTP/1.1 200 OK\r\n") && read.ends_with("\r\n\r\nabc"), "{read:?}");
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_end_a_pooled_connection() {
    let twice =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let (address, connections) = scripted(twice.into(), false).await;
    let lab = to_address(address);
    let mut client = Client::new(lab.address).await;

    for _ in 0..5 {
        assert_eq!(client.get("/").await.body, "ok");
    }

    assert_eq!(connections.load(Ordering::Relaxed), 5);
}

#[tokio::test]
async fn a_request_between_two_proxies_in_a_circle_ends() {
    let first = start(plan(vec![("*", Vec::<Route>::new())]));
    let to = |address| vec![simple(cluster("circle", vec![endpoint("other", Via::Plain(address))]))];
    let second = start(plan(vec![("*", to(first.address))]));
    first.plans.store(Arc::new(plan(vec![("*", to(second.address))])));

    let answer = tokio::time::timeout(Duration::from_secs(5), once(first.address, get("/", &[]))).await;

    assert_eq!(answer.expect("an answer").status.as_u16(), 508);
}

/// A host's way in: what was caught on its way to an application.
fn caught(target: SocketAddr, protocol: Protocol) -> Lab {
    caught_within(target, protocol, None)
}

fn caught_within(target: SocketAddr, protocol: Protocol, bounds: Option<Arc<Cluster>>) -> Lab {
    let port = LocalPort { number: PORT, protocol, target, bounds };
    let instance = Arc::new(LocalInstance {
        id: "reviews-1".into(),
        host: "reviews".into(),
        identity: mesh_core::identity::Identity::workload("mesh.test", "default", "a").expect("an identity"),
        party: mesh_core::plan::Party::default(),
        telling: Arc::default(),
        version: "v1".into(),
        ports: vec![port.clone()],
        health: Health::Healthy,
    });
    let mut inbound = Inbound::default();
    inbound.targets.insert(4_000, (instance, port));
    let plan = Plan { inbound: Arc::new(inbound), ..plan(vec![]) };
    let settings = Settings { original_destination: |_| "10.4.0.9:4000".parse().ok(), ..settings() };
    start_with(plan, Way::Inbound, settings, &no_credentials())
}

#[tokio::test]
async fn plain_http_that_was_caught_passes_the_guard_and_is_counted() {
    let backend = Backend::http1("v1").await;
    for protocol in [Protocol::Http, Protocol::Auto] {
        let lab = caught(backend.address, protocol);
        let before = backend.hits();
        let forged =
            [("x-mesh-instance", "other"), ("x-forwarded-client-cert", "By=x"), ("host", "any.example")];

        let answer = once(lab.address, get("/a", &forged)).await;
        let bad = bytes(
            lab.address,
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;

        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "v1"));
        assert!(bad.starts_with("HTTP/1.1 400 "), "{bad:?}");
        assert_eq!(backend.hits() - before, 1);
        let (_, _, headers) = backend.last();
        assert_eq!(at(&headers, "host"), "any.example");
        assert!(!headers.contains_key("x-mesh-instance") && !headers.contains_key("x-forwarded-client-cert"));
        assert!(headers.contains_key("x-request-id"));
        assert_eq!(answer.header("server"), Some("app"));
        assert!(
            lab.stats.snapshot().is_empty(),
            "who calls is not known: the graph of calls has no edge for it"
        );
        let text = lab.stats.prometheus(meshd::telemetry::Exposition::Prometheus);
        let counted = |line: &&str| line.starts_with("istio_requests_total{reporter=\"destination\"");
        let count = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        assert_eq!(text.lines().filter(counted).filter_map(count).sum::<u64>(), 2, "{text}");
    }
}

#[tokio::test]
async fn the_bounds_of_an_application_hold_for_plain_http_that_was_caught() {
    let backend = Backend::http1("v1").await;
    let mut bounds = cluster("reviews", vec![local(backend.address)]);
    bounds.limits.max_requests = Some(1);
    let lab = caught_within(backend.address, Protocol::Http, Some(Arc::new(bounds)));
    let slow = meshd::task::spawn("test", once(lab.address, get("/", &[("x-want-delay-ms", "400")])));
    until("the first is under way", || backend.hits() == 1).await;

    let second = once(lab.address, get("/", &[])).await;

    assert_eq!((second.status.as_u16(), second.header("x-envoy-overloaded")), (503, Some("true")));
    assert_eq!(slow.await.expect("an answer").status.as_u16(), 200);
}

#[tokio::test]
async fn the_bounds_of_an_application_hold_for_plain_bytes_that_were_caught() {
    let db = super::tcp::echo("hi").await;
    let mut bounds = cluster("reviews", vec![local(db)]);
    bounds.limits.max_connections = Some(0);
    let lab = caught_within(db, Protocol::Tcp, Some(Arc::new(bounds)));

    assert_eq!(bytes(lab.address, b"hello").await, "");
}

#[tokio::test]
async fn times_of_an_application_hold_for_plain_bytes_that_were_caught() {
    let db = super::tcp::echo("hi").await;
    for change in [
        (|limits| limits.tcp_idle_timeout = Some(Duration::from_millis(200))) as fn(&mut CircuitLimits),
        |limits| limits.max_connection_duration = Some(Duration::from_millis(200)),
    ] {
        let mut bounds = cluster("reviews", vec![local(db)]);
        change(&mut bounds.limits);
        let lab = caught_within(db, Protocol::Tcp, Some(Arc::new(bounds)));
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        let mut greeting = [0; 2];
        stream.read_exact(&mut greeting).await.expect("a greeting");

        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut greeting)).await;

        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}

#[tokio::test]
async fn streams_to_an_application_are_bounded_where_its_sidecar_says_so() {
    let backend = Backend::http2("v1").await;
    let mut bounds = cluster("reviews", vec![local(backend.address)]);
    bounds.protocol = mesh_core::plan::UpstreamProtocol::Http2;
    bounds.limits.max_concurrent_streams = Some(1);
    let lab = caught_within(backend.address, Protocol::Http2, Some(Arc::new(bounds)));
    let slow = meshd::task::spawn("test", once(lab.address, get("/", &[("x-want-delay-ms", "300")])));
    until("the first is under way", || backend.hits() == 1).await;

    assert_eq!(once(lab.address, get("/", &[])).await.status.as_u16(), 200);

    assert_eq!(slow.await.expect("an answer").status.as_u16(), 200);
    let opened = lab.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed));
    assert_eq!(opened, 2, "one stream a connection");
}

#[tokio::test]
async fn a_long_connection_keeps_no_plan_of_old() {
    let db = super::tcp::echo("hi").await;
    let lab = caught(db, Protocol::Tcp);
    let old = Arc::downgrade(&lab.plans.load_full());
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.expect("a greeting");

    lab.plans.store(Arc::new(plan(vec![])));

    until("the Plan is gone", || old.strong_count() == 0).await;
    drop(stream);
}

#[tokio::test]
async fn plain_bytes_that_were_caught_pass_as_they_are() {
    let db = super::tcp::echo("hi").await;
    let lab = caught(db, Protocol::Tcp);
    assert_eq!(super::tcp::talk(lab.address, "hi", b"GET / HTTP/9\n\n").await, b"GET / HTTP/9\n\n");
    let quiet = super::tcp::echo("").await;
    let lab = caught(quiet, Protocol::Auto);
    assert_eq!(super::tcp::talk(lab.address, "", b"\0\x01binary").await, b"\0\x01binary");
}

#[tokio::test]
async fn a_listener_has_room_for_so_many_connections() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { connections: 3, ..settings() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::new(lab.address).await;
        assert_eq!(client.get("/").await.status.as_u16(), 200);
        clients.push(client);
    }

    let fourth = bytes(lab.address, b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await;

    assert_eq!(fourth, "");
    assert_eq!(lab.stats.total(|all| all.refused_connections_total.load(Ordering::Relaxed)), 1);
    drop(clients.pop());
    until("there is room again", || {
        lab.stats.total(|all| all.open_downstream_connections.load(Ordering::Relaxed)) < 3
    })
    .await;
    assert_eq!(once(lab.address, get("/", &[])).await.status.as_u16(), 200);
}
