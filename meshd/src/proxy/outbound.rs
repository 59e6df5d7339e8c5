//! Connections of callers: what they speak and what they stand for, before HTTP or TCP takes over.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;
use mesh_core::plan::{
    Cluster, LocalInstance, Outbound, ServicePort, TcpRules, TlsHost, UnknownHosts, UpstreamProtocol,
};
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
use crate::telemetry::{Counters, Spoken};

/// A connection of a caller.
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    /// Who calls: a position in the Plan's outbounds.
    pub(crate) caller: usize,
    /// Where the caller is.
    pub(crate) peer: SocketAddr,
    /// What the connection stands for.
    pub(crate) target: Target,
    /// Whether CONNECT may open a tunnel.
    pub(crate) is_proxy: bool,
    /// Of a gateway's visitor: how it came.
    pub(crate) edge: Option<Edge>,
    pub(crate) watch: Arc<Watch>,
    /// The name that TLS asked for, of a hop.
    pub(crate) server_name: Option<Box<str>>,
    /// Where requests to an application of this host are counted.
    pub(crate) counted: RefCell<Option<(Spoken, Rc<Counted>)>>,
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
    let connection = Rc::new(Connection {
        worker,
        caller,
        peer,
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
            server::http1(&served, wire, &watch, |request| http::handle(connection.clone(), request)).await;
        }
        Spoken::Http2 => {
            drop(view);
            let handle = |request| http::handle(connection.clone(), request);
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
    if let Some(service) = service(view, outbound, target) {
        let protocol = service.protocol;
        return match () {
            () if protocol.is_http() => Declared::Http,
            () if protocol.is_tls() => Declared::Tls,
            () if protocol == mesh_proto::registration::Protocol::Auto => Declared::Auto,
            () => Declared::Tcp,
        };
    }
    let (Target::Port(port) | Target::Host { port, .. }) = target else { return Declared::Auto };
    match outbound.ports.get(port) {
        Some(table) if table.has_http() && table.tls.is_empty() && table.tcp.is_none() => Declared::Http,
        Some(table) if !table.has_http() && !table.tls.is_empty() && table.tcp.is_none() => Declared::Tls,
        _ => Declared::Auto,
    }
}

/// Finds the service that a target's address or name says.
fn service<'a>(view: &'a View, outbound: &'a Outbound, target: &Target) -> Option<&'a Arc<ServicePort>> {
    match target {
        Target::Address(address) => at_address(outbound, *address),
        Target::Host { host, port } => named(view, outbound, host, *port),
        Target::Port(port) => {
            let table = outbound.ports.get(port)?;
            table.tcp.as_ref().filter(|_| !table.has_http() && table.tls.is_empty())
        }
        Target::Proxy | Target::Local { .. } => None,
    }
}

fn at_address(outbound: &Outbound, address: SocketAddr) -> Option<&Arc<ServicePort>> {
    outbound.addresses.get(&(address.ip(), address.port())).or_else(|| {
        let fits =
            |(net, port, _): &&(ipnet::IpNet, u16, _)| *port == address.port() && net.contains(&address.ip());
        outbound.ranges.iter().find(fits).map(|(_, _, service)| service)
    })
}

/// A name is known through the addresses that DNS would answer, so that every spelling works.
fn named<'a>(view: &'a View, outbound: &'a Outbound, host: &str, port: u16) -> Option<&'a Arc<ServicePort>> {
    let host = host.to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let by_address =
        view.plan.names.find(host).and_then(|addresses| {
            addresses.iter().find_map(|address| outbound.addresses.get(&(*address, port)))
        });
    let own_name = |service: &&Arc<ServicePort>| service.host == host && service.number == port;
    by_address
        .or_else(|| host.parse().ok().and_then(|address| outbound.addresses.get(&(address, port))))
        .or_else(|| outbound.addresses.values().find(own_name))
        .or_else(|| outbound.ports.get(&port)?.tcp.as_ref().filter(own_name))
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
    let port = connection.port(view);
    if let (Spoken::Tls(Some(name)), Some(table)) = (spoken, outbound.ports.get(&port))
        && let Some(host) = table.tls.find(name)
    {
        return Opaque::Tls(host.clone());
    }
    let is_tls = matches!(spoken, Spoken::Tls(_));
    let found = service(view, outbound, &connection.target);
    let by_port = || outbound.ports.get(&port)?.tcp.as_ref();
    // On TLS ports only the names that rules have count.
    let found = found.or_else(by_port).filter(|service| !is_tls || !service.protocol.is_tls());
    if let Some(service) = found {
        return Opaque::Service(service.clone());
    }
    if let (Some(proxy), UnknownHosts::Allow) = (&outbound.egress_proxy, outbound.unknown) {
        return Opaque::Service(proxy.clone());
    }
    match (&connection.target, outbound.unknown) {
        (_, UnknownHosts::Refuse | UnknownHosts::NotFound) | (Target::Proxy | Target::Local { .. }, _) => {
            Opaque::Refused
        }
        (Target::Address(address), _) => Opaque::Direct(Place::Address(*address)),
        (Target::Host { host, port }, _) => Opaque::Direct(Place::Name(host.clone(), *port)),
        (Target::Port(port), _) => match spoken {
            Spoken::Tls(Some(name)) => Opaque::Direct(Place::Name(name.as_str().into(), *port)),
            _ => Opaque::Refused,
        },
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
    pub(crate) fn inbound(&self, instance: Option<&LocalInstance>, spoken: Spoken) -> Rc<Counted> {
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
        let found = view.outbound(self.caller).and_then(|(outbound, _)| at_address(outbound, address));
        found.map_or(address.port(), |service| service.number)
    }

    fn port(&self, _view: &View) -> u16 {
        match &self.target {
            Target::Port(port) | Target::Host { port, .. } => *port,
            Target::Address(address) => self.service_port(*address),
            Target::Local { address, .. } => address.port(),
            Target::Proxy => 0,
        }
    }
}

/// Whether a name and port may be reached at all: known to the rules, or unknown hosts are allowed.
pub(crate) fn is_reachable(view: &View, caller: usize, host: &str, port: u16) -> bool {
    let Some((outbound, _)) = view.outbound(caller) else { return false };
    let lower = host.to_ascii_lowercase();
    let table = outbound.ports.get(&port);
    outbound.unknown == UnknownHosts::Allow
        || named(view, outbound, host, port).is_some()
        || table.is_some_and(|table| table.http.find(&lower).is_some() || table.tls.find(&lower).is_some())
}
