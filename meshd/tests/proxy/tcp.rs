//! Opaque connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::plan::{OutlierPolicy, PortTable};
use mesh_proto::registration::Protocol;
use meshd::proxy::{Declared, Settings, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::lab::*;
use super::plan::*;

/// Greets, then reads to the end, and only then answers with what it read: works only if each direction ends alone.
pub(crate) async fn echo(greeting: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    meshd::task::spawn("test", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            meshd::task::spawn("test", async move {
                stream.write_all(greeting.as_bytes()).await.expect("open");
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await.expect("bytes");
                stream.write_all(&read).await.expect("open");
            });
        }
    });
    address
}

pub(crate) async fn talk(address: SocketAddr, greeting: &str, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let mut greeted = vec![0; greeting.len()];
    stream.read_exact(&mut greeted).await.expect("a greeting");
    assert_eq!(greeted, greeting.as_bytes());
    stream.write_all(sent).await.expect("open");
    stream.shutdown().await.expect("open");
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.expect("bytes");
    read
}

fn table(destinations: Vec<mesh_core::plan::WeightedCluster>) -> PortTable {
    PortTable { number: PORT, tcp: Some(tcp_service(destinations)), ..PortTable::default() }
}

#[tokio::test]
async fn the_server_may_speak_first_and_each_direction_ends_alone() {
    let db = echo("hello").await;
    let plan = with_table(table(vec![to(1, cluster("db", vec![local(db)]))]));
    let lab = start_with(plan, service(Declared::Tcp), settings(), &no_credentials());
    let sent = vec![7; 300_000];

    for _ in 0..5 {
        assert!(talk(lab.address, "hello", &sent).await == sent);
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_closes_the_connection_and_is_ejected() {
    let db = echo("hello").await;
    let mut cluster = cluster("db", vec![local(nobody()), local(db)]);
    cluster.balancer = mesh_core::plan::Balancer::RoundRobin;
    cluster.endpoints = Arc::new(mesh_core::balance::EndpointSet::new(
        cluster.endpoints.all.clone(),
        &cluster.balancer,
        &mesh_core::plan::LocalityPolicy::Ignore,
        &mesh_core::plan::Locality::default(),
    ));
    cluster.outlier = Some(
        OutlierPolicy {
            consecutive_5xx: 1,
            consecutive_gateway: 0,
            consecutive_local: None,
            error_codes: Vec::new(),
            interval: Duration::from_mins(1),
            base_ejection: Duration::from_mins(1),
            max_ejection_percent: 100,
            min_health_percent: 0,
        }
        .into(),
    );
    let lab = start_with(
        with_table(table(vec![to(1, cluster)])),
        service(Declared::Tcp),
        settings(),
        &no_credentials(),
    );

    let mut closed = 0;
    for _ in 0..10 {
        let mut stream = TcpStream::connect(lab.address).await.expect("a connection");
        let read = stream.read(&mut [0; 5]).await.unwrap_or(0);
        closed += u32::from(read == 0);
    }

    assert_eq!(closed, 1, "as Envoy: the first connection to it fails, and no further goes there");
}

#[tokio::test]
async fn a_destination_that_is_not_there_closes_the_connection() {
    let mut missing = to(1, cluster("db", vec![]));
    missing.cluster = None;
    let lab =
        start_with(with_table(table(vec![missing])), service(Declared::Tcp), settings(), &no_credentials());

    assert_eq!(bytes(lab.address, b"x").await, "");
}

#[tokio::test]
async fn where_servers_are_known_to_speak_first_nobody_waits_for_the_caller() {
    let db = echo("hello").await;
    let mut plan = with_table(PortTable::default());
    change(&mut plan, |outbound| {
        let mut port = (*tcp_service(vec![to(1, cluster("db", vec![local(db)]))])).clone();
        (port.number, port.protocol) = (3306, Protocol::Auto);
        outbound.addresses.insert(("10.4.0.9".parse().expect("an address"), 3306), Arc::new(port));
    });
    let settings = Settings {
        original_destination: |_| "10.4.0.9:3306".parse().ok(),
        sniff_timeout: Duration::from_mins(10),
        ..settings()
    };
    let lab = start_with(plan, Way::Outbound { caller: 0 }, settings, &no_credentials());

    assert_eq!(talk(lab.address, "hello", b"select").await, b"select");
}
