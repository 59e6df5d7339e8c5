use super::*;
use crate::yaml;

#[test]
fn what_is_said_of_a_field_holds_for_all_below_it() {
    let status = |kind, path| super::status(kind, path);
    assert_eq!(status(Kind::VirtualService, "http[].timeout"), Some(Status::Honoured));
    assert!(matches!(status(Kind::Sidecar, "ingress[].tls.mode"), Some(Status::Refused(_))));
    assert!(matches!(status(Kind::AuthorizationPolicy, "rules"), Some(Status::Refused(_))));
    assert_eq!(status(Kind::VirtualService, "http[].nonsense"), None);
    assert_eq!(status(Kind::VirtualService, "http[].timeouts"), None);
}

#[test]
fn an_unused_refused_field_is_no_finding() {
    let text = |value: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: a}}\nspec:\n  servers:\n  - port: {{number: 443, name: a, protocol: HTTPS}}\n    hosts: ['*']\n    tls: {{mode: SIMPLE, credentialName: a, cipherSuites: {value}}}\n"
        )
    };
    let found = |value: &str| {
        let (documents, findings) = yaml::read("a", &text(value));
        assert!(findings.is_empty(), "{findings:?}");
        check(&documents[0]).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(found("[]").is_empty());
    assert!(found("[ECDHE-RSA-AES128-GCM-SHA256]").is_empty());
    assert_eq!(
        found("[ECDHE-RSA-AES128-GCM-SHA256, AES128-SHA]")
            .iter()
            .map(|text| &text[..102])
            .collect::<Vec<_>>(),
        [
            r#"a:8:88: Gateway default/a: spec.servers[0].tls.cipherSuites[1]: "AES128-SHA" is not enforced yet: only"#
        ]
    );
}

#[test]
fn a_field_without_effect_is_a_warning() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http: [{match: [{statPrefix: x}], route: [{destination: {host: a}}]}]\n";
    let (documents, _) = yaml::read("a", text);
    let found = check(&documents[0]);
    assert_eq!(found.len(), 1);
    assert!(!found[0].is_error());
    assert!(found[0].to_string().starts_with("a:6:32: warning: "), "{}", found[0]);
}

#[test]
fn every_kind_has_lines() {
    for kind in Kind::ALL {
        assert!(paths().any(|(of, _, _)| of == *kind), "{kind}");
    }
}

#[test]
fn every_setting_of_the_mesh_has_a_line() {
    // serde names all fields where it meets one it does not know.
    let error = serde_json::from_str::<crate::resource::MeshConfig>(r#"{"?": 1}"#).unwrap_err().to_string();
    let names: Vec<_> = error.split('`').skip(3).step_by(2).collect();
    assert!(names.len() > 10, "{error}");
    for name in names {
        let below = |path: &str| {
            path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        assert!(paths().any(|(kind, path, _)| kind == Kind::MeshConfig && below(path)), "{name}");
    }
}

#[test]
fn languages_within_fields_are_refused_by_name_and_place() {
    let text = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\nspec:\n  targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: g}\n  accessLogging:\n  - filter: {expression: \"response.colour == 'red'\"}\n  metrics:\n  - overrides: [{tagOverrides: {a: {value: request.host}}}]\n";
    let (documents, _) = yaml::read("t", text);
    let found: Vec<String> = check(&documents[0]).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("spec.targetRef.kind: \"Gateway\" is not enforced yet"), "{}", found[0]);
    assert!(
        found[1].starts_with("t:7:26: ") && found[1].contains("response.colour is not known"),
        "{}",
        found[1]
    );
    assert!(found[2].contains("tagOverrides.a.value") && found[2].contains("request.host"), "{}", found[2]);
    let text = "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  accessLogFormat: \"%COLOUR%\"\n  extensionProviders:\n  - {name: a, opentelemetry: {service: a, port: 4317, grpc: {}, http: {}}}\n  - {name: b}\n";
    let (documents, _) = yaml::read("m", text);
    let found: Vec<String> = check(&documents[0]).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("m:5:20: ") && found[0].contains("%COLOUR% is not known"), "{}", found[0]);
    assert!(found[1].contains("spans go over http or over grpc"), "{}", found[1]);
    assert!(found[2].contains("a provider is one thing"), "{}", found[2]);
}

#[test]
fn switching_off_what_is_always_on_is_refused() {
    let text = "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {enableAutoMtls: false}\n";
    let (documents, _) = yaml::read("m", text);
    assert_eq!(
        check(&documents[0])[0].to_string(),
        r#"m:4:24: MeshConfig istio-system/default: spec.enableAutoMtls: "false" is not enforced yet: mutual TLS is always on between hosts; meshd takes true"#
    );
}

#[test]
fn every_field_is_told_under_its_path_and_messages_of_mixed_fields_are_partial() {
    let of = |kind: Kind, path: &str| {
        let found = report(kind).into_iter().find(|field| field.path == path);
        let field = found.unwrap_or_else(|| panic!("{kind} {path} is not told"));
        (field.status, field.reason)
    };

    let timeout = of(Kind::VirtualService, "http[].timeout");
    assert_eq!(timeout, (Word::Honoured, String::new()));
    assert_eq!(of(Kind::VirtualService, "http[].match[].headers{}.regex").0, Word::Honoured);
    let (word, reason) = of(Kind::VirtualService, "http");
    assert_eq!(word, Word::Partial);
    assert!(reason.starts_with("fields below: ") && reason.contains(" honoured"), "{reason}");
    assert_eq!(of(Kind::AuthorizationPolicy, "rules[].from[].source.principals").0, Word::Refused);
    for kind in Kind::ALL {
        assert_eq!(counts(*kind).iter().sum::<usize>(), report(*kind).len(), "{kind}");
        assert!(report(*kind).iter().all(|field| field.status == Word::Honoured || !field.reason.is_empty()));
    }
}
