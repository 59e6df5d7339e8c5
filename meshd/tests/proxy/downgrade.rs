//! Requests of HTTP/2 on their way into HTTP/1, where a line end, a blank or a second length would mean something: what
//! could become another request is refused, and the rest is written so that it has one meaning.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::bad_frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Told, ask, block, frame};
use super::care::to_address;
use super::lab::*;

/// An application that keeps every byte it is sent, and answers as soon as a head is there.
async fn keeping() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let kept = Arc::<Mutex<Vec<u8>>>::default();
    let keep = kept.clone();
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let keep = keep.clone();
            meshd::task::spawn("test", async move {
                let (mut buffer, mut answered) = ([0; 4096], false);
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let is_head = {
                        let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.extend_from_slice(&buffer[..count]);
                        kept.windows(4).any(|four| four == b"\r\n\r\n")
                    };
                    if is_head && !answered {
                        answered = true;
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    (address, kept)
}

fn text(kept: &Arc<Mutex<Vec<u8>>>) -> String {
    String::from_utf8_lossy(&kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// A POST with these fields in the place of the usual ones.
fn post(fields: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
    let kept = usual.iter().filter(|(name, _)| !fields.iter().any(|(other, _)| other == name));
    // Pseudo-headers come first.
    let (pseudo, plain): (Vec<_>, Vec<_>) = fields.iter().partition(|(name, _)| name.starts_with(':'));
    let all: Vec<(&str, &str)> =
        kept.copied().chain(pseudo.into_iter().copied()).chain(plain.into_iter().copied()).collect();
    block(&all)
}

fn with_body(fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, 1, &post(fields)), frame(DATA, END_STREAM, 1, body.as_bytes())].concat()
}

#[tokio::test]
async fn what_could_become_another_request_is_refused() {
    let (address, kept) = keeping().await;
    let lab = to_address(address);
    let second = "/ HTTP/1.1\r\nHost: evil\r\n\r\nGET /evil";
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("a request in the path", vec![(":path", second)]),
        ("a blank in the path", vec![(":path", "/a b")]),
        ("a line end in the path", vec![(":path", "/a\nb")]),
        ("NUL in the path", vec![(":path", "/a\0b")]),
        ("a request in the method", vec![(":method", "GET / HTTP/1.1\r\n\r\nGET")]),
        ("a blank in the method", vec![(":method", "GET /evil")]),
        ("a line end in the authority", vec![(":authority", "a\r\nx-evil: 1")]),
        ("a user in the authority", vec![(":authority", "a@reviews")]),
        ("a slash in the authority", vec![(":authority", "reviews/evil")]),
        ("a line end in the scheme", vec![(":scheme", "http\r\nx-evil: 1")]),
        ("another scheme", vec![(":scheme", "gopher")]),
        ("a line end in a value", vec![("x-a", "b\r\nx-evil: 1")]),
        ("a bare LF in a value", vec![("x-a", "b\nx-evil: 1")]),
        ("a bare CR in a value", vec![("x-a", "b\rc")]),
        ("NUL in a value", vec![("x-a", "b\0c")]),
        ("a colon in a name", vec![("x-a: b\r\nx-evil", "1")]),
        ("a blank in a name", vec![("x a", "1")]),
        ("an empty name", vec![("", "1")]),
        ("transfer-encoding", vec![("transfer-encoding", "chunked")]),
        ("connection", vec![("connection", "content-length")]),
        ("upgrade", vec![("upgrade", "websocket")]),
        ("keep-alive", vec![("keep-alive", "1")]),
        ("proxy-connection", vec![("proxy-connection", "close")]),
        ("a length that is none", vec![("content-length", "+3")]),
        ("a list of lengths", vec![("content-length", "3, 3")]),
        ("the same length twice", vec![("content-length", "3"), ("content-length", "3")]),
        ("two lengths", vec![("content-length", "3"), ("content-length", "4")]),
        ("an authority and another Host", vec![("host", "evil")]),
    ];
    for (name, fields) in cases {
        let got = ask(&lab, &with_body(&fields, "abc")).await;
        let is_400 =
            |head: &[u8]| head.first() == Some(&0x8c) || String::from_utf8_lossy(head).contains("400");
        let refused = match &got {
            Told::Reset(_) | Told::Goaway(_) | Told::Closed => true,
            Told::Answer(head) => is_400(head),
            Told::Nothing => false,
        };
        assert!(refused, "{name}: {got:?}");
        assert_eq!(text(&kept), "", "{name}");
    }
}

#[tokio::test]
async fn a_request_has_one_length_and_one_meaning() {
    for (name, fields, body, ends) in [
        ("no length", vec![], "abc", "3\r\nabc\r\n0\r\n\r\n"),
        ("a length", vec![("content-length", "3")], "abc", "\r\n\r\nabc"),
        ("a body that looks like a request", vec![], "GET /evil HTTP/1.1\r\n\r\n", "\r\n0\r\n\r\n"),
    ] {
        let (address, kept) = keeping().await;
        let lab = to_address(address);

        let got = ask(&lab, &with_body(&fields, body)).await;

        assert!(matches!(got, Told::Answer(_)), "{name}: {got:?}");
        until("all of it has arrived", || text(&kept).ends_with(ends)).await;
        let sent = text(&kept);
        let head = sent.split("\r\n\r\n").next().unwrap_or_default();
        let framing = head
            .lines()
            .filter(|line| line.starts_with("content-length:") || line.starts_with("transfer-encoding:"));
        assert_eq!(framing.count(), 1, "{name}: {sent:?}");
        assert_eq!(head.lines().filter(|line| line.starts_with("host:")).count(), 1, "{name}: {sent:?}");
    }
}

#[tokio::test]
async fn a_get_keeps_its_body_whether_its_length_is_known_or_not() {
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        let (address, kept) = keeping().await;
        let lab = to_address(address);
        let sent = format!(
            "{method} / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        );
        let mut stream = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
        tokio::io::AsyncWriteExt::write_all(&mut stream, sent.as_bytes()).await.expect("open");
        until("its body arrives", || text(&kept).ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n")).await;
        assert!(text(&kept).contains("transfer-encoding: chunked\r\n"), "{method}: {}", text(&kept));
    }
    let (address, kept) = keeping().await;
    let lab = to_address(address);
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
    let frames = [frame(HEADERS, END_HEADERS, 1, &block(&get)), frame(DATA, END_STREAM, 1, b"abc")].concat();

    let got = ask(&lab, &frames).await;

    assert!(matches!(got, Told::Answer(_)), "{got:?}");
    assert!(text(&kept).ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{}", text(&kept));
}

#[tokio::test]
async fn a_request_without_a_body_says_so_where_one_is_expected() {
    for (method, says) in
        [("POST", true), ("PUT", true), ("OPTIONS", true), ("GET", false), ("DELETE", false)]
    {
        let (address, kept) = keeping().await;
        let lab = to_address(address);

        let got =
            ask(&lab, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &post(&[(":method", method)]))).await;

        assert!(matches!(got, Told::Answer(_)), "{method}: {got:?}");
        let sent = text(&kept);
        assert_eq!(sent.contains("\r\ncontent-length: 0\r\n"), says, "{sent:?}");
        assert!(!sent.contains("transfer-encoding"), "{sent:?}");
    }
}

#[tokio::test]
async fn crumbs_of_a_cookie_become_one_line() {
    let (address, kept) = keeping().await;
    let lab = to_address(address);

    let got = ask(&lab, &with_body(&[("cookie", "a=1"), ("cookie", "b=2")], "abc")).await;

    assert!(matches!(got, Told::Answer(_)), "{got:?}");
    assert!(text(&kept).contains("\r\ncookie: a=1; b=2\r\n"), "{}", text(&kept));
}
