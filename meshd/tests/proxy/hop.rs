//! Hops between two proxies over real mutual TLS, on TCP and on QUIC.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Method, StatusCode};
use mesh_core::identity::{Identity, sni};
use mesh_core::plan::{
    Endpoint, HopTo, Inbound, LocalInstance, LocalPort, Party, Plan, Telling, UpstreamTls, Via,
};
use mesh_proto::registration::{Health, Protocol};
use mesh_proto::value::Labels;
use meshd::proxy::{Declared, Settings, Way};
use meshd::transport::{Credentials, Transport, Trust, provider, socket};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lab::*;
use super::origination;
use super::plan::*;

pub(super) const HOST: &str = "reviews.default.svc.cluster.local";
const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Quic];

pub(super) struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").into();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(super) fn credentials(&self, accounts: &[&str]) -> Arc<Credentials> {
        let trust = Trust::new("mesh.test", vec![self.root.clone()]).expect("a sound root");
        let credentials = Credentials::new(trust);
        for account in accounts {
            credentials.install(&workload(account), self.certify(&workload(account)));
        }
        credentials
    }

    pub(super) fn certify(&self, identity: &Identity) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf").into();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Arc::new(CertifiedKey::from_der(vec![leaf], key, provider()).expect("a pair"))
    }
}

pub(super) fn workload(account: &str) -> Identity {
    Identity::workload("mesh.test", "default", account).expect("a sound account")
}

/// The host of an application: its mesh port, open over TCP alone or over UDP alone, so that nothing goes another way.
pub(super) fn destination(
    authority: &Authority,
    target: SocketAddr,
    protocol: Protocol,
    transport: Transport,
) -> Lab {
    destination_with(authority, target, protocol, transport, settings())
}

fn destination_with(
    authority: &Authority,
    target: SocketAddr,
    protocol: Protocol,
    transport: Transport,
    settings: Settings,
) -> Lab {
    destination_of(authority, target, protocol, transport, settings, Telling::default())
}

/// One of which something is told.
pub(super) fn destination_told(authority: &Authority, target: SocketAddr, telling: Telling) -> Lab {
    destination_of(authority, target, Protocol::Http, Transport::Tcp, settings(), telling)
}

fn destination_of(
    authority: &Authority,
    target: SocketAddr,
    protocol: Protocol,
    transport: Transport,
    settings: Settings,
    telling: Telling,
) -> Lab {
    let (plan, credentials) = host_of(authority, target, protocol, telling);
    match transport {
        Transport::Tcp => start_with(plan, Way::Mesh, settings, &credentials),
        Transport::Quic => start_over_udp(plan, &credentials),
    }
}

/// What the host of an application does, and what it can prove.
pub(super) fn host_of(
    authority: &Authority,
    target: SocketAddr,
    protocol: Protocol,
    telling: Telling,
) -> (Plan, Arc<Credentials>) {
    let port = LocalPort { number: PORT, protocol, target, bounds: None };
    let labels = Labels::from([("version".to_owned(), "v1".to_owned())]);
    let instance = Arc::new(LocalInstance {
        id: "reviews-1".into(),
        host: HOST.into(),
        identity: workload("reviews"),
        party: Party::new("mesh.test", "default", "reviews", &labels),
        telling: Arc::new(telling),
        version: "v1".into(),
        ports: vec![port],
        health: Health::Healthy,
    });
    let mut inbound = Inbound::default();
    inbound.instances.insert("reviews-1".into(), instance);
    let plan = Plan { inbound: Arc::new(inbound), ..with_table(mesh_core::plan::PortTable::default()) };
    let credentials = authority.credentials(&["reviews"]);
    credentials.set_sni(HashMap::from([(sni::format(PORT, "", HOST), workload("reviews"))]));
    (plan, credentials)
}

pub(super) fn over_mesh(hop: SocketAddr, account: &str, instance: &str) -> Endpoint {
    let sni = sni::format(PORT, "", HOST).into();
    let to = HopTo { hop, identity: workload(account).into() }.into();
    let via = Via::Mesh { to, sni, instance: instance.into() };
    let party = Party::new("mesh.test", "default", account, &Labels::new());
    endpoint(instance, via).but(|facts| facts.traits.party = party)
}

