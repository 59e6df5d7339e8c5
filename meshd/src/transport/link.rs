//! A link to a peer: who is at the other end, and a stream of bytes to it, over TCP or QUIC.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_core::identity::lifetime::Validity;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::control::Service;
use super::frame::{FrameError, FrameStream};
use super::lane::Lane;
use super::quic::{QuicDialer, QuicStream};
use super::socket::SocketOptions;
use super::tls::{Credentials, Protocol, client_config};
use super::tls_socket::TlsSocket;
use super::verify::{CertificateFault, Expect, Proven, Told};
use super::{quic, tcp};

/// How long connecting and shaking hands may take together.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is, read from its verified certificate; `None` only while joining.
    pub identity: Option<Identity>,
    /// Where it is.
    pub address: SocketAddr,
    /// Where it called; `None` over QUIC, whose socket many share.
    pub local: Option<SocketAddr>,
    /// The server name it asked for, in lower case; for a hop over QUIC that of the stream.
    pub sni: Option<String>,
    /// The serial number of its certificate, big-endian; empty only while joining.
    pub serial: Vec<u8>,
    /// From when to when its certificate is valid; `None` only while joining.
    pub validity: Option<Validity>,
    /// What carries the connection.
    pub transport: Transport,
}

impl Peer {
    pub(super) fn new(address: SocketAddr, transport: Transport, sni: Option<&str>) -> Self {
        Self {
            identity: None,
            address,
            local: None,
            sni: sni.map(str::to_ascii_lowercase),
            serial: Vec::new(),
            validity: None,
            transport,
        }
    }

    /// Returns the id of the host at the other end; `None` when it is no host of the mesh.
    pub fn host(&self) -> Option<mesh_proto::command::HostId> {
        match self.identity.as_ref()? {
            Identity::Host { id, .. } => id.parse().ok().map(mesh_proto::command::HostId),
            _ => None,
        }
    }

    pub(super) fn proven(mut self, proven: Proven) -> Self {
        self.identity = Some(proven.identity);
        self.serial = proven.serial;
        self.validity = Some(proven.validity);
        self
    }
}

/// What carries a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Transport {
    /// TLS over TCP. The default: cheaper for bulk.
    #[default]
    Tcp,
    /// QUIC: cheaper for many small exchanges, better on lossy links.
    Quic,
}

/// A stream of bytes to a proven peer. Each direction can be ended alone.
pub enum LinkStream {
    /// TLS over TCP.
    Tcp(Box<TlsSocket>),
    /// One bi-directional stream of a QUIC connection.
    Quic(QuicStream),
}

/// What came in on the mesh port.
#[derive(Debug)]
pub enum Accepted {
    /// A data hop. `Peer::sni` says which service port it asks for.
    Hop(Peer, LinkStream),
    /// A data hop that carries opaque connections, one after another.
    Lane(Peer, Box<Lane>),
    /// A stream of control traffic: answer each frame until the peer ends it.
    Control(Peer, Service, FrameStream),
    /// A host that wants to join: the last field is what both ends derived from this very channel, for the proof.
    Join(Peer, FrameStream, [u8; 32]),
}

/// A connection that was turned away. Concerns that peer only.
#[derive(Debug, thiserror::Error)]
#[error("refused {address}: {fault}")]
pub struct Refused {
    /// Who was turned away.
    pub address: SocketAddr,
    /// Why.
    pub fault: TlsFault,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// We refuse the peer's certificate.
    #[error("{0}")]
    Certificate(Box<CertificateFault>),
    /// The peer showed no certificate where one is demanded.
    #[error("the peer shows no certificate")]
    NoCertificate,
    /// The peer refuses us; the alert says why.
    #[error("the peer refuses this host: {}", alert_text(*.0))]
    Alert(AlertDescription),
    /// The peer does not speak TLS.
    #[error("the peer does not speak TLS: is this the mesh port (15008)?")]
    NotTls,
    /// No common protocol in ALPN.
    #[error("no protocol in common (ALPN): the peer is no meshd of a fitting version")]
    NoProtocol,
    /// The server name of a hop is not one this host serves.
    #[error("no service is served here under the name \"{0}\"")]
    UnknownName(String),
    /// Connection ended or failed meanwhile.
    #[error("{0}")]
    Io(io::Error),
    /// The handshake took longer than [`HANDSHAKE_LIMIT`].
    #[error("the handshake took longer than {} s", HANDSHAKE_LIMIT.as_secs())]
    TimedOut,
    /// Its host has too many handshakes under way.
    #[error("too many handshakes are under way with this host")]
    TooMany,
    /// Anything else, in the words of the TLS or QUIC library.
    #[error("{0}")]
    Other(String),
}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// This host holds no certificate for the identity that calls.
    #[error("this host holds no certificate for {0}")]
    NoCertificate(Identity),
    /// The server name cannot be carried by TLS.
    #[error("\"{0}\" cannot be a server name: over 253 bytes or not made of DNS labels")]
    BadName(String),
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    Refused {
        /// Whom we called.
        address: SocketAddr,
    },
    /// No answer within [`HANDSHAKE_LIMIT`].
    #[error("{address} did not answer within {} s", HANDSHAKE_LIMIT.as_secs())]
    TimedOut {
        /// Whom we called.
        address: SocketAddr,
    },
    /// It takes no more over QUIC, since it leaves or has no room. Over TCP it may, or its successor.
    #[error("{address} takes no more over QUIC: it leaves, or has no room")]
    Moved {
        /// Whom we called.
        address: SocketAddr,
    },
    /// The connection failed before TLS began.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Whom we called.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer answered, but is not whom we want, or does not want us.
    #[error("no secure link to {address}: {fault}")]
    Tls {
        /// Whom we called.
        address: SocketAddr,
        /// What went wrong.
        fault: TlsFault,
    },
}

