//! Streams of HTTP/2 between caller and application: what one end does to a stream, the other end sees.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use mesh_core::plan::{Cluster, UpstreamProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::lab::*;
use super::plan::*;

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// An application that hands out the streams it gets, and counts its connections.
struct Application {
    address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Asked>,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Application {
    /// Each connection serves `most` streams before it says goodbye.
    async fn start(most: usize) -> Self {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (give, streams) = mpsc::unbounded_channel();
        let (connections, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, counted_open) = (connections.clone(), open.clone());
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (give, open) = (give.clone(), counted_open.clone());
                open.fetch_add(1, Ordering::Relaxed);
                meshd::task::spawn("test", async move {
                    let connection = h2::server::handshake(stream).await.expect("HTTP/2");
                    serve(connection, give, most).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, streams, connections, open }
    }

    fn cluster(&self) -> Cluster {
        let mut cluster = cluster("reviews", vec![local(self.address)]);
        cluster.protocol = UpstreamProtocol::Http2;
        cluster
    }

    async fn asked(&mut self) -> Asked {
        tokio::time::timeout(LIMIT, self.streams.recv()).await.expect("a request in time").expect("a request")
    }
}

async fn serve(
    mut connection: Connection<TcpStream, Bytes>,
    give: mpsc::UnboundedSender<Asked>,
    most: usize,
) {
    let mut served = 0;
    while let Some(Ok(asked)) = connection.accept().await {
        served += 1;
        if served == most {
            connection.graceful_shutdown();
        }
        let _ = give.send(asked);
    }
}

fn start_one(cluster: Cluster) -> Lab {
    start(plan(vec![("reviews", vec![simple(cluster)])]))
}

pub(super) async fn caller(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    meshd::task::spawn("test", async move {
        let _ = connection.await;
    });
    sender
}

fn ask(sender: &mut SendRequest<Bytes>, is_whole: bool) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post("http://reviews/").body(()).expect("a request");
    sender.send_request(request, is_whole).expect("an open connection")
}

fn answer(respond: &mut SendResponse<Bytes>, is_whole: bool) -> SendStream<Bytes> {
    respond.send_response(Response::new(()), is_whole).expect("an open stream")
}

#[tokio::test]
async fn answers_of_our_own_to_head_have_no_body() {
    // Nobody is there: the answer is the proxy's, and would have words in it.
    let mut gone = cluster("reviews", vec![local(nobody())]);
    gone.protocol = UpstreamProtocol::Http2;
    let lab = start_one(gone);
    let request = Request::head("http://reviews/").body(()).expect("a request");

    let (answer, _) = caller(lab.address).await.send_request(request, true).expect("an open connection");

    let response = tokio::time::timeout(LIMIT, answer).await.expect("in time").expect("an answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("content-length"));
    assert!(response.into_body().is_end_stream(), "nothing follows");
}

#[tokio::test]
async fn a_request_goes_on_after_its_answer_has_begun() {
    let mut application = Application::start(usize::MAX).await;
    let lab = start_one(application.cluster());
    let (answered, mut to) = ask(&mut caller(lab.address).await, false);
    let (request, mut respond) = application.asked().await;
    let mut from_caller = request.into_body();
    let mut back = answer(&mut respond, false);
    let response = answered.await.expect("an answer");
    let mut from_application = response.into_body();

    for message in ["one", "two", "three"] {
        to.send_data(message.into(), false).expect("an open stream");
        let seen = from_caller.data().await.expect("data").expect("no error");
        let _ = from_caller.flow_control().release_capacity(seen.len());
        back.send_data(seen, false).expect("an open stream");
        assert_eq!(from_application.data().await.expect("data").expect("no error"), message);
    }
    to.send_data(Bytes::new(), true).expect("an open stream");
    back.send_data(Bytes::new(), true).expect("an open stream");

    assert!(from_caller.data().await.is_none_or(|last| last.expect("no error").is_empty()));
    assert!(from_application.data().await.is_none_or(|last| last.expect("no error").is_empty()));
}

#[tokio::test]
async fn a_body_larger_than_all_windows_passes_whole() {
    let mut application = Application::start(usize::MAX).await;
    let lab = start_one(application.cluster());
    let (answered, mut to) = ask(&mut caller(lab.address).await, false);
    let body: Bytes = (0..BODY).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect::<Vec<_>>().into();
    to.send_data(body.clone(), true).expect("an open stream");

    let (request, mut respond) = application.asked().await;
    let (mut from_caller, mut read) = (request.into_body(), Vec::new());
    while let Some(data) = from_caller.data().await {
        let data = data.expect("no error");
        let _ = from_caller.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    answer(&mut respond, true);

    assert_eq!(answered.await.expect("an answer").status(), StatusCode::OK);
    assert!(read == body, "{} of {BODY} bytes came, or others", read.len());
}

#[tokio::test]
async fn a_caller_that_gives_up_has_its_stream_reset_before_and_after_the_answer_begins() {
    for answers in [false, true] {
        let mut application = Application::start(usize::MAX).await;
        let lab = start_one(application.cluster());
        let (answered, mut to) = ask(&mut caller(lab.address).await, false);
        let (_request, mut respond) = application.asked().await;
        let mut begun = None;
        let mut answered = Some(answered);
        if answers {
            begun = Some(answer(&mut respond, false));
            answered.take().expect("once").await.expect("an answer");
        }

        to.send_reset(Reason::CANCEL);

        let reset = poll_fn(|cx| match &mut begun {
            Some(stream) => stream.poll_reset(cx),
            None => respond.poll_reset(cx),
        });
        let reason = tokio::time::timeout(LIMIT, reset).await.expect("a reset in time").expect("a reset");
        assert_eq!(reason, Reason::CANCEL, "answer begun: {answers}");
    }
}

#[tokio::test]
async fn a_reset_by_the_application_reaches_the_caller() {
    let mut application = Application::start(usize::MAX).await;
    let lab = start_one(application.cluster());
    let (answered, _to) = ask(&mut caller(lab.address).await, true);
    let (_request, mut respond) = application.asked().await;
    let mut begun = answer(&mut respond, false);
    let mut body = answered.await.expect("an answer").into_body();

    begun.send_reset(Reason::ENHANCE_YOUR_CALM);

    let ended = tokio::time::timeout(LIMIT, body.data()).await.expect("in time").expect("not a good end");
    assert_eq!(ended.expect_err("a reset").reason(), Some(Reason::ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn a_connection_that_says_goodbye_gets_no_further_request() {
    let mut application = Application::start(1).await;
    let lab = start_one(application.cluster());
    let mut sender = caller(lab.address).await;

    for _ in 0..3 {
        let (answered, _) = ask(&mut sender, true);
        let (_request, mut respond) = application.asked().await;
        answer(&mut respond, true);
        assert_eq!(answered.await.expect("an answer").status(), StatusCode::OK);
    }

    assert_eq!(application.connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed() {
    let mut application = Application::start(usize::MAX).await;
    let mut cluster = application.cluster();
    cluster.limits.idle_timeout = Some(Duration::from_millis(100));
    let lab = start_one(cluster);
    let (answered, _) = ask(&mut caller(lab.address).await, true);
    let (request, mut respond) = application.asked().await;
    answer(&mut respond, true);
    answered.await.expect("an answer");
    drop((request, respond));

    until("the connection is closed", || application.open.load(Ordering::Relaxed) == 0).await;

    assert_eq!(application.connections.load(Ordering::Relaxed), 1);
}

const LIMIT: Duration = Duration::from_secs(5);
/// More than any window on the way, and less than is kept for a retry would need.
const BODY: usize = 9 << 20;

/// An application whose first connections leave in the very moment in which a stream comes, for a reason.
async fn leaving(first: usize, why: Reason) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::<AtomicUsize>::default();
    let counted = connections.clone();
    meshd::task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if counted.fetch_add(1, Ordering::Relaxed) < first {
                meshd::task::spawn("test", leave(stream, why));
                continue;
            }
            meshd::task::spawn("test", async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    meshd::task::spawn("test", async move {
                        let sent = request.into_body().data().await;
                        let sent = sent.map_or_else(Bytes::new, |data| data.expect("no error"));
                        let _ = answer(&mut respond, false).send_data(sent, true);
                    });
                }
            });
        }
    });
    (address, connections)
}

/// Says goodbye to the first stream, of which it has done nothing. Source: RFC 9113, section 6.8.
async fn leave(mut stream: TcpStream, why: Reason) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY_WITHOUT_REASON: [u8; 13] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    stream.read_exact(&mut [0; 24]).await.expect("a preface");
    stream.write_all(&SETTINGS).await.expect("an open connection");
    let mut kind = 0;
    while kind != HEADERS {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        stream.read_exact(&mut vec![0; length]).await.expect("a frame");
        kind = head[3];
    }
    let goodbye = [&GOAWAY_WITHOUT_REASON[..], &u32::from(why).to_be_bytes()].concat();
    stream.write_all(&goodbye).await.expect("an open connection");
    // Until the other end has read it.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_request_that_meets_an_application_that_is_leaving_is_sent_anew() {
    let cases = [
        (1, Reason::NO_ERROR, 200, 2),
        (2, Reason::NO_ERROR, 503, 2),
        // That is no leaving.
        (1, Reason::ENHANCE_YOUR_CALM, 503, 1),
    ];
    for (first, why, status, connections) in cases {
        let (address, connected) = leaving(first, why).await;
        let mut cluster = cluster("reviews", vec![local(address)]);
        cluster.protocol = UpstreamProtocol::Http2;
        let mut forward = forward(vec![to(1, cluster)]);
        forward.retry.attempts = 0;
        let lab = start(plan(vec![("reviews", vec![forwarding(forward)])]));

        let answer = once(lab.address, request(Method::POST, "/", &[], "twice")).await;

        assert_eq!(answer.status, status, "{first} leave: {why}");
        assert_eq!(answer.body == "twice", status == 200, "{:?}", answer.body);
        assert_eq!(connected.load(Ordering::Relaxed), connections, "{first} leave");
    }
}
