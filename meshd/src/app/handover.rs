//! A successor takes this meshd's place: another version, another `meshd.toml`, the same sockets.
//!
//! ```text
//! predecessor                                   successor (what is on disk now)
//!   every listening socket, its data folder ──►   reads meshd.toml and host.json, changes nothing
//!                                           ◄──   prepared, or why not: then all stays as it is
//!   ends its control plane, unlocks the folder
//!   yours                                   ──►   starts everything; accepts at once, by the last Plan
//!                                           ◄──   serving
//!   tells systemd who the main process is
//!   main                                    ──►   says READY=1
//!   accepts no more, and drains
//! ```
//!
//! Both share the sockets, so nobody who connects meanwhile is refused; what is under way on the predecessor's
//! connections ends there. They speak over a socket pair that is the successor's standard input.

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use rustix::process::{Pid, Signal, kill_process};

use super::run::Stop;
use crate::config::Config;
use crate::listeners::{Keep, Listeners};
use crate::proxy::Proxy;

/// The meshd that is to take over, seen from the one that runs.
#[derive(Debug)]
pub(super) struct Successor {
    channel: Channel,
    pid: u32,
}

impl Successor {
    /// Starts the meshd on disk and waits until it is ready to take over. Blocks.
    ///
    /// # Errors
    /// When it cannot: with its own reason, such as a mistake in `meshd.toml`. Nothing has changed then.
    pub(super) fn start(config: &Config, listeners: &Listeners) -> Result<Self> {
        let (channel, theirs) = Channel::pair().context("making a channel to the successor")?;
        let mut starter = again(Stage::Begin, theirs).spawn().context("starting the successor")?;
        let sockets = listeners.all().context("out of descriptors")?;
        channel.send_sockets(&sockets)?;
        channel.send(&config.host.data.display().to_string())?;
        let answer = channel.receive(PREPARES_WITHIN);
        let _ = starter.wait();
        let answer = answer.context("the meshd on disk does not start")?.word;
        match answer.split_once(' ') {
            Some(("prepared", pid)) => Ok(Self { channel, pid: pid.parse()? }),
            Some(("failed", why)) => bail!("the meshd on disk does not start, this one goes on: {why}"),
            _ => bail!("the meshd on disk answered {answer:?}: does it know how to take over?"),
        }
    }

    /// Lets the successor begin, and waits until it serves. Blocks.
    ///
    /// # Errors
    /// When it failed on the way.
    pub(super) fn take_over(&self) -> Result<()> {
        self.channel.send("yours")?;
        self.channel.receive(SERVES_WITHIN).context("the successor did not come to serve")?;
        crate::systemd::main_is(self.pid);
        self.channel.send("main")
    }

    /// Tells it to stop, as this process was told.
    fn stop(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
            tracing::warn!(%error, successor = self.pid, "the successor cannot be told to stop");
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

/// The meshd that runs, seen from the one that is to take over.
#[derive(Debug)]
pub(super) struct Predecessor {
    channel: Channel,
    data: PathBuf,
}

impl Predecessor {
    /// Finds the predecessor and takes its sockets; `None` where this process was started by anybody else.
    pub(super) fn find() -> Result<Option<(Self, Vec<OwnedFd>)>> {
        match Stage::of_this_process() {
            None => return Ok(None),
            // A process of its own, so that systemd is its parent, and notices its end.
            Some(Stage::Begin) => {
                again(Stage::Go, std::io::stdin().as_fd().try_clone_to_owned()?).spawn()?;
                return Err(Started.into());
            }
            Some(Stage::Go) => {}
        }
        let channel = Channel(std::io::stdin().as_fd().try_clone_to_owned()?);
        let mut sockets = Vec::new();
        loop {
            let message = channel.receive(PREPARES_WITHIN)?;
            if message.word != SOCKETS {
                return Ok(Some((Self { channel, data: message.word.into() }, sockets)));
            }
            sockets.extend(message.sockets);
        }
    }

    /// Refuses what cannot change while meshd runs.
    pub(super) fn check(&self, data: &Path) -> Result<()> {
        if self.data != data {
            bail!(
                "host.data cannot change while meshd runs: stop it, move {} and start",
                self.data.display()
            );
        }
        Ok(())
    }

    /// Says that this process can take over, and waits until it may. Blocks.
    pub(super) fn prepared(&self) -> Result<()> {
        self.channel.send(&format!("prepared {}", std::process::id()))?;
        self.channel.receive(YIELDS_WITHIN).map(drop)
    }

    /// Says why this process cannot take over.
    pub(super) fn failed(&self, why: &anyhow::Error) {
        let _ = self.channel.send(&format!("failed {why:#}"));
    }

    /// Says that this process serves, and waits until it is the unit's main process. Blocks.
    pub(super) fn serving(&self) -> Result<()> {
        self.channel.send("serving")?;
        self.channel.receive(YIELDS_WITHIN).map(drop)
    }
}

/// What is left of a meshd whose successor serves: connections that go on.
pub(super) struct Leaving {
    pub(super) successor: Successor,
    pub(super) proxy: Proxy,
    pub(super) listeners: Listeners,
    /// Has heard signals all the while.
    pub(super) stop: Stop,
    /// How long they may go on when the unit is stopped meanwhile.
    pub(super) stop_drain: Duration,
}

impl Leaving {
    /// Lets the successor begin, accepts no more once it serves, and waits until all connections have ended.
    pub(super) fn finish(self) -> Result<()> {
        let Self { successor, proxy, listeners, mut stop, stop_drain } = self;
        successor.take_over()?;
        tracing::info!("the successor serves: draining");
        // It has the same ones.
        listeners.close(Keep::InStore);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cut = runtime.block_on(async {
            let began = Instant::now();
            let enough = async {
                let stopped = async {
                    stop.wait().await;
                    if began.elapsed() < HEARD_WITHIN {
                        successor.stop();
                    }
                    tokio::time::sleep(stop_drain).await;
                };
                let _ = tokio::time::timeout(DRAINS_FOR, stopped).await;
            };
            proxy.drain_until(enough).await
        });
        tracing::info!(cut, "drained after the hand-over");
        Ok(())
    }
}

/// The process only started another; it ends without an error.
#[derive(Debug, thiserror::Error)]
#[error("the successor was started")]
pub(super) struct Started;

/// Which step of its start a successor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Starts the one that stays.
    Begin,
    /// Stays.
    Go,
}

impl Stage {
    fn of_this_process() -> Option<Self> {
        match std::env::var(VARIABLE).ok()?.as_str() {
            "begin" => Some(Self::Begin),
            "go" => Some(Self::Go),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Go => "go",
        }
    }
}

/// The program of this process as it is on disk now, with the same arguments.
fn again(stage: Stage, channel: OwnedFd) -> Command {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program(arguments.next()));
    command.args(arguments).stdin(Stdio::from(channel)).env(VARIABLE, stage.word());
    // What systemd said to this process alone.
    for variable in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(variable);
    }
    command
}

