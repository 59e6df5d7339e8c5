//! Commands that look at hosts: what they ask, what scripts get of it.

use mesh_proto::api::{ErrorCode, Request, Response};
use mesh_proto::look::{Check, Checkup, Grade, LogState, TapAsk, Tapped, TappedRequest};

use crate::server::{Server, alone, no};

fn checkup(grade: Grade) -> Response {
    let checks = vec![
        Check::good("ports", "all are open"),
        Check::new(grade, "firewall", "TCP 15008 is dropped", "others cannot come", "ufw allow 15008/tcp"),
    ];
    Response::Checkup(Box::new(Checkup { host: "vm1".into(), running: true, checks }))
}

#[test]
fn doctor_fails_from_the_severity_on_that_is_asked_for() {
    for (grade, fail_on, code) in [
        (Grade::Error, "error", 1),
        (Grade::Warning, "warning", 1),
        (Grade::Warning, "error", 0),
        (Grade::Info, "warning", 0),
        (Grade::Info, "info", 1),
    ] {
        let server = Server::start(move |request, _| {
            assert_eq!(*request, Request::Doctor);
            Ok(checkup(grade))
        });

        let ran = server.run(&["doctor", "--fail-on", fail_on]);

        assert_eq!(ran.code, code, "{grade:?} {fail_on}: {} {}", ran.out, ran.err);
        assert!(ran.out.contains("fix: ufw allow 15008/tcp") && ran.out.contains("ports"), "{}", ran.out);
    }
}

#[test]
fn another_host_is_asked_by_way_of_this_one() {
    let server = Server::start(|request, _| {
        let Request::On { host, request } = request else { panic!("{request:?}") };
        assert_eq!(host, "vm9");
        match **request {
            Request::Doctor => Ok(checkup(Grade::Good)),
            _ => no(ErrorCode::NotFound, "the mesh has no host \"vm9\" (it has vm1)"),
        }
    });

    let doctor = server.run(&["--host", "vm9", "doctor", "-o", "json"]);
    let routes = server.run(&["--host", "vm9", "routes"]);

    let json: serde_json::Value = serde_json::from_str(&doctor.out).expect("JSON");
    assert_eq!((doctor.code, json["items"][0]["checks"][1]["grade"].as_str()), (0, Some("good")));
    assert_eq!(routes.code, 1);
    assert!(routes.err.contains("the mesh has no host"), "{}", routes.err);
}

#[test]
fn a_tap_asks_for_what_the_flags_say_shows_no_more_than_its_limit_and_ends() {
    let server = Server::start(|request, _| {
        let Request::On { request, .. } = request else { panic!("{request:?}") };
        let Request::Tap(ask) = &**request else { panic!("{request:?}") };
        let one = TappedRequest {
            method: "GET".into(),
            path: "/a".into(),
            status: 200,
            ..TappedRequest::default()
        };
        let requests = if ask.end { Vec::new() } else { vec![one; 3] };
        Ok(Response::Tapped(Tapped { host: "vm1".into(), requests, missed: 7 }))
    });

    let ran = server.run(&[
        "--host",
        "vm1",
        "tap",
        "--service",
        "reviews",
        "--status",
        "5xx",
        "-H",
        "End-User=jason",
        "--one-in",
        "10",
        "--limit",
        "2",
    ]);

    assert_eq!((ran.code, ran.out.lines().count()), (0, 2), "{} {}", ran.out, ran.err);
    assert!(ran.err.contains("were left out"), "{}", ran.err);
    let asks: Vec<TapAsk> = server
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::On { request, .. } => match *request {
                Request::Tap(ask) => Some(*ask),
                _ => None,
            },
            _ => None,
        })
        .collect();
    let first = &asks[0];
    assert_eq!(first.filter.service.as_deref(), Some("reviews"));
    assert_eq!(first.filter.headers, [("end-user".to_owned(), Some("jason".to_owned()))]);
    assert_eq!((first.one_in, first.secrets), (10, false));
    assert!(asks.last().is_some_and(|last| last.end && last.id == first.id), "{asks:?}");
}

#[test]
fn a_log_level_is_sent_with_its_time() {
    let server = Server::start(|request, _| {
        let Request::LogLevel(ask) = request else { panic!("{request:?}") };
        assert_eq!((ask.level.as_deref(), ask.seconds), (Some("debug"), Some(300)));
        Ok(Response::LogLevel(LogState {
            host: "vm1".into(),
            level: "debug".into(),
            configured: "info".into(),
            until: None,
        }))
    });

    let ran = server.run(&["logs", "level", "debug", "--for", "5m"]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "vm1 logs debug until meshd ends; then info\n"));
    assert_eq!(alone(&["logs", "level", "--for", "5m"]).code, 64);
}
