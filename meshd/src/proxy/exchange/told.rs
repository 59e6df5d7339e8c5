//! What logs and traces are told of a request: kept from its beginning, where anybody wants it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use mesh_core::plan::{Telling, Via};

use super::Life;
use crate::proxy::outbound::Connection;
use crate::proxy::request::{self, REQUEST_ID};
use crate::proxy::traced::{Ended, Trace};
use crate::telemetry::otlp::Tag;
use crate::telemetry::{Record, Told};

/// What only logs and traces want.
pub(super) struct Logged {
    method: Method,
    target: String,
    version: Version,
    authority: String,
    request: Vec<(HeaderName, HeaderValue)>,
    response: Vec<(HeaderName, HeaderValue)>,
    upstream: String,
    downstream: SocketAddr,
    route: String,
    /// For taps.
    headers: Option<HeaderMap>,
}

impl Life {
    /// What is told of it by rules.
    fn telling(&self) -> Option<&Telling> {
        match &self.counted {
            Some(counted) if self.is_inbound => counted.telling(),
            _ => self.caller.as_ref().map(|caller| &*caller.telling),
        }
    }

    /// Keeps what logs and traces want.
    pub(super) fn listen(&mut self, parts: &Parts) {
        let worker = &self.connection.worker;
        let own = worker.access_log.as_ref().and_then(|log| log.own());
        let telling = self.telling();
        let tracing = telling.and_then(|telling| telling.tracing.as_ref());
        let is_tapped = worker.settings.tap.is_on() && !self.is_inbound;
        if own.is_none() && telling.is_none_or(Telling::is_quiet) && !is_tapped {
            return;
        }
        let trace = tracing.map(|tracing| Box::new(Trace::begin(tracing, self.is_inbound, &parts.headers)));
        let has_logs = own.is_some() || telling.is_some_and(|telling| !telling.logs.is_empty());
        if is_tapped || has_logs || trace.as_ref().is_some_and(|trace| trace.is_told()) {
            let wanted = own.iter().flat_map(|(_, wanted)| &wanted.request);
            let wanted = wanted.chain(telling.iter().flat_map(|telling| &telling.wanted.request));
            let mut log = Logged::of(&self.connection, parts, wanted);
            log.headers = is_tapped.then(|| parts.headers.clone());
            self.log = Some(Box::new(log));
        }
        self.trace = trace;
        if self.is_inbound {
            self.follows("");
        }
    }

    /// Keeps what logs want of an answer.
    pub(crate) fn answered(&mut self, headers: &HeaderMap) {
        let Some(mut log) = self.log.take() else { return };
        let own = self.connection.worker.access_log.as_ref().and_then(|log| log.own());
        let wanted = own.iter().flat_map(|(_, wanted)| &wanted.response);
        for name in wanted.chain(self.telling().iter().flat_map(|telling| &telling.wanted.response)) {
            keep(&mut log.response, headers, name);
        }
        self.log = Some(log);
    }

    /// Tells the log which route it follows.
    pub(crate) fn follows(&mut self, name: &str) {
        if let Some(log) = &mut self.log {
            // Istio's name for routes without one.
            log.route = if name.is_empty() { "default".into() } else { name.into() };
        }
    }

    /// Tells who answers.
    pub(crate) fn answered_by(&mut self, via: &Via, http2: bool) {
        let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        self.upstream = match via {
            Via::Local(address) | Via::Plain(address) | Via::Mesh { hop: address, .. } => {
                Some((*address, version))
            }
            Via::Socket(_) | Via::Name { .. } => None,
        };
        if let Some(log) = &mut self.log {
            log.upstream = match via {
                Via::Local(address) | Via::Plain(address) => address.to_string(),
                Via::Socket(path) => path.to_string(),
                Via::Mesh { hop, instance, .. } => format!("{hop}/{instance}"),
                Via::Name { host, port, .. } => format!("{host}:{port}"),
            };
        }
    }

    /// Tells the log which id the request travels under.
    pub(crate) fn request_id(&mut self, id: &HeaderValue) {
        if let Some(log) = &mut self.log {
            log.request.retain(|(name, _)| *name != REQUEST_ID);
            log.request.push((REQUEST_ID, id.clone()));
        }
    }

    /// Tells logs and traces.
    pub(super) fn tell(&mut self, mut log: Logged, took: Duration) {
        let trace = self.trace.take();
        let headers = log.headers.take();
        let record = log.record(self, trace.as_deref(), took);
        if let Some(headers) = headers {
            let caller = self.caller.as_ref().map_or("-/-", |caller| &caller.name);
            let told = Told { record: &record, caller, retries: self.retries, headers: &headers };
            self.connection.worker.settings.tap.offer(&told);
        }
        if let Some(trace) = trace.filter(|trace| trace.is_told()) {
            self.end_span(*trace, &record);
        }
        let record = Arc::new(record);
        let Some(sink) = &self.connection.worker.access_log else { return };
        for logging in self.telling().iter().flat_map(|telling| &telling.logs) {
            sink.write(logging, &record);
        }
        if let Some((own, _)) = sink.own() {
            sink.write(own, &record);
        }
    }

