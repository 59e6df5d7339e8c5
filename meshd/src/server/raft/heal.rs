//! In place of a snapshot that cannot be read: another one, from memory or from another server.
//!
//! That loses nothing. A snapshot is a part of the log that a majority has agreed on, so any server's that reaches as far
//! says the same. What a server has promised is not in it but in the log's file: its vote, and the entries it acknowledged.
//! So a *log* that is damaged or gone is never made up for: who has forgotten a vote could vote twice, and who has forgotten an
//! entry could help to elect a leader without it. While its snapshot is lost a server takes no part: it votes for
//! nobody, acknowledges nothing, and answers nobody; and what takes the place of the lost one reaches at least as far, so that it never
//! has less than it said it had. `docs/decisions/019-damage-on-a-voter.md`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_core::world::World;
use mesh_proto::command::{HostId, Liveness};
use raft::raft::InstallSnapshotRequest;
use raft::{EmptyNode, Snapshot, SnapshotMeta, Vote};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::machine::parse;
use super::network::{Message, refusal};
use super::snapshot::{Folder, SnapshotError};
use super::{Consensus, Facts, NodeId, Types};
use crate::server::peers::Peers;
use crate::transport::Service;

type Whole = (SnapshotMeta<NodeId, EmptyNode>, Vec<u8>);

/// What a server asks the others for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// The snapshot must hold all entries up to this one.
    index: u64,
    /// Of which snapshot this is the next piece; `None` for the first piece of any.
    id: Option<String>,
    /// Where the piece begins, in bytes.
    offset: u64,
}

/// Puts another snapshot in the place of one that is `lost`, for the host `me`.
///
/// **Errors**: `lost` itself where no other server is known, [`SnapshotError::NoOther`] where none gives one now.
pub(super) async fn replace(
    lost: SnapshotError,
    me: HostId,
    path: &Path,
    facts: &Arc<Facts>,
    peers: &Peers,
) -> Result<(), SnapshotError> {
    let Some(index) = lost.lost() else { return Err(lost) };
    tracing::error!(why = %lost, "a snapshot cannot be read: this server takes no part until it has another");
    let folder = Folder::open(path)?;
    let (own, into) = (Arc::clone(facts), folder.clone());
    if on_disk(move || own.write_again(&into, index)).await? {
        tracing::info!(index, "the snapshot was written again from memory");
        return Ok(());
    }
    let others = others(me, facts);
    if others.is_empty() {
        return Err(lost);
    }
    match timeout(WHOLE, fetch(peers, &others, index)).await {
        Ok(Ok((from, (meta, body)))) => {
            on_disk(move || folder.write(&meta, &body)).await?;
            tracing::info!(index, %from, "another server has given a snapshot in its place");
            Ok(())
        }
        Ok(Err(tried)) => Err(SnapshotError::NoOther { lost: Box::new(lost), tried }),
        Err(_) => {
            let tried = format!("none did within {WHOLE:?}");
            Err(SnapshotError::NoOther { lost: Box::new(lost), tried })
        }
    }
}

/// Hosts that may have one, as the mirror of this host or its own World knows them; those that were alive first.
fn others(me: HostId, facts: &Facts) -> Vec<(HostId, SocketAddr)> {
    let may_have = |world: &World| {
        let mut found: Vec<_> =
            world.hosts.iter().filter(|(id, host)| **id != me && host.voter_eligible).collect();
        found.sort_by_key(|(_, host)| host.liveness != Liveness::Live);
        found.into_iter().map(|(id, host)| (*id, host.facts.address)).collect()
    };
    match facts.read(World::leans_on) {
        Some(mirror) => may_have(&mirror),
        None => facts.read(may_have),
    }
}

async fn fetch(
    peers: &Peers,
    others: &[(HostId, SocketAddr)],
    index: u64,
) -> Result<(SocketAddr, Whole), String> {
    let mut reasons = Vec::new();
    for (id, at) in others {
        match fetch_from(peers, (*id, *at), index).await {
            Ok(whole) => return Ok((*at, whole)),
            Err(why) => reasons.push(format!("{at}: {why}")),
        }
    }
    Err(reasons.join("; "))
}

