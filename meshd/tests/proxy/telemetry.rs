//! What is told of requests: numbers at both ends, lines of rules, spans.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_core::plan::{
    Collector, LogTarget, Logging, Party, Plan, TagSource, Telling, Tracing, WantedHeaders,
};
use mesh_proto::expression::Expression;
use mesh_proto::log_format::LogFormat;
use mesh_proto::registration::Protocol;
use meshd::proxy::Declared;
use meshd::telemetry::{AccessLog, Exposition, Format, Sink};
use meshd::transport::Transport;
use tokio::net::TcpListener;

use super::hop::{Authority, HOST, destination, over_mesh, source};
use super::lab::{
    Backend, Client, Lab, at, get, loopback, no_credentials, once, request, service, settings, start,
    start_logging, start_with, until,
};
use super::plan::{change, cluster, local, plan, simple};

/// Whether a line of a metric has all of these.
fn tells(lab: &Lab, metric: &str, parts: &[&str]) -> bool {
    let text = lab.stats.prometheus(Exposition::Prometheus);
    text.lines()
        .any(|line| line.starts_with(&format!("{metric}{{")) && parts.iter().all(|part| line.contains(part)))
}

#[tokio::test]
async fn a_request_over_a_hop_is_counted_at_both_ends() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);

    once(here.address, request(Method::POST, "/a", &[], "hello")).await;

    let common = [
        r#"source_workload="web""#,
        r#"source_workload_namespace="default""#,
        r#"source_principal="spiffe://mesh.test/ns/default/sa/web""#,
        r#"destination_principal="spiffe://mesh.test/ns/default/sa/reviews""#,
        r#"destination_service_name="reviews""#,
        r#"response_code="200""#,
        r#"response_flags="-""#,
    ];
    let at_source =
        [&common[..], &[r#"reporter="source""#, r#"connection_security_policy="unknown""#]].concat();
    until("the source tells", || tells(&here, "istio_requests_total", &at_source)).await;
    let there_too = [
        &common[..],
        &[
            r#"reporter="destination""#,
            r#"connection_security_policy="mutual_tls""#,
            r#"destination_version="v1""#,
            r#"source_canonical_service="web""#,
        ],
    ]
    .concat();
    until("the destination tells", || tells(&there, "istio_requests_total", &there_too)).await;
    for lab in [&here, &there] {
        let small = [r#"le="10""#, r"} 1"];
        assert!(tells(lab, "istio_request_bytes_bucket", &small), "five bytes are in the bucket of ten");
        assert!(tells(lab, "istio_request_duration_milliseconds_count", &[r"} 1"]));
    }
    let (_, _, headers) = backend.last();
    assert!(headers.keys().all(|name| !name.as_str().starts_with("x-mesh-source")), "{headers:?}");
}

#[tokio::test]
async fn a_request_that_stays_on_its_host_is_counted_at_both_ends_there() {
    let backend = Backend::http1("v1").await;
    let labels = BTreeMap::from([("version".to_owned(), "v7".to_owned())]);
    let mut endpoint = local(backend.address);
    endpoint.party = Party::new("mesh.test", "default", "reviews", &labels);
    let lab = start(plan(vec![("reviews", vec![simple(cluster(HOST, vec![endpoint]))])]));

    once(lab.address, get("/", &[])).await;

    for reporter in ["source", "destination"] {
        let reporter = format!("reporter=\"{reporter}\"");
        let parts = [&*reporter, r#"destination_version="v7""#, r#"source_workload="web""#];
        until("both tell", || tells(&lab, "istio_requests_total", &parts)).await;
    }
}

/// Takes spans, and keeps what was sent.
struct Spans {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Spans {
    async fn start() -> Self {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let taken: Arc<Mutex<Vec<(HeaderMap, Bytes)>>> = Arc::default();
        let keeping = taken.clone();
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let keeping = keeping.clone();
                let take = service_fn(move |request: Request<Incoming>| {
                    let keeping = keeping.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        keeping.lock().unwrap_or_else(PoisonError::into_inner).push((parts.headers, body));
                        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                    }
                });
                let io = TokioIo::new(stream);
                meshd::task::spawn(
                    "test",
                    hyper::server::conn::http1::Builder::new().serve_connection(io, take),
                );
            }
        });
        Self { address, taken }
    }

    /// Every span that was taken: its fields by number, tags apart.
    fn all(&self) -> Vec<Span> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans = Vec::new();
        for (_, body) in taken.iter() {
            for resource in fields(body).into_iter().filter(|(number, _)| *number == 1) {
                let parts = fields(&resource.1);
                let facts = parts.iter().find(|(number, _)| *number == 1).expect("a resource");
                let service = tags(&facts.1, 1).remove("service.name").expect("its name");
                for scope in parts.iter().filter(|(number, _)| *number == 2) {
                    for (_, span) in fields(&scope.1).into_iter().filter(|(number, _)| *number == 2) {
                        spans.push(Span::of(&service, &span));
                    }
                }
            }
        }
        spans
    }
}

