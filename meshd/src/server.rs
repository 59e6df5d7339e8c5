//! The control plane: the facts of the mesh, agreed on by its voters, changed by the API, told to agents.
//!
//! Runs on voters and standbys. [`raft`] agrees, [`watch`] tells every agent what changed, [`leases`]
//! know who is alive, [`autopilot`] decides (by `mesh_core`) who votes, [`api`] answers. Raft has a
//! runtime of its own, so that watchers and callers can never delay a heartbeat.
//!
//! `app` hands in the data folder, the runtimes, a way to call other hosts ([`Carrier`]) and the
//! host's power to sign ([`Notary`]); it hands over every control stream that comes in.

mod api;
mod autopilot;
pub mod ca;
mod leases;
mod peers;
mod raft;
mod relay;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_core::world::World;
use mesh_proto::api::{ApiError, ErrorCode, SignRequest};
use mesh_proto::command::{Batch, Bootstrap, Command, Entry, HostId, Revision, Timestamp};
use mesh_proto::finding::Finding;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::leases::{Heard, Keeper};
pub use self::peers::{Answer, Carrier, NoAnswer};
use self::raft::Consensus;
pub use self::raft::{Member, OpenError, ProposeError, Proposed, SnapshotError, StoreError};
use self::watch::{Hub, StreamEnd, Streams};
use crate::allocator;
use crate::transport::{FrameStream, Service};

/// What a server is started with.
pub struct Setup {
    /// This host.
    pub id: HostId,
    /// Where log and snapshots are kept, usually `DATA/server`. Made if missing.
    pub folder: PathBuf,
    /// Whether this host has had a log: then one that is gone is refused, and not begun anew.
    pub has_log: bool,
    /// The way to other hosts.
    pub carrier: Arc<dyn Carrier>,
    /// The mirror of this host: what the log says as it does is held once.
    pub mirror: Arc<World>,
    /// The power to sign and to seal.
    pub notary: Arc<dyn Notary>,
    /// Findings about a batch that need the whole World: `mesh_core::analyze::check`.
    pub analyze: fn(&World, &Batch) -> Vec<Finding>,
    /// Where Raft runs, alone.
    pub raft_runtime: Handle,
    /// Where API, watch streams and leases run.
    pub work_runtime: Handle,
    /// How many voters the mesh should have; odd. Default [`mesh_core::autopilot::VOTERS`].
    pub voters: usize,
}

/// Looks at a server's files while no server has them open, and changes none; returns what keeps it from starting.
pub fn inspect(folder: &Path, has_log: bool) -> Vec<OpenError> {
    raft::inspect(folder, has_log)
}

/// What only a holder of the root, or of an intermediate under it, can do.
pub trait Notary: Send + Sync + 'static {
    /// Signs certificates; one chain for each request, leaf first, DER in base64.
    ///
    /// The server has checked who may ask for what. **Errors**: a sentence, when this host holds no
    /// intermediate or a CSR cannot be read.
    fn sign(&self, requests: &[SignRequest]) -> Result<Vec<Vec<String>>, String>;

    /// Seals the root key for a host with this wrap key; `None` when this host cannot open it itself.
    fn seal_root(&self, wrap_key: &str) -> Result<Option<String>, String>;
}

/// A running server.
pub struct Server {
    id: HostId,
    consensus: Arc<Consensus>,
    heard: Arc<Heard>,
    keeper: Arc<Keeper>,
    streams: Arc<Streams>,
    notary: Arc<dyn Notary>,
    analyze: fn(&World, &Batch) -> Vec<Finding>,
    folder: PathBuf,
    voters: usize,
    raft_runtime: Handle,
    work_runtime: Handle,
    joins: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
}

