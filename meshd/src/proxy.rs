//! The data path: connections and requests of callers in, routed by the Plan, carried to endpoints.
//!
//! One worker for each core: a thread with a single-threaded runtime, its own listeners (`SO_REUSEPORT`) and its own
//! upstream connections, so that a request takes no lock. What a request sees is one Plan, from its first byte to its
//! access log. Decisions are `core`'s; here they are carried out.
//!
//! | a connection comes in on | [`Way`] | goes through |
//! |---|---|---|
//! | an explicit listener | `Service`, `Fixed` | `outbound`, then `http` or `tcp` |
//! | the HTTP proxy port | `HttpProxy` | `http` |
//! | 15001, intercepted on its way out | `Outbound` | `outbound` |
//! | 15006, intercepted on its way in | `Inbound` | `inbound` |
//! | 15008, from another host | `Mesh` | `inbound` |
//! | a door that the Plan asks for (gateways) | | `doors`, then `outbound` |

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use mesh_core::plan::Plan;
use mesh_core::wire::guard;
use mesh_core::wire::http2::FrameLimits;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use accept::Room;
use budget::{Descriptors, Memory};

use crate::drain::{self, Drain};
use crate::listeners::Listeners;
use crate::telemetry::{AccessLog, Sample, Stats, Tap, catalog, number};
use crate::transport::{Accepted, Challenges, Dialer, QuicOptions, SocketOptions, Transport, socket};

mod accept;
mod body;
mod budget;
mod detour;
pub mod doors;
mod doze;
mod exchange;
mod forward;
mod gate;
mod http;
mod inbound;
mod interim;
mod local_reply;
mod measure;
mod mirror;
mod outbound;
mod passthrough;
mod request;
mod server;
mod tcp;
mod traced;
mod tunnel;
mod upstream;
mod watch;
mod wire;
mod worker;

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// The Plan in force; swapped by the agent.
    pub plans: Arc<ArcSwap<Plan>>,
    /// Reaches other hosts.
    pub dialer: Dialer,
    /// How this host's proxy behaves.
    pub settings: Arc<Settings>,
    /// Where everything is counted.
    pub stats: Arc<Stats>,
    /// Where requests are logged; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// When meshd began: the zero of every `Moment`.
    pub started: Instant,
}

/// Finds the addresses of a name that no rule knows, for a port.
pub type Resolver = Arc<
    dyn Fn(String, u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync,
>;

/// How this host's proxy behaves.
#[derive(Clone)]
pub struct Settings {
    /// Worker threads. Default: one for each core.
    pub workers: usize,
    /// What carries hops between hosts. Default TCP.
    pub transport: Transport,
    /// Limits of a request's head.
    pub limits: guard::Limits,
    /// What a caller may send of each kind of HTTP/2 frames in a second.
    pub frames: FrameLimits,
    /// For a complete head, also of the first request. Default 10 s; holds to within a second.
    pub head_timeout: Duration,
    /// Bytes a second that a request's body must come at, counted only while an endpoint waits for it. Default 100.
    pub body_rate: u32,
    /// How long a body may fall behind [`Self::body_rate`]. Default 30 s; then 408. Not for gRPC.
    pub body_timeout: Duration,
    /// Between two requests of a connection. Default 1 h, Envoy's.
    pub idle_timeout: Duration,
    /// For the first bytes on a port whose protocol nobody declared. Default 50 ms; then it is opaque TCP.
    pub sniff_timeout: Duration,
    /// Connections open on one listener. Default 0: what the descriptors of this process allow for, 64 held back; each
    /// carried connection takes two.
    pub connections: usize,
    /// Connections from one other host, open on one listener. Default 0: half of [`Self::connections`].
    pub connections_per_source: usize,
    /// Bytes of memory this process may use before it refuses new work. Default 0: four fifths of what its control
    /// group or the machine has.
    pub memory: usize,
    /// How often a request may be sent on by a meshd before it counts as going in a circle. Default 16.
    pub hops: u8,
    /// HTTP/2 streams of one caller's connection. Default 100.
    pub max_streams: u32,
    /// HTTP/2 streams of one connection from another host. Default 10,000: only keeps a bug from being endless.
    pub hop_streams: u32,
    /// Bytes of a request's body that are kept for a retry. Default 1 MiB, Envoy's buffer; larger bodies are not retried.
    pub replay_bytes: usize,
    /// Mirrored requests under way in one worker. Default 1,024; more are dropped and counted.
    pub max_mirrors: usize,
    /// Whether a caller may close its sending side and still get its answer (HTTP/1). Default no, as Envoy: a caller
    /// that closes has gone, and what it asked for is given up.
    pub half_close: bool,
    /// What outgoing sockets are given: the mark that interception lets pass.
    pub socket: SocketOptions,
    /// Where an intercepted connection was going. Default: asks the kernel.
    pub original_destination: fn(&TcpStream) -> Option<SocketAddr>,
    /// Where the secrets of `credentialName` are: a folder for each. Default: nowhere.
    pub secrets: PathBuf,
    /// Load balancers whose connections to gateways begin with a PROXY header. Default: none.
    pub proxy_header_from: Vec<IpNet>,
    /// What authorities that want to see a name lead here are answered. Default: nothing.
    pub challenges: Arc<Challenges>,
    /// Finds addresses of names outside the mesh. Default: the system's resolver.
    pub resolve: Resolver,
    /// Where doors get their sockets.
    pub listeners: Listeners,
    /// Shows requests to those who ask. Default: nobody does.
    pub tap: Arc<Tap>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            transport: Transport::default(),
            limits: guard::Limits::default(),
            frames: FrameLimits::default(),
            head_timeout: Duration::from_secs(10),
            body_rate: 100,
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_hours(1),
            sniff_timeout: Duration::from_millis(50),
            connections: 0,
            connections_per_source: 0,
            memory: 0,
            hops: 16,
            max_streams: 100,
            hop_streams: 10_000,
            replay_bytes: 1 << 20,
            max_mirrors: 1_024,
            half_close: false,
            socket: SocketOptions::default(),
            secrets: PathBuf::new(),
            proxy_header_from: Vec::new(),
            challenges: Arc::default(),
            listeners: Listeners::default(),
            tap: Arc::default(),
            original_destination: |stream| socket::original_destination(stream).ok(),
            resolve: Arc::new(|host, port| {
                Box::pin(async move { tokio::net::lookup_host((host, port)).await.map(Iterator::collect) })
            }),
        }
    }
}

