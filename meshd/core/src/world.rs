//! Everything the mesh agrees on, at one revision, and the one function that changes it.
//!
//! [`World::apply`] reads nothing but the entry: no clock, no setting of this host, no chance. So every server
//! that applies the same log has the same World, byte for byte. Agents keep a mirror of the public facts, fed by
//! [`World::absorb`]. What the facts *mean* for a host is decided in `compile`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mesh_proto::api::{ApiError, ErrorCode, Outcome};
use mesh_proto::command::{
    Bootstrap, Command, Entry, HostFacts, HostId, Liveness, Mesh, Revision, Timestamp, Token,
};
use mesh_proto::registration::Registration;
use mesh_proto::resource::ObjectKey;
use mesh_proto::watch::{Change, Host, PublicWorld, Stored};
use serde::{Deserialize, Serialize};

use crate::parted::PartedMap;

mod address;
mod alike;
mod difference;
mod newer;
mod public;
mod registry;
mod resources;
mod trust;

pub(crate) use alike::Alike;

pub use address::{VIRTUAL_V4, VIRTUAL_V6, virtual_addresses};
pub use newer::NotUnderstood;
pub use public::{Facts, Mirrored, ReadSnapshot, Whole, WholeFor};
pub use registry::{InstanceRef, ServiceName};
pub use resources::HistoryEntry;

/// All agreed facts. Parts are shared by `Arc`, so a clone is cheap in the size of what it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The revision reached.
    pub revision: Revision,
    /// What identifies the mesh.
    pub mesh: Mesh,
    /// Every host that has not been removed.
    pub hosts: PartedMap<HostId, Arc<Host>>,
    /// What each host offers.
    pub registrations: PartedMap<HostId, Arc<Registration>>,
    /// Every resource.
    pub resources: PartedMap<ObjectKey, Arc<Stored>>,
    /// Place of each mesh host name in the virtual ranges.
    pub addresses: PartedMap<String, u16>,
    /// What hosts offer alike.
    pub(crate) alike: Alike,
    /// What only servers know; empty in an agent's mirror.
    pub private: Private,
}

/// Facts that leave the servers in no stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Private {
    /// Join tokens by id (never the secret).
    pub tokens: BTreeMap<String, Token>,
    /// The root key sealed for each holder: a host's id, or `recovery`.
    pub sealed_root: BTreeMap<String, String>,
    /// The last changes of resources, oldest first.
    pub history: VecDeque<HistoryEntry>,
    /// Answers to recent keyed requests.
    pub answered: BTreeMap<String, Answered>,
}

/// The answer to a keyed request, kept for [`ANSWERS_KEPT_MS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// When it was given, by the leader's stamp.
    pub at: Timestamp,
    /// At which revision.
    pub revision: Revision,
    /// The answer.
    pub result: Result<Done, ApiError>,
}

/// What applying an entry came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The revision at which the answer holds: this entry's, or that of the first application of its key.
    pub revision: Revision,
    /// The answer to who proposed it.
    pub result: Result<Done, ApiError>,
    /// What changed, for every mirror. Empty when refused.
    pub changes: Vec<Change>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It is so.
    Ok,
    /// Resources changed.
    Changed(Vec<(ObjectKey, Outcome)>),
    /// A host came in.
    Joined(HostId),
    /// A registration was taken in, but for these instances: id and reason.
    Registered(BTreeMap<String, String>),
}

/// How long the answer to a keyed request is remembered, in milliseconds of the leader's stamp.
pub const ANSWERS_KEPT_MS: u64 = 600_000;

