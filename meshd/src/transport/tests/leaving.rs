//! A meshd that leaves QUIC: what it says to whom, and what its peers make of it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::udp::{carries, hop};
use super::*;
use crate::transport::rest::UDP_FIRST_REST;

/// Reviews over TCP and over QUIC on one port.
fn both(serving: &Arc<Credentials>) -> (Listener, QuicListener) {
    loop {
        let over_tcp = tcp(serving);
        // A port that is free over TCP may be taken over UDP.
        let udp = socket::bind_udp(over_tcp.local_addr().unwrap(), socket::Share::Alone);
        if let Ok(udp) = udp {
            return (over_tcp, QuicListener::new(udp, serving, &QuicOptions::default()).unwrap());
        }
    }
}

/// How long UDP is left alone from now on.
async fn rested(dialer: &Dialer, address: SocketAddr) -> Duration {
    let began = Instant::now();
    assert!(!dialer.tries_quic(address));
    while !dialer.tries_quic(address) {
        // Between two looks, not instead of one.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

#[tokio::test]
async fn a_listener_that_leaves_keeps_its_hops_and_sends_new_ones_over_tcp() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let (over_tcp, over_quic) = both(&serving);
    let (mut over_tcp, mut over_quic) = (Port::Tcp(over_tcp), Port::Quic(over_quic));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (before, there, _) = hop(&dialer, &mut over_quic).await;
    let Port::Quic(listener) = &mut over_quic else { unreachable!("it is") };

    listener.leave();
    let (after, after_there, _) = tokio::select! {
        linked = hop(&dialer, &mut over_tcp) => linked,
        other = listener.accept() => panic!("one more over QUIC: {other:?}"),
    };

    assert_eq!((before.transport(), after.transport()), (Transport::Quic, Transport::Tcp));
    carries(before, there).await;
    carries(after, after_there).await;
}

#[tokio::test]
async fn a_listener_that_leaves_refuses_a_handshake_and_that_is_no_silence() {
    let mesh = Mesh::new();
    let (over_tcp, mut over_quic) = both(&reviews_host(&mesh));
    let mut over_tcp = Port::Tcp(over_tcp);
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    over_quic.leave();

    let (here, there, _) = tokio::select! {
        linked = hop(&dialer, &mut over_tcp) => linked,
        other = over_quic.accept() => panic!("one more over QUIC: {other:?}"),
    };

    assert_eq!(here.transport(), Transport::Tcp);
    carries(here, there).await;
    assert!(rested(&dialer, over_tcp.address()).await < UDP_FIRST_REST / 5 * 4);
}

#[tokio::test]
async fn silence_while_a_successor_does_not_read_yet_is_short() {
    let mesh = Mesh::new();
    let (over_tcp, over_quic) = both(&reviews_host(&mesh));
    let address = over_tcp.local_addr().unwrap();
    let (mut over_tcp, mut over_quic) = (Port::Tcp(over_tcp), Port::Quic(over_quic));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (before, there, _) = hop(&dialer, &mut over_quic).await;
    let Port::Quic(listener) = over_quic else { unreachable!("it is") };
    drop(there);
    listener.close().await;
    // The socket that nobody reads; as soon as the last task of the endpoint has ended.
    let _unread = loop {
        match socket::bind_udp(address, socket::Share::Alone) {
            Ok(socket) => break socket,
            Err(_) => tokio::task::yield_now().await,
        }
    };

    let (after, after_there, _) = hop(&dialer, &mut over_tcp).await;

    assert_eq!((before.transport(), after.transport()), (Transport::Quic, Transport::Tcp));
    carries(after, after_there).await;
    assert!(rested(&dialer, address).await < UDP_FIRST_REST / 5 * 4);
}

/// Answers each call with itself, and notes what carried it.
fn answering(
    mut over_tcp: Listener,
    mut over_quic: QuicListener,
    mut leave: tokio::sync::oneshot::Receiver<()>,
    credentials: Arc<Credentials>,
) -> Arc<Mutex<Vec<Transport>>> {
    let carried = Arc::new(Mutex::new(Vec::new()));
    let noted = carried.clone();
    crate::task::spawn("answering", async move {
        let mut is_left = false;
        over_quic.leave();
        loop {
            let accepted = tokio::select! {
                accepted = over_tcp.accept() => accepted,
                accepted = over_quic.accept() => accepted,
                _ = &mut leave, if !is_left => {
                    is_left = true;
                    let address = over_quic.local_addr().unwrap();
                    over_quic.close().await;
                    let udp = loop {
                        match socket::bind_udp(address, socket::Share::Alone) {
                            Ok(udp) => break udp,
                            Err(_) => tokio::task::yield_now().await,
                        }
                    };
                    over_quic = QuicListener::new(udp, &credentials, &QuicOptions::default()).unwrap();
                    continue;
                }
            };
            let Ok(Accepted::Control(peer, _, mut frames)) = accepted else { continue };
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(peer.transport);
            crate::task::spawn("answer", async move {
                while let Ok(Some(frame)) = frames.recv().await {
                    frames.send(frame).await.unwrap();
                }
            });
        }
    });
    carried
}

#[tokio::test]
async fn calls_that_a_leaving_host_refuses_over_quic_return_to_it_soon() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let (over_tcp, over_quic) = both(&serving);
    let address = over_tcp.local_addr().unwrap();
    let (succeed, succeeded) = tokio::sync::oneshot::channel();
    let carried = answering(over_tcp, over_quic, succeeded, serving);
    let client = ControlClient::new(dialer(&credentials(&mesh, "1", &[])), address, Expect::AnyHost);

    client.call(Service::Api, Bytes::from_static(b"one"), LIMIT).await.unwrap();
    let refused = Instant::now();
    succeed.send(()).unwrap();

    let last = || carried.lock().unwrap_or_else(PoisonError::into_inner).last().copied();
    assert_eq!(last(), Some(Transport::Tcp));
    while last() == Some(Transport::Tcp) {
        assert!(refused.elapsed() < UDP_FIRST_REST / 5 * 4, "UDP rests");
        tokio::time::sleep(Duration::from_millis(5)).await;
        client.call(Service::Api, Bytes::from_static(b"again"), LIMIT).await.unwrap();
    }
}
