//! Drives elections and heartbeats; the decisions are `mesh_core::election`'s.
//!
//! A leader shows itself every 100 ms. A voter that heard nothing for a freshly drawn 300–600 ms asks
//! the others first; only when a majority has lost the leader too does it stand.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::election::{Driver, HEARTBEAT, Opinion, Role, TIMEOUT_MIN, may_stand};
use mesh_proto::command::HostId;
use rand_core::RngCore;

use super::network::Question;
use super::{Consensus, Member, role_of};

impl Consensus {
    /// Runs until this server stops or the future is dropped. Cancel safe.
    ///
    /// When a write to the log has failed, opens it anew as soon as that works.
    pub(in crate::server) async fn drive(self: Arc<Self>, mut chance: impl RngCore + Send + 'static) {
        loop {
            self.drive_engine(&mut chance).await;
            let Some(reason) = self.failure() else { return };
            tracing::error!(reason, "the raft log cannot be written: this server takes no part for now");
            tokio::time::sleep(REOPEN_AFTER).await;
            while let Err(error) = self.reopen().await {
                self.note_closed(Some(error.to_string()));
                tokio::time::sleep(REOPEN_AFTER).await;
            }
            self.note_closed(None);
            tracing::info!("the raft log can be written again");
        }
    }

    /// Notes why the log cannot be opened, and says each reason once.
    fn note_closed(&self, why: Option<String>) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = why.as_ref().filter(|why| closed.as_ref() != Some(*why)) {
            tracing::error!(why, "the raft log cannot be opened: this server takes no part until it can");
        }
        *closed = why;
    }

    async fn drive_engine(&self, chance: &mut impl RngCore) {
        let mut driver = Driver::new(Instant::now(), chance);
        let mut metrics = self.watch();
        while self.failure().is_none() {
            #[cfg(test)]
            self.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if self.engine.load().store.snapshot_is_due() {
                // Fails only when openraft has stopped: the loop ends with the next look.
                let _ = self.raft().trigger().snapshot().await;
            }
            let role = self.role();
            if role == Role::Leader {
                let _ = self.raft().trigger().heartbeat().await;
                driver.attempted(Instant::now(), chance);
                tokio::time::sleep(HEARTBEAT).await;
                continue;
            }
            if let Some(heard) = self.last_heard().await {
                driver.heard(heard, chance);
            }
            let now = Instant::now();
            match driver.due(role) {
                Some(at) if at <= now => {
                    self.stand(role).await;
                    driver.attempted(Instant::now(), chance);
                }
                due => {
                    let wait = due.map_or(IDLE, |at| at - now);
                    // Woken early by a change of role only: asking openraft for its state makes new metrics, and waking
                    // by any of them would be a loop without rest.
                    let changed = metrics.wait_for(|now| role_of(now) != role);
                    if let Ok(Err(_)) = tokio::time::timeout(wait, changed).await {
                        return;
                    }
                }
            }
        }
    }

    /// Stands for election if enough voters would hear it out.
    async fn stand(&self, role: Role) {
        let voters: Vec<Member> = self.members().into_iter().filter(|member| member.voter).collect();
        if role == Role::Voter && !may_stand(voters.len(), &self.opinions(&voters).await) {
            tracing::debug!("no election: too few voters answer, or they hear a leader");
            return;
        }
        let term = self.term();
        tracing::info!(term = term + 1, "standing for election");
        // Fails only when openraft has stopped.
        let _ = self.raft().trigger().elect().await;
        let won = |metrics: &raft::RaftMetrics<u64, raft::EmptyNode>| {
            metrics.current_term > term && metrics.current_leader.is_some()
        };
        // Win or lose, the round is over then; a lost one is repeated after a fresh time-out.
        let _ = tokio::time::timeout(ROUND, self.watch().wait_for(won)).await;
    }

    async fn opinions(&self, voters: &[Member]) -> Vec<Opinion> {
        let last_log_id = self.engine.load().store.last_log_id();
        let others = voters.iter().filter(|member| member.id != self.id);
        let mut asked = tokio::task::JoinSet::new();
        for member in others {
            let (network, target) = (self.network.clone(), member.id);
            asked.spawn(async move { network.ask(target, Question { last_log_id }, ASK_TIMEOUT).await });
        }
        let mut opinions = Vec::new();
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(answer)) = answer {
                opinions.push(Opinion {
                    silence: answer.silence_ms.map(Duration::from_millis),
                    log_is_longer: answer.log_is_longer,
                });
            }
            if may_stand(voters.len(), &opinions) {
                break;
            }
        }
        opinions
    }

    /// When this server last heard a leader or gave its vote.
    async fn last_heard(&self) -> Option<Instant> {
        let heard = self.raft().with_raft_state(raft::RaftState::vote_last_modified).await;
        heard.ok().flatten().map(tokio::time::Instant::into_std)
    }

    /// Waits until there is a leader; `None` after `timeout`.
    pub(in crate::server) async fn some_leader(&self, timeout: Duration) -> Option<HostId> {
        let mut metrics = self.watch();
        let known = metrics.wait_for(|metrics| metrics.current_leader.is_some());
        let known = tokio::time::timeout(timeout, known).await.ok()?.ok()?.current_leader;
        known.map(HostId)
    }

    /// Waits until a server other than `former` leads. Cancel safe.
    pub(in crate::server) async fn another_leads(&self, former: HostId) {
        let mut metrics = self.watch();
        let another = metrics.wait_for(|now| now.current_leader.is_some_and(|leader| leader != former.0));
        if another.await.is_err() {
            // The engine is being replaced or stops: nothing more is heard of leaders here.
            std::future::pending::<()>().await;
        }
    }
}

/// How long a disk that failed is left alone.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// How long a server with nothing to stand for waits before it looks again.
const IDLE: Duration = Duration::from_millis(500);
/// How long a voter may take to give its opinion.
const ASK_TIMEOUT: Duration = Duration::from_millis(200);
/// How long an election may take before the next one is prepared.
const ROUND: Duration = TIMEOUT_MIN;
