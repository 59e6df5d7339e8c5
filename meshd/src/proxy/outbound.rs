//! Connections of callers: what they speak and what they stand for, before HTTP or TCP takes over.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;
use mesh_core::plan::{
    Cluster, LocalInstance, ServicePort, TcpRules, TlsHost, UnknownHosts, UpstreamProtocol,
};
use mesh_core::route::connection as route;
use mesh_core::wire::client_hello::{self, Parsed};
use mesh_core::wire::sniff::{self, Sniff, sniff};
use tokio::net::TcpStream;

use super::measure::{self, Counted};
use super::passthrough::Place;
use super::server::{self, Trust};
use super::watch::Watch;
use super::wire::{Stream, Wire};
use super::worker::{Caller, View, Worker};
use super::{Declared, Way, http, inbound, tcp};
use crate::telemetry::{self, Counters};

/// A connection of a caller.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    /// Who calls: a position in the Plan's outbounds.
    pub(crate) caller: usize,
    /// Where the caller is.
    pub(crate) peer: SocketAddr,
    /// What it called, where that is known.
    pub(crate) local: Option<SocketAddr>,
    /// What the connection stands for.
    pub(crate) target: Target,
    /// Whether CONNECT may open a tunnel.
    pub(crate) is_proxy: bool,
    /// Of a gateway's visitor: how it came.
    pub(crate) edge: Option<Edge>,
    pub(crate) watch: Arc<Watch>,
    /// The name that TLS asked for, of a hop.
    pub(crate) server_name: Option<Arc<str>>,
    /// Where requests to an application of this host are counted.
    pub(crate) counted: RefCell<Option<(telemetry::Spoken, Rc<Counted>)>>,
}

/// How a visitor came to a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// In plain text.
    Plain,
    /// Over TLS that ended here, with what services are told of the certificate it showed.
    Tls(Option<HeaderValue>),
}

/// What a connection stands for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A service port: the Host, the SNI or the port's TCP service decides.
    Port(u16),
    /// One service.
    Host {
        /// Its name, as an authority.
        host: Arc<str>,
        /// Its port.
        port: u16,
    },
    /// Where it was going before it was intercepted.
    Address(SocketAddr),
    /// Whatever each request says.
    Proxy,
    /// An application on this host, on the way in.
    Local {
        /// Where it listens.
        address: SocketAddr,
        /// What it speaks, where requests come.
        protocol: UpstreamProtocol,
        /// What bounds the way to it, as for hops.
        bounds: Option<Arc<Cluster>>,
        /// What it was registered as.
        instance: Option<Arc<LocalInstance>>,
    },
}

/// What is spoken on a connection.
enum Spoken {
    Http1,
    Http2,
    Tls(Option<String>),
    Opaque,
    /// It ended, or stayed silent where the caller must begin.
    Nothing,
}

/// Serves an accepted connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, way: &Way, stream: TcpStream, peer: SocketAddr) {
    let (target, declared, caller) = match way {
        Way::Service { port, protocol, caller } => (Target::Port(*port), *protocol, *caller),
        Way::Fixed { host, port, protocol, caller } => {
            (Target::Host { host: host.clone(), port: *port }, *protocol, *caller)
        }
        Way::HttpProxy { caller } => (Target::Proxy, Declared::Http, *caller),
        Way::Outbound { .. } | Way::Inbound => {
            let Some(address) = original(&worker, &stream) else { return };
            let Way::Outbound { caller } = way else {
                return inbound::plain(worker, stream, address, peer).await;
            };
            (Target::Address(address), Declared::Auto, *caller)
        }
        Way::Mesh => return,
    };
    carry(worker, caller, peer, target, None, declared, Wire::new(Stream::Tcp(stream))).await;
}

/// Finds where an intercepted connection was going; one that was going to us goes in a circle and is dropped.
fn original(worker: &Worker, stream: &TcpStream) -> Option<SocketAddr> {
    let address = (worker.settings.original_destination)(stream);
    let local = stream.local_addr().ok();
    match address {
        Some(address) if Some(address) != local && !worker.is_own(address) => Some(address),
        _ => {
            Counters::add(&worker.shard.counters.refused_loops_total);
            tracing::warn!(?address, "connection to an interception port that was not intercepted: closed");
            None
        }
    }
}

