//! One host: a network namespace with a data folder, a meshd and services.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::namespace::sh;
use crate::process::{Guarded, Output, run, run_with};
use crate::{Binaries, eventually};

/// A host of the lab.
pub struct Host {
    /// `vm1`, `vm2` …
    pub name: String,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    folder: PathBuf,
    binaries: Binaries,
    meshd: Option<Guarded>,
    services: Vec<(String, Guarded)>,
    /// Descriptors that meshd may have; `None`: as many as this process.
    descriptors: Option<u32>,
    /// Of meshd's environment.
    environment: Vec<(String, String)>,
}

/// What `curl` brought.
#[derive(Clone, Debug)]
pub struct Curl {
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// The body.
    pub body: String,
    /// curl's own complaint.
    pub complaint: String,
}

/// The state of the mesh, as `meshctl status -o json` tells it.
#[derive(Clone, Debug)]
pub struct Status {
    /// Name of the leader.
    pub leader: Option<String>,
    /// Every host.
    pub hosts: Vec<HostStatus>,
}

/// One host in [`Status`].
#[derive(Clone, Debug)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// `leader`, `voter`, `standby`, `agent`.
    pub role: String,
    /// `live`, `suspect`, `gone`, `left`.
    pub state: String,
}

impl Host {
    pub(crate) fn new(number: u8, lab: &Path, binaries: Binaries) -> Result<Self> {
        let name = format!("vm{number}");
        let folder = lab.join(&name);
        std::fs::create_dir_all(folder.join("services.d"))?;
        let veth = format!("veth{number}");
        sh(&["ip", "netns", "add", &name])?;
        sh(&["ip", "link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        sh(&["ip", "link", "set", &veth, "master", "br0", "up"])?;
        let host = Self {
            address: Ipv4Addr::new(198, 18, 0, number),
            name,
            folder,
            binaries,
            meshd: None,
            services: Vec::new(),
            descriptors: None,
            environment: Vec::new(),
        };
        host.shell(&format!(
            // No link-local addresses: the kernel would add them at a time of its own.
            "ip link set lo up && ip link set eth0 addrgenmode none && ip addr add {}/24 dev eth0 && ip addr add fd00::{number:x}/64 dev eth0 nodad && \
             ip link set eth0 up && ip route add default via 198.18.0.254",
            host.address
        ))?
        .success()?;
        host.write_config("")?;
        Ok(host)
    }

    /// Writes `meshd.toml`: what differs between hosts that share a file system, then `more`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, more: &str) -> Result<()> {
        self.write_config_at(&self.address.to_string(), more)
    }

    /// Like [`Host::write_config`], for a host that others reach at another address.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config_at(&self, advertise: &str, more: &str) -> Result<()> {
        let folder = self.folder.display();
        let text = format!(
            "[host]\nname = \"{}\"\ndata = \"{folder}/data\"\nadvertise = \"{advertise}\"\n\
             [listen]\nsocket = \"{folder}/meshd.sock\"\n[services]\ndirectory = \"{folder}/services.d\"\n{more}\n",
            self.name
        );
        std::fs::write(self.config(), text).context("writing meshd.toml")
    }

    /// Runs a command line on the host.
    ///
    /// # Errors
    /// When it cannot be started; how it ended is in the output.
    pub fn shell(&self, line: &str) -> Result<Output> {
        let mut command = self.enter("sh");
        command.args(["-c", line]);
        run(command)
    }

