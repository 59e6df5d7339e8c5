//! Waiting until every live host runs a revision.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::api::Response;
use mesh_proto::command::{HostId, Liveness, Revision};

use super::{Failure, Server};
use crate::server::raft::ProposeError;

impl Server {
    /// Answers as soon as every live host has acknowledged `revision`, or when `timeout` has passed.
    ///
    /// A host that is silent or gone is not waited for.
    pub(super) async fn wait(&self, revision: Revision, timeout: Duration) -> Result<Response, Failure> {
        let deadline = tokio::time::Instant::now() + timeout.min(LONGEST);
        let mut acknowledged = self.keeper.changes();
        loop {
            if !self.consensus.leads() {
                return Err(ProposeError::NotLeader(self.consensus.leader()).into());
            }
            acknowledged.mark_unchanged();
            let (live, behind, problems) = self.who_runs(revision);
            if behind.is_empty() {
                return Ok(Response::Waited { live, behind, problems });
            }
            let soon = deadline.min(tokio::time::Instant::now() + LOOK_AGAIN);
            // Either a report came or a host's lease ended: both are seen by the next look.
            let _ = tokio::time::timeout_at(soon, acknowledged.changed()).await;
            if tokio::time::Instant::now() >= deadline {
                let (live, behind, problems) = self.who_runs(revision);
                return Ok(Response::Waited { live, behind, problems });
            }
        }
    }

    fn who_runs(&self, revision: Revision) -> (Vec<String>, BTreeMap<String, Revision>, Vec<String>) {
        let acknowledged = self.keeper.acknowledgements();
        let hosts: Vec<(HostId, String)> = self.consensus.facts().read(|world| {
            let live = world.hosts.iter().filter(|(_, host)| host.liveness == Liveness::Live);
            live.map(|(id, host)| (*id, host.name.clone())).collect()
        });
        let (mut live, mut behind, mut problems) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (id, name) in hosts {
            let known = acknowledged.get(&id);
            problems.extend(
                known.iter().flat_map(|known| &known.problems).map(|problem| format!("{name}: {problem}")),
            );
            match known.map_or(Revision(0), |known| known.live) {
                runs if runs >= revision => live.push(name),
                runs => drop(behind.insert(name, runs)),
            }
        }
        (live, behind, problems)
    }
}

/// Nobody waits longer than an hour.
const LONGEST: Duration = Duration::from_hours(1);
/// Leases end without a report.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
