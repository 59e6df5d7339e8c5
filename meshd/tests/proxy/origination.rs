//! TLS that meshd begins: whom it asks for, what it checks, what it shows; and the PROXY header before it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::plan::{
    Balancer, Cluster, PortTable, ProxyVersion, TlsMaterial, TlsOrigination, UpstreamProtocol, UpstreamTls,
    Via,
};
use meshd::proxy::{Declared, Settings};
use meshd::transport::provider;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::lab::*;
use super::plan::*;

pub(super) const HOST: &str = "ext.example.com";

/// A root of somebody else, with a folder for files.
pub(super) struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key.
pub(super) struct Pair {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("a root");
        let folder = tempfile::tempdir().expect("a folder");
        let authority =
            Self { pem: root.pem(), der: root.der().clone(), issuer: Issuer::new(params, key), folder };
        std::fs::write(authority.folder.path().join("ca.crt"), &authority.pem).expect("a file");
        authority
    }

    pub(super) fn certify(&self, name: &str, serial: u64) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf");
        Pair { pem: certificate.pem(), der: certificate.der().clone(), key }
    }

    fn revoke(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("text")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, pair: &Pair) {
        write_pair(self.folder.path(), name, pair);
    }

    /// What `mode: SIMPLE, caCertificates: ca.crt` asks for.
    pub(super) fn simple(&self) -> TlsOrigination {
        TlsOrigination { check_host: true, material: self.files(), ..TlsOrigination::default() }
    }

    fn files(&self) -> TlsMaterial {
        TlsMaterial::Files {
            ca_certificates: self.path("ca.crt"),
            client_certificate: String::new(),
            private_key: String::new(),
        }
    }
}

fn write_pair(folder: &Path, name: &str, pair: &Pair) {
    std::fs::write(folder.join(format!("{name}.crt")), &pair.pem).expect("a file");
    std::fs::write(folder.join(format!("{name}.key")), pair.key.serialize_pem()).expect("a file");
}

/// What a server saw of a handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sni: Option<String>,
    pub(super) protocol: Option<String>,
    /// The client's certificate.
    client: Option<Vec<u8>>,
    /// What came before it.
    header: Vec<u8>,
}

/// A server that speaks TLS, then HTTP as was agreed.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// `clients` demands certificates of that root; with `header` a line comes before the handshake.
    pub(super) async fn start(pair: &Pair, clients: Option<&Authority>, header: bool) -> Self {
        let builder = ServerConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone()).expect("a root");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider().clone());
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.key.serialize_der()));
        let mut config = builder.with_single_cert(vec![pair.der.clone()], key).expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(loopback(0)).await.expect("a port");
        let server = Self { address: listener.local_addr().expect("an address"), seen: Arc::default() };
        let seen = server.seen.clone();
        meshd::task::spawn("test", async move {
            while let Ok((stream, _)) = listener.accept().await {
                meshd::task::spawn("test", serve(acceptor.clone(), stream, header, seen.clone()));
            }
        });
        server
    }

    pub(super) fn last(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned().unwrap_or_default()
    }

    fn cluster(&self, settings: TlsOrigination) -> Cluster {
        let mut cluster = cluster(HOST, vec![endpoint(&self.address.to_string(), Via::Plain(self.address))]);
        cluster.tls = UpstreamTls::Originate(Arc::new(settings));
        cluster.limits.max_requests_per_connection = Some(1);
        cluster
    }
}

async fn serve(acceptor: TlsAcceptor, mut stream: TcpStream, header: bool, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut line = Vec::new();
    while header && !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("a header"));
    }
    if line == b"\r\n" {
        // The signature of version 2 begins so: ten more bytes of it, four of what follows, and the length they say.
        line.extend(exactly(&mut stream, 14).await);
        let length = usize::from(u16::from_be_bytes([line[14], line[15]]));
        line.extend(exactly(&mut stream, length).await);
    }
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let tls = stream.get_ref().1;
    let protocol = tls.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let http2 = protocol.as_deref() == Some("h2");
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen {
        sni: tls.server_name().map(str::to_owned),
        client: tls.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec()),
        header: line,
        protocol,
    });
    let answer =
        service_fn(|_| async { Ok::<_, std::io::Error>(Response::new(Full::new(Bytes::from("tls")))) });
    let io = TokioIo::new(stream);
    if http2 {
        let _ =
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, answer).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, answer).await;
    }
}

