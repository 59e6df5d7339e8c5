//! Connections of HTTP/2 that many streams share: what one of them does, or is done to, does no harm to the others.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use mesh_core::plan::UpstreamProtocol;
use mesh_proto::registration::Protocol;
use meshd::transport::Transport;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::hop::{Authority, destination, over_mesh, source};
use super::lab::*;
use super::plan::*;
use super::streams::caller;

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// An application of HTTP/2 that answers each stream in its own way.
async fn application<F: Future<Output = ()> + Send + 'static>(
    answer: impl Fn(Asked) -> F + Clone + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            meshd::task::spawn("test", async move {
                // An application that can take more than a proxy may send it.
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_reset_streams(10_000).max_local_error_reset_streams(None);
                builder.data_frame_budget(usize::MAX).initial_connection_window_size((1 << 31) - 1);
                let mut connection = builder.handshake(stream).await.expect("HTTP/2");
                while let Some(Ok(asked)) = connection.accept().await {
                    meshd::task::spawn("test", answer(asked));
                }
            });
        }
    });
    address
}

/// A host whose callers reach the application over a hop, and those it holds open.
struct Crossing {
    here: Lab,
    _there: Lab,
}

fn crossing(application: SocketAddr) -> Crossing {
    let authority = Authority::new();
    let there = destination(&authority, application, Protocol::Http2, Transport::Tcp);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);
    Crossing { here, _there: there }
}

impl Crossing {
    fn hops(&self) -> u64 {
        self.here.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed))
    }
}

fn post() -> Request<()> {
    Request::post("http://reviews/").body(()).expect("a request")
}

/// A stream that stays open while others come and go: it is over when its application is told so.
async fn bystander(sender: &mut SendRequest<Bytes>) -> RecvStream {
    let request = Request::get("http://reviews/stays").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("an open connection");
    let response = in_time(answer).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body()
}

/// Answers a bystander: its body ends when `end` comes.
async fn stay(mut respond: SendResponse<Bytes>, mut end: watch::Receiver<bool>) {
    let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
    let _ = end.wait_for(|ended| *ended).await;
    let _ = body.send_data("whole".into(), true);
}

