//! Namespaces: getting into them, and the bridge that joins hosts.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::process::{Output, run};

const INSIDE: &str = "MESH_LAB_INSIDE";

/// What the hosts of the lab that ended last wrote.
static LAST_LOGS: Mutex<String> = Mutex::new(String::new());

/// Keeps the logs of a lab that ends.
pub(crate) fn remember(logs: String) {
    *LAST_LOGS.lock().unwrap_or_else(PoisonError::into_inner) = logs;
}

/// Runs a story inside its own namespaces; `name` is the test's full name as the test runner knows it.
///
/// # Panics
/// When the story fails, and, with `MESH_LAB=require`, when it cannot run.
pub fn story(name: &str, tell: impl FnOnce() -> Result<()>) {
    if std::env::var_os(INSIDE).is_some() {
        if let Err(error) = prepare().and_then(|()| tell()) {
            let logs = LAST_LOGS.lock().unwrap_or_else(PoisonError::into_inner);
            panic!("{error:?}\n{logs}");
        }
        return;
    }
    if let Err(why) = can_run() {
        assert!(std::env::var("MESH_LAB").as_deref() != Ok("require"), "the lab cannot run here: {why}");
        eprintln!("SKIPPED: {name}: {why}");
        return;
    }
    let this = std::env::current_exe().expect("a test has a file");
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--pid",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "--",
        ])
        .arg(this)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare was there a moment ago");
    assert!(status.success(), "the story failed; see above");
}

/// Tells why the lab cannot run, if it cannot.
fn can_run() -> Result<()> {
    for tool in ["unshare", "nsenter", "ip", "nft", "curl", "mount"] {
        if which(tool).is_none() {
            bail!("{tool} is not installed");
        }
    }
    let try_it = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc", "--fork", "true"])
        .output()
        .context("unshare")?;
    if !try_it.status.success() {
        bail!("the kernel allows no user namespaces: {}", String::from_utf8_lossy(&try_it.stderr).trim());
    }
    Ok(())
}

/// Finds a program in `PATH` or where systems keep those for root.
pub fn which(tool: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| std::path::Path::new(folder).join(tool))
        .find(|file| file.is_file())
}

/// Whether these programs are all there; says `SKIPPED`, and for which, where they are not.
///
/// # Errors
/// With `MESH_LAB=require`, when one is not there.
pub fn has_programs(programs: &[&str]) -> Result<bool> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| which(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    if std::env::var("MESH_LAB").as_deref() == Ok("require") {
        bail!("not installed: {}", missing.join(", "));
    }
    eprintln!("SKIPPED: not installed: {}", missing.join(", "));
    Ok(false)
}

/// Gives this namespace a `/run`, a `/dev/shm` and a resolver configuration of its own.
fn prepare() -> Result<()> {
    sh(&["mount", "-t", "tmpfs", "tmpfs", "/run"])?;
    // Programs name what they share by their pid, and pids of stories are alike: what another left behind would be in the way.
    sh(&["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"])?;
    std::fs::create_dir_all("/run/netns")?;
    // The address of the bridge: nobody answers there, so what resolves was answered by meshd.
    std::fs::write("/run/resolv.conf", "nameserver 198.18.0.254\noptions timeout:1 attempts:2\n")?;
    sh(&["mount", "--bind", "/run/resolv.conf", "/etc/resolv.conf"])?;
    sh(&["ip", "link", "set", "lo", "up"])?;
    Ok(())
}

/// Makes the bridge that all hosts hang on.
pub(crate) fn make_bridge() -> Result<()> {
    sh(&["ip", "link", "add", "br0", "type", "bridge"])?;
    sh(&["ip", "addr", "add", "198.18.0.254/24", "dev", "br0"])?;
    sh(&["ip", "addr", "add", "fd00::fe/64", "dev", "br0", "nodad"])?;
    sh(&["ip", "link", "set", "br0", "up"])?;
    Ok(())
}

/// Gives a folder a small disk of its own, such as `32m`; it is gone with the story.
///
/// # Errors
/// When it cannot be mounted.
pub fn mount_tmpfs(folder: &str, size: &str) -> Result<()> {
    sh(&["mount", "-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", folder]).map(drop)
}

/// Runs a command that must succeed.
pub(crate) fn sh(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(which(arguments[0]).unwrap_or_else(|| arguments[0].into()));
    command.args(&arguments[1..]);
    run(command)?.success()
}