/// Serves a connection whose target is known; `edge` tells how a gateway's visitor came.
pub(crate) async fn carry(
    worker: Rc<Worker>,
    caller: usize,
    peer: SocketAddr,
    target: Target,
    edge: Option<Edge>,
    declared: Declared,
    mut wire: Wire,
) {
    let is_proxy = matches!(target, Target::Proxy);
    let view = worker.view();
    // Time for the first head runs from here on.
    let watch = worker.unwatched();
    let expected = match declared {
        Declared::Auto => expected(&view, caller, &target),
        known => known,
    };
    let patience = view.outbound(caller).and_then(|(outbound, _)| outbound.sniff);
    let patience = patience.unwrap_or(worker.settings.sniff_timeout);
    let mut draining = worker.draining.clone();
    let spoken = tokio::select! {
        spoken = listen(&worker, &mut wire, expected, patience) => spoken,
        // Nothing was asked for; what is on its way already gets its answer.
        () = leaves_silent(&mut draining), if expected != Declared::Tcp => return,
    };
    drop(draining);
    worker.watch_over(&watch);
    let served = worker.clone();
    let local = match &target {
        Target::Address(address) | Target::Local { address, .. } => Some(*address),
        _ => wire.local_address(),
    };
    let connection = Rc::new(Connection {
        worker,
        caller,
        peer,
        local,
        target,
        is_proxy,
        edge,
        watch: watch.clone(),
        server_name: None,
        counted: RefCell::default(),
    });
    match spoken {
        Spoken::Http1 => {
            // Each request asks for the Plan in force: a connection may outlive many.
            drop(view);
            server::http1(&served, wire, &watch, |request| http::handle(connection.clone(), request, None))
                .await;
        }
        Spoken::Http2 => {
            drop(view);
            let handle = |request, early| http::handle(connection.clone(), request, Some(early));
            Box::pin(server::http2(&served, wire, &watch, Trust::Stranger, handle)).await;
        }
        Spoken::Tls(_) | Spoken::Opaque => {
            watch.carries_bytes();
            let opaque = opaque(&connection, &view, &spoken);
            let name = if let Spoken::Tls(name) = &spoken { name.as_deref() } else { None };
            Box::pin(tcp::carry(&connection, view, wire, opaque, name)).await;
        }
        Spoken::Nothing => {}
    }
}

/// Waits until a connection on which nothing came may be closed.
async fn leaves_silent(draining: &mut crate::drain::Draining) {
    draining.started().await;
    tokio::time::sleep(super::server::LAST_REQUEST).await;
}

/// Tells what the Plan expects on a connection; `Auto`: its first bytes have to say.
fn expected(view: &View, caller: usize, target: &Target) -> Declared {
    let Some((outbound, _)) = view.outbound(caller) else { return Declared::Auto };
    match route::expected(outbound, &view.plan.names, target.asked()) {
        route::Expected::Http => Declared::Http,
        route::Expected::Tls => Declared::Tls,
        route::Expected::Tcp => Declared::Tcp,
        route::Expected::Any => Declared::Auto,
    }
}

/// Reads just enough of a connection to know what it speaks. Declared TCP is not touched: the server may speak first.
async fn listen(worker: &Worker, wire: &mut Wire, declared: Declared, sniffing: Duration) -> Spoken {
    let told = |bytes: &[u8]| sniff(bytes) != Sniff::More;
    let patience = match declared {
        Declared::Tcp => return Spoken::Opaque,
        Declared::Tls => return hello(worker, wire).await,
        Declared::Http => worker.settings.head_timeout,
        Declared::Auto => sniffing,
    };
    let Ok(bytes) = wire.read_ahead(patience, sniff::ENOUGH_BYTES, told).await else {
        return Spoken::Nothing;
    };
    match (sniff(bytes), declared) {
        (Sniff::Http2, _) => Spoken::Http2,
        (_, Declared::Http) if bytes.is_empty() => Spoken::Nothing,
        (Sniff::Http1, _) | (_, Declared::Http) => Spoken::Http1,
        (Sniff::Tls, _) => hello(worker, wire).await,
        (Sniff::Other | Sniff::More, _) => Spoken::Opaque,
    }
}

async fn hello(worker: &Worker, wire: &mut Wire) -> Spoken {
    let whole = |bytes: &[u8]| client_hello::parse(bytes) != Parsed::More;
    let read = wire.read_ahead(worker.settings.head_timeout, client_hello::MAX_BYTES, whole).await;
    match read.map(client_hello::parse) {
        Ok(Parsed::Hello(hello)) => Spoken::Tls(hello.server_name),
        Ok(Parsed::Malformed) => Spoken::Tls(None),
        _ => Spoken::Nothing,
    }
}

