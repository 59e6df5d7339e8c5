//! All pools of one worker.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use foldhash::HashMap;
use mesh_core::plan::{Cluster, Endpoint, UpstreamTls, Via};

use super::opening::Opening;
use super::{Manner, Pool};
use crate::proxy::worker::{Caller, Worker};
use crate::telemetry::{Counters, EdgeKey};

/// All pools of one worker. An endpoint is known by where its state lies, which a new Plan carries over.
#[derive(Default)]
pub(crate) struct Pools(RefCell<HashMap<Key, Rc<Pool>>>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    state: usize,
    caller: u32,
    http2: bool,
    opening: Option<Opening>,
}

impl Pools {
    /// Returns the pool of a caller and an endpoint for connections that begin alike, made when it is new or the
    /// endpoint has moved.
    pub(crate) fn pool(
        &self,
        worker: &Rc<Worker>,
        caller: &Caller,
        cluster: &Arc<Cluster>,
        endpoint: &Endpoint,
        http2: bool,
        opening: Option<Opening>,
    ) -> Rc<Pool> {
        let state = Arc::as_ptr(&endpoint.state) as usize;
        let key = Key { state, caller: caller.id, http2, opening };
        if let Some(pool) = self.0.borrow().get(&key)
            && same(&pool.via, &endpoint.via)
        {
            return pool.clone();
        }
        let edge = worker.shard.edge(&EdgeKey {
            source: caller.name.clone(),
            destination: cluster.name.host.clone(),
            port: cluster.name.port,
            subset: cluster.name.subset.clone(),
            version: endpoint.traits.version.clone(),
        });
        let shows = matches!(endpoint.via, Via::Mesh { .. }) || matches!(cluster.tls, UpstreamTls::Mesh(_));
        let from = shows.then(|| caller.identity.clone()).flatten();
        // What is said to the application on another host goes through a tunnel over the hop to it.
        let tunnels = key.opening.is_some() && matches!(endpoint.via, Via::Mesh { .. });
        let under = tunnels.then(|| self.pool(worker, caller, cluster, endpoint, true, None));
        let manner = Manner { http2, opening: key.opening.clone(), under };
        let pool = Rc::new(Pool::new(worker, cluster, endpoint, from, manner, edge));
        if let Some(old) = self.0.borrow_mut().insert(key, pool.clone()) {
            old.close_idle();
        }
        pool
    }

    /// Closes every connection that nobody uses, to make room for others.
    pub(crate) fn close_idle(&self) {
        self.0.borrow().values().for_each(|pool| pool.close_unused());
    }

    /// Tells how many connections there are and who waits for one.
    pub(crate) fn tell(&self, counters: &Counters) {
        let (mut open, mut waiting) = (0, 0);
        let pools = self.0.borrow();
        for pool in pools.values() {
            open += pool.open.get();
            waiting += pool.waiting.borrow().len();
        }
        counters.open_upstream_connections.store(open as u64, Relaxed);
        counters.upstream_waiting_requests.store(waiting as u64, Relaxed);
        counters.upstream_pools.store(pools.len() as u64, Relaxed);
    }

    /// Closes what was idle for too long, forgets pools that nobody uses, and has a few hops that went over TCP return to QUIC.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut returning = 0;
        self.0.borrow_mut().retain(|_, pool| {
            if returning < RETURNING_AT_ONCE && pool.replace_stand_ins(now) {
                returning += 1;
            }
            !pool.sweep(now)
        });
    }
}

/// Compares the cheap way first: an endpoint that did not move mostly is the very same.
fn same(a: &Via, b: &Via) -> bool {
    match (a, b) {
        (
            Via::Mesh { to, sni, instance },
            Via::Mesh { to: other_to, sni: other_sni, instance: other_instance },
        ) => {
            let alike = |a: &Arc<str>, b: &Arc<str>| Arc::ptr_eq(a, b) || a == b;
            (Arc::ptr_eq(to, other_to) || to == other_to)
                && alike(sni, other_sni)
                && alike(instance, other_instance)
        }
        _ => a == b,
    }
}

/// Hops that begin to return to QUIC within one second: each may be a handshake, and a host has many peers.
const RETURNING_AT_ONCE: usize = 16;
