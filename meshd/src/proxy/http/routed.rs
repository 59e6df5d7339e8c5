//! Following a route: faults, cross-origin policy, then an answer of our own or an endpoint's.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::uri::PathAndQuery;
use ::http::{Response, StatusCode, Version};
use bytes::Bytes;
use http_body::Body;
use mesh_core::balance::{self, HashKeyOutcome};
use mesh_core::plan::{Action, Balancer, Cluster, Forward, Matcher, RetryOn, RetryPolicy, WeightedCluster};
use mesh_core::resilience::{Failure, Flag, fault};
use mesh_core::route::cors::{self, CorsVerdict};
use mesh_core::route::headers as header_rules;
use mesh_core::route::{self, Call, Matched, rewrite};

use super::super::body::{BodyLimits, Inflow, Source};
use super::super::exchange::{Deadline, Exchange, Reply};
use super::super::forward::{self, Sending};
use super::super::interim::{Hold, Interim};
use super::super::local_reply::LocalReply;
use super::super::mirror;
use super::super::outbound::Target;
use super::super::request::{self, Head};
use super::super::worker::Chance;
use super::Inbound;
use super::reply::{Answering, Rules, refuse};

impl Inbound<'_> {
    /// Follows a route.
    pub(super) async fn routed(
        &self,
        matched: Matched<'_>,
        body: Inflow,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let route = matched.route;
        // Chosen first: its header rules hold for faults, too.
        let chosen = match &route.action {
            Action::Forward(forward) => {
                Some((forward, route::split(&forward.destinations, forward.total_weight, &mut Chance)))
            }
            Action::Direct(_) | Action::Redirect(_) => None,
        };
        let route_name = matched.route_name();
        let rules = Rules {
            route: route.headers.as_deref(),
            destination: chosen.and_then(|(_, destination)| destination.headers.as_deref()),
            many: chosen.is_some_and(|(forward, _)| forward.destinations.len() > 1),
            sent: None,
            route_name: &route_name,
            cluster: chosen
                .and_then(|(_, destination)| destination.cluster.as_ref())
                .map(|cluster| &cluster.name),
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
                if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
                    let Call { scheme, authority, .. } = self.call;
                    let own = format!("{scheme}://{authority}{}", self.call.path_and_query());
                    if let Ok(own) = HeaderValue::from_str(&own) {
                        reply.headers.insert(header::LOCATION, own);
                    }
                }
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
    async fn forward(&self, way: Chosen<'_>, body: Inflow, mut exchange: Exchange) -> Response<Reply> {
        let Chosen { forward, destination, matcher, rules, marks } = way;
        let Some(cluster) = &destination.cluster else {
            exchange.host = Some((destination.name.host.clone(), destination.name.port));
            return self.local(LocalReply::no_cluster(), &rules, marks.as_ref(), exchange);
        };
        let addressed = cluster.addressed();
        let cluster = addressed.as_ref().unwrap_or(cluster);
        exchange.cluster = Some(cluster.clone());
        let timeout = self.timeout(forward.timeout);
        let Some(head) = self.head(forward, matcher, &rules, timeout) else {
            return self.local(
                LocalReply::failure(Failure::Protocol, false),
                &rules,
                marks.as_ref(),
                exchange,
            );
        };
        if let Some(id) = head.headers.get(request::REQUEST_ID) {
            exchange.request_id(id);
        }
        let sent = rules.answer_shows_request().then(|| head.clone());
        let rules = Rules { sent: sent.as_ref(), ..rules };
        let (hash, set_cookie) = self.hash(cluster, &head);
        let source = self.source(body, self.connection.worker.settings.replay_bytes, &exchange);
        exchange.source.clone_from(&source);
        let mirrored = !forward.mirrors.is_empty() && {
            mirror::send(self.connection, self.view, &forward.mirrors, &head, source.as_ref())
        };
        let again = || self.head(forward, matcher, &rules, timeout).map(|head| head.headers);
        let sending = self.sending(cluster, &forward.retry, timeout, (head, &again), source.clone());
        let mut sending = Sending { hash, ..sending };
        let reply = Answering { rules, marks, set_cookie, keep_source: mirrored };
        self.send(&mut sending, reply, exchange).await
    }

    /// Sends it where it was going anyway.
    pub(super) async fn unrouted(
        &self,
        cluster: &Arc<Cluster>,
        body: Inflow,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let addressed = cluster.addressed();
        let cluster = addressed.as_ref().unwrap_or(cluster);
        exchange.cluster = Some(cluster.clone());
        let mut headers = self.call.headers.clone();
        headers.insert(request::ATTEMPT_COUNT, request::number(1));
        let head = self.target(&self.call.path_and_query()).map(|target| Head {
            method: self.asked.method.clone(),
            authority: self.asked.authority.clone(),
            https: self.call.scheme == "https",
            target,
            headers,
            version: self.version,
            upgrade: self.asked.upgrade,
            hops: self.asked.hops.saturating_add(1),
        });
        let Some(head) = head else {
            return self.local(
                LocalReply::new(StatusCode::BAD_REQUEST, "bad_authority"),
                &Rules::default(),
                None,
                exchange,
            );
        };
        if let Some(id) = head.headers.get(request::REQUEST_ID) {
            exchange.request_id(id);
        }
        if !exchange.is_inbound {
            exchange.follows("allow_any");
        }
        let source = self.source(body, 0, &exchange);
        exchange.source.clone_from(&source);
        let again = || Some(self.call.headers.clone());
        let mut sending = self.sending(cluster, &NO_RETRY, None, (head, &again), source);
        self.send(&mut sending, Answering::default(), exchange).await
    }

    /// Takes the body in, where there is one. What gRPC streams may take its time.
    fn source(&self, body: Inflow, replay_bytes: usize, exchange: &Exchange) -> Option<Rc<Source>> {
        let settings = &self.connection.worker.settings;
        let limits = BodyLimits {
            replay_bytes,
            trailer_bytes: settings.limits.trailer_bytes,
            pace: (!self.is_grpc).then_some((settings.body_rate, settings.body_timeout)),
        };
        let waits = self.version == Version::HTTP_11 && self.call.headers.contains_key(header::EXPECT);
        let watch = &self.connection.watch;
        (!body.is_end_stream())
            .then(|| Source::new(body, limits, waits.then(Hold::new), watch, exchange.messages()))
    }

    fn sending<'b>(
        &'b self,
        cluster: &'b Arc<Cluster>,
        policy: &'b RetryPolicy,
        timeout: Option<Duration>,
        (head, again): (Head, &'b dyn Fn() -> Option<HeaderMap>),
        source: Option<Rc<Source>>,
    ) -> Sending<'b> {
        let destination = match &self.connection.target {
            Target::Address(address) => Some(*address),
            _ => None,
        };
        let caller = self.caller.expect("a route was found for this caller");
        let worker = &self.connection.worker;
        let (began, peer) = (Instant::now(), self.connection.peer);
        let interim = match (&self.early, self.version) {
            (Some(early), _) => Some(Interim::http2(early)),
            (None, Version::HTTP_11) => {
                let asked = source.as_ref().and_then(|source| source.asked());
                Some(Interim::http1(&self.connection.watch, asked))
            }
            _ => None,
        };
        Sending {
            worker,
            view: self.view,
            caller,
            cluster,
            policy,
            timeout,
            began,
            head,
            again,
            source,
            hash: None,
            interim,
            peer,
            destination,
            here: self.connection.local,
        }
    }

    async fn send(
        &self,
        sending: &mut Sending<'_>,
        reply: Answering<'_>,
        mut exchange: Exchange,
    ) -> Response<Reply> {
        let (source, upgrade) = (sending.source.clone(), sending.head.upgrade);
        let (timeout, began) = (sending.timeout, sending.began);
        let result = forward::run(sending, &mut exchange).await;
        self.connection.watch.interim_ends();
        match result {
            Err(failure) => {
                let broken = source.as_ref().and_then(|source| source.refusal());
                if let Some(refusal) = self.connection.watch.refused().or(broken) {
                    return refuse(refusal, exchange);
                }
                let retried = exchange.retries > 0;
                self.local(
                    LocalReply::failure(failure, retried),
                    &reply.rules,
                    reply.marks.as_ref(),
                    exchange,
                )
            }
            Ok(answered) => {
                if let Some(source) = source.as_ref().filter(|_| !reply.keep_source) {
                    source.forget();
                }
                if upgrade && answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return self.switch(answered, &reply, exchange);
                }
                // What was not asked for may come nevertheless, or not.
                let is_unread = source.as_ref().is_some_and(|source| source.is_held());
                let deadline = timeout.map(|limit| Deadline::new(source, began, limit));
                let mut response = self.relay(answered, &reply, deadline, exchange);
                if is_unread {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
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
        // Before the rules, which may read and change it.
        headers.insert(request::ATTEMPT_COUNT, request::number(1));
        let before = self.call.path_and_query();
        let rewritten =
            forward.rewrite.as_ref().and_then(|rules| rewrite::path(rules, matcher, self.call.path));
        let target: Cow<'_, str> = match (&rewritten, self.call.query) {
            (None, _) => Cow::Borrowed(&before),
            (Some(path), None) => Cow::Borrowed(path),
            (Some(path), Some(query)) => Cow::Owned(format!("{path}?{query}")),
        };
        if !rules.is_empty() {
            let facts = self.facts(&before, rules);
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
            method: self.asked.method.clone(),
            authority: match authority {
                Some(authority) => HeaderValue::from_str(authority).ok()?,
                None => self.asked.authority.clone(),
            },
            https: self.call.scheme == "https",
            target: self.target(&target)?,
            headers,
            version: self.version,
            upgrade: self.asked.upgrade,
            hops: self.asked.hops.saturating_add(1),
        })
    }

    /// Makes a target of path and query; where it is the caller's own, there is nothing to make.
    fn target(&self, target: &str) -> Option<PathAndQuery> {
        if target == self.asked.target.as_str() {
            return Some(self.asked.target.clone());
        }
        PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes())).ok()
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

    /// Finds the key of consistent hashing in what is sent on, and the cookie that a caller without one is given.
    fn hash(&self, cluster: &Cluster, head: &Head) -> (Option<u64>, Option<String>) {
        let (Balancer::RingHash { policy, .. } | Balancer::Maglev { policy, .. }) = &cluster.balancer else {
            return (None, None);
        };
        let source = self.remote().ip();
        let sent = Call {
            method: head.method.as_str(),
            scheme: if head.https { "https" } else { "http" },
            authority: head.authority.to_str().unwrap_or_default(),
            path: head.target.path(),
            query: head.target.query(),
            headers: &head.headers,
        };
        match balance::hash_key(policy, &sent, source, &mut Chance) {
            HashKeyOutcome::Hash(hash) => (Some(hash), None),
            HashKeyOutcome::MakeCookie { hash, set_cookie } => (Some(hash), Some(set_cookie)),
            HashKeyOutcome::None => (None, None),
        }
    }
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

/// What goes outside the mesh's rules is sent once.
static NO_RETRY: LazyLock<RetryPolicy> = LazyLock::new(|| RetryPolicy {
    attempts: 0,
    per_try_timeout: None,
    on: RetryOn::default(),
    status_codes: Vec::new(),
    backoff: Duration::from_millis(25),
    avoid_previous: false,
    other_localities: false,
});
