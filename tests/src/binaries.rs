//! The binaries under test, built before they are started.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run;

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The mesh daemon.
    pub meshd: PathBuf,
    /// The command line.
    pub meshctl: PathBuf,
    /// A small service to be called.
    pub service: PathBuf,
}

impl Binaries {
    /// Builds `meshd`, `meshctl` and `lab-service` in the profile of this test, and tells where they are.
    ///
    /// With `MESH_LAB_BINARIES=FOLDER` nothing is built: those in the folder are taken, such as `target/release`.
    ///
    /// # Errors
    /// When they do not build; cargo's own words are in the error.
    pub fn build() -> Result<Self> {
        if let Some(folder) = std::env::var_os("MESH_LAB_BINARIES") {
            return Ok(Self::of(&std::path::absolute(folder)?));
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
        // target/PROFILE/deps/lab-… → target/PROFILE
        let this = std::env::current_exe()?;
        let folder = this.ancestors().nth(2).context("a target folder")?.to_owned();
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let mut cargo = Command::new(env!("CARGO"));
        // What `cargo test --workspace` builds, no more: another choice of packages would unite other features and build
        // every dependency a second time.
        cargo.current_dir(root).args(["test", "--workspace", "--no-run", "--quiet", "--offline"]);
        if profile != "dev" {
            cargo.args(["--profile", profile]);
        }
        cargo.env("CARGO_TARGET_DIR", folder.parent().context("a target folder")?);
        run(cargo)?.success()?;
        Ok(Self::of(&folder))
    }

    fn of(folder: &Path) -> Self {
        let binary = |name: &str| folder.join(name);
        Self { meshd: binary("meshd"), meshctl: binary("meshctl"), service: binary("lab-service") }
    }
}
