//! Lines of access logs.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use mesh_core::plan::{LogTarget, Logging, Plan, Telling, WantedHeaders};
use mesh_proto::command::Revision;
use mesh_proto::expression::Expression;
use mesh_proto::log_format::LogFormat;
use meshd::proxy::Declared;
use meshd::telemetry::{AccessLog, Format, Sink};
use tokio::net::TcpListener;

use super::super::hop::HOST;
use super::super::lab::{
    Backend, Client, get, loopback, once, request, service, start_logging, start_logging_as, until,
};
use super::super::plan::{change, cluster, forward, forwarding, local, plan, simple, to};
use super::tells;

#[tokio::test]
async fn requests_are_logged_where_rules_say_and_when() {
    let backend = Backend::http1("v1").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shop.log");
    let format =
        LogFormat::text("%RESPONSE_CODE% %REQ(X-SHOP)% %RESP(X-INSTANCE)% %ROUTE_NAME%").expect("a format");
    let logging = Logging {
        target: LogTarget { path: Some(path.to_string_lossy().into_owned()), format },
        filter: Some(
            Expression::condition("response.code >= 400 && request.method == 'GET'").expect("a filter"),
        ),
    };
    let mut wanted = WantedHeaders::default();
    wanted.add(&logging);
    let told = Telling { logs: vec![Arc::new(logging)], wanted, ..Telling::default() };
    let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, vec![local(backend.address)]))])]);
    change(&mut plan, |outbound| outbound.telling = Arc::new(told));
    let own = AccessLog::start(Format::Text, &Sink::File(folder.path().join("own.log"))).expect("a log");
    let lab = start_logging(plan, own);
    let mut client = Client::new(lab.address).await;

    client.send(get("/", &[("x-shop", "a")])).await;
    client.send(get("/", &[("x-shop", "b"), ("x-want-status", "404")])).await;
    client.send(request(Method::POST, "/", &[("x-want-status", "500")], "")).await;

    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    until("all three are in the host's own", || {
        read("own.log").lines().count() == 3 && !read("shop.log").is_empty()
    })
    .await;
    assert_eq!(read("shop.log"), "404 b v1 default\n");
}

/// The flag is Envoy's where the last of its tries has failed, too.
#[tokio::test]
async fn a_retried_request_tells_its_attempts_and_the_revision_of_its_rules() {
    let backend = Backend::http1("v1").await;
    let folder = tempfile::tempdir().expect("a folder");
    let (text, json) = (folder.path().join("text.log"), folder.path().join("json.log"));
    let mut forward = forward(vec![to(1, cluster(HOST, vec![local(backend.address)]))]);
    forward.retry.on.server_error = true;
    forward.retry.attempts = 3;
    let mut plan = plan(vec![("reviews", vec![forwarding(forward)])]);
    plan.revision = Revision(42);
    let words = "%RESPONSE_CODE% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %MESH_REVISION% %RESPONSE_FLAGS%";
    let target = LogTarget {
        path: Some(text.to_string_lossy().into_owned()),
        format: LogFormat::text(words).expect("a format"),
    };
    let told = Telling { logs: vec![Arc::new(Logging { target, filter: None })], ..Telling::default() };
    change(&mut plan, |outbound| outbound.telling = Arc::new(told));
    let lab = start_logging(plan, AccessLog::start(Format::Json, &Sink::File(json.clone())).expect("a log"));

    once(lab.address, get("/", &[("x-want-status", "503")])).await;
    once(lab.address, get("/", &[])).await;

    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    let both = || [&text, &json].iter().all(|path| read(path).lines().count() == 2);
    until("both are in both logs", both).await;
    assert_eq!(read(&text), "503 4 42 URX\n200 1 42 -\n");
    let lines = read(&json);
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let told: Vec<_> = lines.map(|line| (line["attempts"].clone(), line["revision"].clone())).collect();
    assert_eq!(told, [(4.into(), 42.into()), (1.into(), 42.into())]);
    assert_eq!(backend.hits(), 5);
}

/// A log of every line, in a form that names what Envoy's TCP proxy tells.
fn connections_log(folder: &std::path::Path) -> (Telling, impl Fn() -> String + use<>) {
    let path = folder.join("tcp.log");
    let text = "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
        %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
        %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% \
        %UPSTREAM_REQUEST_ATTEMPT_COUNT%";
    let format = LogFormat::text(text).expect("a format");
    let target = LogTarget { path: Some(path.to_string_lossy().into_owned()), format };
    let told = Telling { logs: vec![Arc::new(Logging { target, filter: None })], ..Telling::default() };
    (told, move || std::fs::read_to_string(&path).unwrap_or_default())
}

