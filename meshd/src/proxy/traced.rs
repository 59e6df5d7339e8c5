//! Spans of requests: begun with them, passed on in their headers, sent to a collector in batches.
//!
//! Each worker keeps what it has to tell, bounded, and sends it like any other request. What the collector does not take is
//! dropped and counted: requests never wait for their spans.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Version};
use http_body_util::BodyExt as _;
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{
    Cluster, ClusterName, Collector, Party, PartyField, TagSource, Tracing, UpstreamProtocol,
};
use mesh_core::trace::{self, Begun};

use super::body::Outgoing;
use super::forward;
use super::passthrough::Place;
use super::request::Head;
use super::upstream::{Ends, Opening};
use super::worker::{Chance, View, Worker};
use crate::task;
use crate::telemetry::Counters;
use crate::telemetry::otlp::{self, Resource, Span, Tag};

/// The span of a request under way.
#[derive(Debug)]
pub(crate) struct Trace {
    tracing: Arc<Tracing>,
    begun: Begun,
    is_server: bool,
    /// Tags that the request's headers gave.
    tags: Vec<(String, Tag)>,
}

/// What a span is told of its request when it ends.
pub(crate) struct Ended<'a> {
    pub(crate) party: &'a Party,
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) failed: bool,
    pub(crate) tags: Vec<(&'static str, Tag)>,
}

impl Trace {
    /// Begins the span of a request.
    pub(crate) fn begin(tracing: &Arc<Tracing>, is_server: bool, headers: &HeaderMap) -> Self {
        let begun = trace::begin(trace::extract(headers), tracing.sampling, &mut Chance);
        let most = tracing.collector.max_tag_bytes;
        let tag = |(name, source): &(String, TagSource)| {
            let text = match source {
                TagSource::Literal(text) => text.clone(),
                TagSource::Header(field, default) => match headers.get(field) {
                    Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
                    None => Some(default.clone()).filter(|default| !default.is_empty())?,
                },
            };
            Some((name.clone(), Tag::Text(cut(text, most))))
        };
        let is_told = begun.sampled && tracing.reports;
        let tags = if is_told { tracing.tags.iter().filter_map(tag).collect() } else { Vec::new() };
        Self { tracing: tracing.clone(), begun, is_server, tags }
    }

    /// Writes it into the headers that go on.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        if self.tracing.propagates {
            self.begun.inject(headers);
        }
    }

    /// Returns the id of its trace.
    pub(crate) fn id(&self) -> u128 {
        self.begun.trace
    }

    /// Whether anybody is told of it.
    pub(crate) fn is_told(&self) -> bool {
        self.begun.sampled && self.tracing.reports
    }

    /// Hands it over to be told.
    pub(crate) fn end(self, worker: &Rc<Worker>, ended: Ended<'_>) {
        let Self { tracing, begun, is_server, mut tags } = self;
        let most = tracing.collector.max_tag_bytes;
        let known = ended.tags.into_iter().map(|(name, tag)| match tag {
            Tag::Text(text) => (name.to_owned(), Tag::Text(cut(text, most))),
            Tag::Number(number) => (name.to_owned(), Tag::Number(number)),
        });
        tags.extend(known);
        if tracing.istio_tags {
            let istio = [
                ("istio.canonical_service", PartyField::Service),
                ("istio.canonical_revision", PartyField::Revision),
                ("istio.namespace", PartyField::Namespace),
                ("istio.cluster_id", PartyField::TrustDomain),
            ];
            let known = istio.into_iter().filter_map(|(name, field)| Some((name, ended.party.get(field)?)));
            tags.extend(known.map(|(name, text)| (name.to_owned(), Tag::Text(text.to_owned()))));
        }
        let now = SystemTime::now();
        let span = Span {
            trace: begun.trace,
            id: begun.id,
            parent: begun.parent,
            state: begun.state,
            name: ended.name,
            is_server,
            started: now - ended.took,
            ended: now,
            tags,
            failed: ended.failed,
        };
        worker.tracer.tell(worker, &tracing.collector, ended.party.clone(), span);
    }
}

fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// The spans that a worker has to tell.
#[derive(Default)]
pub(crate) struct Tracer {
    waiting: RefCell<Vec<Waiting>>,
    /// Whether a batch is on its way.
    is_sending: Cell<bool>,
}

struct Waiting {
    collector: Arc<Collector>,
    party: Party,
    span: Span,
}

impl Tracer {
    fn tell(&self, worker: &Rc<Worker>, collector: &Arc<Collector>, party: Party, span: Span) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MOST_WAITING {
            return Counters::add(&worker.shard.counters.dropped_spans_total);
        }
        waiting.push(Waiting { collector: collector.clone(), party, span });
        let is_full = waiting.len() >= BATCH;
        drop(waiting);
        if is_full {
            self.flush(worker);
        }
    }

    /// Sends what waits, unless a batch is on its way. Called once a second.
    pub(crate) fn flush(&self, worker: &Rc<Worker>) {
        if self.is_sending.get() || self.waiting.borrow().is_empty() {
            return;
        }
        self.is_sending.set(true);
        let batch = {
            let mut waiting = self.waiting.borrow_mut();
            let length = waiting.len().min(BATCH);
            waiting.drain(..length).collect::<Vec<_>>()
        };
        let worker = worker.clone();
        task::spawn_local("spans", async move {
            send(&worker, batch).await;
            worker.tracer.is_sending.set(false);
        });
    }
}

