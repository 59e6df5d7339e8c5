//! Golden cases: resources and calls in YAML, and what becomes of each call.
//!
//! `cases/<area>/<name>.yaml` is read by [`case`]; each call is decided by the code that the proxy runs. Expectations
//! come from Envoy or from Istio's reference (`source`), never from the code. The cases recorded in
//! `../shared/conformance` are checked too, where they are there.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "cases are files; a skipped test says so aloud"
)]

mod case;
mod conformance;
mod door;
mod fields;
mod scale;
mod told;
mod verdict;
mod world;

use std::path::{Path, PathBuf};

#[test]
fn every_golden_case_is_decided_as_written() {
    let (cases, mut failures) = cases();
    let calls: usize = cases.iter().map(|(_, case)| case.calls.len()).sum();
    for (name, case) in &cases {
        failures.extend(case.run().into_iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{} of {calls} calls:\n{}", failures.len(), failures.join("\n"));
    assert!(calls >= 60, "only {calls} calls are checked");
}

#[test]
fn explain_says_of_every_call_what_becomes_of_it() {
    let (cases, mut failures) = cases();
    let mut asked = 0;
    for (name, case) in &cases {
        let (of_case, differ) = case.told();
        asked += of_case;
        failures.extend(differ.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(asked >= 100, "only {asked} calls were asked about");
}

/// Every case by its file, and what could not be read.
fn cases() -> (Vec<(String, case::Case)>, Vec<String>) {
    let (mut cases, mut unread) = (Vec::new(), Vec::new());
    for file in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")) {
        let text = std::fs::read_to_string(&file).expect("a readable case");
        let name = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&file).display().to_string();
        match serde_saphyr::from_str(&text) {
            Ok(case) => cases.push((name, case)),
            Err(error) => unread.push(format!("{name}: {error}")),
        }
    }
    (cases, unread)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of cases");
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    found.sort();
    found
}
