//! Agreement: one log, one World, on a majority of voters. The only module that knows openraft.
//!
//! openraft runs with its own elections and heartbeats switched off; [`election`] drives both. What
//! goes in is an `Entry` ([`Consensus::propose`]), what comes out is the World ([`Facts`]) and the
//! stream of its changes (`watch::Hub`). A write is answered when a majority has it on disk and it
//! has been applied here.
//!
//! After a failed write to disk openraft stops. Reads from memory go on; proposals are refused with
//! the reason; `Server` opens the log anew as soon as that works.

mod election;
mod group;
mod heal;
mod legible;
mod machine;
mod network;
mod snapshot;
mod store;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use mesh_core::election::Role;
use mesh_core::world::{Done, World};
use mesh_proto::api::ApiError;
use mesh_proto::command::{Entry, HostId, Revision};
use mesh_proto::exact::{Unread, exactly};
use raft::error::{CheckIsLeaderError, ClientWriteError, Fatal, RaftError};
use raft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use raft::{Config, EmptyNode, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::group::Member;
use self::legible::Behind;
pub(super) use self::machine::Facts;
use self::machine::Untaken;
use self::network::{Message, Network, Opinion, Question, Reading};
pub use self::snapshot::SnapshotError;
use self::store::Store;
pub use self::store::StoreError;
use super::peers::{Carrier, Peers};
use super::watch::Hub;

type NodeId = u64;

raft::declare_raft_types!(
    /// What openraft is told about the types of this log.
    pub(super) Types:
        D = Arc<Entry>,
        R = Answer,
        NodeId = NodeId,
        Node = EmptyNode,
);

/// The answer to a proposal; empty for entries of Raft itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    revision: Revision,
    result: Option<Result<Done, ApiError>>,
}

/// Why a server's state on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The snapshots.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What is in them does not fit together, or an entry cannot be read from the disk now.
    #[error("the Raft state cannot be taken up: {0}")]
    State(String),
}

impl OpenError {
    /// Whether another server's snapshot may take the place of what is damaged.
    pub fn is_replaceable(&self) -> bool {
        matches!(self, Self::Snapshot(error) if error.lost().is_some())
    }

    /// Whether the next try would meet the same: only a person can put it right.
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Store(error) => !matches!(error, StoreError::Open { .. }),
            Self::Snapshot(error) => error.needs_person(),
            Self::State(_) => false,
        }
    }
}

/// Looks at a server's files while no server has them open, and changes none; returns what keeps it from starting.
pub(super) fn inspect(folder: &Path, has_log: bool) -> Vec<OpenError> {
    let newest = snapshot::inspect(&folder.join(SNAPSHOTS));
    let has_log = has_log || !matches!(newest, Ok(None));
    let log = store::inspect(&folder.join(LOG), has_log);
    let gap = match (&newest, &log) {
        (Ok(newest), Ok(Some(index))) if newest.is_none_or(|newest| newest < *index) => {
            Some(SnapshotError::Gone { path: folder.join(SNAPSHOTS), index: *index })
        }
        _ => None,
    };
    let of_snapshot = newest.err().or(gap).map(Into::into);
    of_snapshot.into_iter().chain(log.err().map(Into::into)).collect()
}

/// What became of a proposal that a majority has on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposed {
    /// The revision at which the answer holds.
    pub revision: Revision,
    /// What was done, or why it was refused.
    pub result: Result<Done, ApiError>,
}

/// Why a proposal, or a question to the leader, was not answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// Another server leads; nothing was changed.
    #[error("this server does not lead the mesh")]
    NotLeader(Option<HostId>),
    /// Known before anything was written: a majority does not answer.
    #[error("{0}")]
    NoQuorum(String),
    /// No answer in time; the entry may still be agreed on later.
    #[error("{0}")]
    Unknown(String),
    /// The disk of this server refuses writes, the server is stopping, or a member cannot read what is to be written.
    #[error("{0}")]
    Unavailable(String),
}