impl Server {
    /// Takes up the state on disk and begins to serve.
    ///
    /// A server without members in its log waits until a leader adds it, or until
    /// [`Server::bootstrap`]. **Errors**: [`OpenError`] names the file that cannot be used.
    pub async fn start(setup: Setup) -> Result<Arc<Self>, OpenError> {
        let Setup {
            id,
            folder,
            has_log,
            carrier,
            mirror,
            notary,
            analyze,
            raft_runtime,
            work_runtime,
            voters,
        } = setup;
        let hub = Arc::new(Hub::new());
        let opening = {
            let (folder, hub) = (folder.clone(), Arc::clone(&hub));
            raft_runtime.spawn(async move {
                let consensus = Consensus::open(id, &folder, has_log, carrier, hub, mirror).await;
                // Reading the log takes several times what is left of it.
                allocator::give_back();
                consensus
            })
        };
        let consensus = Arc::new(opening.await.map_err(|error| OpenError::State(error.to_string()))??);
        hub.begun();
        let heard = Arc::new(Heard::default());
        let keeper = Arc::new(Keeper::new(Arc::clone(consensus.facts())));
        let streams = Arc::new(Streams::new(hub, Arc::clone(&consensus), Arc::clone(&heard)));
        let tasks = Mutex::default();
        let server = Arc::new(Self {
            id,
            consensus,
            heard,
            keeper,
            streams,
            notary,
            analyze,
            folder,
            voters,
            raft_runtime,
            work_runtime,
            joins: Arc::new(Semaphore::new(JOINS_MAX)),
            tasks,
        });
        server.run();
        Ok(server)
    }

    /// Holds what the mirror of this host says alike as that one does, instead of in copies of its own.
    pub fn share(&self, mirror: &World) {
        self.consensus.facts().share(mirror);
    }

    /// Begins a mesh of which this server is the first and only voter.
    ///
    /// Safe to call again after a crash half way. **Errors**: `Conflict` when the folder holds a mesh
    /// already.
    pub async fn bootstrap(&self, bootstrap: Bootstrap) -> Result<Revision, ApiError> {
        let begun = self.consensus.facts().read(|world| world.mesh.id.clone());
        if !begun.is_empty() {
            let message = format!("this is mesh {begun} already");
            return Err(ApiError { code: ErrorCode::Conflict, message, findings: Vec::new() });
        }
        let host = bootstrap.host.name.clone();
        self.consensus.begin().await?;
        self.consensus.some_leader(PATIENCE).await;
        let command = Command::Bootstrap(Box::new(bootstrap));
        let proposed = self.propose(command, &format!("init on {host}"), None).await?;
        proposed.result.map(|_| proposed.revision)
    }

    /// Serves a control stream that came in, until the peer ends it.
    ///
    /// `host` is the host that the peer's certificate names. Returns at once.
    pub fn serve(self: &Arc<Self>, host: HostId, service: Service, stream: FrameStream) {
        let server = Arc::clone(self);
        match service {
            Service::Raft => {
                self.spawn(&self.raft_runtime, async move { server.serve_raft(host, stream).await });
            }
            Service::Api | Service::Sign => {
                self.spawn(&self.work_runtime, async move { server.serve_calls(host, stream).await });
            }
            Service::Watch => {
                self.spawn(&self.work_runtime, async move { server.serve_watch(host, stream).await });
            }
        }
    }

    /// Serves a host that wants to join: one request, one answer. Returns at once.
    ///
    /// `exporter` is what both ends derived from the channel. Beyond 32 at a time, the next ones are
    /// turned away: whoever guesses tokens cannot keep the others from being served.
    pub fn serve_join(self: &Arc<Self>, address: SocketAddr, stream: FrameStream, exporter: [u8; 32]) {
        let Ok(permit) = Arc::clone(&self.joins).try_acquire_owned() else {
            tracing::warn!(%address, "too many hosts want to join at once: one was turned away");
            return;
        };
        let server = Arc::clone(self);
        self.spawn(&self.work_runtime, async move {
            server.answer_join(address, stream, exporter).await;
            drop(permit);
        });
    }

    /// Copies the World as this server knows it now. Shares its parts; cheap for a few thousand facts.
    pub fn world(&self) -> Arc<World> {
        Arc::new(self.consensus.facts().read(World::clone))
    }

    /// The newest revision applied here, and waiting for the next.
    pub fn revisions(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.streams.head()
    }

