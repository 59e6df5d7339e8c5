//! The three hosts: addresses, `meshd.toml`, processes.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mesh_proto::api::{Request, Response};
use rustix::process::Signal;
use tokio::process::Child;

use super::child;
use super::folder::{Folder, HOSTS};
use super::services::{PORT, account};
use crate::client::Client;
use crate::cmd::local;
use crate::exit::{Exit, Failure, Result, plain};

/// The visitors' way in, on vm1: stands for productpage.
pub(crate) const DOOR: u16 = 9088;
/// The explicit HTTP proxy of each host.
pub(crate) const HTTP_PROXY: u16 = 15080;
/// Ports taken on every host's address, in Istio's numbering, and what for.
const TCP_PORTS: [(u16, &str); 6] = [
    (15008, "mesh"),
    (15000, "admin"),
    (15020, "metrics"),
    (15053, "DNS"),
    (HTTP_PROXY, "HTTP proxy"),
    (PORT, "services"),
];
/// Of these, taken for UDP as well.
const UDP_PORTS: [u16; 2] = [15008, 15053];
/// How long the mesh may take to come up before the demo gives up.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a host tries to join.
const JOIN_LIMIT: Duration = Duration::from_secs(3);
/// How often a condition is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One host.
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its address.
    pub(crate) ip: IpAddr,
    folder: PathBuf,
    socket: PathBuf,
    child: Option<Child>,
    /// What the user did to it.
    pub(crate) state: HostState,
}

/// What became of a host's meshd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostState {
    /// It runs.
    Running,
    /// It was told to stop and still drains.
    Stopping,
    /// It was stopped on purpose.
    Stopped,
    /// It ended by itself.
    Ended(String),
}

/// All of them.
pub(crate) struct Hosts {
    meshd: PathBuf,
    /// In order of name.
    pub(crate) all: Vec<Host>,
}

/// Reads `--base`.
pub(crate) fn addresses(base: &str) -> Result<[IpAddr; 3]> {
    let wrong = || {
        Failure::usage(format!(
            "--base {base}: must be the first three numbers of loopback addresses, such as 127.0.2"
        ))
    };
    let parts: Vec<u8> =
        base.split('.').map(str::parse).collect::<std::result::Result<_, _>>().map_err(|_| wrong())?;
    match parts[..] {
        [127, b, c] => Ok([1, 2, 3].map(|last| IpAddr::V4(Ipv4Addr::new(127, b, c, last)))),
        _ => Err(wrong()),
    }
}

