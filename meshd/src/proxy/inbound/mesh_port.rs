//! Accepting on the mesh port, over TCP and QUIC, until it is left.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{lane, serve};
use crate::drain::{self, Drain, Draining};
use crate::proxy::accept::{Place, Room};
use crate::proxy::budget::{CONNECTION_BYTES, Descriptor};
use crate::proxy::worker::Worker;
use crate::task;
use crate::telemetry::Counters;
use crate::transport::{Accepted, Listener, Peer, QuicListener, QuicOptions, Refused};

/// Accepts on the mesh port until it is left. What is no hop goes to the control plane.
pub(in crate::proxy) async fn accept(worker: Rc<Worker>, socket: std::net::TcpListener, room: Arc<Room>) {
    let mut listener = match Listener::new(socket, worker.dialer.credentials()) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot accept on the mesh port"),
    };
    let mut leaving = leaving(&worker);
    loop {
        let accepted = tokio::select! {
            () = &mut leaving => break,
            accepted = listener.accept() => accepted,
        };
        took_in(&worker, &room, accepted, None);
    }
    // Who has begun to shake hands is not left standing there.
    let mut under_way = listener.leave();
    while let Some(accepted) = under_way.next().await {
        took_in(&worker, &room, accepted, None);
    }
}

/// Accepts on the mesh port over QUIC, like [`accept()`], until draining or `leaving` begins: then its hops end, told so, while
/// callers go over TCP. Who leaves lets go of the socket then, as two processes cannot read one; who drains, or is told to
/// while it leaves, carries control traffic to the worker's end.
pub(in crate::proxy) async fn accept_quic(
    worker: Rc<Worker>,
    socket: std::net::UdpSocket,
    options: QuicOptions,
    room: Arc<Room>,
    mut leaving: Draining,
) {
    let mut listener = match QuicListener::new(socket, worker.dialer.credentials(), &options) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot accept on the mesh port over QUIC"),
    };
    let mut draining = worker.draining.clone();
    let (hops, _) = drain::channel();
    loop {
        tokio::select! {
            () = draining.started() => break,
            () = leaving.started() => break,
            accepted = listener.accept() => took_in(&worker, &room, accepted, Some(&hops)),
        }
    }
    listener.leave();
    hops.start();
    {
        let enough = async {
            tokio::select! {
                // How long that may take, it knows itself, also where it begins only now.
                () = draining.started() => std::future::pending::<()>().await,
                () = tokio::time::sleep(QUIC_LEAVES_WITHIN) => {}
            }
        };
        let mut ended = pin!(hops.finished_or(enough));
        loop {
            tokio::select! {
                biased;
                // What was served before is one of them.
                accepted = listener.accept() => took_in(&worker, &room, accepted, Some(&hops)),
                left = &mut ended => {
                    if left > 0 {
                        tracing::info!(left, "hops over QUIC are cut: another meshd takes over");
                    }
                    break;
                }
            }
        }
    }
    if !draining.has_started() {
        return listener.close().await;
    }
    let control = worker.control.clone();
    // The drain waits for nothing of this any more.
    drop((worker, draining));
    loop {
        match listener.accept().await {
            Ok(Accepted::Hop(..) | Accepted::Lane(..)) | Err(_) => {}
            Ok(other) => to_control(&control, other),
        }
    }
}

/// Waits until the mesh port is a successor's, or draining begins.
fn leaving(worker: &Rc<Worker>) -> Pin<Box<dyn Future<Output = ()>>> {
    let (mut draining, mut leaving) = (worker.draining.clone(), worker.leaving_mesh.clone());
    Box::pin(async move {
        tokio::select! {
            () = draining.started() => {}
            () = leaving.started() => {}
        }
    })
}

/// Waits for the first Plan: a successor is given the mesh port before it has one, and would say of every instance that there
/// is none.
async fn planned(worker: Rc<Worker>) {
    let deadline = Instant::now() + PLANNED_WITHIN;
    let has_one = || {
        let plan = &worker.view().plan;
        plan.revision.0 > 0 || !plan.inbound.instances.is_empty()
    };
    while !has_one() && Instant::now() < deadline {
        tokio::time::sleep(PLAN_IS_LOOKED_FOR_EVERY).await;
    }
}

/// Links of the control plane always have room: only hops are bounded.
/// `hops`: who tells hops to end before the worker drains.
fn took_in(worker: &Rc<Worker>, room: &Arc<Room>, accepted: Result<Accepted, Refused>, hops: Option<&Drain>) {
    match accepted {
        Ok(Accepted::Hop(peer, stream)) => {
            let Some(held) = admit(worker, room, &peer) else { return };
            let begun = planned(worker.clone());
            let served = serve(worker.clone(), peer, stream, hops.map(Drain::listener));
            task::spawn_local("hop", async move {
                let _held = held;
                begun.await;
                served.await;
            });
        }
        Ok(Accepted::Lane(peer, lane)) => {
            let Some(held) = admit(worker, room, &peer) else { return };
            let (begun, served) = (planned(worker.clone()), lane::serve(worker.clone(), peer, lane));
            task::spawn_local("lane", async move {
                let _held = held;
                begun.await;
                served.await;
            });
        }
        Ok(other) => to_control(&worker.control, other),
        Err(refused) => {
            Counters::add(&worker.shard.counters.refused_hops_total);
            tracing::info!(peer = %refused.address, reason = %refused.fault, "hop refused");
        }
    }
}

fn to_control(control: &mpsc::Sender<Accepted>, link: Accepted) {
    if control.try_send(link).is_err() {
        tracing::warn!("control connection dropped: the control plane is too busy, or not running");
    }
}

/// Takes a place and a descriptor for a connection of a peer. `None`: too many are open, or memory is short.
fn admit(worker: &Worker, room: &Arc<Room>, peer: &Peer) -> Option<(Place, Descriptor)> {
    worker.intake.took(CONNECTION_BYTES);
    let place = room.admit(peer.address, None).filter(|_| !worker.intake.is_short());
    let held = place.zip(worker.descriptors.accept());
    if held.is_none() {
        Counters::add(&worker.shard.counters.refused_connections_total);
        tracing::info!(peer = %peer.address, "hop closed: too many are open, or memory is short");
    }
    held
}

/// A start takes a tenth of that; callers wait longer.
const PLANNED_WITHIN: Duration = Duration::from_secs(3);
const PLAN_IS_LOOKED_FOR_EVERY: Duration = Duration::from_millis(2);
/// How long hops over QUIC may take to end when another meshd takes over, which waits meanwhile.
pub(in crate::proxy) const QUIC_LEAVES_WITHIN: Duration = Duration::from_secs(5);
