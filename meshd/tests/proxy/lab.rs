//! Backends, clients and proxies for the tests.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::Plan;
use meshd::proxy::{Declared, Entrance, Proxy, Settings, Shared, Sockets, Way};
use meshd::telemetry::{AccessLog, Format, Sink, Stats};
use meshd::transport::{Credentials, Dialer, QuicOptions, SocketOptions, Trust, socket};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::plan::PORT;

pub(crate) type Reply = Response<BoxBody<Bytes, Infallible>>;

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// An address where nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    let socket = std::net::TcpListener::bind(loopback(0)).expect("a port");
    socket.local_addr().expect("an address")
}

/// An application. Steered by `x-want-status`, `x-want-delay-ms`, `x-want-how: reset`; answers with its name, and
/// with the request's body where there is one.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) hits: Arc<AtomicUsize>,
    pub(crate) seen: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
}

impl Backend {
    pub(crate) async fn http1(name: &'static str) -> Self {
        Self::start(name, false).await
    }

    pub(crate) async fn http2(name: &'static str) -> Self {
        Self::start(name, true).await
    }

    async fn start(name: &'static str, http2: bool) -> Self {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let backend = Self { address, hits: Arc::default(), seen: Arc::default() };
        let serving = backend.clone();
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let backend = serving.clone();
                meshd::task::spawn("test", async move {
                    let service = service_fn(|request| backend.clone().answer(name, request));
                    let io = TokioIo::new(stream);
                    if http2 {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(io, service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(io, service).with_upgrades().await;
                    }
                });
            }
        });
        backend
    }

    async fn answer(
        self,
        name: &'static str,
        mut request: Request<Incoming>,
    ) -> Result<Reply, std::io::Error> {
        self.hits.fetch_add(1, Ordering::Relaxed);
        let headers = request.headers().clone();
        let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
        let authority = request.uri().authority().map(ToString::to_string);
        let mut shown = headers.clone();
        if let Some(authority) = authority {
            shown.insert("host", authority.parse().expect("a value"));
        }
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((
            request.method().clone(),
            target,
            shown,
        ));
        let want = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if let Some(delay) = want("x-want-delay-ms") {
            tokio::time::sleep(Duration::from_millis(delay.parse().expect("a number"))).await;
        }
        if want("x-want-how").as_deref() == Some("reset") {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        if want("upgrade").as_deref() == Some("websocket") && want("x-want-status").is_none() {
            let upgrade = hyper::upgrade::on(&mut request);
            meshd::task::spawn("test", async move {
                let mut io = TokioIo::new(upgrade.await.expect("an upgrade"));
                let mut buffer = [0; 64];
                while let Ok(count @ 1..) = io.read(&mut buffer).await {
                    io.write_all(&buffer[..count]).await.expect("an open tunnel");
                }
            });
            let response = Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket");
            return Ok(response.body(empty()).expect("a response"));
        }
        let status: u16 = want("x-want-status").map_or(200, |status| status.parse().expect("a status"));
        let response = Response::builder().status(status).header("x-instance", name).header("server", "app");
        let body = if request.body().is_end_stream() {
            Full::new(Bytes::from_static(name.as_bytes())).boxed()
        } else {
            let collected = request.into_body().collect().await.map_err(std::io::Error::other)?;
            let trailers = collected.trailers().cloned();
            Frames::new(collected.to_bytes(), trailers).boxed()
        };
        Ok(response.body(body).expect("a response"))
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::Relaxed)
    }

    /// Returns method, path and headers of the last request.
    pub(crate) fn last(&self) -> (Method, String, HeaderMap) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned().expect("a request")
    }
}

/// A body of frames in memory.
pub(crate) struct Frames(std::vec::IntoIter<Frame<Bytes>>);

impl Frames {
    pub(crate) fn new(data: impl Into<Bytes>, trailers: Option<HeaderMap>) -> Self {
        let frames: Vec<_> =
            std::iter::once(Frame::data(data.into())).chain(trailers.map(Frame::trailers)).collect();
        Self(frames.into_iter())
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.next().map(Ok))
    }
}

fn empty() -> BoxBody<Bytes, Infallible> {
    Empty::new().boxed()
}

/// A running proxy with one entrance.
pub(crate) struct Lab {
    pub(crate) proxy: Proxy,
    pub(crate) address: SocketAddr,
    pub(crate) plans: Arc<ArcSwap<Plan>>,
    pub(crate) stats: Arc<Stats>,
}

pub(crate) fn settings() -> Settings {
    Settings { workers: 1, ..Settings::default() }
}

/// Credentials that prove nothing, for tests without hops.
pub(crate) fn no_credentials() -> Arc<Credentials> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let root: CertificateDer<'static> = params.self_signed(&key).expect("a root").into();
    Credentials::new(Trust::new("mesh.test", vec![root]).expect("a sound root"))
}

pub(crate) fn service(protocol: Declared) -> Way {
    Way::Service { port: PORT, protocol, caller: 0 }
}

pub(crate) fn start(plan: Plan) -> Lab {
    start_with(plan, service(Declared::Http), settings(), &no_credentials())
}

