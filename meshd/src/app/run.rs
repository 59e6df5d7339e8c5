//! `meshd run`: everything in order, until a signal; then everything in reverse.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::plan::{Locality, Node, Plan, Workload};
use mesh_proto::look::Grade;
use rustls::pki_types::CertificateDer;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::carrier::Hosts;
use super::follow::{self, Follower};
use super::handover::{Leaving, Predecessor, Started, Successor};
use super::logging::Levels;
use super::looking::Looking;
use super::names::Names;
use super::notary::HostNotary;
use super::orders::Orders;
use super::requests::{Reload, Requests};
use super::state::{FolderLock, HostState};
use super::{NeedsPerson, begin, entrances, logging, measures, members, signer, standing, watchdog};
use crate::admin;
use crate::agent::{Agent, Farewell, Mirror, Offer, Outlets, Published};
use crate::config::{Config, Source};
use crate::drain::{self, Drain};
use crate::identity::{HostKeys, Rotation, RotationHandle, RotationSettings};
use crate::listeners::{Keep, Listeners};
use crate::proxy::Proxy;
use crate::server::{Server, Setup};
use crate::services::Desk;
use crate::telemetry::{Stats, Tap};
use crate::transport::{Credentials, Dialer, SocketOptions, Trust, socket};
use crate::{agent, dns, health, intercept, systemd, task};

use agent_thread::{AgentThread, spawn_agent};
use arrivals::accept_control;
use interception::Interception;
use ports::{Ports, serve_admin};
use stop::Heard;
pub(super) use stop::Stop;

mod agent_thread;
mod arrivals;
mod interception;
mod ports;
mod stop;

/// Serves until SIGTERM or SIGINT, or until a successor takes over. `source` is where the configuration is.
///
/// # Errors
/// When the host is in no mesh, a port is taken, or a file cannot be used: each says which and what to do.
pub fn run(source: Source) -> Result<()> {
    let (predecessor, listeners) = match Predecessor::find() {
        Ok(Some((predecessor, sockets))) => (Some(predecessor), Listeners::inherited(sockets)),
        Ok(None) => (None, Listeners::inherited(socket::adopt(systemd::stored()))),
        Err(error) if error.is::<Started>() => return Ok(()),
        Err(error) => return Err(error.context("taking over")),
    };
    let prepared = prepare(&source, predecessor.as_ref());
    if let (Err(error), Some(predecessor)) = (&prepared, &predecessor) {
        predecessor.failed(error);
    }
    let (config, state, log) = prepared?;
    let text = source.text();
    if let Some(predecessor) = &predecessor {
        predecessor.prepared().context("taking over")?;
    }
    let lock = FolderLock::take(&config.host.data)?;
    // Several small heaps (one for each thread) on huge pages take tens of MB that nobody uses.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    // Raft alone on a thread, so that nobody can delay a heartbeat; everything else of the control plane on another.
    let raft = runtime("meshd-raft")?;
    let work = runtime("meshd-work")?;
    let begun = Begun { source, text, log };
    let served = async { serve(Ground::new(config, state)?, begun, &raft, listeners, predecessor).await };
    match work.block_on(served) {
        Ok(Some(leaving)) => {
            // All that has the data folder open ends with its runtime.
            raft.shutdown_timeout(END_LIMIT);
            work.shutdown_timeout(END_LIMIT);
            drop(lock);
            leaving.finish()
        }
        ended => {
            raft.shutdown_background();
            work.shutdown_background();
            ended.map(drop)
        }
    }
}

/// Reads what this host is, and changes nothing.
fn prepare(source: &Source, predecessor: Option<&Predecessor>) -> Result<(Config, HostState, Levels)> {
    let config = source.load()?;
    let log = logging::start(&config.log)?;
    let data = &config.host.data;
    if let Some(predecessor) = predecessor {
        predecessor.check(data)?;
    }
    let state = HostState::load(data)?.with_context(|| {
        NeedsPerson(format!(
            "this host is in no mesh yet ({} is not there): begin one with `meshd init`, or come into one with `meshd join ADDRESS`",
            data.join("host.json").display()
        ))
    })?;
    Ok((config, state, log))
}

