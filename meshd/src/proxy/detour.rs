//! TCP through an HTTP proxy on the way: `CONNECT`, or a `POST` whose body and answer are the two directions.
//!
//! Source: Istio `tunnel` of a `DestinationRule`; Envoy's `tunneling_config`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::plan::Detour;
use tokio::io::{AsyncRead, AsyncWriteExt as _, DuplexStream, ReadBuf, ReadHalf, WriteHalf};

use super::server::LocalExecutor;
use super::wire::{Stream, Wire};
use crate::task;

/// Asks the proxy at the other end of `wire` for a way to the target.
///
/// Fails with the status where the proxy says no. Sets no time limit of its own.
pub(crate) async fn take(detour: &Detour, wire: Wire) -> io::Result<Wire> {
    let (near, far) = tokio::io::duplex(BUFFER);
    let (from_caller, to_caller) = tokio::io::split(far);
    let body = Sent { from: detour.post.then_some(from_caller), buffer: BytesMut::new() };
    let mut response = send(detour, wire, body).await?;
    if !response.status().is_success() {
        return Err(io::Error::other(format!("the proxy on the way answers {}", response.status())));
    }
    if detour.post {
        task::spawn_local("detour", receive(response.into_body(), to_caller));
        return Ok(Wire::new(Stream::Pipe(near)));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(io::Error::other)?;
    Ok(Wire::new(Stream::Tunnel(TokioIo::new(upgraded))))
}

async fn send(detour: &Detour, wire: Wire, body: Sent) -> io::Result<Response<Incoming>> {
    let request = request(detour, body)?;
    let answered = if detour.http2 {
        let mut builder = http2::Builder::new(LocalExecutor);
        let begun = builder.timer(TokioTimer::new()).handshake(TokioIo::new(wire)).await;
        let (mut sender, connection) = begun.map_err(io::Error::other)?;
        task::spawn_local("detour connection", async move { ended(connection.await) });
        sender.send_request(request).await
    } else {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(wire)).await.map_err(io::Error::other)?;
        task::spawn_local("detour connection", async move { ended(connection.with_upgrades().await) });
        sender.send_request(request).await
    };
    answered.map_err(io::Error::other)
}

fn request(detour: &Detour, body: Sent) -> io::Result<Request<Sent>> {
    let mut request = Request::new(body);
    let authority = detour.authority.as_str();
    let uri = match (detour.post, detour.http2) {
        (false, _) => authority.to_owned(),
        (true, true) => format!("http://{authority}/"),
        (true, false) => "/".to_owned(),
    };
    *request.uri_mut() = Uri::try_from(uri).map_err(io::Error::other)?;
    *request.method_mut() = if detour.post { Method::POST } else { Method::CONNECT };
    if detour.http2 {
        *request.version_mut() = Version::HTTP_2;
    } else {
        let host = HeaderValue::from_str(authority).map_err(io::Error::other)?;
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(request)
}

fn ended(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection to a proxy on the way ended");
    }
}

/// Passes the body of the answer on to the caller.
async fn receive(mut body: Incoming, mut to: WriteHalf<DuplexStream>) {
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data()
            && to.write_all(&data).await.is_err()
        {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// What the caller sends, as a body; none for `CONNECT`.
struct Sent {
    from: Option<ReadHalf<DuplexStream>>,
    buffer: BytesMut,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let Some(from) = &mut this.from else { return Poll::Ready(None) };
        this.buffer.resize(BUFFER, 0);
        let mut read = ReadBuf::new(&mut this.buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let length = read.filled().len();
        if length == 0 {
            this.from = None;
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(this.buffer.split_to(length).freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.from.is_none()
    }
}

/// What one direction may have under way.
const BUFFER: usize = 32 * 1024;
