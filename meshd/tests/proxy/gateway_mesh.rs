//! Gateways with the mesh's own TLS: shown to visitors, taken from hops, passed on; and connections that would go in a circle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use mesh_core::identity::{Identity, sni};
use mesh_core::plan::{
    Door, DoorKind, Doors, GatewayDoor, HostTable, Inbound, Inside, LocalInstance, LocalPort, Plan,
    PortTable, TlsMaterial, TlsOrigination, TlsServer, UpstreamTls,
};
use mesh_proto::registration::{Health, Protocol};
use mesh_proto::resource::{Kind, ObjectKey};
use meshd::proxy::{Declared, Way};
use meshd::transport::{Credentials, Originator, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::doors::*;
use super::hop::{self, HOST, opaque_source, over_mesh, source, workload};
use super::lab::*;
use super::plan::*;

fn edge() -> Identity {
    Identity::workload("mesh.test", "edge", "edge").expect("a sound account")
}

/// Those of a host whose gateway is `edge`.
fn gateway_credentials(mesh: &hop::Authority) -> Arc<Credentials> {
    let credentials = mesh.credentials(&["web", "gateway"]);
    credentials.install(&edge(), mesh.certify(&edge()));
    credentials.set_sni(HashMap::from([(sni::format(PORT, "", HOST), workload("gateway"))]));
    credentials
}

/// Rules of a gateway that shows the mesh's certificate on two ports: requests go to `web`, bytes to `db`.
fn rules(web: SocketAddr, db: SocketAddr, (https, tcp): (u16, u16)) -> String {
    let servers = tls_server(https, "https", "HTTPS", "\"*\"", "mode: ISTIO_MUTUAL")
        + &tls_server(tcp, "tcp", "TLS", "db.com", "mode: ISTIO_MUTUAL");
    let routes = format!(
        "http: [{{route: [{{destination: {{host: web.example.com}}}}]}}]
  tcp: [{{match: [{{port: {tcp}}}], route: [{{destination: {{host: db.example.com}}}}]}}]"
    );
    service_entry("web.example.com", "HTTP", web)
        + &service_entry("db.example.com", "TCP", db)
        + &gateway("front", &servers)
        + &virtual_service("all", "\"*\"", &routes)
}

async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            meshd::task::spawn("test", async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// Asks a gateway over TLS with a certificate of the mesh.
async fn ask(
    credentials: &Arc<Credentials>,
    from: &Identity,
    address: SocketAddr,
    names: &[&str],
) -> Result<StatusCode, String> {
    let originator = Originator::new(std::path::PathBuf::new(), credentials.clone());
    let settings = Arc::new(TlsOrigination {
        mutual: true,
        material: TlsMaterial::Mesh,
        subject_alt_names: names.iter().map(ToString::to_string).collect(),
        ..TlsOrigination::default()
    });
    let stream = TcpStream::connect(address).await.expect("an open port");
    let begun = originator.begin(&settings, Some(from), Some(b"http/1.1"), Some("any.com"), stream).await;
    let mut stream = begun.map_err(|error| error.to_string())?;
    let sent = stream.write_all(b"GET / HTTP/1.1\r\nhost: any.com\r\nconnection: close\r\n\r\n").await;
    sent.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    answer.get(9..12).and_then(|status| status.parse().ok()).ok_or(answer)
}

#[tokio::test]
async fn a_server_of_the_mesh_shows_its_certificate_to_the_mesh_and_to_nobody_else() {
    let (mesh, other, backend) = (hop::Authority::new(), hop::Authority::new(), Backend::http1("web").await);
    let ports = (nobody().port(), nobody().port());
    let plan = planned(&rules(backend.address, nobody(), ports));
    let _host = Host::run(plan, service(Declared::Http), settings(), &gateway_credentials(&mesh));
    let address = loopback(ports.0);
    opened(address).await;
    let web = workload("web");
    let (known, stranger) = (mesh.credentials(&["web"]), other.credentials(&["web"]));

    assert_eq!(ask(&known, &web, address, &[]).await, Ok(StatusCode::OK));
    let told = backend.last().2;
    let told = at(&told, "x-forwarded-client-cert");
    assert!(told.starts_with("By=spiffe://mesh.test/ns/edge/sa/edge;Hash="), "{told}");
    assert!(told.ends_with(";Subject=\"\";URI=spiffe://mesh.test/ns/default/sa/web"), "{told}");
    let named = ["spiffe://mesh.test/ns/edge/sa/edge"];
    assert_eq!(ask(&known, &web, address, &named).await, Ok(StatusCode::OK));
    assert!(ask(&known, &web, address, &["spiffe://mesh.test/ns/edge/sa/other"]).await.is_err());
    assert!(ask(&stranger, &web, address, &[]).await.is_err());
    // In plain text nothing is answered.
    assert_eq!(bytes(address, b"GET / HTTP/1.1\r\nhost: any.com\r\n\r\n").await, "");
}

#[tokio::test]
async fn a_caller_shows_its_certificate_where_its_rule_says_so() {
    let (mesh, backend) = (hop::Authority::new(), Backend::http1("web").await);
    let ports = (nobody().port(), nobody().port());
    let rules = rules(backend.address, nobody(), ports)
        + &service_entry("far.example.com", "HTTP", loopback(ports.0))
        + "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far, namespace: edge}
spec: {host: far.example.com, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
";
    let host = Host::run(planned(&rules), service(Declared::Http), settings(), &gateway_credentials(&mesh));
    opened(loopback(ports.0)).await;

    let answer = once(host.lab.address, get("/", &[("host", "far.example.com")])).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "web"));
    let told = backend.last().2;
    assert!(at(&told, "x-forwarded-client-cert").ends_with(";URI=spiffe://mesh.test/ns/edge/sa/edge"));
    assert_eq!(at(&told, "x-forwarded-proto"), "https");
}

/// A host with a gateway that is an instance of a service, so that hops lead to it.
async fn behind_hops(mesh: &hop::Authority, web: SocketAddr, db: SocketAddr, to_tcp: bool) -> Host {
    let ports = (nobody().port(), nobody().port());
    let target = loopback(if to_tcp { ports.1 } else { ports.0 });
    let port = LocalPort { number: PORT, protocol: Protocol::Http, target, bounds: None };
    let instance = Arc::new(LocalInstance {
        id: "gateway-1".into(),
        host: HOST.into(),
        identity: workload("gateway"),
        party: mesh_core::plan::Party::default(),
        telling: Arc::default(),
        version: "".into(),
        ports: vec![port],
        health: Health::Healthy,
    });
    let mut inbound = Inbound::default();
    inbound.instances.insert("gateway-1".into(), instance);
    let plan = Plan { inbound: Arc::new(inbound), ..planned(&rules(web, db, ports)) };
    let host = Host::run(plan, Way::Mesh, settings(), &gateway_credentials(mesh));
    opened(target).await;
    host
}

#[tokio::test]
async fn requests_of_hops_are_visitors_that_have_shown_their_certificate() {
    let (mesh, backend) = (hop::Authority::new(), Backend::http1("web").await);
    let there = behind_hops(&mesh, backend.address, nobody(), false).await;
    let here = source(&mesh, vec![over_mesh(there.lab.address, "gateway", "gateway-1")], Transport::Tcp);

    let answer = once(here.address, get("/a", &[])).await;

    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "web"));
    let (_, _, seen) = backend.last();
    assert_eq!(
        at(&seen, "x-forwarded-client-cert"),
        "By=spiffe://mesh.test/ns/edge/sa/edge;Subject=\"\";URI=spiffe://mesh.test/ns/default/sa/web"
    );
    assert_eq!((at(&seen, "x-forwarded-proto"), at(&seen, "host")), ("https", "reviews"));
}

