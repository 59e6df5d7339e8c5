//! The state machine under Raft: the authoritative World, in memory.
//!
//! Every committed entry goes through `World::apply`; the changes go to the watch hub, the answer to
//! who proposed it. What is on disk is the newest snapshot file and the log after it: at start the
//! two are put together again.

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use mesh_core::world::{ReadSnapshot, World};
use mesh_proto::command::{HostId, Revision};
use mesh_proto::exact::{Unread, exactly_seed};
use raft::storage::RaftStateMachine;
use raft::{
    AnyError, EmptyNode, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};

use super::legible::Behind;
use super::snapshot::{Folder, SnapshotError};
use super::{Answer, NodeId, Types};
use crate::server::watch::Hub;

/// The state machine given to openraft.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    facts: Arc<Facts>,
    folder: Folder,
}

/// The World and how far the log has been applied to it. Written by the machine, read by everyone.
#[derive(Debug)]
pub(in crate::server) struct Facts {
    state: RwLock<State>,
    hub: Arc<Hub>,
    /// What of the log this server cannot read, while that is so.
    pub(super) behind: Mutex<Option<(Behind, String)>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    world: World,
    applied: Option<LogId<NodeId>>,
    membership: StoredMembership<NodeId, EmptyNode>,
}

impl Facts {
    /// An empty World; what changes in it goes to `hub`.
    pub(in crate::server) fn new(hub: Arc<Hub>) -> Self {
        Self { state: RwLock::default(), hub, behind: Mutex::default() }
    }

    /// Lends the World for a short, synchronous look.
    pub(in crate::server) fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.state().world)
    }

    /// Holds what a mirror in this process says alike as that one does: a host that serves and follows has each fact once.
    pub(in crate::server) fn share(&self, mirror: &World) {
        self.change(|state| state.world.share(mirror));
    }

    /// While the log is read: what `known` says already, most likely all of it, is not held a second time.
    pub(super) fn lean_on(&self, known: Option<Arc<World>>) {
        self.change(|state| state.world.lean_on(known));
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Machine {
    /// Opens the folder of snapshots and makes `facts` what the newest one says, on the host `me`.
    ///
    /// **Errors**: [`SnapshotError::Damaged`] when it is not what was written.
    pub(super) fn open(me: HostId, path: &Path, facts: Arc<Facts>) -> Result<Self, SnapshotError> {
        let folder = Folder::open(path)?;
        let known = facts.read(World::leans_on);
        let state = match folder.newest()? {
            None => State::leaning_on(known.clone()),
            Some(loaded) => State {
                world: parse(&loaded.body, known.clone())
                    .map_err(|reason| SnapshotError::of(path, reason))?,
                applied: loaded.meta.last_log_id,
                membership: loaded.meta.last_membership,
            },
        };
        facts.hub.restart(state.world.revision);
        if let Some(mirror) = known {
            lead(&facts.hub, me, &mirror, &state.world);
        }
        facts.change(|now| *now = state);
        Ok(Self { facts, folder })
    }

    #[cfg(test)]
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether nothing has been applied yet.
    pub(super) fn is_new(&self) -> bool {
        self.facts.state().applied.is_none()
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, String> {
        let folder = self.folder.clone();
        match tokio::task::spawn_blocking(move || work(&folder)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(format!("the snapshot task failed: {error}")),
        }
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<NodeId>> {
        let State { world, applied, membership } = self.facts.state().clone();
        let meta = SnapshotMeta {
            last_log_id: applied,
            last_membership: membership,
            snapshot_id: applied.map_or_else(|| "0".to_owned(), |id| id.to_string()),
        };
        let head = meta.clone();
        let body = self
            .on_disk(move |folder| {
                let body = serde_json::to_vec(&world.whole()).map_err(SnapshotError::encoding)?;
                folder.write(&head, &body)?;
                Ok(body)
            })
            .await
            .map_err(|error| {
                StorageIOError::write_snapshot(Some(meta.signature()), AnyError::error(error))
            })?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(body)) })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeId>>, StoredMembership<NodeId, EmptyNode>), StorageError<NodeId>> {
        let state = self.facts.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let hub = Arc::clone(&self.facts.hub);
        Ok(self.facts.change(|state| {
            let answers = entries.into_iter().map(|entry| state.apply(entry, &hub));
            answers.collect()
        }))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<NodeId>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<NodeId>> {
        let (head, body) = (meta.clone(), snapshot.into_inner());
        let facts = Arc::clone(&self.facts);
        let world = self
            .on_disk(move |folder| {
                let world = parse(&body, None).map_err(|reason| {
                    if let Unread::Newer(what) = &reason {
                        facts.fall_behind(Behind::Snapshot(head.snapshot_id.clone()), what);
                    }
                    SnapshotError::of(Path::new("(sent by the leader)"), reason)
                })?;
                folder.write(&head, &body)?;
                Ok(world)
            })
            .await
            .map_err(|error| {
                StorageIOError::write_snapshot(Some(meta.signature()), AnyError::error(error))
            })?;
        let revision = world.revision;
        self.facts.keep_up();
        self.facts.change(|state| {
            *state = State { world, applied: meta.last_log_id, membership: meta.last_membership.clone() };
        });
        // What lies between the old and the new World is unknown: who watches begins again.
        self.facts.hub.restart(revision);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<NodeId>> {
        let newest = self.on_disk(Folder::newest).await;
        let newest = newest.map_err(|error| StorageIOError::read_snapshot(None, AnyError::error(error)))?;
        Ok(newest.map(|loaded| Snapshot { meta: loaded.meta, snapshot: Box::new(Cursor::new(loaded.body)) }))
    }
}

impl State {
    fn leaning_on(known: Option<Arc<World>>) -> Self {
        let mut state = Self::default();
        state.world.lean_on(known);
        state
    }

    fn apply(&mut self, entry: Entry<Types>, hub: &Hub) -> Answer {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Answer::default(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answer::default()
            }
            EntryPayload::Normal(command) => {
                let index = Revision(entry.log_id.index);
                let applied = self.world.apply(index, &command);
                hub.publish(index, applied.changes);
                Answer { revision: applied.revision, result: Some(applied.result) }
            }
        }
    }
}

/// Lets who has what this host's mirror says follow a newer snapshot without a whole World: this host itself, which holds each
/// fact once then.
///
/// The mirror may say of `me` what the mesh has not agreed on yet, so that is always told.
fn lead(hub: &Hub, me: HostId, mirror: &World, world: &World) {
    if mirror.revision < world.revision && mirror.mesh.id == world.mesh.id {
        let mut changes = world.changes_since(mirror);
        let own = world.offer_of(me);
        if !changes.contains(&own) {
            changes.push(own);
        }
        hub.bridge(mirror.revision, changes);
    }
}

/// Reads a World, leaning on what is known. Wholly: what was passed over would be missing in the next snapshot.
fn parse(body: &[u8], known: Option<Arc<World>>) -> Result<World, Unread> {
    if body.is_empty() {
        return Ok(State::leaning_on(known).world);
    }
    exactly_seed(ReadSnapshot(known), body).map_err(|reason| match reason {
        Unread::Malformed(why) => Unread::Malformed(format!("its World cannot be read: {why}")),
        newer @ Unread::Newer(_) => newer,
    })
}
