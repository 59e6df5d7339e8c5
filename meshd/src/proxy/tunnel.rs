//! Connections that switch from HTTP to bytes: CONNECT of a caller or another host, WebSocket.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mesh_core::resilience::Failure;
use tokio::sync::oneshot;

use super::body::{Inflow, Outgoing};
use super::exchange::{Exchange, Guards};
use super::interim::Interim;
use super::local_reply::LocalReply;
use super::outbound::{self, Connection, Target};
use super::request::Head;
use super::upstream::{Lease, connect};
use super::wire::{Stream, Wire};
use super::worker::View;
use super::{Declared, tcp};
use crate::task;

/// The bytes behind a request that asks to switch, once it has been answered with yes.
pub(crate) enum OnSwitch {
    /// Those of a connection of HTTP/1.
    Http1(OnUpgrade),
    /// Those of a stream of HTTP/2.
    Http2(oneshot::Receiver<Wire>),
}

/// Travels with a request of HTTP/2 that asks for a tunnel, to be taken off once.
#[derive(Clone)]
pub(crate) struct Promised(Arc<Mutex<Option<oneshot::Receiver<Wire>>>>);

impl Promised {
    pub(crate) fn new() -> (oneshot::Sender<Wire>, Self) {
        let (keep, promised) = oneshot::channel();
        (keep, Self(Arc::new(Mutex::new(Some(promised)))))
    }
}

impl OnSwitch {
    /// Takes it off a request.
    pub(crate) fn of<B>(request: &mut Request<B>) -> Self {
        let promised = request.extensions_mut().remove::<Promised>();
        let taken = promised.and_then(|it| it.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        taken.map_or_else(|| Self::Http1(hyper::upgrade::on(request)), Self::Http2)
    }

    /// Waits for the bytes. Fails where the caller has left before.
    pub(crate) async fn wire(self) -> io::Result<Wire> {
        match self {
            Self::Http1(upgrade) => {
                let upgraded = upgrade.await.map_err(io::Error::other)?;
                Ok(Wire::new(Stream::Tunnel(TokioIo::new(upgraded))))
            }
            Self::Http2(promised) => promised.await.map_err(io::Error::other),
        }
    }
}

/// Lets a caller's CONNECT through, where it came to the proxy port: what follows is served like a connection to
/// that host and port.
///
/// differs: elsewhere Envoy answers 404.
pub(crate) fn connect(
    connection: &Rc<Connection>,
    view: &View,
    uri: &Uri,
    switch: Option<OnSwitch>,
) -> Result<(), Box<LocalReply>> {
    let target = uri.authority().and_then(|authority| Some((authority.host(), authority.port_u16()?)));
    let (Some((host, port)), Some(switch), true) = (target, switch, connection.is_proxy) else {
        return Err(Box::new(LocalReply::forbidden("connect_not_allowed")));
    };
    let host = host.trim_matches(['[', ']']);
    if !outbound::is_reachable(view, connection.caller, host, port) {
        return Err(Box::new(LocalReply::unknown_host()));
    }
    let target = Target::Host { host: host.into(), port };
    let (worker, caller, peer) = (connection.worker.clone(), connection.caller, connection.peer);
    task::spawn_local("tunnel", async move {
        match switch.wire().await {
            Ok(wire) => outbound::carry(worker, caller, peer, target, None, Declared::Auto, wire).await,
            Err(error) => tracing::debug!(%error, "the caller left before its tunnel began"),
        }
    });
    Ok(())
}

/// A request that needs HTTP/1.1 all the way to its application.
pub(crate) struct Tunnelled<'a> {
    pub(crate) head: &'a Head,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Outgoing,
    pub(crate) interim: Option<&'a Interim>,
}

/// Sends a request to an instance on another host over HTTP/1.1 through a tunnel: one for a switch, since HTTP/2 has no
/// `Upgrade`, or one that waits for `100 Continue`. The application sees what the caller sent.
pub(crate) async fn over_hop(
    request: Tunnelled<'_>,
    lease: Lease,
) -> Result<(Response<Inflow>, Lease), Failure> {
    let Tunnelled { head, headers, body, interim } = request;
    let (wire, lease) = tcp::tunnel(lease).await?;
    let begun = http1::handshake::<_, Outgoing>(TokioIo::new(wire)).await;
    let (mut sender, connection) = begun.map_err(|_| Failure::Connect)?;
    task::spawn_local("tunnelled request", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a request through a tunnel ended");
        }
    });
    let mut request = head.tunnelled(headers, body);
    if let Some(interim) = interim {
        interim.listen(&mut request);
    }
    let response = sender.send_request(request).await.map_err(|error| connect::failure_of(&error))?;
    Ok((response.map(Inflow::Http1), lease))
}

/// Joins both ends after a 101. The request ends when the bytes do; no timeout of the route cuts them.
pub(crate) fn join(caller: OnSwitch, upstream: OnUpgrade, under_way: (Exchange, Lease, Guards)) {
    task::spawn_local("upgraded", async move {
        let (mut exchange, _lease, _guards) = under_way;
        exchange.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        let upstream = async move { upstream.await.map_err(io::Error::other) };
        let (mut caller, upstream) = match tokio::try_join!(caller.wire(), upstream) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a switch of protocols came to nothing"),
        };
        let mut upstream = TokioIo::new(upstream);
        if let Ok((_, sent)) = tokio::io::copy_bidirectional(&mut caller, &mut upstream).await {
            exchange.sent_bytes = sent;
        }
    });
}
