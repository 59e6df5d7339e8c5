//! The life of a request: one step per line in [`handle`]; where it may go is decided by `core`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ::http::request::Parts;
use ::http::uri::Scheme;
use ::http::{Method, Request, Response, StatusCode, Uri, Version, header};
use mesh_core::plan::{Cluster, UnknownHosts, UpstreamProtocol, VirtualHost};
use mesh_core::route::{self, Call, Matched, path};
use mesh_core::wire::guard;

use super::body::Inflow;
use super::exchange::{Exchange, Reply, Side};
use super::interim::Early;
use super::local_reply::LocalReply;
use super::outbound::{Connection, Edge, Target};
use super::passthrough::Place;
use super::watch::{Switch, Watch};
use super::worker::{Caller, View};
use super::{request, tunnel};
use crate::telemetry::Spoken;
use asked::Asked;
use reply::{answer, refuse, shed};

mod asked;
mod reply;
mod routed;

/// Answers a request; `early` is where a stream of HTTP/2 is told what comes before its answer. Every way out ends in
/// one line of the access log and one count.
pub(crate) async fn handle(
    connection: Rc<Connection>,
    mut request: Request<Inflow>,
    early: Option<Arc<Early>>,
) -> Response<Reply> {
    let may_switch = request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
    let switch = may_switch.then(|| tunnel::OnSwitch::of(&mut request));
    let _decided = may_switch.then(|| Decided(connection.watch.clone()));
    let view = connection.worker.view();
    let refused = connection.watch.next_request();
    let (mut parts, body) = request.into_parts();
    let caller = connection.caller(&view);
    let is_grpc = request::is_grpc(&parts.headers);
    let side = side(&connection, caller.as_ref(), is_grpc);
    let mut exchange = Exchange::begin(&connection, side, &parts, view.plan.revision);
    let limits = &connection.worker.settings.limits;
    let check = || guard::check(&parts.method, &parts.uri, parts.version, &parts.headers, limits);
    if let Some(refusal) = refused.or_else(|| check().err()) {
        return refuse(refusal, exchange);
    }
    if connection.watch.intake.is_short() {
        return shed(is_grpc, exchange);
    }
    if let Some(proof) = proof(&connection, &parts) {
        return answer(proof, false, exchange);
    }
    if parts.method == Method::CONNECT {
        return connect(&connection, &view, &parts.uri, switch, exchange);
    }
    let asked = match Asked::of(&connection, &mut parts) {
        Ok(asked) => asked,
        Err(reply) => return answer(*reply, is_grpc, exchange),
    };
    let (target, query) = path::parts(asked.target.as_str());
    let how = view.outbound(connection.caller).map_or_else(Default::default, |(outbound, _)| outbound.paths);
    let Ok(normal) = path::bring(target, how) else {
        return answer(
            LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed"),
            is_grpc,
            exchange,
        );
    };
    let scheme = route::scheme_of(asked.scheme.as_ref().map(Scheme::as_str), &parts.headers);
    request::add_standard(&mut parts.headers);
    if let Some(trace) = &exchange.trace {
        trace.inject(&mut parts.headers);
    }
    let call = Call {
        method: asked.method.as_str(),
        scheme,
        authority: asked.authority(),
        path: &normal,
        query,
        headers: &parts.headers,
    };
    let incoming = Inbound {
        connection: &connection,
        view: &view,
        caller: caller.as_ref(),
        asked: &asked,
        call,
        is_grpc,
        version: parts.version,
        switch: Cell::new(switch),
        early,
        started: exchange.started,
    };
    match incoming.find() {
        Ok(Found::Route(host, matched)) => {
            exchange.virtual_host = Some(host.clone());
            exchange.follows(&matched.route.origin.name);
            incoming.routed(matched, body, exchange).await
        }
        Ok(Found::Unknown(cluster)) => incoming.unrouted(&cluster, body, exchange).await,
        Err(reply) => {
            let mut response = answer(*reply, is_grpc, exchange);
            incoming.end_switch(&mut response);
            response
        }
    }
}

/// At which end of the call this is.
fn side(connection: &Rc<Connection>, caller: Option<&Rc<Caller>>, is_grpc: bool) -> Side {
    match &connection.target {
        Target::Local { instance, .. } => {
            let spoken = if is_grpc { Spoken::Grpc } else { Spoken::Http };
            Side::Application(connection.inbound(instance.as_deref(), spoken))
        }
        _ => Side::Caller(caller.cloned()),
    }
}