impl World {
    /// Applies the log entry at `index`. Refusals change nothing but the revision.
    pub fn apply(&mut self, index: Revision, entry: &Entry) -> Applied {
        self.revision = index;
        self.forget_old_answers(entry.at);
        if let Some(answered) = entry.key.as_ref().and_then(|key| self.private.answered.get(key)) {
            return Applied {
                revision: answered.revision,
                result: answered.result.clone(),
                changes: Vec::new(),
            };
        }
        let (result, changes) = match self.execute(index, entry) {
            Ok((done, changes)) => (Ok(done), changes),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        self.remember_answer(index, entry, &result);
        Applied { revision: index, result, changes }
    }

    /// Takes one public fact in: how a mirror follows, and how `apply` itself writes.
    pub fn absorb(&mut self, change: &Change) {
        match change {
            Change::Mesh(mesh) => self.mesh = mesh.clone(),
            Change::Host { id, host } => {
                let known = self.alike.world.as_ref().map(|known| &known.hosts);
                put(&mut self.hosts, id, host.as_ref(), known);
            }
            Change::Registration { host, registration } => {
                let held = registration.as_ref().map(|offered| self.alike.held(offered));
                let known = self.alike.world.as_ref().map(|known| &known.registrations);
                put(&mut self.registrations, host, held.as_ref(), known);
                self.alike.forget_unused(&self.registrations);
            }
            Change::Resource { key, stored } => {
                let known = self.alike.world.as_ref().map(|known| &known.resources);
                // An object's own texts name it, if they do: they are held once.
                let own = stored.as_ref().map(|stored| stored.object.key()).filter(|own| own == key);
                put(&mut self.resources, own.as_ref().unwrap_or(key), stored.as_deref(), known);
            }
            Change::VirtualAddress { host, index } => match index {
                Some(index) => drop(self.addresses.insert(host.clone(), *index)),
                None => drop(self.addresses.remove(host)),
            },
        }
    }

    /// Takes in a whole delta and the revision it leads to.
    pub fn absorb_all(&mut self, to: Revision, changes: &[Change]) {
        for change in changes {
            self.absorb(change);
        }
        self.revision = to;
    }

    /// From now on, takes in what another World of this process says already as that one has it, instead of making
    /// copies; `None`: no more. Keeps that World alive meanwhile.
    pub fn lean_on(&mut self, known: Option<Arc<Self>>) {
        self.alike.world = known;
    }

    /// Returns the World whose facts it takes in.
    pub fn leans_on(&self) -> Option<Arc<Self>> {
        self.alike.world.clone()
    }

    /// Holds what another World of this process says alike as that one does, instead of in copies of its own.
    pub fn share(&mut self, other: &Self) {
        self.hosts.share(&other.hosts, is_same);
        self.resources.share(&other.resources, is_same);
        if self.registrations.share(&other.registrations, is_same) {
            self.alike = other.alike.clone();
        }
        self.addresses.share(&other.addresses, PartialEq::eq);
    }

    /// Returns a copy that shares all public facts, without the private ones.
    pub(crate) fn seen(&self) -> Self {
        Self {
            revision: self.revision,
            mesh: self.mesh.clone(),
            hosts: self.hosts.clone(),
            registrations: self.registrations.clone(),
            resources: self.resources.clone(),
            addresses: self.addresses.clone(),
            alike: Alike::default(),
            private: Private::default(),
        }
    }

    /// Returns the facts that every host may see.
    pub fn public(&self) -> PublicWorld {
        let mesh = std::iter::once(Change::Mesh(self.mesh.clone()));
        let hosts =
            self.hosts.iter().map(|(id, host)| Change::Host { id: *id, host: Some(Host::clone(host)) });
        let registrations = self.registrations.iter().map(|(host, registration)| Change::Registration {
            host: *host,
            registration: Some(Registration::clone(registration)),
        });
        let resources = self.resources.iter().map(|(key, stored)| Change::Resource {
            key: key.clone(),
            stored: Some(Box::new(Stored::clone(stored))),
        });
        let addresses = self
            .addresses
            .iter()
            .map(|(host, index)| Change::VirtualAddress { host: host.clone(), index: Some(*index) });
        PublicWorld {
            revision: self.revision,
            facts: mesh.chain(hosts).chain(registrations).chain(resources).chain(addresses).collect(),
        }
    }

    /// Builds a mirror from the public facts.
    pub fn from_public(public: &PublicWorld) -> Self {
        let mut world = Self::default();
        world.absorb_all(public.revision, &public.facts);
        world
    }

    /// Returns the host of that name that is not gone, else the one that joined last.
    pub fn host_named(&self, name: &str) -> Option<(HostId, &Arc<Host>)> {
        let of_name = || self.hosts.iter().rev().filter(|(_, host)| host.name == name);
        of_name()
            .find(|(_, host)| matches!(host.liveness, Liveness::Live | Liveness::Suspect))
            .or_else(|| of_name().next())
            .map(|(id, host)| (*id, host))
    }

    /// Returns the host of that name to be removed: one that is gone, the oldest, before one that bears its name now.
    pub fn host_to_remove(&self, name: &str) -> Option<(HostId, &Arc<Host>)> {
        let of_name = self.hosts.iter().filter(|(_, host)| host.name == name);
        of_name
            .min_by_key(|(_, host)| matches!(host.liveness, Liveness::Live | Liveness::Suspect))
            .map(|(id, host)| (*id, host))
    }

    fn execute(&mut self, index: Revision, entry: &Entry) -> Result<(Done, Vec<Change>), ApiError> {
        if !matches!(entry.command, Command::Bootstrap(_)) && self.mesh.id.is_empty() {
            return Err(refuse(ErrorCode::Unavailable, "the mesh has not begun yet"));
        }
        match &entry.command {
            Command::Bootstrap(bootstrap) => self.bootstrap(bootstrap),
            Command::Join(join) => self.join(index, entry.at, join),
            Command::RemoveHost { host } => self.remove_host(*host),
            Command::UpdateHost { host, facts } => self.update_host(*host, facts),
            Command::CreateToken(token) => self.create_token(entry.at, token),
            Command::RevokeToken { id } => self.revoke_token(id),
            Command::SealRoot { holder, sealed } => {
                self.private.sealed_root.insert(holder.to_string(), sealed.clone());
                Ok((Done::Ok, Vec::new()))
            }
            Command::Change(batch) => self.change_resources(index, entry, batch),
            Command::Register { host, registration } => self.register(*host, registration),
            Command::Health { host, flips } => self.flip_health(*host, flips),
            Command::Liveness { changes } => Ok((Done::Ok, self.set_liveness(changes))),
        }
    }

    fn bootstrap(&mut self, bootstrap: &Bootstrap) -> Result<(Done, Vec<Change>), ApiError> {
        if !self.mesh.id.is_empty() {
            return Err(refuse(ErrorCode::Conflict, format!("this is mesh {} already", self.mesh.id)));
        }
        self.private.sealed_root.clone_from(&bootstrap.sealed_root);
        let id = HostId(1);
        let changes = vec![
            Change::Mesh(bootstrap.mesh.clone()),
            Change::Host { id, host: Some(trust::admit(&bootstrap.host, true)) },
        ];
        Ok((Done::Joined(id), self.write(changes)))
    }

    fn update_host(&mut self, id: HostId, facts: &HostFacts) -> Result<(Done, Vec<Change>), ApiError> {
        let host = self.known_host(id)?;
        if host.facts == *facts {
            return Ok((Done::Ok, Vec::new()));
        }
        let host = Host { facts: facts.clone(), ..Host::clone(host) };
        Ok((Done::Ok, self.write(vec![Change::Host { id, host: Some(host) }])))
    }

    fn set_liveness(&mut self, changes: &BTreeMap<HostId, Liveness>) -> Vec<Change> {
        let changed = changes
            .iter()
            .filter_map(|(id, liveness)| {
                let host = self.hosts.get(id).filter(|host| host.liveness != *liveness)?;
                let host = Host { liveness: *liveness, ..Host::clone(host) };
                Some(Change::Host { id: *id, host: Some(host) })
            })
            .collect();
        self.write(changed)
    }

    /// Takes the changes in and returns them, for the mirrors.
    fn write(&mut self, changes: Vec<Change>) -> Vec<Change> {
        for change in &changes {
            self.absorb(change);
        }
        changes
    }

    fn known_host(&self, id: HostId) -> Result<&Arc<Host>, ApiError> {
        self.hosts.get(&id).ok_or_else(|| {
            refuse(
                ErrorCode::NotFound,
                format!("host {id} is not in this mesh; it may have been removed: join again"),
            )
        })
    }

    fn forget_old_answers(&mut self, now: Timestamp) {
        let oldest = Timestamp(now.0.saturating_sub(ANSWERS_KEPT_MS));
        self.private.answered.retain(|_, answered| answered.at >= oldest);
    }

    fn remember_answer(&mut self, index: Revision, entry: &Entry, result: &Result<Done, ApiError>) {
        if let Some(key) = &entry.key {
            let answered = Answered { at: entry.at, revision: index, result: result.clone() };
            self.private.answered.insert(key.clone(), answered);
        }
    }
}

fn is_same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// Makes a refusal.
fn refuse(code: ErrorCode, message: impl Into<String>) -> ApiError {
    ApiError { code, message: message.into(), findings: Vec::new() }
}

/// Puts a value in its place, or takes it out; what is `known` already is held, not copied.
fn put<K: Ord + Clone, V: Clone + PartialEq>(
    map: &mut PartedMap<K, Arc<V>>,
    key: &K,
    value: Option<&V>,
    known: Option<&PartedMap<K, Arc<V>>>,
) {
    let Some(value) = value else { return drop(map.remove(key)) };
    let known = known.and_then(|known| known.get_key(key).zip(known.get(key)));
    match known.filter(|(_, held)| ***held == *value) {
        Some((key, held)) => drop(map.insert(key.clone(), held.clone())),
        None => drop(map.insert(key.clone(), Arc::new(value.clone()))),
    }
}

#[cfg(test)]
mod tests;
