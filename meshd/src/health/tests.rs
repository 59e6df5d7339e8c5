use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mesh_proto::registration::{HttpAsk, PortBinding, Probe, Protocol};
use mesh_proto::value::Labels;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::drain::{self, Drain};

fn instance(probe: Probe, target: SocketAddr) -> Instance {
    let check = HealthCheck {
        initial_delay_ms: 0,
        probe,
        interval_ms: 1_000,
        timeout_ms: 500,
        unhealthy_threshold: 2,
        healthy_threshold: 1,
    };
    let port = PortBinding { number: 80, name: String::new(), protocol: Protocol::Http, target };
    Instance {
        service: "web".into(),
        group: None,
        namespace: "default".into(),
        account: "default".into(),
        labels: Labels::new(),
        ports: vec![port],
        address: None,
        weight: 1,
        locality: None,
        check: Some(check),
        health: Health::Unhealthy,
    }
}

fn registration(ids: &[&str]) -> Registration {
    let target = "127.0.0.1:1".parse().unwrap();
    let instances = ids
        .iter()
        .map(|id| ((*id).to_owned(), instance(Probe::Tcp { host: None, port: None }, target).into()));
    Registration { instances: instances.collect() }
}

/// Checks on a paused clock, with answers that the test gives.
struct Bench {
    registration: watch::Sender<Registration>,
    words: watch::Receiver<Words>,
    is_well: Arc<Mutex<Result<(), Duration>>>,
    asked: Arc<Mutex<Vec<Duration>>>,
    _drain: Drain,
}

impl Bench {
    fn new(ids: &[&str]) -> Self {
        let (registered, receiver) = watch::channel(registration(ids));
        let (words, said) = watch::channel(Words::new());
        let (drain, draining) = drain::channel();
        let is_well = Arc::new(Mutex::new(Ok(())));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let began = Instant::now();
        let (answer, times) = (is_well.clone(), asked.clone());
        let ask = move |_: Arc<Target>| {
            times.lock().unwrap().push(began.elapsed());
            let answer: Result<(), Duration> = *answer.lock().unwrap();
            async move {
                if let Err(after) = answer {
                    tokio::time::sleep(after).await;
                    return Err(Failure::Status(500));
                }
                Ok(())
            }
        };
        task::spawn("test", follow(receiver, Arc::new(words), ask, draining));
        Self { registration: registered, words: said, is_well, asked, _drain: drain }
    }

    fn answer(&self, answer: Result<(), Duration>) {
        *self.is_well.lock().unwrap() = answer;
    }

