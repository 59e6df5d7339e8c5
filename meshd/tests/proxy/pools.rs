//! Connections to applications: how long they live, how many requests they carry, what is said on them when idle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{Cluster, PortTable, RetryBudget, UpstreamProtocol};
use meshd::proxy::Declared;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use super::plan::*;

/// An application that counts its connections; each answer takes as long as asked for.
struct Counting {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Counting {
    async fn start(http2: bool, takes: Duration) -> Self {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let counting = Self { address, connections: Arc::default() };
        let connections = counting.connections.clone();
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let answer = service_fn(move |_| async move {
                    tokio::time::sleep(takes).await;
                    Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from("counted"))))
                });
                let io = TokioIo::new(stream);
                meshd::task::spawn("test", async move {
                    if http2 {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(io, answer).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(io, answer).await;
                    }
                });
            }
        });
        counting
    }

    fn cluster(&self) -> Cluster {
        cluster("reviews", vec![local(self.address)])
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn start_one(cluster: Cluster) -> Lab {
    start(plan(vec![("reviews", vec![simple(cluster)])]))
}

#[tokio::test]
async fn a_connection_as_old_as_it_may_be_serves_no_further_request() {
    for http2 in [false, true] {
        let app = Counting::start(http2, Duration::ZERO).await;
        let mut cluster = app.cluster();
        cluster.protocol = if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
        cluster.limits.max_connection_duration = Some(Duration::from_millis(100));
        let lab = start_one(cluster);
        let begun = Instant::now();
        let mut asked = 0;

        while begun.elapsed() < Duration::from_millis(350) {
            assert_eq!(once(lab.address, get("/", &[])).await.status, StatusCode::OK);
            asked += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        let connections = app.connections();
        assert!((3..=4).contains(&connections) && asked > connections, "{connections} for {asked}");
    }
}

#[tokio::test]
async fn streams_beyond_the_bound_go_on_another_connection() {
    let app = Counting::start(true, Duration::from_millis(300)).await;
    let mut cluster = app.cluster();
    cluster.protocol = UpstreamProtocol::Http2;
    cluster.limits.max_concurrent_streams = Some(2);
    let lab = start_one(cluster);

    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..6 {
        burst.spawn(once(lab.address, get("/", &[])));
    }
    let answers = burst.join_all().await;

    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(app.connections(), 3);
}

#[tokio::test]
async fn pings_end_an_http2_connection_whose_server_is_dead() {
    // Speaks just enough HTTP/2 to be used, then falls silent.
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let ended = meshd::task::spawn("test", async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("SETTINGS");
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.expect("bytes");
        read
    });
    let mut cluster = cluster("reviews", vec![local(address)]);
    cluster.protocol = UpstreamProtocol::Http2;
    cluster.limits.http2_keep_alive = Some((Duration::from_millis(100), Duration::from_millis(200)));
    let lab = start_one(cluster);

    let answer = once(lab.address, get("/", &[])).await;
    let read = tokio::time::timeout(Duration::from_secs(5), ended).await.expect("cut").expect("bytes");

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(read.windows(5).any(|frame| frame == [0, 0, 8, 6, 0]), "no PING came");
}

fn opaque(cluster: Cluster) -> Lab {
    let table =
        PortTable { number: PORT, tcp: Some(tcp_service(vec![to(1, cluster)])), ..PortTable::default() };
    start_with(with_table(table), service(Declared::Tcp), settings(), &no_credentials())
}

/// Sends a byte every 50 ms until the connection ends or `most` is over; returns how long that took.
async fn chatter(address: SocketAddr, most: Duration) -> Duration {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let begun = Instant::now();
    let mut byte = [0];
    while begun.elapsed() < most {
        if stream.write_all(b"x").await.is_err() || !matches!(stream.read(&mut byte).await, Ok(1)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

async fn parrot() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            meshd::task::spawn("test", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_silent_tcp_connection_is_closed_and_a_busy_one_is_not() {
    let mut cluster = cluster("db", vec![local(parrot().await)]);
    cluster.limits.tcp_idle_timeout = Some(Duration::from_millis(300));
    let lab = opaque(cluster);
    let mut silent = TcpStream::connect(lab.address).await.expect("a connection");
    let begun = Instant::now();

    let busy = chatter(lab.address, Duration::from_millis(900));
    let ended = async {
        let read = silent.read(&mut [0]).await;
        (read.unwrap_or(0), begun.elapsed())
    };
    let (busy, (read, silent)) = tokio::join!(busy, ended);

    assert!(busy >= Duration::from_millis(900), "{busy:?}");
    assert!(
        read == 0 && silent >= Duration::from_millis(300) && silent < Duration::from_millis(800),
        "{silent:?}"
    );
}

#[tokio::test]
async fn a_tcp_connection_as_old_as_it_may_be_is_cut() {
    let mut cluster = cluster("db", vec![local(parrot().await)]);
    cluster.limits.max_connection_duration = Some(Duration::from_millis(300));
    let lab = opaque(cluster);

    let lived = chatter(lab.address, Duration::from_secs(5)).await;

    assert!(lived >= Duration::from_millis(250) && lived < Duration::from_millis(1_500), "{lived:?}");
}

#[tokio::test]
async fn a_retry_budget_bounds_the_retries_of_a_burst() {
    let backend = Backend::http1("failing").await;
    let mut failing = cluster("reviews", vec![local(backend.address)]);
    let budget = RetryBudget { parts_per_million: 0, at_least: 2, interval: Duration::ZERO };
    failing.limits.retry_budget = Some(budget);
    let mut route = forward(vec![to(1, failing)]);
    route.retry.attempts = 1;
    route.retry.on.server_error = true;
    let lab = start(plan(vec![("reviews", vec![forwarding(route)])]));

    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..10 {
        burst.spawn(once(lab.address, get("/", &[("x-want-status", "503"), ("x-want-delay-ms", "200")])));
    }
    burst.join_all().await;

    assert_eq!(backend.hits(), 12, "ten requests and two retries");
}

#[tokio::test]
async fn limits_hold_across_workers() {
    let app = Counting::start(false, Duration::from_millis(300)).await;
    let mut cluster = app.cluster();
    cluster.limits.max_requests = Some(3);
    let settings = meshd::proxy::Settings { workers: 4, ..settings() };
    let plan = plan(vec![("reviews", vec![simple(cluster)])]);
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());

    let begun = Instant::now();
    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..20 {
        burst.spawn(async move {
            let answer = once(lab.address, get("/", &[])).await;
            (answer.status.as_u16(), begun.elapsed())
        });
    }
    let answers = burst.join_all().await;

    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 3);
    let refused = answers.iter().filter(|(status, _)| *status == 503);
    assert!(
        refused.clone().count() == 17
            && refused.into_iter().all(|(_, took)| *took < Duration::from_millis(250))
    );
}

/// The timers of connections to a port, as the kernel shows them: `02` is keep-alive. Source: proc_net_tcp.
fn timers(port: u16) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let remote = format!(":{port:04X}");
    let columns = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // `01` is an open connection.
    let ours = columns
        .filter(|columns| columns.get(2).is_some_and(|peer| peer.ends_with(&remote)) && columns[3] == "01");
    ours.map(|columns| columns[5][..2].to_owned()).collect()
}

#[tokio::test]
async fn keep_alive_is_set_where_the_rule_says_so() {
    let app = Counting::start(false, Duration::ZERO).await;
    for (keepalive, expected) in [(None, "00"), (Some((Some(3), Some(Duration::from_secs(9)), None)), "02")] {
        let mut cluster = app.cluster();
        cluster.limits.tcp_keepalive = keepalive;
        let lab = start_one(cluster);
        assert_eq!(once(lab.address, get("/", &[])).await.status, StatusCode::OK);

        assert_eq!(timers(app.address.port()), [expected]);
        lab.proxy.drain(Duration::ZERO).await;
        until("the connection is gone", || timers(app.address.port()).iter().all(|timer| timer != "00"))
            .await;
    }
}

#[tokio::test]
async fn an_application_may_listen_on_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    meshd::task::spawn("test", async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await.expect("a request");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nunix";
        stream.write_all(answer).await.expect("open");
    });
    let via = mesh_core::plan::Via::Socket(path.to_string_lossy().into());
    let lab = start_one(cluster("reviews", vec![endpoint("app", via)]));

    assert_eq!(once(lab.address, get("/", &[])).await.body, "unix");
}

#[tokio::test]
async fn a_caller_of_http2_is_spoken_to_upstream_as_it_speaks_where_the_rule_says_so() {
    let app = Counting::start(true, Duration::ZERO).await;
    let mut cluster = app.cluster();
    cluster.protocol = UpstreamProtocol::AsClient;
    let lab = start_one(cluster);
    let request = Request::builder().uri("http://reviews/").version(http::Version::HTTP_2);

    let answer = once_http2(lab.address, request.body(Empty::<Bytes>::new()).expect("one")).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "counted"));
}
