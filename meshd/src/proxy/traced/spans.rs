//! What a worker has to tell collectors: spans that wait, and batches on their way.
//!
//! Each collector has a bounded queue of its own, so that one that is gone costs the others nothing. What it may take later
//! is sent again, as OTLP says, for half a minute; what is not taken, or does not fit, is dropped and counted. Requests never
//! wait for their spans.
//!
//! Source: "OTLP Specification 1.5".

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, Version};
use http_body_util::BodyExt as _;
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{Carrier, Cluster, ClusterName, Collector, Party, PartyField, UpstreamProtocol};
use tokio::time::Instant;

use crate::proxy::body::{Inflow, Outgoing};
use crate::proxy::forward;
use crate::proxy::passthrough::{Direct, Place};
use crate::proxy::request::{self, Head};
use crate::proxy::upstream::{Ends, Opening};
use crate::proxy::worker::{Chance, View, Worker};
use crate::task;
use crate::telemetry::Counters;
use crate::telemetry::otlp::{self, Resource, Span, Spans, Tag, Verdict};

/// The spans that a worker has to tell.
#[derive(Default)]
pub(crate) struct Tracer {
    queues: RefCell<Vec<Queue>>,
    /// Where a span is written first.
    scratch: RefCell<Vec<u8>>,
}

/// Those of one collector.
struct Queue {
    collector: Arc<Collector>,
    waiting: Batch,
    /// Whether a task sends them.
    is_sending: bool,
}

/// Spans that are sent at once, by the service that they are of.
#[derive(Default)]
struct Batch(Vec<(Party, Spans)>);

impl Batch {
    fn count(&self) -> u64 {
        self.0.iter().map(|(_, spans)| spans.count()).sum()
    }

