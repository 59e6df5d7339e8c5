//! What the schema of Istio's kinds forbids, broken one by one: each must be an error at the place where it is broken.
//!
//! The documents are made from the schema itself, so that no rule of it can be forgotten. A rule in words
//! (`x-kubernetes-validations`) needs a value that breaks it, in [`breaks`]; a new rule without one is a failure.

use std::fmt::Write as _;

use mesh_proto::resource::Kind;
use mesh_proto::validate::validate;
use mesh_proto::yaml;
use serde_json::{Map, Value, json};

/// By its message, values that break a rule where it stands.
fn breaks(message: &str) -> Vec<Value> {
    let port = json!({"number": 80, "name": "a", "protocol": "TLS"});
    let reference = json!({"kind": "Service", "name": "a"});
    let selector = json!({"matchLabels": {"app": "a"}});
    match message {
        "must be a valid duration greater than 1ms" => vec![json!("0.9ms"), json!("0s"), json!("-1s")],
        "wildcard not allowed in label key match" => vec![json!({"a*": "a"})],
        "key must not be empty" => vec![json!({"": "a"})],
        "wildcard not allowed in label value match" | "wildcard is not supported in selector" => {
            vec![json!("a*"), json!("*")]
        }
        "only one of credentialNames or tlsCertificates can be set"
        | "only one of credentialName or tlsCertificates can be set" => vec![
            json!({"mode": "SIMPLE", "credentialNames": ["a"], "tlsCertificates": [{"serverCertificate": "/c", "privateKey": "/k"}]}),
        ],
        "only one of credentialName or credentialNames can be set" => {
            vec![json!({"mode": "SIMPLE", "credentialName": "a", "credentialNames": ["a"]})]
        }
        "only one of WorkloadSelector or Endpoints can be set" => vec![
            json!({"hosts": ["a.com"], "resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}, "endpoints": [{"address": "192.0.2.1"}]}),
        ],
        "CIDR addresses are allowed only for NONE/STATIC resolution types" => {
            vec![json!({"hosts": ["a.com"], "resolution": "DNS", "addresses": ["192.0.2.0/24"]})]
        }
        "NONE mode cannot set endpoints" => {
            vec![json!({"hosts": ["a.com"], "endpoints": [{"address": "192.0.2.1"}]})]
        }
        "DNS_ROUND_ROBIN mode cannot have multiple endpoints" => vec![
            json!({"hosts": ["a.com"], "resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.com"}, {"address": "b.com"}]}),
        ],
        "Address is required" => vec![json!({"labels": {"a": "b"}})],
        "UDS may not include ports" => vec![json!({"address": "unix:///a", "ports": {"http": 80}})],
        "UDS must be an absolute path or abstract socket" => vec![json!("unix://a")],
        "UDS may not be a dir" => vec![json!("unix:///a/")],
        "port name must be valid" => vec![json!({"-a": 80}), json!({"a.b": 80}), json!({"a".repeat(64): 80})],
        "port must be between 1-65535" => vec![json!(0), json!(65_536)],
        "hostname cannot be wildcard" => vec![json!("*")],
        "port number cannot be duplicated" => {
            vec![json!([port, {"number": 80, "name": "b", "protocol": "TLS"}])]
        }
        "scheme must be one of [HTTP, HTTPS]" => vec![json!("http"), json!("TCP")],
        "only one of targetRefs or selector can be set" => vec![
            json!({"selector": selector, "targetRef": reference}),
            json!({"selector": selector, "targetRefs": [reference]}),
            json!({"targetRef": reference, "targetRefs": [reference]}),
        ],
        "Cannot set serviceAccounts with namespaces or principals" => vec![
            json!({"serviceAccounts": ["a"], "namespaces": ["b"]}),
            json!({"notServiceAccounts": ["a"], "principals": ["b"]}),
        ],
        "cross namespace referencing is not currently supported" => vec![json!("other")],
        "portLevelMtls requires selector" => {
            vec![json!({"portLevelMtls": {"80": {}}}), json!({"selector": {}, "portLevelMtls": {"80": {}}})]
        }
        "only one of jwks or jwksUri can be set" => vec![
            json!({"issuer": "a", "jwks": "{\"keys\": []}", "jwksUri": "https://a.com"}),
            json!({"issuer": "a", "jwks_uri": "https://a.com", "jwksUri": "https://a.com"}),
        ],
        "url must have scheme http:// or https://" => vec![json!("ftp://a.com"), json!("a.com")],
        "value must be set when operation is UPSERT" => vec![json!({"operation": "UPSERT"})],
        "value must not be set when operation is REMOVE" => {
            vec![json!({"operation": "REMOVE", "value": "'a'"})]
        }
        _ => Vec::new(),
    }
}

