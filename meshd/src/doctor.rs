//! Looks at a host for what keeps meshd from its work, and says what to do about each. Changes nothing but for one small
//! file in the data folder, which tells how long the disk takes to keep something.
//!
//! It runs within a meshd (asked over the socket, from other hosts too) and without one (`meshd doctor`), by the same
//! functions. What only a running meshd knows (other hosts, its own certificates) is added by `app`.

use std::path::PathBuf;
use std::time::Duration;

use mesh_proto::look::{Check, Grade};
use rustix::process::geteuid;

use crate::config::{Config, InterceptMode};

mod certificates;
mod disk;
mod firewall;
mod kernel;
mod names;
mod ports;
mod process;
mod rights;
mod ruleset;
mod unit;

use unit::Unit;

/// Who is looked at.
#[derive(Clone, Debug, Default)]
pub struct Patient {
    /// As its meshd runs, or would run.
    pub config: Config,
    /// Whether this process is that meshd.
    pub is_running: bool,
    /// Whether the unit of systemd would run it, which knows no other configuration than that at the usual places.
    pub is_by_unit: bool,
    /// Files and folders that its start reads, if they are there.
    pub reads: Vec<PathBuf>,
    /// A name of the mesh that DNS must answer with a virtual address, if there is one.
    pub name_to_ask: Option<String>,
}

/// Looks at everything. Blocks, for two seconds as a rule; runs `nft`, `ip` and `systemctl`.
pub fn examine(patient: &Patient) -> Vec<Check> {
    let config = &patient.config;
    let mut checks = Vec::new();
    let unit = if patient.is_running || !patient.is_by_unit { None } else { Unit::find() };
    if !patient.is_running {
        checks.push(unit::standing(unit.as_ref()));
        checks.extend(rights::check(patient, unit.as_ref()));
    }
    checks.extend(rights::check_lists(patient, unit.as_ref()));
    checks.extend(ports::check(patient, unit.as_ref()));
    checks.extend(process::check(patient, unit.as_ref()));
    checks.extend(disk::check(&config.host.data, unit.is_some() && !geteuid().is_root()));
    checks.extend(certificates::check(&config.host.data.join("certificates"), std::time::SystemTime::now()));
    checks.extend(kernel::check(config));
    checks.extend(firewall::check(config, patient.is_running));
    checks.extend(names::check(patient));
    if !patient.is_running {
        let what =
            "clocks, versions, the quorum and how far behind this host is: a meshd that runs asks the others";
        checks.push(Check::skipped("hosts", what));
    }
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

/// Where programs are looked for: `PATH`, and where systems keep those for root.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

/// What can be found out by somebody else.
pub(crate) fn as_root(what: &str) -> String {
    format!("{what}; as root it is: sudo meshctl doctor")
}

/// Runs a program to its end; its standard output, or why there is none.
fn output_of(program: &str, arguments: &[&str]) -> Result<String, String> {
    output_within(PATIENCE, program, arguments)
}

fn output_within(patience: Duration, program: &str, arguments: &[&str]) -> Result<String, String> {
    let child = std::process::Command::new(program)
        .args(arguments)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("{program} is not installed"),
            _ => format!("{program} cannot be run: {error}"),
        })?;
    let pid = rustix::process::Pid::from_child(&child);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let ended = told.recv_timeout(patience).map_err(|_| {
        // Nobody has heard of its end yet, so the number is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        format!("{program} did not end within {patience:?}")
    })?;
    let ended = ended.map_err(|error| format!("{program}: {error}"))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(format!("{program}: {}", said.lines().next().unwrap_or("it failed").trim()))
}

/// How long a program may take. A large ruleset takes `nft` a second.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_given_up() {
        let told = output_within(Duration::from_millis(50), "sleep", &["60"]);
        assert_eq!(told, Err("sleep did not end within 50ms".to_owned()));
        assert_eq!(output_of("echo", &["well"]), Ok("well\n".to_owned()));
        assert_eq!(output_of("no-such-program", &[]), Err("no-such-program is not installed".to_owned()));
    }
}
