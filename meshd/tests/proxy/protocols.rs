//! HTTP/2, gRPC, WebSocket, CONNECT, and ports whose protocol nobody declared.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{Empty, Full};
use mesh_core::plan::{Balancer, PortTable, UnknownHosts, UpstreamProtocol, VirtualHost};
use meshd::proxy::{Declared, Settings, Way};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use super::plan::*;

fn http2(uri: &str) -> http::request::Builder {
    Request::builder().uri(uri).version(http::Version::HTTP_2)
}

#[tokio::test]
async fn http2_callers_reach_http1_applications_and_the_reverse() {
    let (one, two) = (Backend::http1("one").await, Backend::http2("two").await);
    let mut newer = cluster("newer", vec![local(two.address)]);
    newer.protocol = UpstreamProtocol::Http2;
    let older = cluster("older", vec![local(one.address)]);
    let lab = start(plan(vec![("older", vec![simple(older)]), ("newer", vec![simple(newer)])]));

    let down = once_http2(
        lab.address,
        http2("http://older/a").body(Full::new(Bytes::from_static(b"x"))).expect("one"),
    )
    .await;
    let up = once(lab.address, get("/b", &[("host", "newer")])).await;
    let both =
        once_http2(lab.address, http2("http://newer/c").body(Empty::<Bytes>::new()).expect("one")).await;

    assert_eq!((down.status, down.body.as_str()), (StatusCode::OK, "x"));
    assert_eq!(at(&one.last().2, "host"), "older");
    assert_eq!((up.body.as_str(), both.body.as_str()), ("two", "two"));
    assert_eq!(at(&two.last().2, "host"), "newer");
}

#[tokio::test]
async fn grpc_trailers_pass_both_ways() {
    let backend = Backend::http2("grpc").await;
    let mut grpc = cluster("grpc", vec![local(backend.address)]);
    grpc.protocol = UpstreamProtocol::Http2;
    let lab = start(plan(vec![("grpc", vec![simple(grpc)])]));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let call =
        http2("http://grpc/pkg.Service/Method").method("POST").header("content-type", "application/grpc");

    let answer =
        once_http2(lab.address, call.body(Frames::new("message", Some(trailers))).expect("one")).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "message"));
    assert_eq!(at(&answer.trailers.expect("trailers"), "grpc-status"), "0");
}

pub(crate) async fn websocket(address: std::net::SocketAddr, host: &str) -> (Vec<u8>, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        assert_ne!(
            stream.read_buf(&mut answer).await.expect("open"),
            0,
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    stream.write_all(b"ping").await.expect("open");
    let mut echo = vec![0; 4];
    stream.read_exact(&mut echo).await.expect("an echo");
    (answer, echo)
}

#[tokio::test]
async fn a_websocket_switches_and_no_timeout_cuts_it() {
    let backend = Backend::http1("ws").await;
    let mut forward = forward(vec![to(1, cluster("reviews", vec![local(backend.address)]))]);
    forward.timeout = Some(Duration::from_secs(30));
    let lab = start(plan(vec![("reviews", vec![forwarding(forward)])]));

    let (answer, echo) = websocket(lab.address, "reviews").await;

    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(echo, b"ping");
    until("it is told once", || lab.stats.snapshot().iter().map(|row| row.requests).sum::<u64>() == 1).await;
}

#[tokio::test]
async fn a_websocket_that_is_answered_otherwise_stays_http() {
    let backend = Backend::http1("ws").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let asked = [("connection", "upgrade"), ("upgrade", "websocket"), ("x-want-status", "200")];

    let answer = once(lab.address, get("/", &asked)).await;

    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "ws"));
}

#[tokio::test]
async fn the_proxy_port_takes_absolute_form_host_and_connect() {
    let backend = Backend::http1("v1").await;
    let mut plan = plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    change(&mut plan, |outbound| outbound.unknown = UnknownHosts::Refuse);
    let lab = start_with(plan, Way::HttpProxy { caller: 0 }, settings(), &no_credentials());

    let absolute = once(lab.address, get("http://reviews/a", &[("host", "other")])).await;
    let origin = once(lab.address, get("/b", &[])).await;
    let elsewhere = once(lab.address, get("http://elsewhere/", &[])).await;
    let tunnel = "CONNECT reviews:80 HTTP/1.1\r\nHost: reviews:80\r\n\r\n";
    let refused = bytes(
        lab.address,
        b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: elsewhere:80\r\nConnection: close\r\n\r\n",
    )
    .await;

    assert_eq!((absolute.body.as_str(), origin.body.as_str()), ("v1", "v1"));
    assert_eq!(elsewhere.status.as_u16(), 502);
    assert!(refused.starts_with("HTTP/1.1 502 "), "{refused}");
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    stream.write_all(tunnel.as_bytes()).await.expect("open");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(stream.read_buf(&mut head).await.expect("open"), 0);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    stream
        .write_all(b"GET /inside HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n")
        .await
        .expect("open");
    let mut inside = String::new();
    stream.read_to_string(&mut inside).await.expect("text");
    assert!(inside.ends_with("v1"), "{inside}");
    assert_eq!(backend.last().1, "/inside");
}

