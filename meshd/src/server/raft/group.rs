//! The Raft group: its members, changes of them one at a time, and whether enough of them answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_proto::command::HostId;
use raft::{ChangeMembers, EmptyNode};

use super::{Consensus, NodeId, ProposeError, refused};

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

impl Consensus {
    /// All members by id.
    pub(in crate::server) fn members(&self) -> Vec<Member> {
        let metrics = self.raft().metrics();
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

    /// Begins to copy the log to a host; returns when the change is agreed on, not when it caught up.
    pub(in crate::server) async fn add_standby(&self, id: HostId) -> Result<(), ProposeError> {
        self.raft().add_learner(id.0, EmptyNode {}, false).await.map(drop).map_err(refused)
    }

    /// Stops copying the log to a standby.
    pub(in crate::server) async fn remove_standby(&self, id: HostId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id.0])), false).await
    }

    /// Makes a standby a voter.
    pub(in crate::server) async fn promote(&self, id: HostId) -> Result<(), ProposeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0])), true).await
    }

    /// Makes `by` a voter instead of `dead`, in one joint change.
    pub(in crate::server) async fn replace(&self, dead: HostId, by: HostId) -> Result<(), ProposeError> {
        let mut voters: BTreeSet<NodeId> =
            self.members().iter().filter(|member| member.voter).map(|member| member.id.0).collect();
        voters.remove(&dead.0);
        voters.insert(by.0);
        self.change(ChangeMembers::ReplaceAllVoters(voters), false).await
    }

    /// Ends a change of voters that a former leader left half done.
    pub(in crate::server) async fn settle_membership(&self) -> Result<(), ProposeError> {
        let voters = {
            let metrics = self.raft().metrics();
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
        self.raft().change_membership(change, retain).await.map(drop).map_err(refused)
    }

    /// Says who is missing when a majority of voters does not answer this server.
    ///
    /// `None` while a majority answers, or while nobody has been asked yet.
    pub(in crate::server) fn no_quorum(&self) -> Option<String> {
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

    pub(in crate::server) fn why_slow(&self, timeout: Duration) -> String {
        self.no_quorum().map_or_else(
            || {
                format!(
                    "no quorum: no majority of voters confirmed it within {timeout:?}; it may still be done"
                )
            },
            |gap| format!("{gap}; what was asked may still be done once they are back"),
        )
    }
}

/// The time of day `age` ago, UTC, `HH:MM:SS UTC`.
fn clock_time(age: Duration) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let second = now.saturating_sub(age).as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", second / 3_600, second / 60 % 60, second % 60)
}
