use proptest::prelude::*;
use std::time::{Duration, Instant};

use super::*;
use crate::resource::{Kind, Spec};
use crate::value::StringMatch;

const REVIEWS: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
      weight: 90
    - destination: {host: reviews, subset: v2}
      weight: 10
";

/// Returns the lines a user sees.
fn lines(text: &str) -> Vec<String> {
    inspect("rules.yaml", text).1.iter().map(ToString::to_string).collect()
}

/// Returns what is said about a specification of a `VirtualService`; its first line is line 5.
fn about(spec: &str) -> Vec<String> {
    lines(&format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n{spec}"
    ))
}

#[test]
fn a_good_file_has_objects_and_no_findings() {
    let (documents, findings) = inspect("rules.yaml", REVIEWS);
    assert!(findings.is_empty(), "{findings:?}");
    let document = &documents[0];
    assert_eq!(document.object.key().to_string(), "VirtualService default/reviews");
    assert!(!document.namespace_given);
    let Spec::VirtualService(spec) = &document.object.spec else { panic!("a VirtualService") };
    assert_eq!(spec.http[0].route[1].weight, Some(10));
}

#[test]
fn every_field_knows_its_place() {
    let (documents, _) = read("rules.yaml", &format!("# first\n---\n{REVIEWS}"));
    let at = |path: &str| {
        let place = documents[0].at(path);
        (place.line, place.column)
    };
    assert_eq!(at("spec.http[0].route[1].weight"), (14, 15));
    assert_eq!(at("spec.http[0].route[1]"), (13, 7));
    assert_eq!(at("spec.http"), (9, 3));
    // Of a field that is not there, the nearest around it.
    assert_eq!(at("spec.http[0].route[1].headers.request"), (13, 7));
    assert!(documents[0].has("spec.http[0].route[0].weight"));
    assert!(!documents[0].has("spec.http[0].timeout"));
}

#[test]
fn an_unknown_field_is_named_with_what_was_meant() {
    let found = about(
        "  hosts: [reviews]\n  http:\n  - retrys: {}\n    route:\n    - destination: {host: reviews}\n      wieght: 1\n      zzz: 2\n",
    );
    assert_eq!(
        found,
        [
            r#"rules.yaml:7:5: VirtualService default/reviews: spec.http[0].retrys: unknown field; did you mean "retries"?"#,
            r#"rules.yaml:10:7: VirtualService default/reviews: spec.http[0].route[0].wieght: unknown field; did you mean "weight"?"#,
            "rules.yaml:11:7: VirtualService default/reviews: spec.http[0].route[0].zzz: unknown field; there is destination, weight, headers",
        ]
    );
}

#[test]
fn every_wrong_type_is_reported_and_not_only_the_first() {
    let found = about(
        "  hosts: reviews\n  http:\n  - name: 1.10\n    timeout: 5\n    retries: {attempts: many, perTryTimeout: 1 s}\n    route:\n    - destination: {host: reviews, port: {number: 99999}}\n      weight: \"ten\"\n    match: [{uri: {exact: /a, prefix: /b}}]\n",
    );
    assert_eq!(
        found,
        [
            r#"rules.yaml:5:10: VirtualService default/reviews: spec.hosts: must be a list, not the text "reviews"; put "- " in front of each item"#,
            "rules.yaml:7:11: VirtualService default/reviews: spec.http[0].name: must be text, not the number 1.1; write it in quotes",
            r#"rules.yaml:8:14: VirtualService default/reviews: spec.http[0].timeout: duration "5" has no unit (write 10s, 500ms, 1m30s or 1h)"#,
            r#"rules.yaml:9:25: VirtualService default/reviews: spec.http[0].retries.attempts: must be a whole number, not the text "many""#,
            r#"rules.yaml:9:46: VirtualService default/reviews: spec.http[0].retries.perTryTimeout: "1 s" is not a duration (write 10s, 500ms, 1m30s or 1h)"#,
            "rules.yaml:11:51: VirtualService default/reviews: spec.http[0].route[0].destination.port.number: must be a number from 0 to 65535, not the number 99999",
            r#"rules.yaml:12:15: VirtualService default/reviews: spec.http[0].route[0].weight: must be a whole number, not the text "ten""#,
            "rules.yaml:13:14: VirtualService default/reviews: spec.http[0].match[0].uri: only one of exact, prefix and regex may be set",
        ]
    );
}