#[tokio::test]
async fn allow_any_sends_unknown_names_where_dns_says() {
    let backend = Backend::http1("outside").await;
    let address = backend.address;
    let resolve: meshd::proxy::Resolver = Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) }));
    let settings = Settings { resolve, ..settings() };
    let lab = start_with(plan(vec![]), Way::HttpProxy { caller: 0 }, settings, &no_credentials());

    let answer = once(lab.address, get("http://outside.example/x", &[("host", "outside.example")])).await;

    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "outside"));
    assert_eq!(at(&backend.last().2, "host"), "outside.example");
}

#[tokio::test]
async fn an_undeclared_port_is_told_by_its_first_bytes() {
    let (web, db) = (Backend::http1("web").await, super::tcp::echo("").await);
    let route = Arc::new(simple(cluster("reviews", vec![local(web.address)])));
    let mut table = PortTable { number: PORT, ..PortTable::default() };
    table.http.add(
        "reviews",
        Arc::new(VirtualHost {
            host: "reviews".into(),
            port: PORT,
            routes: vec![route],
            ..VirtualHost::default()
        }),
    );
    table.tcp = Some(tcp_service(vec![to(1, cluster("db", vec![local(db)]))]));
    let lab = start_with(with_table(table), service(Declared::Auto), settings(), &no_credentials());

    let http = once(lab.address, get("/", &[])).await;
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    stream.write_all(b"\x00\x01hello").await.expect("open");
    stream.shutdown().await.expect("open");
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.expect("bytes");

    assert_eq!(http.body, "web");
    assert_eq!(echoed, b"\x00\x01hello");
}

#[tokio::test]
async fn an_intercepted_connection_follows_its_original_destination() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { original_destination: |_| "10.4.0.9:80".parse().ok(), ..settings() };
    let lab = start_with(plan, Way::Outbound { caller: 0 }, settings, &no_credentials());

    let answer = once(lab.address, get("/", &[])).await;

    assert_eq!(answer.body, "v1");
}

/// As seen in Envoy 1.40.0 with the cluster that Istio makes of `simple: PASSTHROUGH` (`ORIGINAL_DST`).
#[tokio::test]
async fn passthrough_asks_the_address_that_was_dialled_endpoint_or_not() {
    static DIALLED: OnceLock<SocketAddr> = OnceLock::new();
    let (listed, stray) = (Backend::http1("listed").await, Backend::http1("stray").await);
    let mut reviews = cluster("reviews", vec![local(listed.address)]);
    reviews.balancer = Balancer::Passthrough;
    let mut plan = plan(vec![("reviews", vec![simple(reviews)])]);
    let dialled = *DIALLED.get_or_init(|| stray.address);
    change(&mut plan, |outbound| {
        let table = outbound.ports.remove(&PORT).expect("the table of the plan");
        outbound.ports.insert(dialled.port(), table);
    });
    let settings = Settings { original_destination: |_| DIALLED.get().copied(), ..settings() };
    let lab = start_with(plan, Way::Outbound { caller: 0 }, settings, &no_credentials());

    for _ in 0..5 {
        assert_eq!(once(lab.address, get("/", &[])).await.body, "stray");
    }
}

#[tokio::test]
async fn a_connection_that_was_going_to_us_is_closed() {
    let settings = Settings { original_destination: |stream| stream.local_addr().ok(), ..settings() };
    let lab = start_with(plan(vec![]), Way::Outbound { caller: 0 }, settings, &no_credentials());

    let read = bytes(lab.address, b"").await;

    assert_eq!(read, "");
    assert_eq!(lab.stats.total(|all| all.refused_loops_total.load(std::sync::atomic::Ordering::Relaxed)), 1);
}
