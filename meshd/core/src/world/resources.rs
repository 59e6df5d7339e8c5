//! Resources: changed in batches, all or nothing; their history, and the way back.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::api::{ApiError, ErrorCode, Outcome};
use mesh_proto::command::{Batch, Entry, Precondition, ResourceChange, Revision, Timestamp};
use mesh_proto::resource::{Object, ObjectKey, Spec};
use mesh_proto::watch::{Change, Stored};
use serde::{Deserialize, Serialize};

use super::{Done, World, refuse};

/// How many changes of resources are remembered for `history` and `rollback`.
pub(super) const HISTORY_KEPT: usize = 100;

/// One remembered change of resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The revision it made.
    pub revision: Revision,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub author: String,
    /// What for.
    pub reason: String,
    /// Each object, what became of it, and what it was before.
    pub changes: Vec<(ObjectKey, Outcome, Option<Arc<Stored>>)>,
}

impl World {
    /// Tells what a batch would do, without doing it.
    ///
    /// # Errors
    /// The first object whose precondition does not hold.
    pub fn outcomes(&self, batch: &Batch) -> Result<Vec<(ObjectKey, Outcome)>, ApiError> {
        batch.changes.iter().map(|change| Ok((change.key.clone(), self.outcome(change)?))).collect()
    }

    pub(super) fn change_resources(
        &mut self,
        index: Revision,
        entry: &Entry,
        batch: &Batch,
    ) -> Result<(Done, Vec<Change>), ApiError> {
        let outcomes = self.outcomes(batch)?;
        let mut remembered = Vec::new();
        let mut changes = Vec::new();
        let mut named = Vec::new();
        for (change, (key, outcome)) in batch.changes.iter().zip(&outcomes) {
            if *outcome == Outcome::Unchanged {
                continue;
            }
            let before = self.resources.get(key).cloned();
            let stored = change.object.as_ref().map(|object| {
                named.extend(hosts_wanting_addresses(object));
                Box::new(Stored {
                    object: object.clone(),
                    created: before.as_ref().map_or(index, |before| before.created),
                    changed: index,
                })
            });
            remembered.push((key.clone(), *outcome, before));
            changes.push(Change::Resource { key: key.clone(), stored });
        }
        if changes.is_empty() {
            return Ok((Done::Changed(outcomes), changes));
        }
        changes.extend(self.give_addresses(named));
        let changes = self.write(changes);
        // What is remembered of many objects names them by the texts that they have themselves.
        let held = |key| self.resources.get_key(&key).cloned().unwrap_or(key);
        let remembered =
            remembered.into_iter().map(|(key, outcome, before)| (held(key), outcome, before)).collect();
        let outcomes = outcomes.into_iter().map(|(key, outcome)| (held(key), outcome)).collect();
        self.remember(index, entry, batch, remembered);
        Ok((Done::Changed(outcomes), changes))
    }

    /// What is remembered of objects names them by the texts that they have themselves, also after it was read.
    pub(super) fn name_by_held_texts(&mut self) {
        let held = |key: &mut ObjectKey| {
            if let Some(held) = self.resources.get_key(key) {
                *key = held.clone();
            }
        };
        let history = self.private.history.iter_mut();
        history.flat_map(|entry| &mut entry.changes).for_each(|(key, ..)| held(key));
        for answered in self.private.answered.values_mut() {
            if let Ok(Done::Changed(changed)) = &mut answered.result {
                for (key, _) in changed {
                    held(key);
                }
            }
        }
    }

