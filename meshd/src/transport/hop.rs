//! Dialling a hop: over QUIC where it is asked for and UDP gets through, else over TCP.

use std::net::SocketAddr;

use mesh_core::identity::Identity;

use super::link::{ConfigKey, DialError, Dialer, LinkStream, Transport};
use super::tls::Protocol;
use super::tls_socket::TlsSocket;
use super::verify::Expect;
use super::{quic, tcp};

/// Where a hop goes, what it asks for there, who must answer, and on whose behalf.
#[derive(Debug, Clone, Copy)]
pub struct HopTarget<'a> {
    /// The mesh port of the peer.
    pub address: SocketAddr,
    /// The service port asked for: see `core::identity::sni`.
    pub sni: &'a str,
    /// Who the peer must prove to be.
    pub expect: &'a Expect,
    /// As whom to call; its certificate must be installed.
    pub from: &'a Identity,
    /// Over TCP, or over QUIC where UDP gets through.
    pub transport: Transport,
}

/// Reaches a service on another host and proves both ends.
///
/// Takes at most `link::HANDSHAKE_LIMIT`; wrap it for a shorter limit. Over TCP the peer's refusal of *our* certificate
/// comes only with the first read (TLS 1.3): [`refusal`](super::refusal) reads it from that error. Over QUIC it comes here.
///
/// Where QUIC is asked for but UDP is silent for `UDP_PATIENCE`, the hop goes over TCP; if that works, later ones do so at
/// once until UDP is tried again (see `transport::rest`). So it does where the peer leaves and says so.
///
/// Cancel safe: a dropped future leaves nothing behind.
pub async fn dial_hop(dialer: &Dialer, target: HopTarget<'_>) -> Result<LinkStream, DialError> {
    if target.transport == Transport::Tcp {
        return dial_hop_over_tcp(dialer, target).await;
    }
    if let Some(dialled) = over_quic(dialer, target).await {
        return dialled;
    }
    let dialled = dial_hop_over_tcp(dialer, target).await;
    let address = target.address;
    if let Some(rest) = dialer.quic().rests.learn(address, dialled.is_ok()) {
        tracing::info!(%address, rest_s = rest.as_secs(), "no answer over UDP: hops go over TCP");
    }
    dialled
}

/// Reaches over QUIC alone what a hop over TCP was dialled to in its place. `None`: UDP is silent there, or rests.
pub async fn dial_hop_over_quic(
    dialer: &Dialer,
    target: HopTarget<'_>,
) -> Result<Option<LinkStream>, DialError> {
    let dialled = over_quic(dialer, target).await;
    if dialled.is_none() {
        // As the hop beside it shows. It is no news.
        dialer.quic().rests.learn(target.address, true);
    }
    dialled.transpose()
}

/// `None`: UDP is silent there, or rests.
async fn over_quic(dialer: &Dialer, target: HopTarget<'_>) -> Option<Result<LinkStream, DialError>> {
    if !dialer.tries_quic(target.address) {
        return None;
    }
    match quic::dial_hop(dialer, target).await {
        Ok(stream) => Some(Ok(LinkStream::Quic(stream))),
        Err(error) if error.is_silence() || matches!(error, DialError::Moved { .. }) => None,
        Err(error) => Some(Err(error)),
    }
}

impl Dialer {
    /// Whether a hop that may go over QUIC would be tried over QUIC now.
    pub fn tries_quic(&self, address: SocketAddr) -> bool {
        !self.quic().rests.is_on(address)
    }
}

async fn dial_hop_over_tcp(dialer: &Dialer, target: HopTarget<'_>) -> Result<LinkStream, DialError> {
    let key =
        ConfigKey { protocol: Protocol::Hop, from: Some(target.from.clone()), expect: target.expect.clone() };
    let (stream, _) = tcp::dial(dialer, target.address, Some(target.sni), &key).await?;
    let (socket, session) = stream.into_inner();
    Ok(LinkStream::Tcp(Box::new(TlsSocket::new(socket, session))))
}
