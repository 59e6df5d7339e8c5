//! The mesh port over TCP: one listener for hops, control traffic and joins; and dialling it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use super::control::Service;
use super::frame::{FrameStream, MAX_FRAME_BYTES};
use super::join::EXPORTER_LABEL;
use super::lane::Lane;
use super::link::{
    Accepted, ConfigKey, DialError, Dialer, HANDSHAKE_LIMIT, JoinLink, LinkStream, Peer, Refused, TlsFault,
    Transport,
};
use super::socket;
use super::tls::{Credentials, Protocol, ServerConfigs};
use super::tls_socket::TlsSocket;
use super::verify::{self, CertificateFault, Expect, Proven, Side};

/// Accepts on the mesh port over TCP. May be one of several on the same address, one for each worker.
///
/// Handshakes run beside each other, at most [`MAX_HANDSHAKES`], each within [`HANDSHAKE_LIMIT`]; further connections
/// wait in the backlog. Dropping it ends handshakes under way; accepted connections live on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    server: Server,
    handshakes: JoinSet<(IpAddr, Result<Accepted, Refused>)>,
    /// How many of them each host has under way.
    sources: HashMap<IpAddr, usize>,
    most: usize,
}

/// How many handshakes one listener has under way: about 1.5 ms of CPU each.
pub const MAX_HANDSHAKES: usize = 256;

#[derive(Debug, Clone)]
struct Server {
    credentials: Arc<Credentials>,
    configs: ServerConfigs,
}

impl Listener {
    /// Serves a socket made by `socket::listen_tcp`. Must be called on the runtime that accepts.
    pub fn new(socket: std::net::TcpListener, credentials: &Arc<Credentials>) -> std::io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            server: Server { credentials: credentials.clone(), configs: ServerConfigs::new(credentials) },
            handshakes: JoinSet::new(),
            sources: HashMap::new(),
            most: affordable_handshakes(),
        })
    }

    /// Returns the address it listens on.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts no more; who shakes hands already may finish.
    pub fn leave(self) -> UnderWay {
        UnderWay(self.handshakes)
    }

    /// Returns the next connection whose handshake is done, or one that was turned away.
    ///
    /// An error concerns that one peer: log it, count it, and call again. Cancel safe.
    pub async fn accept(&mut self) -> Result<Accepted, Refused> {
        loop {
            let has_room = self.handshakes.len() < self.most;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok((source, result)) => {
                        self.ended(source);
                        return result;
                    }
                    Err(error) => tracing::error!(%error, "a handshake task failed"),
                },
                incoming = self.socket.accept(), if has_room => match incoming {
                    Ok((stream, address)) => {
                        let address = socket::unmapped(address);
                        if !self.begins(address.ip()) {
                            return Err(Refused { address, fault: TlsFault::TooMany });
                        }
                        let shaken = self.server.clone().shake_hands(stream, address);
                        self.handshakes.spawn(async move { (address.ip(), shaken.await) });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: let others close theirs.
                        tracing::warn!(%error, "cannot accept on the mesh port");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

impl Listener {
    /// Counts a handshake with a host, unless it has too many under way: others shall have room for theirs.
    fn begins(&mut self, source: IpAddr) -> bool {
        let most = self.most.div_ceil(SHARE_OF_ONE);
        let count = self.sources.entry(source).or_default();
        let has_room = *count < most;
        *count += usize::from(has_room);
        has_room
    }

    fn ended(&mut self, source: IpAddr) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }
}

/// Handshakes that had begun when their [`Listener`] left.
#[derive(Debug)]
pub struct UnderWay(JoinSet<(IpAddr, Result<Accepted, Refused>)>);

impl UnderWay {
    /// Returns the next that is done; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Accepted, Refused>> {
        loop {
            match self.0.join_next().await? {
                Ok((_, result)) => return Some(result),
                Err(error) => tracing::error!(%error, "a handshake task failed"),
            }
        }
    }
}

/// Handshakes hold descriptors that nobody has asked for yet: a part of those this process may have.
fn affordable_handshakes() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    (limit / DESCRIPTORS_A_HANDSHAKE).clamp(LEAST_HANDSHAKES, MAX_HANDSHAKES)
}

impl Server {
    async fn shake_hands(self, stream: TcpStream, address: SocketAddr) -> Result<Accepted, Refused> {
        let fault = match timeout(HANDSHAKE_LIMIT, self.accepted(stream, address)).await {
            Ok(Ok(accepted)) => return Ok(accepted),
            Ok(Err(fault)) => fault,
            Err(_) => TlsFault::TimedOut,
        };
        Err(Refused { address, fault })
    }