async fn exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).await.expect("a header");
    bytes
}

fn to_host(cluster: Cluster) -> Lab {
    start(plan(vec![(HOST, vec![simple(cluster)])]))
}

async fn status(cluster: Cluster) -> u16 {
    let lab = to_host(cluster);
    once(lab.address, get("/", &[("host", HOST)])).await.status.as_u16()
}

#[tokio::test]
async fn the_host_is_asked_for_and_checked() {
    let authority = Authority::new();
    let (right, wrong) = (authority.certify(HOST, 1), authority.certify("other.example.com", 2));
    let (right, wrong) = (Server::start(&right, None, false).await, Server::start(&wrong, None, false).await);

    assert_eq!(status(right.cluster(authority.simple())).await, 200);
    assert_eq!(status(wrong.cluster(authority.simple())).await, 503);

    let seen = right.last();
    assert_eq!((seen.sni.as_deref(), seen.protocol.as_deref()), (Some(HOST), Some("http/1.1")));
}

#[tokio::test]
async fn names_roots_and_lists_decide_as_the_rule_says() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(&authority.certify("other.example.com", 7), None, false).await;
    std::fs::write(authority.path("crl.pem"), authority.revoke(7)).expect("a file");
    std::fs::write(authority.path("crl-8.pem"), authority.revoke(8)).expect("a file");
    let loose = TlsOrigination { check_host: false, ..authority.simple() };
    let named = |name: &str| TlsOrigination { subject_alt_names: vec![name.into()], ..loose.clone() };
    let crl = |file: &str| TlsOrigination { ca_crl: authority.path(file), ..loose.clone() };
    let cases = [
        ("a given sni switches the check of the name off", loose.clone(), 200),
        ("a name that is there", named("other.example.com"), 200),
        ("a name that is not", named(HOST), 503),
        ("another root", TlsOrigination { material: stranger.files(), ..loose.clone() }, 503),
        ("the system's roots", TlsOrigination { material: TlsMaterial::default(), ..loose.clone() }, 503),
        ("nothing is checked", TlsOrigination { insecure_skip_verify: true, ..loose.clone() }, 200),
        ("taken back", crl("crl.pem"), 503),
        ("another one taken back", crl("crl-8.pem"), 200),
        ("a list that is not there", crl("none.pem"), 503),
    ];
    for (what, settings, expected) in cases {
        assert_eq!(status(server.cluster(settings)).await, expected, "{what}");
    }
    let asked = TlsOrigination { sni: "asked.example.com".into(), ..loose };
    assert_eq!(status(server.cluster(asked)).await, 200);
    assert_eq!(server.last().sni.as_deref(), Some("asked.example.com"));
}

#[tokio::test]
async fn a_certificate_that_is_its_own_root_is_accepted_where_it_is_named() {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).expect("a certificate");
    let server = Server::start(&Pair { pem: own.pem(), der: own.der().clone(), key }, None, false).await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    std::fs::write(authority.path("ca.crt"), own.pem()).expect("a file");

    assert_eq!(status(server.cluster(authority.simple())).await, 200);
    assert_eq!(status(server.cluster(stranger.simple())).await, 503);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_a_renewed_one_without_restart() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), Some(&authority), false).await;
    let (first, second) = (authority.certify("client", 2), authority.certify("client", 3));
    authority.write("client", &first);
    let TlsMaterial::Files { ca_certificates, .. } = authority.files() else { unreachable!() };
    let (client_certificate, private_key) = (authority.path("client.crt"), authority.path("client.key"));
    let material = TlsMaterial::Files { ca_certificates, client_certificate, private_key };
    let lab = to_host(server.cluster(TlsOrigination { mutual: true, material, ..authority.simple() }));
    let ask = || once(lab.address, get("/", &[("host", HOST)]));

    assert_eq!(ask().await.status, StatusCode::OK);
    assert_eq!(server.last().client.as_deref(), Some(first.der.as_ref()));

    // Half of a pair is of no use: the one before stays.
    std::fs::write(authority.path("client.key"), second.key.serialize_pem()).expect("a file");
    assert_eq!(ask().await.status, StatusCode::OK);
    authority.write("client", &second);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while server.last().client.as_deref() != Some(second.der.as_ref()) {
        assert!(std::time::Instant::now() < deadline, "never shown");
        assert_eq!(ask().await.status, StatusCode::OK);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    assert_eq!(status(server.cluster(authority.simple())).await, 503, "without one");
}

