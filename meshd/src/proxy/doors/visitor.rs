//! A visitor of a gateway: which of its servers it is for, what it is shown, and what is inside.
//!
//! Visitors come over the network, or by a hop that asks for a service whose instance is the gateway: those have shown a
//! certificate of the mesh already, so that servers with `ISTIO_MUTUAL` take them as they are.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, Request, Response};
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{Cluster, Door, DoorKind, Doors, GatewayDoor, Inside, Plan, ServerTls, TlsServer, Via};
use mesh_core::route;
use mesh_core::wire::client_hello::{self, Parsed};
use mesh_core::wire::proxy_header;
use mesh_core::wire::sniff::{self, Sniff, sniff};
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::super::body::Inflow;
use super::super::exchange::Reply;
use super::super::interim::Early;
use super::super::outbound::{self, Connection, Edge, Opaque, Target};
use super::super::watch::Watch;
use super::super::wire::{Stream, Wire};
use super::super::worker::{Chance, Worker};
use super::super::{Declared, http as requests, tcp};
use crate::telemetry::Counters;
use crate::transport::{Protocol, Terminated};

/// A visitor of a gateway.
pub(in crate::proxy) struct Visitor {
    pub(in crate::proxy) worker: Rc<Worker>,
    /// Where it is.
    pub(in crate::proxy) peer: SocketAddr,
    /// Who the gateway is, for connections that are no requests.
    pub(in crate::proxy) seat: usize,
}

/// Finds the gateway that a hop to one of this host's own addresses is for.
pub(in crate::proxy) fn gateway_at(plan: &Plan, address: SocketAddr) -> Option<Arc<Door>> {
    plan.doors.at(address).filter(|door| matches!(door.kind, DoorKind::Gateway(_))).cloned()
}

/// Answers a request that came by a hop to a gateway. `None`: it has no server for it.
pub(in crate::proxy) async fn answer(
    worker: &Rc<Worker>,
    door: &Door,
    hop: ByHop<'_>,
    request: Request<Inflow>,
    early: Option<Arc<Early>>,
) -> Option<Response<Reply>> {
    let DoorKind::Gateway(gateway) = &door.kind else { return None };
    let authority = request.uri().authority().map(|authority| authority.as_str().to_ascii_lowercase());
    let authority = authority.as_deref().map(route::host_of);
    let of_mesh =
        [hop.server_name, authority.as_deref()].into_iter().flatten().find_map(|name| of_mesh(gateway, name));
    let (seat, port, edge) = match (of_mesh.map(|server| (&server.inside, server.port)), gateway.http) {
        (Some((Inside::Http(seat), port)), _) => (*seat, port, Edge::Tls(hop.shown)),
        (_, Some(seat)) => (seat, gateway.port, Edge::Plain),
        _ => return None,
    };
    let connection = Connection {
        worker: worker.clone(),
        caller: seat,
        peer: hop.peer,
        local: None,
        target: Target::Port(port),
        is_proxy: false,
        edge: Some(edge),
        watch: hop.watch.clone(),
        server_name: None,
        counted: RefCell::default(),
    };
    Some(requests::handle(Rc::new(connection), request, early).await)
}

/// What is known of a visitor that came by a hop.
pub(in crate::proxy) struct ByHop<'a> {
    /// Where the other host is.
    pub(in crate::proxy) peer: SocketAddr,
    /// The name its rule asks for (`sni` of a `DestinationRule`).
    pub(in crate::proxy) server_name: Option<&'a str>,
    /// What services are told of its certificate.
    pub(in crate::proxy) shown: Option<HeaderValue>,
    pub(in crate::proxy) watch: &'a Arc<Watch>,
}

/// Finds the server that shows the mesh's own certificate to those who ask for a name.
fn of_mesh<'g>(gateway: &'g GatewayDoor, name: &str) -> Option<&'g Arc<TlsServer>> {
    let is_of_mesh = |server: &&Arc<TlsServer>| server.terminate.as_ref().is_some_and(|tls| tls.is_of_mesh());
    gateway.tls.find(name).filter(is_of_mesh)
}

impl Visitor {
    /// Serves a visitor whose bytes came by a hop, to its end.
    pub(in crate::proxy) async fn enter_by_hop(
        self,
        door: &Door,
        server_name: Option<&str>,
        shown: Option<HeaderValue>,
        wire: Wire,
    ) {
        let DoorKind::Gateway(gateway) = &door.kind else { return };
        match of_mesh(gateway, server_name.unwrap_or_default()) {
            Some(server) => self.inside(server, None, Edge::Tls(shown), wire).await,
            None => self.enter(gateway, wire).await,
        }
    }

