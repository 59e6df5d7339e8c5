//! A machine: a booted container over the base tree, with two network cards.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Binaries, eventually_within};

use crate::base::{self, run};

/// Booted machines `vm1` …, torn down when dropped.
///
/// Each has `eth0` as virtual machines often have it: the same address on all, the default route through it, and nobody
/// there; and `eth1`, where they reach each other at 198.18.56.11 …
pub(crate) struct Machines {
    folder: PathBuf,
    machines: Vec<Machine>,
}

/// One of them.
pub(crate) struct Machine {
    pub(crate) name: String,
    /// Where others reach it.
    pub(crate) address: String,
    folder: PathBuf,
    shared: PathBuf,
    running: Mutex<Option<Running>>,
}

struct Running {
    nspawn: Child,
    /// PID 1 of the machine, as seen from outside.
    leader: String,
}

impl Machines {
    /// Boots `count` machines that have nothing of meshd yet; `/vagrant` is shared by all of them.
    pub(crate) fn boot(count: u8) -> Result<Self> {
        let tree = base::tree()?;
        let folder = base::folder().join("run");
        let mut machines = Self { folder: folder.clone(), machines: Vec::new() };
        machines.tear_down();
        let shared = folder.join("shared");
        std::fs::create_dir_all(&shared)?;
        let example = base::root().join("examples/vagrant/.");
        run(Command::new("cp").arg("-rL").arg(example).arg(&shared))?;
        run(Command::new("cp").arg(base::package(None)?).arg(&shared))?;
        ip(&["netns", "add", BRIDGE])?;
        ip(&["-n", BRIDGE, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", BRIDGE, "link", "set", "br0", "up"])?;
        for number in 1..=count {
            let machine = Machine {
                name: format!("vm{number}"),
                address: format!("198.18.56.1{number}"),
                folder: folder.join(format!("vm{number}")),
                shared: shared.clone(),
                running: Mutex::default(),
            };
            machine.make(&tree)?;
            machines.machines.push(machine);
        }
        for machine in &machines.machines {
            machine.boot()?;
        }
        Ok(machines)
    }

    /// The machine with a number, from 1.
    pub(crate) fn vm(&self, number: usize) -> &Machine {
        &self.machines[number - 1]
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter()
    }

    /// What the journals of meshd say, for a story that failed.
    pub(crate) fn journals(&self) -> String {
        let of = |machine: &Machine| {
            let journal = machine.sh(A_FEW_OF_EACH);
            format!("--- {}\n{}\n", machine.name, journal.unwrap_or_else(|error| format!("{error:#}")))
        };
        self.machines.iter().map(of).collect()
    }

    fn tear_down(&self) {
        for number in 1..=9 {
            let _ = ip(&["netns", "del", &netns(&format!("vm{number}"))]);
            let root = self.folder.join(format!("vm{number}/root"));
            if root.exists() {
                let _ = run(Command::new("umount").arg("-l").arg(root));
            }
        }
        let _ = ip(&["netns", "del", BRIDGE]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in &self.machines {
            machine.power_off();
        }
        self.tear_down();
    }
}

impl Machine {
    fn make(&self, tree: &std::path::Path) -> Result<()> {
        for part in ["upper", "work", "root"] {
            std::fs::create_dir_all(self.folder.join(part))?;
        }
        let (upper, work) = (self.folder.join("upper"), self.folder.join("work"));
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", tree.display(), upper.display(), work.display());
        let root = self.root();
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&root))?;
        std::fs::write(root.join("etc/hostname"), format!("{}\n", self.name))?;
        std::fs::write(
            root.join("etc/hosts"),
            format!("127.0.0.1 localhost {}\n::1 localhost\n", self.name),
        )?;
        // Nobody answers there; questions about names outside the mesh fail at once.
        std::fs::write(
            root.join("etc/resolv.conf"),
            "nameserver 198.18.255.2\noptions timeout:1 attempts:1\n",
        )?;
        std::fs::copy(Binaries::build()?.service, root.join("usr/local/bin/lab-service"))?;
        Ok(())
    }

    /// Plugs the cards in: they go when a machine ends.
    fn network(&self) -> Result<()> {
        let space = netns(&self.name);
        let _ = ip(&["netns", "del", &space]);
        ip(&["netns", "add", &space])?;
        ip(&["-n", &space, "link", "set", "lo", "up"])?;
        // The other end of eth0 stays down the same namespace: a network on which nobody else is.
        ip(&["-n", &space, "link", "add", "eth0", "type", "veth", "peer", "name", "outside"])?;
        ip(&[
            "-n", &space, "link", "add", "eth1", "type", "veth", "peer", "name", &self.name, "netns", BRIDGE,
        ])?;
        ip(&["-n", BRIDGE, "link", "set", &self.name, "master", "br0", "up"])?;
        ip(&["-n", &space, "address", "add", "198.18.255.15/24", "dev", "eth0"])?;
        ip(&["-n", &space, "address", "add", &format!("{}/24", self.address), "dev", "eth1"])?;
        for link in ["eth0", "outside", "eth1"] {
            ip(&["-n", &space, "link", "set", link, "up"])?;
        }
        ip(&["-n", &space, "route", "add", "default", "via", "198.18.255.2"])
    }

    /// Switches it on, and waits until systemd has come up.
    pub(crate) fn boot(&self) -> Result<()> {
        self.network()?;
        let console = std::fs::File::create(self.folder.join("console"))?;
        let nspawn = Command::new("systemd-nspawn")
            .args(["--register=no", "--keep-unit", "--boot", "--console=pipe", "--quiet"])
            .args(["--capability=CAP_NET_ADMIN,CAP_SYS_TIME", "--resolv-conf=off", "--timezone=off"])
            .arg(format!("--machine={}", self.name))
            .arg(format!("--directory={}", self.root().display()))
            .arg(format!("--bind={}:/vagrant", self.shared.display()))
            .arg(format!("--network-namespace-path=/run/netns/{}", netns(&self.name)))
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("systemd-nspawn")?;
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        *self.running() = Some(Running { nspawn, leader: String::new() });
        let up = eventually_within(BOOTS_WITHIN, &format!("{} has booted", self.name), || {
            let leader = std::fs::read_to_string(&children)?.trim().to_owned();
            ensure!(!leader.is_empty(), "no PID 1 yet");
            if let Some(running) = self.running().as_mut() {
                running.leader = leader;
            }
            let state = self.sh("systemctl is-system-running || true")?;
            ensure!(["running", "degraded"].contains(&state.trim()), "systemd says {state}");
            Ok(())
        });
        up.with_context(|| std::fs::read_to_string(self.folder.join("console")).unwrap_or_default())
    }

    /// Switches it off as if the plug were pulled.
    pub(crate) fn power_off(&self) {
        if let Some(mut running) = self.running().take() {
            // PID 1 takes all of its machine along; killing nspawn alone would leave it.
            let _ = run(Command::new("kill").args(["-KILL", &running.leader]));
            let _ = running.nspawn.wait();
        }
    }

    /// Shuts down in order, and boots again.
    pub(crate) fn reboot(&self) -> Result<()> {
        let _ = self.sh("systemctl poweroff");
        if let Some(mut running) = self.running().take() {
            eventually_within(BOOTS_WITHIN, "the machine is off", || {
                ensure!(running.nspawn.try_wait()?.is_some(), "it runs");
                Ok(())
            })?;
        }
        self.boot()
    }

    /// Runs a line of shell on it; standard output, or an error with all that was said.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        let output = self.try_sh(line)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {line}: {}\n{said}{complaint}", self.name, output.status);
        Ok(said)
    }

