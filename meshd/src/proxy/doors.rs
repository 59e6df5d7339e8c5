//! Doors: listeners that the Plan asks for, opened and closed as it changes.
//!
//! One task ([`Keeper`]) binds: a port that cannot be bound is told as a problem and tried again, and changes nothing else.
//! Every worker is handed a socket of each and accepts on it ([`serve`]). What a connection finds is read from the Plan in
//! force when it comes, so that changed rules need no new socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_core::plan::{DoorKind, Doors, GatewayDoor, Inside, Plan, TlsServer};
use mesh_core::wire::client_hello::{self, Parsed};
use mesh_core::wire::sniff::{self, Sniff, sniff};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::LazyConfigAcceptor;

use super::accept::{self, Room};
use super::budget::Descriptors;
use super::outbound::{self, Connection, Opaque, Target};
use super::wire::{Stream, Wire};
use super::worker::Worker;
use super::{Declared, Settings, Shared, tcp};
use crate::drain::Draining;
use crate::task;
use crate::telemetry::Counters;
use crate::transport::Terminator;

/// What a worker is told.
pub(super) enum Told {
    /// Accept here, as long as there is room.
    Open(SocketAddr, TcpListener, Arc<Room>),
    /// No longer accept there; connections go on.
    Close(SocketAddr),
}

/// Opens and closes doors.
pub struct Keeper {
    plans: Arc<ArcSwap<Plan>>,
    workers: Vec<mpsc::Sender<Told>>,
    /// Looks at certificates, to tell of those that cannot be used.
    terminator: Terminator,
    settings: Arc<Settings>,
    descriptors: Arc<Descriptors>,
    draining: Draining,
}

impl Keeper {
    pub(super) fn new(shared: &Shared, descriptors: &Arc<Descriptors>, draining: &Draining) -> Self {
        Self {
            plans: shared.plans.clone(),
            workers: Vec::new(),
            terminator: Terminator::new(shared.settings.secrets.clone()),
            settings: shared.settings.clone(),
            descriptors: descriptors.clone(),
            draining: draining.clone(),
        }
    }

    /// Makes the way to one more worker.
    pub(super) fn worker(&mut self) -> mpsc::Receiver<Told> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.workers.push(sender);
        receiver
    }

    /// Keeps the doors as the Plan says, until draining begins. Every change of `changed` makes it look at the Plan;
    /// what cannot be done is told to `problems`.
    pub async fn run<T>(mut self, mut changed: watch::Receiver<T>, problems: watch::Sender<Vec<String>>) {
        let mut open: BTreeSet<SocketAddr> = BTreeSet::new();
        loop {
            changed.mark_unchanged();
            let found = self.follow(&mut open).await;
            problems.send_if_modified(|known| {
                let is_new = *known != found;
                *known = found;
                is_new
            });
            let idle = open.is_empty() && problems.borrow().is_empty();
            tokio::select! {
                () = self.draining.started() => return,
                Ok(()) = changed.changed() => {}
                () = tokio::time::sleep(TRY_AGAIN), if !idle => {}
                else => return,
            }
        }
    }
}

impl Keeper {
    /// Opens and closes; returns what cannot be done.
    async fn follow(&mut self, open: &mut BTreeSet<SocketAddr>) -> Vec<String> {
        let plan = self.plans.load_full();
        let doors = &plan.doors;
        for address in open.iter().filter(|address| !doors.open.contains_key(address)) {
            tracing::info!(%address, "door closed");
            self.settings.listeners.close_tcp(*address);
            for worker in &self.workers {
                let _ = worker.send(Told::Close(*address)).await;
            }
        }
        open.retain(|address| doors.open.contains_key(address));
        let mut problems = Vec::new();
        for (address, door) in &doors.open {
            if !open.contains(address) {
                match self.settings.listeners.tcp_group(*address, self.workers.len()) {
                    Ok(sockets) => {
                        let room = Arc::new(Room::new(&self.settings, &self.descriptors));
                        // A predecessor may have had more workers.
                        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
                            let _ = worker.send(Told::Open(*address, socket, room.clone())).await;
                        }
                        tracing::info!(%address, by = %door.origin, "door opened");
                        open.insert(*address);
                    }
                    Err(error) => problems.push(format!("{}: {address} is not open: {error}", door.origin)),
                }
            }
            if let DoorKind::Gateway(gateway) = &door.kind {
                problems.extend(self.unusable(gateway));
            }
        }
        problems
    }

    /// Tells of certificates that cannot be shown.
    fn unusable(&self, gateway: &GatewayDoor) -> BTreeSet<String> {
        let unusable = |(_, server): (String, &Arc<TlsServer>)| {
            let settings = server.terminate.as_ref()?;
            let error = self.terminator.get(settings, protocols(&server.inside)).err()?;
            Some(format!("{}: port {}: visitors are refused: {error}", server.origin, server.port))
        };
        gateway.tls.iter().filter_map(unusable).collect()
    }
}

