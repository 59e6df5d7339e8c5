//! The life of a request: one step per line in [`handle`]; where it may go is decided by `core`.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use mesh_core::balance::{self, HashKeyOutcome};
use mesh_core::plan::{
    Action, Balancer, Cluster, Forward, HeaderRules, Matcher, RetryOn, RetryPolicy, UnknownHosts,
    UpstreamProtocol, VirtualHost, WeightedCluster,
};
use mesh_core::resilience::{Failure, Flag, fault};
use mesh_core::route::cors::{self, CorsVerdict};
use mesh_core::route::headers::{self as header_rules, Facts};
use mesh_core::route::{self, Call, Matched, path, rewrite};
use mesh_core::wire::{fold, guard};

use super::body::Source;
use super::exchange::{Deadline, Exchange, Relay, Reply};
use super::forward::{self, Answered, Sending};
use super::local_reply::LocalReply;
use super::outbound::{Connection, Target};
use super::passthrough::{Direct, Place};
use super::request::{self, Head};
use super::worker::{Chance, View};
use super::{mirror, tunnel};
use crate::telemetry::Counters;

/// Answers a request. Every way out ends in one line of the access log and one count.
pub(crate) async fn handle(connection: Rc<Connection>, mut request: Request<Incoming>) -> Response<Reply> {
    let view = connection.worker.view();
    let may_switch = request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
    let switch = may_switch.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let caller =
        view.outbound(connection.caller).map_or_else(|| "-/-".into(), |(_, caller)| caller.name.clone());
    let mut exchange = Exchange::begin(&connection, caller, &parts);
    let is_grpc = request::is_grpc(&parts.headers);
    if let Err(refusal) = guard::check(
        &parts.method,
        &parts.uri,
        parts.version,
        &parts.headers,
        &connection.worker.settings.limits,
    ) {
        Counters::add(&connection.worker.shard.counters.refused_requests_total);
        return answer(LocalReply::refused(refusal), false, exchange);
    }
    if parts.method == Method::CONNECT {
        return match tunnel::connect(&connection, &view, &parts.uri, switch) {
            Ok(()) => {
                exchange.status = StatusCode::OK.as_u16();
                exchange.details = "connect";
                // Without a length: what follows is the tunnel.
                Response::new(Reply::Empty)
            }
            Err(reply) => answer(*reply, false, exchange),
        };
    }
    let asked = match Asked::of(&connection, &mut parts) {
        Ok(asked) => asked,
        Err(reply) => return answer(*reply, is_grpc, exchange),
    };
    let (target, query) = path::parts(&asked.target);
    let Ok(normal) = path::normalise(target) else {
        return answer(
            LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed"),
            is_grpc,
            exchange,
        );
    };
    let scheme = route::scheme_of(asked.scheme.as_deref(), &parts.headers);
    request::add_standard(&mut parts.headers);
    let call = Call {
        method: parts.method.as_str(),
        scheme,
        authority: &asked.authority,
        path: &normal,
        query,
        headers: &parts.headers,
    };
    let incoming = Inbound {
        connection: &connection,
        view: &view,
        asked: &asked,
        call,
        is_grpc,
        version: parts.version,
        switch: Cell::new(switch),
    };
    let found = match incoming.find() {
        Ok(found) => found,
        Err(reply) => return answer(*reply, is_grpc, exchange),
    };
    match found {
        Found::Route(host, matched) => {
            exchange.virtual_host = Some(host.clone());
            incoming.routed(matched, body, exchange).await
        }
        Found::Unknown(direct) => incoming.unrouted(&direct, body, exchange).await,
    }
}

/// Answers by ourselves.
fn answer(reply: LocalReply, is_grpc: bool, mut exchange: Exchange) -> Response<Reply> {
    if let Some(flag) = reply.flag {
        exchange.raise(flag);
    }
    exchange.details = reply.details;
    exchange.failed = is_grpc;
    exchange.sent_bytes = reply.body.len() as u64;
    let mut response = reply.response(is_grpc);
    exchange.status = response.status().as_u16();
    response.headers_mut().insert(header::SERVER, SERVER);
    response
}

/// What a request asks for, read off its head once.
struct Asked {
    /// Host as sent, or as the listener stands for.
    authority: String,
    /// The service port.
    port: u16,
    /// Raw path and query.
    target: String,
    /// Of an absolute-form target or `:scheme`.
    scheme: Option<String>,
    upgrade: bool,
}

