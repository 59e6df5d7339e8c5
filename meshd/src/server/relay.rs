//! What agents said, on its way to the leader, and from there into the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::api::Request;
use mesh_proto::command::Command;

use super::leases::Extent;
use super::{Server, wall_ms};

impl Server {
    /// Reports to the leader: news within 50 ms, everything once a second.
    pub(super) async fn relay_reports(&self) {
        let mut everything = Instant::now();
        loop {
            let quiet = everything.saturating_duration_since(Instant::now());
            let extent = tokio::select! {
                () = self.heard.news() => Extent::News,
                () = tokio::time::sleep(quiet) => Extent::All,
            };
            if extent == Extent::All {
                everything = Instant::now() + REPORT_EVERY;
            }
            self.report(extent).await;
            // News of the next moment travels together.
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn report(&self, extent: Extent) {
        let reports = self.consensus.facts().read(|world| self.heard.report(world, extent));
        if reports.is_empty() {
            return;
        }
        if self.consensus.leads() {
            self.note_leadership();
            self.keeper.report(reports, Instant::now(), wall_ms());
        } else if let Err(error) =
            self.ask_leader(Request::Report(reports), &self.name(), Instant::now() + REPORT_EVERY).await
        {
            // Said again within a second, to whoever leads then.
            tracing::debug!(%error, "the leader does not take reports");
        }
    }

    /// On the leader: puts into the log what the World does not say yet.
    pub(super) async fn keep_leases(self: &Arc<Self>) {
        let mut reports = self.keeper.changes();
        loop {
            // Leases end without a report, too.
            let _ = tokio::time::timeout(LEASE_TICK, reports.changed()).await;
            self.note_leadership();
            for (command, host) in self.keeper.proposals(Instant::now()) {
                self.note(command, host).await;
            }
        }
    }

    async fn note(&self, command: Command, host: Option<mesh_proto::command::HostId>) {
        let author = host.map_or_else(|| "leases".to_owned(), |host| format!("host {host}"));
        let changes = match &command {
            Command::Liveness { changes } => Some(changes.clone()),
            _ => None,
        };
        match self.propose(command, &author, None).await {
            Ok(_) => {
                if let Some(changes) = changes {
                    self.keeper.declared(&changes, Instant::now());
                }
            }
            // Leases and agents say it again.
            Err(error) => tracing::debug!(%error, "a report did not reach the log"),
        }
    }
}

/// A full report, when nothing happens.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long news is gathered.
const GATHER: Duration = Duration::from_millis(20);
/// How often leases are looked at.
const LEASE_TICK: Duration = Duration::from_millis(100);
