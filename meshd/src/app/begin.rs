//! `meshd init` and `meshd join`: how a host comes into a mesh. Both write the data folder and end; `run` serves.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_proto::api::{ApiError, ErrorCode, JoinRequest, Joined, Response};
use mesh_proto::command::{Bootstrap, HostFacts, HostId, Mesh, NewHost, Timestamp, VoterWish};
use mesh_proto::token::Token;
use rustls::pki_types::CertificateDer;

use super::state::{FIRST_HOST, FolderLock, HostState, Standing, refuse_second_mesh};
use crate::config::{Config, Voter};
use crate::identity::files::make_folder;
use crate::identity::hostkeys::HostKeys;
use crate::identity::seal::{Passphrase, seal_for_host, seal_for_recovery};
use crate::server::ca::Authority;
use crate::services;
use crate::systemd;
use crate::transport::{Credentials, Dialer, SocketOptions, Trust, dial_join, join_proof};

/// `meshd init`
#[derive(clap::Args)]
pub struct Init {
    /// SPIFFE trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// DNS suffix of services, as in reviews.default.svc.DOMAIN.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    domain: String,
}

/// `meshd join`
#[derive(clap::Args)]
pub struct Join {
    /// Any host of the mesh: name or address, with the port where it is not 15008.
    address: String,
    /// File with the token; without it, the token is read from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// WorkloadGroup whose member this host is: labels, account, ports and health check come from there.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    group: Option<String>,
}

/// How long a join may take.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// Begins a mesh.
///
/// # Errors
/// When the host is in one already, or the data folder cannot be written.
pub fn init(config: &Config, arguments: &Init) -> Result<()> {
    let data = &config.host.data;
    make_folder(data)?;
    refuse_second_mesh(data)?;
    let lock = FolderLock::take(data)?;
    let keys = HostKeys::open_or_make(data)?;
    let address = advertised(config, None)?;

    let now = SystemTime::now();
    let root = Authority::new_root(&arguments.trust_domain, now)?;
    let passphrase = Passphrase::generate()?;
    let mesh = Mesh {
        id: random_id()?,
        trust_domain: mesh_core::identity::trust_domain_of(&arguments.trust_domain)?,
        domain: arguments.domain.clone(),
        roots: vec![BASE64.encode(&root.certificate)],
        created: Timestamp(since_epoch(now)),
    };
    let id = FIRST_HOST;
    let sealed_root = BTreeMap::from([
        (id.to_string(), seal_for_host(&root.key, &keys.wrap_public_key())?),
        ("recovery".to_owned(), seal_for_recovery(&root.key, &passphrase)?),
    ]);
    let bootstrap = Bootstrap { mesh: mesh.clone(), sealed_root, host: new_host(config, &keys, address) };
    let servers = BTreeMap::from([(id, address)]);
    let standing = Standing::First(Box::new(bootstrap));
    HostState::new(id, &config.host.name, address, mesh.clone(), servers, standing).save(data)?;
    give_to_owner(data)?;
    // The unit that is started next takes it.
    drop(lock);

    super::print(&format!(
        "{} is the first host of mesh {} (trust domain {}), reached at {address}.\n\n\
         Recovery passphrase, shown only now; keep it away from the hosts:\n    {}\n\n{}",
        config.host.name,
        &mesh.id[..8],
        mesh.trust_domain,
        passphrase.reveal(),
        next_steps(config, "Then let another host in:  meshctl token create\n"),
    ))
}