    /// Serves a connection to its end: of a visitor, or of a load balancer that says for whom it is.
    pub(in crate::proxy) async fn arrive(mut self, gateway: &GatewayDoor, mut wire: Wire) {
        let settings = &self.worker.settings;
        // An address of IPv4 may have come to a socket of IPv6.
        let from = self.peer.ip().to_canonical();
        if settings.proxy_header_from.iter().any(|range| range.contains(&from)) {
            let told = |bytes: &[u8]| proxy_header::parse(bytes) != proxy_header::Parsed::More;
            let read = wire.read_ahead(settings.head_timeout, proxy_header::MAX_BYTES, told).await;
            let Ok(proxy_header::Parsed::Header { source, length }) = read.map(proxy_header::parse) else {
                return tracing::debug!(peer = %self.peer, "a load balancer did not say whom it brings: cut");
            };
            wire.skip(length);
            self.peer = source.unwrap_or(self.peer);
        }
        self.enter(gateway, wire).await;
    }

    /// Serves a visitor to its end.
    pub(in crate::proxy) async fn enter(self, gateway: &GatewayDoor, mut wire: Wire) {
        if gateway.tls.is_empty() {
            return self.plain(gateway, wire).await;
        }
        let told = |bytes: &[u8]| sniff(bytes) != Sniff::More;
        let patience = self.worker.settings.head_timeout;
        let first = wire.read_ahead(patience, sniff::ENOUGH_BYTES, told).await.map(sniff);
        if !matches!(first, Ok(Sniff::Tls)) {
            return self.plain(gateway, wire).await;
        }
        let whole = |bytes: &[u8]| client_hello::parse(bytes) != Parsed::More;
        let read = wire.read_ahead(patience, client_hello::MAX_BYTES, whole).await.map(client_hello::parse);
        let Ok(Parsed::Hello(hello)) = read else { return };
        let name = hello.server_name.unwrap_or_default();
        if let Some(config) = self.worker.settings.challenges.shown(&name, &hello.protocols) {
            return self.prove(config, wire).await;
        }
        let Some(server) = gateway.tls.find(&name) else {
            return tracing::debug!(peer = %self.peer, sni = name, "visitor asks for a name that no server has: cut");
        };
        match (&server.terminate, &server.inside) {
            (Some(settings), inside) => {
                self.shake(server, settings, protocols(inside, &hello.protocols), wire).await;
            }
            (None, Inside::Hop(cluster)) => self.pass(cluster, &hello.protocols, wire).await,
            (None, _) => self.inside(server, Some(&name), Edge::Plain, wire).await,
        }
    }

    /// Shows an authority what it wants to see (ACME, `tls-alpn-01`): the handshake is all.
    async fn prove(&self, config: Arc<ServerConfig>, wire: Wire) {
        let shown = async {
            let mut stream = TlsAcceptor::from(config).accept(wire).await?;
            stream.shutdown().await
        };
        let ended = tokio::time::timeout(self.worker.settings.head_timeout, shown).await;
        tracing::debug!(peer = %self.peer, ?ended, "an authority asked for a proof");
    }

    async fn plain(self, gateway: &GatewayDoor, wire: Wire) {
        match (gateway.http, &gateway.tcp) {
            (Some(seat), _) => self.requests(seat, gateway.port, Edge::Plain, wire).await,
            (None, Some(service)) => {
                self.bytes(Opaque::Service(service.clone()), gateway.port, None, wire).await;
            }
            (None, None) => {}
        }
    }

