//! Carries out what `mesh_core::autopilot` decides; only the leader does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_core::autopilot::{Member, Step, View, decide};
use mesh_core::world::World;
use mesh_proto::api::{ApiError, ErrorCode};
use mesh_proto::command::{Command, HostId, Liveness, VoterWish};

use super::Server;

impl Server {
    /// Looks after the voters for as long as the server runs.
    pub(super) async fn pilot(&self) {
        let mut since: Option<(u64, Instant)> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.consensus.leads() {
                since = None;
                continue;
            }
            let term = self.consensus.term();
            let elected = match since {
                Some((known, at)) if known == term => at,
                _ => Instant::now(),
            };
            since = Some((term, elected));
            match tokio::time::timeout(STEP_TIMEOUT, self.take_step(elected)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the voters stay as they are for now"),
                Err(_) => tracing::warn!("a change of voters takes long; trying again"),
            }
        }
    }

    async fn take_step(&self, elected: Instant) -> Result<(), ApiError> {
        self.consensus.settle_membership().await?;
        let Some(step) = self.next_step(elected) else { return Ok(()) };
        tracing::info!(?step, "changing the voters");
        match step {
            Step::AddStandby(id) => self.consensus.add_standby(id).await?,
            Step::RemoveStandby(id) => self.consensus.remove_standby(id).await?,
            Step::Promote(id) => {
                self.seal_root_for(id).await?;
                self.consensus.promote(id).await?;
            }
            Step::Replace { dead, by } => {
                self.seal_root_for(by).await?;
                self.consensus.replace(dead, by).await?;
            }
        }
        Ok(())
    }

    fn next_step(&self, elected: Instant) -> Option<Step> {
        let last = self.consensus.last_index();
        let members: Vec<Member> =
            self.consensus.members().iter().map(|member| self.seen(member, elected, last)).collect();
        let (eligible, known) = self.consensus.facts().read(|world| (eligible(world), known(world)));
        decide(&View {
            now: Instant::now(),
            leader: self.id,
            wanted: self.voters,
            members: &members,
            eligible: &eligible,
            known: &known,
        })
    }

    fn seen(&self, member: &super::Member, elected: Instant, last: u64) -> Member {
        let contact = self.consensus.peers().contact(member.id);
        Member {
            id: member.id,
            voter: member.voter,
            // What was heard by a former leader does not count, nor does its silence.
            heard: contact.answered.map_or(elected, |at| at.max(elected)),
            steady_since: contact.steady_since,
            lag: last.saturating_sub(member.matched.unwrap_or(0)),
        }
    }

    /// Makes sure that a voter to be can open the root key.
    async fn seal_root_for(&self, id: HostId) -> Result<(), ApiError> {
        let wrap_key = self.consensus.facts().read(|world| {
            let sealed = world.private.sealed_root.contains_key(&id.to_string());
            world.hosts.get(&id).filter(|_| !sealed).map(|host| host.wrap_key.clone())
        });
        let Some(wrap_key) = wrap_key else { return Ok(()) };
        let sealed = self.notary.seal_root(&wrap_key).map_err(|reason| ApiError {
            code: ErrorCode::Unavailable,
            message: format!("the root key cannot be sealed for host {id}: {reason}"),
            findings: Vec::new(),
        })?;
        let Some(sealed) = sealed else { return Ok(()) };
        self.propose(Command::SealRoot { holder: id, sealed }, "autopilot", None).await?.result.map(drop)
    }
}

/// Hosts that may vote and answer, those that prefer it first, else oldest first.
fn eligible(world: &World) -> Vec<HostId> {
    let mut hosts: Vec<_> = world
        .hosts
        .iter()
        .filter(|(_, host)| host.voter_eligible && host.facts.voter != VoterWish::Never)
        .filter(|(_, host)| matches!(host.liveness, Liveness::Live | Liveness::Suspect))
        .map(|(id, host)| (host.facts.voter != VoterWish::Prefer, *id))
        .collect();
    hosts.sort_unstable();
    hosts.into_iter().map(|(_, id)| id).collect()
}

fn known(world: &World) -> BTreeSet<HostId> {
    world.hosts.keys().copied().collect()
}

/// How often the leader looks at its voters.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long one change may take; it is taken up again later.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