/// A field that is broken: where, how, and with what value there.
struct Broken {
    path: Vec<String>,
    how: String,
    value: Value,
}

/// Collects what can be broken in a schema and below it.
fn collect(schema: &Value, path: &mut Vec<String>, into: &mut Vec<Broken>) {
    let mut add = |how: String, value: Value| into.push(Broken { path: path.clone(), how, value });
    form(schema, &mut add);
    sizes(schema, &mut add);
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let message = rule["message"].as_str().expect("a rule says what it is about");
        let values = breaks(message);
        assert!(!values.is_empty(), "{}: nothing breaks {message:?}: add a value", path.join("."));
        for value in values {
            // 65536 cannot be the key of this map.
            let value = if path.last().is_some_and(|name| name == "portLevelMtls") && value.is_number() {
                json!({value.to_string(): {}})
            } else {
                value
            };
            add(message.to_owned(), value);
        }
    }
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        collect(child, path, into);
        path.pop();
    }
    for (step, child) in [("[]", &schema["items"]), ("{}", &schema["additionalProperties"])] {
        if child.is_object() {
            path.push(step.to_owned());
            collect(child, path, into);
            path.pop();
        }
    }
}

/// Types, enums, patterns, what must be there, what excludes each other.
fn form(schema: &Value, add: &mut impl FnMut(String, Value)) {
    if schema["x-kubernetes-int-or-string"].is_null() {
        for wrong in match schema["type"].as_str() {
            Some("object") => vec![json!("x"), json!([])],
            Some("array") => vec![json!("x"), json!({})],
            Some("string") => vec![json!({}), json!([])],
            Some("integer" | "number") => vec![json!("x"), json!({}), json!(true)],
            Some("boolean") => vec![json!("x"), json!(1)],
            other => panic!("an unknown type: {other:?}"),
        } {
            add(format!("is of the type {}", schema["type"]), wrong);
        }
    }
    if schema["type"] == "integer" {
        add("is whole".to_owned(), json!(1.5));
    }
    if schema["enum"].is_array() {
        add("is one of a few".to_owned(), json!("NO_SUCH_NAME"));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        add(format!("matches {pattern}"), json!("a!"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        add(format!("has {name}"), json!({}));
    }
    let example = |name: &str| match schema["properties"][name]["type"].as_str() {
        Some("object") => json!({}),
        Some("boolean") => json!(true),
        Some("integer") => json!(200),
        _ if schema["properties"][name]["enum"].is_array() => schema["properties"][name]["enum"][1].clone(),
        _ => json!("1s"),
    };
    let names: Vec<&str> = schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|alternative| alternative["required"][0].as_str())
        .collect();
    for (at, one) in names.iter().enumerate() {
        for other in &names[at + 1..] {
            let both: Map<String, Value> =
                [one, other].iter().map(|name| ((**name).to_owned(), example(name))).collect();
            add(format!("has {one} or {other}"), Value::Object(both));
        }
    }
}

/// How small, large, short, long.
fn sizes(schema: &Value, add: &mut impl FnMut(String, Value)) {
    let size = |name: &str| schema[name].as_u64().map(|size| usize::try_from(size).expect("a size"));
    if let Some(least) = schema["minimum"].as_i64() {
        add(format!("is at least {least}"), json!(least - 1));
    }
    if let Some(most) = schema["maximum"].as_i64() {
        add(format!("is at most {most}"), json!(most + 1));
    }
    if schema["format"] == "int32" {
        add("fits 32 bits".to_owned(), json!(i64::from(i32::MAX) + 1));
        add("fits 32 bits".to_owned(), json!(i64::from(i32::MIN) - 1));
    }
    if size("minLength").is_some() {
        add("is not empty".to_owned(), json!(""));
    }
    if let Some(most) = size("maxLength") {
        add(format!("has at most {most} characters"), json!("a".repeat(most + 1)));
    }
    if size("minItems").is_some() {
        add("has items".to_owned(), json!([]));
    }
    if let Some(most) = size("maxItems") {
        add(format!("has at most {most} items"), Value::Array(vec![item(&schema["items"]); most + 1]));
    }
    if size("minProperties").is_some() {
        add("has entries".to_owned(), json!({}));
    }
    if let Some(most) = size("maxProperties") {
        let value = item(&schema["additionalProperties"]);
        let many = (0..=most).map(|at| (format!("k{at}"), value.clone()));
        add(format!("has at most {most} entries"), Value::Object(many.collect()));
    }
}

fn item(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("object") => json!({}),
        Some("integer") => json!(80),
        _ => json!("a"),
    }
}

