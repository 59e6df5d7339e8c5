//! What this server heard from the agents whose streams it holds.
//!
//! It keeps each host's last word, whole, and reports it to the leader until the World says the same.
//! So a report may be lost, or the leader change, and nothing has to be remembered as sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::world::World;
use mesh_proto::api::AgentReport;
use mesh_proto::command::{HostFacts, HostId};
use mesh_proto::registration::Registration;
use mesh_proto::watch::Up;
use tokio::sync::Notify;

/// The last word of every host that this server holds a stream of, or held until just now.
#[derive(Debug, Default)]
pub(in crate::server) struct Heard {
    hosts: Mutex<BTreeMap<HostId, Host>>,
    news: Notify,
}

#[derive(Debug)]
struct Host {
    /// The newest stream; an older one that ends late says nothing about the host.
    session: u64,
    connected: bool,
    left: bool,
    last: Instant,
    /// Live revision, problems and clock, as last said.
    said: Up,
    registration: Option<Registration>,
    facts: Option<HostFacts>,
    /// Whether something changed since the last report.
    news: bool,
}

/// How much a report holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Extent {
    /// Every host: once a second.
    All,
    /// Hosts with news only.
    News,
}

impl Heard {
    /// Notes a new stream of a host; returns its number.
    pub(in crate::server) fn open(&self, host: HostId) -> u64 {
        let mut hosts = self.hosts();
        let entry = hosts.entry(host).or_insert_with(Host::new);
        entry.session += 1;
        entry.connected = true;
        entry.left = false;
        entry.last = Instant::now();
        entry.news = true;
        self.news.notify_one();
        entry.session
    }

    /// Notes the end of a stream.
    pub(in crate::server) fn close(&self, host: HostId, session: u64) {
        self.change(host, session, |entry| {
            entry.connected = false;
            true
        });
    }

    /// Notes what an agent said.
    pub(in crate::server) fn say(&self, host: HostId, session: u64, up: Up) {
        self.change(host, session, |entry| {
            entry.last = Instant::now();
            entry.take_in(up)
        });
    }

    /// Waits until there is news. Cancel safe.
    pub(in crate::server) async fn news(&self) {
        self.news.notified().await;
    }

    /// Returns the report for the leader; what the World already says is left out.
    pub(in crate::server) fn report(&self, world: &World, extent: Extent) -> BTreeMap<HostId, AgentReport> {
        let mut hosts = self.hosts();
        // An ended stream is reported for a while, in case the leader changes meanwhile.
        hosts.retain(|_, host| host.connected || host.last.elapsed() < FORGET_AFTER);
        hosts
            .iter_mut()
            .filter(|(_, host)| extent == Extent::All || host.news)
            .map(|(id, host)| {
                host.news = false;
                (*id, host.report(*id, world))
            })
            .collect()
    }

    /// Changes a host if the stream is its newest; `change` says whether it is news.
    fn change(&self, host: HostId, session: u64, change: impl FnOnce(&mut Host) -> bool) {
        let mut hosts = self.hosts();
        let Some(entry) = hosts.get_mut(&host).filter(|entry| entry.session == session) else {
            return;
        };
        if change(entry) {
            entry.news = true;
            self.news.notify_one();
        }
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    fn new() -> Self {
        Self {
            session: 0,
            connected: false,
            left: false,
            last: Instant::now(),
            said: Up::default(),
            registration: None,
            facts: None,
            news: false,
        }
    }

    /// Takes a word in; returns whether it says anything new.
    fn take_in(&mut self, up: Up) -> bool {
        let news = up.live != self.said.live
            || up.problems != self.said.problems
            || up.registration.is_some()
            || up.facts.is_some()
            || !up.health.is_empty()
            || up.goodbye;
        if let Some(registration) = up.registration {
            self.registration = Some(registration);
        }
        for (id, health) in up.health {
            let instances = self.registration.as_mut().map(|registration| &mut registration.instances);
            if let Some(instance) = instances.and_then(|instances| instances.get_mut(&id)) {
                Arc::make_mut(instance).health = health;
            }
        }
        self.facts = up.facts.or(self.facts.take());
        self.left |= up.goodbye;
        self.said = Up { live: up.live, problems: up.problems, clock_ms: up.clock_ms, ..Up::default() };
        news
    }

    fn report(&self, id: HostId, world: &World) -> AgentReport {
        let silent_ms = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
        let known = world.hosts.get(&id).map(|host| &host.facts);
        let registered = world.registrations.get(&id).map(AsRef::as_ref);
        let differs = |registration: &&Registration| match registered {
            Some(registered) => registered != *registration,
            None => !registration.instances.is_empty(),
        };
        let said = Up {
            goodbye: self.left,
            registration: self.registration.as_ref().filter(differs).cloned(),
            facts: self.facts.as_ref().filter(|facts| Some(*facts) != known).cloned(),
            ..self.said.clone()
        };
        AgentReport { connected: self.connected, silent_ms, said }
    }
}

/// How long an ended stream is still reported as ended: longer than its lease.
const FORGET_AFTER: Duration = Duration::from_secs(15);
