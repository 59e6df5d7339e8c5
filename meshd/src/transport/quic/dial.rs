//! Dialling over QUIC: one connection for each (own identity, peer, expectation), made when first needed.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, ConnectError, Connection, ConnectionError, Endpoint, EndpointConfig, ReadError,
    TransportErrorCode, WriteError,
};
use rustls::AlertDescription;
use tokio::time::{Instant, timeout};

use super::header::{self, SERVED};
use super::stream::{QuicStream, WhenDropped};
use super::{KEEP_ALIVE, LEAVING, MOVED, UNKNOWN, close, transport_config};
use crate::transport::hop::HopTarget;
use crate::transport::link::{ConfigKey, DialError, Dialer, HANDSHAKE_LIMIT, TlsFault};
use crate::transport::rest::{Rests, UDP_PATIENCE};
use crate::transport::socket::{SocketOptions, outgoing_udp};
use crate::transport::tcp::{connect_error, server_name};
use crate::transport::tls::Protocol;

/// The connections a dialer has open for hops, and the sockets they go out by.
#[derive(Debug)]
pub(in crate::transport) struct QuicDialer {
    options: SocketOptions,
    v4: OnceLock<Endpoint>,
    v6: OnceLock<Endpoint>,
    hops: Mutex<HashMap<(SocketAddr, ConfigKey), Slot>>,
    /// Where UDP does not get through.
    pub(in crate::transport) rests: Rests,
}

/// The one connection of a pair; the lock is held while it is made, so that it is made once.
type Slot = Arc<tokio::sync::Mutex<Option<Shared>>>;

#[derive(Debug, Clone)]
struct Shared {
    connection: Connection,
    /// One count for the slot, one for each open stream.
    users: Arc<()>,
    last_used: Instant,
}

impl QuicDialer {
    pub(in crate::transport) fn new(options: SocketOptions) -> Self {
        Self {
            options,
            v4: OnceLock::new(),
            v6: OnceLock::new(),
            hops: Mutex::default(),
            rests: Rests::default(),
        }
    }

    fn endpoint(&self, peer: SocketAddr) -> io::Result<Endpoint> {
        let cell = if peer.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Some(endpoint) = cell.get() {
            return Ok(endpoint.clone());
        }
        let socket = outgoing_udp(peer, self.options)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        Ok(cell.get_or_init(|| endpoint).clone())
    }

    /// Closes every connection, so that nobody waits for what is gone.
    pub(in crate::transport) async fn close(&self) {
        for endpoint in [&self.v4, &self.v6].into_iter().filter_map(OnceLock::get) {
            close(endpoint).await;
        }
    }

    /// Returns the slot of a pair, and closes connections that nobody has used for [`UNUSED_LIMIT`].
    fn slot(&self, address: SocketAddr, key: &ConfigKey) -> Slot {
        let mut hops = self.hops.lock().unwrap_or_else(PoisonError::into_inner);
        if hops.len() >= SWEEP_ABOVE {
            hops.retain(|_, slot| is_in_use(slot));
        }
        hops.entry((address, key.clone())).or_default().clone()
    }
}

fn is_in_use(slot: &Slot) -> bool {
    let Ok(shared) = slot.try_lock() else {
        return true;
    };
    shared.as_ref().is_some_and(|shared| {
        Arc::strong_count(&shared.users) > 1 || shared.last_used.elapsed() < UNUSED_LIMIT
    })
}

/// Opens a stream for a hop, on a connection that is there already or on a new one.
pub(in crate::transport) async fn dial_hop(
    dialer: &Dialer,
    target: HopTarget<'_>,
) -> Result<QuicStream, DialError> {
    let address = target.address;
    let both = async {
        let key = ConfigKey {
            protocol: Protocol::Hop,
            from: Some(target.from.clone()),
            expect: target.expect.clone(),
        };
        let header = header::header(target.sni).ok_or_else(|| DialError::BadName(target.sni.to_owned()))?;
        let shared = hop_connection(dialer, &key, target).await?;
        open_hop(&shared, &header, target).await.map_err(|fault| match fault {
            OpenFault::Moved => {
                dialer.quic().rests.moved(address);
                DialError::Moved { address }
            }
            OpenFault::Link(fault) => DialError::Tls { address, fault },
        })
    };
    timeout(HANDSHAKE_LIMIT, both).await.unwrap_or(Err(DialError::TimedOut { address }))
}