/// This server's part in the group.
pub(super) struct Consensus {
    id: HostId,
    folder: PathBuf,
    /// Replaced when the log is opened anew after a failed write.
    engine: ArcSwap<Engine>,
    facts: Arc<Facts>,
    peers: Arc<Peers>,
    network: Network,
    /// When a leader's message was last taken in.
    led: Mutex<Option<Instant>>,
    /// Why the log could not be opened anew, while that is so.
    closed: Mutex<Option<String>>,
    /// How often the election driver has looked at its timer.
    #[cfg(test)]
    pub(super) looks: std::sync::atomic::AtomicU64,
}

/// openraft and the log under it.
struct Engine {
    raft: Raft<Types>,
    store: Store,
}

impl Engine {
    async fn open(
        id: HostId,
        folder: &Path,
        has_log: bool,
        facts: Arc<Facts>,
        network: Network,
    ) -> Result<Self, OpenError> {
        let opened = match open_files(id, folder, has_log, &facts).await {
            Err(OpenError::Snapshot(lost)) if lost.lost().is_some() => {
                heal::replace(lost, id, &folder.join(SNAPSHOTS), &facts, &network.peers).await?;
                open_files(id, folder, has_log, &facts).await
            }
            opened => opened,
        };
        let (store, snapshot) = opened?;
        let before = facts.kept();
        let machine = snapshot.take_up();
        match Raft::new(id.0, Arc::new(config()?), network, store.clone(), machine).await {
            Ok(raft) => Ok(Self { raft, store }),
            Err(error) => {
                store.close().await;
                facts.put_back(before);
                Err(OpenError::State(error.to_string()))
            }
        }
    }
}

/// Opens snapshots and log, and makes sure that the one leads on to the other: half a World is never served.
async fn open_files(
    id: HostId,
    folder: &Path,
    has_log: bool,
    facts: &Arc<Facts>,
) -> Result<(Store, Untaken), OpenError> {
    let (log, snapshots, facts) = (folder.join(LOG), folder.join(SNAPSHOTS), Arc::clone(facts));
    let opened = tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
        // Snapshots first: their folder is made with all above it.
        let snapshot = Untaken::read(id, &snapshots, facts)?;
        let has_log = has_log || snapshot.applied().is_some();
        Ok((Store::open(&log, has_log)?, snapshot))
    });
    let (store, snapshot) = opened.await.map_err(|error| OpenError::State(error.to_string()))??;
    let (purged, applied) = (store.purged().map(|id| id.index), snapshot.applied());
    if let Some(index) = purged.filter(|purged| applied.is_none_or(|applied| applied.index < *purged)) {
        store.close().await;
        return Err(SnapshotError::Gone { path: folder.join(SNAPSHOTS), index }.into());
    }
    if let Some(applied) = applied
        && let Err(error) = store.fit(applied).await
    {
        store.close().await;
        return Err(OpenError::State(error.to_string()));
    }
    Ok((store, snapshot))
}

impl Consensus {
    /// Takes up the state in `folder` (or begins an empty one) and joins in.
    ///
    /// Runs on the runtime it is called from. A server without members in its log waits until a
    /// leader adds it, or until [`Consensus::begin`]. What the log says as `mirror` does is held once. With
    /// `has_log`, a log that is gone is refused.
    pub(super) async fn open(
        id: HostId,
        folder: &Path,
        has_log: bool,
        carrier: Arc<dyn Carrier>,
        hub: Arc<Hub>,
        mirror: Arc<World>,
    ) -> Result<Self, OpenError> {
        let facts = Arc::new(Facts::new(hub));
        facts.lean_on(Some(mirror));
        let peers = Arc::new(Peers::new(id, carrier, Arc::clone(&facts)));
        let network = Network { peers: Arc::clone(&peers) };
        let engine = Engine::open(id, folder, has_log, Arc::clone(&facts), network.clone()).await?;
        facts.lean_on(None);
        let (engine, folder) = (ArcSwap::from_pointee(engine), folder.to_owned());
        Ok(Self {
            id,
            folder,
            engine,
            facts,
            peers,
            network,
            led: Mutex::default(),
            closed: Mutex::default(),
            #[cfg(test)]
            looks: std::sync::atomic::AtomicU64::default(),
        })
    }