impl Asked {
    /// Reads and cleans the head: afterwards `parts.headers` are those that rules see.
    fn of(connection: &Connection, parts: &mut Parts) -> Result<Self, Box<LocalReply>> {
        let upgrade = parts.version < Version::HTTP_2 && wanted_upgrade(&parts.headers)?;
        request::strip(&mut parts.headers);
        fold::fold(&mut parts.headers, parts.version >= Version::HTTP_2);
        let sent = parts.uri.authority().map(::http::uri::Authority::as_str);
        let host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let sent = sent.or_else(host).unwrap_or_default();
        let (authority, port) = match &connection.target {
            Target::Port(port) => (sent.to_owned(), *port),
            Target::Address(address) => (sent.to_owned(), connection.service_port(*address)),
            Target::Host { host, port } if *port == 80 => (host.to_string(), 80),
            Target::Host { host, port } => (format!("{host}:{port}"), *port),
            Target::Proxy => (sent.to_owned(), port_of(sent, parts.uri.scheme_str())),
        };
        parts.headers.remove(header::HOST);
        Ok(Self {
            authority,
            port,
            target: parts
                .uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned()),
            scheme: parts.uri.scheme_str().map(str::to_owned),
            upgrade,
        })
    }
}

/// WebSocket passes, `h2c` is served as HTTP/1.1, anything else is refused. Source: Istio's `UpgradeConfigs`.
fn wanted_upgrade(headers: &HeaderMap) -> Result<bool, Box<LocalReply>> {
    match request::upgrade(headers) {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"websocket") => Ok(true),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"h2c") => Ok(false),
        Some(_) => Err(Box::new(LocalReply::forbidden("upgrade_failed"))),
    }
}

/// Returns the port of an authority, else its scheme's.
pub(crate) fn port_of(authority: &str, scheme: Option<&str>) -> u16 {
    let default = if scheme == Some("https") { 443 } else { 80 };
    let port = authority.rsplit_once(':').filter(|(host, _)| !host.contains('[') || host.ends_with(']'));
    port.and_then(|(_, port)| port.parse().ok()).unwrap_or(default)
}

/// A request with all that decides about it.
struct Inbound<'a> {
    connection: &'a Rc<Connection>,
    view: &'a View,
    asked: &'a Asked,
    call: Call<'a>,
    is_grpc: bool,
    version: Version,
    /// The caller's bytes after a switch of protocols.
    switch: Cell<Option<OnUpgrade>>,
}

/// Where a request goes.
enum Found<'a> {
    Route(&'a Arc<VirtualHost>, Matched<'a>),
    Unknown(Rc<Direct>),
}

