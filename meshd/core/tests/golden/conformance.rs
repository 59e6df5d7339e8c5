//! The recorded cases of `../shared/conformance`: what Envoy did, decided here.
//!
//! Only what is decided before a backend answers is compared: which subset, which path and authority it saw, which
//! status the proxy itself gave.

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::compile::compile;
use mesh_core::plan::Workload;
use serde_json::Value;

use super::verdict::{Asked, decide};
use super::world::{Maker, instance, node};
use mesh_proto::value::Labels;

#[test]
fn recorded_cases_are_decided_as_envoy_did() {
    let Some(folder) = folder() else {
        println!("SKIPPED: no shared/conformance/cases beside the repository (or in MESH_SHARED)");
        return;
    };
    let mut failures = Vec::new();
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.join("expected.json").exists() {
            checked += run(&path, &mut failures);
        }
    }
    assert!(failures.is_empty(), "{} of {checked}:\n{}", failures.len(), failures.join("\n"));
    println!("{checked} recorded steps decided as Envoy did");
}

fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("MESH_SHARED").map_or(beside, PathBuf::from);
    Some(shared.join("conformance/cases")).filter(|folder| folder.is_dir())
}

fn run(case: &Path, failures: &mut Vec<String>) -> usize {
    let read = |name: &str| std::fs::read_to_string(case.join(name)).unwrap_or_default();
    let yaml = |name: &str| -> Value { serde_saphyr::from_str(&read(name)).expect(name) };
    let (services, requests) = (yaml("services.yaml"), yaml("requests.yaml"));
    let expected: Value = serde_json::from_str(&read("expected.json")).expect("JSON");
    let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut maker = Maker::new();
    for service in list(&services["services"]) {
        add_service(&mut maker, service);
    }
    // Ports are filled in by the test bed; any number does here.
    let rules = placeholders_filled(&read("rules.yaml"));
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", &rules);
    for finding in findings.iter().filter(|finding| finding.is_error()) {
        println!("{name}: {finding}");
    }
    let mesh_config = "apiVersion: mesh.istio.io/v1alpha1\nkind: MeshConfig\nmetadata: {name: default, namespace: istio-system}\nspec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n";
    let (config, _) = mesh_proto::yaml::read("mesh.yaml", mesh_config);
    let objects = documents.into_iter().chain(config).map(|document| document.object).collect();
    let world = maker.finish(objects);
    let client = &services["client"];
    let caller = Workload {
        namespace: client["namespace"].as_str().unwrap_or("default").to_owned(),
        account: "default".into(),
        labels: labels(&client["labels"]),
        ..Workload::default()
    };
    let plan = compile(&world, &node(vec![caller]), None);
    let mut checked = 0;
    for (request, expected) in list(&requests["steps"]).zip(list(&expected["steps"])) {
        let is_plain = request["count"].as_u64().unwrap_or(1) == 1
            && request["tls"].is_null()
            && request["protocol"].as_str().is_none_or(|protocol| protocol == "http");
        if !is_plain {
            continue;
        }
        if let Some(reason) = compare(&plan.outbounds[0], request, expected, &mut checked) {
            failures.push(format!("{name}: {}: {reason}", expected["name"]));
        }
    }
    checked
}