/// Comes into a mesh.
///
/// # Errors
/// When the token is refused, the other host does not answer, or the data folder cannot be written. Nothing is left
/// behind but host keys.
pub fn join(config: &Config, arguments: &Join) -> Result<()> {
    let data = &config.host.data;
    make_folder(data)?;
    refuse_second_mesh(data)?;
    let lock = FolderLock::take(data)?;
    let member = arguments
        .group
        .as_deref()
        .map(services::member)
        .transpose()
        .map_err(|why| anyhow!("--group: {why}"))?;
    let token = Token::parse(&read_token(arguments)?)?;
    let server = resolve(&arguments.address)?;
    let keys = HostKeys::open_or_make(data)?;
    let address = advertised(config, Some(server))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let host = new_host(config, &keys, address);
    let asked = async {
        tokio::time::timeout(JOIN_LIMIT, ask_to_join(server, &token, host, &keys))
            .await
            .map_err(|_| anyhow!("{server} did not answer within {} s", JOIN_LIMIT.as_secs()))?
    };
    let joined = runtime.block_on(asked).with_context(|| format!("joining by way of {server}"))?;

    let mut servers = joined.servers.clone();
    if servers.is_empty() {
        servers.insert(HostId(0), server);
    }
    keep_certificate(data, keys, &joined)?;
    let (standing, role) = if joined.may_vote {
        (Standing::MayServe, "may keep the mesh's state")
    } else {
        (Standing::Agent, "agent")
    };
    HostState::new(joined.id, &config.host.name, address, joined.mesh.clone(), servers, standing)
        .save(data)?;
    let then = match &member {
        Some(member) => {
            member.keep(data).with_context(|| format!("writing the membership below {}", data.display()))?;
            "It is registered as a member of its WorkloadGroup once meshd runs.\n"
        }
        None => "Then register a service:   meshctl service register NAME --port 9080\n",
    };
    give_to_owner(data)?;
    // The unit that is started next takes it.
    drop(lock);
    super::print(&format!(
        "{} is in mesh {} as host {} ({role}), reached at {address}.\n\n{}",
        config.host.name,
        &joined.mesh.id[..joined.mesh.id.len().min(8)],
        joined.id,
        next_steps(config, then),
    ))
}

