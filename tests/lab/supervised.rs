//! What a supervisor is told: systemd's protocol, spoken to a socket of the story's own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lab, eventually, eventually_within, has_programs, story};

/// The other end of `NOTIFY_SOCKET`. Reads all the time, as systemd does: who finds it full waits.
struct Supervisor(mpsc::Receiver<String>);

impl Supervisor {
    /// Supervises the host's meshd from its next start on.
    fn of(host: &mut Host, more: &[(&str, &str)]) -> Result<Self> {
        let path = host.folder().join("notify").display().to_string();
        let socket = UnixDatagram::bind(&path)?;
        host.give_meshd(&[&[("NOTIFY_SOCKET", path.as_str())], more].concat());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length) = socket.recv(&mut buffer) {
                for line in String::from_utf8_lossy(&buffer[..length]).lines() {
                    if tell.send(line.to_owned()).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self(told))
    }

    /// What has been told since the last look, a line each.
    fn heard(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }

    fn hears(&self, words: &str) -> Result<()> {
        let mut all = Vec::new();
        eventually_within(Duration::from_secs(30), &format!("{words} is told"), || {
            all.extend(self.heard());
            ensure!(all.iter().any(|line| line == words), "{all:?}");
            Ok(())
        })
    }
}

#[test]
fn a_host_is_ready_with_a_plan_and_not_before() {
    story("supervised::a_host_is_ready_with_a_plan_and_not_before", || {
        let mut lab = Lab::new(2)?;
        lab.vm(1).meshd(&["init"])?.success()?;
        lab.vm(1).start()?;
        // An agent keeps no Raft log: without a mirror it knows nothing until a server answers.
        let token = lab.vm(1).meshctl(&["token", "create", "--role", "agent"])?.success()?.stdout;
        lab.vm(2).join("198.18.0.1:15008", token.trim())?.success()?;
        lab.vm(1).crash();
        let supervisor = Supervisor::of(lab.vm(2), &[])?;
        lab.vm(2).write_config("[log]\nlevel = \"debug\"\n")?;
        lab.vm(2).launch()?;
        eventually("vm2 tells why it is not ready", || {
            let ready = lab.vm(2).curl(&["http://127.0.0.1:15000/ready"])?;
            ensure!(ready.status == 503 && ready.body.starts_with("not ready: "), "{ready:?}");
            // It has asked the server, in vain.
            let log = lab.vm(2).log();
            ensure!(log.contains("no server yet"), "{log}");
            Ok(())
        })?;
        let heard = supervisor.heard();
        ensure!(!heard.contains(&"READY=1".to_owned()), "ready without a Plan: {heard:?}");

        lab.vm(1).start()?;
        supervisor.hears("READY=1")?;
        lab.vm(2).stop()?;
        ensure!(supervisor.heard().contains(&"STOPPING=1".to_owned()), "it does not say that it stops");

        // With a mirror it needs nobody.
        lab.vm(1).crash();
        lab.vm(2).launch()?;
        supervisor.hears("READY=1")
    });
}

#[test]
fn a_thread_that_hangs_keeps_the_watchdog_from_being_fed() {
    story("supervised::a_thread_that_hangs_keeps_the_watchdog_from_being_fed", || {
        if !has_programs(&["python3"])? {
            return Ok(());
        }
        let mut lab = Lab::new(1)?;
        // It is fed at half of that; workers move once a second.
        let supervisor = Supervisor::of(lab.vm(1), &[("WATCHDOG_USEC", "4000000")])?;
        lab.form_mesh()?;
        supervisor.hears("READY=1")?;
        for _ in 0..2 {
            supervisor.hears(ALIVE)?;
        }
        for (thread, words) in [("meshd-worker-0", "workers=[0]"), ("meshd-raft", "raft_lives=false")] {
            let pid = lab.vm(1).running().pid().as_raw_nonzero().to_string();
            let frozen = Frozen::new(&pid, thread)?;
            let said = hangs(lab.vm(1), words);
            told_again(lab.vm(1), words, said)?;
            supervisor.heard();
            let said = hangs(lab.vm(1), words) + 1;
            told_again(lab.vm(1), words, said)?;
            let heard = supervisor.heard();
            ensure!(!heard.contains(&ALIVE.to_owned()), "{thread} hangs, and the watchdog is fed: {heard:?}");
            frozen.thaw()?;
            supervisor.hears(ALIVE)?;
        }
        Ok(())
    });
}

const ALIVE: &str = "WATCHDOG=1";

/// How often the log tells that this part hangs.
fn hangs(host: &Host, words: &str) -> usize {
    host.log().lines().filter(|line| line.contains("part of meshd hangs") && line.contains(words)).count()
}

/// Waits until the log has told of it more often than `before`.
fn told_again(host: &Host, words: &str, before: usize) -> Result<()> {
    eventually_within(Duration::from_secs(30), &format!("the log tells of {words}"), || {
        let now = hangs(host, words);
        ensure!(now > before, "{now} times: {}", host.log());
        Ok(())
    })
}

/// One thread of a process that is held still, as a debugger does it; the others run on.
struct Frozen(Child);

impl Frozen {
    fn new(pid: &str, thread: &str) -> Result<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", FREEZE, pid, thread]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut debugger = command.spawn().context("python3")?;
        let mut line = String::new();
        BufReader::new(debugger.stdout.as_mut().context("its words")?).read_line(&mut line)?;
        ensure!(line == "frozen\n", "{thread} cannot be held: {line:?}");
        Ok(Self(debugger))
    }

    fn thaw(mut self) -> Result<()> {
        drop(self.0.stdin.take().context("its ear")?.flush());
        ensure!(self.0.wait()?.success(), "it was not let go");
        Ok(())
    }
}

/// Attaches to the thread of that name and lets it go when its input ends. Source: ptrace(2).
const FREEZE: &str = r#"
import ctypes, os, sys
pid, name = sys.argv[1], sys.argv[2]
threads = os.listdir(f"/proc/{pid}/task")
tid = next(int(t) for t in threads if open(f"/proc/{pid}/task/{t}/comm").read().strip() == name)
libc = ctypes.CDLL(None, use_errno=True)
ATTACH, DETACH, WALL = 16, 17, 0x40000000
assert libc.ptrace(ATTACH, tid, None, None) == 0, os.strerror(ctypes.get_errno())
os.waitpid(tid, WALL)
print("frozen", flush=True)
sys.stdin.read()
assert libc.ptrace(DETACH, tid, None, None) == 0, os.strerror(ctypes.get_errno())
"#;
