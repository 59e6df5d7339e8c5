//! Hops between two hosts over real sockets: who is let in, who is refused and told why, and what a link carries.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mesh_core::identity::Identity;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::testing::*;
use super::tls::client_config;
use super::verify::CertificateFault as Fault;
use super::*;

mod callers;
mod calls;
mod leaving;
mod resumption;
mod udp;

const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Quic];
const LIMIT: Duration = Duration::from_secs(10);

/// Serves one mesh port, over TCP or QUIC.
enum Port {
    Tcp(Listener),
    Quic(QuicListener),
}

impl Port {
    fn new(transport: Transport, credentials: &Arc<Credentials>) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp(tcp(credentials)),
            Transport::Quic => Self::Quic(quic(credentials, 0, &QuicOptions::default())),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Quic(listener) => listener.local_addr(),
        }
        .expect("bound")
    }

    async fn accept(&mut self) -> Result<Accepted, Refused> {
        match self {
            Self::Tcp(listener) => listener.accept().await,
            Self::Quic(listener) => listener.accept().await,
        }
    }

    async fn hop(&mut self) -> (Peer, LinkStream) {
        match self.accept().await {
            Ok(Accepted::Hop(peer, stream)) => (peer, stream),
            other => panic!("expected a hop, got {other:?}"),
        }
    }
}

fn target<'a>(
    address: SocketAddr,
    transport: Transport,
    expect: &'a Expect,
    from: &'a Identity,
) -> HopTarget<'a> {
    HopTarget { address, sni: REVIEWS, expect, from, transport }
}

/// Dials reviews as productpage, and accepts it.
async fn linked(transport: Transport) -> (LinkStream, LinkStream, Peer) {
    let mesh = Mesh::new();
    let mut port = Port::new(transport, &reviews_host(&mesh));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (Expect::Identity(workload("reviews")), workload("productpage"));
    let address = port.address();
    let (dialled, accepted) =
        tokio::join!(dial_hop(&dialer, target(address, transport, &expect, &from)), port.hop());
    // The endpoint of a dialer lives as long as its streams.
    (dialled.expect("a link"), accepted.1, accepted.0)
}

#[tokio::test]
async fn a_hop_names_both_sides_and_carries_bytes() {
    for transport in BOTH {
        let (mut here, mut there, peer) = linked(transport).await;
        assert_eq!(peer.identity, Some(workload("productpage")), "{transport:?}");
        assert_eq!(peer.sni.as_deref(), Some(REVIEWS));
        assert!(!peer.serial.is_empty());
        assert_eq!(peer.transport, transport);
        here.write_all(b"hello").await.unwrap();
        here.flush().await.unwrap();
        let mut bytes = [0; 5];
        there.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
    }
}

#[tokio::test]
async fn hops_agree_on_a_key_that_a_quantum_computer_does_not_find() {
    let (here, _there, _) = linked(Transport::Tcp).await;
    let LinkStream::Tcp(tls) = &here else { panic!("{here:?}") };
    let group = tls.session().negotiated_key_exchange_group().expect("agreed");
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(tls.session().protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn each_direction_of_a_hop_ends_alone() {
    for transport in BOTH {
        let (mut here, mut there, _) = linked(transport).await;
        here.write_all(b"question").await.unwrap();
        here.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        there.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"question", "{transport:?}");
        there.write_all(b"answer").await.unwrap();
        there.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        here.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"answer", "{transport:?}");
    }
}

#[tokio::test]
async fn a_hop_that_is_dropped_does_not_look_like_an_orderly_end() {
    for transport in BOTH {
        let (mut here, mut there, _) = linked(transport).await;
        here.write_all(b"half").await.unwrap();
        here.flush().await.unwrap();
        let mut bytes = [0; 4];
        there.read_exact(&mut bytes).await.unwrap();
        drop(here);
        assert!(there.read(&mut bytes).await.is_err(), "{transport:?}");
    }
}

/// Dials a host whose reviews shows `server`, as productpage showing `client`; both ends' results, as text.
async fn attempt(
    transport: Transport,
    change: impl FnOnce(&Arc<Credentials>, &Arc<Credentials>),
    expect: Expect,
) -> (Result<(), String>, Result<(), String>) {
    let mesh = Mesh::new();
    let (serving, calling) = (reviews_host(&mesh), credentials(&mesh, "1", &["productpage"]));
    change(&serving, &calling);
    let mut port = Port::new(transport, &serving);
    let dialer = dialer(&calling);
    let from = workload("productpage");
    let address = port.address();
    let client = async {
        let mut stream = dial_hop(&dialer, target(address, transport, &expect, &from))
            .await
            .map_err(|error| error.to_string())?;
        match stream.read_u8().await {
            Ok(_) => Ok(()),
            Err(error) => Err(refusal(&error).map_or_else(|| error.to_string(), |fault| fault.to_string())),
        }
    };
    let server = async {
        match port.accept().await {
            Ok(Accepted::Hop(_, mut stream)) => {
                let _ = stream.write_all(b"!").await;
                let _ = stream.flush().await;
                // Keeps the stream until the client has read.
                let _ = stream.read_u8().await;
                Ok(())
            }
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err(refused.to_string()),
        }
    };
    tokio::time::timeout(LIMIT, async { tokio::join!(client, server) }).await.expect("ends in time")
}

