//! Commands on files alone: `explain`, `analyze`, `test`, `validate`. And `explain`, `diff` and `apply --dry-run` on a mesh.

use std::path::Path;

use mesh_proto::api::{Applied, Outcome, Request, Response};
use mesh_proto::command::Revision;
use mesh_proto::explain::{Delta, Difference, Explanation, Turn};
use serde_json::Value;

use crate::server::{Ran, Server, alone, run};

const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    timeout: 2s
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - route: [{destination: {host: reviews, subset: v1}}]
";

const SERVICES: &str = "\
[[service]]
name = \"reviews\"
labels = { version = \"v1\" }
[[service.port]]
number = 9080
protocol = \"http\"
[[service]]
name = \"reviews\"
labels = { version = \"v2\" }
[[service.port]]
number = 9080
protocol = \"http\"
";

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("folder");
    for (name, text) in files {
        std::fs::write(home.path().join(name), text).expect("written");
    }
    home
}

fn within(home: &Path, arguments: &[&str]) -> Ran {
    run(home, None, arguments, "")
}

#[test]
fn explain_on_files_names_rule_reason_and_line() {
    let home = folder(&[("rules.yaml", RULES), ("services.toml", SERVICES)]);

    let ran = within(
        home.path(),
        &[
            "explain",
            "GET",
            "http://reviews:9080/x",
            "-H",
            "end-user: jane",
            "-f",
            "rules.yaml",
            "-f",
            "services.toml",
        ],
    );

    assert_eq!(ran.code, 0, "{}", ran.err);
    for line in [
        "passed over\n  VirtualService default/reviews http[0]  rules.yaml:12:5\n      header end-user = jason: it is \"jane\"\n",
        "  VirtualService default/reviews http[1]  rules.yaml:15:5\n      uri = /old: it is \"/x\"\n",
        "applies\n  VirtualService default/reviews http[2]  rules.yaml:17:5\n",
        "sent to reviews.default.svc.cluster.local:9080 v1\n",
        "reviews-v1 on services",
    ] {
        assert!(ran.out.contains(line), "{line:?} is not in\n{}", ran.out);
    }
}

#[test]
fn explain_as_json_can_be_read_by_scripts() {
    let home = folder(&[("rules.yaml", RULES)]);

    let ran = within(
        home.path(),
        &["explain", "http://reviews/", "-H", "end-user: jason", "-f", "rules.yaml", "-o", "json"],
    );

    let json: Value = serde_json::from_str(&ran.out).expect("JSON");
    let told = &json["items"][0];
    assert_eq!(told["rule"]["path"], "http[0]");
    assert_eq!(told["rule"]["place"], "rules.yaml:12:5");
    assert_eq!(told["destinations"][0]["subset"], "v2");
    assert_eq!(told["destinations"][0]["share"], 1_000_000);
    let timeout = told["settings"].as_array().expect("a list").iter().find(|one| one["what"] == "timeout");
    assert_eq!(timeout.expect("a timeout")["by"], "VirtualService default/reviews http[0].timeout");
}

#[test]
fn a_request_the_mesh_would_not_carry_out_is_1() {
    let home = folder(&[("rules.yaml", &RULES.replace("subset: v1}}]", "subset: v9}}]"))]);

    let ran = within(home.path(), &["explain", "http://reviews/", "-f", "rules.yaml"]);

    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("has a subset v9"), "{}", ran.out);
    assert_eq!(within(home.path(), &["explain", "ftp://reviews/", "-f", "rules.yaml"]).code, 64);
    assert_eq!(within(home.path(), &["explain", "http://reviews/", "-f", "missing.yaml"]).code, 2);
}

