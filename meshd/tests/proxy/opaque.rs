//! Opaque connections that go nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::plan::{PortTable, TlsHost, UnknownHosts};
use meshd::proxy::Declared;
use meshd::transport::provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use super::plan::*;

/// The first bytes of TLS: a hello that asks for a name, or for none (an address).
fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("bytes");
    bytes
}

/// An application that only counts who comes.
async fn counting() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let (address, count) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    meshd::task::spawn("test", async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_server_name_that_is_absent_or_unknown_is_closed_and_reaches_nobody() {
    let (address, count) = counting().await;
    let destination = to(1, cluster("db.example.com", vec![local(address)]));
    let rules = tcp_service(vec![destination]).tcp.clone();
    let mut table = PortTable { number: PORT, ..PortTable::default() };
    table.tls.add("db.example.com", Arc::new(TlsHost { host: "db.example.com".into(), rules }));
    let mut plan = with_table(table);
    change(&mut plan, |outbound| outbound.unknown = UnknownHosts::Refuse);
    let lab = start_with(plan, service(Declared::Tls), settings(), &no_credentials());
    let talk = async |hello: Vec<u8>| {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        stream.write_all(&hello).await.expect("open");
        let mut read = [0; 1];
        tokio::time::timeout(Duration::from_millis(500), stream.read(&mut read)).await
    };

    for (name, bytes) in [("absent", hello("127.0.0.1")), ("unknown", hello("other.example.com"))] {
        let end = talk(bytes).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "{name}: {end:?}");
    }

    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert!(talk(hello("DB.example.com")).await.is_err(), "a known one stays open");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// Row 55 of the bad inputs: tokens are judged by `RequestAuthentication`, which is not enforced yet, and is therefore
/// refused by name rather than taken and forgotten.
#[test]
fn tokens_are_promised_by_no_rule() {
    let rule = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt}\nspec:\n  \
                jwtRules: [{issuer: \"https://issuer.example.com\", jwksUri: \"https://issuer.example.com/keys\"}]\n";

    let (_, findings) = mesh_proto::yaml::inspect("jwt.yaml", rule);

    let refused: Vec<_> =
        findings.iter().filter(|finding| finding.is_error()).map(|finding| &*finding.code).collect();
    assert_eq!(refused, ["refused-kind"], "{findings:?}");
    assert!(findings[0].message.contains("RequestAuthentication"), "{findings:?}");
}
