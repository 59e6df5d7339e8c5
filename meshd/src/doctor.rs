//! Looks at a host for what keeps meshd from its work, and says what to do about each. Changes nothing but for one small
//! file in the data folder, which tells how long the disk takes to keep something.
//!
//! It runs within a meshd (asked over the socket, from other hosts too) and without one (`meshd doctor`), by the same
//! functions. What only a running meshd knows (other hosts, its own certificates) is added by `app`.

use mesh_proto::look::{Check, Grade};

use crate::config::{Config, InterceptMode};

mod certificates;
mod disk;
mod firewall;
mod kernel;
mod names;
mod ports;
mod process;
mod ruleset;
mod unit;

/// Who is looked at.
#[derive(Clone, Debug)]
pub struct Patient {
    /// As its meshd runs, or would run.
    pub config: Config,
    /// Whether this process is that meshd.
    pub is_running: bool,
    /// A name of the mesh that DNS must answer with a virtual address, if there is one.
    pub name_to_ask: Option<String>,
}

/// Looks at everything. Blocks for up to two seconds; runs `nft`, `ip` and `systemctl`.
pub fn examine(patient: &Patient) -> Vec<Check> {
    let config = &patient.config;
    let mut checks = Vec::new();
    if !patient.is_running {
        checks.extend(unit::standing());
    }
    checks.extend(ports::check(patient));
    checks.extend(process::check(patient));
    checks.extend(disk::check(&config.host.data));
    checks.extend(certificates::check(&config.host.data.join("certificates"), std::time::SystemTime::now()));
    checks.extend(kernel::check(config));
    checks.extend(firewall::check(config, patient.is_running));
    checks.extend(names::check(patient));
    checks
}

/// How grave it is that something is missing which interception needs.
fn without_interception(config: &Config) -> Grade {
    match config.intercept.mode {
        InterceptMode::On => Grade::Error,
        InterceptMode::Auto => Grade::Warning,
        InterceptMode::Off => Grade::Info,
    }
}

/// Runs a program to its end; its standard output, or why there is none.
fn output_of(program: &str, arguments: &[&str]) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let ended = std::process::Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("{program} is not installed"),
            _ => format!("{program} cannot be run: {error}"),
        })?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("{program}: {}", said.lines().next().unwrap_or("it failed").trim()))
}
