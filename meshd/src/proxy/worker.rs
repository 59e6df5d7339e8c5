//! One core's share of the data path: a thread, its runtime, listeners, pools and clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use foldhash::HashMap;
use http::HeaderValue;
use mesh_core::balance;
use mesh_core::endpoint::Moment;
use mesh_core::identity::Identity;
use mesh_core::plan::{Cluster, Doors, Endpoint, Outbound, Party, Plan, Telling, Workload};
use mesh_core::resilience::outlier::{self, Answer};
use rand_core::RngCore;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};

use super::accept::Room;
use super::budget::{Descriptors, Intake, Memory};
use super::doze::Leftovers;
use super::passthrough::Passthrough;
use super::traced::Tracer;
use super::upstream::Pools;
use super::watch::{Expiry, Signal, Watch};
use super::{Settings, Shared, Way, accept, doors, inbound};
use crate::drain::Draining;
use crate::telemetry::{Counters, Lines, Record, Shard};
use crate::transport::{Accepted, Dialer, Originator, QuicOptions, Terminator, Transport, socket};
use crate::{allocator, task};

/// What a worker begins with.
pub(super) struct Start {
    pub(super) index: usize,
    pub(super) shared: Shared,
    pub(super) listeners: Vec<(Way, TcpListener, Arc<Room>)>,
    pub(super) quic: Vec<(std::net::UdpSocket, QuicOptions)>,
    pub(super) own: Arc<[SocketAddr]>,
    pub(super) control: mpsc::Sender<Accepted>,
    pub(super) draining: Draining,
    pub(super) leaving_mesh: Draining,
    pub(super) leaving_quic: Draining,
    pub(super) pulse: Arc<AtomicU64>,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) doors: mpsc::Receiver<doors::Told>,
    pub(super) quic_room: Arc<Room>,
    pub(super) memory: Arc<Memory>,
    pub(super) descriptors: Arc<Descriptors>,
}

/// What everything on one worker's thread uses.
pub(crate) struct Worker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) dialer: Dialer,
    pub(crate) originator: Originator,
    pub(crate) pools: Pools,
    pub(crate) passthrough: Passthrough,
    pub(crate) terminator: Terminator,
    pub(crate) shard: Arc<Shard>,
    /// Lines of access logs.
    pub(crate) lines: Option<Lines>,
    pub(crate) tracer: Tracer,
    pub(crate) draining: Draining,
    /// Begins earlier than [`Self::draining`] where a successor takes over.
    pub(super) leaving_mesh: Draining,
    pub(crate) control: mpsc::Sender<Accepted>,
    /// What was taken in, and whether there is memory for more.
    pub(crate) intake: Arc<Intake>,
    pub(crate) descriptors: Arc<Descriptors>,
    /// Who hands requests to applications here.
    pub(crate) inbound: Rc<Caller>,
    /// What dozing connections have given back.
    pub(super) leftovers: Leftovers,
    /// Mirrored requests under way.
    pub(crate) mirrors: Cell<usize>,
    /// Seconds, moved by [`keep_house`].
    pub(crate) tick: Arc<AtomicU64>,
    /// The name of this host, for logs and traces.
    pub(crate) host: Arc<str>,
    started: Instant,
    /// One moment by both clocks, read once a second.
    clocks: Cell<(Instant, SystemTime)>,
    own: Arc<[SocketAddr]>,
    mesh_port: Option<SocketAddr>,
    /// Addresses of this host, as connections to its doors showed them.
    addresses: RefCell<BTreeSet<IpAddr>>,
    plans: RefCell<Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>>,
    view: RefCell<Rc<View>>,
    watches: RefCell<Vec<Weak<Watch>>>,
}

/// A Plan with what this worker has made of it.
pub(crate) struct View {
    pub(crate) plan: Arc<Plan>,
    /// Tells it apart from the others of this worker.
    pub(crate) serial: u64,
    callers: Vec<Rc<Caller>>,
    /// Who calls for the visitors of doors, by seat.
    seats: HashMap<usize, Rc<Caller>>,
}

/// Who calls, ready for use.
pub(crate) struct Caller {
    /// Tells callers of different identity apart.
    pub(crate) id: u32,
    /// `namespace/account`.
    pub(crate) name: Arc<str>,
    /// Who it is, as telemetry names it.
    pub(crate) party: Party,
    /// The same for the other end of a hop; `None` where it cannot be told.
    pub(crate) told: Option<HeaderValue>,
    /// What is told of its calls.
    pub(crate) telling: Arc<Telling>,
    /// What its hops prove; `None` where its names make no identity.
    pub(crate) identity: Option<Arc<Identity>>,
}