#[test]
fn explain_tells_of_connections_and_of_visitors_of_gateways() {
    let example = |name: &str| format!("{}/../examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let explain = |example: &str, asked: &[&str]| alone(&[&["explain"], asked, &["-f", example]].concat());
    let (tcp, gateway) = (example("tcp"), example("gateway"));
    let visit = ["--gateway", "default/shop"];
    for (files, asked, code, line) in [
        (&tcp, &["tcp", "echo:9000"][..], 0, "VirtualService default/echo tcp[0]"),
        (&tcp, &["tcp", "echo:9000"], 0, "carried 80 % to echo.default.svc.cluster.local:9000 v1, 20 % to"),
        (&tcp, &["tcp://edge:31400", "--gateway", "default/echo"], 0, "carried 80 % to echo"),
        (
            &tcp,
            &["tcp", "edge:1", "--gateway", "default/echo"],
            1,
            "nobody listens on port 1 (the gateway opens 31400)",
        ),
        (&tcp, &["tls", "--sni", "no.example.com"], 0, "nobody declares no.example.com:443"),
        (
            &gateway,
            &["https://shop.example.com/login", visit[0], visit[1]],
            0,
            "its certificate is of secret shop",
        ),
        (&gateway, &["https://shop.example.com/login", visit[0], visit[1]], 0, "sent to productpage.default"),
        (&gateway, &["https://shop.example.com/else", visit[0], visit[1]], 1, "404"),
        (&gateway, &["http://shop.example.com/", visit[0], visit[1]], 0, "301 to https://shop.example.com/"),
        (
            &gateway,
            &["https://no.example.com/", visit[0], visit[1]],
            1,
            "no server of the gateway on port 443",
        ),
        (
            &gateway,
            &["https://x/", "--gateway", "edge"],
            1,
            "there is no Gateway default/edge (there are default/shop)",
        ),
        (&gateway, &["tcp", "echo:9000", "--sni", "a"], 64, "--sni is for TLS"),
    ] {
        let ran = explain(files, asked);
        assert_eq!(ran.code, code, "{asked:?}: {}{}", ran.out, ran.err);
        assert!(
            format!("{}{}", ran.out, ran.err).contains(line),
            "{asked:?}: {line} is not in\n{}{}",
            ran.out,
            ran.err
        );
    }
}

#[test]
fn explain_asks_the_mesh_where_no_file_is_named() {
    let server = Server::start(|request, _| match request {
        Request::Explain(ask) => {
            assert_eq!(
                (ask.authority.as_str(), ask.target.as_str(), ask.from.as_str()),
                ("reviews", "/a?b", "productpage")
            );
            Ok(Response::Explained(Box::default()))
        }
        other => panic!("{other:?}"),
    });

    let ran = server.run(&["explain", "http://reviews/a?b", "--from", "productpage", "-o", "json"]);

    let json: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(json["items"][0], serde_json::to_value(Explanation::default()).expect("JSON"));
}

const CASES: &str = "\
rules: [rules.yaml]
services: {reviews: {port: 9080, versions: [v1, v2]}}
cases:
- name: jason
  when: {url: http://reviews:9080/, headers: {end-user: jason}}
  then: {to: {v2: 100}, timeout: 2s}
- name: others
  when: {url: http://reviews:9080/}
  then: {to: {v1: 100}}
";

#[test]
fn cases_pass_and_routes_that_none_reaches_are_named() {
    let home = folder(&[("rules.yaml", RULES), ("reviews.test.yaml", CASES)]);

    let ran = within(home.path(), &["test", ".", "--coverage"]);

    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("2 cases: all as expected\ncoverage: 2 of 3 routes reached\n"), "{}", ran.out);
    assert!(
        ran.out.contains("no case reaches VirtualService default/reviews http[1]  ./rules.yaml:15:5"),
        "{}",
        ran.out
    );
}

#[test]
fn a_case_that_fails_says_what_is_and_why_and_junit_has_it() {
    let cases = CASES.replace("{v1: 100}", "{v1: 90, v2: 10}");
    let home = folder(&[("rules.yaml", RULES), ("reviews.test.yaml", &cases)]);

    let ran = within(home.path(), &["test", "reviews.test.yaml", "--junit", "report.xml"]);

    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.out.contains("to v1 90 %, v2 10 % expected, but it is reviews/v1 100 %"), "{}", ran.out);
    assert!(ran.out.contains("by VirtualService default/reviews http[2] (rules.yaml:17:5)"), "{}", ran.out);
    let report = std::fs::read_to_string(home.path().join("report.xml")).expect("a report");
    assert!(report.contains("<testsuites tests=\"2\" failures=\"1\">"), "{report}");
}

#[test]
fn a_slip_in_a_file_of_cases_is_told() {
    let home = folder(&[
        ("rules.yaml", RULES),
        ("a.test.yaml", &CASES.replace("then: {to: {v1", "then: {too: {v1")),
    ]);

    let ran = within(home.path(), &["test", "a.test.yaml"]);

    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("a.test.yaml") && ran.err.contains("too"), "{}", ran.err);
}

