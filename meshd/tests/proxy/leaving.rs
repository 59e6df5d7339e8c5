//! A host that leaves QUIC: its hops end in order, callers go over TCP, and return once its successor answers over UDP.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use hyper_util::rt::TokioIo;
use mesh_core::plan::Telling;
use mesh_proto::registration::Protocol;
use meshd::transport::{Transport, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::hop::*;
use super::lab::*;

/// A mesh port of which each answer says what carried it: over UDP `before` a hand-over and `after` it, and `tcp`.
struct Port {
    authority: Authority,
    before: Backend,
    over_udp: Lab,
    over_tcp: Lab,
    udp: std::net::UdpSocket,
}

impl Port {
    async fn open() -> Self {
        let (authority, tcp) = (Authority::new(), Backend::http1("tcp").await);
        let make = || destination(&authority, tcp.address, Protocol::Http, Transport::Tcp);
        let (over_tcp, udp) = walled(make);
        let before = Backend::http1("before").await;
        let over_udp = over_udp(&authority, &before, udp.try_clone().expect("a descriptor"));
        Self { authority, before, over_udp, over_tcp, udp }
    }

    fn caller(&self) -> Lab {
        let endpoint = over_mesh(self.over_tcp.address, "reviews", "reviews-1");
        source(&self.authority, vec![endpoint], Transport::Quic)
    }

    /// The process that takes over: the socket is the same.
    async fn succeed(&self) -> Lab {
        let udp = self.udp.try_clone().expect("a descriptor");
        over_udp(&self.authority, &Backend::http1("after").await, udp)
    }
}

fn over_udp(authority: &Authority, backend: &Backend, udp: std::net::UdpSocket) -> Lab {
    let (plan, credentials) = host_of(authority, backend.address, Protocol::Http, Telling::default());
    start_on_udp(plan, &credentials, udp)
}

/// Requests one after the other, and what answered them.
struct Flow {
    answers: Arc<Mutex<Vec<(StatusCode, String)>>>,
    enough: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Flow {
    fn begin(here: &Lab) -> Self {
        let (answers, enough) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (noted, ends, address) = (answers.clone(), enough.clone(), here.address);
        let task = meshd::task::spawn("test", async move {
            let mut client = Client::new(address).await;
            while !ends.load(Ordering::Relaxed) {
                let answer = client.get("/").await;
                noted.lock().unwrap_or_else(PoisonError::into_inner).push((answer.status, answer.body));
            }
        });
        Self { answers, enough, task }
    }

    /// Waits until requests are answered by it.
    async fn until(&self, name: &str) {
        let is_last = || {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.last().is_some_and(|(_, body)| body == name)
        };
        until(&format!("{name:?} answers"), is_last).await;
    }

    /// Ends it. Returns who answered, one after the other; all must have.
    async fn end(self) -> Vec<String> {
        self.enough.store(true, Ordering::Relaxed);
        self.task.await.expect("every request is answered");
        let answers = std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        let failed: HashSet<_> = answers.iter().filter(|(status, _)| *status != StatusCode::OK).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let mut names: Vec<String> = answers.into_iter().map(|(_, body)| body).collect();
        names.dedup();
        names
    }
}

/// A WebSocket that stays open; what is said comes back.
struct Talk(TokioIo<hyper::upgrade::Upgraded>);

impl Talk {
    async fn begin(here: &Lab) -> Self {
        let asked = get("/", &[("connection", "upgrade"), ("upgrade", "websocket")]);
        let answer = Client::new(here.address).await.raw(asked).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        Self(TokioIo::new(hyper::upgrade::on(answer).await.expect("a tunnel")))
    }

    async fn goes_on(&mut self) {
        let mut said = [0; 5];
        self.0.write_all(b"hello").await.expect("an open tunnel");
        self.0.read_exact(&mut said).await.expect("an open tunnel");
        assert_eq!(&said, b"hello");
    }
}

#[tokio::test]
async fn a_host_that_leaves_quic_loses_no_request_and_is_called_over_quic_again() {
    let port = Port::open().await;
    let here = port.caller();
    let flow = Flow::begin(&here);
    flow.until("before").await;
    let slow = || once(here.address, get("/slow", &[("x-want-delay-ms", "700")]));
    let under_way: Vec<_> = (0..8).map(|_| meshd::task::spawn("test", slow())).collect();
    let are_there = || {
        let seen = port.before.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(_, path, _)| path == "/slow").count() == under_way.len()
    };
    until("the slow ones are under way", are_there).await;

    let began = Instant::now();
    port.over_udp.proxy.leave_quic().await;
    let took = began.elapsed();

    for slow in under_way {
        let answer = slow.await.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "before"));
    }
    assert!(took < Duration::from_secs(4), "hops end when their requests do, they are not cut: {took:?}");
    flow.until("tcp").await;
    let mut on_tcp = Talk::begin(&here).await;
    on_tcp.goes_on().await;

    let _successor = port.succeed().await;
    flow.until("after").await;

    on_tcp.goes_on().await;
    assert_eq!(flow.end().await, ["before", "tcp", "after"]);
}

#[tokio::test]
async fn hops_that_went_over_tcp_since_udp_was_silent_go_over_quic_once_it_is_not() {
    let authority = Authority::new();
    let (tcp, quic) = (Backend::http1("tcp").await, Backend::http1("quic").await);
    let (there, wall) = walled(|| destination(&authority, tcp.address, Protocol::Http, Transport::Tcp));
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Quic);
    let flow = Flow::begin(&here);
    flow.until("tcp").await;

    drop(wall);
    let udp = socket::bind_udp(there.address, socket::Share::Alone).expect("the port is free");
    let _open = over_udp(&authority, &quic, udp);
    flow.until("quic").await;

    assert_eq!(flow.end().await, ["tcp", "quic"]);
}
