//! What the proxy takes from strangers over HTTP/2, frame by frame: floods, bad heads, streams out of order.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_proto::registration::Protocol;
use meshd::proxy::{Declared, Settings};
use meshd::transport::Transport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frame_rules::hop;
use super::hop::{Authority, destination, over_mesh, source};
use super::lab::*;
use super::plan::*;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field, neither indexed nor compressed.
pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    let mut bytes = vec![0, length(name)];
    bytes.extend(name.as_bytes());
    bytes.push(length(value));
    bytes.extend(value.as_bytes());
    bytes
}

pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The head of a GET, with more fields.
pub(super) fn get_block(more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
    block(&[&usual, more, &[INSTANCE]].concat())
}

/// What another host asks for; taken off what others send.
pub(super) const INSTANCE: (&str, &str) = ("x-mesh-instance", "reviews-1");

pub(super) fn opening() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

/// How a connection was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A GOAWAY with this code.
    Goaway(u32),
    /// A stream reset with this code.
    Reset(u32),
    /// The first octets of a head: an indexed status, or others.
    Answer(Vec<u8>),
    /// The connection ended.
    Closed,
    /// Nothing, for as long as was waited.
    Nothing,
}

/// Reads frames until one tells something.
async fn told(read: &mut (impl AsyncReadExt + Unpin)) -> Told {
    loop {
        let mut header = [0; 9];
        if read.read_exact(&mut header).await.is_err() {
            return Told::Closed;
        }
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let mut payload = vec![0; length];
        if read.read_exact(&mut payload).await.is_err() {
            return Told::Closed;
        }
        let code = |at: usize| {
            let four = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_be_bytes(four.expect("a code"))
        };
        match header[3] {
            GOAWAY => return Told::Goaway(code(4)),
            RST_STREAM => return Told::Reset(code(0)),
            HEADERS => return Told::Answer(payload),
            _ => {}
        }
    }
}

async fn connect(lab: &Lab) -> TcpStream {
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    stream.write_all(&opening()).await.expect("open");
    stream
}

/// Sends frames and returns what is told first.
pub(super) async fn ask(lab: &Lab, frames: &[u8]) -> Told {
    let mut stream = connect(lab).await;
    stream.write_all(frames).await.expect("open");
    tokio::time::timeout(Duration::from_secs(8), told(&mut stream)).await.expect("something is told")
}

async fn lab() -> (Backend, Lab) {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    (backend, lab)
}

pub(super) const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test]
async fn heads_that_mean_two_things_reset_their_stream() {
    let (backend, lab) = lab().await;
    let usual = |without: &str| -> Vec<(&'static str, &'static str)> {
        let all = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "reviews")];
        all.into_iter().filter(|(name, _)| *name != without).collect()
    };
    let no_slash = [usual(":path"), vec![(":path", "a")]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("48 upper-case name", get_block(&[("X-Upper", "1")])),
        ("48 connection", get_block(&[("connection", "close")])),
        ("48 transfer-encoding", get_block(&[("transfer-encoding", "chunked")])),
        ("48 te: gzip", get_block(&[("te", "gzip")])),
        ("48 doubled path", get_block(&[(":path", "/b")])),
        ("48 unknown pseudo-header", get_block(&[(":other", "1")])),
        ("48 path without a slash", block(&no_slash)),
        ("48 no path", block(&usual(":path"))),
        ("48 empty path", block(&[usual(":path"), vec![(":path", "")]].concat())),
        ("48 no method", block(&usual(":method"))),
        ("48 no scheme", block(&usual(":scheme"))),
    ];
    for (name, head) in cases {
        let got = ask(&lab, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &head)).await;
        assert!(matches!(got, Told::Reset(PROTOCOL_ERROR) | Told::Goaway(PROTOCOL_ERROR)), "{name}: {got:?}");
    }
    assert_eq!(backend.hits(), 0);
}

#[tokio::test]
async fn a_length_that_is_not_the_datas_resets_the_stream() {
    let (_backend, lab) = lab().await;
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "reviews"),
        ("content-length", "5"),
    ]);
    let mut sent = frame(HEADERS, END_HEADERS, 1, &head);
    sent.extend(frame(DATA, END_STREAM, 1, b"abc"));

    let got = ask(&lab, &sent).await;

    assert_eq!(got, Told::Reset(PROTOCOL_ERROR));
}

/// The status of a plain HTTP/2 request with these fields.
async fn status(lab: &Lab, uri: &str, fields: &[(&str, &str)]) -> u16 {
    let mut request = http::Request::builder().uri(uri).version(http::Version::HTTP_2);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Empty::<bytes::Bytes>::new();
    once_http2(lab.address, request.body(body).expect("a request")).await.status.as_u16()
}

