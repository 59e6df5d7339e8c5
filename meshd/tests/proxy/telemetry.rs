//! What is told of requests: numbers at both ends ([`logs`] and [`spans`] have rooms of their own).

mod logs;
mod spans;

use http::Method;
use mesh_core::plan::Party;
use mesh_proto::registration::Protocol;
use mesh_proto::value::Labels;
use meshd::proxy::Declared;
use meshd::telemetry::Exposition;
use meshd::transport::Transport;
use tokio::net::TcpListener;

use super::hop::{Authority, HOST, destination, over_mesh, source};
use super::lab::{
    Backend, Lab, get, loopback, no_credentials, once, request, service, settings, start, start_with, until,
};
use super::plan::{cluster, local, plan, simple};

/// Whether a line of a metric has all of these.
fn tells(lab: &Lab, metric: &str, parts: &[&str]) -> bool {
    let text = lab.stats.prometheus(Exposition::Prometheus);
    text.lines()
        .any(|line| line.starts_with(&format!("{metric}{{")) && parts.iter().all(|part| line.contains(part)))
}

#[tokio::test]
async fn a_request_over_a_hop_is_counted_at_both_ends() {
    let (authority, backend) = (Authority::new(), Backend::http1("v1").await);
    let there = destination(&authority, backend.address, Protocol::Http, Transport::Tcp);
    let here = source(&authority, vec![over_mesh(there.address, "reviews", "reviews-1")], Transport::Tcp);

    once(here.address, request(Method::POST, "/a", &[], "hello")).await;

    let common = [
        r#"source_workload="web""#,
        r#"source_workload_namespace="default""#,
        r#"source_principal="spiffe://mesh.test/ns/default/sa/web""#,
        r#"destination_principal="spiffe://mesh.test/ns/default/sa/reviews""#,
        r#"destination_service_name="reviews""#,
        r#"response_code="200""#,
        r#"response_flags="-""#,
    ];
    let at_source =
        [&common[..], &[r#"reporter="source""#, r#"connection_security_policy="unknown""#]].concat();
    until("the source tells", || tells(&here, "istio_requests_total", &at_source)).await;
    let there_too = [
        &common[..],
        &[
            r#"reporter="destination""#,
            r#"connection_security_policy="mutual_tls""#,
            r#"destination_version="v1""#,
            r#"source_canonical_service="web""#,
        ],
    ]
    .concat();
    until("the destination tells", || tells(&there, "istio_requests_total", &there_too)).await;
    for lab in [&here, &there] {
        let small = [r#"le="10""#, r"} 1"];
        assert!(tells(lab, "istio_request_bytes_bucket", &small), "five bytes are in the bucket of ten");
        assert!(tells(lab, "istio_request_duration_milliseconds_count", &[r"} 1"]));
    }
    let (_, _, headers) = backend.last();
    assert!(headers.keys().all(|name| !name.as_str().starts_with("x-mesh-source")), "{headers:?}");
}

#[tokio::test]
async fn a_request_that_stays_on_its_host_is_counted_at_both_ends_there() {
    let backend = Backend::http1("v1").await;
    let labels = Labels::from([("version".to_owned(), "v7".to_owned())]);
    let mut endpoint = local(backend.address);
    endpoint.traits.party = Party::new("mesh.test", "default", "reviews", &labels);
    let lab = start(plan(vec![("reviews", vec![simple(cluster(HOST, vec![endpoint]))])]));

    once(lab.address, get("/", &[])).await;

    for reporter in ["source", "destination"] {
        let reporter = format!("reporter=\"{reporter}\"");
        let parts = [&*reporter, r#"destination_version="v7""#, r#"source_workload="web""#];
        until("both tell", || tells(&lab, "istio_requests_total", &parts)).await;
    }
}

#[tokio::test]
async fn an_opaque_connection_is_counted_while_it_lasts() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let target = listener.local_addr().expect("an address");
    let rules = super::plan::tcp_service(vec![super::plan::to(1, cluster(HOST, vec![local(target)]))]);
    let table =
        mesh_core::plan::PortTable { number: super::plan::PORT, tcp: Some(rules), ..Default::default() };
    let plan = super::plan::with_table(table);
    let lab = start_with(plan, service(Declared::Tcp), settings(), &no_credentials());
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let (mut served, _) = listener.accept().await.expect("a connection");

    client.write_all(b"hello").await.expect("sent");
    served.read_exact(&mut [0; 5]).await.expect("received");

    let parts = [r#"reporter="source""#, r#"request_protocol="tcp""#];
    let with = |last: &'static str| [&parts[..], &[last]].concat();
    until("bytes are told", || tells(&lab, "istio_tcp_received_bytes_total", &with("} 5"))).await;
    assert!(tells(&lab, "istio_tcp_connections_opened_total", &with("} 1")));
    assert!(tells(&lab, "istio_tcp_connections_closed_total", &with("} 0")));
    drop((client, served));
    until("its end is told", || tells(&lab, "istio_tcp_connections_closed_total", &with("} 1"))).await;
}