async fn hop_connection(
    dialer: &Dialer,
    key: &ConfigKey,
    target: HopTarget<'_>,
) -> Result<Shared, DialError> {
    let slot = dialer.quic().slot(target.address, key);
    let mut slot = slot.lock().await;
    let address = target.address;
    let rests = &dialer.quic().rests;
    if let Some(shared) = slot.as_mut() {
        let Some(why) = shared.connection.close_reason() else {
            shared.last_used = Instant::now();
            return Ok(shared.clone());
        };
        if says_goodbye(&why) {
            rests.left(address);
        }
        *slot = None;
    }
    if rests.is_on(address) {
        // Who had the slot before found UDP silent.
        return Err(DialError::TimedOut { address });
    }
    let connecting = connect(dialer, address, Some(target.sni), key);
    let connected = timeout(UDP_PATIENCE, connecting).await.unwrap_or(Err(DialError::TimedOut { address }));
    match &connected {
        Ok(_) => rests.answered(address),
        Err(DialError::Moved { .. }) => rests.moved(address),
        Err(error) if error.is_silence() => rests.silent(address),
        Err(_) => {}
    }
    let connection = connected?;
    let shared = Shared { connection, users: Arc::new(()), last_used: Instant::now() };
    *slot = Some(shared.clone());
    Ok(shared)
}

/// Asks for the name, and waits for the word that it is served: only then is the caller itself accepted, too.
async fn open_hop(shared: &Shared, header: &[u8], target: HopTarget<'_>) -> Result<QuicStream, OpenFault> {
    let (mut send, mut recv) = shared.connection.open_bi().await.map_err(|error| lost(&error))?;
    // What it is answered tells more than that it was stopped.
    let written = send.write_all(header).await;
    let mut answer = [0; 1];
    match recv.read(&mut answer).await {
        Ok(Some(1)) if answer[0] == SERVED => {}
        Ok(_) => return Err(TlsFault::NoProtocol.into()),
        Err(ReadError::Reset(UNKNOWN)) => return Err(TlsFault::UnknownName(target.sni.to_owned()).into()),
        Err(ReadError::Reset(MOVED)) => return Err(OpenFault::Moved),
        Err(ReadError::ConnectionLost(error)) => return Err(lost(&error)),
        Err(error) => return Err(TlsFault::Io(error.into()).into()),
    }
    written.map_err(write_fault)?;
    Ok(QuicStream::new(send, recv, WhenDropped::Reset, Some(shared.users.clone())))
}

/// Why a stream did not become a hop.
enum OpenFault {
    /// The meshd there takes no more over QUIC: over TCP it does, and then its successor.
    Moved,
    Link(TlsFault),
}

impl From<TlsFault> for OpenFault {
    fn from(fault: TlsFault) -> Self {
        Self::Link(fault)
    }
}

fn lost(error: &ConnectionError) -> OpenFault {
    if says_goodbye(error) { OpenFault::Moved } else { OpenFault::Link(fault_of(error)) }
}

/// Whether the meshd there ended a connection because it leaves, or takes no more of them: it did answer over UDP.
pub(in crate::transport) fn says_goodbye(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ApplicationClosed(close) => close.error_code == LEAVING,
        // During a handshake it has no words of its own (RFC 9000, sections 10.2.3 and 20.1).
        ConnectionError::ConnectionClosed(close) => {
            let code = close.error_code;
            code == TransportErrorCode::CONNECTION_REFUSED || code == TransportErrorCode::APPLICATION_ERROR
        }
        _ => false,
    }
}

