//! Opaque connections between hosts, over lanes of their own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{Cluster, PortTable};
use mesh_proto::registration::Protocol;
use meshd::proxy::Declared;
use meshd::transport::{Transport, provider};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::hop::{Authority, HOST, destination, opaque_source, over_mesh, workload};
use super::lab::*;
use super::plan::*;
use super::tcp::{echo, talk};

fn opened(lab: &Lab) -> u64 {
    lab.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed))
}

#[tokio::test]
async fn connections_one_after_another_share_a_lane() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let here =
        opaque_source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);

    for bytes in [5, 300_000, 0, 131_068, 131_069] {
        let sent = vec![3; bytes];
        assert!(talk(here.address, "hi", &sent).await == sent);
    }

    assert_eq!(opened(&here), 1);
}

#[tokio::test]
async fn many_connections_at_once_stay_apart() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let here =
        opaque_source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);

    let mut talking = tokio::task::JoinSet::new();
    for number in 0..60_u8 {
        let address = here.address;
        talking.spawn(async move {
            for _ in 0..3 {
                let sent = vec![number; 20_000 + usize::from(number)];
                assert!(talk(address, "hi", &sent).await == sent);
            }
        });
    }
    talking.join_all().await;
}

#[tokio::test]
async fn an_instance_that_is_gone_or_dead_costs_its_connection_and_no_lane() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let dead = destination(&authority, nobody(), Protocol::Tcp, Transport::Tcp);
    let endpoints = vec![
        over_mesh(there.address, "reviews", "reviews-1"),
        over_mesh(there.address, "reviews", "gone"),
        over_mesh(dead.address, "reviews", "reviews-1").but(|facts| facts.id = "dead".into()),
    ];
    let here = opaque_source(&authority, endpoints, Transport::Tcp);

    // Each connection is tried once, as Envoy does: the one instance that is there answers its share.
    let mut answered = 0;
    for _ in 0..60 {
        let mut stream = TcpStream::connect(here.address).await.expect("a connection");
        let mut greeted = [0; 2];
        if stream.read_exact(&mut greeted).await.is_ok() {
            assert_eq!(&greeted, b"hi");
            stream.shutdown().await.expect("open");
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.expect("an end"), 0);
            answered += 1;
        }
    }
    // A third of them; at odds of 10^-6 not fewer than 5.
    assert!((5..60).contains(&answered), "{answered}");
    assert!(opened(&here) <= 3, "{}", opened(&here));
}

#[tokio::test]
async fn a_host_that_proves_another_identity_gets_no_connection() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let here =
        opaque_source(&authority, vec![over_mesh(there.address, "ratings", "reviews-1")], Transport::Tcp);

    assert_eq!(bytes(here.address, b"x").await, "");
    assert_eq!(there.stats.total(|all| all.inbound_requests_total.load(Ordering::Relaxed)), 0);
}

#[tokio::test]
async fn who_leaves_amidst_a_connection_is_heard_at_the_other_end_and_others_go_on() {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let target = listener.local_addr().expect("an address");
    let authority = Authority::new();
    let there = destination(&authority, target, Protocol::Tcp, Transport::Tcp);
    let here =
        opaque_source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);

    let mut caller = TcpStream::connect(here.address).await.expect("a connection");
    caller.write_all(b"half").await.expect("open");
    let (mut application, _) = listener.accept().await.expect("a connection");
    let mut read = [0; 4];
    application.read_exact(&mut read).await.expect("bytes");
    caller.set_zero_linger().expect("an option");
    drop(caller);
    // The end of an aborted connection, in order or not, is all that an application may hear.
    assert!(matches!(application.read(&mut read).await, Ok(0) | Err(_)));
    drop(application);

    let mut caller = TcpStream::connect(here.address).await.expect("a connection");
    caller.write_all(b"next").await.expect("open");
    let (mut application, _) = listener.accept().await.expect("a connection");
    application.read_exact(&mut read).await.expect("bytes");
    assert_eq!(&read, b"next");
}

fn limited(address: SocketAddr, change: impl FnOnce(&mut Cluster), authority: &Authority) -> Lab {
    let mut cluster = cluster(HOST, vec![over_mesh(address, "reviews", "reviews-1")]);
    change(&mut cluster);
    let tcp = Some(tcp_service(vec![to(1, cluster)]));
    let table = PortTable { number: PORT, tcp, ..PortTable::default() };
    start_with(with_table(table), service(Declared::Tcp), settings(), &authority.credentials(&["web"]))
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_and_free_lanes_take_no_place() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let here = limited(there.address, |cluster| cluster.limits.max_connections = Some(1), &authority);
    for _ in 0..2 {
        assert!(talk(here.address, "hi", b"hello").await == b"hello");
    }

    let mut first = TcpStream::connect(here.address).await.expect("a connection");
    first.read_exact(&mut [0; 2]).await.expect("a greeting");

    assert_eq!(bytes(here.address, b"").await, "");
    drop(first);
}

#[tokio::test]
async fn silence_beyond_the_idle_timeout_closes_both_ends() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let brief = Some(Duration::from_millis(100));
    let here = limited(there.address, |cluster| cluster.limits.tcp_idle_timeout = brief, &authority);

    let mut caller = TcpStream::connect(here.address).await.expect("a connection");
    let mut read = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), caller.read_to_end(&mut read)).await;

    assert!(ended.is_ok());
    assert_eq!(read, b"hi");
    let count = |lab: &Lab| lab.stats.total(|all| all.open_downstream_connections.load(Ordering::Relaxed));
    until("the lane is closed", || count(&there) == 0).await;
}

#[tokio::test]
async fn free_lanes_hold_up_nobody_who_drains() {
    let (authority, db) = (Authority::new(), echo("hi").await);
    let there = destination(&authority, db, Protocol::Tcp, Transport::Tcp);
    let here =
        opaque_source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);
    assert!(talk(here.address, "hi", b"hello").await == b"hello");

    assert_eq!(there.proxy.drain(Duration::from_secs(8)).await, 0);
    assert_eq!(here.proxy.drain(Duration::from_secs(8)).await, 0);
}

/// The mesh port of a version that knows no lanes: HTTP/2 alone, tunnels that greet and echo.
async fn old_host(authority: &Authority) -> SocketAddr {
    #[derive(Debug)]
    struct One(Arc<CertifiedKey>);
    impl ResolvesServerCert for One {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }
    let key = One(authority.certify(&workload("reviews")));
    let mut config = rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(open_tunnel));
            meshd::task::spawn("test", serving);
        }
    });
    address
}

async fn open_tunnel(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    meshd::task::spawn("test", async move {
        let mut stream = TokioIo::new(upgrade.await.expect("a tunnel"));
        stream.write_all(b"old").await.expect("open");
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.expect("bytes");
        stream.write_all(&read).await.expect("open");
        stream.shutdown().await.expect("open");
    });
    Ok(Response::new(Empty::new()))
}

#[tokio::test]
async fn a_host_that_knows_no_lanes_is_reached_through_the_shared_connection() {
    let authority = Authority::new();
    let old = old_host(&authority).await;
    let here = opaque_source(&authority, vec![over_mesh(old, "reviews", "reviews-1")], Transport::Tcp);

    for _ in 0..3 {
        assert!(talk(here.address, "old", b"hello").await == b"hello");
    }

    assert_eq!(opened(&here), 1);
}
