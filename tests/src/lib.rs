//! The lab: many hosts on one machine, as network namespaces, with the real binaries on them.
//!
//! A story is an ordinary test. [`story`] runs it again inside a user, mount and network namespace of its own, so no
//! root is needed and nothing outside is touched; there a [`Lab`] makes hosts joined by a bridge (198.18.0.0/24 and
//! fd00::/64), starts meshd on them and drives them with `meshctl` and unmodified `curl`. Where the kernel allows no
//! user namespaces, or a tool is missing, a story says `SKIPPED: why` aloud; with `MESH_LAB=require` (CI) it fails.
//! A story that fails shows the ends of its hosts' logs. `MESH_LAB_BINARIES=FOLDER` tells the lab to build nothing.

mod binaries;
mod host;
mod namespace;
mod process;
mod wait;

pub use binaries::Binaries;
pub use host::{Curl, Host, Load, load_result};
pub use namespace::{has_programs, mount_tmpfs, story, which};
pub use process::{Guarded, Output};
pub use wait::{eventually, eventually_within};

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A set of hosts on one bridge.
pub struct Lab {
    folder: tempfile::TempDir,
    hosts: Vec<Host>,
}

impl Lab {
    /// Makes `count` bare hosts, `vm1` … on 198.18.0.1 … and fd00::1 …; nothing runs on them yet.
    ///
    /// # Errors
    /// When a tool fails; its own words are in the error.
    pub fn new(count: u8) -> Result<Self> {
        namespace::make_bridge()?;
        let folder = tempfile::tempdir().context("a folder for the lab")?;
        let binaries = Binaries::build()?;
        let hosts = (1..=count)
            .map(|number| Host::new(number, folder.path(), binaries.clone()))
            .collect::<Result<_>>()?;
        Ok(Self { folder, hosts })
    }

    /// Makes hosts that are one mesh: `init` on the first, a token and `join` for each further one, `run` on all,
    /// with the commands that the README gives.
    ///
    /// # Errors
    /// When a step fails, or the hosts do not find each other within 30 s.
    pub fn mesh(count: u8) -> Result<Self> {
        let mut lab = Self::new(count)?;
        lab.form_mesh()?;
        Ok(lab)
    }

    /// Makes bare hosts one mesh; a story may have configured them before.
    ///
    /// # Errors
    /// When a step fails, or the hosts do not find each other within 30 s.
    pub fn form_mesh(&mut self) -> Result<()> {
        let hosts = &mut self.hosts;
        let count = hosts.len();
        hosts[0].meshd(&["init"])?.success()?;
        hosts[0].start()?;
        for number in 1..count {
            let token = hosts[0].meshctl(&["token", "create"])?.success()?.stdout;
            hosts[number].join("198.18.0.1:15008", token.trim())?.success()?;
            hosts[number].start()?;
        }
        eventually_within(std::time::Duration::from_secs(30), "every host is live", || {
            let live = hosts[0].status()?.hosts.iter().filter(|host| host.state == "live").count();
            anyhow::ensure!(live == count, "{live} of {count} hosts live");
            Ok(())
        })
    }

    /// The host of that number, from 1.
    ///
    /// # Panics
    /// When there is no such host.
    pub fn vm(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// All hosts.
    pub fn hosts(&mut self) -> &mut [Host] {
        &mut self.hosts
    }

    /// Writes a file for a story and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// Keeps the ends of the hosts' logs for [`story`] to print, should the story fail.
    fn remember(&self) {
        let tails = self.hosts.iter().map(|host| {
            let log = host.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            format!("---- meshd.log of {} (last {LOG_LINES} lines) ----\n{tail}\n", host.name)
        });
        namespace::remember(tails.collect());
    }

    /// The folder that everything of this lab lives in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Lines of each host's log that a failed story shows.
const LOG_LINES: usize = 60;

impl Drop for Lab {
    fn drop(&mut self) {
        self.remember();
    }
}
