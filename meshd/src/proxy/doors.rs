//! Doors: listeners that the Plan asks for, opened and closed as it changes.
//!
//! One task ([`Keeper`]) binds: a port that cannot be bound is told as a problem and tried again, and changes nothing else.
//! Every worker is handed a socket of each and accepts on it ([`serve`]). What a connection finds is read from the Plan in
//! force when it comes, so that changed rules need no new socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_core::plan::{DoorKind, Doors, Plan, TlsServer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::accept::{self, Room};
use super::budget::Descriptors;
use super::outbound::{self, Target};
use super::wire::{Stream, Wire};
use super::worker::Worker;
use super::{Declared, Settings, Shared};
use crate::drain::Draining;
use crate::task;
use crate::transport::{Credentials, outlook};

pub(super) mod visitor;

use visitor::Visitor;

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
    settings: Arc<Settings>,
    credentials: Arc<Credentials>,
    descriptors: Arc<Descriptors>,
    draining: Draining,
}

impl Keeper {
    pub(super) fn new(shared: &Shared, descriptors: &Arc<Descriptors>, draining: &Draining) -> Self {
        Self {
            plans: shared.plans.clone(),
            workers: Vec::new(),
            settings: shared.settings.clone(),
            credentials: shared.dialer.credentials().clone(),
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
        }
        problems.extend(self.unusable(doors).await);
        problems
    }

    /// Tells of certificates that cannot be shown, or not for much longer.
    async fn unusable(&self, doors: &Arc<Doors>) -> BTreeSet<String> {
        let (doors, settings, credentials) = (doors.clone(), self.settings.clone(), self.credentials.clone());
        let look = move || {
            let gateways = doors.open.values().filter_map(|door| match &door.kind {
                DoorKind::Gateway(gateway) => Some(gateway),
                DoorKind::Service(_) | DoorKind::Proxy => None,
            });
            let servers = gateways.flat_map(|gateway| gateway.tls.iter());
            servers.flat_map(|(_, server)| warnings(server, &settings.secrets, &credentials)).collect()
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}

fn warnings(server: &TlsServer, secrets: &Path, credentials: &Arc<Credentials>) -> Vec<String> {
    let Some(settings) = &server.terminate else { return Vec::new() };
    let place = format!("{}: port {}", server.origin, server.port);
    match outlook(settings, secrets, credentials) {
        Err(error) => vec![format!("{place}: visitors are refused: {error}")],
        Ok(outlooks) => {
            let now = SystemTime::now();
            let told = outlooks.iter().filter_map(|outlook| outlook.warning(now));
            told.map(|warning| format!("{place}: {warning}")).collect()
        }
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
    if let Ok(local) = stream.local_addr() {
        worker.learn(local.ip());
    }
    let wire = Wire::new(Stream::Tcp(stream));
    match &door.kind {
        DoorKind::Service(port) => {
            let target = Target::Port(*port);
            outbound::carry(worker, door.seat, peer, target, None, Declared::Auto, wire).await;
        }
        DoorKind::Proxy => {
            outbound::carry(worker, door.seat, peer, Target::Proxy, None, Declared::Http, wire).await;
        }
        DoorKind::Gateway(gateway) => {
            Visitor { worker, peer, seat: door.seat }.arrive(gateway, wire).await;
        }
    }
}

/// How soon a port that was taken is tried again, and certificates are looked at.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Openings and closings that a worker has not taken yet.
const QUEUE: usize = 64;
