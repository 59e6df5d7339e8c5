//! `meshd.toml`: the facts of one host, read once at start. Facts of the whole mesh are not here: they are applied.
//!
//! Every key, its default and its meaning stand in [`KEYS`]; this module turns them into types. Everything wrong
//! with a file is reported, not only the first, each with file, line and column.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::plan::{Locality, Workload};
use mesh_proto::finding::Finding;
use mesh_proto::registration::Protocol;
use mesh_proto::value::Labels;

pub use effective::{addresses, effective};
pub use keys::{KEYS, Key, default_document, reference};

pub(crate) mod document;
mod effective;
mod keys;
mod read;
pub(crate) mod words;

#[cfg(test)]
mod tests;

/// Where `meshd.toml` is looked for when no `--config` is given; there it may be absent.
pub const DEFAULT_FILE: &str = "/etc/meshd/meshd.toml";

/// The data folder where neither the file nor the command line names one.
pub const DEFAULT_DATA: &str = "/var/lib/meshd";

/// What helps where something in the data folder is of no use, without losing the mesh: it may be all there is of it.
pub(crate) const RESTORE_OR_REJOIN: &str = "nothing was changed. Where another voter has the mesh (`meshctl status` on \
    another host): move the data folder away here, `meshd join` with a new token once this host is gone there, and then \
    `meshctl host remove` it there, which takes out the old one. Where this is the only voter: put back a copy of the data folder (docs/operations.md, Backup), and keep this one until then";

/// Everything that `meshd.toml` says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this host is.
    pub host: Host,
    /// Where meshd listens.
    pub listen: Listen,
    /// Local addresses that stand for services.
    pub listeners: Vec<Listener>,
    /// What is redirected to meshd.
    pub intercept: Intercept,
    /// How names are answered.
    pub dns: Dns,
    /// How traffic is carried.
    pub proxy: Proxy,
    /// What is taken from strangers.
    pub limits: Limits,
    /// Certificates that are ordered for gateways; `None`: none.
    pub acme: Option<Acme>,
    /// Where this host's services are written down.
    pub services: Services,
    /// What is logged.
    pub log: Log,
}

/// Who this host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, in lower case. Default: the kernel's host name.
    pub name: String,
    /// Folder of keys and state.
    pub data: PathBuf,
    /// Where others reach the mesh port. Default: found out when joining.
    pub advertise: Option<Advertise>,
    /// Where it stands.
    pub locality: Locality,
    /// Its labels.
    pub labels: Labels,
    /// Whether it may keep the mesh's state.
    pub voter: Voter,
    /// Who calls from here where nothing else says so. Its locality is the host's.
    pub workload: Workload,
}

/// An address for others, with the port where it is not that of `listen.mesh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The address.
    pub ip: IpAddr,
    /// The port; `None`: that of `listen.mesh`.
    pub port: Option<u16>,
}

/// Whether a host may become a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voter {
    /// When one is missing.
    Auto,
    /// Not at all.
    Never,
    /// Before those that say `Auto`.
    Prefer,
}

/// Where meshd listens. Empty or `None`: not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The mesh port, TCP and UDP. `[::]` means both families; fall back to `0.0.0.0` where there is no IPv6.
    pub mesh: SocketAddr,
    /// Intercepted connections of local processes.
    pub outbound: Vec<SocketAddr>,
    /// Intercepted connections to local services.
    pub inbound: Vec<SocketAddr>,
    /// Read-only admin.
    pub admin: Option<SocketAddr>,
    /// Metrics and readiness.
    pub metrics: Vec<SocketAddr>,
    /// DNS, UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// Explicit HTTP proxy.
    pub http_proxy: Option<SocketAddr>,
    /// Unix socket for meshctl.
    pub socket: PathBuf,
}

/// A local address that stands for something in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it stands for.
    pub stands_for: StandsFor,
    /// What is spoken on it: `Auto`, `Http`, `Tcp` or `Tls`.
    pub protocol: Protocol,
    /// Who calls through it.
    pub workload: Workload,
}

/// What a [`Listener`] stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandsFor {
    /// Every service on this service port; the Host or SNI says which.
    ServicePort(u16),
    /// One service: host name as a caller would write it, and service port.
    Service {
        /// Host, in lower case.
        host: String,
        /// Service port.
        port: u16,
    },
}

/// What is redirected to meshd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// Whether at all.
    pub mode: InterceptMode,
    /// `SO_MARK` of meshd's own sockets.
    pub mark: u32,
    /// TCP ports left alone; always holds 22.
    pub exclude_ports: Vec<u16>,
    /// Destinations left alone.
    pub exclude_cidrs: Vec<IpNet>,
    /// Users left alone.
    pub exclude_uids: Vec<u32>,
    /// Whether connections to local services are redirected.
    pub inbound: bool,
    /// Whether DNS questions are redirected.
    pub dns: bool,
}

/// Whether nftables redirects traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterceptMode {
    /// Where it is possible.
    Auto,
    /// Or else meshd does not start.
    On,
    /// Not at all.
    Off,
}

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Resolvers for names outside the mesh. Empty: those of `/etc/resolv.conf` at start.
    pub upstreams: Vec<SocketAddr>,
    /// Until the caller gets SERVFAIL.
    pub timeout: Duration,
    /// How long answers about the mesh may be remembered, in whole seconds.
    pub ttl: Duration,
}

