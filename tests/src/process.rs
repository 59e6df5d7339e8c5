//! Processes: run to their end, or kept until dropped.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit code; `None`: killed by a signal.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl Output {
    /// Returns itself when the command succeeded.
    ///
    /// # Errors
    /// With everything the command said.
    pub fn success(self) -> Result<Self> {
        if self.code == Some(0) {
            return Ok(self);
        }
        bail!("{} ended with {:?}\nstdout: {}\nstderr: {}", self.command, self.code, self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Result<Output> {
    run_with(command, "")
}

/// Runs a command to its end with something on its standard input.
pub(crate) fn run_with(mut command: Command, input: &str) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes the pipe: that is its right.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {shown}"))?;
    Ok(Output {
        command: shown,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Guarded(Child);

impl Guarded {
    /// Starts a process whose output goes to a file.
    pub(crate) fn start(mut command: Command, log: &std::path::Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self(command.spawn().with_context(|| format!("starting {command:?}"))?))
    }

    /// Its process id.
    ///
    /// # Panics
    /// Never: Linux's ids fit.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::kill_process(self.pid(), signal).context("sending a signal")
    }

    /// Kills it and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop and waits for its end; returns its exit code.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(mut self) -> Result<Option<i32>> {
        self.signal(rustix::process::Signal::TERM)?;
        Ok(self.0.wait()?.code())
    }

    /// Waits for its end; returns its exit code.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(mut self) -> Result<Option<i32>> {
        Ok(self.0.wait()?.code())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end();
    }
}