#[test]
fn the_examples_hold() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tests");

    let ran = alone(&["test", examples.to_str().expect("text"), "--coverage"]);

    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("coverage: 7 of 7 routes reached"), "{}", ran.out);
}

#[test]
fn analyze_needs_no_mesh_and_fails_where_it_is_told_to() {
    let strange = RULES.replace("subset: v1}}]", "subset: v9}}]");
    let home = folder(&[("rules.yaml", &strange), ("services.toml", SERVICES)]);

    let ran = within(home.path(), &["analyze", "rules.yaml", "services.toml"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.out.starts_with("error [IST0101] rules.yaml:17:51: VirtualService default/reviews: "),
        "{}",
        ran.out
    );
    assert!(ran.out.ends_with("2 objects: 1 error\n"), "{}", ran.out);
    let hasty = RULES.replace("timeout: 2s", "timeout: 2s\n    retries: {attempts: 3, perTryTimeout: 1s}");
    let warned = folder(&[("rules.yaml", &hasty), ("services.toml", SERVICES)]);
    assert_eq!(within(warned.path(), &["analyze", "."]).code, 1);
    assert_eq!(within(warned.path(), &["analyze", ".", "--fail-on", "error"]).code, 0);

    let json: Value =
        serde_json::from_str(&within(home.path(), &["analyze", ".", "-o", "json"]).out).expect("JSON");
    assert_eq!((&json["items"][0]["code"], &json["items"][0]["line"]), (&"IST0101".into(), &17.into()));
}

#[test]
fn analyze_puts_files_on_top_of_the_mesh() {
    let home = folder(&[("rules.yaml", RULES)]);
    let path = home.path().join("rules.yaml");
    let server = Server::start(|request, _| match request {
        Request::Analyze(batch) => {
            assert_eq!(batch.changes.len(), 2);
            Ok(Response::Findings(Vec::new()))
        }
        other => panic!("{other:?}"),
    });

    let ran = server.run(&["analyze", path.to_str().expect("text"), "--live"]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "2 objects: nothing strange\n"), "{}", ran.err);
}

#[test]
fn validate_lists_findings_with_place_and_field_for_scripts() {
    let home = folder(&[("rules.yaml", &RULES.replace("timeout: 2s", "timeot: 2s"))]);

    let ran = within(home.path(), &["validate", "rules.yaml", "-o", "json"]);

    assert_eq!(ran.code, 1);
    let json: Value = serde_json::from_str(&ran.out).expect("JSON");
    let one = &json["items"][0];
    assert_eq!(one["file"], "rules.yaml");
    assert_eq!((&one["line"], &one["column"], &one["document"]), (&13.into(), &5.into(), &2.into()));
    assert_eq!((&one["path"], &one["severity"]), (&"spec.http[0].timeot".into(), &"error".into()));
    for field in ["code", "message", "hint", "object"] {
        assert!(one[field].is_string(), "{field}: {one}");
    }
    assert_eq!(within(home.path(), &["validate", "missing.yaml", "-o", "json"]).code, 2);
}

