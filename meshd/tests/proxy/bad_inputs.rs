//! What the proxy takes from strangers over HTTP/1, octet by octet: each case is a row of the table of bad inputs.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use meshd::proxy::{Declared, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use super::plan::*;

/// A refused input: the rows it stands for, what is sent, the status it gets.
struct Bad(&'static str, String, u16);

fn bad(name: &'static str, sent: impl Into<String>, status: u16) -> Bad {
    Bad(name, sent.into(), status)
}

fn get_with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: reviews\r\n{fields}\r\n")
}

fn post_with(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: reviews\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post_with("Transfer-Encoding: chunked\r\n", body)
}

fn framing() -> Vec<Bad> {
    let length = |value: &str| post_with(&format!("Content-Length: {value}\r\n"), "ab");
    let coding = |value: &str| post_with(&format!("Transfer-Encoding: {value}\r\n"), "0\r\n\r\n");
    vec![
        bad(
            "1 length and chunked",
            post_with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            400,
        ),
        bad(
            "1 chunked and length",
            post_with("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            400,
        ),
        bad("2 two different lengths", post_with("Content-Length: 2\r\nContent-Length: 1\r\n", "ab"), 400),
        bad("3 two equal lengths", post_with("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"), 400),
        bad("3 a list of lengths", length("2, 2"), 400),
        bad("4 length with a plus", length("+2"), 400),
        bad("4 length below zero", length("-1"), 400),
        bad("4 length in hexadecimal", length("0x2"), 400),
        bad("4 empty length", length(""), 400),
        bad("4 length beyond 64 bits", length("18446744073709551618"), 400),
        bad("5 unknown coding", coding("xchunked"), 501),
        bad("5 a coding after chunked", coding("chunked, identity"), 501),
        bad(
            "5 two codings fields",
            post_with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""),
            400,
        ),
        bad("6 a coding before chunked", coding("gzip, chunked"), 501),
        bad("7 vertical tab before chunked", coding("\x0bchunked"), 400),
        bad("7 blank before the colon", post_with("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
        bad(
            "8 chunked in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        bad("9 folded field", get_with("X: a\r\n b\r\n"), 400),
        bad("10 bare LF behind a field", "GET / HTTP/1.1\r\nHost: reviews\nX: a\r\n\r\n", 400),
        bad("10 bare LF at the end", "GET / HTTP/1.1\r\nHost: reviews\r\n\n", 400),
        bad("11 bare CR in a value", get_with("X: a\rb\r\n"), 400),
        bad("11 NUL in a value", get_with("X: a\0b\r\n"), 400),
        bad("16 chunk size 0x2", chunked("0x2\r\nab\r\n0\r\n\r\n"), 400),
        bad("16 empty chunk size", chunked("\r\nab\r\n0\r\n\r\n"), 400),
        bad("16 chunk size beyond 64 bits", chunked("10000000000000002\r\nab\r\n0\r\n\r\n"), 400),
        bad("16 chunk size behind a bare LF", chunked("2\nab\r\n0\r\n\r\n"), 400),
        bad("17 bare LF in an extension", chunked("2;a\nb\r\nab\r\n0\r\n\r\n"), 400),
        bad("17 bare CR in an extension", chunked("2;a\rb\r\nab\r\n0\r\n\r\n"), 400),
        bad("18 extension of 20 kB", chunked(&format!("2;{}\r\nab\r\n0\r\n\r\n", "a".repeat(20_000))), 400),
        bad("19 bad end of a chunk", chunked("2\r\nabc\r\n0\r\n\r\n"), 400),
        bad("19 bare LF behind a chunk", chunked("2\r\nab\n0\r\n\r\n"), 400),
        bad("21 trailers of 200 kB", chunked(&format!("0\r\nX: {}\r\n\r\n", "a".repeat(200_000))), 431),
    ]
}

fn heads() -> Vec<Bad> {
    let line = |line: &str| format!("{line}\r\nHost: reviews\r\n\r\n");
    vec![
        bad("12 no Host", "GET / HTTP/1.1\r\n\r\n", 400),
        bad("13 two Hosts", get_with("Host: ratings\r\n"), 400),
        bad("13 the same Host twice", get_with("Host: reviews\r\n"), 400),
        bad("14 Host with a slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        bad("14 Host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        bad("14 Host with a blank", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        bad("15 target of another scheme", line("GET ftp://reviews/ HTTP/1.1"), 400),
        bad("22 head of 70 kB", get_with(&format!("X: {}\r\n", "a".repeat(70_000))), 431),
        bad("22 head of 500 kB", get_with(&format!("X: {}\r\n", "a".repeat(500_000))), 431),
        bad("23 101 fields", get_with(&"X: y\r\n".repeat(100)), 431),
        bad("24 target of 70 kB", line(&format!("GET /{} HTTP/1.1", "a".repeat(70_000))), 414),
        bad("25 method of 3,000 bytes", line(&format!("{} / HTTP/1.1", "A".repeat(3_000))), 400),
        bad("25 lower-case method", line("get / HTTP/1.1"), 400),
        bad("28 NUL in the path", line("GET /a%00b HTTP/1.1"), 400),
        bad("29 raw non-ASCII in the path", line("GET /\u{e4} HTTP/1.1"), 400),
        bad("31 blank in a name", get_with("X Y: a\r\n"), 400),
        bad("33 HTTP/1.2", line("GET / HTTP/1.2"), 505),
        bad("33 HTTP/2.0 in a line", line("GET / HTTP/2.0"), 505),
        bad("33 HTTP/0.9", "GET /\r\n", 400),
        bad(
            "34 CONNECT where no route allows it",
            "CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n",
            403,
        ),
        bad(
            "37 another upgrade, a request behind it",
            format!("{}{}", get_with("Connection: upgrade\r\nUpgrade: foo\r\n"), get_with("")),
            403,
        ),
        bad(
            "39 Connection names an end-to-end field",
            get_with("Connection: close, X-Forwarded-For, Host\r\n"),
            400,
        ),
        bad("41 unknown expectation", get_with("Expect: 200-ok\r\n"), 417),
        bad("42 a TLS hello where HTTP is declared", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", 400),
        bad("56 a PROXY header", format!("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n{}", get_with("")), 400),
        bad("56 a PROXY header of version 2 with a bad length", "\r\n\r\n\0\r\nQUIT\n!\x11~~", 400),
        bad("43 random bytes where HTTP is declared", "\x01\x02\u{7f}{}\"~~", 400),
    ]
}

/// Sends and reads to the end; `None`: the proxy did not close.
async fn exchange(lab: &Lab, sent: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    // The answer may come, and the connection close, before all of it is sent.
    let _ = stream.write_all(sent).await;
    let mut read = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut read)).await;
    ended.ok().map(|_| String::from_utf8_lossy(&read).into_owned())
}

fn refused(lab: &Lab) -> u64 {
    lab.stats.total(|all| all.refused_requests_total.load(Ordering::Relaxed))
}

async fn lab() -> (Backend, Lab) {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    (backend, lab)
}

#[tokio::test]
async fn each_bad_input_is_refused_once_closed_and_never_sent_on() {
    let (backend, lab) = lab().await;
    for Bad(name, sent, status) in framing().into_iter().chain(heads()) {
        let before = refused(&lab);
        let read = exchange(&lab, sent.as_bytes()).await;
        let read = read.unwrap_or_else(|| panic!("{name}: not closed"));
        assert!(read.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {read:?}");
        assert_eq!(read.matches("HTTP/1.1 ").count(), 1, "{name}: {read:?}");
        assert!(read.contains("connection: close\r\n"), "{name}: {read:?}");
        assert!(read.contains("\r\ndate: "), "{name}: {read:?}");
        assert!(refused(&lab) > before || status == 403, "{name}: not counted");
        assert_eq!(backend.hits(), 0, "{name}: sent on");
    }
}

#[tokio::test]
async fn bad_inputs_in_small_pieces_get_the_same_answers() {
    let (backend, lab) = lab().await;
    for Bad(name, sent, status) in framing().into_iter().chain(heads()).filter(|bad| bad.1.len() < 400) {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        for piece in sent.as_bytes().chunks(3) {
            if stream.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut read = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut read)).await;
        let read = String::from_utf8_lossy(&read);
        assert!(ended.is_ok(), "{name}: not closed; {read:?}");
        assert!(read.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {read:?}");
    }
    // A body is refused where it breaks: by then its head may have been sent on, never the end of the request.
    assert!(backend.seen.lock().expect("no panic").is_empty() || backend.hits() < 20);
}

#[tokio::test]
async fn a_bad_request_behind_a_good_one_is_answered_after_it() {
    let (backend, lab) = lab().await;
    for Bad(name, sent, status) in framing().into_iter().filter(|bad| bad.1.len() < 400) {
        let before = backend.hits();
        let both = format!("{}{sent}", get_with("X-Want-Delay-Ms: 20\r\n"));
        let read = exchange(&lab, both.as_bytes()).await;
        let read = read.unwrap_or_else(|| panic!("{name}: not closed"));
        assert!(read.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {read:?}");
        assert!(read.contains(&format!("HTTP/1.1 {status} ")), "{name}: {read:?}");
        assert_eq!(read.matches("HTTP/1.1 ").count(), 2, "{name}: {read:?}");
        assert_eq!(backend.hits() - before, 1, "{name}: sent on");
    }
}

#[tokio::test]
async fn what_looks_odd_and_is_sound_passes() {
    let (backend, lab) = lab().await;
    let close = "Connection: close\r\n";
    let cases = [
        (
            "15 absolute form wins over Host",
            format!("GET http://ratings/x HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/x",
            "ratings",
        ),
        (
            "26 dots and backslashes are resolved",
            format!("GET /a/../b/%2e%2e/c\\d HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/c/d",
            "reviews",
        ),
        (
            "27 an escaped slash is kept",
            format!("GET /a%2fb HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/a%2fb",
            "reviews",
        ),
        (
            "30 a fragment is cut off",
            format!("GET /a#b HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/a",
            "reviews",
        ),
        (
            "32 X_A beside X-A",
            format!("GET /u HTTP/1.1\r\nHost: reviews\r\nX_A: 1\r\nX-A: 2\r\n{close}\r\n"),
            "/u",
            "reviews",
        ),
        (
            "35 TRACE inside the mesh",
            format!("TRACE /t HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/t",
            "reviews",
        ),
        (
            "36 h2c is served as HTTP/1.1",
            "GET /h HTTP/1.1\r\nHost: reviews\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n".to_owned(),
            "/h",
            "reviews",
        ),
        (
            "an empty line before a request",
            format!("\r\nGET /e HTTP/1.1\r\nHost: reviews\r\n{close}\r\n"),
            "/e",
            "reviews",
        ),
    ];
    for (name, sent, path, host) in cases {
        let read = exchange(&lab, sent.as_bytes()).await.unwrap_or_else(|| panic!("{name}: not closed"));
        assert!(read.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {read:?}");
        let (_, seen, headers) = backend.last();
        assert_eq!((seen.as_str(), at(&headers, "host")), (path, host), "{name}");
        for gone in ["upgrade", "http2-settings", "connection"] {
            assert!(!headers.contains_key(gone), "{name}: {gone}");
        }
    }
    let (_, _, headers) = {
        let sent = format!("GET / HTTP/1.1\r\nHost: reviews\r\nX_A: 1\r\nX-A: 2\r\n{close}\r\n");
        exchange(&lab, sent.as_bytes()).await;
        backend.last()
    };
    assert_eq!((at(&headers, "x_a"), at(&headers, "x-a")), ("1", "2"));
}

#[tokio::test]
async fn trailers_that_frame_or_route_are_dropped_and_counted() {
    let (backend, lab) = lab().await;
    let sent = post_with(
        "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n",
        "2\r\nab\r\n0\r\nContent-Length: 7\r\nHost: other\r\nTE: gzip\r\nX-Sum: 1\r\n\r\n",
    );

    let read = exchange(&lab, sent.as_bytes()).await.expect("a closed connection");

    assert!(read.starts_with("HTTP/1.1 200 OK\r\n"), "{read:?}");
    assert_eq!(at(&backend.last().2, "host"), "reviews");
    let dropped = lab.stats.total(|all| all.dropped_trailers_total.load(Ordering::Relaxed));
    assert_eq!(dropped, 3);
}

#[tokio::test]
async fn forged_words_of_the_mesh_are_stripped() {
    let (backend, lab) = lab().await;
    let sent = get_with(
        "X-Forwarded-Client-Cert: By=spiffe://x\r\nX-Mesh-Instance: other\r\nX-Envoy-Max-Retries: 9\r\nConnection: close\r\n",
    );

    exchange(&lab, sent.as_bytes()).await.expect("a closed connection");

    let (_, _, headers) = backend.last();
    for gone in ["x-forwarded-client-cert", "x-mesh-instance", "x-envoy-max-retries"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_request_behind_a_switch_is_held_until_it_stays_http() {
    let (backend, lab) = lab().await;
    let ask = get_with("Connection: upgrade\r\nUpgrade: websocket\r\nX-Want-Status: 200\r\n");
    let sent = format!("{ask}{}", get_with("X-Second: 1\r\nConnection: close\r\n"));

    let read = exchange(&lab, sent.as_bytes()).await.expect("a closed connection");

    assert_eq!(read.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{read:?}");
    assert_eq!((backend.hits(), at(&backend.last().2, "x-second")), (2, "1"));
    let bad = format!("{ask}GET / HTTP/1.1\nHost: reviews\r\n\r\n");
    let read = exchange(&lab, bad.as_bytes()).await.expect("a closed connection");
    assert!(read.contains("HTTP/1.1 400 ") && backend.hits() == 3, "{read:?}");
}

#[tokio::test]
async fn bytes_behind_a_switch_reach_the_application_once_it_has_switched() {
    let (_backend, lab) = lab().await;
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    let sent = format!("{}early\n\n", get_with("Connection: upgrade\r\nUpgrade: websocket\r\n"));
    stream.write_all(sent.as_bytes()).await.expect("open");

    let mut read = Vec::new();
    while !read.ends_with(b"early\n\n") {
        assert_ne!(stream.read_buf(&mut read).await.expect("open"), 0, "{}", String::from_utf8_lossy(&read));
    }

    assert!(read.starts_with(b"HTTP/1.1 101 "));
}

fn impatient() -> Settings {
    Settings { head_timeout: Duration::from_secs(1), body_timeout: Duration::from_secs(1), ..settings() }
}

#[tokio::test]
async fn slow_callers_are_told_and_cut_in_time() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let lab = start_with(plan, service(Declared::Http), impatient(), &no_credentials());
    let slow_body = post_with("Content-Length: 90\r\n", "abc");
    let after_one = format!("{}GET / HT", get_with(""));
    let cases = [
        ("44 nothing sent", "", ""),
        ("45 the first letters of a method", "GE", "HTTP/1.1 408 "),
        ("45 part of a head", "GET / HTTP/1.1\r\nHost: rev", "HTTP/1.1 408 "),
        ("45 part of a body", slow_body.as_str(), "HTTP/1.1 408 "),
        ("45 part of a head behind a request", after_one.as_str(), "HTTP/1.1 200 "),
    ];
    for (name, sent, expected) in cases {
        let began = Instant::now();
        let read = exchange(&lab, sent.as_bytes()).await.unwrap_or_else(|| panic!("{name}: not closed"));
        let took = began.elapsed();
        assert!(read.starts_with(expected), "{name}: {read:?}");
        assert_eq!(read.is_empty(), expected.is_empty(), "{name}: {read:?}");
        assert!(took > Duration::from_millis(700) && took < Duration::from_secs(4), "{name}: {took:?}");
        assert_eq!(read.contains("HTTP/1.1 408 "), !sent.is_empty(), "{name}: {read:?}");
    }
}

#[tokio::test]
async fn hundreds_of_slow_callers_keep_no_other_from_its_answer() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let lab = start_with(plan, service(Declared::Http), impatient(), &no_credentials());
    let began = Instant::now();
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: rev").await.expect("open");
        slow.spawn(async move {
            let mut read = String::new();
            let _ = stream.read_to_string(&mut read).await;
            read
        });
    }
    let mut client = Client::new(lab.address).await;
    let mut served = 0;
    while began.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(client.get("/").await.status.as_u16(), 200);
        served += 1;
    }

    let told = slow.join_all().await;

    assert!(told.iter().all(|read| read.starts_with("HTTP/1.1 408 ")), "{told:?}");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert!(served > 100, "{served}");
}

#[tokio::test]
async fn a_body_in_time_is_not_slow_and_one_byte_at_a_time_is() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { body_rate: 1_000, ..impatient() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let drip = async |piece: &[u8]| {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        let head = post_with("Content-Length: 4000\r\nConnection: close\r\n", "");
        stream.write_all(head.as_bytes()).await.expect("open");
        let mut beat = tokio::time::interval(Duration::from_millis(50));
        for piece in vec![b'a'; 4_000].chunks(piece.len()) {
            beat.tick().await;
            if stream.write_all(piece).await.is_err() {
                break;
            }
        }
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read).await;
        String::from_utf8_lossy(&read).into_owned()
    };

    let (steady, slow) = tokio::join!(drip(&[0; 100]), drip(&[0; 10]));

    assert!(steady.starts_with("HTTP/1.1 200 "), "{steady:.60}");
    assert!(slow.starts_with("HTTP/1.1 408 ") || slow.is_empty(), "{slow:.60}");
}

#[tokio::test]
async fn a_grpc_stream_may_take_its_time() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let lab = start_with(plan, service(Declared::Http), impatient(), &no_credentials());
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    let head =
        post_with("Content-Type: application/grpc\r\nContent-Length: 4\r\nConnection: close\r\n", "ab");
    stream.write_all(head.as_bytes()).await.expect("open");
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    stream.write_all(b"cd").await.expect("open");
    let mut read = String::new();
    stream.read_to_string(&mut read).await.expect("text");

    assert!(read.starts_with("HTTP/1.1 200 "), "{read:?}");
}