/// Gets all pieces from one server.
async fn fetch_from(peers: &Peers, (id, at): (HostId, SocketAddr), index: u64) -> Result<Whole, String> {
    let mut body = Vec::new();
    let mut known: Option<String> = None;
    loop {
        let wanted = Wanted { index, id: known.clone(), offset: body.len() as u64 };
        let frame = Message::Wanted(wanted).encode().map_err(|error| error.to_string())?;
        let answer = timeout(PIECE, peers.carry(id, at, Service::Raft, frame, PIECE)).await;
        let answer = answer.map_err(|_| format!("no answer within {PIECE:?}"))?.map_err(|error| error.0)?;
        let Ok(Message::Snapshot(piece)) = Message::decode(&answer) else { return Err(refusal(&answer)) };
        let reaches = piece.meta.last_log_id.is_some_and(|last| last.index >= index);
        let is_next = piece.offset == body.len() as u64
            && known.as_ref().is_none_or(|known| *known == piece.meta.snapshot_id);
        if !reaches || !is_next || (piece.data.is_empty() && !piece.done) {
            return Err("it gave a piece of something else".to_owned());
        }
        if body.len() + piece.data.len() > MOST_BYTES {
            return Err(format!("its snapshot has more than {} MiB", MOST_BYTES >> 20));
        }
        body.extend_from_slice(&piece.data);
        if piece.done {
            parse(&body, None).map_err(|why| why.to_string())?;
            return Ok((piece.meta, body));
        }
        known = Some(piece.meta.snapshot_id);
    }
}

impl Consensus {
    /// Gives a piece of this server's snapshot to another member: there are tokens and sealed keys in it.
    pub(super) async fn give_snapshot(&self, to: HostId, wanted: &Wanted) -> Result<Bytes, String> {
        if !self.members().iter().any(|member| member.id == to) {
            return Err(format!("host {to} is no server of this mesh"));
        }
        let Snapshot { meta, snapshot } = self.snapshot_up_to(wanted.index).await?;
        if wanted.id.as_ref().is_some_and(|id| *id != meta.snapshot_id) {
            return Err("a newer snapshot has taken the place of that one".to_owned());
        }
        let body = snapshot.into_inner();
        let start = usize::try_from(wanted.offset).unwrap_or(usize::MAX).min(body.len());
        let end = start.saturating_add(PIECE_BYTES).min(body.len());
        let piece = InstallSnapshotRequest {
            vote: Vote::default(),
            meta,
            offset: start as u64,
            data: body[start..end].to_vec(),
            done: end == body.len(),
        };
        Message::Snapshot(piece).encode().map_err(|error| error.to_string())
    }

    /// Returns this server's snapshot, made anew where it does not reach `index`.
    async fn snapshot_up_to(&self, index: u64) -> Result<Snapshot<Types>, String> {
        let raft = self.raft();
        let mut metrics = raft.metrics();
        let (applied, taken) = {
            let now = metrics.borrow();
            (now.last_applied.map_or(0, |id| id.index), now.snapshot.map_or(0, |id| id.index))
        };
        if applied < index {
            return Err(format!("it has entries up to {applied}, and {index} is asked for"));
        }
        if taken < index {
            raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
            let is_taken = metrics.wait_for(|now| now.snapshot.is_some_and(|id| id.index >= index));
            let is_taken = timeout(PIECE / 2, is_taken).await.map_err(|_| "its snapshot takes too long")?;
            drop(is_taken.map_err(|error| error.to_string())?);
        }
        match raft.get_snapshot().await {
            Ok(Some(snapshot)) => Ok(snapshot),
            Ok(None) => Err("it has no snapshot".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(SnapshotError::broken_off(error)))
}

/// Bytes in a piece; a frame holds 16 MiB. Tests have several of them all the same.
const PIECE_BYTES: usize = if cfg!(test) { 1 << 20 } else { 8 << 20 };
/// What a snapshot may have in all: a server of 10,000 services keeps all of it in 150 MB.
const MOST_BYTES: usize = 1 << 30;
/// How long a server may take for a piece: it may have to take the snapshot first.
const PIECE: Duration = Duration::from_secs(10);
/// How long all servers together may take; systemd waits 90 s for a start.
const WHOLE: Duration = Duration::from_secs(45);
