//! Numbers that are looked up when somebody asks for metrics: the Plan, certificates, the Raft group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh_core::identity::Identity;
use mesh_core::plan::Plan;
use tokio::sync::watch;

use crate::agent::Published;
use crate::identity::Standing;
use crate::server::Server;
use crate::telemetry::{Sample, Stats, catalog, number};

/// What is looked at.
pub(super) struct Sources {
    pub(super) plans: Arc<ArcSwap<Plan>>,
    pub(super) published: watch::Receiver<Arc<Published>>,
    pub(super) problems: Arc<AtomicU64>,
    pub(super) certificates: watch::Receiver<BTreeMap<Identity, Standing>>,
    pub(super) server: Option<Arc<Server>>,
    pub(super) host: mesh_proto::command::HostId,
}

/// Has metrics tell of it from now on.
pub(super) fn tell(stats: &Stats, sources: Sources) {
    stats.watch(move |samples| {
        sources.plan(samples);
        sources.certificates(samples);
        sources.raft(samples);
    });
}

impl Sources {
    fn plan(&self, samples: &mut Vec<Sample>) {
        let plan = self.plans.load();
        let known = self.published.borrow().world.revision.0;
        let known = self.server.as_ref().map_or(known, |server| server.revisions().borrow().0.max(known));
        let problems = self.problems.load(Ordering::Relaxed);
        samples.extend([
            Sample::new(&catalog::CONFIG_REVISION, number(plan.revision.0)),
            Sample::new(&catalog::CONFIG_LAG, number(known.saturating_sub(plan.revision.0))),
            Sample::new(&catalog::CONFIG_PROBLEMS, number(problems)),
        ]);
    }

    fn certificates(&self, samples: &mut Vec<Sample>) {
        let now = SystemTime::now();
        for (identity, standing) in &*self.certificates.borrow() {
            let identity = identity.to_string();
            if let Some(validity) = &standing.validity {
                let left = match validity.not_after.duration_since(now) {
                    Ok(left) => left.as_secs_f64(),
                    Err(over) => -over.duration().as_secs_f64(),
                };
                samples.push(Sample::labelled(&catalog::CERTIFICATE_LIFETIME, &[&identity], left.round()));
            }
            let failures = f64::from(standing.failures);
            samples.push(Sample::labelled(&catalog::CERTIFICATE_FAILURES, &[&identity], failures));
        }
    }

    fn raft(&self, samples: &mut Vec<Sample>) {
        let Some(server) = &self.server else { return };
        let truth = |holds: bool| f64::from(u8::from(holds));
        let leader = server.leader();
        let members = server.members();
        let voters = members.iter().filter(|member| member.voter).count() as u64;
        let others = members.len() as u64 - voters;
        samples.extend([
            Sample::new(&catalog::RAFT_HAS_LEADER, truth(leader.is_some())),
            Sample::new(&catalog::RAFT_IS_LEADER, truth(leader == Some(self.host))),
            Sample::labelled(&catalog::RAFT_MEMBERS, &["voter"], number(voters)),
            Sample::labelled(&catalog::RAFT_MEMBERS, &["standby"], number(others)),
            Sample::new(&catalog::RAFT_REVISION, number(server.revisions().borrow().0)),
            Sample::new(&catalog::RAFT_FAILED, truth(server.failure().is_some())),
        ]);
    }
}
