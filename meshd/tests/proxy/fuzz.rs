//! Bytes by chance against the entrance of HTTP/1 and HTTP/2: nothing panics, memory stays, others are served.
//!
//! The functions behind those entrances are fuzzed by themselves in `fuzz`, where it is said how to run all for longer.

use std::time::{Duration, Instant};

use meshd::proxy::{Declared, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use super::plan::*;
use crate::fuzz::{resident_kib, wanted};

const HTTP1: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"HTTP/1.1",
    b"Host: reviews\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"hello",
    b"\0",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"\xff\xfe",
    b"Content-Length: 99999999999\r\n",
    b"X: y\r\n",
    b"HEAD /x HTTP/1.0\r\n",
    b"Trailer: x\r\n",
    b"fffffff\r\n",
];

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HTTP2: &[&[u8]] = &[
    b"\0\0\x05\x01\x05\0\0\0\x01\x82\x84\x86\x41\x00",
    b"\0\0\x03\x01\x04\0\0\0\x01\x82\x84\x86",
    b"\0\0\x08\x06\0\0\0\0\0abcdefgh",
    b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff",
    b"\0\0\x05\0\0\0\0\0\x01hello",
    b"\0\0\x00\x09\x04\0\0\0\x01",
    b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff",
    b"\0\0\0\x04\x01\0\0\0\0",
    b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\0\x01",
    b"\xff\xff\xff\x00\0\0\0\0\x01",
    b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"\0\0\x11\x01\x05\0\0\0\x03\x82\x84\x86\x41\x07reviews\x40\x01x\x01y",
];

/// A message of parts, some of its octets changed.
fn message(rng: &mut fastrand::Rng, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..rng.usize(1..20)).flat_map(|_| parts[rng.usize(..parts.len())].to_vec()).collect();
    for _ in 0..rng.usize(0..4) {
        let at = rng.usize(..bytes.len());
        match rng.u8(0..3) {
            0 => bytes[at] = rng.u8(..),
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, rng.u8(..)),
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

async fn fuzz(parts: &[&[u8]], start: &[u8]) {
    let (long, seed) = wanted();
    eprintln!("seed {seed:#x}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let settings = Settings { head_timeout: Duration::from_secs(1), ..settings() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let mut other = Client::new(lab.address).await;
    other.get("/").await;
    let (began, before, mut rounds) = (Instant::now(), resident_kib(), 0_u64);
    let mut scratch = vec![0; 16 * 1024];
    while began.elapsed() < long {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        let bytes = [start, &message(&mut rng, parts)].concat();
        let cut = rng.usize(..=bytes.len());
        let _ = stream.write_all(&bytes[..cut]).await;
        tokio::task::yield_now().await;
        let _ = stream.write_all(&bytes[cut..]).await;
        // Whatever is answered at once.
        let _ = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut scratch)).await;
        rounds += 1;
        if rounds % 200 == 0 {
            assert_eq!(other.get("/").await.status.as_u16(), 200, "round {rounds}");
        }
    }
    assert_eq!(other.get("/").await.status.as_u16(), 200);
    let grown = resident_kib().saturating_sub(before);
    eprintln!("{rounds} connections, {grown} KiB more");
    assert!(rounds > 100, "{rounds}");
    assert!(grown < 64 * 1024, "{grown} KiB more after {rounds} connections");
    let rows = lab.stats.snapshot();
    let sent: u64 = rows.iter().map(|row| row.requests + row.retries).sum();
    assert!(backend.hits() as u64 <= sent, "{} requests arrived, {sent} were sent", backend.hits());
    assert_eq!(lab.proxy.drain(Duration::from_secs(8)).await, 0);
}

#[tokio::test]
async fn any_bytes_leave_http1_standing() {
    fuzz(HTTP1, b"").await;
}

#[tokio::test]
async fn any_frames_leave_http2_standing() {
    fuzz(HTTP2, PREFACE).await;
}
