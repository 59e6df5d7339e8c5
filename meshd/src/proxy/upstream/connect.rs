//! Opening connections: a socket, a hop with mutual TLS, or a name first; then HTTP on top.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_core::identity::Identity;
use mesh_core::plan::{Cluster, Via};
use mesh_core::resilience::Failure;
use tokio::net::{TcpStream, UnixStream};

use super::{Lease, Link, Pool, Slot, http2};
use crate::proxy::budget::Descriptor;
use crate::proxy::tcp;
use crate::proxy::wire::{Stream, Wire};
use crate::proxy::worker::Worker;
use crate::task;
use crate::telemetry::Counters;
use crate::transport::{DialError, Expect, HopTarget, LinkStream, OriginateError, dial_hop, socket};

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A hop failed.
    #[error("{0}")]
    Hop(#[from] DialError),
    /// A socket failed.
    #[error("cannot connect to {address}: {source}")]
    Socket {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A unix socket failed.
    #[error("cannot connect to the socket {0}: {1}")]
    UnixSocket(Arc<str>, io::Error),
    /// A name has no address.
    #[error("cannot resolve {0}: {1}")]
    Name(Arc<str>, io::Error),
    /// The caller has no identity in the mesh.
    #[error("the caller has no mesh identity")]
    NoIdentity,
    /// It would be a circle.
    #[error("{0} is a listener of meshd itself")]
    Loop(SocketAddr),
    /// TLS could not begin.
    #[error(transparent)]
    Tls(#[from] OriginateError),
    /// The connection broke before the application's protocol began.
    #[error("the connection broke at its beginning: {0}")]
    Opening(io::Error),
    /// The hop that should carry it failed.
    #[error("no tunnel to the instance: {0:?}")]
    Under(Failure),
    /// The rest of the descriptors is held back.
    #[error("no descriptor is left for a connection: the limit of open files is too low for what is carried")]
    NoDescriptor,
    /// It took longer than `connectTimeout`.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// HTTP could not begin.
    #[error("the endpoint does not speak HTTP: {0}")]
    Http(String),
}

/// Opens a connection for a pool and hands it to those who wait, or tells them that it failed.
pub(super) async fn open(mut slot: Slot, cluster: Arc<Cluster>) {
    let pool = slot.pool.clone();
    let Some(worker) = pool.worker.upgrade() else { return };
    let limit = cluster.limits.connect_timeout;
    let opened = async {
        let mut stream = match &pool.under {
            None => connect(&worker, &pool.via, pool.from.as_deref(), &cluster, Avoid::Listeners).await?,
            Some(under) => {
                let lease = under.checkout_under(&cluster).await.map_err(ConnectError::Under)?;
                let (stream, lease) = tcp::tunnel(lease).await.map_err(ConnectError::Under)?;
                slot.under = Some(lease);
                stream
            }
        };
        if let Some(opening) = &pool.begins {
            let protocol = if pool.http2 { HTTP2 } else { HTTP1 };
            stream = opening.say(&worker, pool.from.as_deref(), Some(protocol), stream).await?;
        }
        if pool.http2 { http2::begin(slot, stream).await } else { begin_http1(slot, stream).await }
    };
    let result = tokio::time::timeout(limit, opened).await.unwrap_or(Err(ConnectError::TimedOut(limit)));
    pool.opening.set(pool.opening.get() - 1);
    match result {
        Ok(()) => {
            Counters::add(&worker.shard.counters.upstream_connections_total);
            pool.grow();
        }
        Err(error) => {
            Counters::add(&worker.shard.counters.upstream_connect_failures_total);
            tell(&cluster, &pool.via, &error);
            *pool.failed.borrow_mut() = error.reason().map(Into::into);
            let timed_out = matches!(
                error,
                ConnectError::TimedOut(_)
                    | ConnectError::Hop(DialError::TimedOut { .. })
                    | ConnectError::Under(Failure::ConnectTimeout)
            );
            pool.fail_all(match error {
                _ if timed_out => Failure::ConnectTimeout,
                ConnectError::NoDescriptor => Failure::Overflow,
                _ => Failure::Connect,
            });
        }
    }
}

/// Logs why an endpoint is not reached: aloud where a person must do something on this host.
pub(crate) fn tell(cluster: &Cluster, via: &Via, error: &ConnectError) {
    if matches!(error, ConnectError::Tls(OriginateError::Handshake(_)))
        || !matches!(error, ConnectError::Tls(_))
    {
        tracing::debug!(cluster = %cluster.name, ?via, %error, "cannot reach an endpoint");
    } else {
        tracing::warn!(cluster = %cluster.name, %error, "cannot begin TLS as the DestinationRule says");
    }
}

async fn begin_http1(slot: Slot, stream: Wire) -> Result<(), ConnectError> {
    let pool = slot.pool.clone();
    let local = slot.local_address(&stream);
    // Answers have at most the 100 fields that hyper takes if not told otherwise.
    let mut builder = http1::Builder::new();
    // Old applications fold long fields; they are passed on in one line, as under Envoy.
    builder.allow_obsolete_multiline_headers_in_responses(true);
    let begun = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = begun.map_err(|error| ConnectError::Http(error.to_string()))?;
    task::spawn_local("upstream connection", async move {
        let _slot = slot;
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    let link = Link::Http1 { sender, local, served: 0, opened: Instant::now() };
    pool.offer(Lease { pool: pool.clone(), link, reused: false });
    Ok(())
}

/// What of this host's own a connection must not lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Avoid {
    /// The listeners of `meshd.toml`. Doors may be meant: a gateway is called like any service, and requests count how
    /// many gateways they pass.
    Listeners,
    /// And the door of this port, which it came in by: bytes of a gateway's visitor cannot count. Another door may stand
    /// behind the first.
    Door(u16),
}

impl Avoid {
    fn forbids(self, worker: &Worker, address: SocketAddr) -> bool {
        matches!(self, Self::Door(port) if port == address.port() && worker.is_door(address))
    }
}

/// Reaches an endpoint: a stream of bytes, nothing said on it yet.
pub(crate) async fn connect(
    worker: &Worker,
    via: &Via,
    from: Option<&Identity>,
    cluster: &Cluster,
    avoid: Avoid,
) -> Result<Wire, ConnectError> {
    let descriptor = descriptor(worker).await?;
    let stream = match via {
        Via::Local(address) | Via::Plain(address) => {
            Stream::Tcp(connect_socket(worker, *address, cluster, avoid).await?)
        }
        Via::Socket(path) => {
            let failed = |source| ConnectError::UnixSocket(path.clone(), source);
            // A leading zero byte is the abstract namespace: unix(7).
            let name = path.strip_prefix('@').map_or_else(|| path.to_string(), |name| format!("\0{name}"));
            Stream::Unix(UnixStream::connect(name).await.map_err(failed)?)
        }
        Via::Name { host, port, spread } => {
            Stream::Tcp(connect_name(worker, (host, *port), *spread, cluster, avoid).await?)
        }
        Via::Mesh { to, sni, .. } => {
            let target = HopTarget {
                address: to.hop,
                sni,
                expect: &Expect::Identity(to.identity.as_ref().clone()),
                from: from.ok_or(ConnectError::NoIdentity)?,
                transport: worker.settings.transport,
            };
            let hop = dial_hop(&worker.dialer, target).await?;
            if let (LinkStream::Tcp(stream), Some(wanted)) = (&hop, cluster.limits.tcp_keepalive) {
                let failed = |source| ConnectError::Socket { address: target.address, source };
                keep_alive(stream.socket(), wanted).map_err(failed)?;
            }
            Stream::Hop(hop)
        }
    };
    Ok(Wire::new(stream).holding(descriptor))
}

/// Takes a descriptor; where none is left, those of connections that nobody uses are given up first.
pub(crate) async fn descriptor(worker: &Worker) -> Result<Descriptor, ConnectError> {
    if let Some(descriptor) = worker.descriptors.connect() {
        return Ok(descriptor);
    }
    worker.pools.close_idle();
    // What was closed is gone once its task has run.
    for _ in 0..GIVEN_UP_AFTER {
        tokio::task::yield_now().await;
        if let Some(descriptor) = worker.descriptors.connect() {
            return Ok(descriptor);
        }
    }
    Err(ConnectError::NoDescriptor)
}

async fn connect_socket(
    worker: &Worker,
    address: SocketAddr,
    cluster: &Cluster,
    avoid: Avoid,
) -> Result<TcpStream, ConnectError> {
    if worker.is_own(address) || avoid.forbids(worker, address) {
        Counters::add(&worker.shard.counters.refused_loops_total);
        return Err(ConnectError::Loop(address));
    }
    let failed = |source| ConnectError::Socket { address, source };
    let stream = socket::connect_tcp(address, worker.settings.socket).await.map_err(failed)?;
    if matches!(avoid, Avoid::Door(_))
        && let (Ok(own), Ok(other)) = (stream.local_addr(), stream.peer_addr())
        && own.ip() == other.ip()
    {
        worker.learn(own.ip());
    }
    if let Some(wanted) = cluster.limits.tcp_keepalive {
        keep_alive(&stream, wanted).map_err(failed)?;
    }
    Ok(stream)
}

/// Tries every address of a name, in the order in which the resolver gave them; where each is to be an endpoint and
/// the first answer is still under way, beginning with any.
async fn connect_name(
    worker: &Worker,
    (host, port): (&Arc<str>, u16),
    spread: bool,
    cluster: &Cluster,
    avoid: Avoid,
) -> Result<TcpStream, ConnectError> {
    let resolved = (worker.settings.resolve)(host.to_string(), port).await;
    let mut addresses = resolved.map_err(|error| ConnectError::Name(host.clone(), error))?;
    if spread && !addresses.is_empty() {
        let begin = fastrand::usize(..addresses.len());
        addresses.rotate_left(begin);
    }
    let mut last = ConnectError::Name(host.clone(), io::ErrorKind::NotFound.into());
    for address in addresses {
        match connect_socket(worker, address, cluster, avoid).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) fn keep_alive(
    stream: &TcpStream,
    (probes, idle, interval): (Option<u32>, Option<Duration>, Option<Duration>),
) -> io::Result<()> {
    // What Linux takes: 1 to 32,767 s, at most 127 probes. With anything else no connection could be opened.
    let seconds = |time: Duration| Duration::from_secs(time.as_secs().clamp(1, 32_767));
    let mut wanted = socket2::TcpKeepalive::new();
    if let Some(idle) = idle {
        wanted = wanted.with_time(seconds(idle));
    }
    if let Some(interval) = interval {
        wanted = wanted.with_interval(seconds(interval));
    }
    if let Some(probes) = probes {
        wanted = wanted.with_retries(probes.clamp(1, 127));
    }
    socket2::SockRef::from(stream).set_tcp_keepalive(&wanted)
}

/// Tells what hyper's error means for a request of which a part may have been sent.
pub(crate) fn failure_of(error: &hyper::Error) -> Failure {
    use std::error::Error;
    if error.is_parse() {
        return Failure::Protocol;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return http2::failure_of(h2);
        }
        cause = inner.source();
    }
    Failure::ConnectionLost
}

impl ConnectError {
    /// Returns why it came to nothing, as Envoy's logs name it; `None`: Envoy has no words for it either.
    ///
    /// Source: Envoy 1.40, `UPSTREAM_TRANSPORT_FAILURE_REASON`. differs: of TLS in the words of our library.
    pub(crate) fn reason(&self) -> Option<String> {
        let socket = |source: &io::Error| {
            let text = source.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            Some(one_word(&format!("delayed connect error: {text}")))
        };
        match self {
            Self::Socket { source, .. } | Self::UnixSocket(_, source) | Self::Opening(source) => {
                socket(source)
            }
            Self::Hop(DialError::Connect { source, .. }) => socket(source),
            Self::Hop(DialError::Refused { .. }) => {
                Some("delayed_connect_error:_Connection_refused".to_owned())
            }
            Self::Hop(DialError::Tls { fault, .. }) => Some(one_word(&format!("TLS_error: {fault}"))),
            Self::Tls(error) => Some(one_word(&format!("TLS_error: {error}"))),
            Self::TimedOut(_) | Self::Under(_) | Self::Hop(DialError::TimedOut { .. }) => None,
            Self::Hop(error) => Some(one_word(&error.to_string())),
            Self::Name(..) | Self::NoIdentity | Self::Loop(_) | Self::NoDescriptor | Self::Http(_) => {
                Some(one_word(&self.to_string()))
            }
        }
    }
}

/// As one word of a log's line.
fn one_word(text: &str) -> String {
    text.chars().take(LONGEST_REASON).map(|c| if c.is_whitespace() { '_' } else { c }).collect()
}

impl Slot {
    /// Returns the address at this end of a new connection: of the hop that carries it, where one does.
    pub(super) fn local_address(&self, stream: &Wire) -> Option<SocketAddr> {
        stream.local_address().or_else(|| self.under.as_ref()?.local_address())
    }
}

impl Pool {
    /// Whether requests go to the meshd of another host, not to the application itself.
    pub(crate) fn is_hop(&self) -> bool {
        matches!(self.via, Via::Mesh { .. }) && self.begins.is_none()
    }
}

/// What is spoken after a TLS handshake, as ALPN names it. Source: Envoy's connection pools.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
/// Characters of a reason that logs keep.
const LONGEST_REASON: usize = 256;
/// Turns of the runtime that closing connections may take.
const GIVEN_UP_AFTER: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keep_alive_is_what_the_rule_says_as_far_as_the_kernel_takes_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (second, day) = (Duration::from_secs(1), Duration::from_hours(24));
        let cases = [
            ((3, Duration::from_secs(9), Duration::from_secs(4)), (3, 9, 4)),
            ((1, Duration::from_millis(1), second), (1, 1, 1)),
            ((1_000, day, day), (127, 32_767, 32_767)),
        ];
        for ((probes, idle, interval), expected) in cases {
            let stream = TcpStream::connect(address).await.expect("open");
            keep_alive(&stream, (Some(probes), Some(idle), Some(interval))).expect("taken");
            let socket = socket2::SockRef::from(&stream);
            let seconds = |time: io::Result<Duration>| time.expect("an option").as_secs();
            let is = (
                socket.tcp_keepalive_retries().expect("an option"),
                seconds(socket.tcp_keepalive_time()),
                seconds(socket.tcp_keepalive_interval()),
            );
            assert_eq!(is, expected);
            assert!(socket.keepalive().expect("an option"));
        }
    }
}