    /// Starts a command line on the host that runs beside the story.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keep(&self, line: &str) -> Result<Guarded> {
        let mut command = self.enter("sh");
        command.args(["-c", line]);
        Guarded::start(command, &self.folder.join("kept.log"))
    }

    /// Runs `meshd` with arguments to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn meshd(&self, arguments: &[&str]) -> Result<Output> {
        run(self.meshd_command(arguments))
    }

    /// Joins the mesh of another host with a token on standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn join(&self, address: &str, token: &str) -> Result<Output> {
        self.join_with(&[address], token)
    }

    /// Joins with further arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn join_with(&self, arguments: &[&str], token: &str) -> Result<Output> {
        let words: Vec<&str> = std::iter::once("join").chain(arguments.iter().copied()).collect();
        run_with(self.meshd_command(&words), token)
    }

    /// Lets meshd have so many descriptors, from its next start on.
    pub fn limit_descriptors(&mut self, most: u32) {
        self.descriptors = Some(most);
    }

    /// What the environment of meshd has beside this process's, from its next start on.
    pub fn give_meshd(&mut self, environment: &[(&str, &str)]) {
        self.environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// How a shell on the host runs meshctl against this host's meshd.
    pub fn meshctl_line(&self) -> String {
        format!("{} --socket {}", self.binaries.meshctl.display(), self.folder.join("meshd.sock").display())
    }

    /// Starts `meshd run`, and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.meshd = Some(Guarded::start(self.meshd_command(&["run"]), &self.log_file())?);
        Ok(())
    }

    /// Starts `meshd run` and waits until it is ready.
    ///
    /// # Errors
    /// With the log, when it does not answer within 10 s.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        eventually(&format!("meshd is ready on {}", self.name), || {
            let ready = self.curl(&["http://127.0.0.1:15000/ready"])?;
            anyhow::ensure!(ready.status == 200, "{ready:?}");
            Ok(())
        })
    }

    /// The running meshd.
    ///
    /// # Panics
    /// When it was not started.
    pub fn running(&mut self) -> &mut Guarded {
        self.meshd.as_mut().expect("meshd was started on this host")
    }

    /// Kills meshd without warning.
    pub fn crash(&mut self) {
        if let Some(meshd) = self.meshd.take() {
            meshd.kill();
        }
    }

    /// Stops meshd as systemd would; returns its exit code.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        self.meshd.take().context("meshd runs")?.stop()
    }

    /// Runs `meshctl` against this host's meshd.
    ///
    /// # Errors
    /// When it cannot be started; how it ended is in the output.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.enter(&self.binaries.meshctl.display().to_string());
        command.env("MESHD_SOCKET", self.folder.join("meshd.sock")).args(arguments);
        run(command)
    }

    /// The state of the mesh as this host tells it.
    ///
    /// # Errors
    /// When meshctl fails or prints something else.
    pub fn status(&self) -> Result<Status> {
        let output = self.meshctl(&["status", "-o", "json"])?.success()?;
        let json: Value = serde_json::from_str(&output.stdout).context(output.stdout.clone())?;
        let status = &json["items"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let hosts = status["hosts"].as_array().context("hosts")?;
        Ok(Status {
            leader: status["leader"].as_str().map(str::to_owned),
            hosts: hosts
                .iter()
                .map(|host| HostStatus {
                    name: text(&host["name"]),
                    role: text(&host["role"]),
                    state: text(&host["liveness"]),
                })
                .collect(),
        })
    }

    /// Runs unmodified `curl` on the host.
    ///
    /// # Errors
    /// When curl cannot be started; a failed request is a `Curl` with status 0.
    pub fn curl(&self, arguments: &[&str]) -> Result<Curl> {
        let mut command = self.enter("curl");
        command.args(["--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}"]);
        let output = run({
            command.args(arguments);
            command
        })?;
        let (body, status) = output.stdout.rsplit_once('\n').unwrap_or(("", "0"));
        Ok(Curl { status: status.parse().unwrap_or(0), body: body.to_owned(), complaint: output.stderr })
    }

    /// Captures every frame that crosses the host's interfaces, but not what stays within the host, until the returned
    /// process is stopped.
    ///
    /// # Errors
    /// When the capture cannot be started or does not begin within 10 s.
    pub fn watch_wire(&self, capture: &Path) -> Result<Guarded> {
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.arg("capture").arg(capture);
        let watcher = Guarded::start(command, &self.folder.join("capture.log"))?;
        eventually("the capture began", || std::fs::metadata(capture).map(drop).context("its file"))?;
        Ok(watcher)
    }

    /// Starts a small HTTP service on `127.0.0.1:port` that answers with `text` (see `lab-service`).
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve(&mut self, name: &str, port: u16, text: &str) -> Result<()> {
        self.serve_at(name, &format!("127.0.0.1:{port}"), text)
    }

    /// Starts a small HTTP service on an address of the host.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve_at(&mut self, name: &str, address: &str, text: &str) -> Result<()> {
        self.start_service(name, address, &[address, text])
    }

    /// Starts a service on `127.0.0.1:port` that sends each line back and ends the connection.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve_echo(&mut self, name: &str, port: u16) -> Result<()> {
        let address = format!("127.0.0.1:{port}");
        self.start_service(name, &address, &["echo", &address])
    }

    /// Starts a service on `127.0.0.1:port` that speaks `grpc`, `mail` or `websocket` (see `lab-service`).
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve_as(&mut self, kind: &str, port: u16) -> Result<()> {
        let address = format!("127.0.0.1:{port}");
        self.start_service(kind, &address, &[kind, &address])
    }

    /// Starts a service like [`Host::serve`] that takes so many milliseconds for each answer.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve_slowly(&mut self, name: &str, port: u16, milliseconds: u32, text: &str) -> Result<()> {
        let address = format!("127.0.0.1:{port}");
        self.start_service(name, &address, &["slow", &milliseconds.to_string(), &address, text])
    }

    /// Starts a real program as a service, and waits until it listens on the port.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within 10 s.
    pub fn serve_program(&mut self, name: &str, port: u16, line: &str) -> Result<()> {
        let mut command = self.enter("sh");
        command.args(["-c", &format!("exec {line}")]);
        self.keep_service(name, port, command)
    }

    /// Starts a resolver on an address of the host that answers from a file (see `lab-service`).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn serve_names(&mut self, address: &str, file: &Path) -> Result<()> {
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.args(["dns", address]).arg(file);
        let service = Guarded::start(command, &self.folder.join("dns.log"))?;
        self.services.push(("dns".to_owned(), service));
        let port = address.rsplit(':').next().unwrap_or_default();
        eventually("the resolver listens", || {
            let listening = self.shell(&format!("ss -Hlun sport = :{port}"))?.success()?;
            anyhow::ensure!(!listening.stdout.is_empty());
            Ok(())
        })
    }

    /// Begins a load of `lab-service load` on `HOST:PORT` that runs beside the story; [`load_result`] reads what came
    /// of it once it has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load(&self, to: &str, callers: u32, seconds: u32) -> Result<(Guarded, PathBuf)> {
        let result = self.folder.join(format!("load-{}", to.replace(':', "-")));
        // Each load has a file of its own.
        drop(std::fs::remove_file(&result));
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.args(["callers", to, &callers.to_string(), &seconds.to_string()]);
        Ok((Guarded::start(command, &result)?, result))
    }

    /// Begins a load of so many requests a second, whatever becomes of those before; else like [`Self::load`]. Times are
    /// those since a request was due.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn steady_load(&self, to: &str, rate: u32, seconds: u32) -> Result<(Guarded, PathBuf)> {
        let result = self.folder.join(format!("steady-load-{}", to.replace(':', "-")));
        drop(std::fs::remove_file(&result));
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.args(["load", to, &rate.to_string(), &seconds.to_string()]);
        Ok((Guarded::start(command, &result)?, result))
    }

    /// Sends a service that was started here a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_service(&self, name: &str, signal: rustix::process::Signal) -> Result<()> {
        let service = self.services.iter().find(|(other, _)| other == name);
        service.context("the service runs")?.1.signal(signal)
    }

    /// Starts one of the callers of `lab-service` that run beside the story; what it prints goes to `said`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn keep_calling(&self, arguments: &[&str], said: &Path) -> Result<Guarded> {
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.args(arguments);
        Guarded::start(command, said)
    }

    /// Calls a service with one of the callers of `lab-service`, such as `grpc-call`.
    ///
    /// # Errors
    /// When it cannot be started; how it ended is in the output.
    pub fn call(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.enter("timeout");
        command.arg("10").arg(&self.binaries.service).args(arguments);
        run(command)
    }

    fn start_service(&mut self, name: &str, address: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.enter(&self.binaries.service.display().to_string());
        command.args(arguments);
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).context("a port")?;
        self.keep_service(name, port, command)
    }

    fn keep_service(&mut self, name: &str, port: u16, command: Command) -> Result<()> {
        let service = Guarded::start(command, &self.folder.join(format!("{name}.log")))?;
        self.services.push((name.to_owned(), service));
        eventually(&format!("{name} listens"), || {
            let listening = self.shell(&format!("ss -Hltn sport = :{port}"))?.success()?;
            anyhow::ensure!(!listening.stdout.is_empty());
            Ok(())
        })
    }

    /// Kills a service that was started here.
    pub fn kill_service(&mut self, name: &str) {
        self.services.retain(|(other, _)| other != name);
    }

    /// Puts a file into `services.d`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn services_file(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.folder.join("services.d").join(name), text).context("writing into services.d")
    }

    /// Takes a file out of `services.d`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_services_file(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.folder.join("services.d").join(name)).context("removing from services.d")
    }

    /// What meshd wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The host's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn meshd_command(&self, arguments: &[&str]) -> Command {
        let meshd = self.binaries.meshd.display().to_string();
        let mut command = match self.descriptors {
            None => self.enter(&meshd),
            Some(most) => {
                let mut command = self.enter("prlimit");
                command.arg(format!("--nofile={most}")).arg(meshd);
                command
            }
        };
        command.args(arguments).arg("--config").arg(self.config());
        command.envs(self.environment.iter().cloned());
        command
    }

    fn config(&self) -> PathBuf {
        self.folder.join("meshd.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("meshd.log")
    }

    /// A command inside the host's network namespace.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }
}

/// What came of a load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests made.
    pub requests: u32,
    /// Those not answered with 200.
    pub failed: u32,
    /// The 99th percentile of the time to an answer, in microseconds.
    pub p99_us: u64,
}

/// Waits for the end of a load and reads what came of it.
///
/// # Errors
/// When it did not end well.
pub fn load_result((load, result): (Guarded, PathBuf)) -> Result<Load> {
    load.wait()?;
    let text = std::fs::read_to_string(&result)?;
    let number = |word: &str| -> Result<u64> {
        let after = text.split(&format!("{word} ")).nth(1).and_then(|rest| rest.split(' ').next());
        after.and_then(|number| number.trim().parse().ok()).with_context(|| format!("{word} in {text:?}"))
    };
    Ok(Load {
        requests: u32::try_from(number("requests").or_else(|_| number("asked"))?)?,
        failed: u32::try_from(number("failed")?)?,
        p99_us: number("p99_us")?,
    })
}
