//! What needs no mesh: `completion`, `man`, `version`, and handing over to `meshd`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;
use mesh_proto::api::{Request, Response};
use serde::Serialize;

use crate::cli::Cli;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result, plain};
use crate::locate::Wish;
use crate::output::{Format, say, show};

/// Writes the completion of a shell to standard output.
pub(crate) fn completion(shell: Shell) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut text);
    say(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Done)
}

/// Writes a man page for each command that is not hidden.
pub(crate) fn man(folder: &Path) -> Result<Exit> {
    clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
        Failure::new(Exit::Unreadable, format!("cannot write to {}: {}", folder.display(), plain(&error)))
    })?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    server: Option<String>,
    problem: Option<String>,
}

/// Tells the version of meshctl, and of the meshd if one answers.
pub(crate) async fn version(format: Format, wish: &Wish) -> Result<Exit> {
    let server = match Client::find(wish) {
        Ok(client) => match client.call(&Request::Version).await {
            Ok(answer) => answer!(answer, Response::Version { version, .. } => version),
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    let (server, problem) = match server {
        Ok(version) => (Some(version), None),
        Err(failure) => (None, Some(failure.message)),
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), server, problem };
    show(format, std::slice::from_ref(&versions), || {
        let server = match (&versions.server, &versions.problem) {
            (Some(version), _) => version.clone(),
            (None, problem) => format!("unknown: {}", problem.clone().unwrap_or_default()),
        };
        format!("meshctl  {}\nmeshd    {server}\n", versions.client)
    })?;
    Ok(Exit::Done)
}

/// Becomes `meshd VERB ARGUMENTS`.
pub(crate) fn exec_meshd(verb: &str, arguments: &[OsString]) -> Result<Exit> {
    let meshd = meshd()?;
    let error = Command::new(&meshd).arg(verb).args(arguments).exec();
    Err(Failure::unreadable(&meshd, &error))
}

/// Finds the `meshd` binary: beside meshctl, else in `PATH`.
///
/// # Errors
///
/// When there is none.
pub(crate) fn meshd() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Unreadable, format!("cannot find out where meshctl is: {}", plain(&error)))
    })?;
    let beside = own.with_file_name("meshd");
    let mut places = vec![beside.clone()];
    places.extend(
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("meshd")),
    );
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        Failure::new(
            Exit::Unreadable,
            format!(
                "there is no meshd at {} nor in PATH: build both binaries with `cargo build --release`, or install meshd",
                beside.display()
            ),
        )
    })
}
