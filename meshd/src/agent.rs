//! Mirrors the World, compiles it, publishes Plans, and tells the mesh about this host.
//!
//! The agent is a host's only link to the control plane: one stream to one server, any server. It starts from the
//! mirror on disk, so the data plane serves before the network answers and goes on when it stops answering. It
//! decides nothing about traffic (`mesh_core::compile` does) and nothing about agreement (the servers do).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_core::compile::compile;
use mesh_core::plan::{Node, Plan};
use mesh_core::world::{NotUnderstood, World};
use mesh_proto::command::{HostFacts, HostId, Revision};
use mesh_proto::registration::{Health, Registration};
use mesh_proto::watch::Change;
use tokio::sync::{oneshot, watch};

use crate::allocator;
use crate::transport::Dialer;

mod heard;
mod mirror;
mod offer;
mod servers;
mod session;

use heard::Whole;
pub use mirror::{FORMAT as MIRROR_FORMAT, Loaded, Mirror, MirrorError};
pub use offer::effective_health;
use servers::Servers;
use session::{Ended, Session};

/// How an agent leaves its servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// This host stops: its services are withdrawn.
    Goodbye,
    /// It comes back in a moment, or a successor speaks for it: nothing is said.
    Silent,
}

/// Who this host is and whom it may ask.
#[derive(Clone)]
pub struct Settings {
    /// Its id.
    pub host: HostId,
    /// The mesh it belongs to.
    pub mesh: String,
    /// Who calls from here, without the accounts of local instances (those follow the World).
    pub node: Node,
    /// What it says of itself.
    pub facts: HostFacts,
    /// Servers to begin with.
    pub servers: BTreeMap<HostId, SocketAddr>,
    /// Where the mirror is kept on disk.
    pub mirror: Mirror,
    /// How it reaches other hosts.
    pub dialer: Dialer,
}

/// What the host offers, as it changes.
pub struct Offer {
    /// Everything registered here, without the word of the health checks.
    pub registration: watch::Receiver<Registration>,
    /// The last word of each health check, by instance id.
    pub health: watch::Receiver<BTreeMap<String, Health>>,
    /// What of the Plan's doors cannot be opened or shown.
    pub doors: watch::Receiver<Vec<String>>,
}

/// What the agent tells the rest of meshd.
#[derive(Clone)]
pub struct Outlets {
    /// The Plan that workers follow.
    pub plans: Arc<ArcSwap<Plan>>,
    /// Each Plan with the World it was made of, for what follows them (certificates, interception, health checks).
    pub published: watch::Sender<Arc<Published>>,
    /// How many problems the mesh is told of: of the Plan, of doors, of what is offered.
    pub problems: Arc<AtomicU64>,
}

/// A Plan and the World it was made of.
#[derive(Debug, Default)]
pub struct Published {
    /// The mirror.
    pub world: Arc<World>,
    /// The Plan.
    pub plan: Arc<Plan>,
    /// Servers known now.
    pub servers: BTreeMap<HostId, SocketAddr>,
}

/// Follows the mesh until told to stop.
pub struct Agent {
    settings: Settings,
    offer: Offer,
    outlets: Outlets,
    servers: Servers,
    world: Arc<World>,
    plan: Arc<Plan>,
    /// Whether deltas on `world` lead to all that servers say.
    is_whole: bool,
    /// What newer servers said that is not understood here.
    unread: NotUnderstood,
    connected: bool,
    saved: Revision,
    /// The mirror is not written before this.
    save_at: Instant,
    problems: Vec<String>,
}

impl Agent {
    /// Makes the agent and publishes a Plan from the mirror on disk, if there is one.
    ///
    /// # Errors
    /// When the mirror is there and damaged: it is named, put aside, and the agent begins without it.
    pub fn new(settings: Settings, offer: Offer, outlets: Outlets) -> (Self, Option<MirrorError>) {
        let (loaded, problem) = match settings.mirror.load(&settings.mesh) {
            Ok(loaded) => (loaded, None),
            Err(error) => (None, Some(error)),
        };
        let (world, is_whole, unread) = match loaded {
            Some(Loaded { world, is_whole, unread }) => (world, is_whole, unread),
            None => (World::default(), false, NotUnderstood::default()),
        };
        let servers = Servers::new(settings.host, settings.servers.clone());
        let saved = world.revision;
        let mut agent = Self {
            settings,
            offer,
            outlets,
            servers,
            world: Arc::new(world),
            plan: Arc::default(),
            is_whole,
            unread,
            connected: false,
            saved,
            save_at: Instant::now(),
            problems: Vec::new(),
        };
        if agent.world.revision > Revision(0) {
            agent.learn_servers_from_world();
            agent.publish();
        }
        (agent, problem)
    }