pub(super) fn source(authority: &Authority, endpoints: Vec<Endpoint>, transport: Transport) -> Lab {
    let plan = plan(vec![("reviews", vec![simple(cluster(HOST, endpoints))])]);
    start_with(plan, service(Declared::Http), over(transport), &authority.credentials(&["web"]))
}

/// A caller's host where connections are opaque.
pub(super) fn opaque_source(authority: &Authority, endpoints: Vec<Endpoint>, transport: Transport) -> Lab {
    let tcp = Some(tcp_service(vec![to(1, cluster(HOST, endpoints))]));
    let table = mesh_core::plan::PortTable { number: PORT, tcp, ..mesh_core::plan::PortTable::default() };
    let credentials = authority.credentials(&["web"]);
    start_with(with_table(table), service(Declared::Tcp), over(transport), &credentials)
}

fn over(transport: Transport) -> Settings {
    Settings { transport, ..settings() }
}

#[tokio::test]
async fn a_request_crosses_a_hop_with_both_sides_named() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);
        let mut client = Client::new(here.address).await;

        let post = request(Method::POST, "/a?b", &[("x-mesh-instance", "forged")], "hello");
        let first = client.send(post).await;
        let head = client.send(request(Method::HEAD, "/a", &[], "")).await;

        assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "hello"), "{transport:?}");
        assert_eq!(head.status, StatusCode::OK);
        let (_, path, headers) = backend.last();
        assert_eq!((path.as_str(), at(&headers, "host")), ("/a", "reviews"));
        let ours: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("x-mesh-")).collect();
        assert_eq!(ours, ["x-mesh-hops"]);
    }
}

/// A successor is given the mesh port before it has a Plan.
#[tokio::test]
async fn a_hop_before_the_first_plan_waits_for_it() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let plan = there.plans.swap(Arc::default());
        let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);

        let mut asked = std::pin::pin!(once(here.address, get("/", &[])));
        let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut asked).await;
        assert!(early.is_err(), "{transport:?}: it is not told that there is no such instance");
        there.plans.store(plan);

        assert_eq!(asked.await.status, StatusCode::OK, "{transport:?}");
    }
}

#[tokio::test]
async fn a_body_is_asked_for_across_a_hop() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);
        let mut stream = tokio::net::TcpStream::connect(here.address).await.expect("a connection");
        let head = "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
        let began = std::time::Instant::now();
        stream.write_all(head.as_bytes()).await.expect("open");
        let mut read = vec![0; 25];
        stream.read_exact(&mut read).await.expect("a word");
        let took = began.elapsed();
        stream.write_all(b"hi").await.expect("open");
        stream.read_to_end(&mut read).await.expect("an answer");

        let read = String::from_utf8_lossy(&read);
        assert!(
            read.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"),
            "{transport:?} {read:?}"
        );
        assert!(read.ends_with("hi\r\n0\r\n\r\n") || read.ends_with("\r\n\r\nhi"), "{transport:?} {read:?}");
        assert!(took < std::time::Duration::from_millis(900), "asked for by the application: {took:?}");
    }
}

