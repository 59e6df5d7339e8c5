//! Gateways and `Sidecar` sockets: rules compiled as hosts compile them, visited over real sockets.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use mesh_core::compile::compile;
use mesh_core::plan::{Node, Plan, Workload};
use mesh_core::world::World;
use mesh_proto::watch::Stored;
use meshd::proxy::{Declared, Settings, Way};
use meshd::transport::{Credentials, provider};
use rcgen::{BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::lab::*;

/// Rules, followed by a proxy.
pub(super) struct Host {
    pub(super) lab: Lab,
    changed: watch::Sender<()>,
    problems: watch::Receiver<Vec<String>>,
}

impl Host {
    pub(super) fn start(rules: &str, settings: Settings) -> Self {
        Self::run(planned(rules), service(Declared::Http), settings, &no_credentials())
    }

    pub(super) fn run(plan: Plan, way: Way, settings: Settings, credentials: &Arc<Credentials>) -> Self {
        let mut lab = start_with(plan, way, settings, credentials);
        let (changed, seen) = watch::channel(());
        let (told, problems) = watch::channel(Vec::new());
        let keeper = lab.proxy.doors.take().expect("a keeper");
        meshd::task::spawn("doors", keeper.run(seen, told));
        Self { lab, changed, problems }
    }

    pub(super) fn follow(&self, rules: &str) {
        self.lab.plans.store(Arc::new(planned(rules)));
        self.changed.send_replace(());
    }
}

pub(super) fn planned(rules: &str) -> Plan {
    let (documents, findings) = mesh_proto::yaml::read("rules", rules);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "mesh.test".into();
    for document in documents {
        let refused: Vec<_> = mesh_proto::support::check(&document);
        assert!(refused.iter().all(|finding| !finding.is_error()), "{refused:?}");
        world.revision.0 += 1;
        let stored = Stored { object: document.object, created: world.revision, changed: world.revision };
        world.resources.insert(stored.object.key(), Arc::new(stored));
    }
    let edge = Workload { namespace: "edge".into(), account: "edge".into(), ..Workload::default() };
    let node = Node {
        name: "vm1".into(),
        trust_domain: "mesh.test".into(),
        domain: "cluster.local".into(),
        labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
        callers: vec![edge],
        ..Node::default()
    };
    compile(&world, &Arc::new(node), None)
}

/// A service outside, and rules of a gateway that lead to it.
pub(super) fn service_entry(host: &str, protocol: &str, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: edge}}
spec:
  hosts: [{host}]
  resolution: STATIC
  ports: [{{number: 80, name: port, protocol: {protocol}}}]
  endpoints: [{{address: {ip}, ports: {{port: {port}}}}}]
---",
        name = host.replace('.', "-")
    )
}

pub(super) fn gateway(name: &str, servers: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: edge}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
{servers}
---"
    )
}

pub(super) fn virtual_service(name: &str, hosts: &str, routes: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: edge}}
spec:
  hosts: [{hosts}]
  gateways: [front]
  {routes}
---"
    )
}

pub(super) fn http_server(port: u16, hosts: &str) -> String {
    format!(
        "  - {{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, bind: 127.0.0.1, hosts: [{hosts}]}}\n"
    )
}

pub(super) fn tls_server(port: u16, name: &str, protocol: &str, hosts: &str, tls: &str) -> String {
    format!(
        "  - {{port: {{number: {port}, name: {name}, protocol: {protocol}}}, bind: 127.0.0.1, hosts: [{hosts}], tls: {{{tls}}}}}\n"
    )
}

pub(super) async fn opened(address: SocketAddr) {
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{address} is not opened");
}

pub(super) async fn closed(address: SocketAddr) {
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{address} is not closed");
}