    /// How often the election driver has looked at its timer.
    #[cfg(test)]
    fn election_looks(&self) -> u64 {
        self.consensus.looks.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The leader as far as this server knows; `None` while there is none.
    pub fn leader(&self) -> Option<HostId> {
        self.consensus.leader()
    }

    /// The members of the Raft group.
    pub fn members(&self) -> Vec<Member> {
        self.consensus.members()
    }

    /// Whether this server takes part in the Raft group, as voter or standby.
    pub fn is_member(&self) -> bool {
        self.members().iter().any(|member| member.id == self.id)
    }

    /// Servers an agent may turn to.
    pub fn servers(&self) -> BTreeMap<HostId, SocketAddr> {
        self.streams.servers()
    }

    /// Why this server takes no part any more, if so: a disk that refuses writes.
    pub fn failure(&self) -> Option<String> {
        self.consensus.failure()
    }

    /// Stops in order: streams and calls end, Raft stops, the log is on disk.
    ///
    /// Takes at most a few seconds.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        self.consensus.stop().await;
    }

    fn run(self: &Arc<Self>) {
        let seed = fastrand::u64(..);
        let consensus = Arc::clone(&self.consensus);
        self.spawn(&self.raft_runtime, consensus.drive(Chance(fastrand::Rng::with_seed(seed))));
        let server = Arc::clone(self);
        self.spawn(&self.work_runtime, async move { server.relay_reports().await });
        let server = Arc::clone(self);
        self.spawn(&self.work_runtime, async move { server.keep_leases().await });
        let server = Arc::clone(self);
        self.spawn(&self.work_runtime, async move { server.pilot().await });
    }

    fn spawn(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Streams come and go: forget those that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, runtime);
    }

    async fn serve_raft(&self, host: HostId, mut stream: FrameStream) {
        while let Ok(Some(frame)) = stream.recv().await {
            let answer = match self.consensus.receive(host, &frame).await {
                Ok(answer) => answer,
                Err(reason) => {
                    // Of what this server cannot read, and why it takes no part, it tells once.
                    if self.consensus.behind().is_none() && self.consensus.failure().is_none() {
                        tracing::warn!(%host, reason, "refused a raft message");
                    }
                    reason.into()
                }
            };
            if stream.send(answer).await.is_err() {
                return;
            }
        }
    }

    async fn serve_watch(&self, host: HostId, mut stream: FrameStream) {
        let Ok(Ok(Some(hello))) = tokio::time::timeout(PATIENCE, stream.recv()).await else {
            return;
        };
        let end = self.streams.serve(host, &hello, stream).await;
        match end {
            StreamEnd::Refused(reason) => tracing::warn!(%host, reason, "refused a watch stream"),
            end => tracing::debug!(%host, %end, "a watch stream ended"),
        }
    }

    /// Stamps a command and puts it into the log. This server must lead.
    async fn propose(
        &self,
        command: Command,
        author: &str,
        key: Option<String>,
    ) -> Result<Proposed, ApiError> {
        self.check_space()?;
        let entry = Entry { at: Timestamp(wall_ms()), author: author.to_owned(), key, command };
        Ok(self.consensus.propose(entry, PATIENCE).await?)
    }

    /// Refuses early when the disk is nearly full: a log that cannot be written stops the whole server.
    fn check_space(&self) -> Result<(), ApiError> {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= SPACE_NEEDED {
            return Ok(());
        }
        let message = format!(
            "the disk of {} is full: {} MiB are free at {}, {} MiB are needed; nothing was changed",
            self.name(),
            free >> 20,
            self.folder.display(),
            SPACE_NEEDED >> 20
        );
        Err(ApiError { code: ErrorCode::Unavailable, message, findings: Vec::new() })
    }

    /// Name of this host, or its id before it is known.
    fn name(&self) -> String {
        self.consensus.facts().read(|world| {
            world.hosts.get(&self.id).map_or_else(|| format!("host {}", self.id), |host| host.name.clone())
        })
    }

    /// Lets the leases know whether this server leads.
    fn note_leadership(&self) {
        let term = self.consensus.leads().then(|| self.consensus.term());
        self.keeper.lead(term, Instant::now());
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Chance for `mesh_core`, from a seed.
struct Chance(fastrand::Rng);

impl rand_core::RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        self.0.u32(..)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

/// Milliseconds since 1970 by this host's clock.
fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// How long an answer may take that needs the other voters.
///
/// Long enough for an election (600 ms at most, a few times), short enough for a person.
const PATIENCE: Duration = Duration::from_secs(3);
/// Hosts that join at the same time.
const JOINS_MAX: usize = 32;
/// Free space below which writes are refused: room for the snapshots and log of a mid-sized mesh.
const SPACE_NEEDED: u64 = 32 << 20;

#[cfg(test)]
mod tests;
