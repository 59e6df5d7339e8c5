//! Tells systemd that meshd is alive, as long as all of it is: the control plane, Raft, and every worker of the proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::{systemd, task};

/// Begins, where the unit has a `WatchdogSec`. Runs on the control plane's runtime, whose health it shows by running.
pub(super) fn start(pulses: Vec<Arc<AtomicU64>>, raft: &Handle) {
    let Some(interval) = systemd::watchdog_interval() else { return };
    let raft = raft.clone();
    task::spawn("watchdog", async move {
        let mut before = vec![u64::MAX; pulses.len()];
        loop {
            let hanging = hanging(&pulses, &mut before);
            let raft_lives = tokio::time::timeout(RAFT_ANSWERS_WITHIN, raft.spawn(async {})).await.is_ok();
            if hanging.is_empty() && raft_lives {
                systemd::alive();
            } else {
                tracing::error!(workers = ?hanging, raft_lives, "part of meshd hangs; systemd will restart it");
            }
            tokio::time::sleep(interval).await;
        }
    });
}

/// Returns the workers that have not moved since the last look, and notes where all are now.
fn hanging(pulses: &[Arc<AtomicU64>], before: &mut [u64]) -> Vec<usize> {
    let mut hanging = Vec::new();
    for (worker, (pulse, before)) in pulses.iter().zip(before).enumerate() {
        let now = pulse.load(Ordering::Relaxed);
        if std::mem::replace(before, now) == now {
            hanging.push(worker);
        }
    }
    hanging
}

/// Raft's thread never works on one thing for longer.
const RAFT_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_move_is_found() {
        let pulses = [Arc::new(AtomicU64::new(3)), Arc::new(AtomicU64::new(3))];
        let mut before = vec![u64::MAX; 2];
        assert_eq!(hanging(&pulses, &mut before), Vec::<usize>::new());

        pulses[0].fetch_add(1, Ordering::Relaxed);

        assert_eq!(hanging(&pulses, &mut before), [1]);
    }
}