/// Certificates of one issuer.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a root").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Makes a certificate and its key, as PEM.
    pub(super) fn pair(&self, name: &str) -> (String, String) {
        self.numbered(name, 1)
    }

    pub(super) fn numbered(&self, name: &str, serial: u64) -> (String, String) {
        self.sign(&KeyPair::generate().expect("a key"), name, serial)
    }

    /// The same, with a key of RSA.
    pub(super) fn rsa_pair(&self, name: &str) -> (String, String) {
        self.sign(&KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key"), name, 1)
    }

    fn sign(&self, key: &KeyPair, name: &str, serial: u64) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.serial_number = Some(serial.into());
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(key, &self.issuer).expect("a leaf");
        (certificate.pem(), key.serialize_pem())
    }

    pub(super) fn secret(&self, secrets: &Path, name: &str, host: &str) {
        let folder = secrets.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let (certificate, key) = self.pair(host);
        std::fs::write(folder.join("tls.crt"), certificate).expect("a file");
        std::fs::write(folder.join("tls.key"), key).expect("a file");
        std::fs::write(folder.join("ca.crt"), &self.pem).expect("a file");
    }

    pub(super) fn revoke(&self, serial: u64) -> String {
        let at = |year| rcgen::date_time_ymd(year, 1, 1);
        let revoked = rcgen::RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: at(2024),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(2024),
            next_update: at(2099),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }
}

/// How a visitor comes.
pub(super) struct Visitor<'a> {
    pub(super) trusts: &'a Authority,
    pub(super) shows: Option<(String, String)>,
    pub(super) versions: &'static [&'static rustls::SupportedProtocolVersion],
}

impl<'a> Visitor<'a> {
    pub(super) fn of(trusts: &'a Authority) -> Self {
        Self { trusts, shows: None, versions: rustls::ALL_VERSIONS }
    }

