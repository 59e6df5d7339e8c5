//! Requests: routes, retries, timeouts, faults, headers, answers of the proxy's own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use mesh_core::plan::{
    Abort, Action, Delay, DirectResponse, Fault, HeaderOps, HeaderRules, HeaderTemplate, Matcher, Mirror,
    PathMatch, Redirect, RetryOn, RetryPolicy, Rewrite, UnknownHosts,
};

use super::lab::*;
use super::plan::*;

#[tokio::test]
async fn a_request_reaches_its_service_and_comes_back() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));

    let answer = once(lab.address, get("/a?b=c", &[])).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "v1"));
    assert_eq!(answer.header("server"), Some("envoy"));
    assert!(answer.header("x-envoy-upstream-service-time").is_some());
    let (_, path, headers) = backend.last();
    assert_eq!((path.as_str(), at(&headers, "host")), ("/a?b=c", "reviews"));
    assert_eq!((at(&headers, "x-forwarded-proto"), at(&headers, "x-envoy-attempt-count")), ("http", "1"));
    assert_eq!(headers["x-request-id"].len(), 36);
    assert!(!headers.contains_key("x-envoy-expected-rq-timeout-ms"));
}

#[tokio::test]
async fn what_belongs_to_one_hop_or_to_us_stays_behind() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let sent = [
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "5"),
        ("te", "trailers"),
        ("proxy-connection", "x"),
        ("x-envoy-attempt-count", "9"),
        ("x-envoy-original-path", "/z"),
        ("x-mesh-instance", "other"),
        ("x-forwarded-for", "10.1.2.3"),
    ];

    once(lab.address, get("/", &sent)).await;

    let (_, _, headers) = backend.last();
    for gone in
        ["connection", "x-hop", "keep-alive", "proxy-connection", "x-envoy-original-path", "x-mesh-instance"]
    {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert_eq!((at(&headers, "te"), at(&headers, "x-envoy-attempt-count")), ("trailers", "1"));
    assert_eq!(headers["x-forwarded-for"], "10.1.2.3");
}

#[tokio::test]
async fn no_route_is_404_and_an_unknown_host_is_502_under_registry_only() {
    let only_a = Matcher {
        path: Some(PathMatch::Exact { value: "/a".into(), ignore_case: false }),
        ..Matcher::default()
    };
    let mut route = simple(cluster("reviews", vec![]));
    route.matchers = vec![only_a];
    let mut plan = plan(vec![("reviews", vec![route])]);
    change(&mut plan, |outbound| outbound.unknown = UnknownHosts::Refuse);
    let lab = start(plan);
    let mut client = Client::new(lab.address).await;

    let no_route = client.get("/b").await;
    let no_endpoint = client.get("/a").await;
    let unknown = client.send(get("/", &[("host", "elsewhere")])).await;

    assert_eq!((no_route.status.as_u16(), no_route.body.as_str()), (404, ""));
    assert_eq!((no_endpoint.status.as_u16(), no_endpoint.body.as_str()), (503, "no healthy upstream"));
    assert_eq!((unknown.status.as_u16(), unknown.body.as_str()), (502, ""));
    assert_eq!(unknown.header("content-length"), Some("0"));
    assert_eq!(no_endpoint.header("content-type"), Some("text/plain"));
    let text = lab.stats.prometheus(meshd::telemetry::Exposition::Prometheus);
    assert!(
        text.contains("response_code=\"404\",response_flags=\"NR\",grpc_response_status=\"\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("response_code=\"503\",response_flags=\"UH\",grpc_response_status=\"\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_missing_subset_is_503_without_a_body() {
    let mut destination = to(1, cluster("reviews", vec![]));
    destination.cluster = None;
    let lab = start(plan(vec![("reviews", vec![forwarding(forward(vec![destination]))])]));

    let answer = once(lab.address, get("/", &[])).await;

    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (503, ""));
    assert_eq!(answer.header("content-length"), Some("0"));
}

#[tokio::test]
async fn a_refused_connection_is_retried_elsewhere_and_nobody_notices() {
    let backend = Backend::http1("v1").await;
    let endpoints = vec![local(nobody()), local(backend.address)];
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", endpoints))])]));
    let mut client = Client::new(lab.address).await;

    for _ in 0..100 {
        let answer = client.send(request(Method::POST, "/", &[], "hello")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "hello"));
    }

    let row = &lab.stats.snapshot()[0];
    assert_eq!((row.requests, row.failures), (100, 0));
    assert!(row.retries > 10, "{}", row.retries);
}