fn compare(
    outbound: &mesh_core::plan::Outbound,
    request: &Value,
    expected: &Value,
    checked: &mut usize,
) -> Option<String> {
    let text = |name: &str| request[name].as_str();
    let mut headers = HeaderMap::new();
    match &request["headers"] {
        Value::Object(map) => {
            for (name, value) in map {
                for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
                    add(&mut headers, name, value.as_str().unwrap_or_default());
                }
            }
        }
        Value::Array(lines) => {
            for line in lines {
                add(&mut headers, line[0].as_str()?, line[1].as_str()?);
            }
        }
        _ => {}
    }
    let asked = Asked {
        port: u16::try_from(request["port"].as_u64().unwrap_or(80)).ok()?,
        method: text("method").unwrap_or("GET"),
        authority: text("host")?,
        target: text("target").or(text("path")).unwrap_or("/"),
        headers: &headers,
    };
    if !asked.target.starts_with('/') {
        return None;
    }
    let verdict = decide(outbound, &asked);
    let mut wrong = Vec::new();
    if let Some(subset) = expected["subset"].as_str().filter(|subset| *subset != "none") {
        *checked += 1;
        if !verdict.versions.iter().any(|version| version == subset) {
            wrong.push(format!("subset {subset}, but it goes {}", verdict.what));
        }
    }
    if verdict.what.starts_with("to ") {
        for (what, is) in [("path", &verdict.path), ("authority", &verdict.authority)] {
            let wanted = expected[what].as_str();
            if wanted.is_some() && wanted != is.as_deref() {
                wrong.push(format!("{what} {wanted:?}, not {is:?}"));
            }
            *checked += usize::from(wanted.is_some());
        }
        if let Some(service) = expected["service"].as_str().filter(|service| *service != "none") {
            *checked += 1;
            let short = service.trim_end_matches(".svc.cluster.local");
            if !verdict.what.contains(&format!("{short}:")) && !verdict.what.contains(&format!("{short}.")) {
                wrong.push(format!("service {service}, but it goes {}", verdict.what));
            }
        }
        for (name, wanted) in expected["backend_header_lines"].as_object().into_iter().flatten() {
            *checked += 1;
            let wanted: Vec<_> = list(wanted).filter_map(Value::as_str).collect();
            let is: Vec<_> =
                verdict.sent.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            if is != wanted {
                wrong.push(format!("header {name} {wanted:?}, not {is:?}"));
            }
        }
    }
    if verdict.what.starts_with("to ") {
        for (name, wanted) in expected["backend_headers"].as_object().into_iter().flatten() {
            let by_proxy = ["x-envoy", "x-forwarded", "x-request-id", "te", "grpc", "host", "content"];
            let hop_by_hop = ["transfer-encoding", "connection", "keep-alive", "proxy-connection", "x-hop"];
            if by_proxy.iter().any(|begin| name.starts_with(begin)) || hop_by_hop.contains(&name.as_str()) {
                continue;
            }
            *checked += 1;
            let is = verdict.sent.get(name).and_then(|value| value.to_str().ok());
            if is != wanted.as_str() {
                wrong.push(format!("header {name} {wanted}, not {is:?}"));
            }
        }
    }
    let location = expected["response_headers"]["location"].as_str();
    if let Some(location) = location {
        *checked += 1;
        if !verdict.what.ends_with(&format!(" {location}")) {
            wrong.push(format!("location {location}, not {}", verdict.what));
        }
    }
    let status = expected["status"].as_u64().filter(|_| expected["hits"].as_u64().unwrap_or(0) == 0);
    let decided = ["subset", "service"].iter().any(|what| expected[*what].as_str() == Some("none"));
    if matches!(status, Some(404 | 502)) && (decided || expected["hits"].as_u64() == Some(0)) {
        *checked += 1;
        if !verdict.what.ends_with(&status.unwrap_or_default().to_string()) {
            wrong.push(format!("status {status:?}, not {}", verdict.what));
        }
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.trim())) {
        headers.append(name, value);
    }
}

fn add_service(maker: &mut Maker, service: &Value) {
    let host = service["host"].as_str().expect("a host");
    let Some((short, rest)) = host.split_once('.').filter(|_| host.ends_with(".svc.cluster.local")) else {
        return;
    };
    let namespace = rest.trim_end_matches(".svc.cluster.local");
    let ports: Vec<_> = list(&service["ports"])
        .map(|port| {
            let text = |name: &str| port[name].as_str().unwrap_or_default().to_owned();
            (u16::try_from(port["number"].as_u64().unwrap_or(0)).unwrap_or(0), text("name"), text("protocol"))
        })
        .collect();
    for one in list(&service["instances"]) {
        let mine: Vec<_> = match &one["ports"] {
            Value::Array(only) => {
                let has = |number: u16| only.iter().any(|port| port.as_u64() == Some(u64::from(number)));
                ports.iter().filter(|port| has(port.0)).cloned().collect()
            }
            _ => ports.clone(),
        };
        let id = one["name"].as_str().expect("a name");
        maker.instance(id, instance(short, namespace, &mine, labels(&one["labels"])), false);
    }
}

fn placeholders_filled(rules: &str) -> String {
    let mut out = String::new();
    let mut rest = rules;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before.trim_end_matches('"'));
        out.push_str("8000");
        rest = after.split_once("}}").map_or("", |(_, after)| after.trim_start_matches('"'));
    }
    out.push_str(rest);
    out
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn labels(value: &Value) -> Labels {
    let map = value.as_object().into_iter().flatten();
    map.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}
