use std::time::{Duration, UNIX_EPOCH};

use mesh_core::plan::{Metering, Metric, Party};
use mesh_core::resilience::{Flag, Flags};
use mesh_proto::log_format::LogFormat;

use super::*;

fn key(version: &str) -> EdgeKey {
    EdgeKey {
        source: "default/web".into(),
        destination: "reviews.default.svc.cluster.local".into(),
        port: 9080,
        subset: "v1".into(),
        version: version.into(),
    }
}

#[test]
fn an_edge_is_the_sum_of_its_cells_in_all_workers() {
    let stats = Stats::new(2);
    for worker in 0..2 {
        let cell = stats.shard(worker).edge(&key("v1"));
        cell.finished(200, false, 0, Duration::from_millis(3));
        cell.finished(503, false, 2, Duration::from_micros(20));
    }

    let rows = stats.snapshot();

    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].requests, rows[0].failures, rows[0].retries), (4, 2, 4));
    assert_eq!(rows[0].latency_us.iter().map(|(_, count)| count).sum::<u64>(), 4);
}

fn party(account: &str, version: &str) -> Party {
    let labels = mesh_proto::value::Labels::from([
        ("app".to_owned(), account.to_owned()),
        ("version".to_owned(), version.to_owned()),
    ]);
    Party::new("mesh.test", "shop", account, &labels)
}

fn series_key(spoken: Spoken) -> SeriesKey {
    SeriesKey {
        reporter: Reporter::Destination,
        spoken,
        mutual: true,
        source: party("web", "v1"),
        destination: party("reviews", "v2"),
        service: "reviews.shop.svc.cluster.local".into(),
        flags: Flags::default(),
        metering: None,
    }
}

const END: Finished = Finished {
    status: 200,
    flags: NO_FLAGS,
    grpc: None,
    took: Duration::from_millis(3),
    received: 10,
    sent: 2_000,
};
const NO_FLAGS: Flags = Flags::NONE;

/// Finds the value of a sample that has all of these.
fn sample(text: &str, name: &str, parts: &[&str]) -> Option<f64> {
    let fits = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && parts.iter().all(|part| line.contains(part))
    };
    text.lines().find(fits).and_then(|line| line.rsplit(' ').next()?.parse().ok())
}

#[test]
fn requests_are_told_under_all_of_istios_labels() {
    let stats = Stats::new(2);
    stats.shard(0).series(&series_key(Spoken::Http)).finished(&END);
    stats.shard(1).series(&series_key(Spoken::Http)).finished(&END);

    let text = stats.prometheus(Exposition::Prometheus);

    let labels = [
        r#"reporter="destination""#,
        r#"source_workload="web""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://mesh.test/ns/shop/sa/web""#,
        r#"source_app="web""#,
        r#"source_version="v1""#,
        r#"source_cluster="mesh.test""#,
        r#"source_canonical_service="web""#,
        r#"source_canonical_revision="v1""#,
        r#"destination_workload="reviews""#,
        r#"destination_workload_namespace="shop""#,
        r#"destination_principal="spiffe://mesh.test/ns/shop/sa/reviews""#,
        r#"destination_app="reviews""#,
        r#"destination_version="v2""#,
        r#"destination_cluster="mesh.test""#,
        r#"destination_canonical_service="reviews""#,
        r#"destination_canonical_revision="v2""#,
        r#"destination_service="reviews.shop.svc.cluster.local""#,
        r#"destination_service_name="reviews""#,
        r#"destination_service_namespace="shop""#,
        r#"request_protocol="http""#,
        r#"response_code="200""#,
        r#"response_flags="-""#,
        r#"grpc_response_status="""#,
        r#"connection_security_policy="mutual_tls""#,
    ];
    assert_eq!(sample(&text, "istio_requests_total", &labels), Some(2.0), "{text}");
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).expect("a line");
    assert_eq!(line.matches("=\"").count(), catalog::COMMON_LABELS.len() + 3, "{line}");
}

