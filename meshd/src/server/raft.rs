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
mod machine;
mod network;
mod snapshot;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_core::election::Role;
use mesh_core::world::Done;
use mesh_proto::api::ApiError;
use mesh_proto::command::{Entry, HostId, Revision};
use raft::error::{CheckIsLeaderError, ClientWriteError, Fatal, RaftError};
use raft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use raft::{ChangeMembers, Config, EmptyNode, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub(super) use self::machine::Facts;
use self::machine::Machine;
use self::network::{Message, Network, Opinion, Question};
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
    /// What is in them does not fit together.
    #[error("the Raft state cannot be taken up: {0}")]
    State(String),
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
    /// The disk of this server refuses writes, or the server is stopping.
    #[error("{0}")]
    Unavailable(String),
}

/// A member of the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which host.
    pub id: HostId,
    /// Whether it votes; a standby otherwise.
    pub voter: bool,
    /// On the leader: the last entry it is known to have.
    pub matched: Option<u64>,
}

/// This server's part in the group.
pub(super) struct Consensus {
    id: HostId,
    raft: Raft<Types>,
    store: Store,
    facts: Arc<Facts>,
    peers: Arc<Peers>,
    network: Network,
    /// When a leader's message was last taken in.
    led: Mutex<Option<Instant>>,
}

impl Consensus {
    /// Takes up the state in `folder` (or begins an empty one) and joins in.
    ///
    /// Runs on the runtime it is called from. A server without members in its log waits until a
    /// leader adds it, or until [`Consensus::begin`].
    pub(super) async fn open(
        id: HostId,
        folder: &Path,
        carrier: Arc<dyn Carrier>,
        hub: Arc<Hub>,
    ) -> Result<Self, OpenError> {
        let (log, snapshots) = (folder.join("raft.redb"), folder.join("snapshots"));
        let opened = tokio::task::spawn_blocking(move || -> Result<_, OpenError> {
            // Snapshots first: their folder is made with all above it.
            let machine = Machine::open(&snapshots, hub)?;
            Ok((Store::open(&log)?, machine))
        });
        let (store, machine) = opened.await.map_err(|error| OpenError::State(error.to_string()))??;
        let facts = machine.facts();
        let peers = Arc::new(Peers::new(id, carrier, Arc::clone(&facts)));
        let network = Network { peers: Arc::clone(&peers) };
        let raft = Raft::new(id.0, Arc::new(config()?), network.clone(), store.clone(), machine)
            .await
            .map_err(|error| OpenError::State(error.to_string()))?;
        Ok(Self { id, raft, store, facts, peers, network, led: Mutex::default() })
    }