/// Accepts on what a worker is handed, until draining begins.
pub(super) async fn serve(worker: Rc<Worker>, mut told: mpsc::Receiver<Told>) {
    let mut open: BTreeMap<SocketAddr, Vec<tokio::task::JoinHandle<()>>> = BTreeMap::new();
    let mut draining = worker.draining.clone();
    loop {
        let told = tokio::select! {
            () = draining.started() => return,
            told = told.recv() => told,
        };
        match told {
            None => return,
            Some(Told::Close(address)) => {
                open.remove(&address).into_iter().flatten().for_each(|accepting| accepting.abort());
            }
            Some(Told::Open(address, socket, room)) => match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => {
                    let accepting =
                        task::spawn_local("door", accept(worker.clone(), address, listener, room));
                    open.entry(address).or_default().push(accepting);
                }
                Err(error) => tracing::error!(%address, %error, "cannot accept at a door"),
            },
        }
    }
}

async fn accept(worker: Rc<Worker>, address: SocketAddr, listener: tokio::net::TcpListener, room: Arc<Room>) {
    let serve = |worker, stream, peer| visit(worker, address, stream, peer);
    accept::each(&worker, &address, listener, room, serve).await;
}

/// Serves a visitor to its end.
async fn visit(worker: Rc<Worker>, address: SocketAddr, stream: TcpStream, peer: SocketAddr) {
    // Only the door is kept: a connection may outlive many Plans.
    let Some(door) = worker.view().plan.doors.open.get(&address).cloned() else { return };
    let wire = Wire::new(Stream::Tcp(stream));
    match &door.kind {
        DoorKind::Service(port) => {
            let target = Target::Port(*port);
            outbound::carry(worker, door.seat, peer, target, false, Declared::Auto, wire).await;
        }
        DoorKind::Proxy => {
            outbound::carry(worker, door.seat, peer, Target::Proxy, true, Declared::Http, wire).await;
        }
        DoorKind::Gateway(gateway) => {
            Visitor { worker, peer, seat: door.seat }.enter(gateway, wire).await;
        }
    }
}

/// A visitor of a gateway.
struct Visitor {
    worker: Rc<Worker>,
    peer: SocketAddr,
    seat: usize,
}

impl Visitor {
    async fn enter(self, gateway: &GatewayDoor, mut wire: Wire) {
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
        match gateway.tls.find(&name) {
            Some(server) => self.tls(server, &name, wire).await,
            None => {
                tracing::debug!(peer = %self.peer, sni = name, "visitor asks for a name that no server has: cut");
            }
        }
    }

    async fn plain(self, gateway: &GatewayDoor, wire: Wire) {
        match (gateway.http, &gateway.tcp) {
            (Some(seat), _) => self.requests(seat, gateway.port, wire).await,
            (None, Some(service)) => {
                self.bytes(Opaque::Service(service.clone()), gateway.port, None, wire).await;
            }
            (None, None) => {}
        }
    }

    async fn tls(self, server: &TlsServer, name: &str, wire: Wire) {
        let Some(settings) = &server.terminate else { return self.inside(server, Some(name), wire).await };
        let terminated = match self.worker.terminator.get(settings, protocols(&server.inside)) {
            Ok(terminated) => terminated,
            Err(error) => {
                Counters::add(&self.worker.shard.counters.refused_tls_total);
                return tracing::warn!(gateway = %server.origin, %error, "visitor refused: there is no certificate to show");
            }
        };
        let shaken = async {
            let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), wire).await?;
            begun.into_stream(terminated.config.clone()).await
        };
        let stream = match tokio::time::timeout(self.worker.settings.head_timeout, shaken).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                Counters::add(&self.worker.shard.counters.refused_tls_total);
                return tracing::debug!(peer = %self.peer, %error, "visitor's TLS handshake failed");
            }
            Err(_) => return,
        };
        if let Err(why) = terminated.admit(stream.get_ref().1.peer_certificates()) {
            Counters::add(&self.worker.shard.counters.refused_tls_total);
            return tracing::info!(peer = %self.peer, %why, "visitor refused");
        }
        self.inside(server, None, Wire::new(Stream::Visitor(Box::new(stream)))).await;
    }

    /// `name`: whom the TLS that is passed on asks for.
    async fn inside(self, server: &TlsServer, name: Option<&str>, wire: Wire) {
        match &server.inside {
            Inside::Http(seat) => self.requests(*seat, server.port, wire).await,
            Inside::Tcp(service) => {
                self.bytes(Opaque::Service(service.clone()), server.port, name, wire).await;
            }
        }
    }

    async fn requests(self, seat: usize, port: u16, wire: Wire) {
        debug_assert!(Doors::is_seat(seat), "requests of visitors have a seat");
        outbound::carry(self.worker, seat, self.peer, Target::Port(port), false, Declared::Http, wire).await;
    }

    async fn bytes(self, to: Opaque, port: u16, name: Option<&str>, wire: Wire) {
        let view = self.worker.view();
        let connection = Connection {
            watch: self.worker.watch(),
            worker: self.worker,
            caller: self.seat,
            peer: self.peer,
            target: Target::Port(port),
            is_proxy: false,
            edge: None,
        };
        tcp::carry(&connection, view, wire, to, name).await;
    }
}

/// What is offered in ALPN. Source: Istio `util.ALPNHttp`.
fn protocols(inside: &Inside) -> &'static [&'static [u8]] {
    match inside {
        Inside::Http(_) => &[b"h2", b"http/1.1"],
        Inside::Tcp(_) => &[],
    }
}

/// How soon a port that was taken is tried again, and certificates are looked at.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Openings and closings that a worker has not taken yet.
const QUEUE: usize = 64;
