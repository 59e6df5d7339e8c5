//! What is told of requests: numbers at both ends, lines of rules, spans.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{
    Carrier, Collector, LogTarget, Logging, Party, Plan, TagSource, Telling, Tracing, WantedHeaders,
};
use mesh_proto::expression::Expression;
use mesh_proto::log_format::LogFormat;
use mesh_proto::registration::Protocol;
use mesh_proto::value::Labels;
use meshd::proxy::Declared;
use meshd::telemetry::{AccessLog, Exposition, Format, Sink};
use meshd::transport::Transport;
use tokio::net::TcpListener;

use super::hop::{Authority, HOST, destination, over_mesh, source};
use super::lab::{
    Backend, Client, Lab, at, get, loopback, no_credentials, once, request, service, settings, start,
    start_logging, start_logging_as, start_with, until,
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
    let labels = Labels::from([("version".to_owned(), "v7".to_owned())]);
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
    /// Statuses of answers to come, instead of 200.
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Spans {
    async fn start() -> Self {
        Self::answering(Vec::new()).await
    }

    /// Answers with these statuses first, the last of them first; what it answers with another than 200 is not taken.
    async fn answering(statuses: Vec<u16>) -> Self {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let spans = Self { address, taken: Arc::default(), statuses: Arc::new(Mutex::new(statuses)) };
        let (keeping, statuses) = (spans.taken.clone(), spans.statuses.clone());
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (keeping, statuses) = (keeping.clone(), statuses.clone());
                let take = service_fn(move |request| take(keeping.clone(), statuses.clone(), request));
                meshd::task::spawn("test", async move {
                    let mut first = [0; 3];
                    let _ = stream.peek(&mut first).await;
                    let io = TokioIo::new(stream);
                    // gRPC begins with the preface of HTTP/2.
                    let _ = match &first {
                        b"PRI" => http2::Builder::new(TokioExecutor::new()).serve_connection(io, take).await,
                        _ => http1::Builder::new().serve_connection(io, take).await,
                    };
                });
            }
        });
        spans
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

