//! Pages that say what the code says: `docs/configuration.md` of every key of `meshd.toml`, `docs/metrics.md` of every
//! metric, `docs/cli.md` of every command of meshd.

use std::path::Path;

#[path = "../../../meshctl/tests/docs/help.rs"]
mod help;
mod metrics;

#[test]
fn the_reference_of_meshd_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let marks = ("<!-- meshd: made by a test -->\n", "<!-- meshd: end -->\n");
    check(&path, marks, &help::reference(Path::new(env!("CARGO_BIN_EXE_meshd")), "meshd"));
}

#[test]
fn the_table_of_keys_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let marks = ("<!-- keys: made by a test -->\n", "<!-- keys: end -->\n");
    check(&path, marks, &meshd::config::reference());
}

/// Checks what stands between two marks, or writes it there where `UPDATE` is 1.
fn check(path: &Path, (begin, end): (&str, &str), expected: &str) {
    let page = std::fs::read_to_string(path).expect("a page");
    let (before, rest) = page.split_once(begin).expect("the begin of the table");
    let (now, after) = rest.split_once(end).expect("the end of the table");
    if now == expected {
        return;
    }
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::write(path, format!("{before}{begin}{expected}{end}{after}"))
            .expect("a page that can be written");
        return;
    }
    panic!(
        "{} is not what the code says any more; to rewrite it: UPDATE=1 cargo test -p meshd --test main",
        path.display()
    );
}
