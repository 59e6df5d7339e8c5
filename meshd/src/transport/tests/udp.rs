//! Hops over QUIC: shared connections, peers that restart, UDP that does not get through, both families.

use std::net::Ipv6Addr;

use super::*;
use crate::transport::quic::IDLE_LIMIT;

/// Dials reviews as productpage, over QUIC where it gets through; accepts on `port`.
pub(super) async fn hop(dialer: &Dialer, port: &mut Port) -> (LinkStream, LinkStream, Peer) {
    let (expect, from) = (reviews(), workload("productpage"));
    let target = target(port.address(), Transport::Quic, &expect, &from);
    let (dialled, (peer, accepted)) = tokio::join!(dial_hop(dialer, target), port.hop());
    (dialled.expect("a link"), accepted, peer)
}

pub(super) async fn carries(mut here: LinkStream, mut there: LinkStream) {
    here.write_all(b"hello").await.unwrap();
    here.flush().await.unwrap();
    let mut bytes = [0; 5];
    there.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
}

#[tokio::test]
async fn hops_of_a_pair_share_one_quic_connection_until_it_ends() {
    let mesh = Mesh::new();
    let mut port = Port::new(Transport::Quic, &reviews_host(&mesh));
    let calling = credentials(&mesh, "1", &["productpage"]);
    let dialer = dialer(&calling);
    let (first, _there, peer) = hop(&dialer, &mut port).await;
    // A second handshake would show the new certificate.
    calling.install(&workload("productpage"), mesh.certify(&workload("productpage")));

    let (second, there, again) = hop(&dialer, &mut port).await;

    assert_eq!((first.transport(), second.transport()), (Transport::Quic, Transport::Quic));
    assert_eq!(peer.serial, again.serial);
    drop(first);
    carries(second, there).await;
}

#[tokio::test]
async fn hops_on_behalf_of_others_share_nothing() {
    let mesh = Mesh::new();
    let mut port = Port::new(Transport::Quic, &reviews_host(&mesh));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage", "ratings"]));
    let (_first, _there, _) = hop(&dialer, &mut port).await;
    let (expect, from) = (reviews(), workload("ratings"));
    let target = target(port.address(), Transport::Quic, &expect, &from);

    let (second, (peer, _accepted)) = tokio::join!(dial_hop(&dialer, target), port.hop());

    second.expect("a link");
    assert_eq!(peer.identity, Some(workload("ratings")));
}

#[tokio::test]
async fn where_udp_does_not_answer_hops_go_over_tcp_and_that_is_remembered() {
    let mesh = Mesh::new();
    let (mut port, wall) = walled(&mesh);
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    for _ in 0..3 {
        let (here, there, _) = hop(&dialer, &mut port).await;
        assert_eq!(here.transport(), Transport::Tcp);
        carries(here, there).await;
    }
    assert_eq!(connections_tried(&wall), 1);
}

#[tokio::test]
async fn hops_that_wait_for_each_other_find_udp_silent_once() {
    let mesh = Mesh::new();
    let (mut port, wall) = walled(&mesh);
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (reviews(), workload("productpage"));
    let target = target(port.address(), Transport::Quic, &expect, &from);
    let accepting = async {
        for _ in 0..3 {
            port.hop().await;
        }
    };

    let (one, two, three, ()) = tokio::join!(
        dial_hop(&dialer, target),
        dial_hop(&dialer, target),
        dial_hop(&dialer, target),
        accepting
    );

    for link in [one, two, three] {
        assert_eq!(link.expect("a link").transport(), Transport::Tcp);
    }
    assert_eq!(connections_tried(&wall), 1);
}

/// Reviews over TCP, and over UDP what takes every datagram and answers none, as a firewall does.
fn walled(mesh: &Mesh) -> (Port, std::net::UdpSocket) {
    loop {
        let port = Port::new(Transport::Tcp, &reviews_host(mesh));
        // A port that is free over TCP may be taken over UDP.
        if let Ok(wall) = socket::bind_udp(port.address(), socket::Share::Alone) {
            return (port, wall);
        }
    }
}