#[tokio::test]
async fn a_circle_through_hops_ends_at_the_limit() {
    let authority = Authority::new();
    // The application of the instance is a proxy that sends everything back: this host's own listener.
    let back = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let address = back.local_addr().expect("an address");
    let there = destination(&authority, address, Protocol::Http, Transport::Tcp);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);
    let entrance = here.address;
    meshd::task::spawn("test", async move {
        back.set_nonblocking(true).expect("a socket");
        let back = tokio::net::TcpListener::from_std(back).expect("a listener");
        while let Ok((mut from, _)) = back.accept().await {
            meshd::task::spawn("test", async move {
                let mut to = tokio::net::TcpStream::connect(entrance).await.expect("a connection");
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });

    let answer = once(here.address, get("/", &[])).await;

    assert_eq!(answer.status, StatusCode::LOOP_DETECTED);
    let loops = here.stats.total(|all| all.refused_loops_total.load(Ordering::Relaxed));
    assert_eq!(loops, 1);
}

#[tokio::test]
async fn hops_beyond_what_the_mesh_port_has_room_for_are_closed() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let limited = Settings { connections: 2, ..settings() };
    let there = destination_with(&authority, backend.address, Protocol::Http, Transport::Tcp, limited);
    let endpoints = || vec![over_mesh(there.address, "reviews", "reviews-1")];
    // Each host has a connection of its own.
    let hosts: Vec<_> = (0..3).map(|_| source(&authority, endpoints(), Transport::Tcp)).collect();

    let mut statuses = Vec::new();
    for host in &hosts {
        statuses.push(once(host.address, get("/", &[])).await.status.as_u16());
    }

    assert_eq!(statuses, [200, 200, 503]);
    let refused = there.stats.total(|all| all.refused_connections_total.load(Ordering::Relaxed));
    assert!(refused >= 1, "{refused}");
}

#[tokio::test]
async fn requests_beyond_the_streams_of_a_hop_open_another() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let limited = Settings { hop_streams: 2, ..settings() };
    let there = destination_with(&authority, backend.address, Protocol::Http, Transport::Tcp, limited);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);
    let mut burst = tokio::task::JoinSet::new();
    for _ in 0..6 {
        burst.spawn(once(here.address, get("/", &[("x-want-delay-ms", "300")])));
    }

    let answers = burst.join_all().await;

    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    let opened = here.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed));
    assert!((3..=6).contains(&opened), "{opened}");
}

#[tokio::test]
async fn many_requests_share_one_connection() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);
        let mut client = Client::new(here.address).await;
        for _ in 0..20 {
            assert_eq!(client.get("/").await.status, StatusCode::OK, "{transport:?}");
        }
        for _ in 0..5 {
            assert_eq!(once(here.address, get("/", &[])).await.status, StatusCode::OK, "{transport:?}");
        }

        let opened = here.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed));

        assert_eq!((opened, backend.hits()), (1, 25), "{transport:?}");
    }
}

#[tokio::test]
async fn callers_of_two_identities_share_no_connection() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let endpoints = vec![over_mesh(there.address, "reviews", "reviews-1")];
        let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, endpoints))])]);
        let mut node = (*plan.node).clone();
        let batch = mesh_core::plan::Workload { account: "batch".into(), ..node.callers[0].clone() };
        plan.outbounds.push(Arc::new(mesh_core::plan::Outbound {
            caller: batch.clone(),
            ..(*plan.outbounds[0]).clone()
        }));
        node.callers.push(batch);
        plan.node = Arc::new(node);
        let way = |caller| Way::Service { port: PORT, protocol: Declared::Http, caller };
        let credentials = authority.credentials(&["web", "batch"]);
        let (here, addresses) = start_all(plan, vec![way(0), way(1)], over(transport), &credentials);

        for _ in 0..5 {
            for address in &addresses {
                assert_eq!(once(*address, get("/", &[])).await.status, StatusCode::OK, "{transport:?}");
            }
        }

        let opened = here.stats.total(|all| all.upstream_connections_total.load(Ordering::Relaxed));
        assert_eq!((opened, backend.hits()), (2, 10), "{transport:?}: one connection for each identity");
    }
}

#[tokio::test]
async fn a_host_that_proves_another_identity_gets_nothing() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(there.address, "ratings", "reviews-1")], transport);

        let answer = once(here.address, get("/", &[])).await;

        assert_eq!((answer.status.as_u16(), backend.hits()), (503, 0), "{transport:?}");
    }
}

#[tokio::test]
async fn a_caller_from_another_mesh_gets_nothing() {
    for transport in BOTH {
        let (authority, other, backend) = (Authority::new(), Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&other, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);

        let answer = once(here.address, get("/", &[])).await;

        assert_eq!((answer.status.as_u16(), backend.hits()), (503, 0), "{transport:?}");
    }
}

