//! Changes of resources: all or nothing, one revision.

use mesh_core::world::Done;
use mesh_proto::api::{ApiError, Applied, Apply, ErrorCode, Outcome, Response};
use mesh_proto::command::{Batch, Command, Revision};
use mesh_proto::finding::{Finding, Severity};
use mesh_proto::resource::ObjectKey;

use super::{Failure, Server, error, invalid};
use crate::server::PATIENCE;

impl Server {
    /// Applies a batch; see [`Apply`].
    pub(super) async fn apply(&self, order: Apply, author: &str) -> Result<Response, Failure> {
        check_size(&order.batch)?;
        let findings = self.findings(&order)?;
        self.change(order.batch, order.dry_run, order.key, author, findings).await
    }

    /// Makes the resources what they were at a revision.
    pub(super) async fn rollback(
        &self,
        to: Revision,
        dry_run: bool,
        key: String,
        author: &str,
    ) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        if let Some(done) = self.answered(&key) {
            return done;
        }
        let batch = self.consensus.facts().read(|world| world.rollback(to))?;
        self.change(batch, dry_run, key, author, Vec::new()).await
    }

    async fn change(
        &self,
        batch: Batch,
        dry_run: bool,
        key: String,
        author: &str,
        findings: Vec<Finding>,
    ) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        if let Some(done) = self.answered(&key) {
            return done;
        }
        let (outcomes, revision) =
            self.consensus.facts().read(|world| (world.outcomes(&batch), world.revision));
        let results = outcomes?;
        let nothing = results.iter().all(|(_, outcome)| *outcome == Outcome::Unchanged);
        if dry_run || nothing {
            return Ok(Response::Applied(Applied { revision, results, findings }));
        }
        let proposed = self.propose(Command::Change(batch), author, Some(key)).await?;
        Ok(applied(proposed.revision, proposed.result, findings)?)
    }

    /// The answer given before under this key, if any.
    fn answered(&self, key: &str) -> Option<Result<Response, Failure>> {
        let answered = self.consensus.facts().read(|world| world.private.answered.get(key).cloned())?;
        Some(applied(answered.revision, answered.result, Vec::new()).map_err(Failure::Final))
    }

    /// Findings that need the whole World. Errors refuse the order; warnings do when it is strict.
    fn findings(&self, order: &Apply) -> Result<Vec<Finding>, ApiError> {
        let findings = self.consensus.facts().read(|world| (self.analyze)(world, &order.batch));
        let refuses = |finding: &Finding| {
            finding.severity == Severity::Error || (order.strict && finding.severity == Severity::Warning)
        };
        if !findings.iter().any(refuses) {
            return Ok(findings);
        }
        let message = "nothing was changed: the files have findings".to_owned();
        Err(ApiError { code: ErrorCode::Invalid, message, findings })
    }
}

fn applied(
    revision: Revision,
    result: Result<Done, ApiError>,
    findings: Vec<Finding>,
) -> Result<Response, ApiError> {
    match result? {
        Done::Changed(results) => Ok(Response::Applied(Applied { revision, results, findings })),
        _ => Err(error(ErrorCode::Conflict, "this key was used for another request")),
    }
}

fn check_size(batch: &Batch) -> Result<(), ApiError> {
    if batch.changes.len() > OBJECTS_MAX {
        return Err(invalid(format!(
            "{} objects in one transaction, at most {OBJECTS_MAX} are possible: apply them in parts",
            batch.changes.len()
        )));
    }
    let mut total = 0;
    for change in &batch.changes {
        let bytes = size_of_object(&change.key, change.object.as_ref())?;
        total += bytes;
        if bytes > OBJECT_BYTES {
            return Err(invalid(format!(
                "{} has {bytes} bytes, at most {OBJECT_BYTES} are possible",
                change.key
            )));
        }
    }
    if total > BATCH_BYTES {
        return Err(invalid(format!(
            "{total} bytes in one transaction, at most {BATCH_BYTES} are possible: apply them in parts"
        )));
    }
    Ok(())
}

fn size_of_object(key: &ObjectKey, object: Option<&mesh_proto::resource::Object>) -> Result<usize, ApiError> {
    let Some(object) = object else { return Ok(0) };
    let bytes = serde_json::to_vec(object);
    bytes.map(|bytes| bytes.len()).map_err(|source| invalid(format!("{key} cannot be stored: {source}")))
}

/// Source: shared design "Control plane", section 2 (etcd: 1.5 MiB a request; Consul: 64 operations).
const OBJECTS_MAX: usize = 1_000;
const OBJECT_BYTES: usize = 1 << 20;
const BATCH_BYTES: usize = 4 << 20;
