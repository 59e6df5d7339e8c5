//! Raft's messages between servers, over `Service::Raft`.
//!
//! A message is one kind byte and JSON; a chunk of a snapshot carries its bytes behind the JSON. The
//! answer is what openraft answered, as JSON. A message counts only when the caller's certificate
//! names the host that the message speaks for.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use mesh_proto::command::HostId;
use mesh_proto::exact::{Unread, exactly};
use raft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use raft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use raft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use raft::{AnyError, EmptyNode, LogId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::heal::Wanted;
use super::{NodeId, Types};
use crate::server::peers::Peers;
use crate::transport::Service;

/// A message of one server to another.
#[derive(Debug)]
pub(super) enum Message {
    /// New entries, or none: a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// A request for a vote.
    Vote(VoteRequest<NodeId>),
    /// A question before an election.
    Ask(Question),
    /// A piece of a snapshot.
    Snapshot(InstallSnapshotRequest<Types>),
    /// A question whether an entry can be read that is to be written: its JSON.
    Read(Bytes),
    /// A question for a snapshot, in place of one that cannot be read; the answer is a piece of it.
    Wanted(Wanted),
}

/// What a server answers that is asked whether it can read an entry.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reading {
    /// What in it is not known there; `None`: it can be read.
    pub(super) newer: Option<String>,
}

/// What a voter asks before it stands.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) last_log_id: Option<LogId<NodeId>>,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Opinion {
    pub(super) silence_ms: Option<u64>,
    pub(super) log_is_longer: bool,
}

/// Makes openraft's clients.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) peers: Arc<Peers>,
}

/// openraft's way to one peer.
#[derive(Debug)]
pub(super) struct Client {
    peers: Arc<Peers>,
    target: NodeId,
}

type CallError<E = raft::error::Infallible> = RPCError<NodeId, EmptyNode, RaftError<NodeId, E>>;

impl Message {
    pub(super) fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut frame = BytesMut::new();
        frame.put_u8(self.kind());
        match self {
            Self::Append(request) => serde_json::to_writer((&mut frame).writer(), request)?,
            Self::Vote(request) => serde_json::to_writer((&mut frame).writer(), request)?,
            Self::Ask(question) => serde_json::to_writer((&mut frame).writer(), question)?,
            Self::Snapshot(chunk) => {
                let head = InstallSnapshotRequest::<Types> { data: Vec::new(), ..chunk.clone() };
                let head = serde_json::to_vec(&head)?;
                frame.put_u64(head.len() as u64);
                frame.put_slice(&head);
                frame.put_slice(&chunk.data);
            }
            Self::Read(entry) => frame.put_slice(entry),
            Self::Wanted(wanted) => serde_json::to_writer((&mut frame).writer(), wanted)?,
        }
        Ok(frame.freeze())
    }

    /// Reads a message; the error says what is wrong with it, or what in the log a newer meshd has written.
    pub(super) fn decode(frame: &[u8]) -> Result<Self, Unread> {
        let cut_off = || Unread::Malformed("a cut off message".to_owned());
        let (kind, body) = frame.split_first().ok_or_else(cut_off)?;
        match *kind {
            // What is passed over here would be missing in this server's log for good.
            APPEND => exactly(body).map(Self::Append),
            READ => Ok(Self::Read(Bytes::copy_from_slice(body))),
            VOTE => json(body).map(Self::Vote),
            ASK => json(body).map(Self::Ask),
            WANTED => json(body).map(Self::Wanted),
            SNAPSHOT => {
                let (length, body) = body.split_first_chunk().ok_or_else(cut_off)?;
                let length = usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX);
                let (head, data) = body.split_at_checked(length).ok_or_else(cut_off)?;
                let mut chunk: InstallSnapshotRequest<Types> = json(head)?;
                chunk.data = data.to_vec();
                Ok(Self::Snapshot(chunk))
            }
            other => Err(Unread::Malformed(format!("a message of unknown kind {other}: a newer meshd?"))),
        }
    }

    /// The host a message claims to come from; `None` where it does not matter.
    pub(super) fn speaks_for(&self) -> Option<HostId> {
        let vote = match self {
            Self::Append(request) => &request.vote,
            Self::Vote(request) => &request.vote,
            Self::Snapshot(chunk) => &chunk.vote,
            Self::Ask(_) | Self::Read(_) | Self::Wanted(_) => return None,
        };
        vote.leader_id().voted_for().map(HostId)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Append(_) => APPEND,
            Self::Vote(_) => VOTE,
            Self::Ask(_) => ASK,
            Self::Snapshot(_) => SNAPSHOT,
            Self::Read(_) => READ,
            Self::Wanted(_) => WANTED,
        }
    }
}