impl View {
    fn new(plan: Arc<Plan>, before: &[Rc<Caller>]) -> Self {
        thread_local! { static NEXT: Cell<u64> = const { Cell::new(1) }; }
        let mut callers: Vec<Rc<Caller>> = Vec::with_capacity(plan.outbounds.len());
        for outbound in &plan.outbounds {
            let name = format!("{}/{}", outbound.caller.namespace, outbound.caller.account);
            let party = party(&plan, outbound);
            let mut named = callers.iter().chain(before).filter(|caller| *caller.name == *name);
            let is_known = |caller: &&Rc<Caller>| caller.party == party && caller.telling == outbound.telling;
            let known = named.clone().find(is_known).cloned();
            let caller = known.unwrap_or_else(|| {
                Rc::new(match named.next() {
                    // Of the same identity: pools are shared.
                    Some(same) => same.known_as(party, &outbound.telling),
                    None => Caller::new(&plan, outbound, &name).known_as(party, &outbound.telling),
                })
            });
            callers.push(caller);
        }
        let mut seats = HashMap::default();
        for (seat, outbound) in &plan.doors.seats {
            // A seat's caller is one of the host's: pools are shared with it.
            let same = plan.outbounds.iter().position(|other| other.caller == outbound.caller);
            let caller = same.and_then(|at| callers.get(at)).or(callers.first());
            seats.extend(caller.map(|caller| (*seat, caller.clone())));
        }
        let serial = NEXT.replace(NEXT.get() + 1);
        Self { plan, serial, callers, seats }
    }

    /// Returns what a caller may reach and who it is; `None` when the Plan does not know it (before the first Plan).
    ///
    /// `caller` is a position in the Plan's outbounds, or a seat of its doors.
    pub(crate) fn outbound(&self, caller: usize) -> Option<(&Outbound, &Rc<Caller>)> {
        if Doors::is_seat(caller) {
            return Some((self.plan.doors.seats.get(&caller)?, self.seats.get(&caller)?));
        }
        Some((self.plan.outbounds.get(caller)?, self.callers.get(caller)?))
    }
}

/// Names a caller as telemetry does.
fn party(plan: &Plan, outbound: &Outbound) -> Party {
    let Workload { namespace, account, labels, .. } = &outbound.caller;
    Party::new(&plan.node.trust_domain, namespace, account, labels)
}

impl Caller {
    fn new(plan: &Plan, outbound: &Outbound, name: &str) -> Self {
        thread_local! { static NEXT: Cell<u32> = const { Cell::new(1) }; }
        let Outbound { caller, .. } = outbound;
        let identity = Identity::workload(&plan.node.trust_domain, &caller.namespace, &caller.account);
        let id = NEXT.replace(NEXT.get() + 1);
        Self { id, name: name.into(), identity: identity.ok().map(Arc::new), ..Self::inbound() }
    }

    /// The same identity under what telemetry names it, and what is told of it.
    fn known_as(&self, party: Party, telling: &Arc<Telling>) -> Self {
        let told = HeaderValue::from_str(party.text()).ok();
        let (name, identity) = (self.name.clone(), self.identity.clone());
        Self { id: self.id, name, party, told, telling: telling.clone(), identity }
    }

    /// Who hands requests to instances on this host: pools of the way in are nobody's in particular.
    fn inbound() -> Self {
        Self {
            id: 0,
            name: "-/inbound".into(),
            party: Party::default(),
            told: None,
            telling: Arc::default(),
            identity: None,
        }
    }
}

/// Starts a worker's thread.
pub(super) fn spawn(start: Start) -> io::Result<JoinHandle<()>> {
    // Made on its own thread, where it must stay. Told here whether that worked.
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let thread =
        std::thread::Builder::new().name(format!("meshd-worker-{}", start.index)).spawn(move || {
            let runtime =
                match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(tell.send(Err(error))),
                };
            let _ = tell.send(Ok(()));
            runtime.block_on(run(start));
            runtime.shutdown_background();
        })?;
    told.recv().unwrap_or(Ok(()))?;
    Ok(thread)
}

