//! One stream to one server: what comes down is taken in and published, what changes here goes up.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mesh_core::identity::Identity;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::watch::{Hello, Up};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::heard::{self, Heard};
use super::{Agent, Farewell, KEEPALIVE, SAVE_EVERY, SILENCE, Settings};
use crate::transport::{ControlClient, Expect, FrameReceiver, FrameSender, Service};

/// An open stream.
pub(super) struct Session {
    up: FrameSender,
    down: FrameReceiver,
}

/// How a session ended.
pub(super) enum Ended {
    /// meshd is stopping; goodbye was said where it was to be.
    Stopped,
    /// The server is not heard any more, or says what cannot be.
    Lost(String),
}

impl Session {
    /// Opens a stream to a server, resuming from `from`.
    pub(super) async fn open(
        settings: &Settings,
        id: HostId,
        address: SocketAddr,
        from: Option<Revision>,
    ) -> Result<Self, String> {
        let domain = settings.dialer.credentials().trust().domain().to_owned();
        let identity = Identity::host(&domain, &id.to_string()).map_err(|error| error.to_string())?;
        let client = ControlClient::new(settings.dialer.clone(), address, Expect::Identity(identity));
        let hello = Hello { mesh: settings.mesh.clone(), from, version: env!("CARGO_PKG_VERSION").into() };
        let opening = client.open(Service::Watch, encode(&hello));
        match timeout(SILENCE, opening).await {
            Ok(Ok(stream)) => {
                let (up, down) = stream.into_split();
                Ok(Self { up, down })
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{address} did not answer within {SILENCE:?}")),
        }
    }

    /// Follows until the stream ends or `stop` comes.
    pub(super) async fn follow(mut self, agent: &mut Agent, stop: &mut oneshot::Receiver<Farewell>) -> Ended {
        let mut keepalive = tokio::time::interval(KEEPALIVE);
        let mut save = tokio::time::interval(SAVE_EVERY);
        let mut heard = Instant::now();
        agent.offer.registration.mark_unchanged();
        agent.offer.health.mark_unchanged();
        let introduction = Up {
            registration: Some(agent.offered()),
            facts: Some(agent.settings.facts.clone()),
            ..alive(agent)
        };
        if let Err(why) = self.say(&introduction).await {
            return Ended::Lost(why);
        }
        loop {
            let sent = tokio::select! {
                frame = self.down.recv() => {
                    heard = Instant::now();
                    match self.take(agent, frame).await {
                        Ok(()) => Ok(()),
                        Err(why) => Err(why),
                    }
                }
                Ok(()) = agent.offer.registration.changed() => {
                    let up = Up { registration: Some(agent.offered()), ..alive(agent) };
                    self.say(&up).await
                }
                Ok(()) = agent.offer.health.changed() => {
                    agent.offer.health.mark_unchanged();
                    agent.publish();
                    let up = Up { health: agent.health(), ..alive(agent) };
                    self.say(&up).await
                }
                Ok(()) = agent.offer.doors.changed() => {
                    let world = agent.world.clone();
                    agent.note_problems(&world);
                    self.say(&alive(agent)).await
                }
                _ = keepalive.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Ended::Lost(format!("nothing was heard for {SILENCE:?}"));
                    }
                    self.say(&alive(agent)).await
                }
                _ = save.tick() => { agent.save_in_time(); Ok(()) }
                farewell = &mut *stop => {
                    if farewell != Ok(Farewell::Silent) {
                        self.say_goodbye(agent).await;
                    }
                    return Ended::Stopped;
                }
            };
            if let Err(why) = sent {
                return Ended::Lost(why);
            }
        }
    }

    /// Takes in a frame and all that wait behind it, then publishes once and acknowledges.
    async fn take(
        &mut self,
        agent: &mut Agent,
        first: Result<Option<Bytes>, crate::transport::FrameError>,
    ) -> Result<(), String> {
        let mut changed = absorb(agent, first)?;
        agent.servers.answered();
        let gather_until = Instant::now() + GATHER;
        while changed && Instant::now() < gather_until {
            match timeout(Duration::ZERO, self.down.recv()).await {
                Ok(frame) => changed |= absorb(agent, frame)?,
                Err(_) => break,
            }
        }
        if changed {
            agent.publish();
            self.say(&alive(agent)).await?;
        }
        Ok(())
    }

    async fn say(&mut self, up: &Up) -> Result<(), String> {
        match timeout(SILENCE, self.up.send(encode(up))).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the server took nothing for {SILENCE:?}")),
        }
    }

    /// Says goodbye and waits until the server closed the stream: it has taken note then.
    async fn say_goodbye(&mut self, agent: &Agent) {
        let goodbye = Up { goodbye: true, ..alive(agent) };
        if self.say(&goodbye).await.is_ok() {
            let closed = async { while let Ok(Some(_)) = self.down.recv().await {} };
            drop(timeout(GOODBYE, closed).await);
        }
    }
}

/// Takes one frame in. Returns whether the World changed.
fn absorb(
    agent: &mut Agent,
    frame: Result<Option<Bytes>, crate::transport::FrameError>,
) -> Result<bool, String> {
    let frame = frame.map_err(|error| error.to_string())?.ok_or("the server closed the stream")?;
    let heard = heard::read(&frame, &agent.world, &mut agent.unread).map_err(|error| {
        agent.servers.made_no_sense();
        format!("unreadable frame: {error}")
    })?;
    match heard {
        Heard::World(whole) => {
            agent.replace_world(*whole);
            agent.learn_servers_from_world();
            Ok(true)
        }
        Heard::Delta { from, to, changes } => {
            if !agent.absorb(from, to, &changes) {
                agent.servers.made_no_sense();
                return Err(format!(
                    "a delta from revision {from} does not fit revision {}",
                    agent.world.revision
                ));
            }
            agent.learn_servers_from_world();
            Ok(true)
        }
        Heard::Bookmark { at, servers } => {
            let learnt = agent.servers.learn(servers);
            let moved = at > agent.world.revision && agent.world.revision > Revision(0);
            if moved {
                std::sync::Arc::make_mut(&mut agent.world).revision = at;
            }
            Ok(moved || learnt)
        }
        Heard::Newer => Ok(false),
    }
}

/// The least an agent says: what it runs, and its clock.
fn alive(agent: &Agent) -> Up {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Up {
        live: agent.plan.revision,
        problems: agent.problems.clone(),
        clock_ms: u64::try_from(clock.as_millis()).unwrap_or(u64::MAX),
        ..Up::default()
    }
}

fn encode(message: &impl serde::Serialize) -> Bytes {
    // The types of `proto::watch` hold nothing that JSON cannot carry.
    serde_json::to_vec(message).unwrap_or_default().into()
}

/// How long changes are gathered before they are compiled, when they come without pause.
const GATHER: Duration = Duration::from_millis(50);
/// How long to wait until a goodbye was heard.
const GOODBYE: Duration = Duration::from_secs(1);
