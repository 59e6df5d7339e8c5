//! `meshd run`: everything in order, until a signal; then everything in reverse.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_proto::look::Grade;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::follow::Follower;
use super::handover::{Leaving, Predecessor, Started};
use super::logging::Levels;
use super::looking::Looking;
use super::requests::Requests;
use super::state::{FolderLock, HostState};
use super::{NeedsPerson, logging, measures, watchdog};
use crate::agent::Published;
use crate::config::{Config, Source};
use crate::identity::RotationHandle;
use crate::listeners::Listeners;
use crate::transport::socket;
use crate::{admin, allocator, image, intercept, systemd, task};

use agent_thread::spawn_agent;
use arrivals::accept_control;
use control::{Control, first_certificate};
use ground::{Begun, Ground};
use ports::{Ports, serve_admin};
use running::Running;
pub(super) use stop::Stop;
use traffic::Traffic;

mod agent_thread;
mod arrivals;
mod control;
mod ground;
mod interception;
mod ports;
mod running;
mod stop;
mod traffic;

/// After the start, other hosts and their servers are found by then.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(5);
/// After how long a socket of a predecessor that nobody asked for is closed.
const CLAIMED_WITHIN: Duration = Duration::from_secs(10);
/// After it is ready, what the start has thrown away is given back by then.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// Takes a millisecond or two.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);
/// How long the control plane's tasks may take to end where a successor waits for its files.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT, or until a successor takes over. `source` is where the configuration is.
///
/// # Errors
/// When the host is in no mesh, a port is taken, or a file cannot be used: each says which and what to do.
pub fn run(source: Source) -> Result<()> {
    allocator::give_back_at_once(true);
    let (predecessor, listeners) = match Predecessor::find() {
        Ok(Some((predecessor, sockets))) => (Some(predecessor), Listeners::inherited(sockets)),
        Ok(None) => (None, Listeners::inherited(socket::adopt(systemd::stored()))),
        Err(error) if error.is::<Started>() => return Ok(()),
        Err(error) => return Err(error.context("taking over")),
    };
    let prepared = prepare(&source, predecessor.as_ref());
    match (&prepared, &predecessor) {
        (Ok(_), Some(predecessor)) => predecessor.prepared().context("taking over")?,
        (Err(error), Some(predecessor)) => {
            predecessor.failed(error);
            // It goes on, and so do its rules.
            return prepared.map(drop);
        }
        (_, None) => {}
    }
    let given = listeners.tcp_ports();
    let ended = prepared.and_then(|prepared| begin(source, prepared, listeners.clone(), predecessor));
    if ended.is_err() {
        leave_as_if_stopped(&given.into_iter().chain(listeners.tcp_ports()).collect());
    }
    ended
}

