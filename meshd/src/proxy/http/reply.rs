//! Answers on their way to the caller: an endpoint's, dressed as the rules say, or our own.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::{Response, StatusCode, Version};
use hyper::ext::ReasonPhrase;
use mesh_core::plan::{ClusterName, HeaderRules};
use mesh_core::resilience::Flags;
use mesh_core::route::headers::{self as header_rules, AnswerFacts, Facts};
use mesh_core::wire::fold;
use mesh_core::wire::guard::Refusal;

use super::super::budget::CONNECTION_BYTES;
use super::super::exchange::{Deadline, Exchange, Relay, Reply};
use super::super::forward::Answered;
use super::super::local_reply::LocalReply;
use super::super::outbound::{Connection, Target};
use super::super::request::{self, Head};
use super::super::tunnel;
use super::super::watch::Switch;
use super::Inbound;
use crate::telemetry::Counters;

/// Refuses a request that the guard does not let through.
pub(super) fn refuse(refusal: Refusal, exchange: Exchange) -> Response<Reply> {
    Counters::add(&exchange.connection().worker.shard.counters.refused_requests_total);
    answer(LocalReply::refused(refusal), false, exchange)
}

/// Refuses a request that there is no memory for.
pub(super) fn shed(is_grpc: bool, exchange: Exchange) -> Response<Reply> {
    let watch = &exchange.connection().watch;
    // What is refused costs, too: memory may have been given back meanwhile.
    watch.intake.took(CONNECTION_BYTES);
    Counters::add(&exchange.connection().worker.shard.counters.shed_requests_total);
    answer(LocalReply::overloaded(), is_grpc, exchange)
}

/// Answers by ourselves.
pub(super) fn answer(reply: LocalReply, is_grpc: bool, mut exchange: Exchange) -> Response<Reply> {
    if let Some(flag) = reply.flag {
        exchange.raise(flag);
    }
    exchange.details = reply.details;
    exchange.failed = is_grpc;
    exchange.sent_bytes = reply.body.len() as u64;
    let mut response = reply.response(is_grpc);
    exchange.status = response.status().as_u16();
    exchange.note_grpc_status(response.headers());
    response.headers_mut().insert(header::SERVER, server(exchange.connection()));
    response
}

/// Returns what an answer says of us. Source: Istio `GetProxyHeadersFromProxyConfig`, which names sidecars and gateways differently.
fn server(connection: &Connection) -> HeaderValue {
    HeaderValue::from_static(if connection.edge.is_some() { "istio-envoy" } else { "envoy" })
}