/// How traffic is carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Threads; 0: one per core.
    pub workers: usize,
    /// How traffic travels between hosts.
    pub transport: Transport,
    /// How long connections may finish when meshd stops.
    pub drain: Duration,
    /// Access log.
    pub access_log: AccessLog,
    /// Load balancers whose connections to gateways begin with a PROXY header.
    pub proxy_header_from: Vec<IpNet>,
    /// What `meshctl tap` may show.
    pub tap: Tap,
}

/// What `meshctl tap` may show of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Nothing.
    Off,
    /// Everything but values that let somebody in.
    Redacted,
    /// These too, where they are asked for.
    All,
}

/// How traffic travels between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS over TCP.
    Tcp,
    /// QUIC, with TCP where UDP is blocked.
    Quic,
}

/// What is written for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nothing.
    Off,
    /// A line for people.
    Text,
    /// A line for machines.
    Json,
}

/// What is taken from strangers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until a request's head is complete.
    pub head: Duration,
    /// How long a connection may be idle.
    pub idle: Duration,
    /// How long first bytes are awaited.
    pub sniff: Duration,
    /// Largest head.
    pub head_bytes: usize,
    /// Most fields in a head.
    pub headers: usize,
    /// Longest request target.
    pub uri_bytes: usize,
    /// Most streams of an application's HTTP/2 connection.
    pub http2_streams: u32,
    /// Most streams of a connection from another host.
    pub hop_streams: u32,
    /// Most frames a second that only ask for an answer.
    pub http2_control_frames: u32,
    /// How long a body may fall behind.
    pub body: Duration,
    /// Bytes a second of a body.
    pub body_rate: u32,
    /// Most connections of a listener; 0: what descriptors allow.
    pub connections: usize,
    /// Most of them from one other host; 0: half.
    pub connections_per_source: usize,
    /// How often a meshd may send a request on.
    pub hops: u8,
    /// Memory of this process; 0: a share of what there is.
    pub memory_bytes: usize,
}

/// Certificates that are ordered for gateways, from an authority that speaks ACME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The authority: URL of its directory, https.
    pub directory: String,
    /// Where it may write to: URLs, as a rule `mailto:`.
    pub contact: Vec<String>,
    /// Whether its terms of service are agreed to.
    pub agree_to_terms: bool,
    /// File with the roots of its own certificate; `None`: those of the system.
    pub roots: Option<PathBuf>,
    /// How it sees that a name leads here.
    pub challenge: Challenge,
    /// What is ordered.
    pub certificates: Vec<Ordered>,
}

/// How an authority sees that a name leads to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// By TLS where a gateway has a server for the name, by plain HTTP otherwise; after a failure the other way.
    Auto,
    /// It asks port 80.
    Http,
    /// It asks port 443.
    Tls,
}

/// One certificate that is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// The secret it is put into: what rules call `credentialName`.
    pub secret: String,
    /// The names it is for, in lower case; at least one.
    pub names: Vec<String>,
}

/// Where this host's services are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    /// Folder of `*.toml` files.
    pub directory: PathBuf,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives as of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Colour on a terminal, text elsewhere.
    Auto,
    /// Text.
    Text,
    /// JSON.
    Json,
}

/// What the command line says louder than the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--data DIR`: the data folder; the socket moves there too, unless the file names one.
    pub data: Option<PathBuf>,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--config FILE`; `None`: [`DEFAULT_FILE`], if it is there.
    pub file: Option<PathBuf>,
    /// What the command line says louder.
    pub overrides: Overrides,
}

impl Source {
    /// Reads the configuration that is there now.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.file.as_deref(), &self.overrides)
    }

    /// The file, whether it is there or not.
    pub fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// Whether it is what the unit of systemd runs by: nothing is said on the command line.
    pub fn is_default(&self) -> bool {
        self.path() == Path::new(DEFAULT_FILE) && self.overrides.data.is_none()
    }

    /// The text of the file; empty where there is none.
    pub fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there (or was named) and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that cannot be; all of it.
    #[error("{}", lines(.0))]
    Invalid(Vec<Finding>),
}

impl Config {
    /// Reads the file at `path`, or [`DEFAULT_FILE`] if it exists.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Unreadable { path: file.to_owned(), source }),
        };
        Self::parse(&file.display().to_string(), &text, overrides).map_err(ConfigError::Invalid)
    }

    /// Reads the text of a file called `file`. Errors are everything that is wrong, in the order of the file.
    pub fn parse(file: &str, text: &str, overrides: &Overrides) -> Result<Self, Vec<Finding>> {
        read::config(file, text, overrides)
    }

    /// Returns the port that other hosts dial.
    pub fn advertised_port(&self) -> u16 {
        self.host.advertise.and_then(|it| it.port).unwrap_or(self.listen.mesh.port())
    }
}

impl Default for Config {
    /// An empty file.
    fn default() -> Self {
        Self::parse("meshd.toml", "", &Overrides::default()).expect("the defaults are valid; a test says so")
    }
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
