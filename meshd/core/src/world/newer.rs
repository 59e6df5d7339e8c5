//! Facts of a newer meshd, taken in one by one as far as they are understood here.
//!
//! What is not understood is named, and changes nothing: what the fact said before, if it did, stays in force.
//! Only mirrors read so. Servers read the log wholly or not at all.

use std::collections::BTreeMap;
use std::fmt;

use mesh_proto::command::{HostId, Revision};
use mesh_proto::exact::Unread;
use mesh_proto::registration::Registration;
use mesh_proto::resource::ObjectKey;
use mesh_proto::watch::Change;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::World;

/// The facts that are not understood here, and why. Empty where all hosts run one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotUnderstood(BTreeMap<Subject, String>);

/// What a fact is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Mesh,
    Host(HostId),
    Instance {
        host: HostId,
        id: String,
    },
    /// By its key, whose kind may be unknown.
    Resource(String),
    /// A fact of another kind.
    Other(String),
}

/// A whole World, fact by fact.
#[derive(Deserialize)]
struct Parts<'a> {
    revision: Revision,
    #[serde(borrow)]
    facts: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct HostPart {
    id: HostId,
}

#[derive(Deserialize)]
struct RegistrationPart<'a> {
    host: HostId,
    #[serde(borrow)]
    registration: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ResourcePart<'a> {
    key: String,
    #[serde(borrow)]
    stored: Option<&'a RawValue>,
}

impl World {
    /// Reads a mirror of which not every fact need be understood; such a one stays what it is in `before`.
    ///
    /// # Errors
    /// When it is no World of any version.
    pub fn in_part(json: &[u8], before: &Self) -> Result<(Self, NotUnderstood), serde_json::Error> {
        let parts: Parts<'_> = serde_json::from_slice(json)?;
        let (mut world, mut unread) = (Self::default(), NotUnderstood::default());
        for change in parts.facts.into_iter().filter_map(|fact| unread.read(fact)) {
            world.absorb(&change);
        }
        world.revision = parts.revision;
        world.keep(&unread, before);
        Ok((world, unread))
    }

    /// Keeps what is known from before of facts that are not understood now.
    fn keep(&mut self, unread: &NotUnderstood, before: &Self) {
        for subject in unread.0.keys() {
            match subject {
                Subject::Mesh => self.mesh = before.mesh.clone(),
                Subject::Host(id) => {
                    if let Some(host) = before.hosts.get(id) {
                        self.hosts.insert(*id, host.clone());
                    }
                }
                Subject::Resource(key) => {
                    let Ok(key) = key.parse::<ObjectKey>() else { continue };
                    if let Some(stored) = before.resources.get(&key) {
                        self.resources.insert(key, stored.clone());
                    }
                }
                Subject::Instance { .. } | Subject::Other(_) => {}
            }
        }
    }
}

impl NotUnderstood {
    /// Whether all is understood.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is not understood, a sentence each.
    pub fn sentences(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(subject, why)| {
            let stays = match subject {
                Subject::Instance { .. } => "it gets no traffic from here",
                Subject::Other(_) => "it has no effect here",
                _ => "what it said before, if anything, stays in force",
            };
            format!("{subject} needs a newer meshd on this host ({why}): {stays}")
        })
    }

    /// Forgets of what is understood now that it was not.
    pub fn settle(&mut self, change: &Change) {
        if self.0.is_empty() {
            return;
        }
        match change {
            Change::Mesh(_) => drop(self.0.remove(&Subject::Mesh)),
            Change::Host { id, .. } => drop(self.0.remove(&Subject::Host(*id))),
            Change::Registration { host, .. } => self.settle_instances(*host),
            Change::Resource { key, .. } => drop(self.0.remove(&Subject::Resource(key.to_string()))),
            Change::VirtualAddress { .. } => {}
        }
    }

    /// Reads a fact; `None` where it is not understood.
    pub fn read(&mut self, fact: &RawValue) -> Option<Change> {
        match serde_json::from_str::<Change>(fact.get()) {
            Ok(change) => {
                self.settle(&change);
                Some(change)
            }
            Err(error) => self.read_in_part(fact.get(), &Unread::of(&error).to_string()),
        }
    }

    fn read_in_part(&mut self, fact: &str, why: &str) -> Option<Change> {
        let parts: BTreeMap<String, &RawValue> = serde_json::from_str(fact).unwrap_or_default();
        let (kind, body) = parts.into_iter().next()?;
        let subject = match kind.as_str() {
            "mesh" => Some(Subject::Mesh),
            "host" => serde_json::from_str::<HostPart>(body.get()).ok().map(|part| Subject::Host(part.id)),
            "registration" => return self.registration(body.get(), why),
            "resource" => match serde_json::from_str::<ResourcePart<'_>>(body.get()) {
                Ok(ResourcePart { key, stored: None }) => {
                    // Deleted, and of a kind that is not known here.
                    self.0.remove(&Subject::Resource(key));
                    return None;
                }
                part => part.ok().map(|part| Subject::Resource(part.key)),
            },
            _ => None,
        };
        self.0.insert(subject.unwrap_or(Subject::Other(kind)), why.to_owned());
        None
    }

    fn registration(&mut self, body: &str, why: &str) -> Option<Change> {
        let part = serde_json::from_str::<RegistrationPart<'_>>(body);
        let read = part
            .ok()
            .and_then(|part| Some((part.host, Registration::in_part(part.registration?.get()).ok()?)));
        let Some((host, (registration, left_out))) = read else {
            self.0.insert(Subject::Other("registration".to_owned()), why.to_owned());
            return None;
        };
        self.settle_instances(host);
        for (id, why) in left_out {
            self.0.insert(Subject::Instance { host, id }, why.to_string());
        }
        Some(Change::Registration { host, registration: Some(registration) })
    }

    fn settle_instances(&mut self, of: HostId) {
        self.0.retain(|subject, _| !matches!(subject, Subject::Instance { host, .. } if *host == of));
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("what identifies the mesh"),
            Self::Host(id) => write!(f, "host {id}"),
            Self::Instance { host, id } => write!(f, "instance {id} of host {host}"),
            Self::Resource(key) => f.write_str(key),
            Self::Other(kind) => write!(f, "a fact called {kind:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