#[tokio::test]
async fn refused_everywhere_is_503_in_envoys_words() {
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(nobody())]))])]));

    let answer = once(lab.address, get("/", &[])).await;
    let grpc = once(lab.address, get("/", &[("content-type", "application/grpc")])).await;

    let words = "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: \
                 remote connection failure";
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (503, words));
    assert_eq!((grpc.status.as_u16(), grpc.header("grpc-status")), (200, Some("14")));
    assert_eq!(grpc.header("grpc-message"), Some(words));
    assert_eq!(grpc.header("content-type"), Some("application/grpc"));
}

#[tokio::test]
async fn a_5xx_is_tried_as_often_as_the_rule_says_with_its_body() {
    let backend = Backend::http1("v1").await;
    let mut forward = forward(vec![to(1, cluster("reviews", vec![local(backend.address)]))]);
    forward.retry.on.server_error = true;
    forward.retry.attempts = 3;
    let lab = start(plan(vec![("reviews", vec![forwarding(forward)])]));

    let answer = once(lab.address, request(Method::POST, "/", &[("x-want-status", "503")], "body")).await;

    assert_eq!((answer.status.as_u16(), answer.body.as_str(), backend.hits()), (503, "body", 4));
    assert_eq!(backend.last().2["x-envoy-attempt-count"], "4");
    assert_eq!(lab.stats.snapshot()[0].retries, 3);
}

#[tokio::test]
async fn a_connection_broken_after_the_request_is_not_retried_by_default() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));

    let answer = once(lab.address, get("/", &[("x-want-how", "reset")])).await;

    assert_eq!((answer.status.as_u16(), backend.hits()), (503, 1));
    assert!(answer.body.ends_with("reset reason: connection termination"), "{}", answer.body);
}

#[tokio::test]
async fn a_route_timeout_covers_all_tries_and_a_per_try_timeout_one() {
    let backend = Backend::http1("v1").await;
    let slow = || cluster("reviews", vec![local(backend.address)]);
    let mut whole = forward(vec![to(1, slow())]);
    whole.timeout = Some(Duration::from_millis(100));
    let mut each = forward(vec![to(1, slow())]);
    each.retry = RetryPolicy {
        attempts: 2,
        per_try_timeout: Some(Duration::from_millis(50)),
        on: RetryOn { gateway_error: true, ..RetryOn::default() },
        ..default_retry()
    };
    let lab = start(plan(vec![("reviews", vec![forwarding(whole)]), ("each", vec![forwarding(each)])]));
    let began = Instant::now();

    let whole = once(lab.address, get("/", &[("x-want-delay-ms", "5000")])).await;
    let took = began.elapsed();
    let hits = backend.hits();
    let each = once(lab.address, get("/", &[("host", "each"), ("x-want-delay-ms", "5000")])).await;

    assert_eq!((whole.status.as_u16(), whole.body.as_str(), hits), (504, "upstream request timeout", 1));
    assert!(took >= Duration::from_millis(100) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!((each.status.as_u16(), backend.hits() - hits), (504, 3));
    assert_eq!(backend.last().2["x-envoy-expected-rq-timeout-ms"], "50");
}

#[tokio::test]
async fn faults_come_before_the_service() {
    let backend = Backend::http1("v1").await;
    let mut route = simple(cluster("reviews", vec![local(backend.address)]));
    route.fault = Some(Box::new(Fault {
        delay: Some(Delay { fixed: Duration::from_millis(60), parts_per_million: 1_000_000 }),
        abort: Some(Abort {
            status: StatusCode::IM_A_TEAPOT,
            grpc_status: None,
            parts_per_million: 1_000_000,
        }),
    }));
    let lab = start(plan(vec![("reviews", vec![route])]));
    let began = Instant::now();

    let answer = once(lab.address, get("/", &[])).await;

    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str(), backend.hits()),
        (418, "fault filter abort", 0)
    );
    assert!(answer.header("x-envoy-upstream-service-time").is_none());
}