impl Network {
    /// Asks a voter for its opinion; `None` when it does not answer in time.
    pub(super) async fn ask(&self, target: HostId, question: Question, timeout: Duration) -> Option<Opinion> {
        let body = Message::Ask(question).encode().ok()?;
        let answer = self.peers.call(target, Service::Raft, body, timeout).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    /// Asks a server whether it can read an entry; `None` when it does not answer in time, or does not know the question.
    pub(super) async fn can_read(&self, target: HostId, entry: Bytes, timeout: Duration) -> Option<Reading> {
        let body = Message::Read(entry).encode().ok()?;
        let answer = self.peers.call(target, Service::Raft, body, timeout).await.ok()?;
        serde_json::from_slice(&answer).ok()
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        Client { peers: Arc::clone(&self.peers), target }
    }
}

impl Client {
    async fn send<R, E>(&self, message: Message, option: &RPCOption) -> Result<R, CallError<E>>
    where
        R: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
    {
        let is_heartbeat = matches!(&message, Message::Append(request) if request.entries.is_empty());
        let body = message.encode().map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let target = HostId(self.target);
        let answer = self
            .peers
            .call(target, Service::Raft, body, option.hard_ttl())
            .await
            .map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        let answer: Result<R, RaftError<NodeId, E>> = serde_json::from_slice(&answer).map_err(|_| {
            let refusal = refusal(&answer);
            self.peers.refuses_log(target, &refusal, is_heartbeat);
            RPCError::Unreachable(Unreachable::new(&AnyError::error(refusal)))
        })?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<Types> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, CallError> {
        let brings_entries = !request.entries.is_empty();
        let answer = self.send(Message::Append(request), &option).await;
        match &answer {
            Ok(_) if brings_entries => self.peers.takes_log(HostId(self.target)),
            Ok(_) => self.peers.hears(HostId(self.target)),
            Err(_) => {}
        }
        answer
    }

    async fn install_snapshot(
        &mut self,
        chunk: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, CallError<InstallSnapshotError>> {
        let is_last = chunk.done;
        let answer = self.send(Message::Snapshot(chunk), &option).await;
        if is_last && answer.is_ok() {
            self.peers.takes_log(HostId(self.target));
        }
        answer
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, CallError> {
        self.send(Message::Vote(request), &option).await
    }

    /// A peer that does not answer is tried again soon, then less often.
    fn backoff(&self) -> Backoff {
        let steps = [100, 100, 200, 200, 500].map(Duration::from_millis);
        Backoff::new(steps.into_iter().chain(std::iter::repeat(Duration::from_secs(1))))
    }
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unread> {
    serde_json::from_slice(body)
        .map_err(|error| Unread::Malformed(format!("a message that cannot be read: {error}")))
}

/// What a server says that will not hear a message; see [`super::Consensus::receive`].
pub(super) fn refusal(answer: &[u8]) -> String {
    String::from_utf8_lossy(&answer[..answer.len().min(500)]).into_owned()
}

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const ASK: u8 = 3;
const SNAPSHOT: u8 = 4;
const READ: u8 = 5;
const WANTED: u8 = 6;