/// `meshd cleanup`
#[derive(clap::Args)]
pub struct Cleanup {
    /// Leave everything where systemd has a restart of meshd under way: what is redirected waits for the next one.
    #[arg(long)]
    unless_restarting: bool,
}

/// Removes what interception put into the kernel.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn cleanup(_config: &Config, when: &Cleanup) -> Result<()> {
    if when.unless_restarting && systemd::is_restarting() {
        return super::print("meshd is restarting: its rules stay for the next one.\n");
    }
    if !intercept::is_present()? {
        return super::print("Nothing to clean up: meshd has no rules in this kernel.\n");
    }
    intercept::remove()?;
    super::print("Removed the table inet meshd and its routes.\n")
}

fn runtime(name: &'static str) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("starting {name}"))
}

/// The mark on every outgoing socket: interception lets it pass.
fn socket_options(config: &Config) -> SocketOptions {
    SocketOptions { mark: Some(config.intercept.mark) }
}

/// How this process began.
struct Begun {
    source: Source,
    /// The file as it was.
    text: String,
    log: Levels,
}

/// What is known before anything listens.
struct Ground {
    config: Config,
    state: HostState,
    began: Instant,
    keys: Arc<HostKeys>,
    credentials: Arc<Credentials>,
    dialer: Dialer,
    stats: Arc<Stats>,
    drain: Drain,
    draining: drain::Draining,
}

impl Ground {
    fn new(config: Config, state: HostState) -> Result<Self> {
        let keys = HostKeys::open(&config.host.data)?.with_context(|| {
            format!("the host's keys are missing from {}: join again", config.host.data.display())
        })?;
        let roots: Vec<CertificateDer<'static>> = state
            .mesh
            .roots
            .iter()
            .map(|root| BASE64.decode(root.as_bytes()).map(Into::into))
            .collect::<Result<_, _>>()
            .context("the mesh's roots in host.json are damaged")?;
        let credentials = Credentials::new(Trust::new(&state.mesh.trust_domain, roots)?);
        let dialer = Dialer::new(credentials.clone(), socket_options(&config));
        let workers = entrances::workers(&config);
        let (drain, draining) = drain::channel();
        Ok(Self {
            config,
            state,
            began: Instant::now(),
            keys: Arc::new(keys),
            credentials,
            dialer,
            stats: Arc::new(Stats::new(workers)),
            drain,
            draining,
        })
    }

    fn own_identity(&self) -> Result<Identity> {
        Ok(Identity::host(&self.state.mesh.trust_domain, &self.state.id.to_string())?)
    }
}