impl DialError {
    /// Whether nobody answered: where it was tried over UDP, TCP may still get through.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Tls { fault: TlsFault::Io(_) | TlsFault::TimedOut, .. }
                | Self::TimedOut { .. }
                | Self::Connect { .. }
                | Self::Refused { .. }
        )
    }

    /// Returns the fault where the peer is another than expected.
    pub fn wrong_identity(&self) -> Option<&CertificateFault> {
        match self {
            Self::Tls { fault: TlsFault::Certificate(fault), .. } => {
                matches!(**fault, CertificateFault::WrongIdentity { .. }).then_some(&**fault)
            }
            _ => None,
        }
    }
}

/// Dials peers: holds what this host can prove, and the sessions of earlier handshakes.
///
/// Cheap to clone. QUIC connections live on the runtime that first dialled: use one for each runtime.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<DialerInner>);

#[derive(Debug)]
struct DialerInner {
    credentials: Arc<Credentials>,
    options: SocketOptions,
    configs: Mutex<HashMap<ConfigKey, Config>>,
    quic: QuicDialer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ConfigKey {
    pub(super) protocol: Protocol,
    pub(super) from: Option<Identity>,
    pub(super) expect: Expect,
}

#[derive(Debug)]
struct Config {
    /// The key the configuration was made with: another one means a renewal.
    key: Option<Arc<CertifiedKey>>,
    tls: Arc<ClientConfig>,
}

impl Dialer {
    /// Dials with these credentials and socket options.
    pub fn new(credentials: Arc<Credentials>, options: SocketOptions) -> Self {
        Self(Arc::new(DialerInner {
            credentials,
            options,
            configs: Mutex::default(),
            quic: QuicDialer::new(options),
        }))
    }

    /// Returns a dialer of the same credentials and options with connections of its own: for another runtime.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self::new(self.0.credentials.clone(), self.0.options)
    }

    /// Closes its connections over QUIC, whose other ends would wait for `quic::IDLE_LIMIT` otherwise.
    pub async fn close(&self) {
        self.0.quic.close().await;
    }

    /// Returns what this host can prove.
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.0.credentials
    }

    pub(super) fn options(&self) -> SocketOptions {
        self.0.options
    }

    pub(super) fn quic(&self) -> &QuicDialer {
        &self.0.quic
    }

    /// Returns the configuration for dials over TCP, made anew when the caller's certificate was renewed.
    pub(super) fn config(&self, key: &ConfigKey) -> Result<Arc<ClientConfig>, DialError> {
        let certified = self.certified(key)?;
        let mut configs = self.configs();
        if let Some(known) = configs.get(key)
            && same_key(known.key.as_ref(), certified.as_ref())
        {
            return Ok(known.tls.clone());
        }
        let tls = Arc::new(self.make_config(key, certified.clone(), Told::default()));
        if configs.len() >= MAX_CONFIGS {
            configs.clear();
        }
        configs.insert(key.clone(), Config { key: certified, tls: tls.clone() });
        Ok(tls)
    }

    /// Makes a configuration for one dial, and where its verdict on the peer can be read.
    pub(super) fn single_config(&self, key: &ConfigKey) -> Result<(ClientConfig, Told), DialError> {
        let told = Told::default();
        let config = self.make_config(key, self.certified(key)?, told.clone());
        Ok((config, told))
    }

    fn make_config(&self, key: &ConfigKey, certified: Option<Arc<CertifiedKey>>, told: Told) -> ClientConfig {
        let trust = self.0.credentials.trust();
        client_config(trust, certified, &key.expect, key.protocol, told)
    }

    fn certified(&self, key: &ConfigKey) -> Result<Option<Arc<CertifiedKey>>, DialError> {
        let Some(from) = &key.from else {
            return Ok(None);
        };
        match self.0.credentials.get(from) {
            Some(certified) => Ok(Some(certified)),
            None => Err(DialError::NoCertificate(from.clone())),
        }
    }

    /// Forgets a configuration and its sessions.
    pub(super) fn forget(&self, key: &ConfigKey) {
        self.configs().remove(key);
    }

    fn configs(&self) -> std::sync::MutexGuard<'_, HashMap<ConfigKey, Config>> {
        self.0.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel to a host of a mesh that one wants to join.
