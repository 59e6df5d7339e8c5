//! The proxy's listeners, as the configuration names them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh_proto::registration::Protocol;

use crate::agent::Outlets;
use crate::config::{self, Config, StandsFor};
use crate::dns::Lookup;
use crate::identity::HostKeys;
use crate::listeners::Listeners;
use crate::proxy::{self, Declared, Entrance, Proxy, Settings, Shared, Sockets, Way};
use crate::telemetry::{self, AccessLog, Stats, Tap};
use crate::transport::{Challenges, Dialer, QuicOptions, SocketOptions, Transport};
use mesh_core::wire::http2::FrameLimits;

/// Where this host keeps its secrets.
pub(super) fn secrets(config: &Config) -> PathBuf {
    config.host.data.join("secrets")
}

/// How many workers the proxy has.
pub(super) fn workers(config: &Config) -> usize {
    match config.proxy.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers => workers,
    }
}

/// Parts of meshd that the proxy is built on.
pub(super) struct Parts<'a> {
    pub(super) outlets: &'a Outlets,
    pub(super) dialer: &'a Dialer,
    pub(super) stats: &'a Arc<Stats>,
    pub(super) keys: &'a HostKeys,
    pub(super) started: Instant,
    pub(super) names: &'a Arc<Lookup>,
    pub(super) listeners: &'a Listeners,
    pub(super) challenges: &'a Arc<Challenges>,
    pub(super) tap: &'a Arc<Tap>,
}

/// Starts the proxy on every listener of the configuration.
pub(super) fn start_proxy(config: &Config, parts: &Parts<'_>) -> Result<Proxy> {
    let shared = Shared {
        plans: parts.outlets.plans.clone(),
        dialer: parts.dialer.clone(),
        settings: Arc::new(Settings {
            resolve: resolver(parts.names.clone()),
            listeners: parts.listeners.clone(),
            challenges: parts.challenges.clone(),
            tap: parts.tap.clone(),
            ..settings(config)
        }),
        stats: parts.stats.clone(),
        access_log: access_log(config)?,
        started: parts.started,
    };
    Ok(proxy::start(shared, sockets(config, parts.keys, parts.listeners)?)?)
}

/// Finds names outside the mesh for the proxy.
fn resolver(names: Arc<Lookup>) -> proxy::Resolver {
    Arc::new(move |host, port| {
        let names = names.clone();
        Box::pin(async move {
            let found = names.addresses(&host).await?;
            Ok(found.iter().map(|address| SocketAddr::new(*address, port)).collect())
        })
    })
}

/// Binds the mesh port over UDP; without it, hosts reach this one over TCP.
///
/// The secret of resets comes from the host's key, so that peers of a meshd that crashed learn of it from the next one.
fn quic(config: &Config, keys: &HostKeys, listeners: &Listeners) -> Vec<(UdpSocket, QuicOptions)> {
    let bind = |address: SocketAddr| match listeners.udp(address) {
        Ok(udp) => Some((udp, QuicOptions { reset_secret: Some(keys.derived("quic reset")) })),
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() => {
            tracing::info!(%error, "the mesh port is open on IPv4 only");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the mesh port does not listen on UDP; other hosts use TCP");
            None
        }
    };
    mesh_addresses(config.listen.mesh).into_iter().filter_map(bind).collect()
}

fn settings(config: &Config) -> Settings {
    let limits = &config.limits;
    Settings {
        workers: workers(config),
        transport: match config.proxy.transport {
            config::Transport::Tcp => Transport::Tcp,
            config::Transport::Quic => Transport::Quic,
        },
        limits: mesh_core::wire::guard::Limits {
            header_bytes: limits.head_bytes,
            headers: limits.headers,
            uri_bytes: limits.uri_bytes,
            ..Default::default()
        },
        head_timeout: limits.head,
        idle_timeout: limits.idle,
        sniff_timeout: limits.sniff,
        max_streams: limits.http2_streams,
        hop_streams: limits.hop_streams,
        frames: FrameLimits { control: limits.http2_control_frames, ..FrameLimits::default() },
        body_timeout: limits.body,
        body_rate: limits.body_rate,
        connections: limits.connections,
        connections_per_source: limits.connections_per_source,
        hops: limits.hops,
        memory: limits.memory_bytes,
        socket: SocketOptions { mark: Some(config.intercept.mark) },
        secrets: secrets(config),
        proxy_header_from: config.proxy.proxy_header_from.clone(),
        ..Settings::default()
    }
}

fn access_log(config: &Config) -> Result<Option<AccessLog>> {
    let format = match config.proxy.access_log {
        config::AccessLog::Off => return AccessLog::for_rules().map(Some).context("starting the access log"),
        config::AccessLog::Text => telemetry::Format::Text,
        config::AccessLog::Json => telemetry::Format::Json,
    };
    AccessLog::start(format, &telemetry::Sink::Stdout).map(Some).context("starting the access log")
}

fn sockets(config: &Config, keys: &HostKeys, listeners: &Listeners) -> Result<Sockets> {
    let workers = workers(config);
    let mut entrances = Vec::new();
    let mut add = |way: Way, address: SocketAddr| -> Result<()> {
        let sockets = listeners.tcp_group(address, workers)?;
        entrances.push(Entrance { way, sockets });
        Ok(())
    };
    for address in mesh_addresses(config.listen.mesh) {
        match add(Way::Mesh, address) {
            Err(error) if address.is_ipv6() && address.ip().is_unspecified() => {
                tracing::info!(%error, "the mesh port is open on IPv4 only");
            }
            bound => bound?,
        }
    }
    for address in &config.listen.outbound {
        add(Way::Outbound { caller: 0 }, *address)?;
    }
    for address in &config.listen.inbound {
        add(Way::Inbound, *address)?;
    }
    if let Some(address) = config.listen.http_proxy {
        add(Way::HttpProxy { caller: 0 }, address)?;
    }
    let callers = callers(config);
    for listener in &config.listeners {
        let caller = callers.iter().position(|workload| **workload == listener.workload).unwrap_or(0);
        let protocol = match listener.protocol {
            Protocol::Http => Declared::Http,
            Protocol::Tcp => Declared::Tcp,
            Protocol::Tls => Declared::Tls,
            _ => Declared::Auto,
        };
        let way = match &listener.stands_for {
            StandsFor::ServicePort(port) => Way::Service { port: *port, protocol, caller },
            StandsFor::Service { host, port } => {
                Way::Fixed { host: host.as_str().into(), port: *port, protocol, caller }
            }
        };
        add(way, listener.address)?;
    }
    Ok(Sockets { entrances, quic: quic(config, keys, listeners) })
}

/// `[::]` stands for both families; a socket takes one.
fn mesh_addresses(mesh: SocketAddr) -> Vec<SocketAddr> {
    if mesh.is_ipv6() && mesh.ip().is_unspecified() {
        return vec![(Ipv4Addr::UNSPECIFIED, mesh.port()).into(), mesh];
    }
    vec![mesh]
}

/// The callers that listeners name, in the order of `Node::callers`.
pub(super) fn callers(config: &Config) -> Vec<&mesh_core::plan::Workload> {
    let mut callers = vec![&config.host.workload];
    for listener in &config.listeners {
        if !callers.contains(&&listener.workload) {
            callers.push(&listener.workload);
        }
    }
    callers
}
