use std::time::{Duration, UNIX_EPOCH};

use mesh_core::resilience::{Flag, Flags};

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
        cell.finished(200, None, false, 0, Duration::from_millis(3));
        cell.finished(503, Some(Flag::NoHealthyUpstream), false, 2, Duration::from_micros(20));
    }

    let rows = stats.snapshot();

    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].requests, rows[0].failures, rows[0].retries), (4, 2, 4));
    assert_eq!(rows[0].latency_us.iter().map(|(_, count)| count).sum::<u64>(), 4);
}

#[test]
fn prometheus_has_istios_names() {
    let stats = Stats::new(1);
    let cell = stats.shard(0).edge(&key("v1"));
    cell.finished(200, None, false, 0, Duration::from_millis(3));
    cell.finished(0, Some(Flag::DownstreamConnectionTermination), false, 0, Duration::from_secs(2));

    let text = stats.prometheus();

    assert!(text.contains("response_code=\"200\",response_flags=\"-\"} 1"), "{text}");
    assert!(text.contains("response_code=\"0\",response_flags=\"DC\"} 1"), "{text}");
    assert!(text.contains("request_protocol=\"http\",le=\"5\"} 1"), "{text}");
    assert!(text.contains("# TYPE meshd_downstream_connections gauge"), "{text}");
}

#[test]
fn lines_are_envoys_default_format_and_cannot_be_forged() {
    let record = Record {
        started: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        method: "GET".into(),
        path: "/a\" 200".into(),
        protocol: "HTTP/1.1",
        authority: "reviews".into(),
        status: 503,
        flags: Flags::from(Flag::NoHealthyUpstream),
        details: "no_healthy_upstream",
        received_bytes: 1,
        sent_bytes: 19,
        duration: Duration::from_millis(7),
        upstream_duration: None,
        forwarded_for: String::new(),
        user_agent: "curl\n".into(),
        request_id: "id".into(),
        upstream_host: String::new(),
        upstream_cluster: "outbound|80||reviews".into(),
        downstream: "127.0.0.1:1".into(),
    };

    let (text, json) = access_log::lines(&record);

    assert_eq!(
        text,
        "[2023-11-14T22:13:20.123Z] \"GET /a\\\" 200 HTTP/1.1\" 503 UH 1 19 7 - \"-\" \"curl\\n\" \"id\" \
         \"reviews\" \"-\"\n"
    );
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value["response_flags"], "UH");
}