#[derive(Debug)]
pub struct JoinLink {
    /// The frames.
    pub frames: FrameStream,
    /// The host at the other end, proven under the pinned root.
    pub host: Identity,
    /// What both ends derived from this very channel: goes into the proof.
    pub exporter: [u8; 32],
}

/// Dials a host to join its mesh; it must be proven under a root with this pin.
///
/// Nothing derived from the token's secret has been sent when this fails.
pub async fn dial_join(dialer: &Dialer, address: SocketAddr, pin: [u8; 32]) -> Result<JoinLink, DialError> {
    tcp::dial_join(dialer, address, pin).await
}

/// Reads from a failed read or write whether the peer refused the handshake; `None` for any other failure.
pub fn refusal(error: &io::Error) -> Option<TlsFault> {
    let inner = error.get_ref()?;
    if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
        return Some(TlsFault::of(tls));
    }
    quic::refusal(inner)
}

/// The same for a stream of frames.
impl FrameError {
    /// Reads whether the peer refused the handshake; `None` for any other failure.
    pub fn refusal(&self) -> Option<TlsFault> {
        match self {
            Self::Io(error) => refusal(error),
            _ => None,
        }
    }
}

impl TlsFault {
    /// Returns a short, constant word for metrics and logs.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Certificate(fault) => fault.class(),
            Self::NoCertificate => "no_certificate",
            Self::Alert(_) => "refused_by_peer",
            Self::NotTls => "not_tls",
            Self::NoProtocol => "no_protocol",
            Self::UnknownName(_) => "unknown_name",
            Self::Io(_) => "connection",
            Self::TimedOut => "timed_out",
            Self::TooMany => "too_many",
            Self::Other(_) => "other",
        }
    }

    pub(super) fn certificate(fault: CertificateFault) -> Self {
        Self::Certificate(Box::new(fault))
    }

    pub(super) fn of(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        if let Some(fault) = CertificateFault::of(error) {
            return Self::certificate(fault);
        }
        match error {
            E::NoCertificatesPresented => Self::NoCertificate,
            E::NoApplicationProtocol | E::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Self::NoProtocol
            }
            E::AlertReceived(alert) => Self::Alert(*alert),
            E::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }

    pub(super) fn of_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::of(tls),
            None => Self::Io(error),
        }
    }
}

/// Words for what an alert of the peer means to the operator of this host.
fn alert_text(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::UnknownCA => "our certificate is not from a root it trusts",
        AlertDescription::CertificateExpired => "our certificate is expired or not yet valid by its clock",
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::CertificateRequired => "it demands a certificate",
        AlertDescription::UnsupportedCertificate => "our certificate is not for this use",
        AlertDescription::CertificateUnknown => "our identity is not welcome there",
        AlertDescription::BadCertificate => "our certificate is malformed",
        AlertDescription::AccessDenied | AlertDescription::UnrecognisedName => {
            "it serves nothing under this name, or holds no certificate yet"
        }
        other => return format!("TLS alert {other:?}"),
    };
    text.to_owned()
}

fn same_key(a: Option<&Arc<CertifiedKey>>, b: Option<&Arc<CertifiedKey>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl LinkStream {
    /// Returns the address at this end; `None` over QUIC, whose socket many share.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => super::socket::local_address(stream.socket()),
            Self::Quic(_) => None,
        }
    }

    /// Returns what carries the stream.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Tcp(_) => Transport::Tcp,
            Self::Quic(_) => Transport::Quic,
        }
    }
}

impl std::fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LinkStream({:?})", self.transport())
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Quic(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Quic(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Quic(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Quic(_) => false,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Quic(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Quic(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// How many configurations (identity, expected peer) a dialer keeps; beyond it all are made anew.
const MAX_CONFIGS: usize = 4096;
