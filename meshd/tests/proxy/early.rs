//! What comes before an answer, and what never comes: informational answers over either HTTP and across hops, requests
//! that their caller gives up.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use mesh_core::plan::UpstreamProtocol;
use mesh_proto::registration::Protocol;
use meshd::transport::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::care::{HINTED, read_head, read_until, scripted, to_address};
use super::hop::{Authority, destination, over_mesh, source};
use super::lab::*;
use super::plan::*;
use super::streams::caller;

/// An application of HTTP/2 that says something before it answers.
async fn hinting(early: StatusCode) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            meshd::task::spawn("test", async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_request, mut respond))) = connection.accept().await {
                    let hint =
                        Response::builder().status(early).header("link", "</a>").body(()).expect("a head");
                    respond.send_informational(hint).expect("an open stream");
                    let mut body = respond.send_response(Response::new(()), false).expect("an open stream");
                    body.send_data("ok".into(), true).expect("an open stream");
                }
            });
        }
    });
    address
}

/// What an answer over HTTP/2 was preceded by, and the answer.
async fn awaited(mut answer: ResponseFuture) -> (Vec<(u16, String)>, Response<RecvStream>) {
    let mut early = Vec::new();
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(head)) = answer.poll_informational(cx) {
            let head = head.expect("a sound head");
            early.push((head.status().as_u16(), at(head.headers(), "link").to_owned()));
        }
        Pin::new(&mut answer).poll(cx)
    });
    let response =
        tokio::time::timeout(LIMIT, response).await.expect("an answer in time").expect("an answer");
    (early, response)
}

async fn over_http2(address: SocketAddr) -> (Vec<(u16, String)>, StatusCode, Bytes) {
    let request = Request::get("http://reviews/").body(()).expect("a request");
    let (answer, _) = caller(address).await.send_request(request, true).expect("an open connection");
    let (early, response) = awaited(answer).await;
    let status = response.status();
    (early, status, response.into_body().data().await.expect("a body").expect("no error"))
}

async fn over_http1(address: SocketAddr) -> String {
    bytes(address, b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await
}

#[tokio::test]
async fn informational_answers_pass_between_either_http() {
    let (http1, _) = scripted(HINTED.into(), false).await;
    let mut http2 = cluster("reviews", vec![local(hinting(StatusCode::EARLY_HINTS).await)]);
    http2.protocol = UpstreamProtocol::Http2;
    let hint = vec![(103, "</a>".to_owned())];
    for lab in [to_address(http1), start(plan(vec![("*", vec![simple(http2)])]))] {
        let (early, status, body) = over_http2(lab.address).await;
        assert_eq!((early, status, &*body), (hint.clone(), StatusCode::OK, &b"ok"[..]));

        let read = over_http1(lab.address).await;
        assert!(
            read.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"),
            "{read:?}"
        );
    }
}

#[tokio::test]
async fn informational_answers_cross_hops() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let authority = Authority::new();
        let (http1, _) = scripted(HINTED.into(), false).await;
        let http2 = hinting(StatusCode::EARLY_HINTS).await;
        for (application, protocol) in [(http1, Protocol::Http), (http2, Protocol::Http2)] {
            let there = destination(&authority, application, protocol, transport);
            let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);

            let (early, status, _) = over_http2(here.address).await;
            assert_eq!((early, status), (vec![(103, "</a>".to_owned())], StatusCode::OK), "{protocol:?}");
            let read = over_http1(here.address).await;
            assert!(
                read.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 "),
                "{read:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_caller_of_http2_is_told_to_go_on() {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let lab = to_address(listener.local_addr().expect("an address"));
    let request =
        Request::post("http://reviews/").header("expect", "100-continue").body(()).expect("a request");
    let (mut answer, mut to) = caller(lab.address).await.send_request(request, false).expect("open");
    let (mut application, _) = listener.accept().await.expect("a connection");
    let mut read = Vec::new();
    assert!(read_head(&mut application, &mut read).await);
    assert!(String::from_utf8_lossy(&read).contains("expect: 100-continue\r\n"));

    application.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("open");
    // Asked first: waiting for the answer passes over what comes before it.
    let told = poll_fn(|cx| answer.poll_informational(cx));
    let told = tokio::time::timeout(LIMIT, told).await.expect("in time").expect("one").expect("a sound head");
    assert_eq!(told.status(), StatusCode::CONTINUE);
    to.send_data("hi".into(), true).expect("an open stream");
    read_until(&mut application, &mut read, "hi").await;
}

#[tokio::test]
async fn large_heads_cross_hops_both_ways() {
    let large = "a".repeat(59 * 1024);
    let answer =
        format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 2\r\n\r\nok", "b".repeat(80 * 1024));
    for transport in [Transport::Tcp, Transport::Quic] {
        let (authority, (application, _)) = (Authority::new(), scripted(answer.clone().into(), false).await);
        let there = destination(&authority, application, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);

        let got = once(here.address, get("/", &[("x-large", &large)])).await;

        assert_eq!((got.status, got.body.as_str()), (StatusCode::OK, "ok"), "{transport:?}");
        assert_eq!(got.header("x-large").map(str::len), Some(80 * 1024), "{transport:?}");
    }
}

/// Reads to the end, however it comes.
async fn rest(stream: &mut TcpStream, read: &mut Vec<u8>) -> String {
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(read)).await.expect("an end in time");
    String::from_utf8_lossy(read).into_owned()
}

#[tokio::test]
async fn a_request_that_is_given_up_is_never_taken_for_a_whole_one() {
    for (reason, crosses) in [
        (Reason::CANCEL, false),
        (Reason::NO_ERROR, false),
        (Reason::INTERNAL_ERROR, false),
        (Reason::CANCEL, true),
        (Reason::NO_ERROR, true),
    ] {
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let application = listener.local_addr().expect("an address");
        let authority = Authority::new();
        let there = destination(&authority, application, Protocol::Http, Transport::Tcp);
        let lab = if crosses {
            source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp)
        } else {
            to_address(application)
        };
        // Without a length: only its end says that it is complete.
        let request = Request::post("http://reviews/").body(()).expect("a request");
        let mut sender = caller(lab.address).await;
        let (_answer, mut to) = sender.send_request(request, false).expect("an open connection");
        to.send_data("half".into(), false).expect("an open stream");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut read = Vec::new();
        read_until(&mut stream, &mut read, "4\r\nhalf\r\n").await;

        to.send_reset(reason);

        let seen = rest(&mut stream, &mut read).await;
        assert!(seen.ends_with("4\r\nhalf\r\n"), "{reason:?}, across a hop: {crosses}: {seen:?}");
    }
}

const LIMIT: Duration = Duration::from_secs(5);
