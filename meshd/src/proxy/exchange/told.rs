//! What logs and traces are told of a request: kept from its beginning, where anybody wants it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{HOST, USER_AGENT};
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use mesh_core::plan::{Telling, Via};
use mesh_core::resilience::Failure;
use mesh_core::route;
use mesh_proto::log_format::Operator;

use super::Life;
use crate::proxy::outbound::{Connection, Edge};
use crate::proxy::request::{self, FORWARDED_FOR, FORWARDED_PROTO, REQUEST_ID};
use crate::proxy::traced::{Ended, Trace};
use crate::proxy::upstream::Pool;
use crate::telemetry::otlp::Tag;
use crate::telemetry::{Goal, Record, Told};

/// What only logs and traces want.
pub(super) struct Logged {
    /// What is known so far; the rest comes with the end.
    record: Box<Record>,
    /// For taps.
    headers: Option<Box<HeaderMap>>,
}

impl Life {
    /// What is told of it by rules.
    fn telling(&self) -> Option<&Arc<Telling>> {
        match &self.counted {
            Some(counted) if self.is_inbound => counted.telling(),
            _ => self.caller.as_ref().map(|caller| &caller.telling),
        }
    }

    /// Keeps what logs and traces want.
    pub(super) fn listen(&mut self, parts: &Parts, revision: u64) {
        let worker = &self.connection.worker;
        let own = worker.lines.as_ref().and_then(|lines| lines.own());
        let telling = self.telling();
        let tracing = telling.and_then(|telling| telling.tracing.as_ref());
        let is_tapped = worker.settings.tap.is_on() && !self.is_inbound;
        if own.is_none() && telling.is_none_or(|telling| telling.is_quiet()) && !is_tapped {
            return;
        }
        let trace = tracing.map(|tracing| Box::new(Trace::begin(tracing, self.is_inbound, &parts.headers)));
        let has_logs = own.is_some() || telling.is_some_and(|telling| !telling.logs.is_empty());
        if is_tapped || has_logs || trace.as_ref().is_some_and(|trace| trace.is_told()) {
            let own = own.map_or(&[][..], |(_, wanted)| &wanted.request);
            let wanted = [own, telling.map_or(&[][..], |telling| &telling.wanted.request)];
            let record = record(&self.connection, parts, wanted, revision);
            let headers = is_tapped.then(|| Box::new(parts.headers.clone()));
            self.log = Some(Logged { record, headers });
        }
        self.trace = trace;
        if self.is_inbound {
            self.follows("");
        }
    }

