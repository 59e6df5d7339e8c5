//! Puts the interception ruleset and the routes of virtual addresses in, and takes them out, leaving the host as it
//! was found. What the ruleset says is decided in `core::firewall`.
//!
//! Two things are ours, and both carry a name by which they are found after a crash: the nftables table `inet
//! meshd`, and routes of protocol [`ROUTE_PROTOCOL`]. `meshd cleanup` (the unit's `ExecStopPost`) calls [`remove`],
//! which needs no state of the process that put them in.
//!
//! The functions here run `nft` and `ip` and wait for them (a few milliseconds): call them from a blocking thread.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use mesh_core::firewall::{self, DnsCapture, Intercept, SshSession, VIRTUAL_V4, VIRTUAL_V6};
use mesh_proto::registration::Registration;

use crate::config::words::is_on_this_host;
use crate::config::{Config, InterceptMode};

#[cfg(test)]
mod tests;

/// Routing protocol number (rtnetlink `RTPROT`) of the routes that are ours: the letter m.
pub const ROUTE_PROTOCOL: &str = "109";

/// Why traffic cannot be intercepted, or why what was put in cannot be taken out.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The program is not installed.
    #[error("{program} is not installed; install the package {package}, or set intercept.mode = \"off\"")]
    Missing {
        /// `nft` or `ip`.
        program: &'static str,
        /// What to install.
        package: &'static str,
    },
    /// The process may not change the network.
    #[error(
        "changing the firewall needs CAP_NET_ADMIN; start meshd from its unit or as root, or set intercept.mode = \"off\" ({said})"
    )]
    NotPermitted {
        /// What the program said.
        said: String,
    },
    /// The kernel has no nftables, or no NAT in it.
    #[error(
        "this kernel cannot redirect with nftables (nf_tables, nft_redir, nft_fib and Linux 5.2 or newer are needed); set intercept.mode = \"off\" and use listeners or the HTTP proxy port ({said})"
    )]
    Kernel {
        /// What the program said.
        said: String,
    },
    /// Anything else that `nft` or `ip` refused.
    #[error("{command} failed: {said}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        said: String,
    },
    /// The program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// `nft` or `ip`.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl InterceptError {
    /// Whether the next try would meet the same: only a person can put it right.
    pub fn needs_person(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NotPermitted { .. } | Self::Kernel { .. })
    }
}

/// What became of the wish to intercept.
#[derive(Debug)]
pub enum Outcome {
    /// Traffic is redirected.
    Applied,
    /// It is not, because `intercept.mode` says so.
    Off,
    /// It is not, because it cannot be, and `intercept.mode = "auto"` accepts that. Says why.
    Unavailable(String),
}

