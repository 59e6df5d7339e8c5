//! The way in: hops from other hosts on the mesh port, and plain connections caught on their way to an application.
//!
//! A hop's peer is proven by its certificate before a byte of HTTP is read. Which instance a request is for is said by
//! `x-mesh-instance`, which port by the hop's server name; what is not here is refused in words the source
//! understands (`x-mesh-failure`), so that it can try elsewhere as if it had met the endpoint itself.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use ::http::header::{HeaderMap, HeaderName, HeaderValue};
use ::http::request::Parts;
use ::http::{Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use http_body::Body;
use mesh_core::identity::sni;
use mesh_core::plan::{Cluster, Door, Endpoint, LocalInstance, LocalPort, Party, UpstreamProtocol};
use mesh_core::resilience::{Failure, breaker};
use mesh_proto::registration::Protocol;
use tokio::net::TcpStream;

use super::accept::Open;
use super::body::{Inflow, Outgoing};
use super::doors::visitor::{self, ByHop, Visitor};
use super::exchange::{Exchange, Guards, Relay, Reply, Side};
use super::forward::Answered;
use super::interim::{Early, Interim};
use super::local_reply::LocalReply;
use super::measure::{self, BodyMeter, Counted};
use super::outbound::{self, Connection, Target};
use super::passthrough::Place;
use super::request::{self, HOPS, Head, INSTANCE, SERVER_NAME, SOURCE, SPEAK};
use super::server::{self, Trust};
use super::tunnel::OnSwitch;
use super::watch::{Busy, Signal, Watch};
use super::wire::{Stream, Wire};
use super::worker::{Caller, Worker};
use super::{Declared, tcp};
use crate::drain::Draining;
use crate::task;
use crate::telemetry::{Counters, Spoken};
use crate::transport::{LinkStream, Peer};

mod lane;
mod mesh_port;

pub(super) use mesh_port::{QUIC_LEAVES_WITHIN, accept, accept_quic};

/// A connection from another host.
struct Hop {
    worker: Rc<Worker>,
    peer: Peer,
    /// The service port it asks for.
    port: u16,
    /// The service it asks for.
    host: Box<str>,
    caller: Rc<Caller>,
    watch: Arc<Watch>,
    /// What its requests are told as.
    connection: Rc<Connection>,
    /// Where they are counted.
    counted: RefCell<Vec<CountedAs>>,
}

/// Where requests of one caller over a hop to one instance are counted.
struct CountedAs {
    told: Option<HeaderValue>,
    instance: Arc<LocalInstance>,
    spoken: Spoken,
    counted: Rc<Counted>,
}

async fn serve(worker: Rc<Worker>, peer: Peer, stream: LinkStream, leaving: Option<Draining>) {
    let _open = Open::count(&worker);
    let Some(hop) = Hop::of(&worker, peer).map(Rc::new) else { return };
    let watch = hop.watch.clone();
    let served = worker.clone();
    let wire = Wire::new(Stream::Hop(stream));
    let handle = |request, early| handle(hop.clone(), request, early);
    let served = server::http2(&served, wire, &watch, Trust::Peer, handle);
    let Some(mut leaving) = leaving else { return served.await };
    let mut served = pin!(served);
    tokio::select! {
        () = &mut served => {}
        () = leaving.started() => {
            watch.tell(Signal::Leave);
            served.await;
        }
    }
}

/// Hands a request to the instance here that it is for.
async fn handle(hop: Rc<Hop>, mut request: Request<Inflow>, early: Arc<Early>) -> Response<Reply> {
    let busy = Busy::new(&hop.watch);
    hop.worker.intake.took(HOP_REQUEST_BYTES);
    if hop.worker.intake.is_short() {
        Counters::add(&hop.worker.shard.counters.shed_requests_total);
        return LocalReply::overloaded().response(false);
    }
    let view = hop.worker.view();
    let inbound = &view.plan.inbound;
    let instance = match request.headers().get(INSTANCE).map(HeaderValue::to_str) {
        Some(Ok(id)) => inbound.instances.get(id),
        Some(Err(_)) => None,
        None => inbound.services.get(&hop.host).and_then(|instances| instances.first()),
    };
    let found = instance.and_then(|instance| Some((instance, hop.port(instance)?)));
    let Some((instance, port)) = found else {
        hop.refuse(&request.headers().get(INSTANCE));
        return unreachable(Failure::RefusedStream);
    };
    Counters::add(&hop.worker.shard.counters.inbound_requests_total);
    if let Some(door) = visitor::gateway_at(&view.plan, port.target) {
        return hop.visit(&door, request, early, busy).await;
    }
    if request.method() == Method::CONNECT {
        return hop.open((instance, port), &mut request, busy).await;
    }
    let (mut parts, body) = request.into_parts();
    let spoken = if request::is_grpc(&parts.headers) { Spoken::Grpc } else { Spoken::Http };
    let counted = hop.counted(parts.headers.get(SOURCE), instance, spoken);
    let mut exchange =
        Exchange::begin(&hop.connection, Side::Application(counted), &parts, view.plan.revision);
    // That counts as under way, too.
    drop(busy);
    exchange.host = Some((instance.host.clone(), hop.port));
    if let Some(trace) = &exchange.trace {
        trace.inject(&mut parts.headers);
    }
    match hop.forward(port, (parts, body), &early, &mut exchange).await {
        Ok(answered) => answered.relay(exchange),
        Err(failure) => {
            let reply = LocalReply::failure(failure, false);
            exchange.status = reply.status.as_u16();
            exchange.details = reply.details;
            if let Some(flag) = reply.flag {
                exchange.raise(flag);
            }
            unreachable(failure)
        }
    }
}

impl Hop {
    /// Reads which service a peer asks for; `None`: none, and it was told.
    fn of(worker: &Rc<Worker>, peer: Peer) -> Option<Self> {
        let asked = peer.sni.as_deref().and_then(sni::parse).map(|asked| (asked.port, Box::from(asked.host)));
        let Some((port, host)) = asked else {
            Counters::add(&worker.shard.counters.refused_hops_total);
            tracing::info!(peer = %peer.address, sni = ?peer.sni, "hop refused: not the name of a service");
            return None;
        };
        let watch = worker.watch();
        // A peer may open a connection before it needs it.
        watch.settled();
        let caller = worker.inbound.clone();
        let connection = Rc::new(Connection {
            worker: worker.clone(),
            caller: 0,
            peer: peer.address,
            local: peer.local,
            target: Target::Port(port),
            is_proxy: false,
            edge: None,
            watch: watch.clone(),
            server_name: peer.sni.as_deref().map(Into::into),
            counted: RefCell::default(),
        });
        let counted = RefCell::default();
        Some(Self { worker: worker.clone(), peer, port, host, caller, watch, connection, counted })
    }

    /// Finds where requests to an instance are counted; `told`: what the caller says of itself.
    fn counted(
        &self,
        told: Option<&HeaderValue>,
        instance: &Arc<LocalInstance>,
        spoken: Spoken,
    ) -> Rc<Counted> {
        let mut all = self.counted.borrow_mut();
        let same = |known: &&CountedAs| {
            known.spoken == spoken && Arc::ptr_eq(&known.instance, instance) && known.told.as_ref() == told
        };
        if let Some(known) = all.iter().find(same) {
            return known.counted.clone();
        }
        // Of instances that are no more, or of a peer that says something else each time.
        if all.len() >= COUNTED_AS {
            all.clear();
        }
        let counted = Rc::new(Counted::inbound(&self.worker, &self.who(told), Some(instance), spoken));
        let (told, instance) = (told.cloned(), instance.clone());
        all.push(CountedAs { told, instance, spoken, counted: counted.clone() });
        counted
    }

    /// Who calls: what its certificate proves, and what it says besides.
    fn who(&self, told: Option<&HeaderValue>) -> measure::From {
        let told = told.and_then(|told| told.to_str().ok()).unwrap_or_default();
        let party = self.peer.identity.as_ref().map(|identity| Party::told(told, identity));
        measure::From { party: party.unwrap_or_default(), mutual: true }
    }

    /// Finds the port of an instance, where it is one of the service asked for.
    fn port<'a>(&self, instance: &'a LocalInstance) -> Option<&'a LocalPort> {
        (*instance.host == *self.host).then(|| instance.port(self.port)).flatten()
    }

    fn refuse(&self, instance: &dyn std::fmt::Debug) {
        Counters::add(&self.worker.shard.counters.refused_hops_total);
        tracing::info!(
            peer = %self.peer.address,
            identity = ?self.peer.identity.as_ref().map(ToString::to_string),
            host = %self.host,
            port = self.port,
            ?instance,
            "hop refused: no such instance here"
        );
    }

    /// Opens a tunnel to the application: connects first, so that a failure can still be told.
    async fn open(
        &self,
        (instance, port): (&Arc<LocalInstance>, &LocalPort),
        request: &mut Request<Inflow>,
        busy: Busy,
    ) -> Response<Reply> {
        let switch = OnSwitch::of(request);
        let (cluster, _) = self.application(port, UpstreamProtocol::Tcp);
        let mut wanted = self.wanted(instance);
        let reached = match tcp::reach(&self.worker, &self.caller, &cluster, &mut wanted).await {
            Ok(reached) => reached,
            Err(failure) => return unreachable(failure),
        };
        let worker = self.worker.clone();
        task::spawn_local("hop tunnel", async move {
            let _busy = busy;
            match switch.wire().await {
                Ok(mut wire) => tcp::join(&worker, &mut wire, reached).await,
                Err(error) => tracing::debug!(%error, "the source left before its tunnel began"),
            }
        });
        Response::new(Reply::Empty)
    }

    /// What an opaque connection to an instance asks for.
    fn wanted(&self, instance: &Arc<LocalInstance>) -> tcp::Wanted<'_> {
        let from = self.who(None);
        let whose = tcp::Whose::Application(Some(&instance.telling), &from);
        let ends = (self.peer.address, self.peer.local);
        let line = tcp::Line::begin(&self.worker, &whose, ends, self.peer.sni.as_deref());
        tcp::Wanted::to_instance(self.peer.address, from, Some(instance.clone()), line)
    }

    /// Takes a request to a gateway of this host, without the detour through its socket.
    async fn visit(
        &self,
        door: &Arc<Door>,
        mut request: Request<Inflow>,
        early: Arc<Early>,
        busy: Busy,
    ) -> Response<Reply> {
        let named = request.headers_mut().remove(SERVER_NAME);
        let server_name = named.as_ref().and_then(|name| name.to_str().ok());
        let shown = self.shown(door.seat);
        if request.method() == Method::CONNECT {
            let switch = OnSwitch::of(&mut request);
            let (worker, peer, door) = (self.worker.clone(), self.peer.address, door.clone());
            let server_name = server_name.map(str::to_owned);
            task::spawn_local("hop to a gateway", async move {
                let _busy = busy;
                match switch.wire().await {
                    Ok(wire) => {
                        let visitor = Visitor { worker, peer, seat: door.seat };
                        visitor.enter_by_hop(&door, server_name.as_deref(), shown, wire).await;
                    }
                    Err(error) => tracing::debug!(%error, "the source left before its tunnel began"),
                }
            });
            return Response::new(Reply::Empty);
        }
        let by = ByHop { peer: self.peer.address, server_name, shown, watch: &self.watch };
        let answer = visitor::answer(&self.worker, door, by, request, Some(early)).await;
        drop(busy);
        answer.unwrap_or_else(|| unreachable(Failure::RefusedStream))
    }

    /// What services behind a gateway are told of the certificate of this hop.
    fn shown(&self, seat: usize) -> Option<HeaderValue> {
        let own = self.worker.view().outbound(seat).and_then(|(_, caller)| caller.identity.clone());
        let by = own.map(|own| format!("By={own};")).unwrap_or_default();
        let peer = self.peer.identity.as_ref()?;
        HeaderValue::from_str(&format!("{by}Subject=\"\";URI={peer}")).ok()
    }

    /// Finds the application behind a port, with the bounds that its `Sidecar` gives it.
    fn application(&self, port: &LocalPort, protocol: UpstreamProtocol) -> (Arc<Cluster>, Endpoint) {
        if let Some(bounds) = &port.bounds
            && let Some(endpoint) = bounds.endpoints.all.first()
        {
            return (bounds.clone(), endpoint.clone());
        }
        let direct = self.worker.passthrough.to(Place::Local(port.target), protocol);
        (direct.cluster.clone(), direct.endpoint.clone())
    }

    async fn forward(
        &self,
        port: &LocalPort,
        (parts, body): (Parts, Inflow),
        early: &Arc<Early>,
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        let http2 =
            port.protocol.upstream_is_http2() || parts.headers.get(SPEAK).is_some_and(|speak| speak == "h2");
        let protocol = if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
        let (cluster, endpoint) = self.application(port, protocol);
        let permit = breaker::admit_request(&cluster).map_err(|_| Failure::Overflow)?;
        let pool = self.worker.pools.pool(&self.worker, &self.caller, &cluster, &endpoint, http2, None);
        exchange.answered_by(&pool.via, pool.http2);
        exchange.attempts = 1;
        let mut headers = parts.headers;
        let hops = request::hops(&headers);
        for ours in [INSTANCE, SPEAK, SERVER_NAME, HOPS, SOURCE] {
            headers.remove(ours);
        }
        let authority = parts.uri.authority().ok_or(Failure::Protocol)?.as_str();
        let head = Head {
            method: parts.method,
            authority: HeaderValue::from_str(authority).map_err(|_| Failure::Protocol)?,
            https: parts.uri.scheme_str() == Some("https"),
            target: parts.uri.path_and_query().cloned().ok_or(Failure::Protocol)?,
            headers: HeaderMap::new(),
            version: parts.version,
            upgrade: false,
            hops,
        };
        let body = if body.is_end_stream() {
            Outgoing::Empty
        } else {
            let meter = Rc::new(BodyMeter { messages: exchange.messages(), ..BodyMeter::default() });
            exchange.body = Some(meter.clone());
            Outgoing::Measured(body, meter)
        };
        let in_flight = endpoint.state.enter();
        let mut request = head.request(headers, &pool, body).ok_or(Failure::Protocol)?;
        let interim = Interim::http2(early);
        loop {
            let checked = pool.checkout(&cluster).await;
            let mut lease = checked.inspect_err(|failure| exchange.not_connected(*failure, &pool))?;
            exchange.sent_from(|| lease.local_address());
            match lease.send(request, Some(&interim)).await {
                Ok(response) => {
                    let request = Some(permit);
                    let guards = Guards { request, in_flight: Some(in_flight), ..Guards::default() };
                    return Ok(Answered { response, lease, guards });
                }
                Err(unanswered) => match unanswered.unsent {
                    // An idle connection that had died meanwhile; there is an end of them.
                    Some(unsent) if lease.reused => request = unsent,
                    _ => return Err(unanswered.failure),
                },
            }
        }
    }
}