#[tokio::test]
async fn the_guard_of_heads_is_the_same_as_for_http1() {
    let (backend, lab) = lab().await;
    let long = format!("http://reviews/{}", "a".repeat(20_000));
    let many: Vec<(String, String)> = (0..101).map(|n| (format!("x-{n}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let large = "a".repeat(70_000);

    assert_eq!(status(&lab, "http://reviews/", &[("host", "ratings")]).await, 400, "49 authority and host");
    assert_eq!(status(&lab, "http://reviews/a%00b", &[]).await, 400, "28");
    assert_eq!(status(&lab, &long, &[]).await, 414, "24");
    assert_eq!(status(&lab, "http://reviews/", &many).await, 431, "23");
    assert_eq!(status(&lab, "http://reviews/", &[("x", &large)]).await, 431, "22");
    assert_eq!(status(&lab, "http://reviews/", &[("expect", "200-ok")]).await, 417, "41");
    assert_eq!(backend.hits(), 0);
    assert_eq!(status(&lab, "http://reviews/", &[("host", "reviews")]).await, 200);
}

/// Sends one thing over and over; returns what is told, and how long after the connection was closed.
async fn flood(
    stream: impl AsyncRead + AsyncWrite,
    first: Vec<u8>,
    again: impl Fn(u32) -> Vec<u8>,
) -> (Told, Duration) {
    let (mut read, mut write) = tokio::io::split(Box::pin(stream));
    let began = Instant::now();
    let mut next = 0_u32;
    let sending = async {
        let _ = write.write_all(&[opening(), first].concat()).await;
        while began.elapsed() < Duration::from_secs(3) {
            let frames: Vec<u8> = (next..next + 50).flat_map(&again).collect();
            next += 50;
            if write.write_all(&frames).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let reading = async {
        // Resets of single streams on the way are no answer to a flood.
        let first = loop {
            match told(&mut read).await {
                Told::Reset(_) | Told::Answer(_) => {}
                other => break other,
            }
        };
        while !matches!(told(&mut read).await, Told::Closed) {}
        first
    };
    let told = tokio::select! {
        told = reading => told,
        () = sending => Told::Nothing,
    };
    (told, began.elapsed())
}

/// Makes the frames of one round.
type Again = Box<dyn Fn(u32) -> Vec<u8>>;

/// What costs its sender little: its name, what comes first, what comes over and over.
fn floods() -> Vec<(&'static str, Vec<u8>, Again)> {
    let whole = |id: u32| frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&[]));
    vec![
        ("47 PING", vec![], Box::new(|_| frame(PING, 0, 0, &[0; 8]))),
        ("47 SETTINGS", vec![], Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("47 SETTINGS of many", vec![], Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0].repeat(100)))),
        ("47 PRIORITY", vec![], Box::new(|_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]))),
        ("unknown frames", vec![], Box::new(|_| frame(77, 0, 0, &[1, 2, 3]))),
        ("WINDOW_UPDATE", vec![], Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        (
            "46 rapid reset",
            vec![],
            Box::new(move |n| [whole(2 * n + 1), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()),
        ),
        (
            "46 CONTINUATION",
            frame(HEADERS, 0, 1, &get_block(&[])),
            Box::new(|_| frame(CONTINUATION, 0, 1, &field("x", "y"))),
        ),
        (
            "46 empty CONTINUATION",
            frame(HEADERS, 0, 1, &get_block(&[])),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
        ),
        (
            "46 empty DATA",
            frame(
                HEADERS,
                END_HEADERS,
                1,
                &block(&[
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/"),
                    (":authority", "reviews"),
                ]),
            ),
            Box::new(|_| frame(DATA, 0, 1, &[])),
        ),
        (
            // One large field in the table, then its index over and over.
            "46 HPACK bomb",
            vec![],
            Box::new(|n| {
                let mut head = get_block(&[]);
                if n == 0 {
                    head.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
                    head.extend([b'a'; 4_000]);
                }
                head.extend([0xbe].repeat(8_000));
                frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &head)
            }),
        ),
        (
            "streams that come and are reset by us",
            vec![],
            Box::new(|n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &get_block(&[("te", "gzip")]))),
        ),
        (
            // "MadeYouReset", CVE-2025-8671: a sound request, then what makes us reset it ourselves.
            "46 streams that we are made to reset",
            vec![],
            Box::new(move |n| {
                let id = 2 * n + 1;
                [whole(id), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat()
            }),
        ),
    ]
}

