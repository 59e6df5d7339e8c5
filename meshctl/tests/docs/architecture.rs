//! The tree of `docs/ARCHITECTURE.md` names every module, and no file that is not there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::{page, root};

const SOURCES: [&str; 3] = ["proto/src", "meshd/core/src", "meshd/src"];

/// The stems of the Rust files in a folder and in the folders right below it, tests apart.
fn modules(folder: &Path, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && depth > 0 && stem != "tests" {
            found.extend(modules(&path, depth - 1));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(stem);
        }
    }
    found
}

#[test]
fn the_tree_names_every_module_and_nothing_else() {
    let text = page("docs/ARCHITECTURE.md");
    let tree =
        text.split_once("## The tree\n\n```\n").expect("a tree").1.split("\n```").next().expect("its end");
    let words: BTreeSet<&str> = tree.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    // `api/*` and the like stand for one file a call; what tests share is no part of the product.
    let untold = ["lib", "tests", "testing", "fixture", "shard", "pages"];
    let mut wrong = Vec::new();
    for source in SOURCES {
        let folder = root().join(source);
        for module in modules(&folder, 1) {
            let is_kind = folder.join("resource").join(&module).with_extension("rs").exists()
                || folder.join("validate").join(&module).with_extension("rs").exists();
            if !words.contains(module.as_str()) && !untold.contains(&module.as_str()) && !is_kind {
                wrong.push(format!("{source}: the tree does not name {module}"));
            }
        }
    }
    let named = tree.split_whitespace().filter_map(|word| word.strip_suffix(".rs"));
    for name in named {
        let is_there =
            SOURCES.iter().any(|source| root().join(source).join(name).with_extension("rs").exists());
        if !is_there {
            wrong.push(format!("the tree names {name}.rs, which is nowhere"));
        }
    }
    assert!(wrong.is_empty(), "docs/ARCHITECTURE.md: {}", wrong.join("\n"));
}
