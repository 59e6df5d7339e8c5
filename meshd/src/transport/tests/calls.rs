//! Control traffic: calls and streams over TCP and QUIC.

use tokio::task::JoinHandle;

use super::*;
use crate::transport::control::Delivery;

/// Answers every frame of every control stream with itself, on a port over TCP, and over QUIC if there is one.
fn echo(mut tcp: Listener, mut quic: Option<QuicListener>) -> JoinHandle<()> {
    async fn answer(mut frames: FrameStream) {
        while let Ok(Some(frame)) = frames.recv().await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
    crate::task::spawn("echo", async move {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = tcp.accept() => accepted,
                accepted = async { quic.as_mut().expect("guarded").accept().await }, if quic.is_some() => accepted,
            };
            if let Ok(Accepted::Control(peer, _, frames)) = accepted {
                assert!(peer.identity.is_some_and(|identity| identity.is_host()));
                tasks.spawn(answer(frames));
            }
        }
    })
}

/// An echoing peer, reached by TCP alone or by QUIC, too, and where it is.
fn echoing_host(mesh: &Mesh, transport: Transport) -> (SocketAddr, JoinHandle<()>) {
    let serving = reviews_host(mesh);
    let tcp = tcp(&serving);
    let address = tcp.local_addr().unwrap();
    let quic =
        (transport == Transport::Quic).then(|| quic(&serving, address.port(), &QuicOptions::default()));
    (address, echo(tcp, quic))
}

/// A client of an echoing peer.
fn echoing(transport: Transport) -> (ControlClient, JoinHandle<()>) {
    let mesh = Mesh::new();
    let (address, peer) = echoing_host(&mesh, transport);
    let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, Expect::AnyHost);
    (client, peer)
}

#[tokio::test]
async fn a_call_over_quic_comes_back() {
    let (client, _peer) = echoing(Transport::Quic);
    let answer = client.call(Service::Api, Bytes::from_static(b"ping"), LIMIT).await.unwrap();
    assert_eq!(answer, "ping");
}

#[tokio::test]
async fn where_udp_does_not_answer_calls_go_over_tcp_and_that_is_remembered() {
    let mesh = Mesh::new();
    let listener = tcp(&reviews_host(&mesh));
    let address = listener.local_addr().unwrap();
    // Takes every datagram and answers none, as a firewall does.
    let wall = socket::bind_udp(address, socket::Share::Alone).unwrap();
    let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, Expect::AnyHost);
    let _peer = echo(listener, None);
    for body in ["one", "two", "three"] {
        assert_eq!(client.call(Service::Api, Bytes::from(body), LIMIT).await.unwrap(), body);
    }
    // Each attempt to connect has a connection id of its own (RFC 9000, section 17.2).
    let mut attempts = std::collections::BTreeSet::new();
    let mut datagram = [0; 2048];
    while let Ok(length) = wall.recv(&mut datagram) {
        let id_end = 6 + usize::from(datagram[5]);
        attempts.insert(datagram[6..id_end.min(length)].to_vec());
    }
    assert_eq!(attempts.len(), 1);
}

#[tokio::test]
async fn where_nobody_listens_on_udp_a_call_goes_over_tcp() {
    let (client, _peer) = echoing(Transport::Tcp);
    assert_eq!(client.call(Service::Api, Bytes::from_static(b"one"), LIMIT).await.unwrap(), "one");
}