#[test]
fn a_slip_in_one_document_does_not_hide_the_others() {
    let text = format!("a: [1\n---\n{REVIEWS}---\nkind: VirtualServise\nmetadata: {{name: x}}\n");
    let (documents, findings) = read("rules.yaml", &text);
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0].number, 2);
    let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("rules.yaml:1:4: document 1: not YAML: "), "{}", lines[0]);
    assert_eq!(
        lines[1],
        r#"rules.yaml:16:1: VirtualServise default/x: kind: unknown kind "VirtualServise"; did you mean "VirtualService"?"#
            .replace("16:1:", "16:7:")
    );
}

#[test]
fn values_that_make_no_sense_have_their_place() {
    assert_eq!(
        about(
            "  hosts: [reviews]\n  http:\n  - route:\n    - {destination: {host: a}, weight: 0}\n    - {destination: {host: b}, weight: 0}\n"
        ),
        [
            "rules.yaml:7:5: VirtualService default/reviews: spec.http[0].route: the weights add up to 0: nothing would go anywhere"
        ]
    );
    assert_eq!(
        about(
            "  hosts: [reviews]\n  http:\n  - retries: {attempts: 2, retryOn: \"5xx, reset\"}\n    route: [{destination: {host: a}}]\n"
        ),
        [
            r#"rules.yaml:7:37: VirtualService default/reviews: spec.http[0].retries.retryOn: " reset" has a blank; write commas without blanks"#
        ]
    );
}

#[test]
fn fields_that_are_not_carried_out_are_refused_by_name() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec:\n  host: r\n  trafficPolicy:\n    outlierDetection: {consecutiveErrors: 3}\n";
    assert_eq!(
        lines(text),
        [
            "rules.yaml:7:43: DestinationRule default/r: spec.trafficPolicy.outlierDetection.consecutiveErrors: is no longer read by Istio either; use consecutive5xxErrors"
        ]
    );
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {mtls: {mode: STRICT}}\n";
    assert_eq!(
        lines(text),
        [
            "rules.yaml:2:7: PeerAuthentication default/p: kind: PeerAuthentication is read but is not enforced yet, and security is never promised without effect; leave it out until it is"
        ]
    );
}

#[test]
fn foreign_kinds_are_refused_with_what_to_do_instead() {
    let line = |version: &str, kind: &str| {
        lines(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n")).join("\n")
    };
    assert_eq!(
        line("v1", "Service"),
        r#"rules.yaml:2:7: Service default/x: kind: Service is a kind of Kubernetes; register the service on its hosts with "meshctl service register", or write a ServiceEntry"#
    );
    assert!(line("networking.istio.io/v1alpha3", "EnvoyFilter").contains("there is no Envoy in meshd"));
    assert!(line("apps/v1", "Deployment").contains("starts no workloads"));
    assert!(line("gateway.networking.k8s.io/v1", "Gateway").contains("Gateway API"));
    assert!(line("gateway.networking.k8s.io/v1", "TCPRoute").contains("with tcp routes"));
    assert!(line("networking.k8s.io/v1", "Ingress").contains("write a Gateway and a VirtualService"));
    assert!(line("v1", "Secret").contains("DATA/secrets/NAME"));
    assert!(line("install.istio.io/v1alpha1", "IstioOperator").contains("kind MeshConfig"));
    assert!(line("storage.k8s.io/v1", "CSIDriver").contains("has no meaning in meshd"));
    assert!(line("example.org/v1", "Whatever").contains("unknown kind"));
    assert!(
        line("networking.istio.io/v2", "Gateway")
            .contains("write networking.istio.io/v1 or networking.istio.io/v1beta1")
    );
}

#[test]
fn duplicate_keys_are_errors_with_both_places() {
    assert_eq!(
        about("  hosts: [reviews]\n  http:\n  - route: [{destination: {host: a}}]\n  hosts: [b]\n"),
        [
            "rules.yaml:8:3: VirtualService default/reviews: spec.hosts: the key is here twice (first on line 5); remove one of them"
        ]
    );
}

#[test]
fn what_kubernetes_adds_is_ignored_aloud() {
    let text = format!(
        "{}status: {{x: 1}}\n",
        REVIEWS.replace("  name: reviews\n", "  name: reviews\n  uid: abc\n")
    );
    let (documents, findings) = inspect("rules.yaml", &text);
    assert_eq!(documents.len(), 1);
    let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "rules.yaml:5:3: note: VirtualService default/reviews: metadata.uid: is ignored: it is not for users to set",
            "rules.yaml:14:1: note: VirtualService default/reviews: status: is ignored: it is not for users to set",
        ]
    );
}

