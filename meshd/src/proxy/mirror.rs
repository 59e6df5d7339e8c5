//! Copies of requests to other clusters: never waited for, never tried again, bounded.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use http_body_util::BodyExt;
use mesh_core::balance::{self, Hint};
use mesh_core::plan::{Cluster, Mirror};
use mesh_core::resilience::breaker;
use rand_core::RngCore;

use super::body::{Outgoing, Source};
use super::forward;
use super::outbound::Connection;
use super::request::{self, Head};
use super::upstream::{Ends, Opening};
use super::worker::{Caller, Chance, View, Worker};
use crate::task;
use crate::telemetry::Counters;

/// Sends copies, each by its share. Returns whether one of them waits for the body.
pub(crate) fn send(
    connection: &Connection,
    view: &View,
    mirrors: &[Mirror],
    head: &Head,
    source: Option<&Rc<Source>>,
) -> bool {
    let worker = &connection.worker;
    let Some((_, caller)) = view.outbound(connection.caller) else { return false };
    let drawn = mirrors.iter().filter(|mirror| is_drawn(mirror.parts_per_million));
    let mut waits = false;
    for cluster in drawn.filter_map(|mirror| mirror.cluster.as_ref()) {
        let under_way = worker.mirrors.get();
        if under_way >= worker.settings.max_mirrors || head.upgrade {
            Counters::add(&worker.shard.counters.dropped_mirrors_total);
            continue;
        }
        worker.mirrors.set(under_way + 1);
        let place = Place(worker.clone());
        let (caller, cluster, head, source) = (
            caller.clone(),
            cluster.addressed().unwrap_or_else(|| cluster.clone()),
            head.clone(),
            source.cloned(),
        );
        let ends = Ends { source: connection.peer, destination: None, here: connection.local };
        waits |= source.is_some();
        task::spawn_local("mirror", async move {
            let worker = &place.0;
            let copied = copy(worker, &caller, &cluster, (head, source), ends);
            let counters = &worker.shard.counters;
            match tokio::time::timeout(LIMIT, copied).await {
                Ok(Some(())) => Counters::add(&counters.mirrored_requests_total),
                _ => Counters::add(&counters.dropped_mirrors_total),
            }
        });
    }
    waits
}

fn is_drawn(parts_per_million: u32) -> bool {
    (u64::from(Chance.next_u32()) * 1_000_000) >> 32 < u64::from(parts_per_million)
}

/// One of the mirrors under way.
struct Place(Rc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

/// Sends one copy and reads its answer away. `None`: it was not answered.
async fn copy(
    worker: &Rc<Worker>,
    caller: &Rc<Caller>,
    cluster: &Arc<Cluster>,
    (head, source): (Head, Option<Rc<Source>>),
    ends: Ends,
) -> Option<()> {
    let body = match source {
        None => Outgoing::Empty,
        Some(source) => {
            source.ended().await;
            Outgoing::Whole(Some(source.whole()?))
        }
    };
    let _permit = breaker::admit_request(cluster).ok()?;
    let endpoint = balance::pick(cluster, &Hint::default(), worker.now(), &mut Chance)?;
    let _in_flight = endpoint.state.enter();
    let opening = Opening::of(worker, cluster, endpoint, || head.host().unwrap_or_default(), ends);
    // A copy has no client to speak like.
    let http2 = forward::speaks_http2(cluster, endpoint, opening.as_ref(), Version::HTTP_11);
    let pool = worker.pools.pool(worker, caller, cluster, endpoint, http2, opening);
    let mut lease = pool.checkout(cluster).await.ok()?;
    let mut headers = head.headers.clone();
    headers.insert(request::ATTEMPT_COUNT, 1.into());
    let request = head.request(headers, &pool, body)?;
    let response = lease.send(request, None).await.ok()?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.ok()?;
    }
    lease.give_back();
    Some(())
}

/// A copy takes no longer than this, body and answer included: nobody waits for it, but it holds memory.
const LIMIT: Duration = Duration::from_mins(1);
