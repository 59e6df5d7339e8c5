//! The mesh port over QUIC: serving it.
//!
//! One connection for each pair of peers, one bi-directional stream for each hop or call. A hop's stream begins with
//! the name it asks for; it is served only if that name's owner is the identity which the connection showed, so that a
//! shared connection proves no more than one of its own would. Joining is TCP's alone: QUIC cannot choose whether to
//! ask for a certificate once it has seen what the client wants.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use mesh_core::identity::Identity;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Incoming,
    RecvStream, SendStream, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control::Service;
use super::frame::FrameStream;
use super::link::{Accepted, HANDSHAKE_LIMIT, LinkStream, Peer, Refused, TlsFault, Transport};
use super::secret::Secret;
use super::socket;
use super::tls::{Credentials, Protocol, quic_server_config};
use super::verify::{self, Callers, CertificateFault, Told};

mod dial;
mod header;
mod stream;

pub(super) use dial::{QuicDialer, control_connection, dial_hop, fault_of, refusal, says_goodbye};
pub use header::{MAX_HEADER_BYTES, name_length};
pub use stream::QuicStream;
use stream::WhenDropped;

/// Settings of the mesh port over QUIC.
#[derive(Debug, Clone, Default)]
pub struct QuicOptions {
    /// A secret that outlives the process (derived from the host key). With it, peers of a restarted meshd learn at
    /// once that their connection is gone; without it, after [`IDLE_LIMIT`]. Default: none.
    pub reset_secret: Option<Secret>,
}

/// How long a connection may be silent before it counts as dead.
pub const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// How often the side that dialled speaks up on a silent connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The code of a connection that is closed because its meshd hands over, or whoever dialled it ends.
const LEAVING: VarInt = VarInt::from_u32(0);
/// The code of a stream reset because its meshd takes no more of them: over TCP it does, and then its successor.
const MOVED: VarInt = VarInt::from_u32(3);
/// How long closing may take before the socket is let go.
const CLOSES_WITHIN: Duration = Duration::from_millis(100);
/// How many handshakes one listener has under way.
pub const MAX_HANDSHAKES: usize = 256;
/// How many connections one listener holds: far more hosts than a mesh has identities calling one host.
pub const MAX_CONNECTIONS: usize = 16_384;

/// Accepts streams on the mesh port over QUIC.
///
/// Handshakes and the first bytes of streams are awaited beside each other, each within [`HANDSHAKE_LIMIT`]. Dropping
/// it accepts nothing more; streams already handed out live on.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: Endpoint,
    server: Server,
    connections: JoinSet<()>,
    accepted: mpsc::Receiver<Result<Accepted, Refused>>,
}

#[derive(Debug, Clone)]
struct Server {
    credentials: Arc<Credentials>,
    transport: Arc<TransportConfig>,
    handshakes: Arc<Semaphore>,
    accepted: mpsc::Sender<Result<Accepted, Refused>>,
    /// Takes no more connections and streams.
    leaving: Arc<AtomicBool>,
}

impl QuicListener {
    /// Serves a socket made by `socket::bind_udp`. Must be called on the runtime that accepts.
    pub fn new(
        socket: std::net::UdpSocket,
        credentials: &Arc<Credentials>,
        options: &QuicOptions,
    ) -> io::Result<Self> {
        // Each connection gets a configuration of its own; this one only opens the port.
        let (config, _) =
            server_config(credentials, Arc::new(transport_config())).map_err(io::Error::other)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(endpoint_config(options), Some(config), socket, runtime)?;
        let (sender, accepted) = mpsc::channel(QUEUE);
        let server = Server {
            credentials: credentials.clone(),
            transport: Arc::new(transport_config()),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            accepted: sender,
            leaving: Arc::default(),
        };
        Ok(Self { endpoint, server, connections: JoinSet::new(), accepted })
    }

    /// Returns the address it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Returns the next stream, or a peer that was turned away. Never `Accepted::Join`.
    ///
    /// An error concerns that one peer: log it, count it, and call again. Cancel safe.
    pub async fn accept(&mut self) -> Result<Accepted, Refused> {
        loop {
            tokio::select! {
                Some(next) = self.accepted.recv() => return next,
                Some(incoming) = self.endpoint.accept() => self.admit(incoming),
                Some(done) = self.connections.join_next() => {
                    if let Err(error) = done && error.is_panic() {
                        tracing::error!(%error, "the task of a connection failed");
                    }
                }
            }
        }
    }

    /// Takes no new connections and no new hops: whoever asks is told at once, and goes over TCP. What is under way
    /// goes on, and what was nearly open is still handed out.
    pub fn leave(&self) {
        self.server.leaving.store(true, Ordering::Relaxed);
    }