/// Sends a batch, to each of its collectors.
async fn send(worker: &Rc<Worker>, batch: Vec<Waiting>) {
    let mut by_collector: Vec<(Arc<Collector>, Vec<Waiting>)> = Vec::new();
    for one in batch {
        match by_collector.iter_mut().find(|(collector, _)| *collector == one.collector) {
            Some((_, spans)) => spans.push(one),
            None => by_collector.push((one.collector.clone(), vec![one])),
        }
    }
    for (collector, spans) in by_collector {
        let body = written(&spans);
        let sent = tokio::time::timeout(collector.timeout, post(worker, &collector, body)).await;
        let counters = &worker.shard.counters;
        let counter = match sent {
            Ok(Some(())) => &counters.sent_spans_total,
            _ => &counters.dropped_spans_total,
        };
        counter.fetch_add(spans.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Writes spans by the service that they are of. Named as Istio names it: canonical service and namespace.
fn written(spans: &[Waiting]) -> Vec<u8> {
    let mut by_party: BTreeMap<&Party, Vec<&Span>> = BTreeMap::new();
    for one in spans {
        by_party.entry(&one.party).or_default().push(&one.span);
    }
    let resources = by_party.into_iter().map(|(party, spans)| {
        let field = |field| party.get(field).unwrap_or("unknown");
        let name = format!("{}.{}", field(PartyField::Service), field(PartyField::Namespace));
        let workload = field(PartyField::Workload).to_owned();
        Resource { tags: vec![("service.name", name), ("service.instance.id", workload)], spans }
    });
    otlp::export(&resources.collect::<Vec<_>>())
}

/// Posts a batch. `None`: it was not taken.
async fn post(worker: &Rc<Worker>, collector: &Collector, body: Vec<u8>) -> Option<()> {
    let view = worker.view();
    let (_, caller) = view.outbound(0)?;
    let cluster = destination(worker, &view, collector);
    let _permit = mesh_core::resilience::breaker::admit_request(&cluster).ok()?;
    let hint = Hint::default();
    let direct = place(worker, &view, collector);
    let endpoint = match &direct {
        Some(direct) => &direct.endpoint,
        None => balance::pick(&cluster, &hint, worker.now(), &mut Chance)?,
    };
    let _in_flight = endpoint.state.enter();
    let head = head(collector, body.len())?;
    let ends = Ends { source: (IpAddr::from([127, 0, 0, 1]), 0).into(), destination: None };
    let opening = Opening::of(worker, &cluster, endpoint, || collector.host.to_string(), ends);
    let http2 = forward::speaks_http2(&cluster, endpoint, opening.as_ref(), Version::HTTP_11);
    let pool = worker.pools.pool(worker, caller, &cluster, endpoint, http2, opening);
    let mut lease = pool.checkout(&cluster).await.ok()?;
    let request = head.request(head.headers.clone(), &pool, Outgoing::Whole(Some(Bytes::from(body))))?;
    let response = lease.send(request, None).await.ok()?;
    let is_taken = response.status().is_success();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.ok()?;
    }
    lease.give_back();
    is_taken.then_some(())
}

/// The collector as a service of the mesh.
fn service(view: &View, collector: &Collector) -> Option<Arc<Cluster>> {
    let name = ClusterName { host: collector.host.clone(), port: collector.port, subset: "".into() };
    let cluster = view.plan.clusters.get(&name)?;
    Some(cluster.addressed().unwrap_or_else(|| cluster.clone()))
}

/// The collector outside the mesh.
fn place(worker: &Worker, view: &View, collector: &Collector) -> Option<Rc<super::passthrough::Direct>> {
    if service(view, collector).is_some() {
        return None;
    }
    let place = match collector.host.parse::<IpAddr>() {
        Ok(address) => Place::Address((address, collector.port).into()),
        Err(_) => Place::Name(collector.host.clone(), collector.port),
    };
    Some(worker.passthrough.to(place, UpstreamProtocol::Http1))
}

fn destination(worker: &Worker, view: &View, collector: &Collector) -> Arc<Cluster> {
    service(view, collector)
        .or_else(|| place(worker, view, collector).map(|direct| direct.cluster.clone()))
        .unwrap_or_default()
}

fn head(collector: &Collector, length: usize) -> Option<Head> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers
        .insert(header::USER_AGENT, HeaderValue::from_static(concat!("meshd/", env!("CARGO_PKG_VERSION"))));
    let more: Vec<(HeaderName, HeaderValue)> = collector.headers.clone();
    headers.extend(more);
    Some(Head {
        method: Method::POST,
        authority: HeaderValue::from_str(&format!("{}:{}", collector.host, collector.port)).ok()?,
        https: false,
        target: PathAndQuery::try_from(collector.path.as_str()).ok()?,
        headers,
        version: Version::HTTP_11,
        upgrade: false,
        hops: 1,
    })
}

/// Spans that are sent at once.
const BATCH: usize = 512;
/// Spans that may wait: some 2 MB.
const MOST_WAITING: usize = 2_048;