#[tokio::test]
async fn bytes_of_hops_reach_the_server_that_their_rule_names() {
    let (mesh, behind) = (hop::Authority::new(), echo().await);
    let there = behind_hops(&mesh, nobody(), behind, true).await;
    for (name, expected) in [("db.com", "hello"), ("other.com", "")] {
        let asked = TlsOrigination { sni: name.to_owned(), ..TlsOrigination::default() };
        let endpoints = vec![over_mesh(there.lab.address, "gateway", "gateway-1")];
        let mut to_gateway = cluster(HOST, endpoints);
        to_gateway.tls = UpstreamTls::Mesh(Arc::new(asked));
        let tcp = Some(tcp_service(vec![to(1, to_gateway)]));
        let table = PortTable { number: PORT, tcp, ..PortTable::default() };
        let credentials = mesh.credentials(&["web"]);
        let here = start_with(with_table(table), service(Declared::Tcp), settings(), &credentials);

        let mut stream = TcpStream::connect(here.address).await.expect("open");
        stream.write_all(b"hello").await.expect("sent");
        stream.shutdown().await.expect("sent");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert_eq!(answer, expected, "{name}");
    }
}

/// A gateway that passes hops to one service on, written by hand: its hosts are elsewhere.
async fn passing(mesh: &hop::Authority, there: SocketAddr) -> (Host, SocketAddr) {
    let address = nobody();
    let cluster = Arc::new(cluster(HOST, vec![over_mesh(there, "reviews", "reviews-1")]));
    let origin = ObjectKey::new(Kind::Gateway, "edge", "east");
    let server =
        TlsServer { origin: origin.clone(), port: PORT, terminate: None, inside: Inside::Hop(cluster) };
    let mut tls = HostTable::default();
    tls.add(&sni::format(PORT, "", HOST), Arc::new(server));
    let door = GatewayDoor { port: PORT, tls, ..GatewayDoor::default() };
    let mut doors = Doors::default();
    doors.open.insert(address, Arc::new(Door { origin, seat: 0, kind: DoorKind::Gateway(door) }));
    let plan = Plan { doors: Arc::new(doors), ..with_table(PortTable::default()) };
    let host = Host::run(plan, service(Declared::Http), settings(), &mesh.credentials(&["edge"]));
    opened(address).await;
    (host, address)
}

