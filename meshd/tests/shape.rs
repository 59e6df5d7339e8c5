//! The shape of the code: import directions as `docs/ARCHITECTURE.md` gives them, sizes as `docs/STYLE.md` does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Lines of code, tests apart, at which a file must be split.
const MAX_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Reads the block ```` ```layers ```` of the architecture page: module → modules it may import.
fn layers() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("docs/ARCHITECTURE.md");
    let block =
        page.split("```layers\n").nth(1).expect("a layers block").split("```").next().expect("its end");
    block
        .lines()
        .map(|line| {
            let (module, imports) = line.split_once('=').expect("module = imports");
            (module.trim().to_owned(), imports.split_whitespace().map(str::to_owned).collect())
        })
        .collect()
}

/// The module of meshd that a file belongs to: the first step below `src`.
fn module_of(source: &Path, file: &Path) -> String {
    let first = file.strip_prefix(source).expect("below src").components().next().expect("a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The modules of this crate that a text names after `crate::` (or `meshd::` in `main.rs`), comments apart.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let mut found = BTreeSet::new();
    for line in code {
        for prefix in ["crate::", "meshd::"] {
            for (at, _) in line.match_indices(prefix) {
                let before = line[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                    continue;
                }
                let rest = &line[at + prefix.len()..];
                let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
                if let Some(group) = rest.strip_prefix('{') {
                    let names =
                        group.split(',').map(|name| name.trim().split("::").next().unwrap_or_default());
                    found.extend(names.map(|name| name.trim_end_matches("};").to_owned()));
                } else if end > 0 {
                    found.insert(rest[..end].to_owned());
                }
            }
        }
    }
    found
}

/// Tests may look anywhere: a file of tests, or what stands behind `mod tests {`.
fn without_tests(path: &Path, text: &str) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let in_tests = path.components().any(|part| part.as_os_str() == "tests");
    if name == "tests.rs" || name == "testing.rs" || in_tests {
        return String::new();
    }
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

#[test]
fn modules_import_only_what_their_layer_allows() {
    let source = root().join("meshd/src");
    let layers = layers();
    let mut broken = Vec::new();
    for file in rust_files(&source) {
        let module = module_of(&source, &file);
        if module == "lib" {
            continue;
        }
        let Some(allowed) = layers.get(&module) else {
            broken.push(format!(
                "{}: module {module} is not in the layers of docs/ARCHITECTURE.md",
                file.display()
            ));
            continue;
        };
        let text = without_tests(&file, &std::fs::read_to_string(&file).expect("a source file"));
        for import in imports(&text) {
            if import != module && layers.contains_key(&import) && !allowed.contains(&import) {
                broken.push(format!("{}: {module} must not import {import}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_layer_of_the_page_exists() {
    let source = root().join("meshd/src");
    for module in layers().keys() {
        assert!(
            source.join(format!("{module}.rs")).exists(),
            "{module} of docs/ARCHITECTURE.md is not in meshd/src"
        );
    }
}

#[test]
fn no_file_is_longer_than_can_be_read() {
    let mut long = Vec::new();
    for folder in ["proto/src", "meshd/core/src", "meshd/src", "meshctl/src", "tests/src"] {
        for file in rust_files(&root().join(folder)) {
            let lines =
                without_tests(&file, &std::fs::read_to_string(&file).expect("a source file")).lines().count();
            if lines > MAX_LINES {
                long.push(format!("{}: {lines} lines; split it by what it knows", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn core_does_no_io_and_knows_no_runtime() {
    let manifest = std::fs::read_to_string(root().join("meshd/core/Cargo.toml")).expect("core's manifest");
    let dependencies =
        manifest.split("[dependencies]").nth(1).expect("dependencies").split("\n[").next().expect("an end");
    for forbidden in
        ["tokio", "hyper", "rustls", "openraft", "raft", "quinn", "redb", "tracing", "socket2", "rustix"]
    {
        assert!(
            !dependencies.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(forbidden)),
            "core must not depend on {forbidden}"
        );
    }
}