/// How many connections were tried, by what a wall has received: each has a connection id of its own (RFC 9000, 17.2).
fn connections_tried(wall: &std::net::UdpSocket) -> usize {
    let mut attempts = std::collections::BTreeSet::new();
    let mut datagram = [0; 2048];
    while let Ok(length) = wall.recv(&mut datagram) {
        let id_end = 6 + usize::from(datagram[5]);
        attempts.insert(datagram[6..id_end.min(length)].to_vec());
    }
    attempts.len()
}

#[tokio::test]
async fn a_hop_to_a_peer_that_is_down_says_so_and_udp_is_tried_again_at_once() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let address = tcp(&serving).local_addr().unwrap();
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (reviews(), workload("productpage"));
    let down = dial_hop(&dialer, target(address, Transport::Quic, &expect, &from)).await.unwrap_err();
    assert_eq!(down.to_string(), format!("{address} refused the connection"));
    let mut port = Port::Quic(quic(&serving, address.port(), &QuicOptions::default()));

    let (here, there, _) = hop(&dialer, &mut port).await;

    assert_eq!(here.transport(), Transport::Quic);
    carries(here, there).await;
}

#[tokio::test]
async fn a_hop_learns_at_once_that_its_peer_restarted() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let options = || QuicOptions { reset_secret: Some(Secret::new(vec![7; 32])) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let (first_serving, first_options) = (serving.clone(), options());
    // A runtime of its own, as another process would have: it ends without a word.
    let peer = runtime.spawn(async move {
        let mut port = Port::Quic(quic(&first_serving, 0, &first_options));
        tell.send(port.address()).unwrap();
        let _hop = port.hop().await;
        std::future::pending::<()>().await;
    });
    let address = told.await.unwrap();
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (reviews(), workload("productpage"));
    let target = target(address, Transport::Quic, &expect, &from);
    let mut before = dial_hop(&dialer, target).await.expect("a link");
    runtime.shutdown_background();
    assert!(peer.await.is_err());
    let mut port = Port::Quic(loop {
        // The port is free as soon as the last task of the old endpoint has ended.
        match socket::bind_udp(address, socket::Share::Alone) {
            Ok(socket) => break QuicListener::new(socket, &serving, &options()).unwrap(),
            Err(_) => tokio::task::yield_now().await,
        }
    });

    let speak = async {
        let mut byte = [0; 1];
        before.write_all(b"?").await.is_err() || before.read(&mut byte).await.is_err()
    };
    // The listener must run to answer what it does not know.
    let failed = tokio::select! {
        failed = tokio::time::timeout(Duration::from_secs(5), speak) => failed,
        other = port.accept() => panic!("nobody dialled: {other:?}"),
    };
    assert_eq!(failed, Ok(true));
    let (here, there, _) = hop(&dialer, &mut port).await;
    carries(here, there).await;
}

#[tokio::test]
async fn a_dialer_that_closes_says_so() {
    let mesh = Mesh::new();
    let mut port = Port::new(Transport::Quic, &reviews_host(&mesh));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (_here, mut there, _) = hop(&dialer, &mut port).await;

    dialer.close().await;

    let ended = tokio::time::timeout(IDLE_LIMIT / 4, there.read_to_end(&mut Vec::new())).await;
    ended.expect("told, and not found out later").expect_err("nothing was ended in order");
}

#[tokio::test]
async fn the_mesh_port_serves_ipv6_over_tcp_and_quic() {
    for transport in BOTH {
        let mesh = Mesh::new();
        let serving = reviews_host(&mesh);
        let any = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
        let mut port = match transport {
            Transport::Tcp => {
                let socket = socket::listen_tcp(any, socket::Share::Alone).unwrap();
                Port::Tcp(Listener::new(socket, &serving).unwrap())
            }
            Transport::Quic => {
                let socket = socket::bind_udp(any, socket::Share::Alone).unwrap();
                Port::Quic(QuicListener::new(socket, &serving, &QuicOptions::default()).unwrap())
            }
        };
        let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
        let (expect, from) = (reviews(), workload("productpage"));
        let target = target(port.address(), transport, &expect, &from);
        let (here, (peer, there)) = tokio::join!(dial_hop(&dialer, target), port.hop());
        assert!(peer.address.is_ipv6(), "{transport:?}");
        carries(here.expect("a link"), there).await;
    }
}
