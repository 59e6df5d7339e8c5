//! Control traffic: calls and long-lived streams to another host's control plane.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mesh_core::identity::Identity;
use quinn::Connection;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::frame::{FrameError, FrameStream, MAX_BULK_FRAME_BYTES, MAX_FRAME_BYTES, Stream};
use super::link::{ConfigKey, DialError, Dialer};
use super::quic::{self, QuicStream};
use super::rest::{Rest, UDP_PATIENCE};
use super::tls::Protocol;
use super::verify::Expect;
use super::{socket, tcp};

/// Which part of the control plane a stream is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Consensus between servers.
    Raft,
    /// Calls of meshctl and of other hosts.
    Api,
    /// The World and its changes, from servers to agents.
    Watch,
    /// Certificates.
    Sign,
}

impl Service {
    /// All, in the order of their bytes.
    pub const ALL: [Self; 4] = [Self::Raft, Self::Api, Self::Watch, Self::Sign];

    /// Returns the first byte of a stream. Never reuse one.
    pub fn byte(self) -> u8 {
        match self {
            Self::Raft => 1,
            Self::Api => 2,
            Self::Watch => 3,
            Self::Sign => 4,
        }
    }

    /// Finds the service of a first byte.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.byte() == byte)
    }

    /// Returns the longest frame of its streams: 256 MiB where a snapshot or a World travels, else 16 MiB.
    pub fn max_frame_bytes(self) -> usize {
        match self {
            Self::Raft | Self::Watch => MAX_BULK_FRAME_BYTES,
            Self::Api | Self::Sign => MAX_FRAME_BYTES,
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// This host has no identity yet, so it cannot call; nothing was sent.
    #[error("this host has no identity yet: it has not joined a mesh")]
    NoIdentity,
    /// The peer could not be reached, or refuses us; nothing was carried out.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The stream failed after the request was sent, at least in part.
    #[error("the link to {address} failed during the call: {source}")]
    Broken {
        /// Whom we called.
        address: SocketAddr,
        /// What failed.
        source: FrameError,
    },
    /// The peer ended the stream without an answer.
    #[error("{address} ended the call without an answer")]
    NoAnswer {
        /// Whom we called.
        address: SocketAddr,
    },
    /// No answer within the caller's limit.
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Whom we called.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
        /// Whether the request may have arrived.
        delivery: Delivery,
    },
    /// The request is longer than a frame of this service may be; nothing was sent.
    #[error("the request is too long: {0}")]
    TooLong(FrameError),
}

/// Whether a request that failed may have been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Surely not: it may be sent again, elsewhere too.
    No,
    /// Perhaps: only what may happen twice may be sent again.
    Maybe,
}

impl CallError {
    /// Tells whether the request may have been carried out.
    pub fn delivery(&self) -> Delivery {
        match self {
            Self::NoIdentity | Self::Dial(_) | Self::TooLong(_) => Delivery::No,
            Self::Broken { .. } | Self::NoAnswer { .. } => Delivery::Maybe,
            Self::TimedOut { delivery, .. } => *delivery,
        }
    }
}

/// Talks to one peer's control plane. Cheap to clone; all clones share connections.
///
/// Calls go over QUIC, each on a stream of its own. Where UDP does not answer within [`UDP_PATIENCE`] but TCP does, they go
/// over pooled TLS connections, and UDP is tried again after `UDP_FIRST_REST`, then ever later, up to `UDP_REST` (see `transport::rest`).
#[derive(Clone, Debug)]
pub struct ControlClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dialer: Dialer,
    address: SocketAddr,
    expect: Expect,
    quic: tokio::sync::Mutex<Quic>,
    pool: Mutex<Vec<Idle>>,
    calls: Semaphore,
}

/// What is known about the way over UDP. The lock is held while dialling, so that many calls make one connection.
#[derive(Debug, Default)]
struct Quic {
    connection: Option<(Connection, Instant)>,
    rest: Rest,
}

/// A TLS connection between two calls.
#[derive(Debug)]
struct Idle {
    service: Service,
    frames: FrameStream,
    made: Instant,
    since: Instant,
}

/// A stream ready for one request.
struct Ready {
    frames: FrameStream,
    /// When a TCP connection was made; `None` for QUIC, whose streams are used once.
    pooled: Option<Instant>,
}