    /// Follows servers, one after the other, until `stop` comes; then says goodbye, unless this host comes back at once.
    pub async fn run(mut self, mut stop: oneshot::Receiver<Farewell>) {
        let mut cut_since = Some(Instant::now());
        loop {
            let (id, address) = self.servers.next();
            let opened = tokio::select! {
                opened = Session::open(&self.settings, id, address, self.following()) => opened,
                _ = &mut stop => break,
            };
            let ended = match opened {
                Ok(session) => {
                    self.connected = true;
                    if let Some(since) = cut_since.take() {
                        tracing::info!(server = %address, after_ms = since.elapsed().as_millis(), "following the mesh");
                    }
                    session.follow(&mut self, &mut stop).await
                }
                Err(why) => Ended::Lost(why),
            };
            match ended {
                Ended::Stopped => break,
                Ended::Lost(why) if self.connected => {
                    self.connected = false;
                    cut_since = Some(Instant::now());
                    tracing::warn!(server = %address, why, "cut off from the mesh: the last Plan goes on");
                }
                Ended::Lost(why) => tracing::debug!(server = %address, why, "no server yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.servers.pause()) => {}
                _ = &mut stop => break,
            }
        }
        self.save();
    }

    /// Returns the revision to resume from.
    fn following(&self) -> Option<Revision> {
        (self.is_whole && self.world.revision > Revision(0)).then_some(self.world.revision)
    }

    /// Starts anew from a whole World.
    fn replace_world(&mut self, whole: Whole) {
        self.world = Arc::new(whole.world);
        self.unread = whole.unread;
        self.is_whole = true;
    }

    /// Takes a delta in. Returns whether it fits what is here; if not, nothing was changed.
    fn absorb(&mut self, from: Revision, to: Revision, changes: &[Change]) -> bool {
        if from != self.world.revision || to < from {
            return false;
        }
        Arc::make_mut(&mut self.world).absorb_all(to, changes);
        true
    }

    /// Compiles what is known now and swaps it in.
    fn publish(&mut self) {
        let world = self.world_with_own_offer();
        let node = Arc::new(offer::node_with_accounts(&self.settings, &world));
        let began = Instant::now();
        let plan = Arc::new(compile(&world, &node, Some(&self.plan)));
        self.plan = plan.clone();
        self.outlets.plans.store(plan.clone());
        let took = began.elapsed();
        if took > LONG_COMPILE {
            // What it needed meanwhile would stay with this thread.
            allocator::give_back();
        }
        let servers = self.servers.known().clone();
        self.note_problems(&world);
        self.outlets.published.send_replace(Arc::new(Published { world, plan, servers }));
        tracing::debug!(revision = self.world.revision.0, compile_us = took.as_micros(), "plan published");
    }

    /// Returns the World with what this host knows better itself: the health of its own instances, and, while no
    /// server answers, all that it offers.
    fn world_with_own_offer(&mut self) -> Arc<World> {
        let host = self.settings.host;
        let agreed = self.world.registrations.get(&host);
        let base = if self.connected || agreed.is_some() && !self.offer_changed_since(agreed) {
            agreed.map(|registration| Registration::clone(registration))
        } else {
            Some(self.offer.registration.borrow().clone())
        };
        let Some(mut own) = base else { return self.world.clone() };
        offer::set_health(&mut own, &self.offer.health.borrow());
        if agreed.is_some_and(|agreed| **agreed == own) {
            return self.world.clone();
        }
        let mut world = World::clone(&self.world);
        world.registrations.insert(host, Arc::new(own));
        Arc::new(world)
    }

    fn offer_changed_since(&self, agreed: Option<&Arc<Registration>>) -> bool {
        let offered = self.offer.registration.borrow();
        agreed.is_none_or(|agreed| agreed.instances.keys().ne(offered.instances.keys()))
    }

    /// What is offered now, with the word of the health checks.
    fn offered(&self) -> Registration {
        let mut registration = self.offer.registration.borrow().clone();
        offer::set_health(&mut registration, &self.offer.health.borrow());
        registration
    }

    /// The health of everything offered. The words alone would not do: one that is taken back leaves no trace in them.
    fn health(&self) -> BTreeMap<String, Health> {
        let offered = self.offered();
        offered.instances.into_iter().map(|(id, instance)| (id, instance.health)).collect()
    }

    /// Keeps what of the rules cannot be carried out here, and what of the offer the mesh did not take; logged once.
    fn note_problems(&mut self, world: &World) {
        let agreed = self.world.registrations.get(&self.settings.host);
        let offered = self.offer.registration.borrow();
        let missing = offered
            .instances
            .iter()
            .filter(|(id, _)| agreed.is_none_or(|agreed| !agreed.instances.contains_key(*id)));
        let refused = missing.filter_map(|(id, instance)| {
            let why = world.contradiction(self.settings.host, instance)?;
            Some(format!("instance {id} is not taken in: {why}"))
        });
        let doors = self.offer.doors.borrow_and_update().clone();
        let known = self.plan.problems.iter().cloned();
        let problems: Vec<String> =
            known.chain(doors).chain(refused).chain(self.unread.sentences()).collect();
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(problem, "not carried out on this host");
        }
        drop(offered);
        self.outlets.problems.store(problems.len() as u64, Ordering::Relaxed);
        self.problems = problems;
    }

    fn learn_servers_from_world(&mut self) {
        let addresses = self.world.hosts.iter().map(|(id, host)| (*id, host.facts.address)).collect();
        self.servers.correct(&addresses);
    }

    /// Writes the mirror when its time has come: of a large mesh not so often that writing costs more than a little.
    fn save_in_time(&mut self) {
        if Instant::now() >= self.save_at {
            self.save();
        }
    }

    /// Writes the mirror, when it changed since the last time.
    fn save(&mut self) {
        if self.saved == self.world.revision {
            return;
        }
        let began = Instant::now();
        match self.settings.mirror.save(&self.world, self.is_whole && self.unread.is_empty()) {
            Ok(()) => self.saved = self.world.revision,
            Err(error) => {
                tracing::warn!(%error, "the mirror could not be saved; a restart would begin from an older one");
            }
        }
        self.save_at = Instant::now() + began.elapsed() * SAVE_SPARING;
    }
}

/// A compile of more than a few thousand services: giving memory back afterwards takes a small part of that.
const LONG_COMPILE: Duration = Duration::from_millis(50);
/// Between two writes of the mirror, at least.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// After a write, so many times as long as it took: writing costs at most 2 % of a core.
const SAVE_SPARING: u32 = 50;
/// Between two words to the server.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Silence after which a server is given up.
const SILENCE: Duration = Duration::from_secs(6);