/// Where an opaque connection goes.
pub(crate) enum Opaque {
    /// By the rules of a service.
    Service(Arc<ServicePort>),
    /// By the rules of an SNI host.
    Tls(Arc<TlsHost>),
    /// Where it was going.
    Direct(Place),
    /// To an application on this host, within its bounds.
    Bounded(Arc<Cluster>),
    /// Nowhere.
    Refused,
}

impl Opaque {
    pub(crate) fn rules(&self) -> Option<&TcpRules> {
        match self {
            Self::Service(service) => Some(&service.tcp),
            Self::Tls(host) => Some(&host.rules),
            Self::Direct(_) | Self::Bounded(_) | Self::Refused => None,
        }
    }
}

/// Decides where an opaque connection goes.
fn opaque(connection: &Connection, view: &View, spoken: &Spoken) -> Opaque {
    if let Target::Local { address, bounds, .. } = &connection.target {
        let direct = || Opaque::Direct(Place::Local(*address));
        return bounds.clone().map_or_else(direct, Opaque::Bounded);
    }
    let Some((outbound, _)) = view.outbound(connection.caller) else { return Opaque::Refused };
    let said = match spoken {
        Spoken::Tls(name) => route::Spoken::Tls(name.as_deref()),
        _ => route::Spoken::Opaque,
    };
    match route::way(outbound, &view.plan.names, connection.target.asked(), said) {
        route::Way::Service(service) | route::Way::EgressProxy(service) => Opaque::Service(service.clone()),
        route::Way::Tls(host) => Opaque::Tls(host.clone()),
        route::Way::Refused => Opaque::Refused,
        route::Way::Direct => match (&connection.target, spoken) {
            (Target::Address(address), _) => Opaque::Direct(Place::Address(*address)),
            (Target::Host { host, port }, _) => Opaque::Direct(Place::Name(host.clone(), *port)),
            (Target::Port(port), Spoken::Tls(Some(name))) => {
                Opaque::Direct(Place::Name(name.as_str().into(), *port))
            }
            _ => Opaque::Refused,
        },
    }
}

impl Target {
    /// As the Plan is asked for it.
    fn asked(&self) -> route::Target<'_> {
        match self {
            Self::Port(port) => route::Target::Port(*port),
            Self::Host { host, port } => route::Target::Host { host, port: *port },
            Self::Address(address) => route::Target::Address(*address),
            Self::Proxy | Self::Local { .. } => route::Target::Nothing,
        }
    }
}

impl Connection {
    /// Returns who calls; `None` when the Plan does not know it (before the first Plan).
    pub(crate) fn caller(&self, view: &View) -> Option<Rc<Caller>> {
        match self.target {
            Target::Local { .. } => Some(self.worker.inbound.clone()),
            _ => view.outbound(self.caller).map(|(_, caller)| caller.clone()),
        }
    }

    /// Finds where requests to an application of this host are counted, of whose callers nothing is known.
    pub(crate) fn inbound(&self, instance: Option<&LocalInstance>, spoken: telemetry::Spoken) -> Rc<Counted> {
        let mut held = self.counted.borrow_mut();
        if let Some((_, counted)) = held.as_ref().filter(|(of, _)| *of == spoken) {
            return counted.clone();
        }
        let counted = Rc::new(Counted::inbound(&self.worker, &measure::From::default(), instance, spoken));
        *held = Some((spoken, counted.clone()));
        counted
    }

    /// Returns the service port of an address: that of a declared range or address, else the address's own.
    pub(crate) fn service_port(&self, address: SocketAddr) -> u16 {
        let view = self.worker.view();
        let found = view.outbound(self.caller).and_then(|(outbound, _)| route::at_address(outbound, address));
        found.map_or(address.port(), |service| service.number)
    }
}

/// Whether a name and port may be reached at all: known to the rules, or unknown hosts are allowed.
pub(crate) fn is_reachable(view: &View, caller: usize, host: &str, port: u16) -> bool {
    let Some((outbound, _)) = view.outbound(caller) else { return false };
    let lower = host.to_ascii_lowercase();
    let table = outbound.ports.get(&port);
    outbound.unknown == UnknownHosts::Allow
        || route::named(outbound, &view.plan.names, host, port).is_some()
        || table.is_some_and(|table| table.http.find(&lower).is_some() || table.tls.find(&lower).is_some())
}