    pub(super) fn showing(trusts: &'a Authority, pair: (String, String)) -> Self {
        Self { shows: Some(pair), ..Self::of(trusts) }
    }

    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.trusts.pem.as_bytes()).expect("a root"))
            .expect("sound");
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider().clone())
            .build()
            .expect("a verifier");
        let builder = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(self.versions)
            .expect("versions")
            .with_webpki_verifier(verifier);
        let config = match &self.shows {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Asks for `/`; an error where TLS does not let it.
    pub(super) async fn get(&self, address: SocketAddr, name: &str) -> io::Result<(StatusCode, String)> {
        self.send(address, name, &[("host", name)]).await
    }

    /// The same, with these headers.
    pub(super) async fn send(
        &self,
        address: SocketAddr,
        name: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<(StatusCode, String)> {
        let stream = self.connect(address, name).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<bytes::Bytes>>(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
        meshd::task::spawn("test", async move { drop(connection.await) });
        let request = get("/", headers);
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.map_err(io::Error::other)?;
        Ok((status, String::from_utf8(body.to_bytes().to_vec()).expect("text")))
    }
}

pub(super) fn with_secrets(secrets: &Path) -> Settings {
    Settings { secrets: secrets.to_owned(), ..settings() }
}

#[tokio::test]
async fn a_gateway_opens_and_closes_as_its_rules_say() {
    let backend = Backend::http1("web").await;
    let (port, other) = (nobody().port(), nobody().port());
    let routes = "http: [{route: [{destination: {host: web.example.com}}]}]";
    let entry = service_entry("web.example.com", "HTTP", backend.address);
    let rules = |port: u16| {
        entry.clone()
            + &gateway("front", &http_server(port, "web.com"))
            + &virtual_service("web", "web.com", routes)
    };
    let host = Host::start(&rules(port), settings());
    opened(loopback(port)).await;

    let forged = [("host", "web.com"), ("x-forwarded-proto", "https"), ("x-forwarded-for", "192.0.2.7")];
    let answer = once(loopback(port), get("/a", &forged)).await;
    let unknown = once(loopback(port), get("/", &[("host", "other.com")])).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "web"));
    let (_, _, seen) = backend.last();
    assert_eq!(
        (at(&seen, "x-forwarded-for"), at(&seen, "x-forwarded-proto")),
        ("192.0.2.7,127.0.0.1", "http")
    );
    assert_eq!(at(&seen, "host"), "web.com");
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);

    // A connection that is open outlives the door; the door does not.
    let mut client = Client::new(loopback(port)).await;
    assert_eq!(client.send(get("/", &[("host", "web.com")])).await.status, StatusCode::OK);
    host.follow(&rules(other));
    opened(loopback(other)).await;
    closed(loopback(port)).await;
    let late = client.send(get("/", &[("host", "web.com")])).await;
    assert_eq!(late.status, StatusCode::NOT_FOUND);
    assert_eq!(once(loopback(other), get("/", &[("host", "web.com")])).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_changes_nothing_else() {
    let taken = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let busy = taken.local_addr().expect("an address").port();
    let free = nobody().port();
    let servers = http_server(busy, "\"*\"") + &http_server(free, "\"*\"");
    let routes = "http: [{directResponse: {status: 204}}]";
    let rules = gateway("front", &servers) + &virtual_service("any", "\"*\"", routes);
    let mut host = Host::start(&rules, settings());
    opened(loopback(free)).await;

    host.problems.wait_for(|problems| !problems.is_empty()).await.expect("told");
    let problem = host.problems.borrow().join("; ");
    assert!(problem.starts_with(&format!("Gateway edge/front: 127.0.0.1:{busy} is not open: ")), "{problem}");
    assert_eq!(once(loopback(free), get("/", &[("host", "a.com")])).await.status.as_u16(), 204);

    drop(taken);
    host.changed.send_replace(());
    host.problems.wait_for(Vec::is_empty).await.expect("all is well");
    assert_eq!(once(loopback(busy), get("/", &[("host", "a.com")])).await.status.as_u16(), 204);
}

#[tokio::test]
async fn https_servers_are_chosen_by_sni_and_show_their_own_certificates() {
    static OLD: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    let (authority, backend) = (Authority::new(), Backend::http1("web").await);
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "one", "one.com");
    authority.secret(secrets.path(), "any", "*.two.com");
    let (port, plain) = (nobody().port(), nobody().port());
    let redirecting = format!(
        "  - {{port: {{number: {plain}, name: plain, protocol: HTTP}}, bind: 127.0.0.1, hosts: [one.com], tls: {{httpsRedirect: true}}}}\n"
    );
    let servers = tls_server(port, "one", "HTTPS", "one.com", "mode: SIMPLE, credentialName: one")
        + &tls_server(
            port,
            "any",
            "HTTPS",
            "\"*.two.com\"",
            "mode: SIMPLE, credentialName: any, minProtocolVersion: TLSV1_3",
        )
        + &redirecting;
    let routes = "http: [{route: [{destination: {host: web.example.com}}]}]";
    let rules = service_entry("web.example.com", "HTTP", backend.address)
        + &gateway("front", &servers)
        + &virtual_service("web", "one.com, a.two.com", routes);
    let _host = Host::start(&rules, with_secrets(secrets.path()));
    opened(loopback(port)).await;
    let visitor = Visitor::of(&authority);

    assert_eq!(visitor.get(loopback(port), "one.com").await.expect("TLS"), (StatusCode::OK, "web".into()));
    assert_eq!(at(&backend.last().2, "x-forwarded-proto"), "https");
    assert_eq!(visitor.get(loopback(port), "a.two.com").await.expect("TLS").0, StatusCode::OK);
    assert_eq!(visitor.get(loopback(port), "b.two.com").await.expect("TLS").0, StatusCode::NOT_FOUND);
    assert!(visitor.get(loopback(port), "three.com").await.is_err());

    let old = Visitor { versions: &OLD, ..Visitor::of(&authority) };
    assert_eq!(old.get(loopback(port), "one.com").await.expect("TLS 1.2").0, StatusCode::OK);
    assert!(old.get(loopback(port), "a.two.com").await.is_err());

    opened(loopback(plain)).await;
    let sent = once(loopback(plain), get("/x?y", &[("host", "one.com")])).await;
    assert_eq!((sent.status.as_u16(), sent.header("location")), (301, Some("https://one.com/x?y")));
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let (first, second) = (Authority::new(), Authority::new());
    let secrets = tempfile::tempdir().expect("a folder");
    let port = nobody().port();
    let server = tls_server(port, "web", "HTTPS", "\"*\"", "mode: SIMPLE, credentialName: web");
    let routes = "http: [{directResponse: {status: 204}}]";
    let rules = gateway("front", &server) + &virtual_service("any", "\"*\"", routes);
    let mut host = Host::start(&rules, with_secrets(secrets.path()));
    opened(loopback(port)).await;
    host.problems.wait_for(|problems| !problems.is_empty()).await.expect("told");
    let problem = host.problems.borrow().join("; ");
    assert!(problem.contains("Gateway edge/front: port") && problem.contains("web/tls.crt"), "{problem}");
    assert!(Visitor::of(&first).get(loopback(port), "web.com").await.is_err());

    for authority in [&first, &second] {
        authority.secret(secrets.path(), "web", "web.com");
        let visitor = Visitor::of(authority);
        let mut status = None;
        for _ in 0..500 {
            status = visitor.get(loopback(port), "web.com").await.ok();
            if status.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(status.expect("the new certificate").0.as_u16(), 204);
    }
}

#[tokio::test]
async fn mutual_servers_let_in_whom_their_rules_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let secrets = tempfile::tempdir().expect("a folder");
    for name in ["must", "may", "named", "hash"] {
        authority.secret(secrets.path(), name, &format!("{name}.com"));
    }
    let known = authority.pair("client.com");
    let leaf = CertificateDer::from_pem_slice(known.0.as_bytes()).expect("PEM");
    let hash =
        data_encoding::HEXUPPER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf).as_ref());
    let revoked = authority.numbered("client.com", 77);
    let list = secrets.path().join("revoked.pem");
    std::fs::write(&list, authority.revoke(77)).expect("a file");
    let port = nobody().port();
    let crl = list.display();
    let servers =
        tls_server(
            port,
            "must",
            "HTTPS",
            "must.com",
            &format!("mode: MUTUAL, credentialName: must, caCrl: {crl}"),
        ) + &tls_server(port, "may", "HTTPS", "may.com", "mode: OPTIONAL_MUTUAL, credentialName: may")
            + &tls_server(
                port,
                "named",
                "HTTPS",
                "named.com",
                "mode: MUTUAL, credentialName: named, subjectAltNames: [friend.com]",
            )
            + &tls_server(
                port,
                "hash",
                "HTTPS",
                "hash.com",
                &format!("mode: MUTUAL, credentialName: hash, verifyCertificateHash: [\"{hash}\"]"),
            );
    let routes = "http: [{directResponse: {status: 204}}]";
    let rules = gateway("front", &servers) + &virtual_service("any", "\"*\"", routes);
    let _host = Host::start(&rules, with_secrets(secrets.path()));
    opened(loopback(port)).await;
    let visit = async |visitor: &Visitor<'_>, name: &str| visitor.get(loopback(port), name).await.is_ok();
    let (nobody, friend) =
        (Visitor::of(&authority), Visitor::showing(&authority, authority.pair("friend.com")));
    let known = Visitor::showing(&authority, known);
    let strange = Visitor::showing(&authority, stranger.pair("friend.com"));
    let revoked = Visitor::showing(&authority, revoked);

    assert!(!visit(&nobody, "must.com").await && visit(&known, "must.com").await);
    assert!(!visit(&strange, "must.com").await && !visit(&revoked, "must.com").await);
    assert!(
        visit(&nobody, "may.com").await
            && visit(&known, "may.com").await
            && !visit(&strange, "may.com").await
    );
    assert!(visit(&friend, "named.com").await && !visit(&known, "named.com").await);
    assert!(visit(&known, "hash.com").await && !visit(&friend, "hash.com").await);
}