/// Answers a request to export: over gRPC with the status in trailers.
async fn take(
    keeping: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    statuses: Arc<Mutex<Vec<u16>>>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut body = body.collect().await.expect("a body").to_bytes();
    let status = statuses.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or(200);
    let is_grpc = parts.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    if is_grpc {
        assert_eq!(parts.uri.path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        assert_eq!(at(&parts.headers, "te"), "trailers");
        let length = usize::try_from(u32::from_be_bytes(body[1..5].try_into().expect("four bytes")));
        assert_eq!((body[0], length.expect("a length")), (0, body.len() - 5), "one message, not compressed");
        body = body.slice(5..);
    }
    if status == 200 {
        keeping.lock().unwrap_or_else(PoisonError::into_inner).push((parts.headers, body));
    }
    if !is_grpc {
        let mut response = Response::new(Empty::new().boxed());
        *response.status_mut() = status.try_into().expect("a status");
        return Ok(response);
    }
    let mut trailers = HeaderMap::new();
    let code = if status == 200 { 0 } else { status };
    trailers.insert("grpc-status", code.into());
    let message = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(message.boxed());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    Ok(response)
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
        carrier: http_carrier(),
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

fn http_carrier() -> Carrier {
    Carrier::Http("/v1/traces".into())
}

/// Every request is traced.
fn traced_by(backend: &Backend, spans: SocketAddr, carrier: Carrier) -> Plan {
    let mut plan = traced(backend, spans, 1_000_000);
    change(&mut plan, |outbound| {
        let mut tracing = (**outbound.telling.tracing.as_ref().expect("it is traced")).clone();
        tracing.collector = Arc::new(Collector { carrier, ..(*tracing.collector).clone() });
        outbound.telling =
            Arc::new(Telling { tracing: Some(Arc::new(tracing)), ..(*outbound.telling).clone() });
    });
    plan
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

/// Returns a number that the metrics tell.
fn told(lab: &Lab, metric: &str) -> Option<u64> {
    let text = lab.stats.prometheus(Exposition::Prometheus);
    text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok())
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_a_request_nothing() {
    let backend = Backend::http1("v1").await;
    let lab = start(traced(&backend, super::lab::nobody(), 1_000_000));

    let answer = once(lab.address, get("/", &[])).await;

    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn spans_that_a_collector_refuses_are_counted_as_dropped() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::answering(vec![400]).await);
    let lab = start(traced(&backend, spans.address, 1_000_000));

    once(lab.address, get("/", &[])).await;

    until("the span is dropped", || told(&lab, "meshd_dropped_spans_total ") == Some(1)).await;
    assert_eq!((told(&lab, "meshd_sent_spans_total "), spans.all().len()), (Some(0), 0));
}

#[tokio::test]
async fn spans_that_a_collector_takes_later_are_sent_again() {
    let backend = Backend::http1("v1").await;
    for (carrier, statuses) in [(http_carrier(), vec![429, 503]), (Carrier::Grpc, vec![4, 14])] {
        let spans = Spans::answering(statuses).await;
        let lab = start(traced_by(&backend, spans.address, carrier));

        once(lab.address, get("/", &[])).await;

        until("it has it in the end", || told(&lab, "meshd_sent_spans_total ") == Some(1)).await;
        assert_eq!((told(&lab, "meshd_dropped_spans_total "), spans.all().len()), (Some(0), 1));
    }
}

#[tokio::test]
async fn spans_are_sent_over_grpc_where_a_provider_says_nothing_else() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::start().await);
    let lab = start(traced_by(&backend, spans.address, Carrier::Grpc));

    once(lab.address, get("/a", &[("traceparent", PARENT)])).await;

    until("the collector has it", || !spans.all().is_empty()).await;
    let span = spans.all().remove(0);
    assert_eq!(
        (span.trace.as_str(), span.parent.as_str()),
        ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    );
    let sent = spans.taken.lock().unwrap_or_else(PoisonError::into_inner)[0].0.clone();
    assert_eq!((at(&sent, "grpc-timeout"), at(&sent, "x-key")), ("3000m", "secret"));
    until("it is counted", || told(&lab, "meshd_sent_spans_total ") == Some(1)).await;
}

/// A collector that does not answer keeps no span of another from its own.
#[tokio::test]
async fn collectors_do_not_wait_for_each_other() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::start().await);
    let silent = TcpListener::bind(loopback(0)).await.expect("a port");
    let slow = silent.local_addr().expect("an address");
    let lab = start(traced(&backend, slow, 1_000_000));
    once(lab.address, get("/", &[])).await;
    let (held, _) = silent.accept().await.expect("it is called");

    lab.plans.store(Arc::new(traced(&backend, spans.address, 1_000_000)));
    once(lab.address, get("/", &[])).await;

    until("the other has its own", || !spans.all().is_empty()).await;
    assert_eq!(told(&lab, "meshd_dropped_spans_total "), Some(0), "the first still waits for an answer");
    drop(held);
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

/// A log of every line, in a form that names what Envoy's TCP proxy tells.
fn connections_log(folder: &std::path::Path) -> (Telling, impl Fn() -> String + use<>) {
    let path = folder.join("tcp.log");
    let text = "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
        %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
        %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% \
        %UPSTREAM_REQUEST_ATTEMPT_COUNT%";
    let format = LogFormat::text(text).expect("a format");
    let target = LogTarget { path: Some(path.to_string_lossy().into_owned()), format };
    let told = Telling { logs: vec![Arc::new(Logging { target, filter: None })], ..Telling::default() };
    (told, move || std::fs::read_to_string(&path).unwrap_or_default())
}

fn opaque_plan(target: SocketAddr, told: Telling) -> Plan {
    let rules = super::plan::tcp_service(vec![super::plan::to(1, cluster(HOST, vec![local(target)]))]);
    let table =
        mesh_core::plan::PortTable { number: super::plan::PORT, tcp: Some(rules), ..Default::default() };
    let mut plan = super::plan::with_table(table);
    change(&mut plan, |outbound| outbound.telling = Arc::new(told));
    plan
}

