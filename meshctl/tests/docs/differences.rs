//! Where meshd differs from Envoy and Istio, the code says `differs:`, and `docs/compatibility.md` names the place.

use std::path::{Path, PathBuf};

use crate::{page, root};

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| {
            let is_source = path.extension().is_some_and(|extension| extension == "rs");
            if path.is_dir() { rust_files(&path) } else { Vec::from_iter(is_source.then_some(path)) }
        })
        .collect()
}

/// The name of a file's module: `balance::ring` for `meshd/core/src/balance/ring.rs`.
fn module(source: &Path, file: &Path) -> String {
    let below = file.strip_prefix(source).expect("below src").with_extension("");
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("::")
}

#[test]
fn every_difference_the_code_names_is_in_the_documentation() {
    let text = page("docs/compatibility.md");
    let mut missing = Vec::new();
    for source in ["meshd/core/src", "meshd/src", "proto/src"].map(|folder| root().join(folder)) {
        for file in rust_files(&source) {
            let code = std::fs::read_to_string(&file).expect("a source file");
            let name = format!("`{}`", module(&source, &file));
            if code.contains("differs:") && !text.contains(&name) {
                missing.push(name);
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/compatibility.md has no row for the differences in {}",
        missing.join(", ")
    );
}