    /// Returns the batch that makes the resources what they were at revision `to`.
    ///
    /// # Errors
    /// When `to` is in the future, or older than the remembered history.
    pub fn rollback(&self, to: Revision) -> Result<Batch, ApiError> {
        if to > self.revision {
            return Err(refuse(
                ErrorCode::NotFound,
                format!("revision {to} is not there yet; the newest is {}", self.revision),
            ));
        }
        let history = &self.private.history;
        if history.len() == HISTORY_KEPT && history.front().is_some_and(|oldest| to.0 + 1 < oldest.revision.0)
        {
            let oldest = history.front().map_or(0, |oldest| oldest.revision.0);
            return Err(refuse(
                ErrorCode::NotFound,
                format!(
                    "revision {to} is older than what is remembered (the last {HISTORY_KEPT} changes, back to {oldest})"
                ),
            ));
        }
        let mut then: BTreeMap<&ObjectKey, Option<&Arc<Stored>>> = BTreeMap::new();
        for entry in history.iter().rev().take_while(|entry| entry.revision > to) {
            for (key, _, before) in &entry.changes {
                then.insert(key, before.as_ref());
            }
        }
        let changes = then
            .into_iter()
            .map(|(key, before)| ResourceChange {
                key: key.clone(),
                object: before.map(|stored| stored.object.clone()),
                expect: match self.resources.get(key) {
                    Some(stored) => Precondition::At(stored.changed),
                    None => Precondition::Absent,
                },
            })
            .collect();
        Ok(Batch { changes, reason: format!("rollback to revision {to}") })
    }

    fn outcome(&self, change: &ResourceChange) -> Result<Outcome, ApiError> {
        let present = self.resources.get(&change.key);
        self.check_precondition(change, present.map(|stored| stored.changed))?;
        Ok(match (present, &change.object) {
            (None, Some(_)) => Outcome::Created,
            (Some(present), Some(object)) if present.object == *object => Outcome::Unchanged,
            (Some(_), Some(_)) => Outcome::Configured,
            (Some(_), None) => Outcome::Deleted,
            (None, None) => Outcome::Unchanged,
        })
    }

    fn check_precondition(&self, change: &ResourceChange, present: Option<Revision>) -> Result<(), ApiError> {
        let key = &change.key;
        match (change.expect, present) {
            (Precondition::Any, _) | (Precondition::Absent, None) | (Precondition::Present, Some(_)) => {
                Ok(())
            }
            (Precondition::At(wanted), Some(is)) if wanted == is => Ok(()),
            (Precondition::Absent, Some(is)) => {
                Err(refuse(ErrorCode::Conflict, format!("{key} exists already{}", self.changed_by(key, is))))
            }
            (Precondition::At(wanted), Some(is)) => Err(refuse(
                ErrorCode::Conflict,
                format!(
                    "{key} has changed: you have revision {wanted}, it is at {is}{}; read it again and repeat",
                    self.changed_by(key, is)
                ),
            )),
            (Precondition::Present | Precondition::At(_), None) => {
                Err(refuse(ErrorCode::NotFound, format!("{key} does not exist")))
            }
        }
    }

    /// Says who made a change, where the history still knows.
    fn changed_by(&self, key: &ObjectKey, revision: Revision) -> String {
        let maker = self.private.history.iter().rev().find(|entry| {
            entry.revision == revision && entry.changes.iter().any(|(changed, ..)| changed == key)
        });
        maker.map_or_else(String::new, |entry| {
            format!(" (changed at revision {revision} by {})", entry.author)
        })
    }

    fn remember(
        &mut self,
        revision: Revision,
        entry: &Entry,
        batch: &Batch,
        changes: Vec<(ObjectKey, Outcome, Option<Arc<Stored>>)>,
    ) {
        let history = &mut self.private.history;
        history.push_back(HistoryEntry {
            revision,
            at: entry.at,
            author: entry.author.clone(),
            reason: batch.reason.clone(),
            changes,
        });
        while history.len() > HISTORY_KEPT {
            history.pop_front();
        }
    }
}

/// Returns the host names of a ServiceEntry that need a virtual address: exact names of an entry without addresses.
fn hosts_wanting_addresses(object: &Object) -> Vec<String> {
    match &object.spec {
        Spec::ServiceEntry(entry) if entry.addresses.is_empty() => entry
            .hosts
            .iter()
            .filter(|host| !host.starts_with('*'))
            .map(|host| host.to_ascii_lowercase())
            .collect(),
        _ => Vec::new(),
    }
}
