//! Sockets as meshd wants them: marked, without delay, shared between workers, with errors one can act on.
//!
//! Every outgoing socket of meshd carries the mark, so that the interception ruleset lets it pass. Everything here is
//! safe code over `socket2`.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// The mark of meshd's own sockets: "me" in ASCII. Default of the key `mark`.
pub const DEFAULT_MARK: u32 = 0x6d65;

/// What every outgoing socket is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_MARK`; `None` leaves sockets unmarked. Ignored (with one debug line) without `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { mark: Some(DEFAULT_MARK) }
    }
}

/// Which kind of socket a [`BindError`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP listener.
    Tcp,
    /// A UDP socket.
    Udp,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Why meshd cannot listen on an address: says where, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {kind} {address}: {}", advice(*.kind, *.address, .source))]
pub struct BindError {
    /// TCP or UDP.
    pub kind: Kind,
    /// The address asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// Whether other sockets may listen on the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// This socket alone: an address in use is an error.
    Alone,
    /// One of a group (`SO_REUSEPORT`): the kernel spreads connections over them.
    Group,
}

/// Listens for TCP: non-blocking, `SO_REUSEADDR`, a backlog of [`BACKLOG`].
///
/// Returns a standard listener, so that each worker can register it with its own runtime
/// (`tokio::net::TcpListener::from_std`). An IPv6 wildcard does not take IPv4 along.
pub fn listen_tcp(address: SocketAddr, share: Share) -> Result<std::net::TcpListener, BindError> {
    let listen = || {
        let socket = bound(Type::STREAM, Protocol::TCP, address, share)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|source| BindError { kind: Kind::Tcp, address, source })
}

/// Listens for TCP with `count` sockets on one address, one for each worker.
///
/// First makes sure that no other process listens there: with `SO_REUSEPORT` alone a second meshd of the same user
/// would silently take half of the connections. With port 0 all share the port that the first one was given.
pub fn listen_tcp_group(address: SocketAddr, count: usize) -> Result<Vec<std::net::TcpListener>, BindError> {
    if address.port() != 0 {
        drop(listen_tcp(address, Share::Alone)?);
    }
    let mut group = Vec::with_capacity(count);
    let mut address = address;
    for _ in 0..count {
        let listener = listen_tcp(address, Share::Group)?;
        address = listener.local_addr().unwrap_or(address);
        group.push(listener);
    }
    Ok(group)
}

/// Takes the descriptors 3 to 2 + `count` that whoever started this process left open for it. Call it once, before
/// anything else opens one. Source: sd_listen_fds(3).
#[expect(unsafe_code, reason = "a number becomes an owned descriptor only this way")]
pub fn adopt(count: usize) -> Vec<OwnedFd> {
    let last = i32::try_from(count).unwrap_or_default().saturating_add(FIRST_PASSED);
    (FIRST_PASSED..last)
        // SAFETY: systemd says (LISTEN_PID, LISTEN_FDS) that these are open and this process's own; nothing else here
        // knows their numbers, and this is called once.
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect()
}

/// Binds a UDP socket: non-blocking.
pub fn bind_udp(address: SocketAddr, share: Share) -> Result<std::net::UdpSocket, BindError> {
    bound(Type::DGRAM, Protocol::UDP, address, share).map(Into::into).map_err(|source| BindError {
        kind: Kind::Udp,
        address,
        source,
    })
}

/// Makes a UDP socket for outgoing datagrams of the family of `peer`, on a port of the kernel's choice.
pub fn outgoing_udp(peer: SocketAddr, options: SocketOptions) -> io::Result<std::net::UdpSocket> {
    let any: SocketAddr = if peer.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = bound(Type::DGRAM, Protocol::UDP, any, Share::Alone)?;
    mark(&SockRef::from(&socket), options)?;
    Ok(socket.into())
}

/// Connects over TCP: marked, `TCP_NODELAY`. Sets no time limit of its own.
///
/// Cancel safe: a dropped future closes the socket.
pub async fn connect_tcp(address: SocketAddr, options: SocketOptions) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark(&SockRef::from(&socket), options)?;
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

/// Returns where an intercepted connection was going before the kernel redirected it.
///
/// IPv4-mapped addresses come back as IPv4. Fails with `NotFound` where the kernel redirected nothing.
/// Source: `SO_ORIGINAL_DST` of ip(7), `IP6T_SO_ORIGINAL_DST`.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let is_plain_v6 =
        matches!(stream.local_addr()?, SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none());
    let found = if is_plain_v6 { socket.original_dst_v6()? } else { socket.original_dst_v4()? };
    let no_address = || io::Error::new(io::ErrorKind::InvalidData, "not an internet address");
    found.as_socket().map(unmapped).ok_or_else(no_address)
}

/// Writes an IPv4-mapped IPv6 address as IPv4.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => {
            v6.ip().to_ipv4_mapped().map_or(address, |v4| SocketAddrV4::new(v4, v6.port()).into())
        }
        SocketAddr::V4(_) => address,
    }
}

/// Returns the address at this end.
pub fn local_address(stream: &TcpStream) -> Option<SocketAddr> {
    stream.local_addr().ok().map(unmapped)
}

/// Notices a dead peer on an idle connection: first probe after `idle`, then two more, 3 s apart.
pub fn keep_alive(stream: &TcpStream, idle: Duration) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(idle).with_interval(Duration::from_secs(3)).with_retries(3);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Notices a dead peer on a busy connection: ends it when sent bytes stay unacknowledged for `limit`.
///
/// Source: `TCP_USER_TIMEOUT` of tcp(7).
pub fn limit_unacknowledged(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(limit))
}

/// Sets the mark where the process may; a process that may not is told once, at debug.
pub fn mark(socket: &SockRef<'_>, options: SocketOptions) -> io::Result<()> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let Some(mark) = options.mark else {
        return Ok(());
    };
    match socket.set_mark(mark) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::debug!(mark, "own sockets are not marked: no CAP_NET_ADMIN");
            }
            Ok(())
        }
        other => other,
    }
}

fn bound(kind: Type, protocol: Protocol, address: SocketAddr, share: Share) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // A restarted meshd must not wait for connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    if share == Share::Group {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn advice(kind: Kind, address: SocketAddr, source: &io::Error) -> String {
    let port = address.port();
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            let list = if kind == Kind::Tcp { "-ltnp" } else { "-lunp" };
            format!(
                "address already in use: another process holds {address}; \
                 find it with \"ss {list} 'sport = :{port}'\", then stop it or choose another address"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission denied: ports below 1024 need CAP_NET_BIND_SERVICE; \
             grant it or choose another port than {port}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("this host has no address {}; see \"ip address\", or choose one it has", address.ip())
        }
        _ => source.to_string(),
    }
}

/// The first descriptor that systemd passes. Source: `SD_LISTEN_FDS_START`.
const FIRST_PASSED: i32 = 3;
/// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests;