    /// Closes every connection and lets go of the socket, so that another process can read from it.
    pub async fn close(self) {
        close(&self.endpoint).await;
    }

    /// Starts a handshake. Under load a stranger must first show that its address is its own.
    fn admit(&mut self, incoming: Incoming) {
        let free = self.server.handshakes.available_permits();
        if self.server.leaving.load(Ordering::Relaxed)
            || free == 0
            || self.connections.len() >= MAX_CONNECTIONS
        {
            incoming.refuse();
        } else if free < MAX_HANDSHAKES / 2 && incoming.may_retry() && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "cannot ask a client to validate its address");
            }
        } else {
            self.connections.spawn(self.server.clone().serve(incoming));
        }
    }
}

impl Server {
    /// Serves one connection until it ends.
    async fn serve(self, incoming: Incoming) {
        let address = socket::unmapped(incoming.remote_address());
        let handshake = async {
            let _permit = self.handshakes.acquire().await;
            let (config, told) = server_config(&self.credentials, self.transport.clone())
                .map_err(|error| TlsFault::Other(error.to_string()))?;
            let connecting = incoming.accept_with(Arc::new(config)).map_err(|error| fault_of(&error))?;
            let connection = connecting.await.map_err(|error| {
                told.get().cloned().map_or_else(|| fault_of(&error), TlsFault::certificate)
            })?;
            let shown = self.caller(&connection, address);
            if let Err(fault) = &shown {
                connection.close(REFUSED, fault.to_string().as_bytes());
            }
            shown.map(|caller| (connection, caller))
        };
        let fault = match timeout(HANDSHAKE_LIMIT, handshake).await {
            Ok(Ok((connection, caller))) => return self.streams(connection, caller).await,
            Ok(Err(fault)) => fault,
            Err(_) => TlsFault::TimedOut,
        };
        self.hand_over(Err(Refused { address, fault })).await;
    }

    fn caller(&self, connection: &Connection, address: SocketAddr) -> Result<Caller, TlsFault> {
        let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let data = data.ok_or(TlsFault::NoProtocol)?;
        let protocol = data.protocol.as_deref().and_then(Protocol::of).ok_or(TlsFault::NoProtocol)?;
        let chain = connection
            .peer_identity()
            .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or(TlsFault::NoCertificate)?;
        let proven = verify::read(leaf).map_err(TlsFault::certificate)?;
        let callers = match protocol {
            Protocol::Lane | Protocol::Hop => Callers::Hop,
            Protocol::Control | Protocol::Join => Callers::Control,
        };
        if !callers.admit(&proven.identity) {
            return Err(TlsFault::certificate(CertificateFault::WrongKind(proven.identity)));
        }
        let sni = data.server_name.as_deref();
        Ok(Caller {
            protocol,
            shown: sni.and_then(|name| self.credentials.owner(name)),
            peer: Peer::new(address, Transport::Quic, sni).proven(proven),
        })
    }

