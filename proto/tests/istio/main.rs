//! The types, the honesty table and the validation against Istio's own schema and test data.
//!
//! The data is not part of this repository; without it the tests say so, and fail where `CI=true`.

mod constraints;
mod schema;
mod validation;

use std::io::Write;
use std::path::PathBuf;

/// Reads a file of the shared folder.
fn shared(name: &str) -> Option<String> {
    let path = shared_folder(name)?;
    Some(std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Returns a path in the shared folder (`$MESHD_SHARED`, or `../shared` beside the repository), if it is there.
fn shared_folder(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let folder = std::env::var_os("MESHD_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!ci, "{} is missing, and CI must not skip its tests", path.display());
    // Written past the test harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {} is missing (set MESHD_SHARED)", path.display());
    None
}