/// Does what `intercept.mode` asks for. Call it when all listeners are bound.
///
/// What a predecessor left is replaced; with `mode = "off"` it is taken out ([`remove_left`]; `own` are the TCP ports
/// that this process listens on). An error is returned for `mode = "on"` only; then nothing is left behind.
pub fn start(mode: InterceptMode, rules: &Intercept, own: &BTreeSet<u16>) -> Result<Outcome, InterceptError> {
    if mode == InterceptMode::Off {
        match remove_left(own) {
            Ok(true) => tracing::info!("intercept.mode is off: the rules of the meshd before were removed"),
            Ok(false) => {}
            // Without nft, or the right to use it, there is hardly anything to remove.
            Err(error) => tracing::debug!(%error, "whether a meshd before left rules was not found out"),
        }
        return Ok(Outcome::Off);
    }
    match apply(rules) {
        Ok(()) => {
            tracing::info!(inbound = rules.inbound_targets.len(), dns = rules.dns.is_some(), "intercepting");
            Ok(Outcome::Applied)
        }
        Err(error) if mode == InterceptMode::Auto => {
            tracing::info!(%error, "not intercepting; listeners and the HTTP proxy port work");
            Ok(Outcome::Unavailable(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Puts routes and ruleset in, replacing what an earlier meshd left. All or nothing.
pub fn apply(rules: &Intercept) -> Result<(), InterceptError> {
    let all = add_routes().and_then(|()| nft(&firewall::ruleset(rules)));
    if all.is_err() {
        // The first error is the one to tell; what cannot be removed was most likely never put in.
        let _ = remove();
    }
    all
}

/// Replaces the inbound ports in one transaction; [`apply`] must have succeeded.
pub fn update_inbound(targets: &BTreeSet<u16>) -> Result<(), InterceptError> {
    nft(&firewall::update_inbound(targets))
}

/// Takes everything out that is ours, also what another process of meshd put in. Does nothing where there is nothing.
pub fn remove() -> Result<(), InterceptError> {
    let table = if is_present()? { nft(firewall::removal()) } else { Ok(()) };
    let routes = remove_routes();
    table.and(routes)
}

/// Takes out the rules that another run of this meshd left: they redirect to a port that is among `own`, or to ports
/// where nobody listens. Others belong to another meshd (one beside a demo, say) and stay. Says whether it took any out.
pub fn remove_left(own: &BTreeSet<u16>) -> Result<bool, InterceptError> {
    let Some(ruleset) = show()? else { return Ok(false) };
    let targets = redirect_targets(&ruleset);
    let serves_another = targets.is_disjoint(own) && targets.iter().any(|port| is_listened_on(*port));
    if !serves_another {
        remove()?;
    }
    Ok(!serves_another)
}

/// Returns the ports to which a ruleset, as `nft` prints it, redirects.
fn redirect_targets(ruleset: &str) -> BTreeSet<u16> {
    let after = ruleset.split("redirect to :").skip(1);
    after.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
}

/// Whether any process listens for TCP where the ruleset redirects local connections to.
fn is_listened_on(port: u16) -> bool {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let taken = |ip| TcpListener::bind((ip, port)).is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
    loopback.into_iter().any(taken)
}

/// Whether the table `inet meshd` is loaded.
pub fn is_present() -> Result<bool, InterceptError> {
    let listed = run("nft", &["list", "tables", "inet"], "")?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.trim() == "table inet meshd"))
}

/// Returns the ruleset in force as `nft` prints it; `None` where there is none. For `meshctl intercept show`.
pub fn show() -> Result<Option<String>, InterceptError> {
    if !is_present()? {
        return Ok(None);
    }
    let listed = run("nft", &["list", "table", "inet", "meshd"], "")?;
    Ok(Some(String::from_utf8_lossy(&listed.stdout).into_owned()))
}

/// Makes the rules from `meshd.toml`, the resolvers found before capture, and what this host offers.
pub fn rules(config: &Config, upstreams: &[SocketAddr], registration: &Registration) -> Intercept {
    let listen = &config.listen;
    let port_of = |addresses: &[SocketAddr]| addresses.first().map(SocketAddr::port);
    let dns_port = port_of(&listen.dns).filter(|_| config.intercept.dns);
    Intercept {
        mark: config.intercept.mark,
        outbound_port: port_of(&listen.outbound).unwrap_or(DEFAULT_OUTBOUND_PORT),
        inbound_port: port_of(&listen.inbound).filter(|_| config.intercept.inbound),
        inbound_targets: inbound_targets(registration),
        dns: dns_port.map(|port| DnsCapture { port, only: questions_to_catch(upstreams) }),
        exclude_ports: config.intercept.exclude_ports.iter().copied().collect(),
        own_ports: own_ports(config),
        exclude_cidrs: config.intercept.exclude_cidrs.clone(),
        exclude_uids: config.intercept.exclude_uids.iter().copied().collect(),
        ssh: present_ssh_session(),
    }
}

/// Returns the ports that may be caught on their way in: those which local instances answer to other hosts.
///
/// An instance that listens on loopback only was out of reach for plain connections from other hosts; it stays so.
pub fn inbound_targets(registration: &Registration) -> BTreeSet<u16> {
    let local = registration.instances.values().filter(|instance| instance.address.is_none());
    let targets = local.flat_map(|instance| instance.ports.iter().map(|port| port.target));
    targets.filter(|target| !target.ip().is_loopback()).map(|target| target.port()).collect()
}

fn own_ports(config: &Config) -> BTreeSet<u16> {
    let listen = &config.listen;
    let lists = [&listen.outbound, &listen.inbound, &listen.metrics, &listen.dns];
    let single = [Some(listen.mesh), listen.admin, listen.http_proxy];
    let all = lists.into_iter().flatten().copied().chain(single.into_iter().flatten());
    all.map(|address| address.port()).chain([config.advertised_port()]).filter(|port| *port != 0).collect()
}

/// Returns the resolvers whose questions are caught; empty for all. See [`DnsCapture::only`].
fn questions_to_catch(upstreams: &[SocketAddr]) -> Vec<IpAddr> {
    let addresses: Vec<IpAddr> = upstreams.iter().map(SocketAddr::ip).collect();
    if addresses.iter().any(|address| is_on_this_host(*address)) { addresses } else { Vec::new() }
}

/// Finds the SSH session in whose shell meshd runs, from `SSH_CONNECTION` (`PEER PORT HERE PORT`).
fn present_ssh_session() -> Option<SshSession> {
    ssh_session(&std::env::var("SSH_CONNECTION").ok()?)
}

fn ssh_session(connection: &str) -> Option<SshSession> {
    let mut words = connection.split_ascii_whitespace();
    Some(SshSession { peer: words.next()?.parse().ok()?, port: words.nth(2)?.parse().ok()? })
}

/// Without a route, connect(2) fails before the ruleset sees a packet; through lo the route works on every host.
/// IPv6 takes no other kind than `local` through lo.
const ROUTES: [(&str, &str, &str); 2] = [("-4", VIRTUAL_V4, "127.0.0.1"), ("-6", VIRTUAL_V6, "::1")];

fn add_routes() -> Result<(), InterceptError> {
    let [v4, v6] = ROUTES.map(|(family, range, source)| {
        let route =
            [family, "route", "replace", "local", range, "dev", "lo", "proto", ROUTE_PROTOCOL, "src", source];
        ip(&route)
    });
    v4?;
    match v6 {
        // Hosts without IPv6 have no virtual IPv6 addresses to reach.
        Err(InterceptError::Refused { said, .. }) => {
            tracing::info!(said, "no route for virtual IPv6 addresses; this host seems to have no IPv6");
            Ok(())
        }
        other => other,
    }
}

fn remove_routes() -> Result<(), InterceptError> {
    for (family, range, _) in ROUTES {
        let ours = [family, "route", "show", "table", "local", "proto", ROUTE_PROTOCOL];
        let listed = match run("ip", &ours, "") {
            Ok(listed) => listed,
            Err(InterceptError::Refused { .. }) if family == "-6" => continue,
            Err(error) => return Err(error),
        };
        if String::from_utf8_lossy(&listed.stdout).contains(range) {
            ip(&[family, "route", "del", "local", range, "dev", "lo", "proto", ROUTE_PROTOCOL])?;
        }
    }
    Ok(())
}

fn nft(script: &str) -> Result<(), InterceptError> {
    run("nft", &["-f", "-"], script).map(drop)
}

fn ip(arguments: &[&str]) -> Result<(), InterceptError> {
    run("ip", arguments, "").map(drop)
}

fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<Output, InterceptError> {
    let output = spawn(program, arguments, input).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => InterceptError::Missing { program, package: package_of(program) },
        _ => InterceptError::Run { program, source },
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().trim().to_owned();
    Err(refusal(program, arguments, said))
}

fn spawn(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        // A service's PATH may lack the folder where both programs live.
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes its input; its exit status then says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn refusal(program: &str, arguments: &[&str], said: String) -> InterceptError {
    let lower = said.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    // `ip` says nothing at all where it may not even drop what it has.
    if says(&["not permitted", "permission denied", "must be root"])
        || (said.is_empty() && !may_change_network())
    {
        return InterceptError::NotPermitted { said };
    }
    if program == "nft" && says(&["not supported", "no such file", "protocol error", "unable to initialize"])
    {
        return InterceptError::Kernel { said };
    }
    InterceptError::Refused { command: format!("{program} {}", arguments.join(" ")), said }
}

fn may_change_network() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iproute2" }
}

/// Istio's port for outbound traffic.
const DEFAULT_OUTBOUND_PORT: u16 = 15001;