    /// Opens log and snapshots anew after a failed write; the World is what they say.
    async fn reopen(&self) -> Result<(), OpenError> {
        let failed = self.engine.load_full();
        // It has failed already: what it says to this is no news.
        let _ = failed.raft.shutdown().await;
        failed.store.close().await;
        let engine =
            Engine::open(self.id, &self.folder, true, Arc::clone(&self.facts), self.network.clone()).await?;
        self.engine.store(Arc::new(engine));
        Ok(())
    }

    fn raft(&self) -> Raft<Types> {
        self.engine.load().raft.clone()
    }

    /// Begins a group of which this server is the only voter; does nothing on a later start.
    pub(super) async fn begin(&self) -> Result<(), ProposeError> {
        if self.raft().is_initialized().await.map_err(fatal)? {
            return Ok(());
        }
        let alone = BTreeSet::from([self.id.0]);
        self.raft().initialize(alone).await.map_err(|error| ProposeError::Unavailable(error.to_string()))
    }

    /// Puts an entry into the log and returns what applying it came to.
    ///
    /// **Errors**: at once when this server does not lead or knows that a majority does not answer;
    /// [`ProposeError::Unknown`] after `timeout`.
    pub(super) async fn propose(&self, entry: Entry, timeout: Duration) -> Result<Proposed, ProposeError> {
        self.lead()?;
        if let Some(gap) = self.no_quorum() {
            return Err(ProposeError::NoQuorum(gap));
        }
        self.check_legible(&entry).await?;
        let written = tokio::time::timeout(timeout, self.raft().client_write(Arc::new(entry))).await;
        let answer = match written {
            Err(_) => return Err(ProposeError::Unknown(self.why_slow(timeout))),
            Ok(Err(error)) => return Err(refused(error)),
            Ok(Ok(response)) => response.data,
        };
        let result = answer.result.unwrap_or(Ok(Done::Ok));
        Ok(Proposed { revision: answer.revision, result })
    }

    /// Makes sure that this server still leads and has applied all that was agreed before the call.
    ///
    /// **Source**: Raft dissertation §6.4, read index.
    pub(super) async fn read_index(&self, timeout: Duration) -> Result<(), ProposeError> {
        self.lead()?;
        if let Some(gap) = self.no_quorum() {
            return Err(ProposeError::NoQuorum(gap));
        }
        let confirmed = tokio::time::timeout(timeout, self.confirm_lead());
        confirmed.await.unwrap_or_else(|_| Err(ProposeError::NoQuorum(self.why_slow(timeout))))
    }