    /// Ends the visitor's TLS and serves what is inside.
    async fn shake(
        self,
        server: &TlsServer,
        settings: &Arc<ServerTls>,
        protocols: &'static [&'static [u8]],
        wire: Wire,
    ) {
        let terminated = match self.worker.terminator.get(settings, protocols).await {
            Ok(terminated) => terminated,
            Err(error) => {
                Counters::add(&self.worker.shard.counters.refused_tls_total);
                return tracing::warn!(gateway = %server.origin, %error, "visitor refused: there is no certificate to show");
            }
        };
        let Some((wire, shown)) = self.shaken(&terminated, wire).await else { return };
        self.inside(server, None, Edge::Tls(shown), wire).await;
    }

    /// Shakes hands; `None`: the visitor failed to, or may not come in. With what services are told of its certificate.
    async fn shaken(&self, terminated: &Terminated, wire: Wire) -> Option<(Wire, Option<HeaderValue>)> {
        let shaken = async {
            let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), wire).await?;
            begun.into_stream(terminated.config.clone()).await
        };
        let refused = || Counters::add(&self.worker.shard.counters.refused_tls_total);
        let stream = match tokio::time::timeout(self.worker.settings.head_timeout, shaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                refused();
                tracing::debug!(peer = %self.peer, %error, "visitor's TLS handshake failed");
                return None;
            }
            Err(_) => return None,
        };
        let chain = stream.get_ref().1.peer_certificates();
        if let Err(why) = terminated.admit(chain) {
            refused();
            tracing::info!(peer = %self.peer, %why, "visitor refused");
            return None;
        }
        let shown = terminated.forwarded(chain);
        Some((Wire::new(Stream::Visitor(Box::new(stream))), shown))
    }

    /// `name`: whom the TLS that is passed on asks for.
    async fn inside(self, server: &TlsServer, name: Option<&str>, edge: Edge, wire: Wire) {
        match &server.inside {
            Inside::Http(seat) => self.requests(*seat, server.port, edge, wire).await,
            Inside::Tcp(service) => {
                self.bytes(Opaque::Service(service.clone()), server.port, name, wire).await;
            }
            Inside::Hop(_) => {}
        }
    }

    async fn requests(self, seat: usize, port: u16, edge: Edge, wire: Wire) {
        debug_assert!(Doors::is_seat(seat), "requests of visitors have a seat");
        let target = Target::Port(port);
        outbound::carry(self.worker, seat, self.peer, target, Some(edge), Declared::Http, wire).await;
    }

    async fn bytes(self, to: Opaque, port: u16, name: Option<&str>, wire: Wire) {
        let view = self.worker.view();
        let connection = Connection {
            watch: self.worker.watch(),
            worker: self.worker,
            caller: self.seat,
            peer: self.peer,
            local: wire.local_address(),
            target: Target::Port(port),
            is_proxy: false,
            edge: None,
            server_name: None,
            counted: RefCell::default(),
        };
        tcp::carry(&connection, view, wire, to, name).await;
    }

    /// Passes a hop on to the mesh port of a host that serves what it asks for. Only hops: what else the mesh port
    /// serves (control traffic, joins) is not for those who come through a gateway.
    ///
    /// differs: the instance is the first of the service on that host, whatever the subset: the hop names none.
    async fn pass(self, cluster: &Arc<Cluster>, offered: &[Vec<u8>], mut wire: Wire) {
        let is_hop = |name: &Vec<u8>| [Protocol::Lane, Protocol::Hop].iter().any(|hop| name == hop.alpn());
        if !offered.iter().any(is_hop) {
            Counters::add(&self.worker.shard.counters.refused_tls_total);
            return tracing::debug!(peer = %self.peer, "visitor cut: what it asks for is no hop");
        }
        let Some(to) = self.next_host(cluster) else {
            return tracing::debug!(cluster = %cluster.name, "visitor cut: no host of the mesh serves it now");
        };
        match tcp::reach_address(&self.worker, cluster, to).await {
            Ok(reached) => tcp::join(&self.worker, &mut wire, reached).await,
            Err(failure) => {
                tracing::debug!(cluster = %cluster.name, %to, ?failure, "visitor cut: not reached");
            }
        }
    }

    /// Picks the mesh port of a host; endpoints outside the mesh have none, and are left out as Istio leaves out those
    /// without mutual TLS.
    fn next_host(&self, cluster: &Cluster) -> Option<SocketAddr> {
        let mut avoid = Vec::new();
        for _ in 0..cluster.endpoints.all.len() {
            let hint = Hint { hash: None, avoid: &avoid, leave: &[], destination: None };
            let endpoint = balance::pick(cluster, &hint, self.worker.now(), &mut Chance)?;
            match &endpoint.via {
                Via::Mesh { to, .. } => return Some(to.hop),
                Via::Local(_) => return self.worker.mesh_port(),
                Via::Plain(_) | Via::Name { .. } | Via::Socket(_) if avoid.contains(&endpoint.id) => {
                    return None;
                }
                Via::Plain(_) | Via::Name { .. } | Via::Socket(_) => avoid.push(endpoint.id.clone()),
            }
        }
        None
    }
}

/// What is offered in ALPN, also where bytes are inside: they may well be HTTP/2, whose callers insist on it. Bytes of
/// other protocols are asked for by names that only the application knows; then nothing is agreed on.
///
/// Source: Istio `util.ALPNHttp`; recorded in `tests/conformance/cases/gateway-connections`.
fn protocols(inside: &Inside, asked: &[Vec<u8>]) -> &'static [&'static [u8]] {
    const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];
    let is_http = || asked.iter().any(|name| HTTP.contains(&name.as_slice()));
    match inside {
        Inside::Http(_) => HTTP,
        Inside::Tcp(_) if is_http() => HTTP,
        Inside::Tcp(_) | Inside::Hop(_) => &[],
    }
}
