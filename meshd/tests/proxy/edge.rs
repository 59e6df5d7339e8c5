//! What comes before a visitor's request: a load balancer that says for whom it speaks, an authority that wants a proof.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use meshd::proxy::Settings;
use meshd::transport::{Challenges, provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::doors::{Host, gateway, http_server, opened, service_entry, virtual_service};
use super::lab::*;

/// Sends bytes and returns the answer, to the end of the connection.
async fn told(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let _ = stream.write_all(bytes).await;
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8_lossy(&read).into_owned()
}

fn rules(backend: &Backend, server: &str) -> String {
    service_entry("web.example.com", "HTTP", backend.address)
        + &gateway("front", server)
        + &virtual_service("web", "web.com", "http: [{route: [{destination: {host: web.example.com}}]}]")
}

#[tokio::test]
async fn a_load_balancer_says_where_the_visitor_is_and_nobody_else_does() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: web.com\r\nconnection: close\r\n\r\n";
    let backend = Backend::http1("web").await;
    let port = nobody().port();
    let rules = rules(&backend, &http_server(port, "web.com"));
    let proxy_header_from = vec!["127.0.0.0/8".parse().expect("a range")];
    let host = Host::start(&rules, Settings { proxy_header_from, ..settings() });
    opened(loopback(port)).await;
    let mut second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    second.extend([192, 0, 2, 8, 127, 0, 0, 1, 0xdc, 4, 0, 80]);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

    for (header, from) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 80\r\n".as_slice(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 56324 80\r\n", "2001:db8::7"),
        (&second, "192.0.2.8"),
        (local, "127.0.0.1"),
    ] {
        let answer = told(loopback(port), &[header, REQUEST].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (_, _, seen) = backend.last();
        assert_eq!(at(&seen, "x-forwarded-for"), from);
    }
    assert_eq!(told(loopback(port), REQUEST).await, "", "a load balancer that says nothing is cut");
    drop(host);

    let port = nobody().port();
    let host = Host::start(&self::rules(&backend, &http_server(port, "web.com")), settings());
    opened(loopback(port)).await;
    let forged = [b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 80\r\n".as_slice(), REQUEST].concat();
    assert!(told(loopback(port), &forged).await.starts_with("HTTP/1.1 400"), "who is none is not believed");
    drop(host);
}

#[tokio::test]
async fn an_authority_is_answered_before_any_rule_for_as_long_as_it_asks() {
    const PATH: &str = "/.well-known/acme-challenge/token";
    let backend = Backend::http1("web").await;
    let (plain, tls) = (nobody().port(), nobody().port());
    let servers = format!(
        "  - {{port: {{number: {plain}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: [\"*\"], tls: {{httpsRedirect: true}}}}\n  \
         - {{port: {{number: {tls}, name: https, protocol: HTTPS}}, bind: 127.0.0.1, hosts: [web.com], tls: {{mode: SIMPLE, credentialName: web}}}}\n"
    );
    let challenges = Arc::new(Challenges::default());
    let settings = Settings { challenges: challenges.clone(), ..settings() };
    let host = Host::start(&rules(&backend, &servers), settings);
    opened(loopback(plain)).await;
    opened(loopback(tls)).await;
    let ask = |request| async move { once(loopback(plain), request).await };

    let before = ask(get(PATH, &[("host", "web.com")])).await.status;
    let token = challenges.token("token", "token.thumb");
    let during = ask(get(PATH, &[("host", "web.com")])).await;
    let mut post = get(PATH, &[("host", "web.com")]);
    *post.method_mut() = Method::POST;
    let posted = ask(post).await.status;
    drop(token);
    let after = ask(get(PATH, &[("host", "web.com")])).await.status;
    assert_eq!((during.status, during.body.as_str()), (StatusCode::OK, "token.thumb"));
    for status in [before, posted, after] {
        assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    }

    let signing = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["web.com".to_owned()]).expect("a name");
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    let made = params.self_signed(&signing).expect("a certificate");
    let key = PrivateKeyDer::try_from(signing.serialize_der()).expect("a key");
    let shown = challenges.certificate("web.com", made.der().clone(), key).expect("a key");
    // There is no secret yet: nobody else is shown anything.
    let authority = shake(loopback(tls), "web.com", "acme-tls/1").await.expect("a certificate");
    assert_eq!(authority, *made.der());
    assert!(shake(loopback(tls), "web.com", "h2").await.is_err());
    assert!(shake(loopback(tls), "other.com", "acme-tls/1").await.is_err());
    drop(shown);
    assert!(shake(loopback(tls), "web.com", "acme-tls/1").await.is_err());
    drop(host);
}

/// Shakes hands with whomever, and returns what was shown.
async fn shake(address: SocketAddr, name: &str, protocol: &str) -> io::Result<CertificateDer<'static>> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().cloned().map(CertificateDer::into_owned).ok_or_else(|| io::Error::other("nothing shown"))
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