    fn of(&mut self, party: &Party) -> &mut Spans {
        let at = self.0.iter().position(|(known, _)| known == party).unwrap_or_else(|| {
            self.0.push((party.clone(), Spans::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}

impl Tracer {
    /// Takes a span over.
    pub(super) fn tell<'t>(
        &self,
        worker: &Rc<Worker>,
        (collector, party): (&Arc<Collector>, &Party),
        span: &Span<'_>,
        tags: impl Iterator<Item = (&'t str, Tag<'t>)>,
    ) {
        let mut queues = self.queues.borrow_mut();
        let is_it = |queue: &Queue| is_same(&queue.collector, collector);
        let queue = match queues.iter().position(is_it) {
            Some(at) => &mut queues[at],
            None if queues.len() >= MOST_COLLECTORS => {
                return Counters::add(&worker.shard.counters.dropped_spans_total);
            }
            None => {
                let collector = collector.clone();
                queues.push(Queue { collector, waiting: Batch::default(), is_sending: false });
                queues.last_mut().expect("it was just put there")
            }
        };
        let waiting = queue.waiting.count();
        if waiting >= MOST_WAITING {
            return Counters::add(&worker.shard.counters.dropped_spans_total);
        }
        queue.waiting.of(party).add(span, tags, &mut self.scratch.borrow_mut());
        // Whoever leaves does not wait for more.
        if waiting + 1 >= ENOUGH || worker.draining.has_started() {
            queue.send(worker);
        }
    }

    /// Sends what waits. Called once a second; forgets collectors that nobody tells of anything.
    pub(crate) fn flush(&self, worker: &Rc<Worker>) {
        let mut queues = self.queues.borrow_mut();
        queues.retain(|queue| queue.is_sending || queue.waiting.count() > 0);
        queues.iter_mut().for_each(|queue| queue.send(worker));
    }

    /// Takes all that waits; `None`: nothing does, and the task that asks is over.
    fn next(&self, collector: &Arc<Collector>) -> Option<Batch> {
        let mut queues = self.queues.borrow_mut();
        let queue = queues.iter_mut().find(|queue| is_same(&queue.collector, collector))?;
        queue.is_sending = queue.waiting.count() > 0;
        queue.is_sending.then(|| std::mem::take(&mut queue.waiting))
    }
}

/// Every Plan may have made it anew.
fn is_same(one: &Arc<Collector>, other: &Arc<Collector>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

impl Queue {
    fn send(&mut self, worker: &Rc<Worker>) {
        if self.is_sending || self.waiting.count() == 0 {
            return;
        }
        self.is_sending = true;
        task::spawn_local("spans", send(worker.clone(), self.collector.clone()));
    }
}

/// Sends what waits for a collector, batch after batch.
async fn send(worker: Rc<Worker>, collector: Arc<Collector>) {
    while let Some(batch) = worker.tracer.next(&collector) {
        let many = batch.count();
        let taken = deliver(&worker, &collector, written(&batch, &collector.carrier)).await.min(many);
        let counters = &worker.shard.counters;
        counters.sent_spans_total.fetch_add(taken, Ordering::Relaxed);
        counters.dropped_spans_total.fetch_add(many - taken, Ordering::Relaxed);
    }
}

/// Sends a batch until the collector takes it, refuses it, or time is up. Returns how many of its spans it has taken.
async fn deliver(worker: &Rc<Worker>, collector: &Collector, batch: Bytes) -> u64 {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let sent = tokio::time::timeout(collector.timeout, post(worker, collector, batch.clone())).await;
        // Whom nobody reaches may be there again soon.
        let wait = match sent.ok().flatten().unwrap_or(Verdict::Again(None)) {
            Verdict::Taken(but) => return u64::MAX - but,
            Verdict::Refused => return 0,
            // So that not all who were turned away come back at once.
            Verdict::Again(asked) => asked.unwrap_or_else(|| pause.mul_f64(0.5 + fastrand::f64() / 2.0)),
        };
        if worker.draining.has_started() || wait > GIVEN_UP_AFTER.saturating_sub(began.elapsed()) {
            tracing::debug!(host = %collector.host, port = collector.port, "spans dropped: their collector does not take them");
            return 0;
        }
        let mut draining = worker.draining.clone();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = draining.started() => {}
        }
        pause = pause.saturating_mul(2);
    }
}

/// Writes the request. Services are named as Istio names them: canonical service and namespace.
fn written(batch: &Batch, carrier: &Carrier) -> Bytes {
    let field = |party: &Party, field| party.get(field).unwrap_or("unknown").to_owned();
    let names = batch.0.iter().map(|(party, _)| {
        let service = field(party, PartyField::Service);
        (format!("{service}.{}", field(party, PartyField::Namespace)), field(party, PartyField::Workload))
    });
    let names: Vec<(String, String)> = names.collect();
    let resources = names.iter().zip(&batch.0).map(|((name, workload), (_, spans))| Resource {
        tags: vec![("service.name", name.as_str()), ("service.instance.id", workload.as_str())],
        spans,
    });
    let resources: Vec<_> = resources.collect();
    match carrier {
        Carrier::Http(_) => otlp::export(&resources, 0).into(),
        Carrier::Grpc => framed(otlp::export(&resources, GRPC_FRAME)),
    }
}

/// Posts a batch. `None`: nothing came back.
async fn post(worker: &Rc<Worker>, collector: &Collector, batch: Bytes) -> Option<Verdict> {
    let view = worker.view();
    let (_, caller) = view.outbound(0)?;
    let is_grpc = collector.carrier == Carrier::Grpc;
    let direct = place(worker, &view, collector);
    let cluster = match &direct {
        Some(direct) => direct.cluster.clone(),
        None => service(&view, collector)?,
    };
    let _permit = mesh_core::resilience::breaker::admit_request(&cluster).ok()?;
    let endpoint = match &direct {
        Some(direct) => &direct.endpoint,
        None => balance::pick(&cluster, &Hint::default(), worker.now(), &mut Chance)?,
    };
    let _in_flight = endpoint.state.enter();
    let mut head = head(collector, batch.len())?;
    let ends = Ends { source: (IpAddr::from([127, 0, 0, 1]), 0).into(), destination: None, here: None };
    let opening = Opening::of(worker, &cluster, endpoint, || collector.host.to_string(), ends);
    // Whatever its port was declared as: gRPC is nothing else.
    let http2 = is_grpc || forward::speaks_http2(&cluster, endpoint, opening.as_ref(), Version::HTTP_11);
    let pool = worker.pools.pool(worker, caller, &cluster, endpoint, http2, opening);
    if is_grpc && pool.is_hop() {
        head.headers.insert(request::SPEAK, HeaderValue::from_static("h2"));
    }
    let mut lease = pool.checkout(&cluster).await.ok()?;
    let request = head.request(head.headers.clone(), &pool, Outgoing::Whole(Some(batch)))?;
    let response = lease.send(request, None).await.ok()?;
    let verdict = verdict(response, is_grpc).await?;
    lease.give_back();
    Some(verdict)
}

/// Reads an answer to its end.
async fn verdict(response: Response<Inflow>, is_grpc: bool) -> Option<Verdict> {
    let (parts, mut body) = response.into_parts();
    let (mut start, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => start.extend(data.iter().take(ANSWER_BYTES - start.len())),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let text = |headers: &HeaderMap, name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    if !is_grpc || !parts.status.is_success() {
        let after = text(&parts.headers, "retry-after");
        return Some(otlp::http_verdict(parts.status.as_u16(), after.as_deref(), &start));
    }
    // An answer without a message has its status in the head.
    let find = |name| text(&trailers, name).or_else(|| text(&parts.headers, name));
    let status = find("grpc-status").and_then(|status| status.parse().ok()).unwrap_or(UNKNOWN);
    let details = find("grpc-status-details-bin").map_or_else(Vec::new, |details| decoded(&details));
    Some(otlp::grpc_verdict(status, &details, start.get(GRPC_FRAME..).unwrap_or_default()))
}

/// Decodes a binary field of gRPC, padded or not.
fn decoded(text: &str) -> Vec<u8> {
    data_encoding::BASE64_NOPAD.decode(text.trim_end_matches('=').as_bytes()).unwrap_or_default()
}

/// Fills in what stands before a message of gRPC. Source: gRPC over HTTP/2, `Length-Prefixed-Message`.
fn framed(mut frame: Vec<u8>) -> Bytes {
    let length = u32::try_from(frame.len() - GRPC_FRAME).unwrap_or(u32::MAX);
    frame[1..GRPC_FRAME].copy_from_slice(&length.to_be_bytes());
    frame.into()
}

/// The collector as a service of the mesh.
fn service(view: &View, collector: &Collector) -> Option<Arc<Cluster>> {
    let name = ClusterName { host: collector.host.clone(), port: collector.port, subset: "".into() };
    let cluster = view.plan.clusters.get(&name)?;
    Some(cluster.addressed().unwrap_or_else(|| cluster.clone()))
}

/// The collector outside the mesh.
fn place(worker: &Worker, view: &View, collector: &Collector) -> Option<Rc<Direct>> {
    if service(view, collector).is_some() {
        return None;
    }
    let place = match collector.host.parse::<IpAddr>() {
        Ok(address) => Place::Address((address, collector.port).into()),
        Err(_) => Place::Name(collector.host.clone(), collector.port),
    };
    let protocol = match collector.carrier {
        Carrier::Grpc => UpstreamProtocol::Http2,
        Carrier::Http(_) => UpstreamProtocol::Http1,
    };
    Some(worker.passthrough.to(place, protocol))
}

fn head(collector: &Collector, length: usize) -> Option<Head> {
    let mut headers = HeaderMap::new();
    let (path, content) = match &collector.carrier {
        Carrier::Http(path) => (path.as_str(), "application/x-protobuf"),
        Carrier::Grpc => (EXPORT, "application/grpc"),
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("meshd/", env!("CARGO_PKG_VERSION"))));
    if collector.carrier == Carrier::Grpc {
        let millis = u64::try_from(collector.timeout.as_millis()).unwrap_or(u64::MAX);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(request::GRPC_TIMEOUT, request::grpc_timeout_of(millis));
    } else {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers.extend(collector.headers.iter().cloned());
    Some(Head {
        method: Method::POST,
        authority: HeaderValue::from_str(&format!("{}:{}", collector.host, collector.port)).ok()?,
        https: false,
        target: PathAndQuery::try_from(path).ok()?,
        headers,
        version: Version::HTTP_11,
        upgrade: false,
        hops: 1,
    })
}

/// Source: opentelemetry-proto, `TraceService`.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// What stands before a message of gRPC.
const GRPC_FRAME: usize = 5;
/// gRPC's word for an answer without a status.
const UNKNOWN: u32 = 2;
/// Spans that are sent before a second is over.
const ENOUGH: u64 = 512;
/// Spans that may wait for one collector, and be sent at once: some 2 MB, half of what collectors take.
const MOST_WAITING: u64 = 2_048;
/// Collectors at once; rules that name more are a mistake.
const MOST_COLLECTORS: usize = 16;
/// Bytes of an answer that are looked at.
const ANSWER_BYTES: usize = 4_096;
/// Before a batch is sent for the second time; twice as long before each next.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long a batch is tried: what comes meanwhile waits behind it.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