/// A proxy that writes an access log.
pub(crate) fn start_logged(plan: Plan, settings: Settings, log: &std::path::Path) -> Lab {
    let sink = Sink::File(log.to_owned());
    let log = AccessLog::start(Format::Text, &sink).expect("a file");
    start_telling(plan, vec![service(Declared::Http)], settings, &no_credentials(), Some(log)).0
}

/// A proxy that writes to this log, and to those that its rules ask for.
pub(crate) fn start_logging(plan: Plan, log: AccessLog) -> Lab {
    start_telling(plan, vec![service(Declared::Http)], settings(), &no_credentials(), Some(log)).0
}

/// As [`start_logging`], by another way in.
pub(crate) fn start_logging_as(plan: Plan, way: Way, log: AccessLog) -> Lab {
    start_telling(plan, vec![way], settings(), &no_credentials(), Some(log)).0
}

pub(crate) fn start_with(plan: Plan, way: Way, settings: Settings, credentials: &Arc<Credentials>) -> Lab {
    start_all(plan, vec![way], settings, credentials).0
}

/// A proxy with several entrances; returns their addresses, too.
pub(crate) fn start_all(
    plan: Plan,
    ways: Vec<Way>,
    settings: Settings,
    credentials: &Arc<Credentials>,
) -> (Lab, Vec<SocketAddr>) {
    start_telling(plan, ways, settings, credentials, None)
}

fn start_telling(
    plan: Plan,
    ways: Vec<Way>,
    settings: Settings,
    credentials: &Arc<Credentials>,
    access_log: Option<AccessLog>,
) -> (Lab, Vec<SocketAddr>) {
    let plans = Arc::new(ArcSwap::from_pointee(plan));
    let stats = Arc::new(Stats::new(settings.workers));
    let entrance = |way: Way| {
        let sockets = socket::listen_tcp_group(loopback(0), settings.workers).expect("a port");
        (sockets[0].local_addr().expect("an address"), Entrance { way, sockets })
    };
    let (addresses, entrances): (Vec<_>, Vec<_>) = ways.into_iter().map(entrance).unzip();
    let shared = Shared {
        plans: plans.clone(),
        dialer: Dialer::new(credentials.clone(), SocketOptions::default()),
        settings: Arc::new(settings),
        stats: stats.clone(),
        access_log,
        started: Instant::now(),
    };
    let proxy = meshd::proxy::start(shared, Sockets { entrances, quic: Vec::new() }).expect("a proxy");
    (Lab { proxy, address: addresses[0], plans, stats }, addresses)
}

/// A proxy whose only entrance is the mesh port over UDP.
pub(crate) fn start_over_udp(plan: Plan, credentials: &Arc<Credentials>) -> Lab {
    let udp = socket::bind_udp(loopback(0), socket::Share::Alone).expect("a port");
    start_on_udp(plan, credentials, udp)
}

/// The same on a socket that there is already.
pub(crate) fn start_on_udp(plan: Plan, credentials: &Arc<Credentials>, udp: std::net::UdpSocket) -> Lab {
    let plans = Arc::new(ArcSwap::from_pointee(plan));
    let stats = Arc::new(Stats::new(1));
    let address = udp.local_addr().expect("an address");
    let shared = Shared {
        plans: plans.clone(),
        dialer: Dialer::new(credentials.clone(), SocketOptions::default()),
        settings: Arc::new(settings()),
        stats: stats.clone(),
        access_log: None,
        started: Instant::now(),
    };
    let sockets = Sockets { entrances: Vec::new(), quic: vec![(udp, QuicOptions::default())] };
    let proxy = meshd::proxy::start(shared, sockets).expect("a proxy");
    Lab { proxy, address, plans, stats }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.expect("a whole body");
        let trailers = collected.trailers().cloned();
        let body = String::from_utf8(collected.to_bytes().to_vec()).expect("text");
        Self { status: parts.status, headers: parts.headers, body, trailers }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Returns a header that must be there.
pub(crate) fn at<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("(absent)")
}

/// A client's HTTP/1.1 connection.
pub(crate) struct Client(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        meshd::task::spawn("test", connection.with_upgrades());
        Self(sender)
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        Answer::of(self.0.send_request(request).await.expect("an answer")).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(get(path, &[])).await
    }

    pub(crate) async fn raw(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.0.send_request(request).await
    }
}

pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    request(Method::GET, path, headers, "")
}

pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &'static str,
) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        builder = builder.header("host", "reviews");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request")
}

/// One GET on a connection of its own.
pub(crate) async fn once(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    Client::new(address).await.send(request).await
}

/// One HTTP/2 request on a connection of its own.
pub(crate) async fn once_http2<B>(address: SocketAddr, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    meshd::task::spawn("test", connection);
    Answer::of(sender.send_request(request).await.expect("an answer")).await
}

/// Sends bytes as they are and reads to the end.
pub(crate) async fn bytes(address: SocketAddr, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(sent).await.expect("an open connection");
    let mut read = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut read)).await;
    String::from_utf8_lossy(&read).into_owned()
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        // Between two looks, not instead of one.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