impl<'a> Inbound<'a> {
    /// Finds the route; a host nobody declared goes where it was going, or is refused.
    fn find(&self) -> Result<Found<'a>, Box<LocalReply>> {
        let Some((outbound, _)) = self.view.outbound(self.connection.caller) else {
            return Err(Box::new(LocalReply::unknown_host()));
        };
        let table = outbound.ports.get(&self.asked.port);
        let host = table.and_then(|table| route::find_host(table, self.call.authority));
        if let Some(host) = host {
            let matched = route::route(host, &self.call).filter(|_| self.call.path.starts_with('/'));
            let matched = matched.ok_or_else(|| Box::new(LocalReply::no_route()))?;
            return Ok(Found::Route(host, matched));
        }
        if outbound.unknown == UnknownHosts::Refuse {
            return Err(Box::new(LocalReply::unknown_host()));
        }
        let place = if let Target::Address(address) = &self.connection.target {
            Place::Address(*address)
        } else {
            let host = route::host_of(self.call.authority);
            Place::Name(host.trim_matches(['[', ']']).into(), self.asked.port)
        };
        Ok(Found::Unknown(self.connection.worker.passthrough.to(place, UpstreamProtocol::AsClient)))
    }

    /// Follows a route.
    async fn routed(&self, matched: Matched<'_>, body: Incoming, mut exchange: Exchange) -> Response<Reply> {
        let route = matched.route;
        // Chosen first: its header rules hold for faults, too.
        let chosen = match &route.action {
            Action::Forward(forward) => {
                Some((forward, route::split(&forward.destinations, forward.total_weight, &mut Chance)))
            }
            Action::Direct(_) | Action::Redirect(_) => None,
        };
        let rules = Rules {
            route: route.headers.as_deref(),
            destination: chosen.and_then(|(_, destination)| destination.headers.as_deref()),
            many: chosen.is_some_and(|(forward, _)| forward.destinations.len() > 1),
            sent: None,
        };
        if let Some(fault) = &route.fault {
            let (delay, abort) = fault::decide(fault, &mut Chance);
            if let Some(delay) = delay {
                exchange.raise(Flag::DelayInjected);
                tokio::time::sleep(delay).await;
            }
            if let Some(abort) = abort {
                return self.local(LocalReply::abort(&abort), &rules, None, exchange);
            }
        }
        match (&route.action, chosen) {
            (Action::Direct(direct), _) => {
                let mut reply = LocalReply::new(direct.status, "direct_response");
                reply.body = direct.body.clone();
                self.local(reply, &rules, None, exchange)
            }
            (Action::Redirect(redirect), _) => {
                let location = rewrite::location(redirect, &self.call, matched.matcher, self.asked.port);
                let mut reply = LocalReply::new(redirect.code, "direct_response");
                if let Ok(location) = HeaderValue::from_str(&location) {
                    reply.headers.insert(header::LOCATION, location);
                }
                self.local(reply, &rules, None, exchange)
            }
            (Action::Forward(forward), chosen) => {
                let (_, destination) = chosen.expect("chosen above for every route that forwards");
                let cors =
                    route.cors.as_ref().map(|cors| cors::decide(cors, self.call.method, self.call.headers));
                let marks = match cors {
                    Some(CorsVerdict::Preflight(headers)) => {
                        let mut reply = LocalReply::new(StatusCode::OK, "cors_preflight");
                        reply.headers = headers;
                        return self.local(reply, &Rules::default(), None, exchange);
                    }
                    Some(CorsVerdict::Actual(headers)) => Some(headers),
                    _ => None,
                };
                let way = Chosen { forward, destination, matcher: matched.matcher, rules, marks };
                self.forward(way, body, exchange).await
            }
        }
    }

    /// Sends it on by a route.
    async fn forward(&self, way: Chosen<'_>, body: Incoming, mut exchange: Exchange) -> Response<Reply> {
        let Chosen { forward, destination, matcher, rules, marks } = way;
        let Some(cluster) = &destination.cluster else {
            exchange.host = Some((destination.name.host.clone(), destination.name.port));
            return self.local(LocalReply::no_cluster(), &rules, marks, exchange);
        };
        exchange.cluster = Some(cluster.clone());
        let timeout = self.timeout(forward.timeout);
        let Some(head) = self.head(forward, matcher, &rules, timeout) else {
            return self.local(LocalReply::failure(Failure::Protocol, false), &rules, marks, exchange);
        };
        if let Some(id) = head.headers.get(request::REQUEST_ID) {
            exchange.request_id(id);
        }
        let sent = rules.answer_shows_request().then(|| head.clone());
        let rules = Rules { sent: sent.as_ref(), ..rules };
        let (hash, set_cookie) = self.hash(cluster);
        let source =
            (!body.is_end_stream()).then(|| Source::new(body, self.connection.worker.settings.replay_bytes));
        exchange.source.clone_from(&source);
        let mirrored = !forward.mirrors.is_empty() && {
            mirror::send(self.connection, self.view, &forward.mirrors, &head, source.as_ref())
        };
        let sending =
            Sending { hash, ..self.sending(cluster, &forward.retry, timeout, head, source.clone()) };
        let reply = Answering { rules, marks, set_cookie, keep_source: mirrored };
        self.send(sending, reply, exchange).await
    }

    /// Sends it where it was going anyway.
    async fn unrouted(&self, direct: &Direct, body: Incoming, mut exchange: Exchange) -> Response<Reply> {
        exchange.cluster = Some(direct.cluster.clone());
        let headers = self.call.headers.clone();
        let target = self.call.path_and_query();
        let head =
            self.call.authority.parse().ok().zip(path_and_query(&target)).map(|(authority, target)| Head {
                method: method_of(self.call.method),
                authority,
                https: self.call.scheme == "https",
                target,
                headers,
                version: self.version,
                upgrade: self.asked.upgrade,
            });
        let Some(head) = head else {
            return self.local(
                LocalReply::new(StatusCode::BAD_REQUEST, "bad_authority"),
                &Rules::default(),
                None,
                exchange,
            );
        };
        let source = (!body.is_end_stream()).then(|| Source::new(body, 0));
        exchange.source.clone_from(&source);
        let sending = self.sending(&direct.cluster, &NO_RETRY, None, head, source);
        self.send(sending, Answering::default(), exchange).await
    }

    fn sending<'b>(
        &'b self,
        cluster: &'b Arc<Cluster>,
        policy: &'b RetryPolicy,
        timeout: Option<Duration>,
        head: Head,
        source: Option<Rc<Source>>,
    ) -> Sending<'b> {
        let destination = match &self.connection.target {
            Target::Address(address) => Some(*address),
            _ => None,
        };
        let (_, caller) =
            self.view.outbound(self.connection.caller).expect("a route was found for this caller");
        let worker = &self.connection.worker;
        let began = Instant::now();
        Sending { worker, caller, cluster, policy, timeout, began, head, source, hash: None, destination }
    }

    async fn send(
        &self,
        sending: Sending<'_>,
        reply: Answering<'_>,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let (source, upgrade) = (sending.source.clone(), sending.head.upgrade);
        let (timeout, began) = (sending.timeout, sending.began);
        match forward::run(sending, &mut exchange).await {
            Err(failure) => {
                let retried = exchange.retries > 0;
                self.local(LocalReply::failure(failure, retried), &reply.rules, reply.marks, exchange)
            }
            Ok(answered) => {
                if let Some(source) = source.as_ref().filter(|_| !reply.keep_source) {
                    source.forget();
                }
                if upgrade && answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return self.switch(answered, &reply, exchange);
                }
                let deadline = timeout.map(|limit| -> Deadline {
                    Box::pin(async move { forward::over(source.as_deref(), began, limit).await })
                });
                self.relay(answered, &reply, deadline, exchange)
            }
        }
    }

    /// Passes an endpoint's answer on.
    fn relay(
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
    fn switch(&self, answered: Answered, reply: &Answering<'_>, mut exchange: Exchange) -> Response<Reply> {
        let Answered { mut response, lease, guards } = answered;
        let upstream = hyper::upgrade::on(&mut response);
        let (mut parts, _) = response.into_parts();
        self.dress(&mut parts, reply, &mut exchange);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
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
        exchange.details = "via_upstream";
        parts.version = if self.version >= Version::HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
        request::strip_hop_by_hop(&mut parts.headers);
        parts.headers.insert(request::SERVICE_TIME, forward::millis_since(exchange.started).into());
        if let Some(cookie) =
            reply.set_cookie.as_deref().and_then(|cookie| HeaderValue::from_str(cookie).ok())
        {
            parts.headers.append(header::SET_COOKIE, cookie);
        }
        self.apply(&reply.rules, &mut parts.headers, parts.status);
        replace(&mut parts.headers, reply.marks.as_ref());
        parts.headers.insert(header::SERVER, SERVER);
    }

    /// Answers by ourselves, under the header rules.
    fn local(
        &self,
        reply: LocalReply,
        rules: &Rules<'_>,
        marks: Option<HeaderMap>,
        exchange: Exchange,
    ) -> Response<Reply> {
        let status = reply.status;
        let mut response = answer(reply, self.is_grpc, exchange);
        self.apply(rules, response.headers_mut(), status);
        replace(response.headers_mut(), marks.as_ref());
        response.headers_mut().insert(header::SERVER, SERVER);
        response
    }

    fn apply(&self, rules: &Rules<'_>, headers: &mut HeaderMap, status: StatusCode) {
        if rules.is_empty() {
            return;
        }
        let target = self.call.path_and_query();
        let mut facts = self.facts(&target, Some(status));
        let mut request = self.call.headers;
        // What was sent on, with what rules made of it, is what rules for the answer see.
        if let Some(head) = rules.sent {
            request = &head.headers;
            facts.path_and_query = head.target.as_str();
            facts.authority = head.authority.to_str().unwrap_or(facts.authority);
        }
        header_rules::response(rules.route, rules.destination, rules.many, headers, request, &facts);
    }

    fn facts<'b>(&'b self, target: &'b str, status: Option<StatusCode>) -> Facts<'b> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Facts {
            method: self.call.method,
            scheme: self.call.scheme,
            authority: self.call.authority,
            path_and_query: target,
            version: self.version,
            downstream: self.connection.peer,
            upstream: None,
            status,
            started_ms: u64::try_from(now.as_millis()).unwrap_or(0),
            host_name: &self.view.plan.node.name,
        }
    }

    /// Makes the head that endpoints see. `None`: a rule made something that HTTP cannot carry.
    fn head(
        &self,
        forward: &Forward,
        matcher: Option<&Matcher>,
        rules: &Rules<'_>,
        timeout: Option<Duration>,
    ) -> Option<Head> {
        let mut headers = self.call.headers.clone();
        let before = self.call.path_and_query();
        let rewritten =
            forward.rewrite.as_ref().and_then(|rules| rewrite::path(rules, matcher, self.call.path));
        let target: Cow<'_, str> = match (&rewritten, self.call.query) {
            (None, _) => Cow::Borrowed(&before),
            (Some(path), None) => Cow::Borrowed(path),
            (Some(path), Some(query)) => Cow::Owned(format!("{path}?{query}")),
        };
        if !rules.is_empty() {
            let facts = self.facts(&before, None);
            header_rules::request(rules.route, rules.destination, rules.many, &mut headers, &facts);
        }
        if rewritten.is_some() {
            headers.insert(request::ORIGINAL_PATH, HeaderValue::from_str(&before).ok()?);
        }
        let expected = forward.retry.per_try_timeout.or(timeout);
        if let Some(expected) = expected.filter(|expected| !expected.is_zero()) {
            let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
            headers.insert(request::EXPECTED_TIMEOUT, millis.into());
            if self.is_grpc {
                headers.insert(request::GRPC_TIMEOUT, request::grpc_timeout_of(millis));
            }
        }
        let rewrite = forward.rewrite.as_deref();
        let authority = header_rules::authority(rewrite, rules.route, rules.destination);
        let before = header_rules::authority_before(rewrite, rules.route, rules.destination, rules.many);
        if let Some(before) = before {
            let before = before.unwrap_or(self.call.authority);
            headers.insert(request::ORIGINAL_HOST, HeaderValue::from_str(before).ok()?);
        }
        Some(Head {
            method: method_of(self.call.method),
            authority: HeaderValue::from_str(authority.unwrap_or(self.call.authority)).ok()?,
            https: self.call.scheme == "https",
            target: path_and_query(&target)?,
            headers,
            version: self.version,
            upgrade: self.asked.upgrade,
        })
    }

    /// Returns how long it may take in all: for gRPC what the caller grants, at most the route's.
    fn timeout(&self, route: Option<Duration>) -> Option<Duration> {
        if self.asked.upgrade {
            return route;
        }
        let granted = self.is_grpc.then(|| request::grpc_timeout(self.call.headers)).flatten();
        // None is endless, says Envoy.
        let granted = granted.filter(|granted| !granted.is_zero());
        match (granted, route) {
            (Some(granted), Some(route)) => Some(granted.min(route)),
            (granted, route) => granted.or(route),
        }
    }

    /// Finds the key of consistent hashing, and the cookie that a caller without one is given.
    fn hash(&self, cluster: &Cluster) -> (Option<u64>, Option<String>) {
        let (Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. }) = &cluster.balancer else {
            return (None, None);
        };
        let source = self.connection.peer.ip();
        match balance::hash_key(policy, self.call.headers, self.call.query, source, &mut Chance) {
            HashKeyOutcome::Hash(hash) => (Some(hash), None),
            HashKeyOutcome::MakeCookie { hash, set_cookie } => (Some(hash), Some(set_cookie)),
            HashKeyOutcome::None => (None, None),
        }
    }
}