/// The fields are those that Envoy 1.40 has written for its TCP proxy.
#[tokio::test]
async fn an_opaque_connection_is_a_line_of_the_access_log_when_it_ends() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let target = listener.local_addr().expect("an address");
    let (told, read) = connections_log(folder.path());
    let log = AccessLog::for_rules().expect("a log");
    let lab = start_logging_as(opaque_plan(target, told), service(Declared::Tcp), log);
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let (mut served, from) = listener.accept().await.expect("a connection");
    client.write_all(b"hello").await.expect("sent");
    served.read_exact(&mut [0; 5]).await.expect("received");
    served.write_all(b"hello you!").await.expect("sent");
    client.read_exact(&mut [0; 10]).await.expect("received");
    assert_eq!(read(), "", "not before it ends");
    let caller = client.local_addr().expect("an address");

    drop((client, served));

    until("its line is there", || read().ends_with('\n')).await;
    let here = lab.address;
    assert_eq!(
        read(),
        format!("- 0 - \"-\" 5 10 {target} outbound|80||{HOST} {from} {here} {caller} - - 1\n")
    );
}

#[tokio::test]
async fn an_opaque_connection_that_reaches_nobody_is_told_with_envoys_flags() {
    use tokio::io::AsyncReadExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let target = super::lab::nobody();
    let (told, read) = connections_log(folder.path());
    let log = AccessLog::for_rules().expect("a log");
    let lab = start_logging_as(opaque_plan(target, told), service(Declared::Tcp), log);
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let caller = client.local_addr().expect("an address");

    let _ = client.read(&mut [0; 1]).await;

    until("its line is there", || read().ends_with('\n')).await;
    let here = lab.address;
    assert_eq!(
        read(),
        format!(
            "- 0 UF,URX \"delayed_connect_error:_Connection_refused\" 0 0 {target} outbound|80||{HOST} - {here} \
             {caller} - - 1\n"
        )
    );
    let parts = [r#"response_flags="UF,URX""#, r#"request_protocol="tcp""#];
    assert!(tells(&lab, "istio_tcp_connections_closed_total", &parts));
}

#[tokio::test]
async fn a_request_that_reaches_nobody_tells_why_and_one_that_does_from_where() {
    let backend = Backend::http1("v1").await;
    let folder = tempfile::tempdir().expect("a folder");
    for (name, target) in [("good", backend.address), ("gone", super::lab::nobody())] {
        let path = folder.path().join(name);
        let text = "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
            %UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %REQ(:SCHEME)%";
        let target_of = LogTarget {
            path: Some(path.to_string_lossy().into_owned()),
            format: LogFormat::text(text).expect("a format"),
        };
        let logging = Arc::new(Logging { target: target_of, filter: None });
        let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, vec![local(target)]))])]);
        let told = Telling { logs: vec![logging], ..Telling::default() };
        change(&mut plan, |outbound| outbound.telling = Arc::new(told));
        let lab = start_logging(plan, AccessLog::for_rules().expect("a log"));

        once(lab.address, get("/", &[])).await;

        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        until("its line is there", || read().ends_with('\n')).await;
        let (line, here) = (read(), lab.address);
        if name == "good" {
            let from = line.split(' ').nth(4).and_then(|from| from.parse::<SocketAddr>().ok());
            let from =
                from.filter(|from| from.ip() == target.ip() && from.port() != 0).expect("an address of ours");
            assert_eq!(line, format!("200 via_upstream \"-\" {target} {from} {here} http\n"));
        } else {
            let why = "delayed_connect_error:_Connection_refused";
            let details =
                format!("upstream_reset_before_response_started{{remote_connection_failure|{why}}}");
            assert_eq!(line, format!("503 {details} \"{why}\" {target} - {here} http\n"));
        }
    }
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
