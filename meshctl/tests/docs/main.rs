//! The documentation is true: tables are made from the code, and what the tutorial says to type is typed.

mod architecture;
mod blocks;
mod browser;
mod cli;
mod commands;
mod differences;
mod help;
mod live;
mod page;
mod support;
mod terminal;

use std::path::{Path, PathBuf};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Reads a page of the repository.
fn page(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares the part of a page between its markers with what the code says; with `UPDATE=1`, rewrites it.
fn keep(name: &str, marker: &str, expected: &str) {
    let text = page(name);
    let (begin, end) = (format!("<!-- {marker}: made by a test -->\n"), format!("<!-- {marker}: end -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{name} has no line {begin}"));
    let (now, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{name} has no line {end}"));
    if now == expected {
        return;
    }
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        let path = root().join(name);
        std::fs::write(path, format!("{before}{begin}{expected}{end}{after}"))
            .expect("a page that can be written");
        return;
    }
    let differs = now.lines().zip(expected.lines()).find(|(now, expected)| now != expected);
    panic!(
        "{name} is not what the code says any more (first difference: {differs:?}); to rewrite it: \
         UPDATE=1 cargo test -p meshctl --test docs"
    );
}