/// Connects for control traffic, within `limit`.
pub(in crate::transport) async fn control_connection(
    dialer: &Dialer,
    address: SocketAddr,
    key: &ConfigKey,
    limit: Duration,
) -> Result<Connection, DialError> {
    let connecting = connect(dialer, address, None, key);
    timeout(limit, connecting).await.unwrap_or(Err(DialError::TimedOut { address }))
}

impl QuicStream {
    /// Opens a stream for frames.
    pub(in crate::transport) async fn open(connection: &Connection) -> Result<Self, ConnectionError> {
        let (send, recv) = connection.open_bi().await?;
        Ok(Self::new(send, recv, WhenDropped::Finish, None))
    }
}

async fn connect(
    dialer: &Dialer,
    address: SocketAddr,
    sni: Option<&str>,
    key: &ConfigKey,
) -> Result<Connection, DialError> {
    let name = server_name(address, sni)?;
    let (tls, told) = dialer.single_config(key)?;
    let failed = |fault| DialError::Tls { address, fault };
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| failed(TlsFault::Other(error.to_string())))?;
    let mut transport = transport_config();
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let endpoint = dialer.quic().endpoint(address).map_err(|source| connect_error(address, source))?;
    let connecting = endpoint.connect_with(config, address, &name.to_str()).map_err(|error| match error {
        ConnectError::InvalidServerName(name) => DialError::BadName(name),
        other => DialError::Connect { address, source: io::Error::other(other) },
    })?;
    connecting.await.map_err(|error| match error {
        ConnectionError::TimedOut => DialError::TimedOut { address },
        goodbye if says_goodbye(&goodbye) => DialError::Moved { address },
        other => failed(told.get().cloned().map_or_else(|| fault_of(&other), TlsFault::certificate)),
    })
}

/// Says in the words of TLS why a connection ended.
pub(in crate::transport) fn fault_of(error: &ConnectionError) -> TlsFault {
    match error {
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(AlertDescription::NoApplicationProtocol) => TlsFault::NoProtocol,
            Some(alert) => TlsFault::Alert(alert),
            None => TlsFault::Io(io::Error::other(error.clone())),
        },
        ConnectionError::TransportError(local) => match alert(u64::from(local.code)) {
            Some(AlertDescription::NoApplicationProtocol) => TlsFault::NoProtocol,
            Some(AlertDescription::CertificateRequired) => TlsFault::NoCertificate,
            Some(_) => TlsFault::Other(local.reason.clone()),
            None => TlsFault::Io(io::Error::other(error.clone())),
        },
        ConnectionError::ApplicationClosed(close) if close.error_code == super::REFUSED => {
            TlsFault::Other(format!("the peer refuses this host: {}", String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::TimedOut => TlsFault::TimedOut,
        other => TlsFault::Io(io::Error::other(other.clone())),
    }
}

/// Reads the TLS alert out of a QUIC error code (RFC 9001, section 4.8).
fn alert(code: u64) -> Option<AlertDescription> {
    let byte = code.checked_sub(0x100)?;
    u8::try_from(byte).ok().map(AlertDescription::from)
}

/// Reads from a failed read or write whether the peer refused the handshake.
pub(in crate::transport) fn refusal(error: &(dyn Error + Send + Sync + 'static)) -> Option<TlsFault> {
    let lost = match (error.downcast_ref::<ReadError>(), error.downcast_ref::<WriteError>()) {
        (Some(ReadError::ConnectionLost(lost)), _) | (_, Some(WriteError::ConnectionLost(lost))) => lost,
        _ => error.downcast_ref::<ConnectionError>()?,
    };
    match fault_of(lost) {
        TlsFault::Io(_) | TlsFault::TimedOut => None,
        fault => Some(fault),
    }
}

fn write_fault(error: WriteError) -> TlsFault {
    match error {
        WriteError::ConnectionLost(error) => fault_of(&error),
        other => TlsFault::Io(other.into()),
    }
}

/// How long a connection without streams is kept once there are many.
const UNUSED_LIMIT: Duration = Duration::from_mins(1);
/// How many connections a dialer holds before it closes unused ones.
const SWEEP_ABOVE: usize = 256;