/// Serves; returns what is still to be done where a successor takes over.
async fn serve(
    ground: Ground,
    begun: Begun,
    raft: &Runtime,
    listeners: Listeners,
    predecessor: Option<Predecessor>,
) -> Result<Option<Leaving>> {
    let mut stop_signal = Stop::new()?;
    let socket = admin::bind_socket(&ground.config.listen.socket, &listeners).await?;
    let ports = Ports::bind(&ground.config, &listeners)?;

    let (outlets, published) = outlets();
    let notary = Arc::new(HostNotary::new(ground.state.id, ground.keys.clone()));
    let hosts = Arc::new(Hosts::new(ground.dialer.clone()));
    let (rotation, certificates) = prepare_rotation(&ground, &notary, &hosts, published.clone())?;
    let desk = Desk::start(&ground.config, ground.draining.clone());
    let (problems, doors) = watch::channel(Vec::new());
    let orders = Orders::start(&ground.config, &outlets.plans, published.clone(), &ground.draining);
    let offer = offer(&ground, &desk, &certificates, orders.problems(doors), published.clone());
    let (agent, problem) = Agent::new(agent_settings(&ground), offer, outlets.clone());
    if let Some(problem) = problem {
        tracing::warn!(%problem, "starting without the mirror");
    }

    let upstreams = dns::upstreams(&ground.config);
    let plans = outlets.plans.clone();
    let dns = dns::start(&ground.config, plans, upstreams.clone(), &ground.draining, &listeners)?;
    let names = dns::Lookup::new(&ground.config, upstreams.clone());
    task::spawn("names", Names::run(names.clone(), published.clone()));
    let tap = Arc::new(Tap::default());
    follow::begin(&ground.credentials, &published.borrow());
    let mut proxy = entrances::start_proxy(
        &ground.config,
        &outlets,
        &ground.dialer,
        &ground.stats,
        &ground.keys,
        ground.began,
        &names,
        &listeners,
        &orders.challenges,
        &tap,
    )?;
    if let Some(keeper) = proxy.doors.take() {
        task::spawn("doors", keeper.run(published.clone(), problems));
    }
    let interception = Interception::start(&ground.config, &upstreams, &desk)?;

    let server = start_server(&ground, raft, &notary, &hosts).await?;
    task::spawn("certificates", rotation.run());
    first_certificate(&certificates, &ground.own_identity()?).await;
    let (reloads, mut reload) = mpsc::channel(1);
    let requests = Arc::new(Requests {
        id: ground.state.id,
        name: ground.state.name.clone(),
        plans: outlets.plans.clone(),
        published: published.clone(),
        server: server.clone(),
        hosts,
        desk: desk.clone(),
        locality: ground.config.host.locality.to_string(),
        orders,
        stats: ground.stats.clone(),
        began: ground.began,
        looking: Looking {
            source: begun.source,
            text: begun.text,
            config: ground.config.clone(),
            log: begun.log,
            tap,
            certificates: certificates.standings(),
            listeners: listeners.clone(),
        },
        reloads,
    });
    let sources = measures::Sources {
        plans: outlets.plans.clone(),
        published: published.clone(),
        certificates: certificates.standings(),
        server: server.clone(),
        host: ground.state.id,
    };
    measures::tell(&ground.stats, sources);
    let control = std::mem::replace(&mut proxy.control, mpsc::channel(1).1);
    task::spawn("control", accept_control(control, server.clone(), requests.clone()));
    let follower = Follower {
        credentials: ground.credentials.clone(),
        rotation: certificates,
        host: ground.state.id,
        intercepts_inbound: interception.is_on && ground.config.intercept.inbound,
        inbound_targets: BTreeSet::new(),
    };
    task::spawn("follow the Plan", follower.run(published.clone()));
    serve_admin(&ground, socket, ports, &requests, &outlets);
    let agent = spawn_agent(agent)?;

    first_plan(published.clone(), &mut stop_signal).await;
    tracing::info!(
        host = ground.state.name,
        revision = published.borrow().plan.revision.0,
        took_ms = ground.began.elapsed().as_millis(),
        "meshd is ready"
    );
    if let Some(predecessor) = predecessor {
        tokio::task::spawn_blocking(move || predecessor.serving()).await?.context("taking over")?;
    }
    watchdog::start(proxy.pulses(), raft.handle());
    systemd::ready();
    listeners.keep_in_store();
    task::spawn("first look", first_look(requests.clone()));
    let unclaimed = listeners.clone();
    task::spawn("unclaimed sockets", async move {
        // Doors are opened by the first Plan, and tried again after a few seconds.
        tokio::time::sleep(CLAIMED_WITHIN).await;
        unclaimed.close_unclaimed();
    });

    let running = Running { ground, agent, server, proxy, dns, interception, listeners };
    loop {
        let asked = tokio::select! {
            hangs_up = stop_signal.or_reload() => match hangs_up {
                Heard::Stop => return running.stop().await.map(|()| None),
                Heard::Reload => None,
            },
            asked = reload.recv() => asked,
        };
        match running.successor().await {
            Ok(successor) => return Ok(Some(running.hand_over(successor, asked).await)),
            Err(why) => {
                tracing::error!(error = %format!("{why:#}"), "not reloaded");
                asked.map(|asked| asked.send(Err(format!("{why:#}"))));
            }
        }
    }
}

/// Everything that must be stopped in order.
struct Running {
    ground: Ground,
    agent: AgentThread,
    server: Option<Arc<Server>>,
    proxy: Proxy,
    dns: dns::Dns,
    interception: Interception,
    listeners: Listeners,
}