impl Inbound<'_> {
    /// Passes an endpoint's answer on.
    pub(super) fn relay(
        &self,
        answered: Answered,
        reply: &Answering<'_>,
        deadline: Option<Deadline>,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let Answered { response, lease, guards } = answered;
        let (mut parts, body) = response.into_parts();
        self.dress(&mut parts, reply, &mut exchange);
        let body =
            Reply::relay(Relay { body, lease: Some(lease), exchange: Some(exchange), deadline, guards });
        Response::from_parts(parts, body)
    }

    /// Passes a 101 on; from then on bytes go both ways.
    pub(super) fn switch(
        &self,
        answered: Answered,
        reply: &Answering<'_>,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let Answered { mut response, lease, guards } = answered;
        let upstream = hyper::upgrade::on(&mut response);
        let (mut parts, _) = response.into_parts();
        self.dress(&mut parts, reply, &mut exchange);
        // Envoy says how long an answer took, not how long a switch did.
        parts.headers.remove(request::SERVICE_TIME);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        self.connection.watch.decide(Switch::Switched);
        if let Some(caller) = self.switch.take() {
            tunnel::join(caller, upstream, (exchange, lease, guards));
        }
        Response::from_parts(parts, Reply::Empty)
    }

    /// Changes the head of an endpoint's answer into that of ours.
    fn dress(&self, parts: &mut ::http::response::Parts, reply: &Answering<'_>, exchange: &mut Exchange) {
        let took = exchange.started.elapsed();
        exchange.upstream_time = Some(took);
        exchange.status = parts.status.as_u16();
        exchange.failed =
            self.is_grpc && mesh_core::resilience::grpc::status_of(&parts.headers).unwrap_or(0) != 0;
        exchange.note_grpc_status(&parts.headers);
        exchange.answered(&parts.headers);
        exchange.details = "via_upstream";
        parts.version = if self.version >= Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
        // differs: Envoy says of answers to HEAD that they would be chunked, and what a 304 would have as its length.
        if parts.status == StatusCode::NO_CONTENT {
            // RFC 9110, section 8.6.
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        // An application's own words for its status end here: a hop would lose them, too.
        parts.extensions.remove::<ReasonPhrase>();
        if parts.status.canonical_reason().is_none() && self.version < Version::HTTP_2 {
            parts.extensions.insert(ReasonPhrase::from_static(b"Unknown"));
        }
        request::strip_hop_by_hop(&mut parts.headers);
        fold::fold_answer(&mut parts.headers);
        parts.headers.insert(
            request::SERVICE_TIME,
            request::number(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
        );
        if let Some(cookie) =
            reply.set_cookie.as_deref().and_then(|cookie| HeaderValue::from_str(cookie).ok())
        {
            parts.headers.append(header::SET_COOKIE, cookie);
        }
        if !reply.rules.is_empty() {
            let told = Told::of(exchange, Some(parts.status), exchange.details);
            self.apply(&reply.rules, &mut parts.headers, &told);
        }
        replace(&mut parts.headers, reply.marks.as_ref());
        // On the way in an application keeps its name, as under Istio.
        if !matches!(self.connection.target, Target::Local { .. }) {
            parts.headers.insert(header::SERVER, server(self.connection));
        }
    }

    /// Answers by ourselves, under the header rules.
    pub(super) fn local(
        &self,
        reply: LocalReply,
        rules: &Rules<'_>,
        marks: Option<&HeaderMap>,
        exchange: Exchange,
    ) -> Response<Reply> {
        let told = (!rules.is_empty()).then(|| {
            // Rules run before an answer of our own has a status, as in Envoy.
            let mut told = Told::of(&exchange, None, reply.details);
            reply.flag.into_iter().for_each(|flag| told.flags.set(flag));
            told
        });
        let mut response = answer(reply, self.is_grpc, exchange);
        let described = [header::CONTENT_TYPE, header::CONTENT_LENGTH].map(|name| {
            let value = response.headers().get(&name).cloned();
            (name, value)
        });
        if let Some(told) = told {
            self.apply(rules, response.headers_mut(), &told);
        }
        // What describes the body may be changed, not removed: Envoy adds it last.
        for (name, value) in described {
            if let Some(value) = value.filter(|_| !response.headers().contains_key(&name)) {
                response.headers_mut().insert(name, value);
            }
        }
        replace(response.headers_mut(), marks);
        response.headers_mut().insert(header::SERVER, server(self.connection));
        self.end_switch(&mut response);
        response
    }

    /// A request to switch protocols that we answer ourselves ends its connection, as under Envoy.
    pub(super) fn end_switch(&self, response: &mut Response<Reply>) {
        if self.asked.upgrade {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }

    fn apply(&self, rules: &Rules<'_>, headers: &mut HeaderMap, told: &Told) {
        let target = self.call.path_and_query();
        let mut facts = Facts { answer: told.facts(), ..self.facts(&target, rules) };
        let mut request = self.call.headers;
        // What was sent on, with what rules made of it, is what rules for the answer see.
        if let Some(head) = rules.sent {
            request = &head.headers;
            facts.path_and_query = head.target.as_str();
            facts.authority = head.authority.to_str().unwrap_or(facts.authority);
        }
        header_rules::response(rules.route, rules.destination, rules.many, headers, request, &facts);
    }

    pub(super) fn facts<'b>(&'b self, target: &'b str, rules: &Rules<'b>) -> Facts<'b> {
        let started = SystemTime::now() - self.started.elapsed();
        Facts {
            version: self.version,
            direct: self.connection.peer,
            local: self.connection.local,
            started: started.duration_since(UNIX_EPOCH).unwrap_or_default(),
            host_name: &self.view.plan.node.name,
            route_name: rules.route_name,
            cluster: rules.cluster,
            ..Facts::of(&self.call, target, self.remote())
        }
    }

    /// Returns where the caller is, as those before us have it.
    pub(super) fn remote(&self) -> SocketAddr {
        request::remote(self.call.headers, self.connection)
    }
}

/// What rules may ask for of an answer.
struct Told {
    status: Option<StatusCode>,
    upstream: Option<(SocketAddr, Version)>,
    attempts: u32,
    flags: Flags,
    details: &'static str,
}

impl Told {
    fn of(exchange: &Exchange, status: Option<StatusCode>, details: &'static str) -> Self {
        let attempts = if exchange.edge.is_some() { exchange.retries + 1 } else { 0 };
        Self { status, upstream: exchange.upstream, attempts, flags: exchange.flags(), details }
    }

    fn facts(&self) -> AnswerFacts<'_> {
        AnswerFacts {
            status: self.status,
            upstream: self.upstream.map(|(address, _)| address),
            upstream_version: self.upstream.map(|(_, version)| version),
            attempts: self.attempts,
            flags: self.flags,
            details: self.details,
        }
    }
}

/// The header rules that apply.
#[derive(Clone, Copy, Default)]
pub(super) struct Rules<'a> {
    pub(super) route: Option<&'a HeaderRules>,
    pub(super) destination: Option<&'a HeaderRules>,
    pub(super) many: bool,
    /// What was sent on, where the answer's rules want to know.
    pub(super) sent: Option<&'a Head>,
    /// Names that values may ask for.
    pub(super) route_name: &'a str,
    pub(super) cluster: Option<&'a ClusterName>,
}

impl Rules<'_> {
    pub(super) fn answer_shows_request(&self) -> bool {
        [self.route, self.destination].into_iter().flatten().any(HeaderRules::answer_shows_request)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.route.is_none() && self.destination.is_none()
    }
}

/// What is done to an answer.
#[derive(Default)]
pub(super) struct Answering<'a> {
    pub(super) rules: Rules<'a>,
    /// Headers of a cross-origin policy.
    pub(super) marks: Option<HeaderMap>,
    pub(super) set_cookie: Option<String>,
    /// A mirror still wants the body.
    pub(super) keep_source: bool,
}

/// Puts headers in the place of those of the same name.
fn replace(headers: &mut HeaderMap, by: Option<&HeaderMap>) {
    for (name, value) in by.into_iter().flatten() {
        headers.insert(name, value.clone());
    }
}
