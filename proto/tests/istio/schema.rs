//! The types and the table against the schema of Istio's kinds.

use std::collections::BTreeSet;

use mesh_proto::resource::Kind;
use mesh_proto::support;
use mesh_proto::yaml;
use serde_json::{Map, Value, json};

/// Returns the schema of each of our kinds, of its newest version.
pub(crate) fn schemas() -> Option<Vec<(Kind, Value)>> {
    let text = crate::shared("istio/crds.yaml")?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 10_000_000, max_nodes: 10_000_000 },
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple_with_options(&text, options).expect("the schema is YAML");
    let found = documents.iter().filter_map(|document| {
        let kind: Kind = document["spec"]["names"]["kind"].as_str()?.parse().ok()?;
        let schema = &document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        Some((kind, schema.clone()))
    });
    Some(found.collect())
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema["properties"].as_object()
}

fn is_string_match(schema: &Value) -> bool {
    properties(schema).is_some_and(|fields| fields.keys().eq(["exact", "prefix", "regex"]))
}

/// Collects the fields of a schema, named as the table names them.
fn fields(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    if is_string_match(schema) {
        into.insert(path.to_owned());
    } else if let Some(children) = properties(schema) {
        for (name, child) in children {
            let next = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields(child, &next, into);
        }
    } else if schema["items"].is_object()
        && properties(&schema["items"]).is_some()
        && !is_string_match(&schema["items"])
    {
        fields(&schema["items"], &format!("{path}[]"), into);
    } else if properties(&schema["additionalProperties"]).is_some()
        && !is_string_match(&schema["additionalProperties"])
    {
        fields(&schema["additionalProperties"], &format!("{path}{{}}"), into);
    } else {
        into.insert(path.to_owned());
    }
}

#[test]
fn the_table_has_every_field_of_the_schema_and_no_other() {
    let Some(schemas) = schemas() else { return };
    assert_eq!(schemas.len(), Kind::ALL.len() - 1, "all kinds but MeshConfig have a schema");
    let mut wrong = Vec::new();
    for (kind, schema) in schemas {
        let mut wanted = BTreeSet::new();
        fields(&schema, "", &mut wanted);
        for path in &wanted {
            if support::status(kind, path).is_none() {
                wrong.push(format!("{kind} {path} is missing"));
            }
        }
        for (_, path, _) in support::paths().filter(|(of, _, _)| *of == kind) {
            let below = |field: &String| {
                field.strip_prefix(path).is_some_and(|rest| {
                    path.is_empty() || rest.is_empty() || rest.starts_with(['.', '[', '{'])
                })
            };
            if !wanted.iter().any(below) {
                wrong.push(format!("{kind} {path} is not Istio's"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Collects the path of every property of a schema, messages themselves among them.
fn every_path(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    for (name, child) in properties(schema).into_iter().flatten() {
        let here = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        every_path(child, &here, into);
        every_path(&child["items"], &format!("{here}[]"), into);
        every_path(&child["additionalProperties"], &format!("{here}{{}}"), into);
        into.insert(here);
    }
}

#[test]
fn the_report_has_every_path_of_the_schema_once_and_no_other() {
    let Some(schemas) = schemas() else { return };
    for (kind, schema) in schemas {
        let mut wanted = BTreeSet::new();
        every_path(&schema, "", &mut wanted);
        let found: Vec<String> = support::report(kind).into_iter().map(|field| field.path).collect();
        assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "{kind}");
    }
}

/// Makes a value that uses every field of a schema.
fn example(schema: &Value) -> Value {
    if is_string_match(schema) {
        return json!({"exact": "x"});
    }
    if let Some(first) = schema["enum"].as_array().and_then(|names| names.last()) {
        return first.clone();
    }
    if let Some(children) = properties(schema) {
        return children.iter().map(|(name, child)| (name.clone(), example_named(name, child))).collect();
    }
    if schema["items"].is_object() {
        return json!([example(&schema["items"])]);
    }
    if schema["additionalProperties"].is_object() {
        return json!({"8080": example(&schema["additionalProperties"])});
    }
    match schema["type"].as_str() {
        Some("integer") => json!(200),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        _ => json!("x"),
    }
}

/// Durations are texts in the schema; only their names and descriptions tell.
fn example_named(name: &str, schema: &Value) -> Value {
    let rules = schema["x-kubernetes-validations"].to_string();
    let is_duration = rules.contains("duration")
        || [
            "ttl",
            "fixedDelay",
            "exponentialDelay",
            "maxAge",
            "timeout",
            "idleTimeout",
            "budgetInterval",
            "interval",
            "time",
            "backoff",
            "reportingInterval",
        ]
        .contains(&name);
    if is_duration && schema["type"] == "string" {
        return json!("5s");
    }
    if name == "bytes" {
        return json!("aGk=");
    }
    example(schema)
}

#[test]
fn the_types_read_every_field_of_the_schema_and_write_it_back() {
    let Some(schemas) = schemas() else { return };
    for (kind, schema) in schemas {
        let object = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": {"name": "all", "namespace": "default"},
            "spec": example(&schema),
        });
        let (documents, findings) = yaml::read("all.json", &object.to_string());
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{kind}:\n{}", lines.join("\n"));
        let written = serde_json::to_value(&documents[0].object).expect("an object is JSON");
        assert_eq!(written, object, "{kind}");
    }
}
