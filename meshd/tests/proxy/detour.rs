//! TCP through an HTTP proxy on the way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{Detour, PortTable};
use meshd::proxy::Declared;
use tokio::net::TcpListener;

use super::lab::*;
use super::plan::*;
use super::tcp::{echo, talk};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// What a proxy was asked: method and target.
type Asked = Arc<Mutex<Vec<(Method, String)>>>;

/// An HTTP proxy that leads to one place by `CONNECT`, sends the body of a `POST` back, and refuses `no.example.com`.
async fn proxy(http2: bool, to: SocketAddr) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let (address, asked) = (listener.local_addr().expect("an address"), Asked::default());
    let seen = asked.clone();
    meshd::task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            let service = service_fn(move |request| {
                std::future::ready(Ok::<_, hyper::Error>(answer(request, to, &seen)))
            });
            meshd::task::spawn("test", async move {
                let io = TokioIo::new(stream);
                if http2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(io, service).await;
                } else {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(io, service).with_upgrades().await;
                }
            });
        }
    });
    (address, asked)
}

fn answer(request: Request<Incoming>, to: SocketAddr, asked: &Asked) -> Answer {
    let host = request.headers().get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
    let target = request.uri().authority().map(ToString::to_string).or(host).unwrap_or_default();
    asked.lock().unwrap_or_else(PoisonError::into_inner).push((request.method().clone(), target.clone()));
    if target.starts_with("no.") {
        let mut refused = Response::new(Empty::new().map_err(|never| match never {}).boxed());
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return refused;
    }
    if request.method() == Method::POST {
        return Response::new(request.into_body().boxed());
    }
    meshd::task::spawn("test", async move {
        let mut caller = TokioIo::new(hyper::upgrade::on(request).await.expect("a tunnel"));
        let mut there = tokio::net::TcpStream::connect(to).await.expect("a connection");
        let _ = tokio::io::copy_bidirectional(&mut caller, &mut there).await;
    });
    Response::new(Empty::new().map_err(|never| match never {}).boxed())
}

fn by(proxy: SocketAddr, authority: &str, post: bool, http2: bool) -> Lab {
    let mut cluster = cluster("db", vec![local(proxy)]);
    cluster.detour = Some(Box::new(Detour { authority: authority.to_owned(), post, http2 }));
    let table =
        PortTable { number: PORT, tcp: Some(tcp_service(vec![to(1, cluster)])), ..PortTable::default() };
    start_with(with_table(table), service(Declared::Tcp), settings(), &no_credentials())
}

#[tokio::test]
async fn connect_leads_to_the_target_over_either_http() {
    for http2 in [false, true] {
        let db = echo("hello").await;
        let (proxy, asked) = proxy(http2, db).await;
        let lab = by(proxy, "db.example.com:5432", false, http2);
        let sent = vec![7; 200_000];

        assert!(talk(lab.address, "hello", &sent).await == sent);

        let asked = asked.lock().expect("sound").clone();
        assert_eq!(asked, [(Method::CONNECT, "db.example.com:5432".to_owned())]);
    }
}

#[tokio::test]
async fn a_post_carries_both_directions() {
    for http2 in [false, true] {
        let (proxy, asked) = proxy(http2, nobody()).await;
        let lab = by(proxy, "db.example.com:5432", true, http2);
        let sent = vec![9; 200_000];

        assert!(talk(lab.address, "", &sent).await == sent);

        let asked = asked.lock().expect("sound").clone();
        assert_eq!(asked, [(Method::POST, "db.example.com:5432".to_owned())]);
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_closes_the_connection() {
    let (proxy, _) = proxy(false, nobody()).await;
    let lab = by(proxy, "no.example.com:1", false, false);

    assert_eq!(bytes(lab.address, b"x").await, "");
}