    /// Runs a line of shell on it, whatever becomes of it.
    pub(crate) fn try_sh(&self, line: &str) -> Result<Output> {
        self.command(line)?.output().context("nsenter")
    }

    /// Starts a line of shell on it.
    pub(crate) fn start(&self, line: &str) -> Result<Child> {
        self.command(line)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nsenter")
    }

    fn command(&self, line: &str) -> Result<Command> {
        let leader = self.running().as_ref().map(|running| running.leader.clone());
        let leader = leader.filter(|leader| !leader.is_empty()).context("the machine is off")?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &leader, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]);
        command.args(["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", PATH, "sh", "-c", line]);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// The journal of meshd since this boot, messages only.
    pub(crate) fn journal(&self) -> Result<String> {
        self.sh("journalctl -b -u meshd -o cat --no-pager")
    }

    /// Installs the package, with the address that others use.
    pub(crate) fn install(&self) -> Result<()> {
        self.sh(&format!("/vagrant/provision/install.sh {}", self.address)).map(drop)
    }

    /// Installs packages that the base tree does not have, from the mirror of the machine outside. Nothing is started.
    pub(crate) fn add_packages(&self, names: &str) -> Result<()> {
        let resolver = self.root().join("etc/resolv.conf");
        let own = std::fs::read(&resolver)?;
        std::fs::copy("/etc/resolv.conf", &resolver)?;
        let install = format!("apt-get update -q && apt-get install -y -q --no-install-recommends {names}");
        let mut chroot = Command::new("chroot");
        chroot.arg(self.root()).args(["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", &install]);
        let installed = run(&mut chroot);
        std::fs::write(&resolver, own)?;
        installed?;
        self.sh("systemctl daemon-reload && systemctl reload dbus").map(drop)
    }

    /// The folder that is `/vagrant` on every machine.
    pub(crate) fn shared(&self) -> &std::path::Path {
        &self.shared
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn netns(name: &str) -> String {
    format!("meshd-{name}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}

const BRIDGE: &str = "meshd-bridge";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// On a busy machine of two cores; four seconds on an idle one.
const BOOTS_WITHIN: Duration = Duration::from_secs(90);

/// The last lines of the journal, of those that differ in numbers only the first few.
const A_FEW_OF_EACH: &str = r#"journalctl -b -u meshd -o short --no-pager |
    awk '{ words = $0; gsub(/[0-9]+/, "", words); if (++said[words] <= 9) print }' | tail -100"#;