/// Gives what root has written into a folder of another user to that user: the package makes the data folder for the
/// user `meshd`, whom the unit runs as.
fn give_to_owner(data: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = std::fs::metadata(data).with_context(|| format!("reading {}", data.display()))?;
    let mut left = vec![data.to_owned()];
    while let Some(path) = left.pop() {
        std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
            .with_context(|| format!("giving {} to its folder's owner", path.display()))?;
        if path.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// Keeps the host's first certificate where `run` finds it.
fn keep_certificate(data: &Path, keys: HostKeys, joined: &Joined) -> Result<()> {
    let identity = Identity::host(&joined.mesh.trust_domain, &joined.id.to_string())?;
    let chain: Vec<CertificateDer<'static>> = joined
        .chain
        .iter()
        .map(|certificate| BASE64.decode(certificate.as_bytes()).map(Into::into))
        .collect::<Result<_, _>>()
        .context("the certificate from the other host is no base64")?;
    Ok(crate::identity::keep_host_chain(&certificates(data), keys, &identity, &chain)?)
}

/// The folder of certificates.
pub(super) fn certificates(data: &Path) -> PathBuf {
    data.join("certificates")
}

async fn ask_to_join(server: SocketAddr, token: &Token, host: NewHost, keys: &HostKeys) -> Result<Joined> {
    // Nothing is known of the mesh yet but the pin of its root, which the token carries.
    let credentials = Credentials::new(Trust::new("", Vec::new())?);
    let dialer = Dialer::new(credentials, SocketOptions::default());
    let mut link = dial_join(&dialer, server, token.pin).await?;
    let public_key = keys.public_key();
    let request = JoinRequest {
        token: token.id.clone(),
        proof: BASE64.encode(&join_proof(&token.secret, &link.exporter, &public_key)),
        binding: String::new(),
        host,
        csr: BASE64.encode(&keys.request()?),
        clock_ms: since_epoch(SystemTime::now()),
    };
    link.frames.send(Bytes::from(serde_json::to_vec(&request)?)).await?;
    let answer =
        link.frames.recv().await?.context("the other host closed the connection without an answer")?;
    let answer: Result<Response, ApiError> =
        serde_json::from_slice(&answer).context("the answer is unreadable")?;
    match answer? {
        Response::Joined(joined) => Ok(*joined),
        other => bail!("the other host answered something else: {other:?}"),
    }
}

fn read_token(arguments: &Join) -> Result<String> {
    if let Some(path) = &arguments.token_file {
        return std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    }
    if std::io::stdin().is_terminal() {
        eprint!("Token (from `meshctl token create` on a host of the mesh): ");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        return Ok(line);
    }
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_TOKEN_BYTES)
        .read_to_string(&mut text)
        .context("reading the token from standard input")?;
    if text.trim().is_empty() {
        bail!(
            "standard input holds no token; give it as: meshctl token create | ssh HOST meshd join ADDRESS"
        );
    }
    Ok(text)
}

/// No token is longer.
const MAX_TOKEN_BYTES: u64 = 4_096;

fn resolve(address: &str) -> Result<SocketAddr> {
    let with_port = if address.parse::<IpAddr>().is_ok() || !address.contains(':') {
        let literal = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
        if literal { format!("[{address}]:15008") } else { format!("{address}:15008") }
    } else {
        address.to_owned()
    };
    let mut found = with_port
        .to_socket_addrs()
        .with_context(|| format!("{address:?} is neither an address nor a name that resolves"))?;
    found.next().with_context(|| format!("{address:?} has no address"))
}

fn new_host(config: &Config, keys: &HostKeys, address: SocketAddr) -> NewHost {
    NewHost {
        name: config.host.name.clone(),
        public_key: BASE64.encode(&keys.public_key()),
        wrap_key: BASE64.encode(&keys.wrap_public_key()),
        facts: facts(config, address),
    }
}

/// Returns what this host says of itself.
pub(super) fn facts(config: &Config, address: SocketAddr) -> HostFacts {
    HostFacts {
        address,
        version: env!("CARGO_PKG_VERSION").into(),
        labels: config.host.labels.clone(),
        locality: config.host.locality.to_string(),
        voter: match config.host.voter {
            Voter::Auto => VoterWish::Auto,
            Voter::Never => VoterWish::Never,
            Voter::Prefer => VoterWish::Prefer,
        },
    }
}

/// Returns where others reach this host: `host.advertise`, else the address used toward `server`, else that of the
/// default route.
pub(super) fn advertised(config: &Config, server: Option<SocketAddr>) -> Result<SocketAddr> {
    let port = config.listen.mesh.port();
    if let Some(advertise) = &config.host.advertise {
        return Ok(SocketAddr::new(advertise.ip, advertise.port.unwrap_or(port)));
    }
    if !config.listen.mesh.ip().is_unspecified() {
        return Ok(config.listen.mesh);
    }
    // Connecting a UDP socket sends nothing: it asks the kernel which address it would use.
    let toward = server.unwrap_or_else(|| ([192, 0, 2, 1], 9).into());
    let any: SocketAddr = if toward.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let found = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(toward)?;
        socket.local_addr()
    });
    match found {
        Ok(local) => Ok(SocketAddr::new(local.ip(), port)),
        Err(error) => bail!(
            "cannot find out at which address other hosts reach this one ({error}): set host.advertise in meshd.toml"
        ),
    }
}

fn next_steps(config: &Config, then: &str) -> String {
    match systemd::enable_unit() {
        systemd::Enabled::Started => format!("The meshd service is enabled and running.\n{then}"),
        systemd::Enabled::NoSystemd => {
            let data = if config.host.data == std::path::Path::new(crate::config::DEFAULT_DATA) {
                String::new()
            } else {
                " (with the same --config and --data)".into()
            };
            format!("Next, serve:              meshd run{data}\n{then}")
        }
        systemd::Enabled::Failed(why) => {
            format!(
                "The meshd service could not be started: {why}\nStart it with:             systemctl enable --now meshd\n{then}"
            )
        }
    }
}

fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

fn since_epoch(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Exit codes of meshctl and meshd: 0 done, 1 refused, 2 unreadable, 3 conflict, 4 no quorum or time-out, 64 usage.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ApiError>().map(|error| error.code) {
        Some(ErrorCode::Conflict) => 3,
        Some(ErrorCode::NoQuorum | ErrorCode::Timeout | ErrorCode::Unknown) => 4,
        _ => match error.downcast_ref::<crate::config::ConfigError>() {
            Some(crate::config::ConfigError::Unreadable { .. }) => 2,
            _ => 1,
        },
    }
}
