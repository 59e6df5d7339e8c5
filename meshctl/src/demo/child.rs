//! A meshd of the demo as a process that cannot outlive it.
//!
//! The demo starts itself as `meshctl __host --parent PID -- meshd run …`; that process asks the kernel to be killed
//! when its parent ends, and becomes meshd. The request survives `exec`, so no meshd is left behind, however the demo
//! ends. (A hook between fork and exec would need unsafe code.)

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::exit::{Exit, Failure, Result, plain};

/// Becomes `command`, tied to the life of the process `parent`.
pub(crate) fn become_meshd(parent: u32, command: &[OsString]) -> Result<Exit> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::new(Exit::NoAnswer, format!("prctl: {}", plain(&error.into()))))?;
    // The parent may have ended before the kernel was asked.
    let is_orphan = getppid().map(Pid::as_raw_pid) != i32::try_from(parent).ok();
    let (Some(program), false) = (command.first(), is_orphan) else {
        return Err(Failure::new(Exit::NoAnswer, "the demo that started this has ended"));
    };
    let error = std::process::Command::new(program).args(&command[1..]).exec();
    Err(Failure::unreadable(Path::new(program), &error))
}

/// Starts `meshd ARGUMENTS` with its output added to a log file.
pub(crate) fn spawn(meshd: &Path, arguments: &[OsString], log: &Path, stdin: Stdio) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("__host")
        .args(["--parent", &std::process::id().to_string(), "--"])
        .arg(meshd)
        .args(arguments)
        .env_remove("MESHD_SOCKET")
        .stdin(stdin)
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for the demo alone; it ends the hosts.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn()
}

/// Runs `meshd ARGUMENTS` to its end, with `input` as standard input.
///
/// # Errors
///
/// When it fails: the end of its log says why.
pub(crate) async fn run(meshd: &Path, arguments: &[OsString], log: &Path, input: Option<&str>) -> Result {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child =
        spawn(meshd, arguments, log, stdin).map_err(|error| Failure::unreadable(meshd, &error))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A meshd that does not read has an error to tell.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    }
    let status = child.wait().await.map_err(|error| Failure::unreadable(meshd, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::refused(format!("meshd {} failed ({status}):\n{}", shown(arguments), tail(log))))
}

fn shown(arguments: &[OsString]) -> String {
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// The last lines of a log, indented.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().fold(String::new(), |text, line| text + "  " + line + "\n")
}

/// Sends a signal to a process that has not been waited for.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended meanwhile, which is what was wanted.
        let _ = kill_process(pid, signal);
    }
}
