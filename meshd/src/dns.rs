//! DNS on port 15053: answers names of the mesh from the Plan, and passes every other question on.
//!
//! Which addresses a name has was decided by `core::compile`. Questions and answers that are not the mesh's pass
//! through byte for byte, so that DNSSEC, EDNS and types unknown here survive; hickory reads and writes only what
//! meshd itself answers. (Its server would decode and rebuild every answer; therefore the sockets are served here.)
//!
//! The resolvers asked are those found before capture, over marked sockets; otherwise meshd would ask itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_core::plan::Plan;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::drain::Draining;
use crate::listeners::Listeners;
use crate::task;
use crate::telemetry::QUESTIONS;
use answer::Verdict;
use upstream::{Over, Upstream};

pub use lookup::Lookup;
pub use resolv::Resolvers;

mod answer;
mod hosts_file;
mod lookup;
mod resolv;
mod upstream;

#[cfg(test)]
mod tests;

/// Returns what the mesh itself answers to a message that came over UDP; `None`: it is passed on, or dropped.
pub fn answer_of_the_mesh(message: &[u8], names: &mesh_core::plan::Names) -> Option<Vec<u8>> {
    match answer::decide(message, names, &[], Duration::from_secs(1), Over::Udp) {
        Verdict::Reply(answer) => Some(answer),
        Verdict::Forward(_) | Verdict::Drop => None,
    }
}

/// How names are answered and passed on.
#[derive(Clone, Debug)]
struct Settings {
    /// Where other names are asked, in order, and which suffixes callers append.
    resolvers: Resolvers,
    /// Until the caller gets SERVFAIL.
    timeout: Duration,
    /// How long callers may remember answers of the mesh.
    ttl: Duration,
    /// `SO_MARK` of the sockets to the resolvers.
    mark: u32,
}

/// DNS being served.
#[derive(Debug)]
pub struct Dns {
    running: Vec<JoinHandle<()>>,
    forwards: Arc<Semaphore>,
    addresses: Vec<SocketAddr>,
}

/// Why DNS is not served on an address.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve DNS on {address} (listen.dns): {source}; another process may hold it: see `ss -lntup`, \
     or set listen.dns in meshd.toml"
)]
pub struct DnsError {
    address: SocketAddr,
    source: io::Error,
}

/// Returns the resolvers for names outside the mesh: those of `meshd.toml`, else those of `/etc/resolv.conf`.
///
/// Call it before interception begins.
pub fn upstreams(config: &Config) -> Vec<SocketAddr> {
    let mut servers = config.dns.upstreams.clone();
    if servers.is_empty() {
        servers = Resolvers::of_system().servers;
    }
    // Asking oneself would go round until the time is up.
    servers.retain(|server| !config.listen.dns.contains(server));
    servers
}

/// Serves on all addresses of `listen.dns` until draining begins.
///
/// An IPv6 address is left out, with a note in the log, where the host has no IPv6.
pub fn start(
    config: &Config,
    plans: Arc<ArcSwap<Plan>>,
    upstreams: Vec<SocketAddr>,
    draining: &Draining,
    listeners: &Listeners,
) -> Result<Dns, DnsError> {
    let settings = Settings {
        resolvers: Resolvers { servers: upstreams, search: Resolvers::of_system().search },
        timeout: config.dns.timeout,
        ttl: config.dns.ttl,
        mark: config.intercept.mark,
    };
    let mut sockets = Vec::new();
    for address in config.listen.dns.iter().copied() {
        match Sockets::bind(address, listeners) {
            Ok(bound) => sockets.push(bound),
            Err(source) if address.is_ipv6() && has_no_ipv6(&source) => {
                tracing::info!(%address, "no DNS on this address: the host has no IPv6");
            }
            Err(source) => return Err(DnsError { address, source }),
        }
    }
    Ok(serve(sockets, plans, settings, draining))
}

/// What the kernel says to a bind on `::1` where IPv6 is switched off.
fn has_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

impl Dns {
    /// Waits until all sockets are closed, and a moment for answers from other resolvers; draining must have begun.
    pub async fn stop(self) {
        for running in self.running {
            // A panic was counted and logged by the task itself.
            let _ = running.await;
        }
        let all = u32::try_from(MAX_FORWARDS).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(LAST_ANSWERS, self.forwards.acquire_many(all)).await;
    }