#[tokio::test]
async fn sixty_four_calls_at_once_each_get_their_own_answer() {
    for transport in BOTH {
        let (client, _peer) = echoing(transport);
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..64u32 {
            let client = client.clone();
            calls.spawn(async move {
                let body = Bytes::copy_from_slice(&number.to_be_bytes());
                let answer = client.call(Service::Raft, body.clone(), LIMIT).await.unwrap();
                assert_eq!(answer, body);
            });
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test]
async fn a_large_frame_passes_and_a_too_large_one_is_refused_before_it_is_sent() {
    for transport in BOTH {
        let (client, _peer) = echoing(transport);
        let body = Bytes::from(vec![7; 20 << 20]);
        let answer = client.call(Service::Watch, body.clone(), LIMIT).await.unwrap();
        assert!(answer == body, "{transport:?}");
        let refused = client.call(Service::Api, body, LIMIT).await.unwrap_err();
        assert!(matches!(refused, CallError::TooLong(_)), "{refused}");
        assert_eq!(refused.delivery(), Delivery::No);
    }
}

#[tokio::test]
async fn an_open_stream_carries_frames_both_ways() {
    for transport in BOTH {
        let (client, _peer) = echoing(transport);
        let mut stream = client.open(Service::Watch, Bytes::from_static(b"first")).await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), "first");
        stream.send(Bytes::from_static(b"second")).await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), "second");
        stream.finish().await.unwrap();
        assert!(stream.recv().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_call_to_nobody_says_that_nothing_was_delivered() {
    let mesh = Mesh::new();
    let address = tcp(&reviews_host(&mesh)).local_addr().unwrap();
    let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, Expect::AnyHost);
    let error = client.call(Service::Api, Bytes::new(), LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{address} refused the connection"));
    assert_eq!(error.delivery(), Delivery::No);
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up_in_time() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let mut listener = tcp(&serving);
    let client = ControlClient::new(
        dialer(&credentials(&mesh, "1", &[])),
        listener.local_addr().unwrap(),
        Expect::AnyHost,
    );
    let call = client.call(Service::Api, Bytes::from_static(b"?"), Duration::from_secs(1));
    let (error, _held) = tokio::join!(call, listener.accept());
    let error = error.unwrap_err();
    assert!(matches!(error, CallError::TimedOut { .. }), "{error}");
    assert_eq!(error.delivery(), Delivery::Maybe);
}

#[tokio::test]
async fn a_control_call_to_another_host_than_expected_fails_with_both_names() {
    for transport in BOTH {
        let mesh = Mesh::new();
        let (address, _peer) = echoing_host(&mesh, transport);
        let expect = Expect::Identity(host("9"));
        let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, expect);
        let error = client.call(Service::Api, Bytes::new(), LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("host/2") && error.contains("host/9"), "{error}");
    }
}

#[tokio::test]
async fn a_workload_may_not_use_the_control_plane_and_nothing_counts_as_delivered() {
    for transport in BOTH {
        let mesh = Mesh::new();
        let (address, _peer) = echoing_host(&mesh, transport);
        let calling = credentials(&mesh, "1", &["productpage"]);
        calling.set_host(&workload("productpage"));
        let client = ControlClient::new(dialer(&calling), address, Expect::AnyHost);
        let error = client.call(Service::Api, Bytes::new(), LIMIT).await.unwrap_err();
        assert_eq!(error.delivery(), Delivery::No, "{error}");
        assert!(error.to_string().contains("refuses this host"), "{error}");
    }
}

#[tokio::test]
async fn a_restarted_peer_is_reached_again_at_once() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let options = QuicOptions { reset_secret: Some(Secret::new(vec![7; 32])) };
    let listener = tcp(&serving);
    let address = listener.local_addr().unwrap();
    let peer = echo(listener, Some(quic(&serving, address.port(), &options)));
    let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, Expect::AnyHost);
    client.call(Service::Raft, Bytes::from_static(b"one"), LIMIT).await.unwrap();
    peer.abort();
    let _ = peer.await;
    let socket = loop {
        // The port is free as soon as the last task of the old endpoint has ended.
        match socket::bind_udp(address, socket::Share::Alone) {
            Ok(socket) => break socket,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let again = QuicListener::new(socket, &serving, &options).unwrap();
    let _peer = echo(tcp(&serving), Some(again));
    let started = std::time::Instant::now();
    loop {
        let call = client.call(Service::Raft, Bytes::from_static(b"two"), Duration::from_secs(5)).await;
        if call.is_ok() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(4), "{call:?}");
    }
}
