//! The TLS of gateways, field by field: each case fails where its field is ignored.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::StatusCode;
use meshd::transport::provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::doors::*;
use super::lab::*;

/// One HTTPS server with these settings, which answers 204.
async fn server(tls: &str, secrets: &Path) -> (Host, SocketAddr) {
    let port = nobody().port();
    let servers = tls_server(port, "web", "HTTPS", "web.com", tls);
    let routes = "http: [{directResponse: {status: 204}}]";
    let rules = gateway("front", &servers) + &virtual_service("any", "\"*\"", routes);
    let host = Host::start(&rules, with_secrets(secrets));
    opened(loopback(port)).await;
    (host, loopback(port))
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

#[tokio::test]
async fn a_visitors_key_may_be_named() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    let (known, friend) = (authority.pair("client.com"), authority.pair("client.com"));
    let leaf = CertificateDer::from_pem_slice(known.0.as_bytes()).expect("PEM");
    let parsed = webpki::EndEntityCert::try_from(&leaf).expect("a certificate");
    let spki = data_encoding::BASE64.encode(&digest(parsed.subject_public_key_info().as_ref()));
    let tls = format!("mode: MUTUAL, credentialName: web, verifyCertificateSpki: [\"{spki}\"]");
    let (_host, address) = server(&tls, secrets.path()).await;

    assert!(Visitor::showing(&authority, known).get(address, "web.com").await.is_ok());
    assert!(Visitor::showing(&authority, friend).get(address, "web.com").await.is_err());
}

#[tokio::test]
async fn roots_may_be_in_a_secret_of_their_own() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    clients.secret(secrets.path(), "clients", "unused.com");
    clients.secret(secrets.path(), "beside-cacert", "unused.com");
    authority.secret(secrets.path(), "beside", "web.com");
    std::fs::remove_file(secrets.path().join("beside/ca.crt")).expect("a file");

    for tls in [
        "mode: MUTUAL, credentialName: web, caCertCredentialName: clients",
        "mode: MUTUAL, credentialName: beside",
    ] {
        let (_host, address) = server(tls, secrets.path()).await;
        let client = Visitor::showing(&authority, clients.pair("client.com"));
        assert!(client.get(address, "web.com").await.is_ok(), "{tls}");
        let other = Visitor::showing(&authority, authority.pair("client.com"));
        assert!(other.get(address, "web.com").await.is_err(), "{tls}");
    }
}

#[tokio::test]
async fn a_list_in_the_secret_takes_certificates_back() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    std::fs::write(secrets.path().join("web/ca.crl"), authority.revoke(77)).expect("a file");
    let (_host, address) = server("mode: MUTUAL, credentialName: web", secrets.path()).await;

    let known = Visitor::showing(&authority, authority.numbered("client.com", 76));
    let revoked = Visitor::showing(&authority, authority.numbered("client.com", 77));
    assert!(known.get(address, "web.com").await.is_ok());
    assert!(revoked.get(address, "web.com").await.is_err());
}

#[tokio::test]
async fn versions_have_an_end_at_both_sides() {
    static OLD: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static NEW: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    for (settings, old, new) in [
        ("", true, true),
        ("minProtocolVersion: TLSV1_3", false, true),
        ("maxProtocolVersion: TLSV1_2", true, false),
    ] {
        let tls = format!("mode: SIMPLE, credentialName: web, {settings}");
        let (_host, address) = server(&tls, secrets.path()).await;
        for (versions, expected) in [(&OLD[..], old), (&NEW[..], new)] {
            let visitor = Visitor { versions, ..Visitor::of(&authority) };
            assert_eq!(visitor.get(address, "web.com").await.is_ok(), expected, "{settings} {versions:?}");
        }
    }
}

