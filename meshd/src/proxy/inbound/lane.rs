//! Lanes from other hosts: each carries opaque connections to instances here, one after another.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use mesh_core::plan::{LocalInstance, LocalPort, UpstreamProtocol};
use mesh_core::resilience::Failure;

use super::{Hop, word_of};
use crate::proxy::accept::Open;
use crate::proxy::doors::visitor::{self, Visitor};
use crate::proxy::tcp;
use crate::proxy::watch::Busy;
use crate::proxy::wire::{Stream, Wire};
use crate::proxy::worker::Worker;
use crate::telemetry::Counters;
use crate::transport::{Lane, Peer};

/// Serves a lane until its source closes it, it was idle for too long, or draining begins while it is free.
pub(super) async fn serve(worker: Rc<Worker>, peer: Peer, mut lane: Box<Lane>) {
    let _open = Open::count(&worker);
    let Some(hop) = Hop::of(&worker, peer) else { return };
    let mut draining = worker.draining.clone();
    loop {
        let asked = tokio::select! {
            () = draining.started() => return,
            asked = tokio::time::timeout(worker.settings.idle_timeout, lane.asked()) => asked,
        };
        let served = match asked {
            Ok(Ok(Some(instance))) => one(&hop, lane, &instance).await,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => Err(error),
        };
        match served {
            Ok(Some(free)) => lane = free,
            Ok(None) => return,
            Err(error) => return tracing::debug!(peer = %hop.peer.address, %error, "a lane broke"),
        }
    }
}

/// Carries one connection to the instance it is for. Returns the lane if it may carry another.
async fn one(hop: &Hop, mut lane: Box<Lane>, instance: &str) -> io::Result<Option<Box<Lane>>> {
    let _busy = Busy::new(&hop.watch);
    let Some((found, port)) = find(hop, instance) else {
        hop.refuse(&instance);
        lane.refuse(word_of(Failure::RefusedStream)).await?;
        return Ok(Some(lane));
    };
    Counters::add(&hop.worker.shard.counters.inbound_requests_total);
    let door = visitor::gateway_at(&hop.worker.view().plan, port.target);
    if let Some(door) = door {
        lane.grant().await?;
        let visitor = Visitor { worker: hop.worker.clone(), peer: hop.peer.address, seat: door.seat };
        let wire = Wire::new(Stream::Lane(lane));
        Box::pin(visitor.enter_by_hop(&door, None, hop.shown(door.seat), wire)).await;
        return Ok(None);
    }
    let (cluster, _) = hop.application(&port, UpstreamProtocol::Tcp);
    let mut wanted = hop.wanted(&found);
    match Box::pin(tcp::reach(&hop.worker, &hop.caller, &cluster, &mut wanted)).await {
        Ok(reached) => {
            lane.grant().await?;
            let mut wire = Wire::new(Stream::Lane(lane));
            tcp::join(&hop.worker, &mut wire, reached).await;
            Ok(wire.into_lane().filter(|lane| lane.is_free()))
        }
        Err(failure) => {
            // A limit reached here is, to the source, an application that takes no connection.
            let failure = if failure == Failure::Overflow { Failure::Connect } else { failure };
            lane.refuse(word_of(failure)).await?;
            Ok(Some(lane))
        }
    }
}

fn find(hop: &Hop, instance: &str) -> Option<(Arc<LocalInstance>, LocalPort)> {
    let view = hop.worker.view();
    let instance = view.plan.inbound.instances.get(instance)?;
    Some((instance.clone(), hop.port(instance)?.clone()))
}