#[derive(Debug)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    tags: BTreeMap<String, String>,
}

impl Span {
    fn of(service: &str, bytes: &[u8]) -> Self {
        let all = fields(bytes);
        let find =
            |number: u64| all.iter().find(|(other, _)| *other == number).map(|(_, bytes)| bytes.clone());
        let hex = |number| data_encoding::HEXLOWER.encode(&find(number).unwrap_or_default());
        Self {
            service: service.to_owned(),
            trace: hex(1),
            id: hex(2),
            parent: hex(4),
            name: String::from_utf8(find(5).unwrap_or_default()).expect("text"),
            kind: find(6).map_or(0, |bytes| varint(&mut &bytes[..])),
            tags: tags(bytes, 9),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a byte");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The fields of a message of protobuf: numbers as they are written, the rest as bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => bytes.iter().position(|byte| byte & 0x80 == 0).expect("an end") + 1,
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)).expect("a length"),
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        all.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    all
}

fn tags(bytes: &[u8], number: u64) -> BTreeMap<String, String> {
    let pairs = fields(bytes).into_iter().filter(|(other, _)| *other == number);
    pairs
        .map(|(_, pair)| {
            let parts = fields(&pair);
            let name = String::from_utf8(parts[0].1.clone()).expect("text");
            let (kind, value) = fields(&parts[1].1).remove(0);
            let text = String::from_utf8(value.clone()).unwrap_or_default();
            (name, if kind == 3 { varint(&mut &value[..]).to_string() } else { text })
        })
        .collect()
}

fn tracing(address: SocketAddr, sampling: u32) -> Telling {
    let collector = Collector {
        host: address.ip().to_string().into(),
        port: address.port(),
        path: "/v1/traces".into(),
        headers: vec![(http::HeaderName::from_static("x-key"), http::HeaderValue::from_static("secret"))],
        timeout: Duration::from_secs(3),
        max_tag_bytes: 256,
    };
    let tenant = TagSource::Header(http::HeaderName::from_static("x-tenant"), "nobody".into());
    let tracing = Tracing {
        collector: Arc::new(collector),
        sampling,
        reports: true,
        propagates: true,
        istio_tags: true,
        tags: vec![("stage".into(), TagSource::Literal("prod".into())), ("tenant".into(), tenant)],
    };
    let request = vec![http::header::USER_AGENT, http::HeaderName::from_static("x-request-id")];
    let wanted = WantedHeaders { request, response: Vec::new() };
    Telling { tracing: Some(Arc::new(tracing)), wanted, ..Telling::default() }
}

fn traced(backend: &Backend, spans: SocketAddr, sampling: u32) -> Plan {
    let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, vec![local(backend.address)]))])]);
    change(&mut plan, |outbound| outbound.telling = Arc::new(tracing(spans, sampling)));
    plan
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_span_is_sent_and_the_application_is_told_of_it() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::start().await);
    let lab = start(traced(&backend, spans.address, 0));

    once(lab.address, get("/a?b", &[("traceparent", PARENT), ("x-tenant", "acme"), ("user-agent", "t")]))
        .await;

    until("the collector has it", || !spans.all().is_empty()).await;
    let span = spans.all().remove(0);
    assert_eq!(span.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent, "b7ad6b7169203331");
    assert_eq!((span.name.as_str(), span.kind), ("reviews.default.svc.cluster.local:80/*", 3));
    assert_eq!(span.service, "web.default");
    for (name, value) in [
        ("http.method", "GET"),
        ("http.status_code", "200"),
        ("http.url", "http://reviews/a?b"),
        ("stage", "prod"),
        ("tenant", "acme"),
        ("user_agent", "t"),
        ("istio.canonical_service", "web"),
    ] {
        assert_eq!(span.tags.get(name).map(String::as_str), Some(value), "{name} of {:?}", span.tags);
    }
    let (_, _, headers) = backend.last();
    assert_eq!(at(&headers, "traceparent"), format!("00-{}-{}-01", span.trace, span.id));
    let sent = spans.taken.lock().unwrap_or_else(PoisonError::into_inner)[0].0.clone();
    assert_eq!((at(&sent, "content-type"), at(&sent, "x-key")), ("application/x-protobuf", "secret"));
}

