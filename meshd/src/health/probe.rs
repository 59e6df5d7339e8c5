//! One question to one instance: HTTP, TCP, gRPC or a command.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use mesh_proto::registration::{HealthCheck, HttpAsk, Instance, Probe};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::grpc;
use crate::transport::socket::connect_tcp;
use crate::transport::{SocketOptions, begin_unchecked};

/// Whom to ask, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) check: HealthCheck,
    /// Where; commands do not need it.
    pub(super) address: Option<SocketAddr>,
}

/// Why an instance is not well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("no HTTP answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("no TLS: {0}")]
    Tls(String),
    #[error("{host} has no address: {source}")]
    Name { host: String, source: std::io::Error },
    #[error("status {0}, not 200 to 399")]
    Status(u16),
    #[error("gRPC: {0}")]
    Grpc(String),
    #[error("cannot run {program}: {source}")]
    Run { program: String, source: std::io::Error },
    #[error("{program} ended with {status}")]
    Exit { program: String, status: std::process::ExitStatus },
    #[error("the check cannot be asked: {0}")]
    Unaskable(String),
}

impl Target {
    /// Returns what to ask of an instance; `None` when it has no check.
    pub(super) fn of(instance: &Instance) -> Option<Self> {
        let check = instance.check.clone()?;
        let port = match &check.probe {
            Probe::Http { port, .. } | Probe::Tcp { port, .. } | Probe::Grpc { port, .. } => *port,
            Probe::Command { .. } => None,
        };
        let address = instance.ports.first().map(|first| {
            let mut address = first.target;
            address.set_port(port.unwrap_or(address.port()));
            address
        });
        Some(Self { check, address })
    }

    fn address(&self) -> Result<SocketAddr, Failure> {
        self.address.ok_or_else(|| Failure::Unaskable("the instance has no port".into()))
    }

    /// Returns where to ask: at the host that the check names, else at the target.
    async fn place(&self) -> Result<SocketAddr, Failure> {
        let address = self.address()?;
        let host = match &self.check.probe {
            Probe::Http { ask, .. } => ask.host.as_deref(),
            Probe::Tcp { host, .. } => host.as_deref(),
            _ => None,
        };
        let Some(host) = host else { return Ok(address) };
        let failed = |source| Failure::Name { host: host.to_owned(), source };
        let mut found = tokio::net::lookup_host((host, address.port())).await.map_err(failed)?;
        found.next().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
    }
}

/// Asks once. Sets no time limit of its own. Cancel safe: a dropped future closes the connection or ends the command.
pub(super) async fn ask(target: &Target, options: SocketOptions) -> Result<(), Failure> {
    match &target.check.probe {
        Probe::Http { path, ask, .. } => {
            let stream = connect(target, options).await?;
            let address = target.place().await?;
            if !ask.https {
                return http(stream, address, path, ask).await;
            }
            let name = ask.host.as_deref().unwrap_or_default();
            let stream = begin_unchecked(name, stream).await.map_err(|why| Failure::Tls(why.to_string()))?;
            http(stream, address, path, ask).await
        }
        Probe::Tcp { .. } => connect(target, options).await.map(drop),
        Probe::Grpc { service, .. } => {
            grpc::ask(connect(target, options).await?, target.address()?, service).await
        }
        Probe::Command { argv } => command(argv).await,
    }
}

async fn connect(target: &Target, options: SocketOptions) -> Result<TcpStream, Failure> {
    let address = target.place().await?;
    connect_tcp(address, options).await.map_err(|source| Failure::Connect { address, source })
}

async fn http<S>(stream: S, address: SocketAddr, path: &str, ask: &HttpAsk) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let says = |wanted: &http::HeaderName| ask.headers.iter().any(|(name, _)| wanted == name.as_str());
    let mut request = http::Request::get(path).header(http::header::CONNECTION, "close");
    for (name, value) in
        [(http::header::HOST, address.to_string()), (http::header::USER_AGENT, USER_AGENT.into())]
    {
        if !says(&name) {
            request = request.header(name, value);
        }
    }
    for (name, value) in &ask.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    let request =
        request.body(Empty::<bytes::Bytes>::new()).map_err(|error| Failure::Unaskable(error.to_string()))?;
    let asked = sender.send_request(request);
    tokio::pin!(asked);
    let answer = tokio::select! {
        answer = &mut asked => answer?,
        // The connection may end with the answer already read.
        _ = connection => asked.await?,
    };
    match answer.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

async fn command(argv: &[String]) -> Result<(), Failure> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Failure::Unaskable("the command is empty".into()));
    };
    let failed = |source| Failure::Run { program: program.clone(), source };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that whatever the command starts ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let group = Group(child.id());
    let status = child.wait().await.map_err(failed)?;
    drop(group);
    if status.success() { Ok(()) } else { Err(Failure::Exit { program: program.clone(), status }) }
}

/// Ends a process group when dropped: at the time-out, or what a command left behind.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // An empty group is an error that says: nothing was left.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

pub(super) const USER_AGENT: &str = concat!("meshd-health/", env!("CARGO_PKG_VERSION"));