    /// Asks a majority whether this server leads, again while it cannot be known.
    async fn confirm_lead(&self) -> Result<(), ProposeError> {
        loop {
            match self.raft().ensure_linearizable().await {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                    return Err(ProposeError::NotLeader(to.leader_id.map(HostId)));
                }
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                    if let Some(gap) = self.no_quorum() {
                        return Err(ProposeError::NoQuorum(gap));
                    }
                }
                Err(RaftError::Fatal(error)) => return Err(fatal(error)),
            }
            tokio::time::sleep(mesh_core::election::HEARTBEAT).await;
        }
    }

    /// Hears a message of another server and returns the answer.
    ///
    /// `from` is the host that the caller's certificate names. **Errors**: a sentence for the caller
    /// when the message cannot be read or is not its to send.
    pub(super) async fn receive(&self, from: HostId, frame: &[u8]) -> Result<Bytes, String> {
        if let Some(reason) = self.failure() {
            return Err(format!("its server takes no part: {reason}"));
        }
        let message = match Message::decode(frame) {
            Ok(message) => message,
            Err(Unread::Newer(what)) => {
                self.hear(from)?;
                return Err(self.facts.fall_behind(Behind::Entry, &what));
            }
            Err(Unread::Malformed(why)) => return Err(why),
        };
        if message.speaks_for().is_some_and(|claimed| claimed != from) {
            return Err(format!("host {from} sent a Raft message in the name of another"));
        }
        self.hear(from)?;
        let answer = match message {
            Message::Append(request) => serde_json::to_vec(&self.append(request).await),
            Message::Vote(request) => serde_json::to_vec(&self.raft().vote(request).await),
            Message::Snapshot(chunk) => {
                self.check_snapshot(&chunk)?;
                serde_json::to_vec(&self.raft().install_snapshot(chunk).await)
            }
            Message::Wanted(wanted) => return self.give_snapshot(from, &wanted).await,
            Message::Ask(question) => serde_json::to_vec(&self.opinion(&question).await?),
            Message::Read(entry) => serde_json::to_vec(&Reading {
                newer: exactly::<Entry>(&entry).err().map(|why| why.to_string()),
            }),
        };
        answer.map(Bytes::from).map_err(|error| error.to_string())
    }

    async fn append(
        &self,
        request: AppendEntriesRequest<Types>,
    ) -> Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>> {
        let brings_entries = !request.entries.is_empty();
        let answer = self.raft().append_entries(request).await;
        if brings_entries && matches!(answer, Ok(AppendEntriesResponse::Success)) {
            self.facts.keep_up();
        }
        if !matches!(answer, Ok(AppendEntriesResponse::HigherVote(_)) | Err(_)) {
            *self.led.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        answer
    }

    /// Whether a leader was heard within the longest election time-out.
    fn is_led(&self) -> bool {
        let led = *self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.is_some_and(|at| at.elapsed() < mesh_core::election::TIMEOUT_MAX)
    }

    /// Whether messages of this host count.
    ///
    /// Members do, and hosts that may become one: the present leader can be a voter that this server
    /// has not yet read about. A server that knows nobody hears every host of the mesh.
    fn hear(&self, from: HostId) -> Result<(), String> {
        let members = self.members();
        let may_lead =
            |id| self.facts.read(|world| world.hosts.get(&id).is_some_and(|host| host.voter_eligible));
        if members.is_empty() || members.iter().any(|member| member.id == from) || may_lead(from) {
            return Ok(());
        }
        Err(format!("host {from} is no server of this mesh"))
    }

    async fn opinion(&self, question: &Question) -> Result<Opinion, String> {
        let raft = self.raft();
        let silence = raft.with_raft_state(|state| state.vote_last_modified().map(|at| at.elapsed()));
        let silence = silence.await.map_err(|error| error.to_string())?;
        let log_is_longer = self.engine.load().store.last_log_id() > question.last_log_id;
        let leads = self.role() == Role::Leader;
        let silence = if leads { Some(Duration::ZERO) } else { silence };
        let silence_ms = silence.map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
        Ok(Opinion { silence_ms, log_is_longer })
    }

    /// Which host this server is on.
    pub(super) fn id(&self) -> HostId {
        self.id
    }

    /// What this server is now.
    pub(super) fn role(&self) -> Role {
        role_of(&self.watch().borrow())
    }

    /// Whether this server leads.
    pub(super) fn leads(&self) -> bool {
        self.role() == Role::Leader
    }

    /// The leader as far as this server knows; `None` while there is none.
    pub(super) fn leader(&self) -> Option<HostId> {
        self.watch().borrow().current_leader.map(HostId)
    }

    /// The present term.
    pub(super) fn term(&self) -> u64 {
        self.watch().borrow().current_term
    }

    /// The last entry in this server's log.
    pub(super) fn last_index(&self) -> u64 {
        self.watch().borrow().last_log_index.unwrap_or(0)
    }

    /// Why Raft stopped, if it did: a disk that refuses writes, a file that is damaged.
    pub(super) fn failure(&self) -> Option<String> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if closed.is_some() {
            return closed;
        }
        let metrics = self.raft().metrics();
        let state = metrics.borrow().running_state.clone();
        match state {
            Ok(()) | Err(Fatal::Stopped) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Wakes at every change of role, leader, term, members or log.
    pub(super) fn watch(&self) -> watch::Receiver<RaftMetrics<NodeId, EmptyNode>> {
        self.raft().metrics()
    }

    fn lead(&self) -> Result<(), ProposeError> {
        if let Some(reason) = self.failure() {
            return Err(ProposeError::Unavailable(reason));
        }
        if self.leads() { Ok(()) } else { Err(ProposeError::NotLeader(self.leader())) }
    }

    /// Asks for a snapshot now.
    #[cfg(test)]
    pub(super) async fn snapshot_now(&self) {
        self.raft().trigger().snapshot().await.expect("running");
    }

    /// Takes a snapshot, and drops all of the log that is in it.
    #[cfg(test)]
    pub(super) async fn forget_log(&self) {
        let applied = |now: &RaftMetrics<NodeId, EmptyNode>| now.last_applied.map_or(0, |id| id.index);
        let upto = applied(&self.watch().borrow());
        self.snapshot_now().await;
        let mut watch = self.watch();
        let taken = watch.wait_for(|now| now.snapshot.is_some_and(|id| id.index >= upto));
        taken.await.expect("running");
        self.raft().trigger().purge_log(upto).await.expect("running");
        watch.wait_for(|now| now.purged.is_some_and(|id| id.index >= upto)).await.expect("running");
    }

    /// Tells one opening of the log from another.
    #[cfg(test)]
    pub(super) fn opened(&self) -> usize {
        Arc::as_ptr(&self.engine.load()) as usize
    }

    /// Makes the next write to the log fail.
    #[cfg(test)]
    pub(super) fn fail_next_write(&self) {
        self.engine.load().store.fail_next_write();
    }

    pub(super) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Stops taking part and waits until the log is on disk.
    pub(super) async fn stop(&self) {
        // Both may have ended before us by a failed disk; there is nothing left to do then.
        let engine = self.engine.load_full();
        let _ = engine.raft.shutdown().await;
        engine.store.close().await;
    }
}

impl fmt::Debug for Consensus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Consensus").field("id", &self.id).finish_non_exhaustive()
    }
}

