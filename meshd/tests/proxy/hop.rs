//! Hops between two proxies over real mutual TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use mesh_core::identity::{Identity, sni};
use mesh_core::plan::{Endpoint, Inbound, LocalInstance, LocalPort, Plan, Via};
use mesh_proto::registration::{Health, Protocol};
use meshd::proxy::{Declared, Way};
use meshd::transport::{Credentials, Trust, provider};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::lab::*;
use super::plan::*;

const HOST: &str = "reviews.default.svc.cluster.local";

struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").into();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn credentials(&self, accounts: &[&str]) -> Arc<Credentials> {
        let trust = Trust::new("mesh.test", vec![self.root.clone()]).expect("a sound root");
        let credentials = Credentials::new(trust);
        for account in accounts {
            credentials.install(&workload(account), self.certify(&workload(account)));
        }
        credentials
    }

    fn certify(&self, identity: &Identity) -> Arc<CertifiedKey> {
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

fn workload(account: &str) -> Identity {
    Identity::workload("mesh.test", "default", account).expect("a sound account")
}

/// The host of an application: its mesh port.
fn destination(authority: &Authority, target: SocketAddr, protocol: Protocol) -> Lab {
    let port = LocalPort { number: PORT, protocol, target, bounds: None };
    let instance = Arc::new(LocalInstance {
        id: "reviews-1".into(),
        host: HOST.into(),
        identity: workload("reviews"),
        version: "v1".into(),
        ports: vec![port],
        health: Health::Healthy,
    });
    let mut inbound = Inbound::default();
    inbound.instances.insert("reviews-1".into(), instance);
    let plan = Plan { inbound: Arc::new(inbound), ..with_table(mesh_core::plan::PortTable::default()) };
    let credentials = authority.credentials(&["reviews"]);
    credentials.set_sni(HashMap::from([(sni::format(PORT, "", HOST), workload("reviews"))]));
    start_with(plan, Way::Mesh, settings(), &credentials)
}

fn over_mesh(hop: SocketAddr, account: &str, instance: &str) -> Endpoint {
    let sni = sni::format(PORT, "", HOST).into();
    endpoint(instance, Via::Mesh { hop, identity: workload(account), sni, instance: instance.into() })
}

fn source(authority: &Authority, endpoints: Vec<Endpoint>) -> Lab {
    let plan = plan(vec![("reviews", vec![simple(cluster(HOST, endpoints))])]);
    start_with(plan, service(Declared::Http), settings(), &authority.credentials(&["web"]))
}

#[tokio::test]
async fn a_request_crosses_a_hop_with_both_sides_named() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")]);
    let mut client = Client::new(here.address).await;

    let first = client.send(request(Method::POST, "/a?b", &[("x-mesh-instance", "forged")], "hello")).await;
    let head = client.send(request(Method::HEAD, "/a", &[], "")).await;

    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "hello"));
    assert_eq!(head.status, StatusCode::OK);
    let (_, path, headers) = backend.last();
    assert_eq!((path.as_str(), at(&headers, "host")), ("/a", "reviews"));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("x-mesh-")));
}

#[tokio::test]
async fn a_host_that_proves_another_identity_gets_nothing() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http);
    let here = source(&authority, vec![over_mesh(there.address, "ratings", "reviews-1")]);

    let answer = once(here.address, get("/", &[])).await;

    assert_eq!((answer.status.as_u16(), backend.hits()), (503, 0));
}

#[tokio::test]
async fn a_caller_from_another_mesh_gets_nothing() {
    let (authority, other, backend) = (Authority::new(), Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http);
    let here = source(&other, vec![over_mesh(there.address, "reviews", "reviews-1")]);

    let answer = once(here.address, get("/", &[])).await;

    assert_eq!((answer.status.as_u16(), backend.hits()), (503, 0));
}

#[tokio::test]
async fn dead_applications_and_unknown_instances_are_retried_elsewhere() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http);
    let dead = destination(&authority, nobody(), Protocol::Http);
    let endpoints = vec![
        over_mesh(there.address, "reviews", "reviews-1"),
        over_mesh(there.address, "reviews", "gone"),
        Endpoint { id: "dead".into(), ..over_mesh(dead.address, "reviews", "reviews-1") },
    ];
    let here = source(&authority, endpoints);
    let mut client = Client::new(here.address).await;

    for _ in 0..40 {
        let answer = client.send(request(Method::POST, "/", &[], "x")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "x"));
    }
}

#[tokio::test]
async fn opaque_connections_and_websockets_cross_as_tunnels() {
    let (authority, backend) = (Authority::new(), Backend::http1("ws").await);
    let db = super::tcp::echo("hi").await;
    let there = destination(&authority, db, Protocol::Tcp);
    let table = mesh_core::plan::PortTable {
        number: PORT,
        tcp: Some(tcp_service(vec![to(
            1,
            cluster(HOST, vec![over_mesh(there.address, "reviews", "reviews-1")]),
        )])),
        ..mesh_core::plan::PortTable::default()
    };
    let here =
        start_with(with_table(table), service(Declared::Tcp), settings(), &authority.credentials(&["web"]));
    let sent = vec![3; 200_000];
    assert!(super::tcp::talk(here.address, "hi", &sent).await == sent);

    let web = destination(&authority, backend.address, Protocol::Http);
    let here = source(&authority, vec![over_mesh(web.address, "reviews", "reviews-1")]);
    let (answer, echo) = super::protocols::websocket(here.address, "reviews").await;
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(echo, b"ping");
}