/// The header rules that apply.
#[derive(Clone, Copy, Default)]
struct Rules<'a> {
    route: Option<&'a HeaderRules>,
    destination: Option<&'a HeaderRules>,
    many: bool,
    /// What was sent on, where the answer's rules want to know.
    sent: Option<&'a Head>,
}

/// The way a request takes, with what the route says about it.
struct Chosen<'a> {
    forward: &'a Forward,
    destination: &'a WeightedCluster,
    matcher: Option<&'a Matcher>,
    rules: Rules<'a>,
    /// Headers of a cross-origin policy.
    marks: Option<HeaderMap>,
}

impl Rules<'_> {
    fn answer_shows_request(&self) -> bool {
        [self.route, self.destination].into_iter().flatten().any(HeaderRules::answer_shows_request)
    }

    fn is_empty(&self) -> bool {
        self.route.is_none() && self.destination.is_none()
    }
}

/// What is done to an answer.
#[derive(Default)]
struct Answering<'a> {
    rules: Rules<'a>,
    /// Headers of a cross-origin policy.
    marks: Option<HeaderMap>,
    set_cookie: Option<String>,
    /// A mirror still wants the body.
    keep_source: bool,
}

/// Puts headers in the place of those of the same name.
fn replace(headers: &mut HeaderMap, by: Option<&HeaderMap>) {
    for (name, value) in by.into_iter().flatten() {
        headers.insert(name, value.clone());
    }
}

fn path_and_query(target: &str) -> Option<PathAndQuery> {
    PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes())).ok()
}

/// The method was parsed from a request: it is one.
fn method_of(method: &str) -> Method {
    Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET)
}

/// What goes outside the mesh's rules is sent once.
static NO_RETRY: LazyLock<RetryPolicy> = LazyLock::new(|| RetryPolicy {
    attempts: 0,
    per_try_timeout: None,
    on: RetryOn::default(),
    status_codes: Vec::new(),
    backoff: Duration::from_millis(25),
    avoid_previous: false,
});
const SERVER: HeaderValue = HeaderValue::from_static("envoy");