fn opaque_plan(target: SocketAddr, told: Telling) -> Plan {
    let rules =
        super::super::plan::tcp_service(vec![super::super::plan::to(1, cluster(HOST, vec![local(target)]))]);
    let table = mesh_core::plan::PortTable {
        number: super::super::plan::PORT,
        tcp: Some(rules),
        ..Default::default()
    };
    let mut plan = super::super::plan::with_table(table);
    change(&mut plan, |outbound| outbound.telling = Arc::new(told));
    plan
}

/// The fields are those that Envoy 1.40 has written for its TCP proxy.
#[tokio::test]
async fn an_opaque_connection_is_a_line_of_the_access_log_when_it_ends() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind(loopback(0)).await.expect("a port");
    let target = listener.local_addr().expect("an address");
    let (told, read) = connections_log(folder.path());
    let log = AccessLog::for_rules().expect("a log");
    let lab = start_logging_as(opaque_plan(target, told), service(Declared::Tcp), log);
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let (mut served, from) = listener.accept().await.expect("a connection");
    client.write_all(b"hello").await.expect("sent");
    served.read_exact(&mut [0; 5]).await.expect("received");
    served.write_all(b"hello you!").await.expect("sent");
    client.read_exact(&mut [0; 10]).await.expect("received");
    assert_eq!(read(), "", "not before it ends");
    let caller = client.local_addr().expect("an address");

    drop((client, served));

    until("its line is there", || read().ends_with('\n')).await;
    let here = lab.address;
    assert_eq!(
        read(),
        format!("- 0 - \"-\" 5 10 {target} outbound|80||{HOST} {from} {here} {caller} - - 1\n")
    );
}

#[tokio::test]
async fn an_opaque_connection_that_reaches_nobody_is_told_with_envoys_flags() {
    use tokio::io::AsyncReadExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let target = super::super::lab::nobody();
    let (told, read) = connections_log(folder.path());
    let log = AccessLog::for_rules().expect("a log");
    let lab = start_logging_as(opaque_plan(target, told), service(Declared::Tcp), log);
    let mut client = tokio::net::TcpStream::connect(lab.address).await.expect("a connection");
    let caller = client.local_addr().expect("an address");

    let _ = client.read(&mut [0; 1]).await;

    until("its line is there", || read().ends_with('\n')).await;
    let here = lab.address;
    assert_eq!(
        read(),
        format!(
            "- 0 UF,URX \"delayed_connect_error:_Connection_refused\" 0 0 {target} outbound|80||{HOST} - {here} \
             {caller} - - 1\n"
        )
    );
    let parts = [r#"response_flags="UF,URX""#, r#"request_protocol="tcp""#];
    assert!(tells(&lab, "istio_tcp_connections_closed_total", &parts));
}

#[tokio::test]
async fn a_request_that_reaches_nobody_tells_why_and_one_that_does_from_where() {
    let backend = Backend::http1("v1").await;
    let folder = tempfile::tempdir().expect("a folder");
    for (name, target) in [("good", backend.address), ("gone", super::super::lab::nobody())] {
        let path = folder.path().join(name);
        let text = "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
            %UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %REQ(:SCHEME)%";
        let target_of = LogTarget {
            path: Some(path.to_string_lossy().into_owned()),
            format: LogFormat::text(text).expect("a format"),
        };
        let logging = Arc::new(Logging { target: target_of, filter: None });
        let mut plan = plan(vec![("reviews", vec![simple(cluster(HOST, vec![local(target)]))])]);
        let told = Telling { logs: vec![logging], ..Telling::default() };
        change(&mut plan, |outbound| outbound.telling = Arc::new(told));
        let lab = start_logging(plan, AccessLog::for_rules().expect("a log"));

        once(lab.address, get("/", &[])).await;

        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        until("its line is there", || read().ends_with('\n')).await;
        let (line, here) = (read(), lab.address);
        if name == "good" {
            let from = line.split(' ').nth(4).and_then(|from| from.parse::<SocketAddr>().ok());
            let from =
                from.filter(|from| from.ip() == target.ip() && from.port() != 0).expect("an address of ours");
            assert_eq!(line, format!("200 via_upstream \"-\" {target} {from} {here} http\n"));
        } else {
            let why = "delayed_connect_error:_Connection_refused";
            let details =
                format!("upstream_reset_before_response_started{{remote_connection_failure|{why}}}");
            assert_eq!(line, format!("503 {details} \"{why}\" {target} - {here} http\n"));
        }
    }
}
