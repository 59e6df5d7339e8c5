//! The types, the honesty table and the validation against Istio's own schema and test data.
//!
//! The data is not part of this repository; without it the tests say so, and fail where `CI=true`.

mod schema;
mod validation;

use std::path::PathBuf;

/// Reads a file of the shared folder: `$MESHD_SHARED`, or `../shared` beside the repository.
fn shared(name: &str) -> Option<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let folder = std::env::var_os("MESHD_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join(name);
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Some(text);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{} is missing, and CI must not skip its tests",
        path.display()
    );
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so aloud")]
    {
        eprintln!("SKIPPED: {} is missing (set MESHD_SHARED)", path.display());
    }
    None
}