    /// Source: Envoy `HttpTracerUtility`; the names of its tags.
    fn end_span(&self, trace: Trace, record: &Record) {
        let text = |text: &str| Tag::Text(text.to_owned());
        let number = |number: u64| Tag::Number(i64::try_from(number).unwrap_or(i64::MAX));
        let header = |name: &HeaderName| {
            let found = record.request.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| Tag::Text(String::from_utf8_lossy(value.as_bytes()).into_owned()))
        };
        let mut tags = vec![
            ("component", text("proxy")),
            ("node_id", text(&record.host)),
            ("http.method", text(record.method.as_ref().map_or("", Method::as_str))),
            ("http.url", Tag::Text(format!("http://{}{}", record.authority, record.path))),
            ("http.protocol", text(mesh_core::route::template::protocol(record.version))),
            ("http.status_code", Tag::Number(record.status.into())),
            ("response_flags", Tag::Text(record.flags.to_string())),
            ("request_size", number(record.received_bytes)),
            ("response_size", number(record.sent_bytes)),
            ("upstream_cluster", text(&record.upstream_cluster)),
            ("upstream_address", text(&record.upstream_host)),
            ("peer.address", Tag::Text(record.downstream.map_or_else(String::new, |at| at.ip().to_string()))),
        ];
        tags.extend(header(&::http::header::USER_AGENT).map(|tag| ("user_agent", tag)));
        tags.extend(header(&REQUEST_ID).map(|tag| ("guid:x-request-id", tag)));
        tags.extend(record.grpc.map(|status| ("grpc.status_code", Tag::Number(status.into()))));
        let failed = record.status == 0 || record.status >= 500;
        if failed {
            tags.push(("error", text("true")));
        }
        let worker = &self.connection.worker;
        let of_application = || self.counted.as_ref().map(|counted| counted.party());
        let of_caller = || self.caller.as_ref().map(|caller| &caller.party);
        let party = if self.is_inbound { of_application() } else { of_caller() };
        let (host, port, _) = self.wanted();
        let ended = Ended {
            party: party.unwrap_or(&worker.inbound.party),
            name: format!("{host}:{port}/*"),
            took: record.duration,
            failed,
            tags,
        };
        trace.end(worker, ended);
    }
}

impl Logged {
    fn of<'a>(connection: &Connection, parts: &Parts, wanted: impl Iterator<Item = &'a HeaderName>) -> Self {
        let host = || parts.headers.get(::http::header::HOST).map_or_else(String::new, shown);
        let mut request = Vec::new();
        wanted.for_each(|name| keep(&mut request, &parts.headers, name));
        Self {
            method: parts.method.clone(),
            target: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            version: parts.version,
            authority: parts.uri.authority().map_or_else(host, ToString::to_string),
            request,
            response: Vec::new(),
            upstream: String::new(),
            downstream: request::remote(&parts.headers, connection),
            route: String::new(),
            headers: None,
        }
    }

    fn record(self, exchange: &Life, trace: Option<&Trace>, took: Duration) -> Record {
        let worker = &exchange.connection.worker;
        let cluster = exchange.cluster.as_ref();
        let of_source = || exchange.source.as_ref().map_or(0, |source| source.received());
        let counted = exchange.counted.as_ref();
        let view = worker.view();
        Record {
            started: SystemTime::now() - took,
            method: Some(self.method),
            path: self.target,
            version: self.version,
            authority: self.authority,
            status: exchange.status,
            flags: exchange.flags,
            details: exchange.details,
            received_bytes: exchange.body.as_ref().map_or_else(of_source, |body| body.bytes.get()),
            sent_bytes: exchange.sent_bytes,
            duration: took,
            upstream_duration: exchange.upstream_time,
            request: self.request,
            response: self.response,
            upstream_host: self.upstream,
            upstream_cluster: match cluster {
                _ if exchange.is_inbound => format!("inbound|{}||", exchange.wanted().1),
                Some(cluster) => cluster.name.to_string(),
                None => String::new(),
            },
            route: self.route,
            attempts: exchange.attempts,
            downstream: Some(self.downstream),
            principal: counted.and_then(|counted| counted.principal()).map(ToString::to_string),
            server_name: exchange.connection.server_name.as_deref().unwrap_or_default().to_owned(),
            grpc: exchange.grpc.as_ref().and_then(|grpc| grpc.status.get()),
            trace: trace.map(Trace::id),
            revision: view.plan.revision.0,
            host: worker.host.clone(),
        }
    }
}

fn keep(kept: &mut Vec<(HeaderName, HeaderValue)>, headers: &HeaderMap, name: &HeaderName) {
    if let Some(value) = headers.get(name)
        && !kept.iter().any(|(other, _)| other == name)
    {
        kept.push((name.clone(), value.clone()));
    }
}

fn shown(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