impl ControlClient {
    /// Will call `address` as this host; who answers must meet `expect`. Connects with the first call.
    ///
    /// Connections live on the runtime of the first call.
    pub fn new(dialer: Dialer, address: SocketAddr, expect: Expect) -> Self {
        Self(Arc::new(Inner {
            dialer,
            address,
            expect,
            quic: tokio::sync::Mutex::default(),
            pool: Mutex::default(),
            calls: Semaphore::new(MAX_CALLS),
        }))
    }

    /// Returns whom it calls.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Sends one frame and returns the one frame of the answer, within `limit` for all of it.
    ///
    /// Sent a second time, on a fresh connection, only where the first one surely did not carry the whole request.
    /// Waits while [`MAX_CALLS`] others are under way. Cancel safe for the client: a dropped call gives up its
    /// stream, but the request may have been carried out.
    pub async fn call(&self, service: Service, body: Bytes, limit: Duration) -> Result<Bytes, CallError> {
        check_length(service, &body)?;
        let sent = AtomicBool::new(false);
        if let Ok(result) = timeout(limit, self.exchange(service, body, &sent)).await {
            return result;
        }
        let delivery = if sent.load(Ordering::Relaxed) { Delivery::Maybe } else { Delivery::No };
        Err(CallError::TimedOut { address: self.0.address, limit, delivery })
    }

    /// Opens a stream of its own and sends its first frame.
    ///
    /// Takes at most the time of a handshake on each way. That the peer refuses us may come only with the first
    /// `recv`: see `FrameError::refusal`.
    pub async fn open(&self, service: Service, first: Bytes) -> Result<FrameStream, CallError> {
        check_length(service, &first)?;
        let ready = self.send(service, first).await?;
        Ok(ready.frames)
    }

    async fn exchange(&self, service: Service, body: Bytes, sent: &AtomicBool) -> Result<Bytes, CallError> {
        let _permit = self.0.calls.acquire().await;
        let mut ready = self.send(service, body).await?;
        sent.store(true, Ordering::Relaxed);
        if ready.pooled.is_none() {
            ready.frames.finish().await.map_err(|source| self.broken(source))?;
        }
        let answer = ready.frames.recv().await.map_err(|source| self.broken(source))?;
        let answer = answer.ok_or(CallError::NoAnswer { address: self.0.address })?;
        if let Some(made) = ready.pooled {
            self.give_back(service, ready.frames, made);
        }
        Ok(answer)
    }

    /// Sends a frame on a stream that is fit for it; tries a second stream where the first took less than all of it.
    async fn send(&self, service: Service, body: Bytes) -> Result<Ready, CallError> {
        let mut ready = self.stream(service, Reuse::Allowed).await?;
        if ready.frames.send(body.clone()).await.is_ok() {
            return Ok(ready);
        }
        // A failed send means that the last byte of the frame did not leave, so the peer cannot act on it.
        let mut ready = self.stream(service, Reuse::Forbidden).await?;
        match ready.frames.send(body).await {
            Ok(()) => Ok(ready),
            Err(source) => Err(self.broken(source)),
        }
    }

    async fn stream(&self, service: Service, reuse: Reuse) -> Result<Ready, CallError> {
        let key = self.key()?;
        if let Some(stream) = self.quic_stream(&key).await? {
            return Ok(Ready { frames: framed(stream, service), pooled: None });
        }
        if reuse == Reuse::Allowed
            && let Some(idle) = self.idle(service)
        {
            return Ok(Ready { frames: idle.frames, pooled: Some(idle.made) });
        }
        let result = tcp::dial(&self.0.dialer, self.0.address, None, &key).await;
        self.learn(result.is_ok()).await;
        let (stream, _) = result?;
        limit_silence(stream.get_ref().0);
        Ok(Ready { frames: framed(stream, service), pooled: Some(Instant::now()) })
    }