fn reviews() -> Expect {
    Expect::Identity(workload("reviews"))
}

#[tokio::test]
async fn another_identity_than_expected_is_refused_by_name() {
    for transport in BOTH {
        let (client, server) = attempt(transport, |_, _| {}, Expect::Identity(workload("ratings"))).await;
        let client = client.unwrap_err();
        assert!(client.contains("sa/reviews, expected spiffe://mesh.test/ns/default/sa/ratings"), "{client}");
        assert!(server.is_err());
    }
}

/// Shows another certificate for an account.
fn show(credentials: &Arc<Credentials>, account: &str, key: Arc<CertifiedKey>) {
    credentials.install(&workload(account), key);
}

#[tokio::test]
async fn a_server_under_another_root_is_refused() {
    for transport in BOTH {
        let other = Mesh::new();
        let (client, server) = attempt(
            transport,
            |serving, _| show(serving, "reviews", other.certify(&workload("reviews"))),
            reviews(),
        )
        .await;
        let client = client.unwrap_err();
        assert!(client.contains("not issued by a root"), "{client}");
        assert!(server.is_err());
    }
}

#[tokio::test]
async fn a_client_under_another_root_is_refused_and_told_so() {
    for transport in BOTH {
        let other = Mesh::new();
        let (client, server) = attempt(
            transport,
            |_, calling| show(calling, "productpage", other.certify(&workload("productpage"))),
            reviews(),
        )
        .await;
        assert!(
            client.as_ref().unwrap_err().contains("not from a root it trusts"),
            "{transport:?} {client:?}"
        );
        let server = server.unwrap_err();
        assert!(server.contains("not issued by a root"), "{server}");
    }
}

#[tokio::test]
async fn an_expired_client_is_refused_and_told_so() {
    for transport in BOTH {
        let mesh_of = |serving: &Arc<Credentials>, calling: &Arc<Credentials>| {
            // The roots of both ends become those of a mesh made here.
            let mesh = Mesh::new();
            serving.trust().set_roots(vec![mesh.root.clone()]).unwrap();
            calling.trust().set_roots(vec![mesh.root.clone()]).unwrap();
            show(serving, "reviews", mesh.certify(&workload("reviews")));
            let hour_ago = SystemTime::now() - Duration::from_hours(1);
            let old = mesh
                .custom(&[workload("productpage").to_string()], |params| params.not_after = hour_ago.into());
            show(calling, "productpage", old);
        };
        let (client, server) = attempt(transport, mesh_of, reviews()).await;
        assert!(client.as_ref().unwrap_err().contains("expired"), "{transport:?} {client:?}");
        assert!(server.unwrap_err().contains("expired"));
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let mut port = Port::new(Transport::Tcp, &reviews_host(&mesh));
    let config = client_config(&mesh.trust(), None, &reviews(), Protocol::Hop, verify::Told::default());
    let (_client, accepted) = tokio::join!(raw_client(port.address(), config), port.accept());
    assert!(matches!(accepted.unwrap_err().fault, TlsFault::NoCertificate));
}

#[tokio::test]
async fn a_client_with_another_alpn_or_none_is_refused() {
    for protocols in [vec![b"http/1.1".to_vec()], vec![]] {
        let mesh = Mesh::new();
        let mut port = Port::new(Transport::Tcp, &reviews_host(&mesh));
        let key = mesh.certify(&workload("productpage"));
        let mut config =
            client_config(&mesh.trust(), Some(key), &reviews(), Protocol::Hop, verify::Told::default());
        config.alpn_protocols = protocols;
        let (client, accepted) = tokio::join!(raw_client(port.address(), config), port.accept());
        assert!(client.is_err());
        assert!(accepted.is_err());
    }
}

async fn raw_client(address: SocketAddr, config: rustls::ClientConfig) -> std::io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let name = rustls::pki_types::ServerName::try_from(REVIEWS).unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.read_u8().await.map(drop)
}