#[tokio::test]
async fn direct_responses_and_redirects_carry_header_rules() {
    let mut direct = route(Action::Direct(Box::new(DirectResponse {
        status: StatusCode::OK,
        body: Bytes::from_static(b"{\"ok\": true}"),
    })));
    let json = HeaderTemplate::Plain(HeaderValue::from_static("application/json"));
    let response = HeaderOps { set: vec![(http::header::CONTENT_TYPE, json)], ..HeaderOps::default() };
    direct.headers = Some(Box::new(HeaderRules { response, ..HeaderRules::default() }));
    let redirect = route(Action::Redirect(Box::new(Redirect {
        path: Some("/moved".into()),
        prefix: None,
        authority: None,
        scheme: None,
        port: mesh_core::plan::PortSource::Keep,
        code: StatusCode::MOVED_PERMANENTLY,
    })));
    let lab = start(plan(vec![("reviews", vec![direct]), ("old", vec![redirect])]));

    let direct = once(lab.address, get("/", &[])).await;
    let head = once(lab.address, request(Method::HEAD, "/", &[], "")).await;
    let moved = once(lab.address, get("/x?id=7", &[("host", "old:80")])).await;

    assert_eq!(
        (direct.body.as_str(), direct.header("content-type")),
        ("{\"ok\": true}", Some("application/json"))
    );
    assert_eq!((head.body.as_str(), head.header("content-length")), ("", Some("12")));
    assert_eq!(moved.header("location"), Some("http://old:80/moved?id=7"));
    assert_eq!(
        (moved.status.as_u16(), moved.body.as_str(), moved.header("server")),
        (301, "", Some("envoy"))
    );
}

#[tokio::test]
async fn a_rewrite_changes_path_and_authority() {
    let backend = Backend::http1("v1").await;
    let mut forward = forward(vec![to(1, cluster("reviews", vec![local(backend.address)]))]);
    forward.rewrite = Some(Box::new(Rewrite {
        path: Some("/new".into()),
        path_regex: None,
        authority: Some("other.example".into()),
    }));
    let mut route = forwarding(forward);
    route.matchers = vec![Matcher {
        path: Some(PathMatch::Prefix { value: "/old".into(), ignore_case: false }),
        ..Matcher::default()
    }];
    let lab = start(plan(vec![("reviews", vec![route])]));

    once(lab.address, get("/old/x/../y?q=1", &[])).await;

    let (_, path, headers) = backend.last();
    assert_eq!(path, "/new/y?q=1");
    assert_eq!(
        (at(&headers, "host"), at(&headers, "x-envoy-original-path")),
        ("other.example", "/old/y?q=1")
    );
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_delays_nothing() {
    let (backend, mirrored) = (Backend::http1("v1").await, Backend::http1("mirror").await);
    let mut forward = forward(vec![to(1, cluster("reviews", vec![local(backend.address)]))]);
    let mirror = to(1, cluster("mirror", vec![local(mirrored.address)]));
    let slow = to(1, cluster("slow", vec![local(nobody())]));
    for copy in [mirror, slow] {
        forward.mirrors.push(Mirror { cluster: copy.cluster, name: copy.name, parts_per_million: 1_000_000 });
    }
    let lab = start(plan(vec![("reviews", vec![forwarding(forward)])]));

    let answer = once(lab.address, request(Method::POST, "/m", &[], "hello")).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "hello"));
    until("the mirror is asked", || mirrored.hits() == 1).await;
    let (method, path, headers) = mirrored.last();
    assert_eq!((method, path.as_str(), at(&headers, "content-length")), (Method::POST, "/m", "5"));
    assert_eq!(headers["host"], "reviews");
}

#[tokio::test]
async fn a_head_that_cannot_be_trusted_is_refused_and_nothing_is_sent() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let cases: &[(&str, &str)] = &[
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
        ("FOO / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", "417"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "403",
        ),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "403"),
    ];
    for (sent, status) in cases {
        let read = bytes(lab.address, sent.as_bytes()).await;
        assert!(read.starts_with(&format!("HTTP/1.1 {status} ")), "{sent:?} got {read:?}");
        assert_eq!(read.matches("HTTP/1.1 ").count(), 1, "{sent:?} got {read:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20_000));
    assert!(bytes(lab.address, long.as_bytes()).await.starts_with("HTTP/1.1 414 "));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(70_000));
    assert!(bytes(lab.address, large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(101));
    assert!(bytes(lab.address, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(backend.hits(), 0);
}