#[tokio::test]
async fn a_secret_is_a_folder_of_the_host() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), Some(&authority), false).await;
    let secrets = tempfile::tempdir().expect("a folder");
    let folder = secrets.path().join("ext-tls");
    std::fs::create_dir(&folder).expect("a folder");
    write_pair(&folder, "tls", &authority.certify("client", 2));
    std::fs::write(folder.join("ca.crt"), &authority.pem).expect("a file");
    let ask = async |name: &str| {
        let material = TlsMaterial::Secret(name.to_owned());
        let cluster = server.cluster(TlsOrigination { mutual: true, material, ..authority.simple() });
        let settings = Settings { secrets: secrets.path().to_owned(), ..settings() };
        let plan = plan(vec![(HOST, vec![simple(cluster)])]);
        let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
        once(lab.address, get("/", &[("host", HOST)])).await.status.as_u16()
    };

    assert_eq!(ask("ext-tls").await, 200);
    assert_eq!(ask("unknown").await, 503);
    assert_eq!(ask("../ext-tls").await, 503);
}

#[tokio::test]
async fn http2_is_agreed_on_where_the_service_speaks_it() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), None, false).await;
    let mut cluster = server.cluster(authority.simple());
    cluster.protocol = UpstreamProtocol::Http2;

    assert_eq!(status(cluster).await, 200);
    assert_eq!(server.last().protocol.as_deref(), Some("h2"));
}

#[tokio::test]
async fn connections_of_different_hosts_are_not_shared() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify("*.example.com", 1), None, false).await;
    let mut cluster = server.cluster(authority.simple());
    cluster.limits.max_requests_per_connection = None;
    let lab = start(plan(vec![("*.example.com", vec![simple(cluster)])]));

    for host in ["a.example.com", "b.example.com", "a.example.com"] {
        assert_eq!(once(lab.address, get("/", &[("host", host)])).await.status, StatusCode::OK);
    }
    let seen = server.seen.lock().expect("sound");
    let asked: Vec<_> = seen.iter().filter_map(|seen| seen.sni.as_deref()).collect();
    assert_eq!(asked, ["a.example.com", "b.example.com"]);
}

#[tokio::test]
async fn the_proxy_header_comes_before_the_handshake_and_names_each_caller() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), None, true).await;
    let mut cluster = server.cluster(authority.simple());
    cluster.proxy_protocol = Some(ProxyVersion::V1);
    cluster.limits.max_requests_per_connection = None;
    let lab = to_host(cluster);

    for _ in 0..2 {
        assert_eq!(once(lab.address, get("/", &[("host", HOST)])).await.status, StatusCode::OK);
    }

    let seen = server.seen.lock().expect("sound");
    assert_eq!(seen.len(), 2, "a connection tells of one caller only");
    for one in &*seen {
        let header = String::from_utf8_lossy(&one.header);
        assert!(header.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{header}");
        assert!(header.ends_with(&format!(" {}\r\n", lab.address.port())), "{header}");
    }
    assert_ne!(seen[0].header, seen[1].header);
}

/// A proxy that hands opaque connections to a cluster.
fn bytes_to(cluster: Cluster) -> Lab {
    let tcp = Some(tcp_service(vec![to(1, cluster)]));
    let table = PortTable { number: PORT, tcp, ..PortTable::default() };
    start_with(with_table(table), service(Declared::Tcp), settings(), &no_credentials())
}

