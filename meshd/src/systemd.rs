//! Speaks with systemd: ready, stopping, alive; and enables the unit at `meshd init` and `meshd join`.
//!
//! Everything here does nothing where systemd does not run, and never fails the caller: a host without systemd is
//! as good a host.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sd_notify::NotifyState;

/// Name of meshd's unit.
pub const UNIT: &str = "meshd.service";

/// What became of [`enable_unit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enabled {
    /// The unit is enabled and running.
    Started,
    /// There is no systemd, no unit of meshd, or the caller is not root: `meshd run` serves.
    NoSystemd,
    /// systemd refused; what it said.
    Failed(String),
}

/// Says that meshd serves: what the unit's `Type=notify` waits for.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that meshd drains, and how long it may take at most.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows a short sentence in `systemctl status`.
pub fn status(sentence: &str) {
    tell(&[NotifyState::Status(sentence)]);
}

/// Says that another process of the unit is its main one from now on: the successor.
pub fn main_is(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// Whether a supervisor is told of anything.
pub fn is_told() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Has systemd keep descriptors under a name until the unit stops for good.
pub fn store(name: &str, descriptors: &[OwnedFd]) {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    // systemd looks at each message's descriptors until the first it has already.
    for descriptor in descriptors {
        tell_within(HEARS_WITHIN, &[NotifyState::FdStore, NotifyState::FdName(name)], Some(descriptor));
    }
}

/// Has systemd let go of the descriptors of a name.
pub fn unstore(name: &str) {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Returns how many descriptors systemd kept since the last run; they begin with number 3.
pub fn stored() -> usize {
    match sd_notify::listen_fds() {
        Ok(kept) => kept.len(),
        Err(error) => {
            tracing::warn!(%error, "sockets kept by systemd cannot be used");
            0
        }
    }
}

/// Whether this stop is half of a restart: systemd has it queued. Where that cannot be found out, it is not.
pub fn is_restarting() -> bool {
    if !sd_notify::booted().unwrap_or(false) {
        return false;
    }
    let mut systemctl = Command::new("systemctl");
    systemctl.args(["list-jobs", "--no-legend", "--no-pager", UNIT]).stdin(Stdio::null());
    let jobs = systemctl.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    jobs.is_ok_and(|jobs| jobs.lines().any(is_restart_job))
}

/// A line of `systemctl list-jobs`: number, unit, type, state.
fn is_restart_job(line: &str) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    words.contains(&UNIT) && words.iter().any(|word| ["restart", "try-restart"].contains(word))
}

/// Says that meshd is alive. Call it every [`watchdog_interval`], from the runtime whose health counts.
pub fn alive() {
    tell_within(Duration::ZERO, &[NotifyState::Watchdog], None);
}

/// Returns how often to call [`alive`]: six times in the unit's `WatchdogSec`, as pings are lost where systemd is behind; `None`
/// where nobody watches.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 6)
}

