//! One watch stream: deltas down, the agent's word up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::watch::{Down, Hello, Up};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{Hub, Next, encode};
use crate::server::leases::Heard;
use crate::server::raft::{Consensus, Facts};
use crate::transport::frame::{FrameReceiver, FrameSender, FrameStream, MAX_BULK_FRAME_BYTES};

/// Serves watch streams.
pub(in crate::server) struct Streams {
    hub: Arc<Hub>,
    facts: Arc<Facts>,
    heard: Arc<Heard>,
    consensus: Arc<Consensus>,
    worlds: Semaphore,
    world: Mutex<Weak<WorldFrame>>,
}

/// A World as it is sent, held by those to whom it is being sent.
struct WorldFrame {
    revision: Revision,
    frame: Bytes,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum StreamEnd {
    /// The agent closed it.
    #[error("the agent closed the stream")]
    Closed,
    /// The agent said nothing for too long.
    #[error("the agent said nothing for {SILENCE:?}")]
    Silent,
    /// The agent did not read for too long.
    #[error("the agent read nothing for {STALLED:?}")]
    Stalled,
    /// It is not one of this mesh, or does not speak the protocol.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Streams {
    pub(in crate::server) fn new(hub: Arc<Hub>, consensus: Arc<Consensus>, heard: Arc<Heard>) -> Self {
        let facts = Arc::clone(consensus.facts());
        Self { hub, facts, heard, consensus, worlds: Semaphore::new(WORLDS), world: Mutex::default() }
    }

    /// Serves the agent of `host` until one side ends.
    ///
    /// `hello` is the first frame of the stream.
    pub(in crate::server) async fn serve(
        &self,
        host: HostId,
        hello: &[u8],
        mut stream: FrameStream,
    ) -> StreamEnd {
        let cursor = match self.check(host, hello) {
            Ok(cursor) => cursor,
            Err(end) => return end,
        };
        stream.set_limit(MAX_BULK_FRAME_BYTES);
        let (sender, receiver) = stream.into_split();
        let session = self.heard.open(host);
        let end = tokio::select! {
            end = self.tell(sender, cursor) => end,
            end = self.listen(host, session, receiver) => end,
        };
        self.heard.close(host, session);
        end
    }

    fn check(&self, host: HostId, hello: &[u8]) -> Result<Option<Revision>, StreamEnd> {
        self.check_not_behind()?;
        let hello: Hello = serde_json::from_slice(hello)
            .map_err(|error| StreamEnd::Refused(format!("its greeting cannot be read: {error}")))?;
        self.facts.read(|world| {
            if world.mesh.id != hello.mesh {
                let ours = &world.mesh.id;
                return Err(StreamEnd::Refused(format!("it belongs to mesh {}, this is {ours}", hello.mesh)));
            }
            if !world.hosts.contains_key(&host) {
                return Err(StreamEnd::Refused(format!("host {host} was removed from the mesh: join again")));
            }
            Ok(hello.from)
        })
    }

    /// Sends agents elsewhere while this server cannot read what the others agree on.
    fn check_not_behind(&self) -> Result<(), StreamEnd> {
        let why = self.consensus.behind();
        why.map_or(Ok(()), |why| Err(StreamEnd::Refused(format!("this server is behind: {why}"))))
    }

    /// Sends what changes, and a bookmark when nothing does.
    async fn tell(&self, mut sender: FrameSender, from: Option<Revision>) -> StreamEnd {
        let mut head = self.hub.head();
        let mut cursor = match from {
            Some(cursor) => cursor,
            None => match self.send_world(&mut sender).await {
                Ok(cursor) => cursor,
                Err(end) => return end,
            },
        };
        // The first bookmark goes at once: it names the servers.
        if let Err(end) = send(&mut sender, self.bookmark(cursor)).await {
            return end;
        }
        let mut told = Some(cursor);
        loop {
            let newest = *head.borrow_and_update();
            let sent = match self.hub.next(cursor) {
                Next::Delta { from, .. } if from > cursor => {
                    // Entries that changed nothing lie between: a delta follows on exactly what it names.
                    send(&mut sender, self.bookmark(from)).await.map(|()| from)
                }
                Next::Delta { to, frame, .. } => send(&mut sender, frame).await.map(|()| to),
                Next::World => self.send_world(&mut sender).await,
                Next::Nothing if told == Some(cursor.max(newest)) => {
                    match tokio::time::timeout(KEEPALIVE, head.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return StreamEnd::Broken("this server is stopping".to_owned()),
                        Err(_) => match self.check_not_behind() {
                            Ok(()) => told = None,
                            Err(end) => return end,
                        },
                    }
                    continue;
                }
                Next::Nothing => {
                    let at = cursor.max(newest);
                    send(&mut sender, self.bookmark(at)).await.map(|()| at)
                }
            };
            match sent {
                Ok(reached) => cursor = reached,
                Err(end) => return end,
            }
            told = Some(cursor);
        }
    }

    /// Takes in what the agent says.
    async fn listen(&self, host: HostId, session: u64, mut receiver: FrameReceiver) -> StreamEnd {
        loop {
            let frame = match tokio::time::timeout(SILENCE, receiver.recv()).await {
                Err(_) => return StreamEnd::Silent,
                Ok(Err(error)) => return StreamEnd::Broken(error.to_string()),
                Ok(Ok(None)) => return StreamEnd::Closed,
                Ok(Ok(Some(frame))) => frame,
            };
            match serde_json::from_slice::<Up>(&frame).or_else(|_| Up::in_part(&frame, &self.name())) {
                Ok(up) => self.heard.say(host, session, up),
                Err(error) => return StreamEnd::Refused(format!("it said what cannot be read: {error}")),
            }
        }
    }

    /// Who this server is, for hosts whose words it does not all understand.
    fn name(&self) -> String {
        let id = self.consensus.id();
        self.facts
            .read(|world| world.hosts.get(&id).map_or_else(|| format!("host {id}"), |host| host.name.clone()))
    }

    /// Sends the whole World; the rest wait when too many need one.
    async fn send_world(&self, sender: &mut FrameSender) -> Result<Revision, StreamEnd> {
        let permit = self.worlds.acquire().await;
        let whole = self.whole_world();
        let sent = send(sender, whole.frame.clone()).await;
        drop(permit);
        sent.map(|()| whole.revision)
    }

    /// The World of now, encoded once for all to whom it is sent at the same time.
    fn whole_world(&self) -> Arc<WorldFrame> {
        let mut under_way = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.facts.read(|world| world.revision);
        if let Some(whole) = under_way.upgrade().filter(|whole| whole.revision == newest) {
            return whole;
        }
        let world = self.facts.read(mesh_core::world::World::clone);
        let whole =
            Arc::new(WorldFrame { revision: world.revision, frame: encode(&Told::World(world.facts())) });
        *under_way = Arc::downgrade(&whole);
        whole
    }

    /// The newest revision, and waiting for it.
    pub(in crate::server) fn head(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.hub.head()
    }

    fn bookmark(&self, at: Revision) -> Bytes {
        encode(&Down::Bookmark { at, servers: self.servers() })
    }

    /// Every server and its address.
    pub(in crate::server) fn servers(&self) -> BTreeMap<HostId, SocketAddr> {
        let members = self.consensus.members();
        self.facts.read(|world| {
            let address = |id| world.hosts.get(&id).map(|host| (id, host.facts.address));
            members.iter().filter_map(|member| address(member.id)).collect()
        })
    }
}

/// A [`Down::World`] that borrows.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Told<'a> {
    World(mesh_core::world::Facts<'a>),
}

async fn send(sender: &mut FrameSender, frame: Bytes) -> Result<(), StreamEnd> {
    match tokio::time::timeout(STALLED, sender.send(frame)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(StreamEnd::Broken(error.to_string())),
        Err(_) => Err(StreamEnd::Stalled),
    }
}

/// How often a bookmark goes out when nothing changes.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// An agent speaks every 2 s; after this long its stream is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// How long an agent may leave a frame unread.
const STALLED: Duration = Duration::from_mins(1);
/// Whole Worlds under way at the same time.
const WORLDS: usize = 64;