/// Asks through it, and returns from where.
async fn ask_by_bytes(lab: &Lab) -> std::net::SocketAddr {
    let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("open");
    let mut read = String::new();
    stream.read_to_string(&mut read).await.expect("an answer");
    assert!(read.ends_with("tls"), "{read}");
    stream.local_addr().expect("an address")
}

/// Layout: section 2.2 of the specification of the PROXY protocol.
#[tokio::test]
async fn the_proxy_header_of_version_2_names_callers_of_requests_and_of_bytes() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), None, true).await;
    let with_header = || {
        let mut cluster = server.cluster(authority.simple());
        cluster.proxy_protocol = Some(ProxyVersion::V2);
        cluster
    };
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let expected = |caller: u16, lab: &Lab| {
        let facts = [0x21, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1];
        [&signature[..], &facts, &caller.to_be_bytes(), &lab.address.port().to_be_bytes()].concat()
    };
    let caller = |seen: &Seen| u16::from_be_bytes([seen.header[24], seen.header[25]]);

    let lab = to_host(with_header());
    assert_eq!(once(lab.address, get("/", &[("host", HOST)])).await.status, StatusCode::OK);
    let seen = server.last();
    assert_eq!(seen.header, expected(caller(&seen), &lab));

    let lab = bytes_to(with_header());
    let caller = ask_by_bytes(&lab).await.port();
    assert_eq!(server.last().header, expected(caller, &lab));
}

#[tokio::test]
async fn roots_and_lists_are_read_again_when_they_change() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(&authority.certify(HOST, 7), None, false).await;
    std::fs::write(authority.path("roots.crt"), &stranger.pem).expect("a file");
    std::fs::write(authority.path("crl.pem"), authority.revoke(8)).expect("a file");
    let material = TlsMaterial::Files {
        ca_certificates: authority.path("roots.crt"),
        client_certificate: String::new(),
        private_key: String::new(),
    };
    let ca_crl = authority.path("crl.pem");
    let lab = to_host(server.cluster(TlsOrigination { material, ca_crl, ..authority.simple() }));
    let becomes = async |wanted: u16, what: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while once(lab.address, get("/", &[("host", HOST)])).await.status.as_u16() != wanted {
            assert!(std::time::Instant::now() < deadline, "{what}");
        }
    };

    becomes(503, "a server of another root").await;
    std::fs::write(authority.path("roots.crt"), &authority.pem).expect("a file");
    becomes(200, "its root is there now").await;
    std::fs::write(authority.path("crl.pem"), authority.revoke(7)).expect("a file");
    becomes(503, "its certificate was taken back").await;
}

#[tokio::test]
async fn opaque_connections_are_wrapped_too() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify(HOST, 1), None, false).await;
    ask_by_bytes(&bytes_to(server.cluster(authority.simple()))).await;

    assert_eq!(server.last().sni.as_deref(), Some(HOST), "the service's own name");
    assert_eq!(server.last().protocol, None);
}

#[tokio::test]
async fn the_name_of_each_request_is_resolved_where_the_rule_says_so() {
    let authority = Authority::new();
    let server = Server::start(&authority.certify("*.example.com", 1), None, false).await;
    let port = server.address.port();
    let mut cluster = server.cluster(authority.simple());
    cluster.balancer = Balancer::ByName { port };
    cluster.endpoints = Arc::default();
    let resolve: meshd::proxy::Resolver = Arc::new(|host, port| {
        Box::pin(async move {
            let known = host == "a.example.com";
            known.then(|| vec![loopback(port)]).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        })
    });
    let plan = plan(vec![("*.example.com", vec![simple(cluster)])]);
    let settings = Settings { resolve, ..settings() };
    let lab = start_with(plan, service(Declared::Http), settings, &no_credentials());
    let ask = async |host: &str| once(lab.address, get("/", &[("host", host)])).await.status.as_u16();

    assert_eq!(ask("A.example.com:80").await, 200);
    assert_eq!(server.last().sni.as_deref(), Some("a.example.com"));
    assert_eq!(ask("b.example.com").await, 503);
}