/// Shakes hands in TLS 1.2 with one suite; returns the certificate that was shown.
async fn with_suite(
    address: SocketAddr,
    authority: &Authority,
    suite: CipherSuite,
) -> Option<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM")).expect("a root");
    let mut own = rustls::crypto::CryptoProvider::clone(provider());
    own.cipher_suites.retain(|known| known.suite() == suite);
    let config = ClientConfig::builder_with_provider(Arc::new(own))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("a suite")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.expect("an open port");
    let name = ServerName::try_from("web.com").expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    stream.get_ref().1.peer_certificates()?.first().map(|leaf| leaf.clone().into_owned())
}

#[tokio::test]
async fn only_the_suites_named_are_spoken() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    let tls = "mode: SIMPLE, credentialName: web, cipherSuites: [ECDHE-ECDSA-AES128-GCM-SHA256]";
    let (_host, address) = server(tls, secrets.path()).await;

    let named = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let other = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
    assert!(with_suite(address, &authority, named).await.is_some());
    assert!(with_suite(address, &authority, other).await.is_none());
}

#[tokio::test]
async fn two_certificates_serve_visitors_of_either_kind_of_key() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "ec", "web.com");
    authority.secret(secrets.path(), "rsa", "web.com");
    let (certificate, key) = authority.rsa_pair("web.com");
    std::fs::write(secrets.path().join("rsa/tls.crt"), certificate).expect("a file");
    std::fs::write(secrets.path().join("rsa/tls.key"), key).expect("a file");
    let folder = secrets.path().display();
    let file = |name: &str| {
        format!("{{serverCertificate: {folder}/{name}/tls.crt, privateKey: {folder}/{name}/tls.key}}")
    };
    let by_file = format!("mode: SIMPLE, tlsCertificates: [{}, {}]", file("ec"), file("rsa"));
    for tls in ["mode: SIMPLE, credentialNames: [ec, rsa]", &by_file] {
        let (_host, address) = server(tls, secrets.path()).await;
        let ec = with_suite(address, &authority, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256).await;
        let rsa = with_suite(address, &authority, CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256).await;
        assert!(ec.is_some() && rsa.is_some() && ec != rsa, "{tls}");
    }
}

#[tokio::test]
async fn services_are_told_of_a_visitors_certificate_and_never_what_it_says_itself() {
    let (authority, backend) = (Authority::new(), Backend::http1("web").await);
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "web", "web.com");
    let port = nobody().port();
    let servers = tls_server(port, "web", "HTTPS", "web.com", "mode: OPTIONAL_MUTUAL, credentialName: web");
    let routes = "http: [{route: [{destination: {host: web.example.com}}]}]";
    let rules = service_entry("web.example.com", "HTTP", backend.address)
        + &gateway("front", &servers)
        + &virtual_service("web", "web.com", routes);
    let _host = Host::start(&rules, with_secrets(secrets.path()));
    opened(loopback(port)).await;
    let pair = authority.pair("client.com");
    let leaf = CertificateDer::from_pem_slice(pair.0.as_bytes()).expect("PEM");
    let hash = data_encoding::HEXLOWER.encode(&digest(&leaf));
    let forged = [("host", "web.com"), ("x-forwarded-client-cert", "By=forged")];

    let known = Visitor::showing(&authority, pair).send(loopback(port), "web.com", &forged).await;
    assert_eq!(known.expect("TLS").0, StatusCode::OK);
    let told = backend.last().2;
    let told = at(&told, "x-forwarded-client-cert");
    assert!(told.starts_with(&format!("Hash={hash};Cert=\"-----BEGIN%20CERTIFICATE")), "{told}");
    assert!(told.ends_with(";Subject=\"CN=rcgen self signed cert\";URI=;DNS=client.com"), "{told}");
    assert_eq!(told.matches("Hash=").count(), 1);

    let nobody = Visitor::of(&authority).send(loopback(port), "web.com", &forged).await;
    assert_eq!(nobody.expect("TLS").0, StatusCode::OK);
    assert!(!backend.last().2.contains_key("x-forwarded-client-cert"));
}