impl Running {
    /// Finds a successor that is ready to take over.
    async fn successor(&self) -> Result<Successor> {
        let (config, listeners) = (self.ground.config.clone(), self.listeners.clone());
        tokio::task::spawn_blocking(move || Successor::start(&config, &listeners)).await?
    }

    /// Ends the control plane; connections go on until [`Leaving::finish`].
    async fn hand_over(self, successor: Successor, asked: Option<Reload>) -> Leaving {
        tracing::info!(successor = successor.pid(), "handing over");
        // First accept no more on the socket: whoever asks after the answer asks the successor.
        self.ground.drain.start();
        asked.map(|asked| asked.send(Ok(())));
        self.proxy.leave_mesh_port();
        self.interception.leave();
        self.agent.stop(Farewell::Silent).await;
        self.dns.stop().await;
        if let Some(server) = &self.server {
            server.stop().await;
        }
        let stop_drain = self.ground.config.proxy.drain;
        Leaving { successor, proxy: self.proxy, listeners: self.listeners, stop_drain }
    }

    /// Traffic first goes elsewhere, then what is under way ends, then everything else.
    async fn stop(self) -> Result<()> {
        tracing::info!("meshd is stopping");
        systemd::stopping();
        let returns = tokio::task::spawn_blocking(systemd::is_restarting).await.unwrap_or(false);
        let (removed, farewell, keep, limit) = if returns {
            self.interception.leave();
            (Ok(()), Farewell::Silent, Keep::InStore, RESTART_DRAIN)
        } else {
            (self.interception.remove(), Farewell::Goodbye, Keep::Nothing, Duration::MAX)
        };
        self.agent.stop(farewell).await;
        self.listeners.close(keep);
        let cut = self.proxy.drain(self.ground.config.proxy.drain.min(limit)).await;
        if cut > 0 {
            tracing::warn!(cut, "connections were cut when the drain limit was reached");
        }
        self.ground.drain.start();
        self.dns.stop().await;
        if let Some(server) = &self.server {
            server.stop().await;
        }
        remove_file(&self.ground.config.listen.socket);
        removed.context("removing interception; run `meshd cleanup` to try again")
    }
}

fn outlets() -> (Outlets, watch::Receiver<Arc<Published>>) {
    let (publisher, published) = watch::channel(Arc::default());
    let plans = Arc::new(ArcSwap::from_pointee(Plan::default()));
    (Outlets { plans, published: publisher }, published)
}

/// What this host offers, with the health that other hosts are told.
fn offer(
    ground: &Ground,
    desk: &Desk,
    certificates: &RotationHandle,
    doors: watch::Receiver<Vec<String>>,
    published: watch::Receiver<Arc<Published>>,
) -> Offer {
    let locality = ground.config.host.locality.to_string();
    let registration = members::follow(desk.registration(), published, locality);
    let checks = health::start(registration.clone(), socket_options(&ground.config), ground.draining.clone());
    let domain = ground.state.mesh.trust_domain.clone();
    let health = standing::follow(domain, registration.clone(), checks, certificates.standings());
    Offer { registration, health, doors }
}

fn agent_settings(ground: &Ground) -> agent::Settings {
    let address = begin::advertised(&ground.config, None).unwrap_or(ground.state.address);
    agent::Settings {
        host: ground.state.id,
        mesh: ground.state.mesh.id.clone(),
        node: node(&ground.config, &ground.state),
        facts: begin::facts(&ground.config, address),
        servers: ground.state.servers.clone(),
        mirror: Mirror::at(&ground.config.host.data),
        // Its own: a QUIC connection lives on the runtime that made it.
        dialer: Dialer::new(ground.credentials.clone(), socket_options(&ground.config)),
    }
}

