//! Listening: one loop for each socket of a worker.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;

use super::worker::Worker;
use super::{Way, inbound, outbound};
use crate::task;
use crate::telemetry::Counters;
use crate::transport::socket;

/// Starts to accept on a socket, until draining begins.
pub(super) fn start(worker: &Rc<Worker>, way: Way, socket: std::net::TcpListener) {
    if way == Way::Mesh {
        task::spawn_local("mesh accept", inbound::accept(worker.clone(), socket));
        return;
    }
    match TcpListener::from_std(socket) {
        Ok(listener) => drop(task::spawn_local("accept", run(worker.clone(), way, listener))),
        Err(error) => tracing::error!(?way, %error, "cannot accept"),
    }
}

async fn run(worker: Rc<Worker>, way: Way, listener: TcpListener) {
    let way = Rc::new(way);
    let mut draining = worker.draining.clone();
    loop {
        let accepted = tokio::select! {
            () = draining.started() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                let (worker, way) = (worker.clone(), way.clone());
                let peer = socket::unmapped(peer);
                task::spawn_local("connection", async move {
                    let _open = Open::count(&worker);
                    outbound::serve(worker.clone(), &way, stream, peer).await;
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: let others close theirs.
                tracing::warn!(?way, %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Counts a connection of a caller as open.
pub(super) struct Open(Rc<Worker>);

impl Open {
    pub(super) fn count(worker: &Rc<Worker>) -> Self {
        Counters::add(&worker.shard.counters.downstream_connections_total);
        Counters::add(&worker.shard.counters.downstream_connections);
        Self(worker.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.shard.counters.downstream_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

const PAUSE: Duration = Duration::from_millis(50);