    /// Returns where it is served.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// A bound address, UDP and TCP on one port.
#[derive(Debug)]
struct Sockets {
    address: SocketAddr,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both; with port 0 both get the same port, free for either.
    fn bind(wanted: SocketAddr, listeners: &Listeners) -> io::Result<Self> {
        let mut tries = if wanted.port() == 0 { FREE_PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let tcp = listeners.tcp(wanted).map_err(|error| error.source)?;
            let address = tcp.local_addr()?;
            match listeners.udp(address) {
                Ok(udp) => {
                    let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
                    return Ok(Self { address, udp, tcp });
                }
                Err(error) if tries == 0 => return Err(error.source),
                Err(_) => listeners.close_tcp(address),
            }
        }
    }
}

/// A port that is free for TCP may be somebody's for UDP.
const FREE_PORT_TRIES: usize = 16;

fn serve(sockets: Vec<Sockets>, plans: Arc<ArcSwap<Plan>>, settings: Settings, draining: &Draining) -> Dns {
    let desk = Arc::new(Desk {
        plans,
        upstream: Upstream::new(&settings),
        search: settings.resolvers.search,
        ttl: settings.ttl,
        forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    });
    let mut dns = Dns { running: Vec::new(), forwards: desk.forwards.clone(), addresses: Vec::new() };
    for Sockets { address, udp, tcp } in sockets {
        dns.running.push(task::spawn("dns-udp", serve_udp(udp, desk.clone(), draining.clone())));
        dns.running.push(task::spawn("dns-tcp", serve_tcp(tcp, desk.clone(), draining.clone())));
        dns.addresses.push(address);
    }
    dns
}

/// What is needed to answer a question.
struct Desk {
    plans: Arc<ArcSwap<Plan>>,
    upstream: Upstream,
    search: Vec<String>,
    ttl: Duration,
    forwards: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Desk {
    fn decide(&self, question: &[u8], over: Over) -> Verdict {
        let plan = self.plans.load();
        let verdict = answer::decide(question, &plan.names, &self.search, self.ttl, over);
        let counter = match verdict {
            Verdict::Reply(_) => &QUESTIONS.answered,
            Verdict::Forward(_) => &QUESTIONS.forwarded,
            Verdict::Drop => return verdict,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        verdict
    }

    /// Answers what [`Desk::decide`] did not. `permit` is held until then.
    async fn forward(
        &self,
        question: &[u8],
        instead: Option<Vec<u8>>,
        over: Over,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Vec<u8> {
        let failed = || answer::failure(question);
        if permit.is_none() {
            tracing::debug!(limit = MAX_FORWARDS, "too many questions are being forwarded");
            return instead.unwrap_or_else(failed);
        }
        // The mesh's word only counts where the world has none.
        match (self.upstream.ask(question, over, instead.is_some()).await, instead) {
            (Some(reply), Some(instead)) if answer::is_unknown_name(&reply) => instead,
            (Some(reply), _) | (None, Some(reply)) => reply,
            (None, None) => {
                QUESTIONS.failed.fetch_add(1, Ordering::Relaxed);
                failed()
            }
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, desk: Arc<Desk>, mut draining: Draining) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = draining.started() => return,
        };
        // An error here is about an earlier datagram (ICMP), not about the socket.
        let Ok((length, from)) = received else { continue };
        let question = &buffer[..length];
        match desk.decide(question, Over::Udp) {
            Verdict::Drop => {}
            // A full send buffer loses the answer, as the network may: the caller asks again.
            Verdict::Reply(reply) => drop(socket.try_send_to(&reply, from)),
            Verdict::Forward(instead) => {
                let permit = desk.forwards.clone().try_acquire_owned().ok();
                let (socket, desk, question) = (socket.clone(), desk.clone(), question.to_vec());
                task::spawn("dns-forward", async move {
                    let reply = desk.forward(&question, instead, Over::Udp, permit).await;
                    let _ = socket.send_to(&reply, from).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, desk: Arc<Desk>, mut draining: Draining) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.started() => return,
        };
        match accepted {
            // Without a permit the connection is closed: the caller sees it at once.
            Ok((stream, _)) => {
                if let Ok(permit) = desk.connections.clone().try_acquire_owned() {
                    let (desk, draining) = (desk.clone(), draining.clone());
                    task::spawn("dns-connection", async move {
                        let _permit = permit;
                        if let Err(error) = converse(stream, &desk, draining).await {
                            tracing::debug!(%error, "DNS over TCP");
                        }
                    });
                }
            }
            Err(error) => {
                // Out of descriptors: without a pause this loop would spin.
                tracing::debug!(%error, "cannot accept DNS over TCP");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(mut stream: TcpStream, desk: &Desk, mut draining: Draining) -> io::Result<()> {
    loop {
        let question = tokio::select! {
            read = tokio::time::timeout(IDLE, read_message(&mut stream)) => match read {
                Ok(Ok(question)) => question,
                // Idle, or closed by the caller: both are how such connections end.
                Ok(Err(_)) | Err(_) => return Ok(()),
            },
            () = draining.started() => return Ok(()),
        };
        let reply = match desk.decide(&question, Over::Tcp) {
            Verdict::Drop => return Ok(()),
            Verdict::Reply(reply) => reply,
            Verdict::Forward(instead) => {
                let permit = desk.forwards.clone().try_acquire_owned().ok();
                desk.forward(&question, instead, Over::Tcp, permit).await
            }
        };
        tokio::time::timeout(IDLE, write_message(&mut stream, &reply)).await??;
    }
}

/// Reads a message with its length before it (RFC 1035, section 4.2.2).
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// How long answers of other resolvers are awaited at the end: most come in milliseconds.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// Questions being forwarded at a time; each holds a socket and [`MAX_MESSAGE`] bytes for up to the time-out.
const MAX_FORWARDS: usize = 512;
/// TCP connections at a time. Callers use TCP only for long answers.
const MAX_CONNECTIONS: usize = 128;
/// Longest datagram. EDNS callers ask for 1,232 to 4,096 bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// How long a TCP connection may be silent. RFC 7766, section 6.2.3: a few seconds.
const IDLE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
