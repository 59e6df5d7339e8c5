//! The examples are sound: each folder of rules, beside its services, has nothing to be told about.

use std::path::{Path, PathBuf};

use crate::server::alone;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Folders with all of their services. In `canary` one file replaces the other, in `two-hosts`
/// and `vagrant` each host has its own.
const TOGETHER: [&str; 9] = [
    "gateway",
    "gateway-clients",
    "egress",
    "egress-gateway",
    "faults",
    "tcp",
    "websocket",
    "breaker",
    "telemetry",
];

#[test]
fn every_folder_of_examples_is_clean() {
    for name in TOGETHER {
        let folder = examples().join(name);
        let ran = alone(&["analyze", folder.to_str().expect("text")]);

        assert_eq!(ran.code, 0, "{name}: {}{}", ran.out, ran.err);
        assert!(!ran.out.contains("were assumed"), "{name}: {}", ran.out);
    }
}

#[test]
fn the_page_of_the_examples_names_every_folder() {
    let page = std::fs::read_to_string(examples().join("README.md")).expect("a page");
    let folders =
        std::fs::read_dir(examples()).expect("examples").map(|entry| entry.expect("an entry").path());
    for folder in folders.filter(|path| path.is_dir()) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(
            page.contains(&format!("[`{name}/`]({name}/)")),
            "examples/README.md does not tell of {name}/"
        );
        assert!(
            ["canary", "two-hosts", "tests", "vagrant"].contains(&&*name) || TOGETHER.contains(&&*name),
            "{name} is looked at by no test: add it to TOGETHER"
        );
    }
}