#[tokio::test]
async fn connections_go_by_port_or_sni_and_tls_may_pass_or_end() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a folder");
    authority.secret(secrets.path(), "db", "db.com");
    let echo = tokio::net::TcpListener::bind(loopback(0)).await.expect("a port");
    let behind = echo.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            meshd::task::spawn("test", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    // Behind the gateway that passes TLS stands one that ends it.
    let (outer, inner, plain) = (nobody().port(), nobody().port(), nobody().port());
    let servers = tls_server(outer, "pass", "TLS", "db.com", "mode: PASSTHROUGH")
        + &tls_server(inner, "ends", "TLS", "db.com", "mode: SIMPLE, credentialName: db")
        + &format!(
            "  - {{port: {{number: {plain}, name: tcp, protocol: TCP}}, bind: 127.0.0.1, hosts: [\"*\"]}}\n"
        );
    let routes = format!(
        "tls: [{{match: [{{port: {outer}, sniHosts: [db.com]}}], route: [{{destination: {{host: ended.example.com}}}}]}}]
  tcp: [{{match: [{{port: {inner}}}, {{port: {plain}}}], route: [{{destination: {{host: db.example.com}}}}]}}]"
    );
    let rules = service_entry("ended.example.com", "TLS", loopback(inner))
        + &service_entry("db.example.com", "TCP", behind)
        + &gateway("front", &servers)
        + &virtual_service("db", "db.com", &routes);
    let _host = Host::start(&rules, with_secrets(secrets.path()));
    opened(loopback(outer)).await;
    opened(loopback(inner)).await;
    opened(loopback(plain)).await;

    let mut answer = [0; 5];
    let mut stream = Visitor::of(&authority).connect(loopback(outer), "db.com").await.expect("TLS");
    stream.write_all(b"hello").await.expect("sent");
    stream.flush().await.expect("sent");
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"hello");
    assert!(Visitor::of(&authority).connect(loopback(outer), "other.com").await.is_err());

    let mut stream = TcpStream::connect(loopback(plain)).await.expect("open");
    stream.write_all(b"plain").await.expect("sent");
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"plain");
}