#[test]
fn a_list_holds_objects_with_their_own_names_and_places() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1\n  kind: DestinationRule\n  metadata: {name: a}\n  spec: {host: a}\n- kind: DestinationRule\n  apiVersion: networking.istio.io/v1\n  metadata: {name: b, namespace: other}\n  spec: {hots: b}\n";
    let (documents, findings) = read("list.yaml", text);
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0].at("spec.host").line, 7);
    assert_eq!(
        findings[0].to_string(),
        r#"list.yaml:11:10: DestinationRule other/b: spec.hots: unknown field; did you mean "host"?"#
    );
}

#[test]
fn byte_order_marks_windows_lines_anchors_and_json_are_read() {
    let windows = format!("\u{feff}{}", REVIEWS.replace('\n', "\r\n"));
    assert_eq!(read("a", &windows).0.len(), 1);
    let merged = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n  - &base\n    timeout: 1s\n    route: [{destination: {host: a}}]\n    match: [{headers: {x: {}}}]\n  - <<: *base\n    match: [{uri: {prefix: /b}}]\n";
    let (documents, findings) = read("a", merged);
    assert!(findings.is_empty(), "{findings:?}");
    let Spec::VirtualService(spec) = &documents[0].object.spec else { panic!("a VirtualService") };
    assert_eq!(spec.http[0].r#match[0].headers["x"], StringMatch::Present);
    assert_eq!(spec.http[1].timeout, spec.http[0].timeout);
    let json = serde_json::to_string_pretty(&documents[0].object).unwrap();
    assert_eq!(read("a.json", &json).0[0].object, documents[0].object);
}

#[test]
fn names_follow_the_rules_of_kubernetes() {
    let line = |metadata: &str| lines(&REVIEWS.replace("  name: reviews\n", metadata)).join("\n");
    assert!(line("  name: Re_views\n").contains("metadata.name: \"Re_views\" is no name: at most 253"));
    assert!(
        line("  namespace: a.b\n  name: x\n").contains("metadata.namespace: \"a.b\" is no name: at most 63")
    );
    assert!(line("  labels: {a: b}\n").contains("metadata.name: must be there"));
}

#[test]
fn there_is_one_mesh_config() {
    let text = |name: &str| {
        format!(
            "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {{outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}}}\n"
        )
    };
    let (documents, findings) = inspect("m", &text("default"));
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(documents[0].object.key().to_string(), "MeshConfig istio-system/default");
    assert!(inspect("m", &text("other")).1[0].is_error());
    let refused =
        text("default").replace("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "trustDomain: other.example");
    assert_eq!(inspect("m", &refused).1[0].path, "spec.trustDomain");
}

#[test]
fn bounds_are_named() {
    let line = |text: &str| lines(text).join("\n");
    assert_eq!(
        line(&"[".repeat(1000)),
        "rules.yaml:1:33: document 1: not YAML: it is nested more than 32 deep"
    );
    let many = line(&"- 1\n".repeat(60_000));
    assert!(
        many.ends_with("not YAML: it holds more than 50000 values; split it into several objects"),
        "{many}"
    );
    let aliases = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(1000), "*a,".repeat(50));
    assert!(
        line(&aliases).ends_with("not YAML: its aliases repeat more than 20000 values"),
        "{}",
        line(&aliases)
    );
    assert!(
        line(&" ".repeat(MAX_FILE_BYTES + 1))
            .starts_with("rules.yaml: the file has 16 MB; at most 16 MB are read")
    );
}

#[test]
fn findings_that_are_cut_off_leave_an_error_behind() {
    let routes = "  - match: [{statPrefix: x}]\n    route: [{destination: {host: a}}]\n".repeat(600);
    let (_, findings) = inspect(
        "rules.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n  hosts: [a]\n  http:\n{routes}"
        ),
    );
    assert_eq!(findings.len(), MAX_FINDINGS);
    assert_eq!(
        findings.last().map(ToString::to_string).as_deref(),
        Some("rules.yaml: there is more to say than the 499 findings above; mend these first")
    );
}