#[tokio::test]
async fn floods_end_their_connection_within_seconds_and_no_other() {
    let (_backend, lab) = lab().await;
    let mut other = Client::new(lab.address).await;
    for (name, first, again) in floods() {
        let stream = TcpStream::connect(lab.address).await.expect("a connection");
        let (told, took) = flood(stream, first, again).await;
        assert!(
            matches!(told, Told::Goaway(ENHANCE_YOUR_CALM | PROTOCOL_ERROR) | Told::Closed),
            "{name}: {told:?}"
        );
        eprintln!("{name}: {told:?} after {took:?}");
        assert!(took < Duration::from_secs(6), "{name}: {took:?}");
        assert_eq!(other.get("/").await.status.as_u16(), 200, "{name}");
    }
}

#[tokio::test]
async fn floods_of_another_host_end_their_hop_and_no_other() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);
    let mut other = Client::new(here.address).await;
    for (name, first, again) in floods() {
        let (told, took) = flood(hop(&authority, &there).await, first, again).await;
        eprintln!("{name}: {told:?} after {took:?}");
        // Many callers share a hop, so that streams may come and go on it as fast as requests may.
        if !MAY_GO_ON.contains(&name) {
            assert!(
                matches!(told, Told::Goaway(ENHANCE_YOUR_CALM | PROTOCOL_ERROR) | Told::Closed),
                "{name}: {told:?}"
            );
            assert!(took < Duration::from_secs(6), "{name}: {took:?}");
        }
        assert_eq!(other.get("/").await.status.as_u16(), 200, "{name}");
    }
    let opened = here.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed));
    assert_eq!(opened, 1, "the hop of others stays");
}

/// Floods that are as dear as requests are.
const MAY_GO_ON: [&str; 3] =
    ["46 rapid reset", "46 streams that we are made to reset", "streams that come and are reset by us"];

#[tokio::test]
async fn streams_begun_and_given_up_at_once_end_no_connection() {
    let (_backend, lab) = lab().await;
    let burst = |count: u32| -> Vec<u8> {
        let one = |id: u32| {
            let begun = frame(HEADERS, END_STREAM | END_HEADERS, id, &get_block(&[]));
            [begun, frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
        };
        let whole = frame(HEADERS, END_STREAM | END_HEADERS, 2 * count + 1, &get_block(&[]));
        [(0..count).flat_map(|n| one(2 * n + 1)).collect(), whole].concat()
    };
    // A caller that gives up all it had asked for, in one breath: more than the parser would take by itself.
    assert!(matches!(ask(&lab, &burst(100)).await, Told::Answer(_)));

    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let mut hop = hop(&authority, &there).await;
    hop.write_all(&[opening(), burst(2_000)].concat()).await.expect("open");
    hop.flush().await.expect("open");
    let told = tokio::time::timeout(Duration::from_secs(8), told(&mut hop)).await.expect("something is told");
    assert!(matches!(told, Told::Answer(_)), "{told:?}");
}

#[tokio::test]
async fn control_frames_beyond_the_limit_are_answered_with_enhance_your_calm() {
    let (_backend, lab) = lab().await;
    for one in
        [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])]
    {
        let sent = one.repeat(1_200);
        assert_eq!(ask(&lab, &sent).await, Told::Goaway(ENHANCE_YOUR_CALM), "{one:?}");
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    let (backend, lab) = lab().await;
    let mut sent = Vec::new();
    for n in 0..101 {
        sent.extend(frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            2 * n + 1,
            &get_block(&[("x-want-delay-ms", "3000")]),
        ));
    }
    let mut stream = connect(&lab).await;
    stream.write_all(&sent).await.expect("open");
    let got = told(&mut stream).await;

    assert_eq!(got, Told::Reset(REFUSED_STREAM));
    until("the others are under way", || backend.hits() == 100).await;
}

#[tokio::test]
async fn an_open_header_block_is_cut_and_an_idle_connection_is_not() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { head_timeout: Duration::from_secs(1), ..settings() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let mut idle = connect(&lab).await;

    let began = Instant::now();
    let got = ask(&lab, &frame(HEADERS, 0, 1, &get_block(&[]))).await;
    let took = began.elapsed();

    assert_eq!(got, Told::Closed);
    assert!(took > Duration::from_millis(700) && took < Duration::from_secs(4), "{took:?}");
    idle.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &get_block(&[]))).await.expect("open");
    assert!(matches!(told(&mut idle).await, Told::Answer(_)));
}
