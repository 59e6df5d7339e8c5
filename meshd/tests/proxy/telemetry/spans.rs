//! Spans, as a collector takes them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{Carrier, Collector, Plan, TagSource, Telling, Tracing, WantedHeaders};
use meshd::proxy::Declared;
use meshd::telemetry::Exposition;
use tokio::net::TcpListener;

use super::super::hop::{Authority, HOST, over_mesh};
use super::super::lab::{
    Backend, Client, Lab, at, get, loopback, once, service, settings, start, start_with, until,
};
use super::super::plan::{change, cluster, local, plan, simple};

/// Takes spans, and keeps what was sent.
struct Spans {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    /// Statuses of answers to come, instead of 200.
    statuses: Arc<Mutex<Vec<u16>>>,
}

/// What a collector says that asks for the longest of all pauses, instead of being only too busy.
const NEVER: u16 = 503;

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
        if status == NEVER {
            response.headers_mut().insert("retry-after", u64::MAX.into());
        }
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
    let lab = start(traced(&backend, super::super::lab::nobody(), 1_000_000));

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
    for (carrier, statuses) in [(http_carrier(), vec![429, 502]), (Carrier::Grpc, vec![4, 14])] {
        let spans = Spans::answering(statuses).await;
        let lab = start(traced_by(&backend, spans.address, carrier));

        once(lab.address, get("/", &[])).await;

        until("it has it in the end", || told(&lab, "meshd_sent_spans_total ") == Some(1)).await;
        assert_eq!((told(&lab, "meshd_dropped_spans_total "), spans.all().len()), (Some(0), 1));
    }
}

/// Seconds are added to what has passed: there is no sum of so many.
#[tokio::test]
async fn a_collector_that_asks_for_a_pause_without_end_gets_nothing_more() {
    let (backend, spans) = (Backend::http1("v1").await, Spans::answering(vec![NEVER, 429, 429]).await);
    let lab = start(traced(&backend, spans.address, 1_000_000));

    once(lab.address, get("/", &[])).await;

    until("the span is dropped", || told(&lab, "meshd_dropped_spans_total ") == Some(1)).await;
    once(lab.address, get("/", &[])).await;
    until("the next is taken", || told(&lab, "meshd_sent_spans_total ") == Some(1)).await;
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
    let there = super::super::hop::destination_told(&authority, backend.address, tracing(spans.address, 0));
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