/// Answers CONNECT: the connection becomes a tunnel to where it asks for, or it is told why not.
fn connect(
    connection: &Rc<Connection>,
    view: &View,
    to: &Uri,
    switch: Option<tunnel::OnSwitch>,
    mut exchange: Exchange,
) -> Response<Reply> {
    match tunnel::connect(connection, view, to, switch) {
        Ok(()) => {
            connection.watch.decide(Switch::Switched);
            exchange.status = StatusCode::OK.as_u16();
            exchange.details = "connect";
            // Without a length: what follows is the tunnel.
            Response::new(Reply::Empty)
        }
        Err(reply) => answer(*reply, false, exchange),
    }
}

/// Answers an authority that wants to see that a name leads to this gateway (ACME, `http-01`): before any rule, since
/// one may send all that is plain to HTTPS.
fn proof(connection: &Connection, parts: &Parts) -> Option<LocalReply> {
    if connection.edge != Some(Edge::Plain) || parts.method != Method::GET {
        return None;
    }
    connection.worker.settings.challenges.answer(parts.uri.path()).map(|content| LocalReply::proof(&content))
}

/// A request to switch protocols; however it ends, bytes behind it are held no longer.
struct Decided(Arc<Watch>);

impl Drop for Decided {
    fn drop(&mut self) {
        self.0.decide(Switch::Stay);
    }
}

/// A request with all that decides about it.
struct Inbound<'a> {
    connection: &'a Rc<Connection>,
    view: &'a View,
    caller: Option<&'a Rc<Caller>>,
    asked: &'a Asked,
    call: Call<'a>,
    is_grpc: bool,
    version: Version,
    /// The caller's bytes after a switch of protocols.
    switch: Cell<Option<tunnel::OnSwitch>>,
    /// HTTP/2: what its stream is told before the answer.
    early: Option<Arc<Early>>,
    started: Instant,
}

/// Where a request goes.
enum Found<'a> {
    Route(&'a Arc<VirtualHost>, Matched<'a>),
    Unknown(Arc<Cluster>),
}

impl<'a> Inbound<'a> {
    /// Finds the route; a host nobody declared goes where it was going, or is refused.
    fn find(&self) -> Result<Found<'a>, Box<LocalReply>> {
        if let Target::Local { address, protocol, bounds, .. } = &self.connection.target {
            let passthrough = &self.connection.worker.passthrough;
            let direct = || passthrough.to(Place::Local(*address), *protocol).cluster.clone();
            return Ok(Found::Unknown(bounds.clone().unwrap_or_else(direct)));
        }
        let Some((outbound, _)) = self.view.outbound(self.connection.caller) else {
            // Of a visitor: the gateway is gone, its connection is not yet.
            let is_visitor = self.connection.edge.is_some();
            let reply = if is_visitor { LocalReply::no_route() } else { LocalReply::unknown_host() };
            return Err(Box::new(reply));
        };
        let table = outbound.ports.get(&self.asked.port);
        let host = table.and_then(|table| route::find_host(table, self.call.authority));
        if let Some(host) = host {
            let matched = route::route(host, &self.call).ok_or_else(|| Box::new(LocalReply::no_route()))?;
            return Ok(Found::Route(host, matched));
        }
        match outbound.unknown {
            UnknownHosts::Allow => {}
            UnknownHosts::Refuse => return Err(Box::new(LocalReply::unknown_host())),
            UnknownHosts::NotFound => return Err(Box::new(LocalReply::no_route())),
        }
        if let Some(proxy) = &outbound.egress_proxy {
            let to = proxy.tcp.rules.first().and_then(|rule| rule.destinations.first());
            let cluster = to.and_then(|to| to.cluster.clone());
            return cluster.map(Found::Unknown).ok_or_else(|| Box::new(LocalReply::no_cluster()));
        }
        let place = if let Target::Address(address) = &self.connection.target {
            Place::Address(*address)
        } else {
            let host = route::host_of(self.call.authority);
            Place::Name(host.trim_matches(['[', ']']).into(), self.asked.port)
        };
        let direct = self.connection.worker.passthrough.to(place, UpstreamProtocol::AsClient);
        Ok(Found::Unknown(direct.cluster.clone()))
    }
}