#[tokio::test]
async fn what_is_not_sampled_is_passed_on_and_not_sent() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::start().await);
    let lab = start(traced(&backend, spans.address, 1_000_000));
    let mut client = Client::new(lab.address).await;
    let unsampled = PARENT.replace("-01", "-00");

    client.send(get("/", &[("traceparent", &unsampled)])).await;
    let (_, _, unsampled) = backend.last();
    client.send(get("/", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0")])).await;
    let (_, _, single) = backend.last();
    client.send(get("/", &[])).await;

    until("the sampled one is there", || !spans.all().is_empty()).await;
    assert_eq!(spans.all().len(), 1, "those that came unsampled are not sent");
    assert!(at(&unsampled, "traceparent").ends_with("-00"), "{unsampled:?}");
    assert!(at(&single, "b3").starts_with("0af7651916cd43dd8448eb211c80319c-"), "{single:?}");
    assert!(at(&single, "b3").ends_with("-0"), "{single:?}");
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_and_nothing_else() {
    let backend = Backend::http1("v1").await;
    let lab = start(traced(&backend, super::lab::nobody(), 1_000_000));

    let answer = once(lab.address, get("/", &[])).await;

    assert_eq!(answer.status, 200);
    let dropped = || {
        let text = lab.stats.prometheus(Exposition::Prometheus);
        text.lines().any(|line| line == "meshd_dropped_spans_total 1")
    };
    until("the span is counted as dropped", dropped).await;
}

#[tokio::test]
async fn a_request_over_a_hop_has_a_span_of_each_side() {
    let (authority, backend, spans) = (Authority::new(), Backend::http1("v1").await, Spans::start().await);
    let there = super::hop::destination_told(&authority, backend.address, tracing(spans.address, 0));
    let mut plan = plan(vec![(
        "reviews",
        vec![simple(cluster(HOST, vec![over_mesh(there.address, "reviews", "reviews-1")]))],
    )]);
    change(&mut plan, |outbound| outbound.telling = Arc::new(tracing(spans.address, 0)));
    let here = start_with(plan, service(Declared::Http), settings(), &authority.credentials(&["web"]));

    once(here.address, get("/", &[("traceparent", PARENT)])).await;

    until("both are there", || spans.all().len() == 2).await;
    let all = spans.all();
    let (client, server): (Vec<_>, Vec<_>) = all.iter().partition(|span| span.kind == 3);
    assert_eq!(server[0].parent, client[0].id, "{all:?}");
    assert_eq!((client[0].service.as_str(), server[0].service.as_str()), ("web.default", "reviews.default"));
    let (_, _, headers) = backend.last();
    assert!(at(&headers, "traceparent").contains(&server[0].id), "{headers:?}");
}

#[tokio::test]
async fn requests_are_logged_where_rules_say_and_when() {
    let backend = Backend::http1("v1").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shop.log");
    let format =
        LogFormat::text("%RESPONSE_CODE% %REQ(X-SHOP)% %RESP(X-INSTANCE)% %ROUTE_NAME%").expect("a format");
    let logging = Logging {
        target: LogTarget { path: Some(path.to_string_lossy().into_owned()), format },
        filter: Some(
            Expression::condition("response.code >= 400 && request.method == 'GET'").expect("a filter"),
        ),
    };
    let mut wanted = WantedHeaders::default();
    wanted.add(&logging);
    let told = Telling { logs: vec![Arc::new(logging)], wanted, ..Telling::default() };
    let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, vec![local(backend.address)]))])]);
    change(&mut plan, |outbound| outbound.telling = Arc::new(told));
    let own = AccessLog::start(Format::Text, &Sink::File(folder.path().join("own.log"))).expect("a log");
    let lab = start_logging(plan, own);
    let mut client = Client::new(lab.address).await;

    client.send(get("/", &[("x-shop", "a")])).await;
    client.send(get("/", &[("x-shop", "b"), ("x-want-status", "404")])).await;
    client.send(request(Method::POST, "/", &[("x-want-status", "500")], "")).await;

    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    until("all three are in the host's own", || {
        read("own.log").lines().count() == 3 && !read("shop.log").is_empty()
    })
    .await;
    assert_eq!(read("shop.log"), "404 b v1 default\n");
}

#[tokio::test]
async fn an_opaque_connection_is_counted_while_it_lasts() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let target = listener.local_addr().expect("an address");
    let rules = super::plan::tcp_service(vec![super::plan::to(1, cluster(HOST, vec![local(target)]))]);
    let table =
        mesh_core::plan::PortTable { number: super::plan::PORT, tcp: Some(rules), ..Default::default() };
    let plan = super::plan::with_table(table);
    let lab = start_with(plan, service(Declared::Tcp), settings(), &no_credentials());
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let (mut served, _) = listener.accept().await.expect("a connection");

    client.write_all(b"hello").await.expect("sent");
    served.read_exact(&mut [0; 5]).await.expect("received");

    let parts = [r#"reporter="source""#, r#"request_protocol="tcp""#];
    let with = |last: &'static str| [&parts[..], &[last]].concat();
    until("bytes are told", || tells(&lab, "istio_tcp_received_bytes_total", &with("} 5"))).await;
    assert!(tells(&lab, "istio_tcp_connections_opened_total", &with("} 1")));
    assert!(tells(&lab, "istio_tcp_connections_closed_total", &with("} 0")));
    drop((client, served));
    until("its end is told", || tells(&lab, "istio_tcp_connections_closed_total", &with("} 1"))).await;
}