#[tokio::test]
async fn plain_bytes_on_the_mesh_port_are_refused_and_stop_nobody_else() {
    let mesh = Mesh::new();
    let mut port = Port::new(Transport::Tcp, &reviews_host(&mesh));
    let mut plain = TcpStream::connect(port.address()).await.unwrap();
    // One that says nothing must not hold up the others either.
    let _silent = TcpStream::connect(port.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await.unwrap();
    assert!(matches!(port.accept().await.unwrap_err().fault, TlsFault::NotTls));
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (reviews(), workload("productpage"));
    let dial = dial_hop(&dialer, target(port.address(), Transport::Tcp, &expect, &from));
    let (dialled, _) = tokio::join!(dial, port.hop());
    dialled.unwrap();
}

#[tokio::test]
async fn a_name_that_is_not_served_is_refused() {
    for transport in BOTH {
        let (client, server) =
            attempt(transport, |serving, _| serving.set_sni(HashMap::new()), reviews()).await;
        assert!(client.is_err(), "{transport:?}");
        assert!(server.is_err(), "{transport:?}");
    }
}

#[tokio::test]
async fn a_quic_connection_serves_no_name_of_another_owner() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let ratings = "outbound_.9080_._.ratings.default.svc.cluster.local";
    let identity = workload("ratings");
    serving.install(&identity, mesh.certify(&identity));
    serving
        .set_sni(HashMap::from([(REVIEWS.to_owned(), workload("reviews")), (ratings.to_owned(), identity)]));
    let mut port = Port::new(Transport::Quic, &serving);
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    let (expect, from) = (reviews(), workload("productpage"));
    let first = target(port.address(), Transport::Quic, &expect, &from);
    let (opened, _served) = tokio::join!(dial_hop(&dialer, first), port.hop());
    let _opened = opened.unwrap();
    let (second, refused) =
        tokio::join!(dial_hop(&dialer, HopTarget { sni: ratings, ..first }), port.accept());
    let second = second.unwrap_err().to_string();
    assert!(second.contains("no service is served here under the name"), "{second}");
    assert!(matches!(refused.unwrap_err().fault, TlsFault::UnknownName(_)));
}

#[tokio::test]
async fn an_admin_may_not_hop_and_is_told_so() {
    let mesh = Mesh::new();
    let admin = Identity::admin(DOMAIN, "ada").unwrap();
    for transport in BOTH {
        let calling = credentials(&mesh, "1", &[]);
        calling.install(&admin, mesh.certify(&admin));
        let mut port = Port::new(transport, &reviews_host(&mesh));
        let dialer = dialer(&calling);
        let expect = reviews();
        let target = target(port.address(), transport, &expect, &admin);
        let client = async { dial_hop(&dialer, target).await.ok()?.read_u8().await.ok() };
        let (client, refused) = tokio::join!(client, port.accept());
        assert_eq!(client, None);
        let fault = refused.unwrap_err().fault;
        assert!(
            matches!(&fault, TlsFault::Certificate(fault) if matches!(**fault, Fault::WrongKind(_))),
            "{fault}"
        );
    }
}

#[tokio::test]
async fn new_credentials_serve_new_handshakes_only() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let calling = credentials(&mesh, "1", &["productpage"]);
    let mut port = Port::new(Transport::Tcp, &serving);
    let dialer = dialer(&calling);
    let (expect, from) = (reviews(), workload("productpage"));
    let address = port.address();
    let (before, served) =
        tokio::join!(dial_hop(&dialer, target(address, Transport::Tcp, &expect, &from)), port.hop());
    let (mut before, (old_peer, mut served)) = (before.unwrap(), served);
    calling.install(&from, mesh.certify(&from));
    serving.install(&workload("reviews"), mesh.certify(&workload("reviews")));
    let (after, (new_peer, _served)) =
        tokio::join!(dial_hop(&dialer, target(address, Transport::Tcp, &expect, &from)), port.hop());
    after.unwrap();
    assert_ne!(old_peer.serial, new_peer.serial);
    served.write_all(b"still").await.unwrap();
    served.flush().await.unwrap();
    let mut bytes = [0; 5];
    before.read_exact(&mut bytes).await.unwrap();
    calling.remove(&from);
    let gone = dial_hop(&dialer, target(address, Transport::Tcp, &expect, &from)).await;
    assert!(matches!(gone, Err(DialError::NoCertificate(_))), "{gone:?}");
}

#[tokio::test]
async fn a_joiner_proves_the_host_by_the_pin_alone_and_shares_an_exporter() {
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let mut listener = tcp(&serving);
    let address = listener.local_addr().unwrap();
    let pin = verify::public_key_pin(&mesh.root).unwrap();
    let stranger = dialer(&Credentials::new(Trust::new("unknown", vec![]).unwrap()));
    let (link, accepted) = tokio::join!(dial_join(&stranger, address, pin), listener.accept());
    let mut link = link.unwrap();
    let Ok(Accepted::Join(peer, mut frames, exporter)) = accepted else { panic!("{accepted:?}") };
    assert_eq!(link.host, host("2"));
    assert_eq!(peer.identity, None);
    assert_eq!(link.exporter, exporter);
    link.frames.send(Bytes::from_static(b"proof")).await.unwrap();
    assert_eq!(frames.recv().await.unwrap().unwrap(), "proof");
}

#[tokio::test]
async fn a_joiner_with_another_pin_stops_before_it_sends_anything() {
    let mesh = Mesh::new();
    let mut listener = tcp(&reviews_host(&mesh));
    let address = listener.local_addr().unwrap();
    let stranger = dialer(&Credentials::new(Trust::new("unknown", vec![]).unwrap()));
    let (link, accepted) = tokio::join!(dial_join(&stranger, address, [0; 32]), listener.accept());
    let error = link.unwrap_err().to_string();
    assert!(error.contains("does not match the pin of the token"), "{error}");
    assert!(accepted.is_err());
}