    /// Opens a stream over QUIC; `None` where UDP does not get through.
    ///
    /// Fails where a peer answered over UDP but is not whom we want: TCP would say the same.
    async fn quic_stream(&self, key: &ConfigKey) -> Result<Option<QuicStream>, CallError> {
        let mut quic = self.0.quic.lock().await;
        if quic.rest.is_on() {
            return Ok(None);
        }
        if let Some((connection, made)) = &quic.connection
            && connection.close_reason().is_none()
            && made.elapsed() < MAX_AGE
        {
            let connection = connection.clone();
            drop(quic);
            if let Ok(stream) = QuicStream::open(&connection).await {
                return Ok(Some(stream));
            }
            quic = self.0.quic.lock().await;
        }
        let gone = quic.connection.take().and_then(|(connection, _)| connection.close_reason());
        if gone.is_some_and(|why| quic::says_goodbye(&why)) {
            quic.rest.left();
        }
        match quic::control_connection(&self.0.dialer, self.0.address, key, UDP_PATIENCE).await {
            Ok(connection) => {
                quic.connection = Some((connection.clone(), Instant::now()));
                *quic = Quic { connection: quic.connection.take(), ..Quic::default() };
                drop(quic);
                Ok(QuicStream::open(&connection).await.ok())
            }
            Err(DialError::Moved { .. }) => {
                quic.rest.moved();
                Ok(None)
            }
            Err(error) if error.is_silence() => {
                quic.rest.silent();
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Remembers that UDP is blocked where TCP gets through; where neither does, the peer is down, and UDP is tried again.
    async fn learn(&self, tcp_works: bool) {
        let rest = self.0.quic.lock().await.rest.learn(tcp_works);
        if let Some(rest) = rest {
            tracing::info!(address = %self.0.address, rest_s = rest.as_secs(), "no answer over UDP: control traffic goes over TCP");
        }
    }

    fn key(&self) -> Result<ConfigKey, CallError> {
        let host = self.0.dialer.credentials().host().ok_or(CallError::NoIdentity)?;
        Ok(ConfigKey {
            protocol: Protocol::Control,
            from: Some(Identity::clone(&host)),
            expect: self.0.expect.clone(),
        })
    }

    /// Takes an idle connection that still seems alive.
    fn idle(&self, service: Service) -> Option<Idle> {
        let mut pool = self.pool();
        pool.retain_mut(|idle| {
            idle.since.elapsed() < MAX_IDLE && idle.made.elapsed() < MAX_AGE && idle.frames.is_idle()
        });
        let last = pool.iter().rposition(|idle| idle.service == service)?;
        Some(pool.swap_remove(last))
    }

    fn give_back(&self, service: Service, frames: FrameStream, made: Instant) {
        let mut pool = self.pool();
        if pool.len() < MAX_POOL {
            pool.push(Idle { service, frames, made, since: Instant::now() });
        }
    }

    fn pool(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refused handshake is no broken call: nothing was carried out.
    fn broken(&self, source: FrameError) -> CallError {
        let address = self.0.address;
        match source.refusal() {
            Some(fault) => DialError::Tls { address, fault }.into(),
            None => CallError::Broken { address, source },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Allowed,
    Forbidden,
}

fn framed(stream: impl Stream + 'static, service: Service) -> FrameStream {
    FrameStream::new(stream, service.max_frame_bytes()).with_preface(service.byte())
}

fn check_length(service: Service, body: &Bytes) -> Result<(), CallError> {
    let (length, limit) = (body.len(), service.max_frame_bytes());
    if length > limit {
        return Err(CallError::TooLong(FrameError::TooLong { length, limit }));
    }
    Ok(())
}

/// A peer that vanished is noticed within [`SILENCE`], whether bytes are on their way or not.
fn limit_silence(stream: &TcpStream) {
    let set = socket::keep_alive(stream, Duration::from_secs(5))
        .and_then(|()| socket::limit_unacknowledged(stream, SILENCE));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set keep-alive on a control connection");
    }
}

/// How many calls one client has under way.
pub const MAX_CALLS: usize = 256;
/// How old a connection may grow, so that both ends prove themselves again. Source: `maxConnectionAge`.
const MAX_AGE: Duration = Duration::from_hours(12);
/// How long a TLS connection waits for its next call.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// How many TLS connections wait for their next call.
const MAX_POOL: usize = 32;
/// How long a peer may leave bytes unacknowledged.
const SILENCE: Duration = Duration::from_secs(12);