fn mesh() -> Server {
    Server::start(|request, _| match request {
        Request::Get(_) => Ok(Response::Resources { revision: Revision(7), items: Vec::new() }),
        Request::Preview(batch) => {
            assert_eq!(batch.changes.len(), 2);
            let delta = Delta { what: "to".into(), before: "reviews".into(), after: "reviews v1".into() };
            Ok(Response::Differences(vec![Difference {
                turn: Turn::Changed,
                host: "reviews.default.svc.cluster.local".into(),
                port: 9080,
                when: "always".into(),
                deltas: vec![delta],
                all_clients: true,
                clients: Vec::new(),
            }]))
        }
        Request::Apply(order) => {
            assert!(order.dry_run);
            let results =
                order.batch.changes.iter().map(|change| (change.key.clone(), Outcome::Created)).collect();
            Ok(Response::Applied(Applied { revision: Revision(7), results, findings: Vec::new() }))
        }
        other => panic!("{other:?}"),
    })
}

#[test]
fn diff_and_dry_run_tell_what_a_change_means_for_traffic() {
    let home = folder(&[("rules.yaml", RULES)]);
    let path = home.path().join("rules.yaml");
    let path = path.to_str().expect("text");
    let meaning = "reviews.default.svc.cluster.local:9080\n  changed route when always  (every caller)\n    to  reviews -> reviews v1\n";

    let diff = mesh().run(&["diff", path]);
    assert_eq!(diff.code, 1, "{}", diff.err);
    assert!(diff.out.ends_with(&format!("what that means for traffic:\n{meaning}")), "{}", diff.out);

    let dry = mesh().run(&["apply", path, "--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.err);
    assert!(dry.out.ends_with(&format!("what that would mean for traffic:\n{meaning}")), "{}", dry.out);
}

#[test]
fn a_thousand_documents_are_read_in_no_time() {
    let one = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: aNUMBER}\nspec: {host: aNUMBER}\n";
    let text: String = (0..1_000).map(|number| one.replace("aNUMBER", &format!("a{number}"))).collect();
    let home = folder(&[("rules.yaml", &text)]);

    let ran = within(home.path(), &["validate", "rules.yaml"]);

    assert_eq!((ran.code, ran.out.as_str()), (0, "1000 objects in 1 file valid\n"), "{}", ran.err);
    assert!(!ran.err.contains('━'), "a bar is for terminals");
}

#[test]
fn one_value_of_a_field_is_taken_and_the_other_named() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a}\nspec:\n  selector: {app: a}\n  servers:\n  - port: {number: 443, name: a, protocol: HTTPS}\n    hosts: ['*']\n    tls: {mode: MUTUAL, credentialName: a, insecureSkipVerify: VALUE}\n";
    let mesh = "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {name: default, namespace: istio-system}\nspec: {FIELD: VALUE}\n";
    let sidecar = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec:\n  workloadSelector: {labels: {app: a}}\n  ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:80', captureMode: VALUE}]\n";
    for (text, field, taken, refused) in [
        (gateway, "insecureSkipVerify", "false", "true"),
        (mesh, "enableAutoMtls", "true", "false"),
        (sidecar, "captureMode", "IPTABLES", "NONE"),
    ] {
        let told = |value: &str| {
            let text = text.replace("FIELD", field).replace("VALUE", value);
            let home = folder(&[("rules.yaml", &text)]);
            within(home.path(), &["validate", "rules.yaml"])
        };
        assert_eq!(told(taken).code, 0, "{field}: {}", told(taken).err);
        let ran = told(refused);
        assert_eq!(ran.code, 1, "{field}");
        let all = ran.out + &ran.err;
        assert!(all.contains(field) && all.contains("is not enforced yet"), "{all}");
    }
}