    async fn accepted(&self, stream: TcpStream, address: SocketAddr) -> Result<Accepted, TlsFault> {
        stream.set_nodelay(true).map_err(TlsFault::Io)?;
        socket::keep_alive(&stream, KEEP_ALIVE).map_err(TlsFault::Io)?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(TlsFault::of_io)?;
        let (protocol, config) = self.configs.choose(&hello.client_hello());
        let stream = hello.into_stream(config).await.map_err(TlsFault::of_io)?;
        let protocol = protocol.ok_or(TlsFault::NoProtocol)?;
        let (_, session) = stream.get_ref();
        let peer = Peer::new(address, Transport::Tcp, session.server_name());
        if protocol == Protocol::Join {
            let exporter = export(|out| session.export_keying_material(out, EXPORTER_LABEL, None))?;
            let frames = FrameStream::new(TlsStream::from(stream), MAX_FRAME_BYTES);
            return Ok(Accepted::Join(peer, frames, exporter));
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let proven = self.recheck(chain, session.handshake_kind())?;
        let peer = Peer { local: socket::local_address(stream.get_ref().0), ..peer.proven(proven) };
        if matches!(protocol, Protocol::Lane | Protocol::Hop) {
            let (socket, session) = stream.into_inner();
            let socket = TlsSocket::new(socket, session);
            return Ok(match protocol {
                Protocol::Lane => Accepted::Lane(peer, Box::new(Lane::new(socket))),
                _ => Accepted::Hop(peer, LinkStream::Tcp(Box::new(socket))),
            });
        }
        let mut stream = TlsStream::from(stream);
        let service = stream.read_u8().await.map_err(TlsFault::of_io)?;
        let service = Service::of(service).ok_or(TlsFault::NoProtocol)?;
        let frames = FrameStream::new(stream, service.max_frame_bytes());
        Ok(Accepted::Control(peer, service, frames))
    }

    /// Reads who the client is; on a resumed session everything is verified again, as of now.
    fn recheck(&self, chain: &[CertificateDer<'_>], kind: Option<HandshakeKind>) -> Result<Proven, TlsFault> {
        let proven = if kind == Some(HandshakeKind::Resumed) {
            verify::verify(self.credentials.trust(), chain, Side::Client, UnixTime::now())
        } else {
            let leaf = chain.first().ok_or(TlsFault::NoCertificate)?;
            verify::read(leaf)
        };
        proven.map_err(TlsFault::certificate)
    }
}

/// Connects and shakes hands, within [`HANDSHAKE_LIMIT`].
pub(super) async fn dial(
    dialer: &Dialer,
    address: SocketAddr,
    sni: Option<&str>,
    key: &ConfigKey,
) -> Result<(ClientStream, Proven), DialError> {
    let name = server_name(address, sni)?;
    let both = async {
        let result = attempt(dialer, address, name.clone(), key).await;
        match result {
            // A remembered session that no longer proves what it must: once more, from the start.
            Err(Attempt::StaleSession(_)) => {
                dialer.forget(key);
                attempt(dialer, address, name.clone(), key).await
            }
            other => other,
        }
    };
    match timeout(HANDSHAKE_LIMIT, both).await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(Attempt::Failed(error))) => Err(error),
        Ok(Err(Attempt::StaleSession(fault))) => {
            Err(DialError::Tls { address, fault: TlsFault::certificate(fault) })
        }
        Err(_) => Err(DialError::TimedOut { address }),
    }
}

/// A connection that this host dialled.
pub(super) type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

enum Attempt {
    Failed(DialError),
    StaleSession(CertificateFault),
}

async fn attempt(
    dialer: &Dialer,
    address: SocketAddr,
    name: ServerName<'static>,
    key: &ConfigKey,
) -> Result<(ClientStream, Proven), Attempt> {
    let failed = |fault| Attempt::Failed(DialError::Tls { address, fault });
    let config = dialer.config(key).map_err(Attempt::Failed)?;
    let stream = socket::connect_tcp(address, dialer.options())
        .await
        .map_err(|source| Attempt::Failed(connect_error(address, source)))?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| failed(TlsFault::of_io(error)))?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(key.protocol.alpn()) {
        return Err(failed(TlsFault::NoProtocol));
    }
    let chain = session.peer_certificates().unwrap_or_default();
    let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    let proven = if is_resumed {
        let trust = dialer.credentials().trust();
        verify::verify_expected(trust, &key.expect, chain, UnixTime::now()).map_err(Attempt::StaleSession)?
    } else {
        let leaf = chain.first().ok_or(TlsFault::NoCertificate).map_err(failed)?;
        verify::read(leaf).map_err(|fault| failed(TlsFault::certificate(fault)))?
    };
    Ok((stream, proven))
}

pub(super) async fn dial_join(
    dialer: &Dialer,
    address: SocketAddr,
    pin: [u8; 32],
) -> Result<JoinLink, DialError> {
    let key = ConfigKey { protocol: Protocol::Join, from: None, expect: Expect::RootPin(pin) };
    let (stream, proven) = dial(dialer, address, None, &key).await?;
    let (_, session) = stream.get_ref();
    let exporter = export(|out| session.export_keying_material(out, EXPORTER_LABEL, None))
        .map_err(|fault| DialError::Tls { address, fault })?;
    Ok(JoinLink { frames: FrameStream::new(stream, MAX_FRAME_BYTES), host: proven.identity, exporter })
}

/// Returns the name to put into the handshake: the hop's, or the bare address.
pub(super) fn server_name(address: SocketAddr, sni: Option<&str>) -> Result<ServerName<'static>, DialError> {
    let Some(sni) = sni else {
        return Ok(ServerName::IpAddress(address.ip().into()));
    };
    ServerName::try_from(sni.to_owned()).map_err(|_| DialError::BadName(sni.to_owned()))
}

pub(super) fn connect_error(address: SocketAddr, source: std::io::Error) -> DialError {
    match source.kind() {
        std::io::ErrorKind::ConnectionRefused => DialError::Refused { address },
        std::io::ErrorKind::TimedOut => DialError::TimedOut { address },
        _ => DialError::Connect { address, source },
    }
}

fn export(derive: impl FnOnce([u8; 32]) -> Result<[u8; 32], rustls::Error>) -> Result<[u8; 32], TlsFault> {
    derive([0; 32]).map_err(|error| TlsFault::of(&error))
}

/// One host may have half of a listener's handshakes under way.
const SHARE_OF_ONE: usize = 2;
/// One handshake for so many descriptors.
const DESCRIPTORS_A_HANDSHAKE: usize = 32;
const LEAST_HANDSHAKES: usize = 8;
/// How long a connection may be idle before the kernel asks whether the peer still lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long accepting rests after the kernel refused.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