async fn run(start: Start) {
    let Start { shared, listeners, quic, own, control, draining, mut stopped, doors, index, .. } = start;
    let (intake, descriptors) = (Arc::new(Intake::new(start.memory)), start.descriptors);
    let (leaving_mesh, pulse) = (start.leaving_mesh, start.pulse);
    let mut plans = Cache::new(shared.plans);
    let view = Rc::new(View::new(plans.load().clone(), &[]));
    // A QUIC connection lives on the runtime that made it; TLS sessions may be shared.
    let is_apart = shared.settings.transport == Transport::Quic;
    let dialer = if is_apart { shared.dialer.apart() } else { shared.dialer };
    let worker = Rc::new(Worker {
        originator: Originator::new(shared.settings.secrets.clone(), dialer.credentials().clone()),
        terminator: Terminator::new(shared.settings.secrets.clone(), dialer.credentials().clone()),
        settings: shared.settings,
        dialer,
        pools: Pools::default(),
        passthrough: Passthrough::default(),
        shard: shared.stats.shard(index),
        lines: shared.access_log.map(Lines::new),
        tracer: Tracer::default(),
        draining,
        leaving_mesh,
        control,
        intake,
        descriptors,
        inbound: Rc::new(Caller::inbound()),
        leftovers: Leftovers::default(),
        mirrors: Cell::new(0),
        tick: pulse,
        host: host_name(),
        started: shared.started,
        clocks: Cell::new((Instant::now(), SystemTime::now())),
        mesh_port: mesh_port(&listeners),
        own,
        addresses: RefCell::default(),
        plans: RefCell::new(plans),
        view: RefCell::new(view),
        watches: RefCell::default(),
    });
    for (way, socket, room) in listeners {
        accept::start(&worker, way, socket, room);
    }
    for (socket, options) in quic {
        let (room, leaving) = (start.quic_room.clone(), start.leaving_quic.clone());
        let accept = inbound::accept_quic(worker.clone(), socket, options, room, leaving);
        task::spawn_local("mesh accept over QUIC", accept);
    }
    drop(start.leaving_quic);
    task::spawn_local("doors", doors::serve(worker.clone(), doors));
    // Everything else holds its own listener of the drain; the worker itself must not keep it from ending.
    let (house, dialer) = (Rc::downgrade(&worker), worker.dialer.clone());
    task::spawn_local("worker leaving", leave(house.clone(), worker.draining.clone()));
    drop(worker);
    task::spawn_local("worker house", keep_house(house));
    let _ = stopped.wait_for(|stopped| *stopped).await;
    if is_apart {
        dialer.close().await;
    }
}

/// Source: Envoy's `%HOSTNAME%`.
fn host_name() -> Arc<str> {
    rustix::system::uname().nodename().to_string_lossy().as_ref().into()
}

