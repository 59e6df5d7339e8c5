//! The resources of Istio's own validation tests: valid ones pass, invalid ones do not.

use std::collections::BTreeMap;
use std::io::Write;

use mesh_proto::validate::validate;
use mesh_proto::yaml;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    kind: String,
    expected: String,
    resource: serde_json::Value,
}

fn cases() -> Option<Vec<Case>> {
    let text = crate::shared("conformance/validation/cases.yaml")?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 10_000_000, max_nodes: 10_000_000 },
    };
    Some(serde_saphyr::from_str_with_options(&text, options).expect("the cases are YAML"))
}

/// Returns the errors of a resource.
fn errors(case: &Case) -> Vec<String> {
    let text = expand(&case.resource.to_string());
    let (documents, mut findings) = yaml::read("case.json", &text);
    findings.extend(documents.iter().flat_map(|document| validate(&document.object)));
    findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string).collect()
}

/// Writes out the cases' short form of large bodies, `<repeat:a:N>` and `<base64-of-repeat:a:N>`.
fn expand(text: &str) -> String {
    let mut text = text.to_owned();
    for (mark, letters) in [("<repeat:a:", "a"), ("<base64-of-repeat:a:", "YWFh")] {
        while let Some(start) = text.find(mark) {
            let rest = &text[start + mark.len()..];
            let end = rest.find('>').expect("a mark ends");
            let count: usize = rest[..end].parse().expect("a mark has a number");
            let times = if letters.len() == 1 { count } else { count / 3 };
            text.replace_range(start..=start + mark.len() + end, &letters.repeat(times));
        }
    }
    text
}

#[test]
fn validation_agrees_with_istio() {
    let Some(cases) = cases() else { return };
    let mut agreed = BTreeMap::<&str, (u32, u32)>::new();
    let mut wrong = Vec::new();
    for case in &cases {
        let errors = errors(case);
        let verdict = if errors.is_empty() { "valid" } else { "invalid" };
        let agrees = verdict == case.expected;
        let (yes, all) = agreed.entry(&case.kind).or_default();
        *all += 1;
        *yes += u32::from(agrees);
        if !agrees {
            wrong.push(format!("{} {}: Istio says {}, {errors:?}", case.kind, case.name, case.expected));
        }
    }
    let table: Vec<_> = agreed.iter().map(|(kind, (yes, all))| format!("{kind}: {yes} of {all}")).collect();
    let _ = writeln!(std::io::stderr(), "agreement with Istio: {}", table.join(", "));
    assert!(wrong.is_empty(), "{}\n{}", table.join("\n"), wrong.join("\n"));
}

/// Puts a number where the cases leave a port open, as `"{{PORT:…}}"`.
fn fill_in(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some(start) = text.find("{{PORT") {
        let end = start + text[start..].find("}}").expect("a mark ends") + 2;
        let quoted = usize::from(text[..start].ends_with('"'));
        text.replace_range(start - quoted..end + quoted, "8080");
    }
    text
}

/// The rules of the recorded cases, as users write them.
#[test]
fn the_rules_of_the_recorded_cases_are_read_without_a_mistake_of_form_or_sense() {
    let Some(folder) = crate::shared_folder("conformance/cases") else { return };
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path().join("rules.yaml")) else { continue };
        let text = fill_in(&text);
        let name = entry.file_name().to_string_lossy().into_owned();
        let (documents, findings) = yaml::inspect(&name, &text);
        assert!(
            !documents.is_empty() || findings.iter().any(mesh_proto::finding::Finding::is_error),
            "{name} is empty"
        );
        for finding in findings.iter().filter(|finding| finding.is_error()) {
            let list = if finding.code.starts_with("refused") { &mut refused } else { &mut wrong };
            list.push(finding.to_string());
        }
    }
    for line in &refused {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