/// Takes the predecessor's place, if there is one, and serves.
fn begin(
    source: Source,
    (config, state, log): (Config, HostState, Levels),
    listeners: Listeners,
    predecessor: Option<Predecessor>,
) -> Result<()> {
    let text = source.text();
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

/// After a start that failed: rules of an earlier run, left for this one, would redirect traffic to nobody.
fn leave_as_if_stopped(own: &BTreeSet<u16>) {
    match intercept::remove_left(own) {
        Ok(true) => drop(super::print("Removed the table inet meshd of an earlier run and its routes.\n")),
        Ok(false) => {}
        // Most of all: no nft, or no right to use it. Then there is hardly anything, and why meshd ended matters more.
        Err(error) => tracing::debug!(%error, "interception of an earlier run was not looked for"),
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

/// Removes what interception put into the kernel. Needs no `meshd.toml`: what is meshd's carries its name.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn cleanup(when: &Cleanup) -> Result<()> {
    if when.unless_restarting && systemd::is_restarting() {
        return super::print("meshd is restarting: its rules stay for the next one.\n");
    }
    if !intercept::is_present()? {
        return super::print("Nothing to clean up: meshd has no rules in this kernel.\n");
    }
    intercept::remove()?;
    super::print("Removed the table inet meshd and its routes.\n")
}

/// A thread that waited for the disk ends soon after: what it freed last stays with it so long.
const SPARE_THREADS_STAY: Duration = Duration::from_secs(1);

fn runtime(name: &'static str) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .thread_keep_alive(SPARE_THREADS_STAY)
        .enable_all()
        .build()
        .with_context(|| format!("starting {name}"))
}

/// Serves; returns what is still to be done where a successor takes over.
async fn serve(
    ground: Ground,
    begun: Begun,
    raft: &Runtime,
    listeners: Listeners,
    predecessor: Option<Predecessor>,
) -> Result<Option<Leaving>> {
    let mut stop = Stop::new()?;
    let socket = admin::bind_socket(&ground.config.listen.socket, &listeners).await?;
    let ports = Ports::bind(&ground.config, &listeners)?;
    let control = Control::new(&ground)?;
    let mut traffic = Traffic::start(&ground, &control, &listeners)?;
    let server = control.start_server(&ground, raft).await?;

    let Control { outlets, published, hosts, rotation, certificates, desk, orders, agent, .. } = control;
    task::spawn("certificates", rotation.run());
    first_certificate(&certificates, &ground.own_identity()?).await;
    let sources = measures::Sources {
        plans: outlets.plans.clone(),
        published: published.clone(),
        problems: outlets.problems.clone(),
        certificates: certificates.standings(),
        server: server.clone(),
        host: ground.state.id,
    };
    measures::tell(&ground.stats, sources);
    let (reloads, reload) = mpsc::channel(1);
    let requests = Arc::new(Requests {
        id: ground.state.id,
        name: ground.state.name.clone(),
        plans: outlets.plans.clone(),
        published: published.clone(),
        server: server.clone(),
        hosts,
        desk,
        locality: ground.config.host.locality.to_string(),
        orders,
        stats: ground.stats.clone(),
        began: ground.began,
        looking: looking(&ground, begun, &traffic, &certificates, &listeners),
        reloads,
    });
    let incoming = std::mem::replace(&mut traffic.proxy.control, mpsc::channel(1).1);
    task::spawn("control", accept_control(incoming, server.clone(), requests.clone()));
    let follower = Follower {
        credentials: ground.credentials.clone(),
        rotation: certificates,
        server: server.clone(),
        host: ground.state.id,
        intercepts_inbound: traffic.interception.is_on && ground.config.intercept.inbound,
        inbound_targets: BTreeSet::new(),
    };
    task::spawn("follow the Plan", follower.run(published.clone()));
    serve_admin(&ground, socket, ports, &requests, &outlets);
    let agent = spawn_agent(agent)?;

    first_plan(published.clone(), &mut stop).await;
    let revision = published.borrow().plan.revision.0;
    let took_ms = ground.began.elapsed().as_millis();
    tracing::info!(host = ground.state.name, revision, took_ms, "meshd is ready");
    if let Some(predecessor) = predecessor {
        tokio::task::spawn_blocking(move || predecessor.serving()).await?.context("taking over")?;
    }
    task::spawn("memory", give_memory_back());
    watchdog::start(traffic.proxy.pulses(), raft.handle());
    systemd::ready();
    after_the_start(&listeners, requests);
    Running { ground, agent, server, traffic, listeners }.until_told(stop, reload).await
}

/// What people look at of this host.
fn looking(
    ground: &Ground,
    begun: Begun,
    traffic: &Traffic,
    certificates: &RotationHandle,
    listeners: &Listeners,
) -> Looking {
    Looking {
        source: begun.source,
        text: begun.text,
        config: ground.config.clone(),
        log: begun.log,
        tap: traffic.tap.clone(),
        certificates: certificates.standings(),
        listeners: listeners.clone(),
    }
}

/// What the start throws away goes back at once; later, what a change or a question needed for a moment goes back by and by:
/// the allocator itself does it only when it is used again.
async fn give_memory_back() {
    tokio::time::sleep(SETTLED_AFTER).await;
    allocator::give_back_at_once(false);
    if let Err(error) = image::let_go() {
        tracing::debug!(%error, "the code that only the start needed stays mapped");
    }
    loop {
        tokio::time::sleep(GIVE_BACK_EVERY).await;
        allocator::give_back();
    }
}

/// Waits for the first Plan: without one, meshd is not ready.
async fn first_plan(mut published: watch::Receiver<Arc<Published>>, stop: &mut Stop) {
    let plan = published.wait_for(|published| published.plan.revision.0 > 0);
    tokio::select! {
        _ = plan => {}
        () = stop.wait() => stop.again(),
    }
}

/// Keeps the sockets for the next meshd, and looks at what only a host that serves can see.
fn after_the_start(listeners: &Listeners, requests: Arc<Requests>) {
    listeners.keep_in_store();
    task::spawn("first look", first_look(requests));
    let unclaimed = listeners.clone();
    task::spawn("unclaimed sockets", async move {
        // Doors are opened by the first Plan, and tried again after a few seconds.
        tokio::time::sleep(CLAIMED_WITHIN).await;
        unclaimed.close_unclaimed();
    });
}

/// Looks once at what `meshctl doctor` looks at, and writes what needs somebody into the log.
async fn first_look(requests: Arc<Requests>) {
    tokio::time::sleep(FIRST_LOOK_AFTER).await;
    for check in requests.examine().await.checks.iter().filter(|check| check.grade >= Grade::Warning) {
        let (about, what, why, fix) = (&check.name, &check.what, &check.why, &check.fix);
        tracing::warn!(about, what, why, fix, "something is wrong with this host");
    }
}