#[tokio::test]
async fn dead_applications_and_unknown_instances_are_retried_elsewhere() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
        let there = destination(&authority, backend.address, Protocol::Http, transport);
        let dead = destination(&authority, nobody(), Protocol::Http, transport);
        let endpoints = vec![
            over_mesh(there.address, "reviews", "reviews-1"),
            over_mesh(there.address, "reviews", "gone"),
            over_mesh(dead.address, "reviews", "reviews-1").but(|facts| facts.id = "dead".into()),
        ];
        let here = source(&authority, endpoints, transport);
        let mut client = Client::new(here.address).await;

        for _ in 0..40 {
            let answer = client.send(request(Method::POST, "/", &[], "x")).await;
            assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "x"), "{transport:?}");
        }
    }
}

#[tokio::test]
async fn opaque_connections_cross_as_tunnels() {
    for transport in BOTH {
        let (authority, db) = (Authority::new(), super::tcp::echo("hi").await);
        let there = destination(&authority, db, Protocol::Tcp, transport);
        let here =
            opaque_source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], transport);
        let sent = vec![3; 200_000];

        for _ in 0..3 {
            assert!(super::tcp::talk(here.address, "hi", &sent).await == sent, "{transport:?}");
        }
    }
}

#[tokio::test]
async fn websockets_cross_as_tunnels() {
    for transport in BOTH {
        let (authority, backend) = (Authority::new(), Backend::http1("ws").await);
        let web = destination(&authority, backend.address, Protocol::Http, transport);
        let here = source(&authority, vec![over_mesh(web.address, "reviews", "reviews-1")], transport);

        let (answer, echo) = super::protocols::websocket(here.address, "reviews").await;

        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{transport:?}");
        assert_eq!(echo, b"ping");
    }
}

#[tokio::test]
async fn where_udp_is_blocked_requests_and_connections_go_over_tcp() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let db = super::tcp::echo("hi").await;
    let (web, _wall) = walled(|| destination(&authority, backend.address, Protocol::Http, Transport::Tcp));
    let (opaque, _other) = walled(|| destination(&authority, db, Protocol::Tcp, Transport::Tcp));
    let quic = Transport::Quic;
    let here = source(&authority, vec![over_mesh(web.address, "reviews", "reviews-1")], quic);
    let there = opaque_source(&authority, vec![over_mesh(opaque.address, "reviews", "reviews-1")], quic);

    for _ in 0..5 {
        assert_eq!(once(here.address, get("/", &[])).await.status, StatusCode::OK);
    }
    assert!(super::tcp::talk(there.address, "hi", b"hello").await == b"hello");
}

/// A destination over TCP, and over UDP what takes every datagram and answers none, as a firewall does.
pub(super) fn walled(make: impl Fn() -> Lab) -> (Lab, std::net::UdpSocket) {
    loop {
        let lab = make();
        // A port that is free over TCP may be taken over UDP.
        if let Ok(wall) = socket::bind_udp(lab.address, socket::Share::Alone) {
            return (lab, wall);
        }
    }
}

#[tokio::test]
async fn tls_of_the_application_goes_through_the_hop() {
    let (authority, outside) = (Authority::new(), origination::Authority::new());
    let server = origination::Server::start(&outside.certify(origination::HOST, 1), None, false).await;
    let there = destination(&authority, server.address, Protocol::Http, Transport::Tcp);
    let mut cluster = cluster(HOST, vec![over_mesh(there.address, "reviews", "reviews-1")]);
    cluster.tls = UpstreamTls::Originate(Arc::new(outside.simple()));
    // The one who waits for its own connection must not be refused the hop below it.
    cluster.limits.max_pending = Some(1);
    let plan = plan(vec![(origination::HOST, vec![simple(cluster)])]);
    let here = start_with(plan, service(Declared::Http), settings(), &authority.credentials(&["web"]));

    for _ in 0..2 {
        let answer = once(here.address, get("/", &[("host", origination::HOST)])).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "tls"));
    }
    assert_eq!(server.last().sni.as_deref(), Some(origination::HOST));
}
