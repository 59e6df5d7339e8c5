//! Listening: one loop for each socket of a worker, and how many connections a listener has room for.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::HashMap;
use tokio::net::{TcpListener, TcpStream};

use super::budget::{CONNECTION_BYTES, Descriptor, Descriptors};
use super::worker::Worker;
use super::{Settings, Way, inbound, outbound};
use crate::task;
use crate::telemetry::Counters;
use crate::transport::socket;

/// Starts to accept on a socket, until draining begins.
pub(super) fn start(worker: &Rc<Worker>, way: Way, socket: std::net::TcpListener, room: Arc<Room>) {
    if way == Way::Mesh {
        task::spawn_local("mesh accept", inbound::accept(worker.clone(), socket, room));
        return;
    }
    match TcpListener::from_std(socket) {
        Ok(listener) => drop(task::spawn_local("accept", run(worker.clone(), way, listener, room))),
        Err(error) => tracing::error!(?way, %error, "cannot accept"),
    }
}

async fn run(worker: Rc<Worker>, way: Way, listener: TcpListener, room: Arc<Room>) {
    let way = Rc::new(way);
    let name = way.clone();
    each(&worker, &*name, listener, room, |worker, stream, peer| {
        let way = way.clone();
        async move { outbound::serve(worker, &way, stream, peer).await }
    })
    .await;
}

/// Accepts until draining begins, and serves each connection there is room for in a task of its own. `listener_name`
/// is for the log.
pub(super) async fn each<F>(
    worker: &Rc<Worker>,
    listener_name: &dyn Debug,
    listener: TcpListener,
    room: Arc<Room>,
    serve: impl Fn(Rc<Worker>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let mut draining = worker.draining.clone();
    loop {
        let accepted = tokio::select! {
            () = draining.started() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let peer = socket::unmapped(peer);
                let Some(place) = admit(worker, &room, &stream, peer) else {
                    Counters::add(&worker.shard.counters.refused_connections_total);
                    tracing::debug!(listener = ?listener_name, %peer, "connection closed: too many are open");
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let held = (Open::count(worker), place);
                let served = serve(worker.clone(), stream, peer);
                task::spawn_local("connection", task::holding(held, served));
            }
            Err(error) => {
                // Out of descriptors, most likely: let others close theirs.
                tracing::warn!(listener = ?listener_name, %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes a place and a descriptor for a connection. `None`: too many are open, or memory is short.
fn admit(
    worker: &Worker,
    room: &Arc<Room>,
    stream: &TcpStream,
    peer: SocketAddr,
) -> Option<(Place, Descriptor)> {
    worker.intake.took(CONNECTION_BYTES);
    if worker.intake.is_short() {
        return None;
    }
    let local = stream.local_addr().ok().map(|local| socket::unmapped(local).ip());
    Some((room.admit(peer, local)?, worker.descriptors.accept()?))
}

/// What a listener has room for, over all workers. Asked once for each connection, never for a request.
pub(super) struct Room {
    open: AtomicUsize,
    most: usize,
    most_of_one: usize,
    /// Open connections by the host they come from; this host's own are not counted.
    sources: Mutex<HashMap<IpAddr, usize>>,
}

impl Room {
    pub(super) fn new(settings: &Settings, descriptors: &Descriptors) -> Self {
        let most = match settings.connections {
            0 => descriptors.affordable(),
            most => most,
        };
        let most_of_one = match settings.connections_per_source {
            0 => most.div_ceil(2),
            most => most,
        };
        Self { open: AtomicUsize::new(0), most, most_of_one, sources: Mutex::default() }
    }

    /// Takes a place for a connection, until it is dropped. `None`: too many are open.
    /// `local` is the address that `peer` called.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr, local: Option<IpAddr>) -> Option<Place> {
        let is_own = peer.ip().is_loopback() || local == Some(peer.ip());
        let place = Place { room: self.clone(), source: (!is_own).then_some(peer.ip()) };
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        let of_source = place.source.map_or(0, |source| {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            let count = sources.entry(source).or_default();
            *count += 1;
            *count
        });
        (open < self.most && of_source <= self.most_of_one).then_some(place)
    }
}

/// One connection's place; dropping it makes room for another.
pub(super) struct Place {
    room: Arc<Room>,
    source: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.open.fetch_sub(1, Ordering::Relaxed);
        let Some(source) = self.source else { return };
        let mut sources = self.room.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&source);
            }
        }
    }
}

/// Counts a connection of a caller as open.
pub(super) struct Open(Rc<Worker>);

impl Open {
    pub(super) fn count(worker: &Rc<Worker>) -> Self {
        Counters::add(&worker.shard.counters.downstream_connections_total);
        Counters::add(&worker.shard.counters.open_downstream_connections);
        Self(worker.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.shard.counters.open_downstream_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

const PAUSE: Duration = Duration::from_millis(50);
