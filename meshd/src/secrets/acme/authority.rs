//! Questions to an authority: HTTP/1.1 over TLS, each on a connection of its own, as they are few.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::task;
use crate::transport::SocketOptions;
use crate::transport::socket::connect_tcp;

/// An authority. Questions go where its directory says.
pub(super) struct Authority {
    tls: TlsConnector,
    socket: SocketOptions,
}

impl Authority {
    pub(super) fn new(tls: TlsConnector, socket: SocketOptions) -> Self {
        Self { tls, socket }
    }
}

impl HttpClient for Authority {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let asked = ask(self.tls.clone(), self.socket, request);
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(answer) => answer,
                Err(_) => Err(other("the authority does not answer")),
            }
        })
    }
}

async fn ask(
    tls: TlsConnector,
    socket: SocketOptions,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Error> {
    let uri = request.uri().clone();
    let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(other(format!("{uri} is not asked: it is no https")));
    };
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = connect(&host, authority.port_u16().unwrap_or(443), socket).await;
    let stream = stream.map_err(|error| other(format!("cannot reach {authority}: {error}")))?;
    let name = ServerName::try_from(host).map_err(other)?;
    let stream = tls.connect(name, stream).await;
    let stream = stream.map_err(|error| other(format!("no TLS with {authority}: {error}")))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    task::spawn("acme", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to an authority broke");
        }
    });
    let value = HeaderValue::from_str(authority.as_str()).map_err(other)?;
    request.headers_mut().insert(HOST, value);
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(target);
    let (parts, body) = sender.send_request(request).await.map_err(other)?.into_parts();
    let body = Limited::new(body, MOST_BYTES).collect().await.map_err(Error::Other)?.to_bytes();
    Ok(BytesResponse { parts, body: Box::new(body) })
}

async fn connect(host: &str, port: u16, socket: SocketOptions) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in tokio::net::lookup_host((host, port)).await?.take(MOST_ADDRESSES) {
        match tokio::time::timeout(CONNECT_WITHIN, connect_tcp(address, socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Other(error.into())
}

/// For one answer. Authorities say "later" rather than keep us waiting.
const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const MOST_ADDRESSES: usize = 4;
/// A chain is some kilobytes.
const MOST_BYTES: usize = 1 << 20;
