//! Connections of callers that doze between requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use meshd::proxy::{Declared, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::lab::*;
use super::plan::*;

/// Sends a piece of a request and reads until the answer ends so.
async fn exchange(stream: &mut TcpStream, sent: &[u8], end: &[u8]) -> Vec<u8> {
    stream.write_all(sent).await.expect("open");
    let mut read = Vec::new();
    while !read.ends_with(end) {
        assert!(stream.read_buf(&mut read).await.expect("bytes") > 0, "{}", String::from_utf8_lossy(&read));
    }
    read
}

async fn dozes(lab: &Lab) {
    let count = || lab.stats.total(|all| all.dozing_connections.load(Ordering::Relaxed));
    until("it dozes", || count() == 1).await;
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: reviews\r\n\r\n";
const UPGRADE: &[u8] =
    b"GET /a HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_connection_serves_on_after_dozing() {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    exchange(&mut stream, GET, b"v1").await;

    dozes(&lab).await;
    exchange(&mut stream, GET, b"v1").await;
    dozes(&lab).await;
    // The first byte alone wakes it.
    stream.write_all(&GET[..1]).await.expect("open");
    until("it is awake", || lab.stats.total(|all| all.dozing_connections.load(Ordering::Relaxed)) == 0).await;
    exchange(&mut stream, &[&GET[1..], GET].concat(), b"v1").await;
    until("both were answered", || backend.hits() == 4).await;
    dozes(&lab).await;
    exchange(&mut stream, UPGRADE, b"\r\n\r\n").await;
    assert_eq!(exchange(&mut stream, b"ping", b"ping").await, b"ping");
}

#[tokio::test]
async fn a_dozing_connection_is_closed_when_draining_begins_or_it_was_idle_for_too_long() {
    let backend = Backend::http1("v1").await;
    for drains in [false, true] {
        let idle_timeout = if drains { Settings::default().idle_timeout } else { Duration::from_secs(3) };
        let routes = vec![simple(cluster("reviews", vec![local(backend.address)]))];
        let settings = Settings { idle_timeout, ..settings() };
        let lab =
            start_with(plan(vec![("reviews", routes)]), service(Declared::Http), settings, &no_credentials());
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        exchange(&mut stream, GET, b"v1").await;
        dozes(&lab).await;

        if drains {
            assert_eq!(lab.proxy.drain(Duration::from_secs(8)).await, 0);
        }

        assert_eq!(stream.read(&mut [0; 8]).await.expect("an orderly end"), 0, "{drains}");
    }
}