    /// Begins a group of which this server is the only voter; does nothing on a later start.
    pub(super) async fn begin(&self) -> Result<(), ProposeError> {
        if self.raft.is_initialized().await.map_err(fatal)? {
            return Ok(());
        }
        let alone = BTreeSet::from([self.id.0]);
        self.raft.initialize(alone).await.map_err(|error| ProposeError::Unavailable(error.to_string()))
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
        let written = tokio::time::timeout(timeout, self.raft.client_write(Arc::new(entry))).await;
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
            match self.raft.ensure_linearizable().await {
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
        let message = Message::decode(frame)?;
        if message.speaks_for().is_some_and(|claimed| claimed != from) {
            return Err(format!("host {from} sent a Raft message in the name of another"));
        }
        self.hear(from)?;
        let answer = match message {
            Message::Append(request) => serde_json::to_vec(&self.append(request).await),
            Message::Vote(request) => serde_json::to_vec(&self.raft.vote(request).await),
            Message::Snapshot(chunk) => serde_json::to_vec(&self.raft.install_snapshot(chunk).await),
            Message::Ask(question) => serde_json::to_vec(&self.opinion(&question).await?),
        };
        answer.map(Bytes::from).map_err(|error| error.to_string())
    }

    async fn append(
        &self,
        request: AppendEntriesRequest<Types>,
    ) -> Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>> {
        let answer = self.raft.append_entries(request).await;
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
        let silence = self.raft.with_raft_state(|state| state.vote_last_modified().map(|at| at.elapsed()));
        let silence = silence.await.map_err(|error| error.to_string())?;
        let log_is_longer = self.store.last_log_id() > question.last_log_id;
        let leads = self.role() == Role::Leader;
        let silence = if leads { Some(Duration::ZERO) } else { silence };
        let silence_ms = silence.map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX));
        Ok(Opinion { silence_ms, log_is_longer })
    }

    /// Begins to copy the log to a host; returns when the change is agreed on, not when it caught up.
    pub(super) async fn add_standby(&self, id: HostId) -> Result<(), ProposeError> {
        self.raft.add_learner(id.0, EmptyNode {}, false).await.map(drop).map_err(refused)
    }

    /// Stops copying the log to a standby.
    pub(super) async fn remove_standby(&self, id: HostId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id.0])), false).await
    }

    /// Makes a standby a voter.
    pub(super) async fn promote(&self, id: HostId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0])), true).await
    }

    /// Makes `by` a voter instead of `dead`, in one joint change.
    pub(super) async fn replace(&self, dead: HostId, by: HostId) -> Result<(), ProposeError> {
        let mut voters: BTreeSet<NodeId> =
            self.members().iter().filter(|member| member.voter).map(|member| member.id.0).collect();
        voters.remove(&dead.0);
        voters.insert(by.0);
        self.change(ChangeMembers::ReplaceAllVoters(voters), false).await
    }

    /// Ends a change of voters that a former leader left half done.
    pub(super) async fn settle_membership(&self) -> Result<(), ProposeError> {
        let voters = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let configurations = metrics.membership_config.membership().get_joint_config().clone();
            if configurations.len() < 2 {
                return Ok(());
            }
            configurations.last().cloned().unwrap_or_default()
        };
        self.change(ChangeMembers::ReplaceAllVoters(voters), true).await
    }

    async fn change(
        &self,
        change: ChangeMembers<NodeId, EmptyNode>,
        retain: bool,
    ) -> Result<(), ProposeError> {
        self.raft.change_membership(change, retain).await.map(drop).map_err(refused)
    }

    /// What this server is now.
    pub(super) fn role(&self) -> Role {
        role_of(&self.raft.metrics().borrow())
    }

    /// Whether this server leads.
    pub(super) fn leads(&self) -> bool {
        self.role() == Role::Leader
    }

    /// The leader as far as this server knows; `None` while there is none.
    pub(super) fn leader(&self) -> Option<HostId> {
        self.raft.metrics().borrow().current_leader.map(HostId)
    }

    /// The present term.
    pub(super) fn term(&self) -> u64 {
        self.raft.metrics().borrow().current_term
    }

    /// The last entry in this server's log.
    pub(super) fn last_index(&self) -> u64 {
        self.raft.metrics().borrow().last_log_index.unwrap_or(0)
    }

    /// Why Raft stopped, if it did: a disk that refuses writes.
    pub(super) fn failure(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let state = metrics.borrow().running_state.clone();
        match state {
            Ok(()) | Err(Fatal::Stopped) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// All members by id.
    pub(super) fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let replication = metrics.replication.as_ref();
        let matched = |id: &NodeId| Some(replication?.get(id)?.as_ref()?.index);
        membership
            .nodes()
            .map(|(id, _)| Member { id: HostId(*id), voter: voters.contains(id), matched: matched(id) })
            .collect()
    }

    /// Wakes at every change of role, leader, term, members or log.
    pub(super) fn watch(&self) -> watch::Receiver<RaftMetrics<NodeId, EmptyNode>> {
        self.raft.metrics()
    }

    /// Says who is missing when a majority of voters does not answer this server.
    ///
    /// `None` while a majority answers, or while nobody has been asked yet.
    pub(super) fn no_quorum(&self) -> Option<String> {
        if self.is_led() {
            return None;
        }
        let now = Instant::now();
        let voters: Vec<HostId> =
            self.members().iter().filter(|member| member.voter).map(|member| member.id).collect();
        let silent: BTreeMap<HostId, Option<Instant>> = voters
            .iter()
            .filter(|id| **id != self.id)
            .map(|id| (*id, self.peers.contact(*id)))
            .filter(|(_, contact)| contact.failing_since.is_some() && !contact.answers(now))
            .map(|(id, contact)| (id, contact.silent_since()))
            .collect();
        let reachable = voters.len() - silent.len();
        if voters.is_empty() || reachable > voters.len() / 2 {
            return None;
        }
        Some(format!(
            "no quorum: {reachable} of {} voters reachable ({})",
            voters.len(),
            self.describe_silent(&silent, now)
        ))
    }

    fn describe_silent(&self, silent: &BTreeMap<HostId, Option<Instant>>, now: Instant) -> String {
        let names: Vec<String> = self.facts.read(|world| {
            let name = |id: &HostId| {
                world.hosts.get(id).map_or_else(|| format!("host {id}"), |host| host.name.clone())
            };
            silent.keys().map(name).collect()
        });
        let verb = if names.len() == 1 { "does" } else { "do" };
        let since = silent.values().flatten().min().map(|at| now.saturating_duration_since(*at));
        let since = since.map_or_else(String::new, |age| format!(" since {}", clock_time(age)));
        format!("{} {verb} not answer{since}", names.join(", "))
    }

    fn why_slow(&self, timeout: Duration) -> String {
        self.no_quorum().map_or_else(
            || {
                format!(
                    "no quorum: no majority of voters confirmed it within {timeout:?}; it may still be done"
                )
            },
            |gap| format!("{gap}; what was asked may still be done once they are back"),
        )
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
        self.raft.trigger().snapshot().await.expect("running");
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
        let _ = self.raft.shutdown().await;
        let _ = self.store.flush().await;
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

/// The time of day `age` ago, UTC, `HH:MM:SS UTC`.
fn clock_time(age: Duration) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let second = now.saturating_sub(age).as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", second / 3_600, second / 60 % 60, second % 60)
}

/// A snapshot is taken after this many entries, and as many are kept behind it for followers that blinked.
const SNAPSHOT_ENTRIES: u64 = 1_000;

#[cfg(test)]
mod tests;
