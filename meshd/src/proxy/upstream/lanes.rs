//! Lanes of a pool: each carries one opaque connection to an instance on another host, and is kept for the next.
//!
//! A lane costs a handshake, which short connections in great numbers would not be worth: only a few are dialled at a time.
//! Whoever comes meanwhile goes through the shared connection, as all do towards a peer that knows no lanes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_core::plan::{Cluster, Via};

use super::Pool;
use super::connect::{self, ConnectError};
use crate::proxy::inbound;
use crate::proxy::worker::Worker;
use crate::telemetry::Counters;
use crate::transport::{DialError, Expect, HopTarget, Lane, Transport, dial_lane};

/// The free lanes of a pool, and what it knows about its peer.
#[derive(Default)]
pub(super) struct Lanes {
    /// The one that was used last is used next, so that the others can be closed.
    free: RefCell<Vec<(Box<Lane>, Instant)>>,
    dialling: Cell<usize>,
    /// The peer knows no lanes; it may be of a newer version from then on.
    unknown_until: Cell<Option<Instant>>,
}

impl Lanes {
    fn take(&self) -> Option<Box<Lane>> {
        let (lane, _) = self.free.borrow_mut().pop()?;
        Some(lane)
    }

    /// Closes those that were free for too long. Returns whether there are others.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut free = self.free.borrow_mut();
        free.retain(|(_, since)| now.duration_since(*since) < KEPT);
        !free.is_empty()
    }

    pub(super) fn close_idle(&self) {
        self.free.borrow_mut().clear();
    }

    fn may_dial(&self) -> bool {
        let is_unknown = self.unknown_until.get().is_some_and(|until| Instant::now() < until);
        !is_unknown && self.dialling.get() < MOST_DIALLING
    }
}

/// A free lane is asked. Who asks waits for `connectTimeout` at most: a peer that is silent for so long is silent on the
/// other free lanes too.
struct Asking<'a> {
    lanes: &'a Lanes,
    answered: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.lanes.close_idle();
        }
    }
}

/// A lane being dialled.
struct Dialling<'a>(&'a Cell<usize>);

impl<'a> Dialling<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pool {
    /// Opens a way to the instance over a lane. `None`: go through the shared connection.
    pub(crate) async fn lane(
        self: &Rc<Self>,
        worker: &Worker,
        cluster: &Cluster,
    ) -> Result<Option<Box<Lane>>, ConnectError> {
        let Via::Mesh { instance, .. } = &self.via else { return Ok(None) };
        // What was free may have died meanwhile; nothing of the caller's was sent on it.
        while let Some(mut lane) = self.lanes.take() {
            let mut asking = Asking { lanes: &self.lanes, answered: false };
            let answer = lane.ask(instance).await;
            asking.answered = true;
            if let Ok(answer) = answer {
                return self.answered(lane, answer).map(Some);
            }
        }
        if worker.settings.transport != Transport::Tcp || !self.lanes.may_dial() {
            return Ok(None);
        }
        let dialled = {
            let _dialling = Dialling::begin(&self.lanes.dialling);
            self.dial(worker, cluster).await
        };
        let counters = &worker.shard.counters;
        match dialled {
            Ok(Some(mut lane)) => {
                Counters::add(&counters.upstream_connections_total);
                let answer = lane.ask(instance).await.map_err(ConnectError::Opening)?;
                self.answered(lane, answer).map(Some)
            }
            Ok(None) => {
                self.lanes.unknown_until.set(Some(Instant::now() + UNKNOWN));
                Ok(None)
            }
            Err(error) => {
                Counters::add(&counters.upstream_connect_failures_total);
                Err(error)
            }
        }
    }

    async fn dial(&self, worker: &Worker, cluster: &Cluster) -> Result<Option<Box<Lane>>, ConnectError> {
        let Via::Mesh { to, sni, .. } = &self.via else { return Ok(None) };
        let target = HopTarget {
            address: to.hop,
            sni,
            expect: &Expect::Identity(to.identity.as_ref().clone()),
            from: self.from.as_deref().ok_or(ConnectError::NoIdentity)?,
            transport: Transport::Tcp,
        };
        let descriptor = connect::descriptor(worker).await?;
        let Some(lane) = dial_lane(&worker.dialer, target).await? else { return Ok(None) };
        if let Some(wanted) = cluster.limits.tcp_keepalive {
            let failed = |source| ConnectError::Hop(DialError::Connect { address: to.hop, source });
            connect::keep_alive(lane.socket().socket(), wanted).map_err(failed)?;
        }
        Ok(Some(Box::new(lane.holding(descriptor))))
    }

    /// A peer that refuses keeps the lane open: what is asked for next may be there.
    fn answered(&self, lane: Box<Lane>, answer: Result<(), String>) -> Result<Box<Lane>, ConnectError> {
        match answer {
            Ok(()) => Ok(lane),
            Err(why) => {
                self.keep(lane);
                Err(ConnectError::Under(inbound::failure_in(why.as_bytes())))
            }
        }
    }

    /// Keeps a lane for the next connection, if what it carried has ended in order.
    pub(crate) fn park(&self, lane: Box<Lane>) {
        if lane.is_free() {
            self.keep(lane);
        }
    }

    fn keep(&self, lane: Box<Lane>) {
        let mut free = self.lanes.free.borrow_mut();
        if lane.age() < OLD && free.len() < MOST_FREE {
            let now = Instant::now();
            self.used.set(now);
            free.push((lane, now));
        }
    }
}

/// Lanes of one pool that are dialled at once.
const MOST_DIALLING: usize = 8;
/// Free lanes that one pool keeps: each holds a socket and some KiB on both hosts.
const MOST_FREE: usize = 64;
/// How long a free lane is kept.
const KEPT: Duration = Duration::from_secs(30);
/// After that a lane carries nothing new: both ends prove themselves again.
const OLD: Duration = Duration::from_hours(1);
/// How long a peer that knows no lanes is not asked again: hosts are upgraded one after another.
const UNKNOWN: Duration = Duration::from_mins(5);