#[tokio::test]
async fn a_sidecars_sockets_reach_what_they_take_in_and_unknown_hosts_go_by_its_proxy() {
    let (web, out) = (Backend::http1("web").await, Backend::http1("out").await);
    let (port, proxy) = (nobody().port(), nobody().port());
    let rules = service_entry("web.example.com", "HTTP", web.address)
        + &service_entry("out.example.com", "HTTP", out.address)
        + &format!(
            "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: all, namespace: edge}}
spec:
  egress:
  - {{port: {{number: {port}, protocol: HTTP, name: web}}, bind: 127.0.0.1, captureMode: NONE, hosts: [\"*/*\"]}}
  - {{port: {{number: {proxy}, protocol: HTTP_PROXY, name: proxy}}, captureMode: NONE, hosts: [\"*/web.example.com\"]}}
  - {{hosts: [\"*/out.example.com\"]}}
  outboundTrafficPolicy: {{mode: ALLOW_ANY, egressProxy: {{host: out.example.com}}}}
"
        );
    let host = Host::start(&rules, settings());
    opened(loopback(proxy)).await;
    opened(loopback(port)).await;

    let known = once(loopback(proxy), get("/", &[("host", "web.example.com")])).await;
    let unknown = once(loopback(proxy), get("/", &[("host", "nobody.example.com")])).await;
    let other = once(host.lab.address, get("/", &[("host", "web.example.com")])).await;

    assert_eq!((known.body.as_str(), unknown.body.as_str(), other.body.as_str()), ("web", "out", "out"));
    assert_eq!(at(&out.last().2, "host"), "web.example.com");
}