fn role_of(metrics: &RaftMetrics<NodeId, EmptyNode>) -> Role {
    let membership = metrics.membership_config.membership();
    let mut voters = membership.voter_ids();
    match metrics.state {
        ServerState::Leader => Role::Leader,
        _ if !membership.voter_ids().any(|id| id == metrics.id) => Role::Bystander,
        _ if voters.nth(1).is_none() => Role::SoleVoter,
        _ => Role::Voter,
    }
}

fn config() -> Result<Config, OpenError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lease = millis(mesh_core::election::TIMEOUT_MIN);
    let config = Config {
        cluster_name: "mesh".to_owned(),
        // Elections and heartbeats are ours; what is left of these is the lease during which a
        // follower refuses to vote (the maximum) and the time-out of a vote request (the minimum).
        election_timeout_min: lease - 1,
        election_timeout_max: lease,
        enable_elect: false,
        enable_heartbeat: false,
        // The time-out of a message to a follower: two heartbeats, for a disk that hesitates.
        heartbeat_interval: 2 * millis(mesh_core::election::HEARTBEAT),
        install_snapshot_timeout: 10_000,
        snapshot_max_chunk_size: 1 << 20,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: SNAPSHOT_ENTRIES,
        replication_lag_threshold: 4 * SNAPSHOT_ENTRIES,
        max_payload_entries: 256,
        ..Config::default()
    };
    config.validate().map_err(|error| OpenError::State(error.to_string()))
}

fn refused(error: RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            ProposeError::NotLeader(to.leader_id.map(HostId))
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            ProposeError::Unavailable(error.to_string())
        }
        RaftError::Fatal(error) => fatal(error),
    }
}

fn fatal(error: Fatal<NodeId>) -> ProposeError {
    match error {
        Fatal::Stopped => ProposeError::Unavailable("this server is stopping".to_owned()),
        error => ProposeError::Unavailable(error.to_string()),
    }
}

/// Names in the server's folder.
const LOG: &str = "raft.redb";
const SNAPSHOTS: &str = "snapshots";
/// A snapshot is taken after this many entries, and as many are kept behind it for followers that blinked.
const SNAPSHOT_ENTRIES: u64 = 1_000;

#[cfg(test)]
mod tests;