/// Puts a value at a path, with nothing beside it.
fn around(path: &[String], value: &Value) -> Value {
    let Some((step, rest)) = path.split_first() else { return value.clone() };
    let inner = around(rest, value);
    match step.as_str() {
        "[]" => json!([inner]),
        "{}" => json!({"8080": inner}),
        name => json!({name: inner}),
    }
}

/// Whether a finding is about a path: there, below it, or at what holds it.
fn is_about(found: &str, path: &[String]) -> bool {
    let mut wanted = String::from("spec");
    let mut holder = String::new();
    for step in path {
        holder.clone_from(&wanted);
        match step.as_str() {
            "[]" => wanted.push_str("[0]"),
            "{}" => wanted.push_str(".8080"),
            name => write!(wanted, ".{name}").expect("text is written"),
        }
    }
    found.starts_with(&wanted) || found == holder
}

fn errors(kind: Kind, broken: &Broken) -> Vec<mesh_proto::finding::Finding> {
    let object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "metadata": {"name": "a", "namespace": "default"},
        "spec": around(&broken.path, &broken.value),
    });
    let (documents, mut findings) = yaml::read("a.json", &object.to_string());
    findings.extend(documents.iter().flat_map(|document| validate(&document.object)));
    findings.retain(|finding| finding.is_error() && !finding.code.starts_with("refused"));
    findings
}

/// Where Istio's validator takes what the schema refuses, and so do we: what reads as if the field were absent, and more
/// than two certificates. `docs/compatibility.md` says so.
fn is_taken(broken: &Broken) -> bool {
    let name = broken.path.last().map_or("", String::as_str);
    match (name, &broken.value) {
        ("jwksUri" | "jwks_uri", Value::String(text)) => text.is_empty(),
        ("credentialNames" | "tlsCertificates", Value::Array(_)) => true,
        ("targetPort", number) => *number == json!(0),
        _ => false,
    }
}

#[test]
fn what_the_schema_forbids_is_an_error_at_its_place() {
    let Some(schemas) = crate::schema::schemas() else { return };
    let (mut tried, mut wrong) = (0, Vec::new());
    for (kind, schema) in schemas {
        let mut broken = Vec::new();
        collect(&schema, &mut Vec::new(), &mut broken);
        for broken in broken.into_iter().filter(|broken| !is_taken(broken)) {
            tried += 1;
            let found = errors(kind, &broken);
            if !found.iter().any(|finding| is_about(&finding.path, &broken.path)) {
                let paths: Vec<_> = found.iter().map(ToString::to_string).collect();
                let shown: String = broken.value.to_string().chars().take(80).collect();
                wrong.push(format!("{kind} {}: {} = {shown}: {paths:?}", broken.path.join("."), broken.how));
            }
        }
    }
    assert!(tried > 3_000, "{tried}");
    assert!(wrong.is_empty(), "{} of {tried} pass:\n{}", wrong.len(), wrong.join("\n"));
}