fn mesh_port(listeners: &[(Way, TcpListener, Arc<Room>)]) -> Option<SocketAddr> {
    let (_, socket, _) = listeners.iter().find(|(way, ..)| *way == Way::Mesh)?;
    let address = socket.local_addr().ok()?;
    let here = match address {
        _ if !address.ip().is_unspecified() => address.ip(),
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Some(SocketAddr::new(here, address.port()))
}

impl Worker {
    /// Returns the Plan in force. One relaxed load when it is still the same.
    pub(crate) fn view(&self) -> Rc<View> {
        let mut plans = self.plans.borrow_mut();
        let plan = plans.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(plan, &view.plan) {
            *view = Rc::new(View::new(plan.clone(), &view.callers));
        }
        view.clone()
    }

    /// Has the lines written that rules ask for, and this host's own.
    pub(crate) fn log(&self, telling: Option<&Arc<Telling>>, record: Box<Record>) {
        let Some(lines) = &self.lines else { return };
        if lines.own().is_some() || telling.is_some_and(|telling| !telling.logs.is_empty()) {
            lines.tell(telling, record);
        } else {
            lines.give_back(record);
        }
    }

    /// Returns when that was by the clock on the wall, as it was set within the last second: to read both clocks for
    /// each request would cost more.
    pub(crate) fn time_of(&self, at: Instant) -> SystemTime {
        let (then, time) = self.clocks.get();
        match at.checked_duration_since(then) {
            Some(since) => time + since,
            None => time - then.duration_since(at),
        }
    }

    /// Returns the time as `core` counts it.
    pub(crate) fn now(&self) -> Moment {
        Moment(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Tells outlier detection what became of an attempt; an ejection is logged and counted.
    pub(crate) fn record(&self, cluster: &Cluster, endpoint: &Endpoint, answer: Answer) {
        let now = self.now();
        let Some(ejection) = outlier::record(cluster, endpoint, answer, now) else { return };
        Counters::add(&self.shard.counters.ejections_total);
        let seconds = ejection.until.0.saturating_sub(now.0).div_ceil(1_000);
        tracing::info!(
            cluster = %cluster.name, endpoint = %endpoint.id, cause = %ejection.cause, seconds, times = ejection.count,
            "endpoint ejected"
        );
    }

    /// Whether an address is one of our own listeners: connecting there would be a circle.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        self.own.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == address.ip() || (own.ip().is_unspecified() && address.ip().is_loopback()))
        })
    }

    /// Whether an address is a door of this host.
    pub(crate) fn is_door(&self, address: SocketAddr) -> bool {
        let address = socket::unmapped(address);
        let view = self.view();
        let Some(door) = view.plan.doors.at(address) else { return false };
        let is_exact = view.plan.doors.open.get(&address).is_some_and(|exact| Arc::ptr_eq(exact, door));
        is_exact || address.ip().is_loopback() || self.addresses.borrow().contains(&address.ip())
    }

    /// Notes an address of this host.
    pub(crate) fn learn(&self, own: IpAddr) {
        let own = own.to_canonical();
        if !self.addresses.borrow().contains(&own) {
            self.addresses.borrow_mut().insert(own);
        }
    }

    /// Returns where this host's own mesh port can be reached from here.
    pub(crate) fn mesh_port(&self) -> Option<SocketAddr> {
        self.mesh_port
    }

    /// Watches a connection for what takes too long.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        let watch = self.unwatched();
        self.watch_over(&watch);
        watch
    }

    /// Notes when a connection was opened; nothing cuts it yet.
    pub(crate) fn unwatched(&self) -> Arc<Watch> {
        Arc::new(Watch::new(self.tick.clone(), self.intake.clone()))
    }

    /// Watches a connection from now on, by what was noted.
    pub(crate) fn watch_over(&self, watch: &Arc<Watch>) {
        if self.draining.has_started() {
            watch.tell(Signal::Leave);
        }
        self.watches.borrow_mut().push(Arc::downgrade(watch));
    }

    fn sweep(&self, now: Instant) {
        let (head, idle) = (self.settings.head_timeout, self.settings.idle_timeout);
        self.watches.borrow_mut().retain(|watch| {
            let Some(watch) = watch.upgrade() else { return false };
            let expiry = watch.expire(head, idle);
            if matches!(expiry, Expiry::Late | Expiry::Cut) {
                Counters::add(&self.shard.counters.expired_connections_total);
            }
            !matches!(expiry, Expiry::Cut | Expiry::Ended)
        });
        self.pools.sweep(now);
        self.pools.tell(&self.shard.counters);
        if self.tick.load(Ordering::Relaxed).is_multiple_of(60) {
            self.shard.minute();
        }
        self.passthrough.sweep();
        let view = self.view();
        let moment = self.now();
        for cluster in view.plan.clusters.values() {
            let addressed = cluster.addressed();
            let cluster = addressed.as_ref().unwrap_or(cluster);
            outlier::sweep(cluster, moment);
            // Under load it is a pick that lets them return.
            let returned =
                cluster.outlier.as_ref().map_or(0, |_| cluster.state.returned.swap(0, Ordering::Relaxed));
            if returned > 0 {
                tracing::info!(cluster = %cluster.name, endpoints = returned, "ejected endpoints may be used again");
            }
            balance::note_arrivals(cluster, moment);
        }
    }
}

/// Tells every connection when draining begins.
async fn leave(worker: std::rc::Weak<Worker>, mut draining: Draining) {
    draining.started().await;
    drop(draining);
    if let Some(worker) = worker.upgrade() {
        for watch in worker.watches.borrow().iter().filter_map(Weak::upgrade) {
            watch.tell(Signal::Leave);
        }
        worker.tracer.flush(&worker);
    }
}

/// Once a second: cuts what takes too long, closes what nobody uses, lets ejected endpoints return, hands lines over.
async fn keep_house(worker: std::rc::Weak<Worker>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let now = second.tick().await;
        let Some(worker) = worker.upgrade() else { return };
        worker.tick.fetch_add(1, Ordering::Relaxed);
        worker.clocks.set((Instant::now(), SystemTime::now()));
        worker.intake.look();
        if worker.intake.is_short() {
            allocator::give_back();
            worker.intake.look();
        } else if worker.leftovers.are_due() {
            allocator::give_back();
        }
        worker.sweep(now.into_std());
        worker.tracer.flush(&worker);
        if let Some(lines) = &worker.lines {
            lines.flush();
        }
    }
}

/// Chance, from the generator of this thread.
pub(crate) struct Chance;

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        fastrand::u32(..)
    }

    fn next_u64(&mut self) -> u64 {
        fastrand::u64(..)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        fastrand::fill(bytes);
    }
}