async fn read_all(mut body: RecvStream) -> Result<usize, h2::Error> {
    let mut all = 0;
    while let Some(data) = in_time(body.data()).await {
        let data = data?;
        all += data.len();
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(all)
}

/// Waits until something may be sent.
async fn room(to: &mut SendStream<Bytes>) {
    while to.capacity() < 20 {
        let room = poll_fn(|cx| to.poll_capacity(cx)).await;
        room.expect("an open stream").expect("an open connection");
    }
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

#[tokio::test]
async fn small_frames_wait_for_a_slow_application() {
    let (go, may_read) = watch::channel(false);
    let address = application(move |(request, mut respond)| {
        let mut may_read = may_read.clone();
        async move {
            let _ = may_read.wait_for(|may| *may).await;
            let read = read_all(request.into_body()).await.expect("a whole body");
            let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
            let _ = body.send_data(read.to_string().into(), true);
        }
    })
    .await;
    let mut direct = cluster("reviews", vec![local(address)]);
    direct.protocol = UpstreamProtocol::Http2;
    let direct = start(plan(vec![("reviews", vec![simple(direct)])]));
    let crossing = crossing(address);
    for lab in [&direct, &crossing.here] {
        go.send_replace(false);
        let (answer, mut to) = caller(lab.address).await.send_request(post(), false).expect("open");
        // Messages of gRPC are often as small; more of them than the windows of all connections on the way let through.
        for sent in 0..MESSAGES {
            to.reserve_capacity(20);
            if tokio::time::timeout(STILL, room(&mut to)).await.is_err() {
                assert!(sent > 1_000 && !go.send_replace(true), "stood still after {sent}");
                in_time(room(&mut to)).await;
            }
            to.send_data(Bytes::from_static(&[7; 20]), false).expect("an open stream");
        }
        to.send_data(Bytes::new(), true).expect("an open stream");

        let response = in_time(answer).await.expect("an answer");

        let body = in_time(response.into_body().data()).await.expect("a body").expect("no error");
        assert_eq!(body, (MESSAGES * 20).to_string());
    }
}

#[tokio::test]
async fn empty_frames_of_one_stream_after_another_end_no_hop() {
    let address = application(|(request, mut respond)| async move {
        let read = read_all(request.into_body()).await.expect("a whole body");
        let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
        for _ in 0..5 {
            body.send_data(Bytes::new(), false).expect("an open stream");
        }
        let _ = body.send_data(read.to_string().into(), true);
    })
    .await;
    let crossing = crossing(address);
    for round in 0..15 {
        let (answer, mut to) = caller(crossing.here.address).await.send_request(post(), false).expect("open");
        for _ in 0..20 {
            to.send_data(Bytes::new(), false).expect("an open stream");
        }
        to.send_data("four".into(), true).expect("an open stream");

        let response = in_time(answer).await.unwrap_or_else(|error| panic!("round {round}: {error}"));

        let body = in_time(response.into_body().data()).await.expect("a body").expect("no error");
        assert_eq!((body, crossing.hops()), (Bytes::from_static(b"4"), 1), "round {round}");
    }
}

/// What is done to streams beside a bystander, and how many of them at a time.
async fn beside_a_bystander<F, G>(
    answer: impl Fn(Asked) -> F + Clone + Send + Sync + 'static,
    ask: impl Fn(SendRequest<Bytes>) -> G,
) where
    F: Future<Output = ()> + Send + 'static,
    G: Future<Output = ()> + Send + 'static,
{
    let (end, ended) = watch::channel(false);
    let address = application(move |(request, respond)| {
        let (stays, ended, answer) = (request.uri().path() == "/stays", ended.clone(), answer.clone());
        async move { if stays { stay(respond, ended).await } else { answer((request, respond)).await } }
    })
    .await;
    let crossing = crossing(address);
    let stays = bystander(&mut caller(crossing.here.address).await).await;
    for wave in 0..20 {
        // Each wave is a caller of its own: what is too much for one connection is not looked at here.
        let sender = caller(crossing.here.address).await;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..100 {
            streams.spawn(ask(sender.clone()));
        }
        in_time(streams.join_all()).await;
        assert_eq!(crossing.hops(), 1, "wave {wave}");
    }
    end.send_replace(true);

    assert_eq!(read_all(stays).await.expect("it was left alone"), 5);
    assert_eq!(crossing.hops(), 1);
}

#[tokio::test]
async fn answers_that_are_given_up_end_no_hop() {
    let pour = |(_, mut respond): Asked| async move {
        let mut body: SendStream<Bytes> = respond.send_response(Response::new(()), false).expect("open");
        while body.send_data(Bytes::from_static(&[1; 1_000]), false).is_ok() {
            body.reserve_capacity(1_000);
            if poll_fn(|cx| body.poll_capacity(cx)).await.is_none() {
                break;
            }
        }
    };
    beside_a_bystander(pour, |mut sender| async move {
        let (answer, mut to) = sender.send_request(post(), true).expect("an open connection");
        let mut body = in_time(answer).await.expect("an answer").into_body();
        in_time(body.data()).await.expect("data").expect("no error");
        to.send_reset(Reason::CANCEL);
    })
    .await;
}

#[tokio::test]
async fn bodies_that_nobody_waits_for_end_no_hop() {
    let refuse = |(_, mut respond): Asked| async move {
        let answer = Response::builder().status(413).body(()).expect("a head");
        let _ = respond.send_response(answer, true);
    };
    beside_a_bystander(refuse, |mut sender| async move {
        let (answer, mut to) = sender.send_request(post(), false).expect("an open connection");
        while to.send_data(Bytes::from_static(&[1; 10_000]), false).is_ok() {
            to.reserve_capacity(10_000);
            if !matches!(poll_fn(|cx| to.poll_capacity(cx)).await, Some(Ok(_))) {
                break;
            }
        }
        assert_eq!(in_time(answer).await.expect("an answer").status(), StatusCode::PAYLOAD_TOO_LARGE);
    })
    .await;
}

/// After so long without room, the application is known not to read.
const STILL: Duration = Duration::from_millis(500);
/// Sends for as long as there is room, and counts what it sent.
async fn pour(mut body: SendStream<Bytes>, poured: Arc<AtomicUsize>) {
    loop {
        body.reserve_capacity(10_000);
        let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
        let sent = room.min(10_000);
        if body.send_data(Bytes::from_static(&[1; 10_000]).slice(..sent), false).is_err() {
            return;
        }
        poured.fetch_add(sent, Ordering::Relaxed);
    }
}

/// Waits until nothing more is poured.
async fn stands_still(poured: &AtomicUsize) {
    let mut before = 0;
    let stands = async {
        loop {
            tokio::time::sleep(STILL).await;
            let now = poured.load(Ordering::Relaxed);
            if now == before && now > 0 {
                return;
            }
            before = now;
        }
    };
    in_time(stands).await;
}

#[tokio::test]
async fn callers_that_read_nothing_hold_up_no_other() {
    let poured = Arc::<AtomicUsize>::default();
    let counted = poured.clone();
    let address = application(move |(request, mut respond)| {
        let (pours, counted) = (request.uri().path() == "/pours", counted.clone());
        async move {
            let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
            if pours {
                pour(body, counted).await;
            } else {
                let _ = body.send_data("ok".into(), true);
            }
        }
    })
    .await;
    let crossing = crossing(address);
    let mut held = Vec::new();
    for _ in 0..12 {
        let mut sender = caller(crossing.here.address).await;
        let request = Request::get("http://reviews/pours").body(()).expect("a request");
        let (answer, _) = sender.send_request(request, true).expect("an open connection");
        held.push((sender, in_time(answer).await.expect("an answer")));
    }
    stands_still(&poured).await;

    let (answer, _) = caller(crossing.here.address).await.send_request(post(), true).expect("open");
    let body = in_time(answer).await.expect("an answer").into_body();

    assert_eq!(read_all(body).await.expect("a whole body"), 2);
    assert_eq!(crossing.hops(), 1);
}

#[tokio::test]
async fn bodies_that_nobody_reads_hold_up_no_other() {
    let address = application(|(request, mut respond)| async move {
        if request.uri().path() == "/stays" {
            let _unread = request;
            std::future::pending::<()>().await;
        } else {
            let read = read_all(request.into_body()).await.expect("a whole body");
            let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
            let _ = body.send_data(read.to_string().into(), true);
        }
    })
    .await;
    let crossing = crossing(address);
    let poured = Arc::<AtomicUsize>::default();
    let mut held = Vec::new();
    for _ in 0..12 {
        let mut sender = caller(crossing.here.address).await;
        let request = Request::post("http://reviews/stays").body(()).expect("a request");
        let (answer, to) = sender.send_request(request, false).expect("an open connection");
        meshd::task::spawn("test", pour(to, poured.clone()));
        held.push((sender, answer));
    }
    stands_still(&poured).await;

    let (answer, mut to) = caller(crossing.here.address).await.send_request(post(), false).expect("open");
    to.send_data(Bytes::from_static(&[1; 1_000]), true).expect("an open stream");

    let body = in_time(answer).await.expect("an answer").into_body().data().await;
    assert_eq!(body.expect("a body").expect("no error"), "1000");
}

const MESSAGES: usize = 50_000;
const LIMIT: Duration = Duration::from_secs(20);