/// Returns who this host is; the callers are in the order that [`entrances`] counts on.
fn node(config: &Config, state: &HostState) -> Node {
    let mut callers: Vec<Workload> = vec![config.host.workload.clone()];
    for listener in &config.listeners {
        if !callers.contains(&listener.workload) {
            callers.push(listener.workload.clone());
        }
    }
    Node {
        host: state.id,
        name: state.name.clone(),
        trust_domain: state.mesh.trust_domain.clone(),
        domain: state.mesh.domain.clone(),
        locality: Locality::clone(&config.host.locality),
        labels: config.host.labels.clone(),
        callers,
    }
}

/// Installs the certificates on disk, and makes what renews them.
fn prepare_rotation(
    ground: &Ground,
    notary: &Arc<HostNotary>,
    hosts: &Arc<Hosts>,
    published: watch::Receiver<Arc<Published>>,
) -> Result<(Rotation<signer::Signer>, RotationHandle)> {
    let settings = RotationSettings {
        credentials: ground.credentials.clone(),
        keys: ground.keys.clone(),
        host: ground.own_identity()?,
        folder: begin::certificates(&ground.config.host.data),
    };
    let servers = ground.state.servers.clone();
    let signer = signer::signer(notary.clone(), hosts.clone(), published, servers);
    let (mut rotation, handle) = Rotation::new(settings, signer);
    rotation.restore()?;
    Ok((rotation, handle))
}

/// Waits a moment for the host's own certificate: without it, the first dials of the agent would fail. Where it does
/// not come (no server answers), meshd goes on and the agent tries again.
async fn first_certificate(certificates: &RotationHandle, host: &Identity) {
    let mut standings = certificates.standings();
    let certified =
        standings.wait_for(|now| now.get(host).is_some_and(|standing| standing.validity.is_some()));
    let _ = tokio::time::timeout(Duration::from_secs(2), certified).await;
}

/// Starts the server of a host that may become a voter, and begins the mesh on the first one.
async fn start_server(
    ground: &Ground,
    raft: &Runtime,
    notary: &Arc<HostNotary>,
    hosts: &Arc<Hosts>,
) -> Result<Option<Arc<Server>>> {
    if !ground.state.may_serve {
        return Ok(None);
    }
    let setup = Setup {
        id: ground.state.id,
        folder: ground.config.host.data.join("server"),
        carrier: hosts.clone(),
        notary: notary.clone(),
        analyze: mesh_core::analyze::check,
        raft_runtime: raft.handle().clone(),
        work_runtime: tokio::runtime::Handle::current(),
        voters: mesh_core::autopilot::VOTERS,
    };
    let server = Server::start(setup).await?;
    notary.attach(&server);
    if let Some(bootstrap) = ground.state.bootstrap.clone() {
        server.bootstrap(bootstrap).await.or_else(|error| match error.code {
            // The last run came as far as this, and no further.
            mesh_proto::api::ErrorCode::Conflict => Ok(mesh_proto::command::Revision(0)),
            _ => Err(error),
        })?;
        ground.state.clone().begun().save(&ground.config.host.data)?;
    }
    Ok(Some(server))
}

/// Waits for the first Plan: without one, meshd is not ready.
async fn first_plan(mut published: watch::Receiver<Arc<Published>>, stop: &mut Stop) {
    let plan = published.wait_for(|published| published.plan.revision.0 > 0);
    tokio::select! {
        _ = plan => {}
        () = stop.wait() => stop.again(),
    }
}

/// Looks once at what `meshctl doctor` looks at, and writes what needs somebody into the log.
async fn first_look(requests: Arc<Requests>) {
    tokio::time::sleep(FIRST_LOOK_AFTER).await;
    for check in requests.examine().await.checks.iter().filter(|check| check.grade >= Grade::Warning) {
        let (about, what, why, fix) = (&check.name, &check.what, &check.why, &check.fix);
        tracing::warn!(about, what, why, fix, "something is wrong with this host");
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "not removed");
    }
}

/// After the start, other hosts and their servers are found by then.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(5);
/// After how long a socket of a predecessor that nobody asked for is closed.
const CLAIMED_WITHIN: Duration = Duration::from_secs(10);
/// How long the control plane's tasks may take to end where a successor waits for its files.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long connections may finish where systemd restarts meshd: new ones wait for as long.
const RESTART_DRAIN: Duration = Duration::from_secs(5);
