//! The state machine under Raft: the authoritative World, in memory.
//!
//! Every committed entry goes through `World::apply`; the changes go to the watch hub, the answer to
//! who proposed it. What is on disk is the newest snapshot file and the log after it: at start the
//! two are put together again.

use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
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
use super::snapshot::{Folder, Loaded, SnapshotError};
use super::{Answer, NodeId, Types};
use crate::server::watch::Hub;

/// The state machine given to openraft.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    facts: Arc<Facts>,
    folder: Folder,
    /// Whether a snapshot has been on disk: one that is gone later is lost.
    has_one: Arc<AtomicBool>,
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
pub(super) struct State {
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

    /// Writes what has been applied as a snapshot, if it reaches `index`. Blocks.
    pub(super) fn write_again(&self, folder: &Folder, index: u64) -> Result<bool, SnapshotError> {
        let state = self.state().clone();
        if state.applied.is_none_or(|applied| applied.index < index) {
            return Ok(false);
        }
        state.write(folder).map(|_| true)
    }

    /// Copies the World and how far it goes; the copy shares its parts.
    pub(super) fn kept(&self) -> State {
        self.state().clone()
    }

    /// Puts back what was there before a log could not be taken up.
    pub(super) fn put_back(&self, kept: State) {
        self.hub.restart(kept.world.revision);
        self.change(|now| *now = kept);
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a folder of snapshots says, before it counts: nobody sees it unless the log is there, too.
pub(super) struct Untaken {
    me: HostId,
    folder: Folder,
    facts: Arc<Facts>,
    state: State,
    has_one: bool,
}

impl Untaken {
    /// Reads the newest snapshot of a folder, on the host `me`.
    ///
    /// **Errors**: [`SnapshotError::Damaged`] when it is not what was written.
    pub(super) fn read(me: HostId, path: &Path, facts: Arc<Facts>) -> Result<Self, SnapshotError> {
        let folder = Folder::open(path)?;
        let known = facts.read(World::leans_on);
        let newest = folder.newest()?;
        let has_one = newest.is_some();
        let state = match newest {
            None => State::leaning_on(known),
            Some(loaded) => State {
                world: parse(&loaded.body, known)
                    .map_err(|reason| SnapshotError::of(&loaded.path, reason))?,
                applied: loaded.meta.last_log_id,
                membership: loaded.meta.last_membership,
            },
        };
        Ok(Self { me, folder, facts, state, has_one })
    }

    /// The last entry in it.
    pub(super) fn applied(&self) -> Option<LogId<NodeId>> {
        self.state.applied
    }

    /// Makes it the World.
    pub(super) fn take_up(self) -> Machine {
        let Self { me, folder, facts, state, has_one } = self;
        let known = facts.read(World::leans_on);
        facts.hub.restart(state.world.revision);
        if let Some(mirror) = known {
            lead(&facts.hub, me, &mirror, &state.world);
        }
        facts.change(|now| *now = state);
        Machine { facts, folder, has_one: Arc::new(AtomicBool::new(has_one)) }
    }
}

impl Machine {
    /// Opens the folder of snapshots and makes `facts` what the newest one says, on the host `me`.
    #[cfg(test)]
    pub(super) fn open(me: HostId, path: &Path, facts: Arc<Facts>) -> Result<Self, SnapshotError> {
        Untaken::read(me, path, facts).map(Untaken::take_up)
    }

    #[cfg(test)]
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
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
        let state = self.facts.state().clone();
        let signature = state.meta().signature();
        let (meta, body) = self
            .on_disk(move |folder| state.write(folder))
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(signature), AnyError::error(error)))?;
        self.has_one.store(true, Ordering::Relaxed);
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
        self.has_one.store(true, Ordering::Relaxed);
        let revision = world.revision;
        self.facts.keep_up();
        self.facts.change(|state| {
            *state = State { world, applied: meta.last_log_id, membership: meta.last_membership.clone() };
        });
        // What lies between the old and the new World is unknown: who watches begins again.
        self.facts.hub.restart(revision);
        Ok(())
    }

    /// Reads the newest snapshot. One that cannot be read is written again from memory: what has been applied is what
    /// a majority has agreed on, and openraft, given an error here, would end for good.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<NodeId>> {
        let failed = |why: String| StorageIOError::read_snapshot(None, AnyError::error(why));
        let lost = match self.on_disk(|folder| Ok(folder.newest())).await.map_err(failed)? {
            Ok(Some(Loaded { meta, body, .. })) => {
                return Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(body)) }));
            }
            Ok(None) if !self.has_one.load(Ordering::Relaxed) => return Ok(None),
            Ok(None) => "it is gone".to_owned(),
            Err(error) if error.lost().is_some() => error.to_string(),
            Err(error) => return Err(failed(error.to_string()).into()),
        };
        tracing::error!(
            lost,
            "a snapshot on disk cannot be read: what this server has in memory is written in its place"
        );
        self.build_snapshot().await.map(Some)
    }
}

impl State {
    fn leaning_on(known: Option<Arc<World>>) -> Self {
        let mut state = Self::default();
        state.world.lean_on(known);
        state
    }

    fn meta(&self) -> SnapshotMeta<NodeId, EmptyNode> {
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: self.applied.map_or_else(|| "0".to_owned(), |id| id.to_string()),
        }
    }

    /// Writes a snapshot; returns what is in the file.
    fn write(&self, folder: &Folder) -> Result<(SnapshotMeta<NodeId, EmptyNode>, Vec<u8>), SnapshotError> {
        let (meta, body) =
            (self.meta(), serde_json::to_vec(&self.world.whole()).map_err(SnapshotError::encoding)?);
        folder.write(&meta, &body)?;
        Ok((meta, body))
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
pub(super) fn parse(body: &[u8], known: Option<Arc<World>>) -> Result<World, Unread> {
    if body.is_empty() {
        return Ok(State::leaning_on(known).world);
    }
    exactly_seed(ReadSnapshot(known), body).map_err(|reason| match reason {
        Unread::Malformed(why) => Unread::Malformed(format!("its World cannot be read: {why}")),
        newer @ Unread::Newer(_) => newer,
    })
}