/// Enables and starts the unit, so that meshd serves now and after a reboot.
pub fn enable_unit() -> Enabled {
    let unit_is_installed = UNIT_FOLDERS.iter().any(|folder| Path::new(folder).join(UNIT).exists());
    if !sd_notify::booted().unwrap_or(false) || !unit_is_installed || !rustix::process::geteuid().is_root() {
        return Enabled::NoSystemd;
    }
    let output = Command::new("systemctl").args(["enable", "--now", UNIT]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Enabled::Started,
        Ok(output) => Enabled::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Enabled::Failed(format!("cannot run systemctl: {error}")),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    tell_within(HEARS_WITHIN, state, None);
}

/// Tells systemd, unless it reads nothing for so long: where it stands still itself, meshd does not. Who has not heard
/// within [`HEARS_WITHIN`] once is not waited for again until it hears. A ping that found no room says nothing of that kind:
/// systemd that boots is behind for a moment, and another ping follows.
fn tell_within(patience: Duration, state: &[NotifyState<'_>], descriptor: Option<BorrowedFd<'_>>) {
    static IS_DEAF: AtomicBool = AtomicBool::new(false);
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let lines: Vec<String> = state.iter().map(ToString::to_string).collect();
    let was_deaf = IS_DEAF.load(Ordering::Relaxed);
    let told = send(
        &socket,
        lines.join("\n").as_bytes(),
        descriptor,
        if was_deaf { Duration::ZERO } else { patience },
    );
    let is_full = told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    IS_DEAF.store(is_full && (was_deaf || !patience.is_zero()), Ordering::Relaxed);
    match told {
        Err(error) if is_full && patience.is_zero() => {
            tracing::debug!(%error, ?lines, "systemd was not told");
        }
        Err(error) => tracing::warn!(%error, ?lines, "systemd was not told"),
        Ok(()) => {}
    }
}

/// Source: sd_notify(3): a datagram to a path, or to a name of the abstract namespace that is written with `@`.
fn send(
    socket: &OsStr,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    if patience.is_zero() {
        sender.set_nonblocking(true)?;
    } else {
        sender.set_write_timeout(Some(patience))?;
    }
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    sender.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    sendmsg(&sender, &[IoSlice::new(message)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// systemd reads at once; so long it may be busy.
const HEARS_WITHIN: Duration = Duration::from_secs(1);

/// Where units are installed, in systemd's order.
const UNIT_FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn who_reads_nothing_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let tell = |patience| send(path.as_os_str(), b"WATCHDOG=1\n", None, patience);

        tell(Duration::ZERO).unwrap();
        let mut heard = [0; 64];
        let length = supervisor.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"WATCHDOG=1\n");

        // As many as the kernel keeps for it (net.unix.max_dgram_qlen).
        let told = (0..100_000).find_map(|_| tell(Duration::ZERO).err()).expect("it is full");
        assert_eq!(told.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(tell(Duration::from_millis(1)).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_name_of_the_abstract_namespace_is_told_too() {
        let name = format!("meshd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let supervisor = UnixDatagram::bind_addr(&address).unwrap();

        send(OsStr::new(&format!("@{name}")), b"READY=1\n", None, HEARS_WITHIN).unwrap();

        let mut heard = [0; 64];
        assert_eq!(supervisor.recv(&mut heard).unwrap(), b"READY=1\n".len());
    }

    /// Every `Key=value` of a section of the unit file; a key may stand several times.
    fn unit(section: &str) -> BTreeMap<String, Vec<String>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/meshd.service");
        let text = std::fs::read_to_string(file).unwrap();
        let body = text.split(&format!("[{section}]\n")).nth(1).unwrap().split("\n[").next().unwrap();
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in
            body.lines().filter(|line| !line.starts_with('#')).filter_map(|l| l.split_once('='))
        {
            keys.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        keys
    }

    #[test]
    fn the_unit_waits_until_meshd_is_ready_and_cleans_up_after_a_crash() {
        let service = unit("Service");
        assert_eq!(service["Type"], ["notify"]);
        assert_eq!(service["Restart"], ["always"]);
        assert_eq!(service["ExecStart"], ["/usr/bin/meshd run"]);
        assert_eq!(service["ExecStopPost"], ["/usr/bin/meshd cleanup --unless-restarting"]);
    }

    #[test]
    fn the_unit_grants_what_interception_needs_and_the_folders_of_the_defaults() {
        let service = unit("Service");
        assert_eq!(service["AmbientCapabilities"], service["CapabilityBoundingSet"]);
        assert!(service["AmbientCapabilities"][0].contains("CAP_NET_ADMIN"));
        let config = crate::config::Config::default();
        assert_eq!(
            Path::new("/run").join(&service["RuntimeDirectory"][0]),
            config.listen.socket.parent().unwrap()
        );
        assert_eq!(Path::new("/var/lib").join(&service["StateDirectory"][0]), config.host.data);
        assert!(service["RestrictAddressFamilies"][0].contains("AF_NETLINK"), "nft and ip speak netlink");
    }

    #[test]
    fn the_unit_gives_meshd_time_to_drain() {
        let service = unit("Service");
        let stop: u64 = service["TimeoutStopSec"][0].parse().unwrap();
        assert!(Duration::from_secs(stop) > crate::config::Config::default().proxy.drain);
    }

    #[test]
    fn the_unit_reloads_by_a_successor_and_keeps_sockets_over_a_restart() {
        let service = unit("Service");
        assert_eq!(service["ExecReload"], ["/usr/bin/meshctl reload"]);
        assert_eq!(service["NotifyAccess"], ["main"]);
        assert!(service["FileDescriptorStoreMax"][0].parse::<u32>().unwrap() > 0);
        assert_eq!(service["User"], ["meshd"]);
        assert_eq!(service["RestartPreventExitStatus"], ["64 78"], "wrong usage, and what needs a person");
        assert!(service.contains_key("WatchdogSec"));
    }

    #[test]
    fn a_restart_is_told_from_a_stop() {
        assert!(is_restart_job("1021 meshd.service restart running"));
        assert!(!is_restart_job("1021 meshd.service stop    running"));
        assert!(!is_restart_job("1021 other.service restart running"));
        assert!(!is_restart_job("No jobs running."));
    }

    #[test]
    fn without_systemd_nothing_is_told_and_nothing_fails() {
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            return eprintln!("SKIPPED: without_systemd_nothing_is_told: this runs under systemd's watch");
        }
        ready();
        alive();
        stopping();
    }
}