#[test]
fn hostile_input_is_refused_soon() {
    let bomb: String = std::iter::once("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned())
        .chain((1..20).map(|level| {
            let before = vec![format!("*a{}", level - 1); 10].join(",");
            format!("a{level}: &a{level} [{before}]\n")
        }))
        .collect();
    let inputs = [
        ("aliases", bomb),
        ("flow depth", "[".repeat(100_000)),
        ("map depth", "{a: ".repeat(100_000)),
        ("block depth", (0..400).map(|depth| " ".repeat(depth) + "a:\n").collect()),
        ("dashes", "- ".repeat(100_000)),
        ("one huge line", "x".repeat(MAX_FILE_BYTES + 1)),
        ("one huge document", format!("a: {}", "x".repeat(MAX_DOCUMENT_BYTES))),
        ("quotes", "\"".repeat(99_999)),
        ("anchors", "&a ".repeat(50_000)),
        ("nothing but markers", "---\n".repeat(100_000)),
        ("zeros", "\0".repeat(1000)),
        ("many bad documents", "---\na: [\n".repeat(50_000)),
    ];
    for (name, text) in inputs {
        let begin = Instant::now();
        let (documents, findings) = read("bad.yaml", &text);
        let took = begin.elapsed();
        assert!(documents.is_empty(), "{name}");
        assert!(
            name == "nothing but markers" || findings.iter().any(Finding::is_error),
            "{name}: no finding"
        );
        assert!(findings.len() <= MAX_FINDINGS, "{name}: {} findings", findings.len());
        assert!(findings.iter().all(|finding| finding.to_string().len() < 500), "{name}: a long message");
        // 100 ms where it counts; a debug build on a busy machine gets more.
        assert!(took < Duration::from_secs(3), "{name}: {took:?}");
    }
}

#[test]
fn the_shares_of_kinds_in_messages_are_all_kinds() {
    let line = lines("apiVersion: x/v1\nkind: Nothing\nmetadata: {name: x}\n").join("\n");
    for kind in Kind::ALL {
        assert!(line.contains(kind.name()), "{line}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to a file, every finding has a place inside it.
    #[test]
    fn a_damaged_file_is_read_to_its_end_without_panic(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..8, ".{0,6}"), 1..6)
    ) {
        let mut text = REVIEWS.repeat(2).replacen("10\napi", "10\n---\napi", 1);
        for (at, length, with) in cuts {
            let from = text.floor_char_boundary(at.index(text.len() + 1));
            let to = text.ceil_char_boundary((from + length).min(text.len()));
            text.replace_range(from..to, &with);
        }
        // A carriage return alone ends a line, too: YAML 1.2, section 5.4.
        let lines = text.split(['\n', '\r']).count();
        let (documents, findings) = inspect("rules.yaml", &text);
        for finding in findings {
            let line = usize::try_from(finding.line.expect("a line")).expect("a number");
            prop_assert!((1..=lines + 1).contains(&line), "{finding} in {text:?}");
        }
        for document in documents {
            let json = serde_json::to_string(&document.object).expect("JSON");
            let back: crate::resource::Object = serde_json::from_str(&json).expect("the same");
            prop_assert_eq!(back, document.object);
        }
    }
}

/// A scalar and what is made of it.
type Scalar = (&'static str, Option<i32>, Option<f64>, Option<bool>);

/// What Istio's own reader makes of a scalar: a whole number (`int32`), a number (`double`), a truth value; `None`: an error.
///
/// Source: observed with the Go packages it consists of: yaml.v2 as `YAMLToJSON` calls it, and `protojson`.
const SCALARS: &[Scalar] = &[
    ("50", Some(50), Some(50.0), None),
    ("50.0", Some(50), Some(50.0), None),
    ("5e1", Some(50), Some(50.0), None),
    ("50.5", None, Some(50.5), None),
    ("017", Some(15), Some(15.0), None),
    ("0o17", Some(15), Some(15.0), None),
    ("089", Some(89), Some(89.0), None),
    ("0x1F", Some(31), Some(31.0), None),
    ("0b101", Some(5), Some(5.0), None),
    ("1_000", Some(1000), Some(1000.0), None),
    ("+5", Some(5), Some(5.0), None),
    ("-5", Some(-5), Some(-5.0), None),
    (".5", None, Some(0.5), None),
    ("5.", Some(5), Some(5.0), None),
    ("\"80\"", Some(80), Some(80.0), None),
    ("'80'", Some(80), Some(80.0), None),
    ("\"5e1\"", Some(50), Some(50.0), None),
    ("\" 80\"", None, None, None),
    ("\"0x1F\"", None, None, None),
    ("yes", None, None, Some(true)),
    ("on", None, None, Some(true)),
    ("off", None, None, Some(false)),
    ("n", None, None, Some(false)),
    ("TRUE", None, None, Some(true)),
    ("\"true\"", None, None, None),
    (".inf", None, None, None),
    ("1e21", None, Some(1e21), None),
    ("2147483648", None, Some(2_147_483_648.0), None),
    ("2001-01-01", None, None, None),
];

#[test]
fn scalars_are_read_as_istio_reads_them() {
    for (scalar, whole, number, truth) in SCALARS {
        let read = |spec: String| {
            let text = format!("{HEAD}{spec}");
            let (documents, findings) = read("a.yaml", &text);
            let errors =
                findings.iter().filter(|finding| finding.is_error() && finding.code != "not-enforced");
            if errors.count() > 0 {
                None
            } else {
                documents.into_iter().next().map(|document| document.object.spec)
            }
        };
        let route =
            |rest: &str| format!("spec: {{hosts: [a], http: [{{route: [{{destination: {{host: a}}{rest}}}]");
        let http = |spec: Option<Spec>| match spec {
            Some(Spec::VirtualService(spec)) => spec.http.into_iter().next(),
            _ => None,
        };
        let weight = http(read(format!("{}}}]}}\n", route(&format!(", weight: {scalar}")))));
        assert_eq!(weight.and_then(|http| http.route[0].weight), *whole, "{scalar} as a whole number");
        let share = http(read(format!("{}, mirrorPercentage: {{value: {scalar}}}}}]}}\n", route(""))));
        assert_eq!(
            share.and_then(|http| http.mirror_percentage).map(|share| share.value),
            *number,
            "{scalar} as a number"
        );
        let said = http(read(format!("{}, match: [{{ignoreUriCase: {scalar}}}]}}]}}\n", route(""))));
        assert_eq!(said.map(|http| http.r#match[0].ignore_uri_case), *truth, "{scalar} as a truth value");
    }
}

const HEAD: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n";