    /// Accepts the streams of a connection; how many are open at once is bounded by the transport.
    async fn streams(&self, connection: Connection, caller: Caller) {
        let caller = Arc::new(caller);
        let mut openings = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) if self.refuses(&caller) => turn_away(send, recv, MOVED),
                    Ok((send, recv)) => {
                        openings.spawn(self.clone().opening(send, recv, caller.clone()));
                    }
                    Err(error) => {
                        tracing::debug!(address = %caller.peer.address, %error, "a connection ended");
                        break;
                    }
                },
                Some(_) = openings.join_next() => {}
            }
        }
    }

    /// Control traffic goes on, on connections that are open, until they are closed.
    fn refuses(&self, caller: &Caller) -> bool {
        self.leaving.load(Ordering::Relaxed) && caller.protocol == Protocol::Hop
    }

    async fn opening(self, mut send: SendStream, mut recv: RecvStream, caller: Arc<Caller>) {
        let first_bytes = async {
            match caller.protocol {
                // Lanes are not offered over QUIC.
                Protocol::Lane | Protocol::Hop => {
                    self.hop(&mut send, &mut recv, &caller).await.map(Opened::Hop)
                }
                Protocol::Control | Protocol::Join => service(&mut recv).await.map(Opened::Control),
            }
        };
        let opened = timeout(HANDSHAKE_LIMIT, first_bytes).await.unwrap_or(Err(TlsFault::TimedOut));
        let result = match opened {
            Ok(Opened::Hop(sni)) => {
                let peer = Peer { sni: Some(sni), ..caller.peer.clone() };
                let stream = QuicStream::new(send, recv, WhenDropped::Reset, None);
                Ok(Accepted::Hop(peer, LinkStream::Quic(stream)))
            }
            Ok(Opened::Control(service)) => {
                let stream = QuicStream::new(send, recv, WhenDropped::Finish, None);
                let frames = FrameStream::new(stream, service.max_frame_bytes());
                Ok(Accepted::Control(caller.peer.clone(), service, frames))
            }
            Err(_) if self.refuses(&caller) => return turn_away(send, recv, MOVED),
            Err(fault) => {
                turn_away(send, recv, UNKNOWN);
                Err(Refused { address: caller.peer.address, fault })
            }
        };
        self.hand_over(result).await;
    }

    /// Reads which name a hop asks for, checks that the connection proved its owner, and says so.
    async fn hop(
        &self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        caller: &Caller,
    ) -> Result<String, TlsFault> {
        let name = header::receive(recv).await?;
        let owner = self.credentials.owner(&name);
        let is_served = owner.as_ref().is_some_and(|owner| self.credentials.get(owner).is_some());
        if !is_served || owner != caller.shown {
            return Err(TlsFault::UnknownName(name));
        }
        // Who is served once its listener leaves, nobody would wait for. It is turned away, whatever the fault.
        if self.refuses(caller) {
            return Err(TlsFault::NoProtocol);
        }
        send.write_all(&[header::SERVED]).await.map_err(|error| TlsFault::Io(error.into()))?;
        Ok(name.to_ascii_lowercase())
    }

    /// Waits while the owner of the listener is busy; the peer's streams wait with it.
    async fn hand_over(&self, result: Result<Accepted, Refused>) {
        // Fails only when the listener is gone, and then nobody is there to tell.
        let _ = self.accepted.send(result).await;
    }
}

/// Closes every connection of an endpoint. The closing words go out at once; nobody's answer is waited for.
async fn close(endpoint: &Endpoint) {
    endpoint.close(LEAVING, b"this meshd leaves");
    let _ = timeout(CLOSES_WITHIN, endpoint.wait_idle()).await;
}

/// Tells whoever opened a stream why it is not served. Fails only on a stream that is over already.
fn turn_away(mut send: SendStream, mut recv: RecvStream, why: VarInt) {
    let _ = send.reset(why);
    let _ = recv.stop(why);
}

/// Who dialled a connection, and what it was shown.
#[derive(Debug)]
struct Caller {
    protocol: Protocol,
    /// Whose certificate this host showed on a connection for hops.
    shown: Option<Identity>,
    peer: Peer,
}

enum Opened {
    Hop(String),
    Control(Service),
}

async fn service(recv: &mut RecvStream) -> Result<Service, TlsFault> {
    let mut byte = [0; 1];
    recv.read_exact(&mut byte).await.map_err(|error| TlsFault::Io(io::Error::other(error)))?;
    Service::of(byte[0]).ok_or(TlsFault::NoProtocol)
}

/// The transport of both sides; only the dialling side adds keep-alives.
fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_LIMIT).expect("10 s fit the field");
    config
        .max_idle_timeout(Some(idle))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    config
}

/// Makes the configuration of one connection, and where the verdict on its client can be read.
fn server_config(
    credentials: &Arc<Credentials>,
    transport: Arc<TransportConfig>,
) -> Result<(quinn::ServerConfig, Told), quinn::crypto::rustls::NoInitialCipherSuite> {
    let (tls, told) = quic_server_config(credentials);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport);
    Ok((config, told))
}

fn endpoint_config(options: &QuicOptions) -> EndpointConfig {
    let Some(secret) = &options.reset_secret else {
        return EndpointConfig::default();
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.reveal());
    let mut config = EndpointConfig::new(Arc::new(key));
    config.cid_generator(|| Box::new(AnyId));
    config
}

/// Connection ids that a later process takes for possible ones too, so that it answers them with a reset.
///
/// quinn's default ids are bound to the process and would be dropped in silence.
#[derive(Debug)]
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&fastrand::u64(..).to_be_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The code of a connection closed because its peer may not call.
const REFUSED: VarInt = VarInt::from_u32(1);
/// The code of a stream reset because nothing is served under its name or service.
const UNKNOWN: VarInt = VarInt::from_u32(2);
/// How many streams a peer may have open at once on one connection; settled: limits for strangers do not apply.
const MAX_STREAMS: u32 = 4096;
/// How many bytes a connection may have in flight towards us before we read them: 32 MiB.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// How many accepted streams wait for the owner of the listener.
const QUEUE: usize = 256;
