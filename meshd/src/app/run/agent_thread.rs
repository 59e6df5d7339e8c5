//! The agent's thread.

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use crate::agent::{Agent, Farewell};

/// The agent on a thread of its own: a compile never delays an answer.
pub(super) struct AgentThread {
    stop: oneshot::Sender<Farewell>,
    ended: oneshot::Receiver<()>,
}

pub(super) fn spawn_agent(agent: Agent) -> Result<AgentThread> {
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the agent")?;
    std::thread::Builder::new()
        .name("meshd-agent".into())
        .spawn(move || {
            runtime.block_on(agent.run(stopped));
            let _ = end.send(());
        })
        .context("starting the agent")?;
    Ok(AgentThread { stop, ended })
}

impl AgentThread {
    /// Leaves the mesh.
    pub(super) async fn stop(self, farewell: Farewell) {
        let _ = self.stop.send(farewell);
        let _ = self.ended.await;
    }
}
