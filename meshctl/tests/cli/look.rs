//! Commands that show something: tables, JSON, tokens on standard output.

use mesh_proto::api::{EdgeStats, HostStats, Request, Response, RouteView, Scope};
use mesh_proto::command::{Timestamp, TokenRole};
use mesh_proto::registration::Probe;

use crate::server::Server;

#[test]
fn a_token_stands_alone_on_standard_output() {
    let server = Server::start(|request, _| {
        assert_eq!(*request, Request::CreateToken { role: Some(TokenRole::Agent), ttl_seconds: 900 });
        Ok(Response::Token { line: "mesh1-abc".into(), role: TokenRole::Agent, expires: Timestamp(0) })
    });

    let ran = server.run(&["token", "create", "--ttl", "15m", "--role", "agent"]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "mesh1-abc\n"));
    assert!(ran.err.contains("meshd join ADDRESS < token"), "{}", ran.err);
}

#[test]
fn register_sends_what_the_flags_say() {
    let server = Server::start(|_, _| Ok(Response::Done));

    let ran = server.run(&[
        "service",
        "register",
        "reviews",
        "--port",
        "9080:http:8081",
        "--label",
        "version=v1",
        "--account",
        "books",
        "--check-http",
        "/health",
        "--check-interval",
        "500ms",
    ]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "instance reviews-v1 of default/reviews registered\n"));
    let requests = server.requests();
    let [Request::Register { instances }] = requests.as_slice() else { panic!("{requests:?}") };
    let instance = &instances["reviews-v1"];
    assert_eq!(instance.account, "books");
    assert_eq!(instance.ports[0].target.to_string(), "127.0.0.1:8081");
    let check = instance.check.as_ref().expect("a check");
    assert_eq!((check.interval_ms, check.timeout_ms), (500, 500));
    assert!(matches!(&check.probe, Probe::Http { path, port: None, .. } if path == "/health"));
}

#[test]
fn json_is_one_object_without_colours_or_hints() {
    let server = Server::start(|_, _| {
        Ok(Response::Routes(vec![RouteView {
            host: "reviews".into(),
            port: 9080,
            index: 0,
            name: String::new(),
            when: "always".into(),
            then: "v1".into(),
            with: Vec::new(),
            by: "default".into(),
            gateway: String::new(),
        }]))
    });

    let ran = server.run(&["routes", "reviews", "-o", "json"]);

    let value: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(value["version"], 1);
    assert_eq!(value["items"][0]["when"], "always");
    assert_eq!(ran.err, "");
}

#[test]
fn a_table_that_is_piped_has_no_colours() {
    let server = Server::start(|_, _| Ok(Response::Services(Vec::new())));

    let ran = server.run(&["service", "list"]);

    assert_eq!(ran.out, "no services yet; `meshctl service register NAME --port PORT` offers one\n");
    assert!(!ran.out.contains('\u{1b}'));
}

#[test]
fn top_once_measures_between_two_readings() {
    let server = Server::start(|request, before| {
        assert_eq!(*request, Request::Stats { scope: Scope::Mesh });
        let edge = EdgeStats {
            source: "default/productpage".into(),
            destination: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            version: "v2".into(),
            requests: 100 + 50 * before as u64,
            latency_us: vec![(2_000, 100 + 50 * before as u64)],
            ..EdgeStats::default()
        };
        Ok(Response::Stats(vec![HostStats {
            host: "vm1".into(),
            uptime_ms: 1_000 + before as u64,
            edges: vec![edge],
        }]))
    });

    let ran = server.run(&["top", "--once", "--interval", "100ms", "-o", "json"]);

    let value: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(value["items"][0]["requests"], 50);
    assert_eq!(value["items"][0]["p50_us"], 2_000);
}