    /// Keeps what logs want of an answer.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        let Some(mut log) = self.log.take() else { return };
        let own = self.connection.worker.lines.as_ref().and_then(|lines| lines.own());
        let own = own.map_or(&[][..], |(_, wanted)| &wanted.response);
        let of_rules = self.telling().map_or(&[][..], |telling| &telling.wanted.response);
        if !own.is_empty() || !of_rules.is_empty() {
            let wanted = [own, of_rules];
            for (name, value) in headers.iter().filter(|(name, _)| is_wanted(name, wanted)) {
                log.record.texts.add_response(name.as_str(), value.as_bytes());
            }
        }
        self.log = Some(log);
    }

    /// Tells the log which route it follows.
    pub(crate) fn follows(&mut self, name: &str) {
        if let Some(log) = &mut self.log {
            // Istio's name for routes without one.
            log.record.texts.set_route(if name.is_empty() { "default" } else { name });
        }
    }

    /// Tells who answers.
    pub(crate) fn answered_by(&mut self, via: &Via, http2: bool) {
        let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        self.upstream = match via {
            Via::Local(address) | Via::Plain(address) => Some((*address, version)),
            Via::Mesh { to, .. } => Some((to.hop, version)),
            Via::Socket(_) | Via::Name { .. } => None,
        };
        if let Some(log) = &mut self.log {
            let record = &mut log.record;
            (record.upstream_local, record.transport_failure) = (None, None);
            record.upstream = Some(via.clone());
        }
    }

    /// Tells the log from where it was sent to the endpoint.
    pub(crate) fn sent_from(&mut self, local: impl FnOnce() -> Option<SocketAddr>) {
        if let Some(log) = &mut self.log {
            log.record.upstream_local = local();
        }
    }

    /// Tells the log why there is no connection to the endpoint.
    pub(crate) fn not_connected(&mut self, failure: Failure, pool: &Pool) {
        if let Some(log) = self.log.as_mut().filter(|_| failure == Failure::Connect) {
            log.record.transport_failure = pool.failed();
        }
    }

    /// Tells the log which id the request travels under.
    pub(crate) fn request_id(&mut self, id: &HeaderValue) {
        if let Some(log) = &mut self.log {
            log.record.texts.set_request(REQUEST_ID.as_str(), id.as_bytes());
        }
    }

    /// Tells logs and traces.
    pub(super) fn tell(&mut self, mut log: Logged, took: Duration) {
        let trace = self.trace.take();
        log.record.trace = trace.as_ref().map(|trace| trace.id());
        self.complete(&mut log.record, took);
        let Logged { record, headers } = log;
        if let Some(headers) = headers {
            let caller = self.caller.as_ref().map_or("-/-", |caller| &caller.name);
            let told = Told { record: &record, caller, retries: self.retries, headers: &headers };
            self.connection.worker.settings.tap.offer(&told);
        }
        if let Some(trace) = trace.filter(|trace| trace.is_told()) {
            self.end_span(&trace, &record);
        }
        self.connection.worker.log(self.telling(), record);
    }

    /// Adds to a record what is known at the end.
    fn complete(&self, record: &mut Record, took: Duration) {
        let of_source = || self.source.as_ref().map_or(0, |source| source.received());
        let counted = self.counted.as_ref();
        record.started = self.connection.worker.time_of(self.started);
        record.duration = took;
        record.status = self.status;
        record.flags = self.flags;
        record.details = self.details;
        record.received_bytes = self.body.as_ref().map_or_else(of_source, |body| body.bytes.get());
        record.sent_bytes = self.sent_bytes;
        record.upstream_duration = self.upstream_time;
        record.attempts = self.attempts;
        record.principal = counted.and_then(|counted| counted.principal()).cloned();
        record.grpc = self.grpc.as_ref().and_then(|grpc| grpc.status.get());
        record.goal = match &self.cluster {
            _ if self.is_inbound => inbound(self),
            Some(cluster) => Goal::Cluster(cluster.clone()),
            None => Goal::Nowhere,
        };
    }

    /// Source: Envoy `HttpTracerUtility`; the names of its tags.
    fn end_span(&self, trace: &Trace, record: &Record) {
        use Tag::{Number, Text};
        let number = |number: u64| Number(i64::try_from(number).unwrap_or(i64::MAX));
        let header = |name: &HeaderName| record.request(name.as_str());
        let (agent, id) = (header(&USER_AGENT), header(&REQUEST_ID));
        let scheme = if record.https { "https" } else { "http" };
        let url = [scheme, "://", &*record.authority(), &*record.path()].concat();
        let (flags, goal) =
            (record.shown(&Operator::ResponseFlags), record.shown(&Operator::UpstreamCluster));
        let upstream = record.shown(&Operator::UpstreamHost);
        let peer = record.shown(&Operator::DownstreamRemoteAddressWithoutPort);
        let failed = record.status == 0 || record.status >= 500;
        let always = [
            ("component", Text("proxy")),
            ("node_id", Text(&record.host)),
            ("http.method", Text(record.method.as_ref().map_or("", Method::as_str))),
            ("http.url", Text(&url)),
            ("http.protocol", Text(route::template::protocol(record.version))),
            ("http.status_code", Number(record.status.into())),
            ("response_flags", Text(&flags)),
            ("request_size", number(record.received_bytes)),
            ("response_size", number(record.sent_bytes)),
            ("upstream_cluster", Text(&goal)),
            ("upstream_address", Text(&upstream)),
            ("peer.address", Text(&peer)),
        ];
        let sometimes = [
            ("user_agent", agent.as_deref().map(Text)),
            ("guid:x-request-id", id.as_deref().map(Text)),
            ("grpc.status_code", record.grpc.map(|status| Number(status.into()))),
            ("error", failed.then_some(Text("true"))),
        ];
        let sometimes = sometimes.into_iter().filter_map(|(name, tag)| Some((name, tag?)));
        let worker = &self.connection.worker;
        let of_application = || self.counted.as_ref().map(|counted| counted.party());
        let of_caller = || self.caller.as_ref().map(|caller| &caller.party);
        let party = if self.is_inbound { of_application() } else { of_caller() };
        let (host, port, _) = self.wanted();
        let ended = Ended {
            party: party.unwrap_or(&worker.inbound.party),
            name: &format!("{host}:{port}/*"),
            took: record.duration,
            failed,
        };
        trace.end(worker, &ended, always.into_iter().chain(sometimes));
    }
}

/// Begins the record of a request.
fn record(connection: &Connection, parts: &Parts, wanted: [&[HeaderName]; 2], revision: u64) -> Box<Record> {
    let worker = &connection.worker;
    let lines = worker.lines.as_ref();
    let new = || Box::new(Record::new(worker.host.clone(), 0));
    let mut record = lines.map_or_else(new, |lines| lines.record(&worker.host));
    record.revision = revision;
    record.method = Some(parts.method.clone());
    record.version = parts.version;
    record.direct = Some(connection.peer);
    record.downstream_local = connection.local;
    record.server_name.clone_from(&connection.server_name);
    let texts = &mut record.texts;
    texts.set_path(parts.uri.path_and_query().map_or("", PathAndQuery::as_str));
    let mut host = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let (mut is_forwarded, mut says_scheme) = (false, parts.uri.scheme().is_some());
    // Walked through once: to look each name up would cost more.
    for (name, value) in &parts.headers {
        if *name == HOST {
            host = host.or(Some(value.as_bytes()));
        }
        is_forwarded |= *name == FORWARDED_FOR;
        says_scheme |= *name == FORWARDED_PROTO;
        if is_wanted(name, wanted) {
            texts.add_request(name.as_str(), value.as_bytes());
        }
    }
    texts.set_authority(host.unwrap_or_default());
    let remote = || request::remote(&parts.headers, connection);
    record.downstream = Some(if is_forwarded { remote() } else { connection.peer });
    record.https = (says_scheme || connection.edge.is_some()) && is_https(connection, parts);
    record
}

/// Source: Envoy's connection manager: the transport says it where the request does not.
fn is_https(connection: &Connection, parts: &Parts) -> bool {
    match &connection.edge {
        Some(Edge::Tls(_)) => true,
        Some(Edge::Plain) => false,
        None => route::scheme_of(parts.uri.scheme_str(), &parts.headers) == "https",
    }
}

/// Names the way to an application as Istio does: by the port that it listens on.
fn inbound(exchange: &Life) -> Goal {
    let port = exchange.upstream.map_or_else(|| exchange.wanted().1, |(address, _)| address.port());
    Goal::Inbound(port)
}

fn is_wanted(name: &HeaderName, wanted: [&[HeaderName]; 2]) -> bool {
    wanted.iter().any(|names| names.contains(name))
}