/// As it was called; else where this process was started from, which a replaced file is called "(deleted)".
fn program(called: Option<OsString>) -> PathBuf {
    let called = called.map(PathBuf::from).filter(|path| path.is_absolute());
    called
        .or_else(|| std::env::current_exe().ok().map(|path| undeleted(&path)))
        .unwrap_or_else(|| "meshd".into())
}

fn undeleted(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)").map_or_else(|| path.to_owned(), PathBuf::from)
}

/// One end of the pair: messages of a word, and sockets beside it.
#[derive(Debug)]
struct Channel(OwnedFd);

struct Message {
    word: String,
    sockets: Vec<OwnedFd>,
}

impl Channel {
    fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    fn send(&self, word: &str) -> Result<()> {
        self.send_with(word, &[])
    }

    fn send_sockets(&self, sockets: &[OwnedFd]) -> Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        sockets.chunks(AT_ONCE).try_for_each(|some| self.send_with(SOCKETS, some))
    }

    fn send_with(&self, word: &str, sockets: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            bail!("too many sockets for one message");
        }
        let bytes = &word.as_bytes()[..word.len().min(LONGEST)];
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, Some(PREPARES_WITHIN))?;
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
            .context("the other meshd is gone")?;
        Ok(())
    }

    fn receive(&self, limit: Duration) -> Result<Message> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(limit))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; LONGEST];
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = match received {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::AGAIN) => bail!("no answer within {} s", limit.as_secs()),
            Err(error) => return Err(error.into()),
        };
        if length == 0 {
            bail!("it ended; the log says why");
        }
        let sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let sockets = sockets.flatten().collect();
        let word = String::from_utf8(bytes[..length].to_vec()).map_err(|_| anyhow!("unreadable message"))?;
        Ok(Message { word, sockets })
    }
}

/// Tells a successor what it is.
const VARIABLE: &str = "MESHD_HANDOVER";
/// A message that carries sockets.
const SOCKETS: &str = "sockets";
/// Sockets in one message; the kernel takes 253.
const AT_ONCE: usize = 128;
/// The longest message, in bytes.
const LONGEST: usize = 4_096;
/// A signal that is heard so soon came while the successor was taking over: it was for the meshd that serves.
const HEARD_WITHIN: Duration = Duration::from_millis(100);
/// How long connections may go on after a hand-over.
const DRAINS_FOR: Duration = Duration::from_mins(10);
/// How long the successor may read its files.
const PREPARES_WITHIN: Duration = Duration::from_secs(10);
/// How long the predecessor may end its control plane.
const YIELDS_WITHIN: Duration = Duration::from_secs(30);
/// How long the successor may take to serve.
const SERVES_WITHIN: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_words_arrive_in_order() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel(theirs);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets: Vec<OwnedFd> =
            (0..=AT_ONCE).map(|_| listener.as_fd().try_clone_to_owned().unwrap()).collect();

        ours.send_sockets(&sockets).unwrap();
        ours.send("/var/lib/meshd").unwrap();

        let first = theirs.receive(PREPARES_WITHIN).unwrap();
        assert_eq!((first.word.as_str(), first.sockets.len()), (SOCKETS, AT_ONCE));
        let second = theirs.receive(PREPARES_WITHIN).unwrap();
        let passed: std::net::TcpListener = second.sockets.into_iter().next().unwrap().into();
        assert_eq!(passed.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(theirs.receive(PREPARES_WITHIN).unwrap().word, "/var/lib/meshd");
    }

    #[test]
    fn a_successor_that_ends_is_told_as_such() {
        let (ours, theirs) = Channel::pair().unwrap();
        drop(theirs);

        assert_eq!(ours.receive(PREPARES_WITHIN).err().unwrap().to_string(), "it ended; the log says why");
    }

    #[test]
    fn a_replaced_program_is_found_where_it_was() {
        assert_eq!(undeleted(Path::new("/usr/bin/meshd (deleted)")), Path::new("/usr/bin/meshd"));
        assert_eq!(undeleted(Path::new("/usr/bin/meshd")), Path::new("/usr/bin/meshd"));
    }
}