/// The listeners of the proxy.
#[derive(Default)]
pub struct Sockets {
    /// Every way in with its sockets: one for each worker; with fewer, some workers do not listen there.
    pub entrances: Vec<Entrance>,
    /// The mesh port over UDP, each socket served by one worker; none: hops and control traffic come over TCP only.
    pub quic: Vec<(std::net::UdpSocket, QuicOptions)>,
}

/// One way in.
pub struct Entrance {
    /// What connections there mean.
    pub way: Way,
    /// Sockets of one address, made by [`socket::listen_tcp_group`].
    pub sockets: Vec<TcpListener>,
}

/// What connections to a listener mean.
///
/// `caller` is a position in `Node::callers`: who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A local address that stands for a service port: the Host of a request, the SNI or the port's TCP service decides.
    Service {
        /// The service port.
        port: u16,
        /// What is spoken.
        protocol: Declared,
        /// Who calls.
        caller: usize,
    },
    /// A local address that stands for one service: whatever Host is sent, it is this one.
    Fixed {
        /// Full host name, as in the Plan.
        host: Arc<str>,
        /// The service port.
        port: u16,
        /// What is spoken.
        protocol: Declared,
        /// Who calls.
        caller: usize,
    },
    /// A forward proxy for HTTP: absolute-form, origin-form with Host, CONNECT.
    HttpProxy {
        /// Who calls.
        caller: usize,
    },
    /// Where interception redirects what goes out; the kernel knows where to (15001).
    Outbound {
        /// Who calls.
        caller: usize,
    },
    /// Where interception redirects what comes in plainly (15006).
    Inbound,
    /// The mesh port: hops from other hosts, control traffic, joins (15008).
    Mesh,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declared {
    /// Not said: the port's service says, else the first bytes.
    #[default]
    Auto,
    /// HTTP/1 or HTTP/2.
    Http,
    /// Opaque bytes: nothing is read before connecting.
    Tcp,
    /// TLS, passed through by SNI.
    Tls,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or a runtime could not be made.
    #[error("cannot start proxy worker {worker}: {source}")]
    Worker {
        /// Which.
        worker: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The running proxy.
pub struct Proxy {
    /// What came in on the mesh port and is no data hop: control traffic and joins.
    pub control: mpsc::Receiver<Accepted>,
    /// Opens and closes the listeners that Plans ask for, once it runs; taken by who runs it.
    pub doors: Option<doors::Keeper>,
    drain: Drain,
    mesh: Drain,
    quic: Drain,
    pulses: Vec<Arc<AtomicU64>>,
    stop: tokio::sync::watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Starts the workers. Listening has begun when this returns: the sockets were made by the caller.
#[expect(clippy::needless_pass_by_value, reason = "the proxy keeps what it runs on")]
pub fn start(shared: Shared, sockets: Sockets) -> Result<Proxy, StartError> {
    let workers = shared.settings.workers.max(1);
    let (drain, draining) = drain::channel();
    let (mesh, leaving_mesh) = drain::channel();
    let (left_quic, leaving_quic) = drain::channel();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (control, receiver) = mpsc::channel(CONTROL_QUEUE);
    let own = sockets.entrances.iter().flat_map(|entrance| &entrance.sockets);
    let own: Arc<[SocketAddr]> = own.filter_map(|socket| socket.local_addr().ok()).collect();
    let memory = Arc::new(Memory::new(shared.settings.memory));
    let descriptors = Descriptors::new();
    tell(&shared.stats, memory.clone(), descriptors.clone());
    let mut shares: Vec<Vec<(Way, TcpListener, Arc<Room>)>> = (0..workers).map(|_| Vec::new()).collect();
    for entrance in sockets.entrances {
        let room = Arc::new(Room::new(&shared.settings, &descriptors));
        for (index, socket) in entrance.sockets.into_iter().enumerate() {
            shares[index % workers].push((entrance.way.clone(), socket, room.clone()));
        }
    }
    let mut keeper = doors::Keeper::new(&shared, &descriptors, &draining);
    let quic_room = Arc::new(Room::new(&shared.settings, &descriptors));
    let mut quic: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, socket) in sockets.quic.into_iter().enumerate() {
        quic[index % workers].push(socket);
    }
    let mut threads = Vec::with_capacity(workers);
    let pulses: Vec<Arc<AtomicU64>> = (0..workers).map(|_| Arc::default()).collect();
    for (index, (listeners, quic)) in shares.into_iter().zip(quic).enumerate() {
        let start = worker::Start {
            index,
            shared: shared.clone(),
            listeners,
            quic,
            own: own.clone(),
            control: control.clone(),
            draining: draining.clone(),
            leaving_mesh: leaving_mesh.clone(),
            leaving_quic: leaving_quic.clone(),
            pulse: pulses[index].clone(),
            stopped: stopped.clone(),
            doors: keeper.worker(),
            quic_room: quic_room.clone(),
            memory: memory.clone(),
            descriptors: descriptors.clone(),
        };
        let thread = worker::spawn(start).map_err(|source| StartError::Worker { worker: index, source })?;
        threads.push(thread);
    }
    Ok(Proxy { control: receiver, doors: Some(keeper), drain, mesh, quic: left_quic, pulses, stop, threads })
}

/// Has metrics tell of memory and descriptors.
fn tell(stats: &Stats, memory: Arc<Memory>, descriptors: Arc<Descriptors>) {
    stats.watch(move |samples| {
        let (used, most) = memory.numbers();
        let (open, limit) = descriptors.numbers();
        samples.extend([
            Sample::new(&catalog::MEMORY, number(used as u64)),
            Sample::new(&catalog::MEMORY_LIMIT, number(most as u64)),
            Sample::new(&catalog::DESCRIPTORS, number(open as u64)),
            Sample::new(&catalog::DESCRIPTORS_LIMIT, number(limit as u64)),
        ]);
    });
}

impl Proxy {
    /// Takes no more hops over QUIC, has those that are open end, cuts what has not after five seconds, and closes its sockets.
    /// Callers go over TCP meanwhile: before [`Self::leave_mesh_port`].
    pub async fn leave_quic(&self) {
        self.quic.start();
        // A worker that hangs holds nobody up.
        self.quic.finished(inbound::QUIC_LEAVES_WITHIN + Duration::from_secs(1)).await;
    }

    /// Accepts no more on the mesh port over TCP, where control traffic comes in too: it is a successor's now. What is open
    /// goes on.
    pub fn leave_mesh_port(&self) {
        self.mesh.start();
    }

    /// How often each worker has looked after its house: once a second while it is alive.
    pub fn pulses(&self) -> Vec<Arc<AtomicU64>> {
        self.pulses.clone()
    }

    /// Stops accepting, lets what is under way end, at most for `limit`; then cuts the rest. Returns how many
    /// connections were cut.
    pub async fn drain(self, limit: Duration) -> usize {
        self.drain_until(tokio::time::sleep(limit)).await
    }

    /// Like [`Self::drain`], until `enough` comes.
    pub async fn drain_until(self, enough: impl Future<Output = ()>) -> usize {
        self.drain.start();
        // Where nobody runs it, it would be waited for.
        drop(self.doors);
        let left = self.drain.finished_or(enough).await;
        self.stop.send_replace(true);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        if let Ok(panicked @ 1..) = joined.await {
            tracing::error!(panicked, "proxy workers panicked");
        }
        left
    }
}

/// Connections handed to the control plane that it has not taken yet.
const CONTROL_QUEUE: usize = 256;