impl Answered {
    /// Passes an application's answer on to the source.
    fn relay(self, mut exchange: Exchange) -> Response<Reply> {
        let Self { response, lease, guards } = self;
        let (mut parts, body) = response.into_parts();
        request::strip_hop_by_hop(&mut parts.headers);
        parts.headers.remove(FAILURE);
        parts.version = Version::HTTP_2;
        exchange.status = parts.status.as_u16();
        exchange.upstream_time = Some(exchange.started.elapsed());
        exchange.details = "via_upstream";
        exchange.note_grpc_status(&parts.headers);
        exchange.answered(&parts.headers);
        let (lease, exchange) = (Some(lease), Some(exchange));
        Response::from_parts(parts, Reply::relay(Relay { body, lease, exchange, deadline: None, guards }))
    }
}

/// Tells the source why its request met no application. A limit reached here is an answer, as in Envoy: the source
/// passes it on.
fn unreachable(failure: Failure) -> Response<Reply> {
    if failure == Failure::Overflow {
        return LocalReply::failure(failure, false).response(false);
    }
    let text = word_of(failure);
    let mut response = Response::new(Reply::whole(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(FAILURE, HeaderValue::from_static(text));
    response
}

/// Reads what the other host's meshd says about a request that met no application.
pub(super) fn failure_of(headers: &HeaderMap) -> Option<Failure> {
    Some(failure_in(headers.get(FAILURE)?.as_bytes()))
}

/// Reads the word for why a request, or a connection, met no application.
pub(super) fn failure_in(word: &[u8]) -> Failure {
    let known = FAILURES.iter().find(|(_, known)| word == known.as_bytes());
    known.map_or(Failure::ConnectionLost, |(failure, _)| *failure)
}

fn word_of(failure: Failure) -> &'static str {
    FAILURES.iter().find(|(known, _)| *known == failure).map_or("connection-lost", |(_, word)| word)
}

/// What a request over a hop costs, roughly: its bytes are not looked at one by one.
const HOP_REQUEST_BYTES: usize = 8 * 1024;
/// Callers and instances of one hop that are remembered: most hops have one of each.
const COUNTED_AS: usize = 32;
/// Why a request met no application; never passed on to callers.
const FAILURE: HeaderName = HeaderName::from_static("x-mesh-failure");

const FAILURES: [(Failure, &str); 8] = [
    (Failure::RefusedStream, "refused"),
    (Failure::GoAway, "refused"),
    (Failure::Connect, "connect"),
    (Failure::ConnectTimeout, "connect-timeout"),
    (Failure::ResetBeforeRequest, "reset-before-request"),
    (Failure::RemoteReset, "reset"),
    (Failure::Protocol, "protocol"),
    (Failure::ConnectionLost, "connection-lost"),
];

/// Carries a plain connection that was caught on its way in: to the application that listens on its port, else to
/// where it was going. Nothing is asked of the caller (Istio's `PERMISSIVE`). Where the port carries HTTP, requests
/// pass the guard and are counted like all others. The bounds of a `Sidecar` hold as they do for hops.
pub(super) async fn plain(worker: Rc<Worker>, stream: TcpStream, destination: SocketAddr, peer: SocketAddr) {
    let view = worker.view();
    let found = view.plan.inbound.targets.get(&destination.port());
    let (instance, port) = found.map(|(instance, port)| (instance.clone(), port.clone())).unzip();
    // A connection may outlive many Plans.
    drop(view);
    let address = port.as_ref().map_or(destination, |port| port.target);
    let (declared, protocol) = match port.as_ref().map(|port| port.protocol) {
        Some(protocol) if protocol.upstream_is_http2() => (Declared::Http, UpstreamProtocol::Http2),
        Some(protocol) if protocol.is_http() => (Declared::Http, UpstreamProtocol::Http1),
        Some(Protocol::Auto) => (Declared::Auto, UpstreamProtocol::AsClient),
        _ => (Declared::Tcp, UpstreamProtocol::Tcp),
    };
    let bounds = port.and_then(|port| port.bounds);
    let target = Target::Local { address, protocol, bounds, instance };
    outbound::carry(worker, 0, peer, target, None, declared, Wire::new(Stream::Tcp(stream))).await;
}
