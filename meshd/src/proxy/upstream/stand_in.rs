//! Stand-ins: hops that went over TCP in place of QUIC, because UDP was silent then, or a meshd handed over. Once a hop over
//! QUIC is open beside a stand-in, that takes no more requests, and ends with those it has.
//!
//! They are looked for once a second, never by a request. While UDP rests at a peer nothing is tried, and a try that fails
//! puts the next one off for as long as the stand-in is old.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_core::plan::Via;
use mesh_core::resilience::breaker;

use super::connect::ConnectError;
use super::{Pool, Slot, http2};
use crate::proxy::budget::Descriptor;
use crate::proxy::wire::{Stream, Wire};
use crate::proxy::worker::Worker;
use crate::task;
use crate::telemetry::Counters;
use crate::transport::{Expect, HopTarget, Transport, dial_hop_over_quic};

/// When the stand-ins of a pool may be replaced.
#[derive(Default)]
pub(super) struct Replacing {
    under_way: Cell<bool>,
    not_before: Cell<Option<Instant>>,
}

impl Pool {
    /// Whether a connection that was just opened is a stand-in.
    pub(super) fn is_stand_in(&self, opened: &Wire) -> bool {
        opened.transport() == Some(Transport::Tcp)
            && self.worker.upgrade().is_some_and(|worker| worker.settings.transport == Transport::Quic)
    }

    /// Begins to replace the stand-ins of a pool, where UDP may be tried. Returns whether it did.
    pub(super) fn replace_stand_ins(self: &Rc<Self>, now: Instant) -> bool {
        let replacing = &self.replacing;
        if replacing.under_way.get() || replacing.not_before.get().is_some_and(|then| now < then) {
            return false;
        }
        let opened = self.shared.borrow().iter().find(|hop| hop.is_stand_in).map(|hop| hop.opened);
        let (Some(opened), Via::Mesh { to, .. }) = (opened, &self.via) else { return false };
        let Some(worker) = self.worker.upgrade().filter(|worker| worker.dialer.tries_quic(to.hop)) else {
            return false;
        };
        let Some(descriptor) = worker.descriptors.connect() else { return false };
        replacing.under_way.set(true);
        let pool = self.clone();
        task::spawn_local("hop back to QUIC", async move {
            let limit = pool.cluster.borrow().limits.connect_timeout;
            let replaced = tokio::time::timeout(limit, pool.over_quic(&worker, descriptor)).await;
            let failed = match replaced.unwrap_or(Err(ConnectError::TimedOut(limit))) {
                Ok(replaced) => !replaced,
                Err(error) => {
                    tracing::debug!(via = ?pool.via, %error, "a hop stays on TCP");
                    true
                }
            };
            let put_off = failed.then(|| Instant::now() + opened.elapsed().min(PUT_OFF));
            pool.replacing.not_before.set(put_off);
            pool.replacing.under_way.set(false);
        });
        true
    }

    /// Opens a hop over QUIC and uses the stand-ins no more. Returns `false` where UDP is silent or rests.
    async fn over_quic(
        self: &Rc<Self>,
        worker: &Worker,
        descriptor: Descriptor,
    ) -> Result<bool, ConnectError> {
        let Via::Mesh { to, sni, .. } = &self.via else { return Ok(false) };
        let target = HopTarget {
            address: to.hop,
            sni,
            expect: &Expect::Identity(to.identity.as_ref().clone()),
            from: self.from.as_deref().ok_or(ConnectError::NoIdentity)?,
            transport: Transport::Quic,
        };
        let Some(hop) = dial_hop_over_quic(&worker.dialer, target).await? else { return Ok(false) };
        self.open.set(self.open.get() + 1);
        // It takes the place of another, which may be there a little longer.
        let permit = breaker::admit_first_connection(&self.cluster.borrow());
        let slot = Slot { pool: self.clone(), _permit: permit, under: None };
        http2::begin(slot, Wire::new(Stream::Hop(hop)).holding(descriptor)).await?;
        Counters::add(&worker.shard.counters.upstream_connections_total);
        self.shared.borrow_mut().retain(|hop| !hop.is_stand_in);
        Ok(true)
    }
}

/// The longest that a try is put off: for as long as UDP rests at most.
const PUT_OFF: Duration = Duration::from_mins(5);
