//! The leader's leases: what servers report goes in, proposals come out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::liveness::Leases;
use mesh_core::world::World;
use mesh_proto::api::AgentReport;
use mesh_proto::command::{Command, HostId, Liveness, Revision};
use mesh_proto::registration::{Health, Instance, Registration};
use mesh_proto::watch::Up;
use tokio::sync::watch;

use crate::server::raft::Facts;

/// What the leader knows of hosts beyond the World. Emptied when the leader changes.
#[derive(Debug)]
pub(in crate::server) struct Keeper {
    facts: Arc<Facts>,
    state: Mutex<State>,
    /// Counts up with every acknowledgement: `wait` listens.
    acknowledged: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// In which term these leases began; `None` while another server leads.
    term: Option<u64>,
    leases: Leases,
    hosts: BTreeMap<HostId, Acknowledged>,
    /// What hosts said that was not in the World yet, newest word only. Said again until it is.
    wishes: BTreeMap<HostId, Up>,
    frozen: Vec<HostId>,
}

/// What a host says it runs.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::server) struct Acknowledged {
    /// The revision its data plane runs.
    pub(in crate::server) live: Revision,
    /// What it could not take.
    pub(in crate::server) problems: Vec<String>,
    /// How far its wall clock is ahead of this one, in milliseconds; `None` when it did not say.
    pub(in crate::server) clock_offset_ms: Option<i64>,
}

impl Keeper {
    pub(in crate::server) fn new(facts: Arc<Facts>) -> Self {
        Self { facts, state: Mutex::default(), acknowledged: watch::Sender::new(0) }
    }

    /// Begins anew when this server leads in a term it had not led before; forgets all when it does not lead.
    pub(in crate::server) fn lead(&self, term: Option<u64>, now: Instant) {
        let mut state = self.state();
        if state.term == term {
            return;
        }
        *state = State { term, ..State::default() };
        if term.is_some() {
            state.leases = self.facts.read(|world| Leases::restart(now, standings(world)));
        }
    }

    /// Takes in what a server heard.
    pub(in crate::server) fn report(
        &self,
        reports: BTreeMap<HostId, AgentReport>,
        now: Instant,
        wall_ms: u64,
    ) {
        let mut state = self.state();
        if state.term.is_none() {
            return;
        }
        self.facts.read(|world| state.leases.agree(now, standings(world)));
        for (host, report) in reports {
            state.take_in(host, report, now, wall_ms);
        }
        drop(state);
        self.acknowledged.send_modify(|count| *count += 1);
    }

    /// Returns the commands that would make the World say what is so. Empty in quiet times.
    ///
    /// What is not taken in comes again: liveness from the leases, the rest with the next report.
    pub(in crate::server) fn proposals(&self, now: Instant) -> Vec<(Command, Option<HostId>)> {
        let mut state = self.state();
        if state.term.is_none() {
            return Vec::new();
        }
        let wishes = std::mem::take(&mut state.wishes);
        self.facts.read(|world| {
            state.leases.agree(now, standings(world));
            let mut commands = Vec::new();
            for (host, said) in wishes {
                commands.extend(wanted(world, host, said).into_iter().map(|command| (command, Some(host))));
            }
            commands.extend(state.liveness(now).map(|command| (command, None)));
            commands
        })
    }

    /// Notes hosts declared gone, for the mass-loss guard.
    pub(in crate::server) fn declared(&self, changes: &BTreeMap<HostId, Liveness>, now: Instant) {
        let mut state = self.state();
        for _ in changes.values().filter(|liveness| **liveness == Liveness::Gone) {
            state.leases.declared_lost(now);
        }
    }

    /// What each host has acknowledged since this server leads.
    pub(in crate::server) fn acknowledgements(&self) -> BTreeMap<HostId, Acknowledged> {
        self.state().hosts.clone()
    }

    /// Wakes after each report.
    pub(in crate::server) fn changes(&self) -> watch::Receiver<u64> {
        self.acknowledged.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_in(&mut self, host: HostId, report: AgentReport, now: Instant, wall_ms: u64) {
        let silence = Duration::from_millis(report.silent_ms);
        let heard = now.checked_sub(silence).unwrap_or(now);
        if report.said.goodbye {
            self.leases.left(host);
        } else if report.connected {
            self.leases.heard(host, heard);
        } else {
            self.leases.closed(host, heard, now);
        }
        let clock_offset_ms = (report.said.clock_ms > 0 && report.silent_ms < FRESH_MS).then(|| {
            let theirs = report.said.clock_ms.saturating_add(report.silent_ms);
            i64::try_from(theirs)
                .unwrap_or(i64::MAX)
                .saturating_sub(i64::try_from(wall_ms).unwrap_or(i64::MAX))
        });
        let known = self.hosts.get(&host).and_then(|known| known.clock_offset_ms);
        let acknowledged = Acknowledged {
            live: report.said.live,
            problems: report.said.problems.clone(),
            clock_offset_ms: clock_offset_ms.or(known),
        };
        self.hosts.insert(host, acknowledged);
        let said = report.said;
        if said.registration.is_some() || said.facts.is_some() {
            self.wishes.insert(host, said);
        }
    }

    fn liveness(&mut self, now: Instant) -> Option<Command> {
        let due = self.leases.due(now);
        if due.frozen != self.frozen {
            if due.frozen.is_empty() {
                tracing::info!("mass loss over: lost hosts are removed again");
            } else {
                let hosts = due.frozen.len();
                tracing::error!(hosts, "mass loss: too many hosts fell silent at once, none is removed");
            }
            self.frozen = due.frozen;
        }
        let changes: BTreeMap<HostId, Liveness> = due.changes.into_iter().collect();
        (!changes.is_empty()).then_some(Command::Liveness { changes })
    }
}

/// What must be proposed so that the World says what a host said of itself.
fn wanted(world: &World, host: HostId, said: Up) -> Vec<Command> {
    let mut commands = Vec::new();
    let Some(known) = world.hosts.get(&host) else { return commands };
    if let Some(facts) = said.facts.filter(|facts| *facts != known.facts) {
        commands.push(Command::UpdateHost { host, facts });
    }
    commands.extend(said.registration.and_then(|registration| registered(world, host, registration)));
    commands
}

/// What must be proposed so that a host is registered as it says, if anything.
///
/// Instances that contradict another host's stay out; they are no reason to propose the same again.
fn registered(world: &World, host: HostId, mut registration: Registration) -> Option<Command> {
    let nothing = Registration::default();
    let present = world.registrations.get(&host).map_or(&nothing, AsRef::as_ref);
    let taken = |instance: &Instance| world.contradiction(host, instance).is_none();
    registration.instances.retain(|_, instance| taken(instance));
    if registration == *present {
        return None;
    }
    let flips: BTreeMap<String, Health> = registration
        .instances
        .iter()
        .filter(|(id, instance)| present.instances.get(*id).is_some_and(|old| old.health != instance.health))
        .map(|(id, instance)| (id.clone(), instance.health))
        .collect();
    let mut flipped = present.clone();
    for (id, health) in &flips {
        if let Some(instance) = flipped.instances.get_mut(id) {
            Arc::make_mut(instance).health = *health;
        }
    }
    Some(if flipped == registration {
        Command::Health { host, flips }
    } else {
        Command::Register { host, registration }
    })
}

fn standings(world: &World) -> impl Iterator<Item = (HostId, Liveness)> {
    world.hosts.iter().map(|(id, host)| (*id, host.liveness))
}

/// A clock told longer ago than this says nothing about now.
const FRESH_MS: u64 = 4_000;
