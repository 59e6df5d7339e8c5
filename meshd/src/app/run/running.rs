//! A meshd that serves: how it goes on, hands over, and stops.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::super::handover::{Leaving, Successor};
use super::super::requests::Reload;
use super::agent_thread::AgentThread;
use super::ground::Ground;
use super::stop::{Heard, Stop};
use super::traffic::Traffic;
use crate::agent::Farewell;
use crate::listeners::{Keep, Listeners};
use crate::server::Server;
use crate::systemd;

/// How long connections may finish where systemd restarts meshd: new ones wait for as long.
const RESTART_DRAIN: Duration = Duration::from_secs(5);

/// Everything that must be stopped in order.
pub(super) struct Running {
    pub(super) ground: Ground,
    pub(super) agent: AgentThread,
    pub(super) server: Option<Arc<Server>>,
    pub(super) traffic: Traffic,
    pub(super) listeners: Listeners,
}

impl Running {
    /// Goes on until a signal, or until a successor that somebody asked for takes over; one that cannot start is told
    /// of, and changes nothing. Returns what is still to be done where one took over.
    pub(super) async fn until_told(
        self,
        mut stop: Stop,
        mut reloads: mpsc::Receiver<Reload>,
    ) -> Result<Option<Leaving>> {
        loop {
            let asked = tokio::select! {
                heard = stop.or_reload() => match heard {
                    Heard::Stop => return self.stop().await.map(|()| None),
                    Heard::Reload => None,
                },
                asked = reloads.recv() => asked,
            };
            match self.successor().await {
                Ok(successor) => {
                    tracing::info!(successor = successor.pid(), "handing over");
                    tokio::select! {
                        biased;
                        () = stop.wait() => {
                            // It changes nothing before it is told to, and ends when nobody is left to tell it.
                            drop(successor);
                            asked.map(|asked| asked.send(Err("meshd was told to stop meanwhile".to_owned())));
                            return self.stop().await.map(|()| None);
                        }
                        // It may take some seconds, in which everything else goes on.
                        () = self.traffic.proxy.leave_quic() => {}
                    }
                    return Ok(Some(self.hand_over(successor, asked, stop).await));
                }
                Err(why) => {
                    tracing::error!(error = %format!("{why:#}"), "not reloaded");
                    asked.map(|asked| asked.send(Err(format!("{why:#}"))));
                }
            }
        }
    }

    /// Finds a successor that is ready to take over.
    async fn successor(&self) -> Result<Successor> {
        let (config, listeners) = (self.ground.config.clone(), self.listeners.clone());
        tokio::task::spawn_blocking(move || Successor::start(&config, &listeners)).await?
    }

    /// Ends the control plane; connections go on until [`Leaving::finish`].
    async fn hand_over(self, successor: Successor, asked: Option<Reload>, stop: Stop) -> Leaving {
        // First accept no more on the socket: whoever asks after the answer asks the successor.
        self.ground.drain.start();
        asked.map(|asked| asked.send(Ok(())));
        self.traffic.proxy.leave_mesh_port();
        self.traffic.interception.leave();
        self.agent.stop(Farewell::Silent).await;
        self.traffic.dns.stop().await;
        if let Some(server) = &self.server {
            server.stop().await;
        }
        let stop_drain = self.ground.config.proxy.drain;
        Leaving { successor, proxy: self.traffic.proxy, listeners: self.listeners, stop, stop_drain }
    }

    /// Traffic first goes elsewhere, then what is under way ends, then everything else.
    async fn stop(self) -> Result<()> {
        tracing::info!("meshd is stopping");
        systemd::stopping();
        let returns = tokio::task::spawn_blocking(systemd::is_restarting).await.unwrap_or(false);
        let (removed, farewell, keep, limit) = if returns {
            self.traffic.interception.leave();
            (Ok(()), Farewell::Silent, Keep::InStore, RESTART_DRAIN)
        } else {
            (self.traffic.interception.remove(), Farewell::Goodbye, Keep::Nothing, Duration::MAX)
        };
        self.agent.stop(farewell).await;
        self.listeners.close(keep);
        let cut = self.traffic.proxy.drain(self.ground.config.proxy.drain.min(limit)).await;
        if cut > 0 {
            tracing::warn!(cut, "connections were cut when the drain limit was reached");
        }
        self.ground.drain.start();
        self.traffic.dns.stop().await;
        if let Some(server) = &self.server {
            server.stop().await;
        }
        remove_file(&self.ground.config.listen.socket);
        removed.context("removing interception; run `meshd cleanup` to try again")
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "not removed");
    }
}