    async fn until(&mut self, id: &str, health: Option<Health>) {
        self.words.wait_for(|words| words.get(id).copied() == health).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_becomes_healthy_with_its_first_success_and_ill_after_two_failures() {
    let mut bench = Bench::new(&["a"]);
    bench.until("a", Some(Health::Healthy)).await;
    bench.answer(Err(Duration::ZERO));
    let began = Instant::now();
    bench.until("a", Some(Health::Unhealthy)).await;
    let took = began.elapsed();
    assert!(took <= Duration::from_millis(2_300), "two intervals, jitter included: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_instance_is_ill_when_its_time_is_up() {
    let mut bench = Bench::new(&[]);
    bench.answer(Err(Duration::from_hours(1)));
    let began = Instant::now();
    bench.registration.send_replace(registration(&["a"]));
    bench.until("a", Some(Health::Unhealthy)).await;
    assert_eq!(began.elapsed(), Duration::from_millis(500), "its first word, after the time-out");
}

#[tokio::test(start_paused = true)]
async fn the_first_question_waits_as_long_as_the_check_says() {
    let mut bench = Bench::new(&[]);
    let mut later = registration(&["a"]);
    let slow = Arc::make_mut(later.instances.get_mut("a").unwrap());
    slow.check.as_mut().unwrap().initial_delay_ms = 7_000;
    let began = Instant::now();
    bench.registration.send_replace(later);
    bench.until("a", Some(Health::Healthy)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn intervals_vary_by_a_tenth() {
    let bench = Bench::new(&["a"]);
    tokio::time::sleep(Duration::from_mins(1)).await;
    let asked = bench.asked.lock().unwrap().clone();
    let gaps: Vec<u128> = asked.windows(2).map(|pair| pair[1].saturating_sub(pair[0]).as_millis()).collect();
    assert!(gaps.iter().all(|gap| (900..=1_101).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_checked_follows_the_registration() {
    let mut bench = Bench::new(&["a"]);
    bench.until("a", Some(Health::Healthy)).await;
    bench.registration.send_replace(registration(&["a", "b"]));
    bench.until("b", Some(Health::Healthy)).await;
    bench.registration.send_replace(registration(&["b"]));
    bench.until("a", None).await;
    let mut other = registration(&["b"]);
    Arc::make_mut(other.instances.get_mut("b").unwrap()).check.as_mut().unwrap().timeout_ms = 400;
    bench.answer(Err(Duration::ZERO));
    bench.registration.send_replace(other);
    bench.until("b", Some(Health::Unhealthy)).await;
    bench.registration.send_replace(Registration::default());
    bench.until("b", None).await;
}

/// Serves every connection with `answer`, which sees what was asked.
async fn served(answer: &'static [u8]) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(String::new()));
    let heard = seen.clone();
    task::spawn("test", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            *heard.lock().unwrap() = String::from_utf8_lossy(&buffer[..length]).into_owned();
            stream.write_all(answer).await.unwrap();
        }
    });
    (address, seen)
}

async fn ask(probe: Probe, address: SocketAddr) -> Result<(), Failure> {
    let target = Target::of(&instance(probe, address)).unwrap();
    let asked = probe::ask(&target, SocketOptions::default());
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("in time")
}

fn http(path: &str) -> Probe {
    Probe::Http { path: path.into(), port: None, ask: HttpAsk::default() }
}

#[tokio::test]
async fn http_is_well_from_200_to_399() {
    let (address, seen) = served(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    ask(http("/health?deep=1"), address).await.unwrap();
    assert!(seen.lock().unwrap().starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen.lock().unwrap().contains(&format!("host: {address}\r\n")), "{seen:?}");
    let (address, _) = served(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n").await;
    ask(http("/"), address).await.unwrap();
    let (address, _) = served(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
    assert!(matches!(ask(http("/"), address).await, Err(Failure::Status(503))));
    let (address, _) = served(b"SSH-2.0-OpenSSH\r\n").await;
    assert!(matches!(ask(http("/"), address).await, Err(Failure::Http(_))));
}

#[tokio::test]
async fn tcp_is_well_when_it_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let elsewhere = SocketAddr::new(address.ip(), 1);
    ask(Probe::Tcp { host: None, port: Some(address.port()) }, elsewhere).await.unwrap();
    drop(listener);
    let failure = ask(Probe::Tcp { host: None, port: None }, address).await.unwrap_err().to_string();
    assert!(failure.contains(&address.to_string()), "{failure}");
}

#[tokio::test]
async fn a_command_is_well_when_it_exits_with_0() {
    let command = |argv: &[&str]| Probe::Command { argv: argv.iter().map(|&it| it.to_owned()).collect() };
    let address = "127.0.0.1:1".parse().unwrap();
    ask(command(&["sh", "-c", "test \"$0\" = 'a b'", "a b"]), address).await.unwrap();
    let failure = ask(command(&["sh", "-c", "exit 3"]), address).await.unwrap_err().to_string();
    assert!(failure.contains("sh ended with exit status: 3"), "{failure}");
    let failure = ask(command(&["/nonexistent"]), address).await.unwrap_err().to_string();
    assert!(failure.starts_with("cannot run /nonexistent"), "{failure}");
}

#[tokio::test]
async fn a_command_that_is_given_up_ends_with_all_it_started() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A grandchild that holds a connection open for as long as it lives.
    let script = format!("sleep 1000 3<>/dev/tcp/127.0.0.1/{port} & wait");
    let argv = vec!["bash".into(), "-c".into(), script];
    let target = Target::of(&instance(Probe::Command { argv }, "127.0.0.1:1".parse().unwrap())).unwrap();
    let running = task::spawn("test", async move { probe::ask(&target, SocketOptions::default()).await });
    let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    running.abort();
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest))
        .await
        .expect("ended")
        .unwrap();
}

/// A gRPC server with one answer: body and trailers.
async fn grpc_server(body: &'static [u8], status: &'static str) -> SocketAddr {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    task::spawn("test", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    let question = request.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(&question[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
                    let trailers = http::HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        http::HeaderValue::from_static(status),
                    )]);
                    let body = Full::new(bytes::Bytes::from_static(body))
                        .with_trailers(async move { Some(Ok(trailers)) });
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
        }
    });
    address
}

#[tokio::test]
async fn grpc_is_well_when_it_says_serving() {
    let probe = || Probe::Grpc { service: "a.B".into(), port: None };
    ask(probe(), grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await).await.unwrap();
    let failure = ask(probe(), grpc_server(&[0, 0, 0, 0, 2, 8, 2], "0").await).await.unwrap_err();
    assert_eq!(failure.to_string(), "gRPC: status NOT_SERVING");
    let failure = ask(probe(), grpc_server(&[], "5").await).await.unwrap_err();
    assert_eq!(failure.to_string(), "gRPC: the server does not know this service");
    let (address, _) = served(b"HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(ask(probe(), address).await.is_err(), "no HTTP/2");
}

#[tokio::test]
async fn headers_and_host_are_as_the_check_says() {
    let (address, seen) = served(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let headers = vec![("Host".into(), "reviews.example".into()), ("x-probe".into(), "1".into())];
    let ask_of = |host: &str| HttpAsk { host: Some(host.into()), headers: headers.clone(), https: false };
    let elsewhere = SocketAddr::from(([127, 0, 0, 77], 1));
    let probe = Probe::Http { path: "/".into(), port: Some(address.port()), ask: ask_of("127.0.0.1") };
    ask(probe, elsewhere).await.unwrap();
    let head = seen.lock().unwrap().to_lowercase();
    assert!(head.contains("host: reviews.example\r\n") && head.contains("x-probe: 1\r\n"), "{head}");
    assert_eq!(head.matches("host:").count(), 1, "{head}");

    let probe = Probe::Tcp { host: Some("127.0.0.1".into()), port: Some(address.port()) };
    ask(probe, elsewhere).await.unwrap();
}

#[tokio::test]
async fn https_does_not_mind_whose_certificate_it_is() {
    let pair = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(crate::transport::provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    task::spawn("test", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let https = HttpAsk { https: true, ..HttpAsk::default() };
    ask(Probe::Http { path: "/".into(), port: None, ask: https }, address).await.unwrap();
}
