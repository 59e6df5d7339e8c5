//! Servers of different versions: whether all can read what is to be written, and what becomes of one that cannot.
//!
//! A server reads the log wholly or not at all ([`exactly`](mesh_proto::exact)), so that no World lacks what another has.
//! The leader therefore asks the members of other versions before it writes. What reaches a member all the same, it
//! refuses by name: it falls behind as one that is cut off does, and catches up once it is upgraded.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::command::{Entry, HostId};
use raft::raft::InstallSnapshotRequest;

use super::{Consensus, Facts, ProposeError, Types};

/// What of the log a server cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// An entry.
    Entry,
    /// The snapshot of that id.
    Snapshot(String),
}

impl Facts {
    /// Notes that this server cannot follow the log; returns it in words, for who sent it.
    pub(super) fn fall_behind(&self, what: Behind, why: &str) -> String {
        let log = if what == Behind::Entry { "log" } else { "snapshot of the log" };
        // Of an entry, what its command says; the rest of the path is Raft's.
        let said = why.split_once(".payload.").map(|(_, said)| format!("unknown field `{said}"));
        let why = said.as_deref().unwrap_or(why);
        let told = format!("the {log} holds what meshd {VERSION} does not know ({why}): upgrade this host");
        let mut behind = self.behind();
        if behind.as_ref().is_none_or(|(_, known)| *known != told) {
            tracing::error!(why = told, "this server does not follow the log any more");
        }
        *behind = Some((what, told.clone()));
        told
    }

    /// Notes that this server follows the log again.
    pub(super) fn keep_up(&self) {
        if self.behind().take().is_some() {
            tracing::info!("this server follows the log again");
        }
    }

    fn behind(&self) -> MutexGuard<'_, Option<(Behind, String)>> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Consensus {
    /// Why this server does not follow the log, if it cannot read it. What it knows grows old: agents go elsewhere.
    pub(in crate::server) fn behind(&self) -> Option<String> {
        self.facts.behind().as_ref().map(|(_, why)| why.clone())
    }

    /// Refuses a snapshot again that could not be read.
    pub(super) fn check_snapshot(&self, chunk: &InstallSnapshotRequest<Types>) -> Result<(), String> {
        match &*self.facts.behind() {
            Some((Behind::Snapshot(id), why)) if *id == chunk.meta.snapshot_id => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Asks the members of other versions than this one whether they can read an entry.
    ///
    /// One that does not answer is not waited for: it will refuse the entry, if it must, and lose nothing.
    pub(super) async fn check_legible(&self, entry: &Entry) -> Result<(), ProposeError> {
        let others = self.of_other_versions();
        if others.is_empty() {
            return Ok(());
        }
        let entry =
            serde_json::to_vec(entry).map_err(|error| ProposeError::Unavailable(error.to_string()))?;
        let entry = Bytes::from(entry);
        let mut asked = tokio::task::JoinSet::new();
        for (id, who) in others {
            let (network, entry) = (self.network.clone(), entry.clone());
            asked.spawn(async move {
                let reading = network.can_read(id, entry, ASK_TIMEOUT).await?;
                reading.newer.map(|what| format!("{who} cannot read it ({what}): upgrade meshd there first"))
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(why)) = answer {
                tracing::warn!(why, "not written: a server of the mesh could not follow");
                return Err(ProposeError::Unavailable(format!("nothing was changed: {why}")));
            }
        }
        Ok(())
    }

    /// Members that answer and run another version: id, and who that is.
    fn of_other_versions(&self) -> Vec<(HostId, String)> {
        let now = Instant::now();
        let members = self.members();
        let others = members.iter().filter(|member| member.id != self.id);
        self.facts.read(|world| {
            let of_other = |id: HostId| {
                let host = world.hosts.get(&id).filter(|host| host.facts.version != VERSION)?;
                Some((id, format!("{}, a server with meshd {},", host.name, host.facts.version)))
            };
            others
                .filter(|member| self.peers.contact(member.id).answers(now))
                .filter_map(|member| of_other(member.id))
                .collect()
        })
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long a member may take to read an entry: five heartbeats.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