#[tokio::test]
async fn a_hop_passes_through_a_gateway_that_cannot_read_it() {
    let (mesh, backend) = (hop::Authority::new(), Backend::http1("v1").await);
    let there = hop::destination(&mesh, backend.address, Protocol::Http, Transport::Tcp);
    let (_between, gateway) = passing(&mesh, there.address).await;

    let here = source(&mesh, vec![over_mesh(gateway, "reviews", "reviews-1")], Transport::Tcp);
    let answer = once(here.address, get("/a", &[])).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "v1"));
    // Who answers is proven end to end: the gateway cannot stand in for it.
    let wary = source(&mesh, vec![over_mesh(gateway, "edge", "reviews-1")], Transport::Tcp);
    assert_eq!(once(wary.address, get("/a", &[])).await.status, StatusCode::SERVICE_UNAVAILABLE);

    let opaque = opaque_source(&mesh, vec![over_mesh(gateway, "reviews", "reviews-1")], Transport::Tcp);
    let answer = bytes(opaque.address, b"GET /b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn only_hops_pass_through_a_gateway() {
    let (mesh, backend) = (hop::Authority::new(), Backend::http1("v1").await);
    let there = hop::destination(&mesh, backend.address, Protocol::Http, Transport::Tcp);
    let (_between, gateway) = passing(&mesh, there.address).await;
    let credentials = mesh.credentials(&["web"]);
    let originator = Originator::new(std::path::PathBuf::new(), credentials);
    let settings =
        Arc::new(TlsOrigination { mutual: true, material: TlsMaterial::Mesh, ..TlsOrigination::default() });
    let name = sni::format(PORT, "", HOST);
    for (protocol, name, passes) in [
        (Some(&b"h2"[..]), name.as_str(), true),
        (Some(b"meshd-control/1"), name.as_str(), false),
        (Some(b"meshd-join/1"), name.as_str(), false),
        (None, name.as_str(), false),
        (Some(b"h2"), "outbound_.81_._.reviews.default.svc.cluster.local", false),
    ] {
        let stream = TcpStream::connect(gateway).await.expect("an open port");
        let begun = originator.begin(&settings, Some(&workload("web")), protocol, Some(name), stream).await;
        assert_eq!(begun.is_ok(), passes, "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn bytes_of_a_gateway_do_not_go_in_a_circle() {
    let port = nobody().port();
    let server = format!(
        "  - {{port: {{number: {port}, name: tcp, protocol: TCP}}, bind: 127.0.0.1, hosts: [\"*\"]}}\n"
    );
    let routes = "tcp: [{route: [{destination: {host: me.example.com}}]}]";
    let rules = service_entry("me.example.com", "TCP", loopback(port))
        + &gateway("front", &server)
        + &virtual_service("me", "\"*\"", routes);
    let host = Host::start(&rules, settings());
    opened(loopback(port)).await;

    assert_eq!(bytes(loopback(port), b"hello").await, "");

    let counters = host.lab.stats.shard(0);
    let opened = counters.counters.tcp_connections_total.load(Ordering::Relaxed);
    assert!(counters.counters.refused_loops_total.load(Ordering::Relaxed) > 0);
    assert!(opened <= 3, "{opened} connections were carried");
}