/// Makes sure that every port is free, and says all that are not.
pub(crate) fn check_ports(ips: &[IpAddr], base: &str) -> Result {
    let mut taken = Vec::new();
    for (index, ip) in ips.iter().enumerate() {
        let door = (index == 0).then_some((DOOR, "visitors"));
        for (port, what) in TCP_PORTS.into_iter().chain(door) {
            let address = SocketAddr::new(*ip, port);
            if let Err(error) = TcpListener::bind(address) {
                taken.push(format!("  {address} ({what}, TCP): {}", plain(&error)));
            }
        }
        for port in UDP_PORTS {
            let address = SocketAddr::new(*ip, port);
            if let Err(error) = UdpSocket::bind(address) {
                taken.push(format!("  {address} (UDP): {}", plain(&error)));
            }
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let other = if base == "127.0.2" { "127.0.3" } else { "127.0.2" };
    Err(Failure::new(
        Exit::Refused,
        format!(
            "ports the demo needs are not free:\n{}\nEnd what uses them (`ss -lntup` names it), or use other loopback \
             addresses: meshctl demo --base {other}",
            taken.join("\n")
        ),
    ))
}

impl Hosts {
    /// Writes the configuration of each host.
    pub(crate) fn prepare(folder: &Folder, ips: [IpAddr; 3]) -> Result<Self> {
        let meshd = local::meshd()?;
        let mut all = Vec::new();
        for (name, ip) in HOSTS.into_iter().zip(ips) {
            let host = Host {
                name,
                ip,
                folder: folder.host(name),
                socket: folder.socket(name),
                child: None,
                state: HostState::Stopped,
            };
            host.write_config().map_err(|error| Failure::unreadable(&host.folder, &error))?;
            all.push(host);
        }
        Ok(Self { meshd, all })
    }

    /// Begins the mesh on vm1.
    pub(crate) async fn init(&mut self) -> Result {
        let host = &mut self.all[0];
        child::run(&self.meshd, &host.arguments(&["init"]), &host.log(), None).await?;
        host.start(&self.meshd)?;
        host.answers().await
    }

    /// Brings the others in, at once, each with its token.
    pub(crate) async fn join(&mut self, tokens: [String; 2]) -> Result {
        let first = SocketAddr::new(self.all[0].ip, TCP_PORTS[0].0).to_string();
        let meshd = &self.meshd;
        let [_, second, third] = &mut self.all[..] else { return Ok(()) };
        let [a, b] = tokens;
        tokio::try_join!(second.join(meshd, &first, &a), third.join(meshd, &first, &b))?;
        Ok(())
    }

    /// Finds a host by name.
    pub(crate) fn named(&mut self, name: &str) -> Option<&mut Host> {
        self.all.iter_mut().find(|host| host.name == name)
    }

    /// Starts a host that was stopped.
    pub(crate) fn start(&mut self, name: &str) -> Result {
        let meshd = self.meshd.clone();
        let host = self.named(name).ok_or_else(|| no_host(name))?;
        if matches!(host.state, HostState::Running | HostState::Stopping) {
            return Err(Failure::refused(format!("{name} runs already")));
        }
        host.start(&meshd)
    }

    /// Stops a host: politely, or as a crash would.
    pub(crate) fn stop(&mut self, name: &str, kill: bool) -> Result {
        let host = self.named(name).ok_or_else(|| no_host(name))?;
        let Some(running) = &host.child else { return Err(Failure::refused(format!("{name} does not run"))) };
        child::signal(running, if kill { Signal::KILL } else { Signal::TERM });
        host.state = HostState::Stopping;
        Ok(())
    }

    /// Notices processes that have ended.
    pub(crate) fn reap(&mut self) {
        for host in &mut self.all {
            host.reap();
        }
    }

    /// Where the logs are.
    pub(crate) fn logs(&self) -> String {
        let logs: Vec<_> = self.all.iter().map(|host| host.log().display().to_string()).collect();
        logs.join(" ")
    }

    /// The last lines of every host's log, for when the start failed.
    pub(crate) fn tails(&self) -> String {
        let mut text = String::new();
        for host in &self.all {
            let tail = child::tail(&host.log());
            if !tail.is_empty() {
                let _ = write!(text, "\nlast lines of the log of {}:\n{tail}", host.name);
            }
        }
        text
    }
}

impl Drop for Hosts {
    /// Kills every process and waits until it is gone, so that nothing writes to the folder afterwards.
    fn drop(&mut self) {
        for host in &mut self.all {
            if let Some(child) = &mut host.child {
                let _ = child.start_kill();
            }
        }
        let limit = Instant::now() + Duration::from_secs(5);
        for child in self.all.iter_mut().filter_map(|host| host.child.as_mut()) {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn no_host(name: &str) -> Failure {
    Failure::usage(format!("the demo has no host {name:?} (it has {})", HOSTS.join(", ")))
}

impl Host {
    /// The way to its API.
    pub(crate) fn client(&self) -> Client {
        Client::at(&self.socket)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("meshd.log")
    }

    fn arguments(&self, verb: &[&str]) -> Vec<OsString> {
        let mut arguments: Vec<_> = verb.iter().map(OsString::from).collect();
        arguments.extend(["--config".into(), self.folder.join("meshd.toml").into_os_string()]);
        arguments.extend(["--data".into(), self.folder.join("data").into_os_string()]);
        arguments
    }

    fn start(&mut self, meshd: &Path) -> Result {
        let child = child::spawn(meshd, &self.arguments(&["run"]), &self.log(), Stdio::null())
            .map_err(|error| Failure::unreadable(meshd, &error))?;
        self.child = Some(child);
        self.state = HostState::Running;
        Ok(())
    }

    async fn join(&mut self, meshd: &Path, first: &str, token: &str) -> Result {
        let line = format!("{token}\n");
        let limit = Instant::now() + JOIN_LIMIT;
        loop {
            let joined = child::run(meshd, &self.arguments(&["join", first]), &self.log(), Some(&line)).await;
            match joined {
                Ok(()) => break,
                // vm1 may lead a moment before it holds its own certificate; the token is not used up by that.
                Err(_) if Instant::now() < limit => tokio::time::sleep(LOOK_EVERY).await,
                Err(failure) => return Err(failure),
            }
        }
        self.start(meshd)?;
        self.answers().await
    }

    /// Waits until its API answers.
    async fn answers(&mut self) -> Result {
        let client = self.client();
        let limit = Instant::now() + START_LIMIT;
        loop {
            let answer = client.ask(&Request::Version, Duration::from_secs(1)).await;
            if matches!(answer, Ok(Ok(Response::Version { .. }))) {
                return Ok(());
            }
            self.reap();
            if let HostState::Ended(how) = &self.state {
                return Err(Failure::no_answer(format!("the meshd of {} ended ({how})", self.name)));
            }
            if Instant::now() > limit {
                return Err(Failure::no_answer(format!(
                    "the meshd of {} does not answer on {}",
                    self.name,
                    self.socket.display()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn reap(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        self.child = None;
        self.state = match self.state {
            HostState::Stopping => HostState::Stopped,
            _ => HostState::Ended(status.to_string()),
        };
    }

    fn write_config(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("services.d"))?;
        fs::write(self.folder.join("meshd.toml"), self.config())
    }

    /// Its `meshd.toml`: ports in Istio's numbering on its own address, and listeners in the place of interception.
    fn config(&self) -> String {
        let Self { name, ip, .. } = self;
        let text = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
        let caller = account(if *name == HOSTS[0] { "productpage" } else { "reviews" });
        let mut config = format!(
            r#"# Host {name} of the demo.
[host]
name = "{name}"
data = {data}
advertise = "{ip}:15008"

[listen]
mesh = "{ip}:15008"
outbound = []
inbound = []
admin = "{ip}:15000"
metrics = ["{ip}:15020"]
dns = ["{ip}:15053"]
http_proxy = "{ip}:{HTTP_PROXY}"
socket = {socket}

[intercept]
mode = "off"

[proxy]
workers = 1

[services]
directory = {services}

[log]
level = "info"
format = "text"

# What services of this host call: port {PORT} of any service, by its Host header.
[[listener]]
address = "{ip}:{PORT}"
service_port = {PORT}
protocol = "http"
workload = {{ namespace = "default", account = "{caller}" }}
"#,
            data = text(&self.folder.join("data")),
            socket = text(&self.socket),
            services = text(&self.folder.join("services.d")),
        );
        if *name == HOSTS[0] {
            let _ = write!(
                config,
                r#"
# The visitors' way in.
[[listener]]
address = "{ip}:{DOOR}"
to = "productpage.default:{PORT}"
protocol = "http"
workload = {{ namespace = "default", account = "visitor" }}
"#
            );
        }
        config
    }
}

/// Asks until the answer is the wanted one, for as long as the start may take.
pub(crate) async fn until<T>(
    client: &Client,
    request: &Request,
    what: &str,
    wanted: impl Fn(Response) -> Option<T>,
) -> Result<T> {
    let limit = Instant::now() + START_LIMIT;
    let mut last = String::new();
    while Instant::now() < limit {
        match client.ask(request, Duration::from_secs(5)).await {
            Ok(Ok(response)) => {
                if let Some(value) = wanted(response) {
                    return Ok(value);
                }
            }
            Ok(Err(error)) => last = format!(": {error}"),
            Err(failure) => last = format!(": {failure}"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::no_answer(format!("{what} did not happen within {} s{last}", START_LIMIT.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_moves_the_hosts_within_loopback() {
        let ips = addresses("127.0.2").expect("reads");
        assert_eq!(ips.map(|ip| ip.to_string()), ["127.0.2.1", "127.0.2.2", "127.0.2.3"]);

        for wrong in ["10.0.0", "127.0", "127.0.1.1", "127.0.300", ""] {
            assert_eq!(addresses(wrong).expect_err(wrong).exit, Exit::Usage);
        }
    }

    #[test]
    fn a_taken_port_is_named_with_a_remedy() {
        let base = format!("127.77.{}", std::process::id() % 256);
        let ips = addresses(&base).expect("reads");
        let _holder = TcpListener::bind((ips[1], 15008)).expect("free");

        let failure = check_ports(&ips, &base).expect_err("taken");

        assert!(
            failure.message.contains(&format!("  {base}.2:15008 (mesh, TCP): address already in use")),
            "{failure}"
        );
        assert!(failure.message.contains("meshctl demo --base 127.0.2"), "{failure}");
        assert_eq!(failure.message.lines().count(), 3, "{failure}");
    }

    #[test]
    fn the_configuration_is_toml() {
        let home = tempfile::tempdir().expect("folder");
        let host = Host {
            name: "vm1",
            ip: IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1)),
            folder: home.path().join("vm1"),
            socket: home.path().join("vm1.sock"),
            child: None,
            state: HostState::Stopped,
        };

        let config: toml::Table = host.config().parse().expect("reads");

        assert_eq!(config["listen"]["http_proxy"].as_str(), Some("127.0.1.1:15080"));
        assert_eq!(config["listener"].as_array().map(Vec::len), Some(2));
    }
}