#[test]
fn histograms_have_envoys_bounds_and_add_up() {
    let stats = Stats::new(1);
    let series = stats.shard(0).series(&series_key(Spoken::Http));
    for micros in [499, 500, 501, 5_000, 5_001, 4_000_000_000] {
        series.finished(&Finished { took: Duration::from_micros(micros), ..END });
    }

    let text = stats.prometheus(Exposition::Prometheus);

    let name = "istio_request_duration_milliseconds_bucket";
    for (bound, count) in [("0.5", 2.0), ("1", 3.0), ("5", 4.0), ("10", 5.0), ("3600000", 5.0), ("+Inf", 6.0)]
    {
        assert_eq!(sample(&text, name, &[&format!("le=\"{bound}\"")]), Some(count), "{bound}");
    }
    assert_eq!(sample(&text, "istio_request_duration_milliseconds_count", &[]), Some(6.0));
    assert_eq!(sample(&text, "istio_request_duration_milliseconds_sum", &[]), Some(4_000_011.501));
    assert_eq!(sample(&text, "istio_response_bytes_bucket", &["le=\"1000\""]), Some(0.0));
    assert_eq!(sample(&text, "istio_response_bytes_bucket", &["le=\"2500\""]), Some(6.0));
}

#[test]
fn opaque_connections_and_messages_are_told_while_they_last() {
    let stats = Stats::new(1);
    let tcp = stats.shard(0).series(&series_key(Spoken::Tcp));
    tcp.opened();
    tcp.bytes(5, 7);
    let grpc = stats.shard(0).series(&series_key(Spoken::Grpc));
    grpc.messages(3, 4);

    let text = stats.prometheus(Exposition::Prometheus);

    let tcp = [r#"request_protocol="tcp""#, r#"response_flags="-""#];
    assert_eq!(sample(&text, "istio_tcp_connections_opened_total", &tcp), Some(1.0));
    assert_eq!(sample(&text, "istio_tcp_connections_closed_total", &tcp), Some(0.0));
    assert_eq!(sample(&text, "istio_tcp_received_bytes_total", &tcp), Some(5.0));
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &tcp), Some(7.0));
    assert_eq!(sample(&text, "istio_request_messages_total", &[r#"request_protocol="grpc""#]), Some(3.0));
    assert_eq!(sample(&text, "istio_response_messages_total", &[r#"request_protocol="grpc""#]), Some(4.0));
}

#[test]
fn series_beyond_the_limit_are_counted_together_and_gone_ones_forgotten() {
    let stats = Stats::new(1);
    let shard = stats.shard(0);
    let key =
        |number: u32| SeriesKey { source: party(&format!("w{number}"), "v1"), ..series_key(Spoken::Http) };
    let held = shard.series_within(2, &key(0));
    shard.series_within(2, &key(1)).finished(&END);
    for number in 2..5 {
        shard.series_within(2, &key(number)).finished(&END);
    }

    let text = stats.prometheus(Exposition::Prometheus);
    assert_eq!(
        sample(&text, "istio_requests_total", &[r#"destination_service="other""#]),
        Some(3.0),
        "{text}"
    );
    assert_eq!(sample(&text, "meshd_overflowed_series_total", &[]), Some(3.0));
    held.finished(&END);
    for _ in 0..=61 {
        shard.minute();
    }
    let text = stats.prometheus(Exposition::Prometheus);
    assert_eq!(sample(&text, "istio_requests_total", &[r#"source_workload="w0""#]), Some(1.0), "it is held");
    assert_eq!(sample(&text, "istio_requests_total", &[r#"source_workload="w1""#]), None, "nobody holds it");
}

#[test]
fn rules_switch_metrics_off_and_change_labels() {
    let stats = Stats::new(1);
    let mut metering = Metering::default();
    metering.0[Metric::RequestSize as usize].disabled = true;
    let count = &mut metering.0[Metric::RequestCount as usize];
    count.removed = vec!["source_version".into(), "response_flags".into()];
    count.set = vec![("source_app".into(), "all".into()), ("stage".into(), "prod".into())];
    let metering = Some(Arc::new(metering));
    for version in ["v1", "v2"] {
        let key = SeriesKey {
            source: party("web", version),
            metering: metering.clone(),
            ..series_key(Spoken::Http)
        };
        let key = SeriesKey { destination: party("reviews", "v1"), ..key };
        // Canonical revisions differ as well.
        let key = if version == "v2" { SeriesKey { source: party("web", "v1"), ..key } } else { key };
        stats.shard(usize::from(version == "v2")).series(&key).finished(&END);
    }

    let text = stats.prometheus(Exposition::Prometheus);

    let labels = [r#"source_app="all""#, r#"stage="prod""#];
    assert_eq!(sample(&text, "istio_requests_total", &labels), Some(2.0), "{text}");
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).expect("a line");
    assert!(!line.contains("source_version") && !line.contains("response_flags"), "{line}");
    assert_eq!(sample(&text, "istio_request_bytes_count", &[]), None);
    assert!(sample(&text, "istio_response_bytes_count", &[]).is_some());
}

/// Runs a script of Python on bytes; `None`: its packages are not installed, which CI does not allow.
fn python(script: &str, argument: &str, input: &[u8]) -> Option<String> {
    let python = std::env::var("MESH_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut child = std::process::Command::new(&python)
        .args(["-c", script, argument])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    std::io::Write::write_all(&mut child.stdin.take().expect("its input"), input).expect("it reads");
    let output = child.wait_with_output().expect("an end");
    if output.status.code() == Some(77) {
        println!("SKIPPED: {python} has not what it takes (prometheus_client, opentelemetry-proto)");
        assert!(std::env::var_os("CI").is_none(), "CI installs it");
        return None;
    }
    assert!(output.status.success(), "{argument}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Reads both expositions with Prometheus' own reader for Python.
#[test]
fn prometheus_own_reader_takes_both_texts() {
    let stats = Stats::new(1);
    for spoken in [Spoken::Http, Spoken::Grpc, Spoken::Tcp] {
        let key = SeriesKey { service: "quo\"te\\d\n".into(), ..series_key(spoken) };
        let series = stats.shard(0).series(&key);
        series.finished(&END);
        series.opened();
        series.messages(1, 1);
    }
    let script = "\
import sys
try:
    from prometheus_client.parser import text_string_to_metric_families as plain
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
except ImportError:
    sys.exit(77)
text = sys.stdin.read()
families = list(openmetrics(text) if sys.argv[1] == 'open' else plain(text))
print(sum(len(family.samples) for family in families))
";
    for (exposition, name) in [(Exposition::Prometheus, "plain"), (Exposition::OpenMetrics, "open")] {
        let text = stats.prometheus(exposition);
        let Some(read) = python(script, name, text.as_bytes()) else { return };
        let written = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(read, written.to_string(), "{name}");
    }
}

fn record() -> Record {
    let cluster = mesh_core::plan::Cluster {
        name: mesh_core::plan::ClusterName { host: "reviews".into(), port: 80, subset: "".into() },
        ..mesh_core::plan::Cluster::default()
    };
    let mut record = Record {
        started: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        method: Some(http::Method::GET),
        status: 503,
        flags: Flags::from(Flag::NoHealthyUpstream),
        details: "no_healthy_upstream",
        received_bytes: 1,
        sent_bytes: 19,
        duration: Duration::from_millis(7),
        goal: Goal::Cluster(Arc::new(cluster)),
        attempts: 3,
        downstream: Some("127.0.0.1:1".parse().expect("an address")),
        grpc: Some(14),
        trace: Some(0xabc),
        ..Record::new("h1".into(), 42)
    };
    record.texts.set_path("/a\"b");
    record.texts.set_authority(b"reviews");
    record.texts.set_route("canary");
    record.texts.add_request("user-agent", b"curl\t\" 200");
    record.texts.add_request("x-request-id", b"id");
    record
}

fn line_of(format: &LogFormat, record: &Record) -> String {
    let mut line = Vec::new();
    line::write(format, record, &mut line);
    String::from_utf8(line).expect("a text")
}

#[test]
fn lines_are_envoys_default_format_and_cannot_be_forged() {
    let text = line_of(&LogFormat::envoy(), &record());

    assert_eq!(
        text,
        "[2023-11-14T22:13:20.123Z] \"GET /a\\\"b HTTP/1.1\" 503 UH 1 19 7 - \"-\" \"curl\\t\\\" 200\" \"id\" \
         \"reviews\" \"-\"\n"
    );
}

#[test]
fn lines_of_json_keep_numbers_and_tell_route_revision_and_attempts() {
    let line = line_of(&LogFormat::json(), &record());

    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(value["response_flags"], "UH");
    assert_eq!(value["response_code"], 503);
    assert_eq!(value["route_name"], "canary");
    assert_eq!((&value["revision"], &value["attempts"]), (&42.into(), &3.into()));
    assert_eq!(value["upstream_host"], serde_json::Value::Null);
    assert_eq!(value["upstream_cluster"], "outbound|80||reviews");
    assert_eq!((&value["path"], &value["user_agent"]), (&"/a\"b".into(), &"curl\t\" 200".into()));
}

#[test]
fn lines_have_the_form_that_a_rule_gives_them() {
    let format = "%START_TIME(%Y/%m/%d %H:%M:%S.%3f %s)% %GRPC_STATUS% %GRPC_STATUS_NUMBER% %TRACE_ID% \
                  %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(X-NONE?USER-AGENT):4% %HOSTNAME% %REQ(:SCHEME)%";
    let line = line_of(&LogFormat::text(format).expect("a format"), &record());

    assert_eq!(
        line,
        "2023/11/14 22:13:20.123 1700000000 Unavailable 14 00000000000000000000000000000abc 127.0.0.1 curl h1 \
         http\n"
    );
}

/// As Envoy 1.40 has written it for a TCP proxy and a router whose endpoint takes no connection.
#[test]
fn what_kept_a_connection_from_its_endpoint_is_told_as_envoy_tells_it() {
    let format = LogFormat::text(
        "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
         \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
         %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %REQ(:SCHEME)%",
    )
    .expect("a format");
    let failed = Record {
        details: "upstream_reset_before_response_started{remote_connection_failure}",
        transport_failure: Some("delayed_connect_error:_Connection_refused".into()),
        downstream: Some("192.0.2.1:0".parse().expect("an address")),
        direct: Some("127.0.0.1:58914".parse().expect("an address")),
        downstream_local: Some("127.0.0.1:28005".parse().expect("an address")),
        ..record()
    };
    let opaque = Record { method: None, status: 0, details: "", ..failed.clone() };

    assert_eq!(
        line_of(&format, &failed),
        "HTTP/1.1 503 upstream_reset_before_response_started{remote_connection_failure|\
         delayed_connect_error:_Connection_refused} - \"delayed_connect_error:_Connection_refused\" - \
         127.0.0.1:28005 192.0.2.1:0 127.0.0.1:58914 http\n"
    );
    assert_eq!(
        line_of(&format, &opaque),
        "- 0 - - \"delayed_connect_error:_Connection_refused\" - 127.0.0.1:28005 192.0.2.1:0 127.0.0.1:58914 -\n"
    );
}

/// Both lines are those of Istio's task "Envoy Access Logs": of the calling proxy, and of the called one.
#[test]
fn lines_in_istios_format_are_those_of_its_documentation() {
    let address = |text: &str| text.parse().expect("an address");
    let name = mesh_core::plan::ClusterName {
        host: "httpbin.foo.svc.cluster.local".into(),
        port: 8000,
        subset: "".into(),
    };
    let cluster = mesh_core::plan::Cluster { name, ..mesh_core::plan::Cluster::default() };
    let mut calling = Record {
        started: UNIX_EPOCH + Duration::from_millis(1_606_339_578_409),
        method: Some(http::Method::GET),
        status: 418,
        details: "via_upstream",
        sent_bytes: 135,
        duration: Duration::from_micros(4_999),
        upstream_duration: Some(Duration::from_micros(4_001)),
        upstream: Some(mesh_core::plan::Via::Plain(address("10.44.1.27:80"))),
        goal: Goal::Cluster(Arc::new(cluster)),
        upstream_local: Some(address("10.44.1.23:37652")),
        downstream_local: Some(address("10.0.45.184:8000")),
        downstream: Some(address("10.44.1.23:46520")),
        ..Record::new("sleep".into(), 1)
    };
    calling.texts.set_path("/status/418");
    calling.texts.set_authority(b"httpbin:8000");
    calling.texts.set_route("default");
    calling.texts.add_request("user-agent", b"curl/7.73.0-DEV");
    calling.texts.set_request("x-request-id", b"replaced");
    calling.texts.set_request("x-request-id", b"84961386-6d84-929d-98bd-c5aee93b5c88");
    let called = Record {
        duration: Duration::from_millis(3),
        upstream_duration: Some(Duration::from_millis(1)),
        upstream: Some(mesh_core::plan::Via::Local(address("127.0.0.1:80"))),
        goal: Goal::Inbound(8000),
        upstream_local: Some(address("127.0.0.1:41854")),
        downstream_local: Some(address("10.44.1.27:80")),
        downstream: Some(address("10.44.1.23:37652")),
        server_name: Some("outbound_.8000_._.httpbin.foo.svc.cluster.local".into()),
        ..calling.clone()
    };

    let request = "[2020-11-25T21:26:18.409Z] \"GET /status/418 HTTP/1.1\" 418 - via_upstream - \"-\" 0 135";
    let caller = "\"-\" \"curl/7.73.0-DEV\" \"84961386-6d84-929d-98bd-c5aee93b5c88\" \"httpbin:8000\"";
    assert_eq!(
        line_of(&LogFormat::istio(), &calling),
        format!(
            "{request} 4 4 {caller} \"10.44.1.27:80\" outbound|8000||httpbin.foo.svc.cluster.local \
             10.44.1.23:37652 10.0.45.184:8000 10.44.1.23:46520 - default\n"
        )
    );
    assert_eq!(
        line_of(&LogFormat::istio(), &called),
        format!(
            "{request} 3 1 {caller} \"127.0.0.1:80\" inbound|8000|| 127.0.0.1:41854 10.44.1.27:80 \
             10.44.1.23:37652 outbound_.8000_._.httpbin.foo.svc.cluster.local default\n"
        )
    );
}

#[test]
fn every_number_and_every_octet_is_written_as_rust_writes_it() {
    let format = LogFormat::text("%BYTES_SENT% %DOWNSTREAM_REMOTE_ADDRESS%").expect("a format");
    let around = (0..20_u32).map(|power| 10_u64.pow(power)).flat_map(|ten| [ten - 1, ten, ten + 1]);
    let octets = 0..256_u64;
    for number in octets.chain(around).chain([65_535, 65_536, u64::MAX]) {
        let [.., port_high, port_low] = number.to_be_bytes();
        let address: std::net::SocketAddr =
            ([port_low, 255 - port_low, 1, port_high], u16::from_be_bytes([port_high, port_low])).into();
        let record = Record { sent_bytes: number, downstream: Some(address), ..record() };

        assert_eq!(line_of(&format, &record), format!("{number} {address}\n"));
    }
}

#[test]
fn what_could_forge_a_line_is_escaped_wherever_it_stands() {
    let format = LogFormat::text("%REQ(:PATH)%").expect("a format");
    for length in 1..20 {
        for (at, odd) in (0..length).flat_map(|at| (0..=0x17f).map(move |odd| (at, odd))) {
            let Some(odd) = char::from_u32(odd) else { continue };
            let text: String = (0..length).map(|place| if place == at { odd } else { '~' }).collect();
            let mut record = record();
            record.texts.set_path(&text);

            let escaped = |c: char| match c {
                '"' => "\\\"".to_owned(),
                c if c.is_control() => c.escape_default().to_string(),
                c => c.to_string(),
            };
            let expected: String = text.chars().map(escaped).collect();
            assert_eq!(line_of(&format, &record), expected + "\n", "{length} {at} {odd:?}");
        }
    }
}

/// Records go round and lines are written many at once: none may be lost, told twice, or show what was another's.
#[test]
fn lines_keep_their_order_and_show_nothing_of_those_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let telling = |name: &str| {
        let path = Some(path(name).to_string_lossy().into_owned());
        let format =
            LogFormat::text("%BYTES_SENT% %REQ(X-A)% %UPSTREAM_TRANSPORT_FAILURE_REASON%").expect("a format");
        let target = mesh_core::plan::LogTarget { path, format };
        let logs = vec![Arc::new(mesh_core::plan::Logging { target, filter: None })];
        Arc::new(mesh_core::plan::Telling { logs, ..mesh_core::plan::Telling::default() })
    };
    let tellings = [telling("odd"), telling("even")];
    let lines = Lines::new(AccessLog::for_rules().expect("a log"));
    // Runs of one caller's, longer and shorter than what is written at once.
    let of = |number: u64| usize::from(number % 100 < 50);
    for number in 0..1_000 {
        let mut record = lines.record(&"h1".into());
        record.sent_bytes = number;
        if number.is_multiple_of(3) {
            record.texts.add_request("x-a", b"third");
            record.transport_failure = Some("why".into());
        }
        lines.tell(Some(&tellings[of(number)]), record);
        if number == 500 {
            lines.flush();
        }
    }
    // Waits for the last lines.
    drop(lines);

    for (which, name) in ["odd", "even"].into_iter().enumerate() {
        let text = |number: u64| if number.is_multiple_of(3) { "third why" } else { "- -" };
        let expected = (0..1_000).filter(|number| of(*number) == which);
        let expected: Vec<String> = expected.map(|number| format!("{number} {}", text(number))).collect();
        let written = std::fs::read_to_string(path(name)).expect("the log");
        assert_eq!(written.lines().collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let log = AccessLog::start(Format::Text, &Sink::File(path.clone())).expect("a log");
    let gathering = Lines::new(log);
    let write = || {
        gathering.tell(None, Box::new(record()));
        gathering.flush();
    };
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    write();
    while lines(&path) == 0 {
        assert!(std::time::Instant::now() < deadline, "the first line is not written");
    }
    std::fs::rename(&path, folder.path().join("access.log.1")).expect("moved");

    while lines(&path) == 0 {
        assert!(std::time::Instant::now() < deadline, "the file is not opened anew");
        write();
        std::thread::yield_now();
    }
}

/// Reads spans with OpenTelemetry's own messages for Python.
#[test]
fn spans_are_what_opentelemetry_reads() {
    let span = otlp::Span {
        trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
        id: 2,
        parent: 3,
        state: "a=b",
        name: "reviews:9080/*",
        is_server: true,
        started: UNIX_EPOCH + Duration::from_nanos(1),
        ended: UNIX_EPOCH + Duration::from_nanos(2),
        failed: true,
    };
    let long = "x".repeat(200);
    let tags = [("n", otlp::Tag::Number(-300)), ("t", otlp::Tag::Text(&long))];
    let mut spans = otlp::Spans::default();
    spans.add(&span, tags.into_iter(), &mut Vec::new());
    let resource = otlp::Resource { tags: vec![("service.name", "reviews.shop")], spans: &spans };
    let script = "\
import sys
try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
except ImportError:
    sys.exit(77)
request = ExportTraceServiceRequest()
request.ParseFromString(sys.stdin.buffer.read())
for resource in request.resource_spans:
    service = resource.resource.attributes[0]
    for span in resource.scope_spans[0].spans:
        print(service.key, service.value.string_value, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
              span.trace_state, span.name, span.kind, span.start_time_unix_nano, span.end_time_unix_nano,
              span.attributes[0].value.int_value, len(span.attributes[1].value.string_value), span.status.code)
";

    let Some(read) = python(script, "spans", &otlp::export(&[resource], 0)) else { return };

    assert_eq!(
        read,
        "service.name reviews.shop 0af7651916cd43dd8448eb211c80319c 0000000000000002 0000000000000003 a=b \
         reviews:9080/* 2 1 2 -300 200 2"
    );
}
