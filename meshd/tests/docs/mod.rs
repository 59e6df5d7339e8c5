//! `docs/configuration.md` says of every key of `meshd.toml` what the code says.

use std::path::Path;

#[test]
fn the_table_of_keys_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let (begin, end) = ("<!-- keys: made by a test -->\n", "<!-- keys: end -->\n");
    let (before, rest) = page.split_once(begin).expect("the begin of the table");
    let (now, after) = rest.split_once(end).expect("the end of the table");
    let expected = meshd::config::reference();
    if now == expected {
        return;
    }
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::write(path, format!("{before}{begin}{expected}{end}{after}"))
            .expect("a page that can be written");
        return;
    }
    panic!(
        "docs/configuration.md is not what the code says any more; to rewrite it: \
         UPDATE=1 cargo test -p meshd --test main"
    );
}
