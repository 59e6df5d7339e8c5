//! `meshctl apply`: files in, one all-or-nothing change out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_proto::api::{ApiError, Applied, Apply, ErrorCode, Get, Outcome, Request, Response};
use mesh_proto::command::{Batch, Precondition, ResourceChange, Revision};
use mesh_proto::finding::{Finding, Severity};
use mesh_proto::resource::{Object, ObjectKey};
use mesh_proto::watch::Stored;

use super::{meaning, wait};
use crate::cli::{ApplyArgs, DryRun};
use crate::client::{Client, PATIENCE, answer, key};
use crate::exit::{Exit, Failure, Result};
use crate::kinds::lower;
use crate::output::{Tone, paint, say, tell};
use crate::rules::{self, Rule, Rules};

/// Runs `apply`.
pub(crate) async fn run(args: &ApplyArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let paths: Vec<PathBuf> = args.files.iter().chain(&args.filename).cloned().collect();
    let rules = Rules::read(&paths, &args.namespace).map_err(Failure::unchanged)?;
    rules.judge(args.strict).map_err(Failure::unchanged)?;
    if args.dry_run == Some(DryRun::Client) {
        let mut lines = String::new();
        for key in rules::keys(&rules.all) {
            let _ = writeln!(lines, "{} valid (dry run, not sent)", lower(&key));
        }
        say(&lines)?;
        return Ok(Exit::Done);
    }
    let order = Order {
        reason: format!("apply {}", names(&paths)),
        rules: rules.all,
        prune: args.prune,
        dry_run: args.dry_run.is_some(),
        strict: args.strict,
    };
    let client = client()?;
    let begun = Instant::now();
    let applied = send(&client, &order).await?;
    if order.dry_run {
        return Ok(Exit::Done);
    }
    wait::for_hosts(&client, applied.revision, &args.waiting, begun).await
}

/// What is to be applied.
#[derive(Debug)]
pub(crate) struct Order {
    /// The objects.
    pub(crate) rules: Vec<Rule>,
    /// What was done, for `history`.
    pub(crate) reason: String,
    /// Deletes what is in the same namespaces and not among the objects.
    pub(crate) prune: bool,
    /// Checks only.
    pub(crate) dry_run: bool,
    /// Warnings are errors.
    pub(crate) strict: bool,
}

/// Sends an order and prints what became of each object. After a lost race, reads and sends once more.
pub(crate) async fn send(client: &Client, order: &Order) -> Result<Applied> {
    for last in [false, true] {
        let current = order.current(client).await?;
        let batch = order.batch(&current);
        if order.prune && !order.dry_run {
            for change in batch.changes.iter().filter(|change| change.object.is_none()) {
                tell(&format!("pruning {}: it is not in the files", lower(&change.key)));
            }
        }
        let request =
            Request::Apply(Apply { batch, dry_run: order.dry_run, strict: order.strict, key: key() });
        match client.ask(&request, PATIENCE.max(Duration::from_secs(30))).await? {
            Ok(answer) => {
                let applied = answer!(answer, Response::Applied(applied) => applied)?;
                order.print(&applied)?;
                if order.dry_run {
                    let meaning = meaning::of(client, &order.batch(&current)).await;
                    if let Some(meaning) = meaning.filter(|meaning| !meaning.is_empty()) {
                        say(&format!("\nwhat that would mean for traffic:\n{meaning}"))?;
                    }
                }
                return Ok(applied);
            }
            Err(error) if error.code == ErrorCode::Conflict && !last && order.may_retry() => {}
            Err(error) => return Err(order.refusal(error)),
        }
    }
    Err(Failure::new(Exit::Conflict, "somebody else keeps changing the same objects; try again"))
}

/// Reads every resource of the mesh, by key.
pub(crate) async fn current(client: &Client) -> Result<BTreeMap<ObjectKey, Stored>> {
    let answer = client.call(&Request::Get(Get::default())).await?;
    let items = answer!(answer, Response::Resources { items, .. } => items)?;
    Ok(items.into_iter().map(|stored| (stored.object.key(), stored)).collect())
}

/// So many objects are asked for one by one.
const FEW: usize = 8;

impl Order {
    /// Reads what is there of what the order is about; of a few objects, not those of a whole large mesh.
    async fn current(&self, client: &Client) -> Result<BTreeMap<ObjectKey, Stored>> {
        if self.prune || self.rules.len() > FEW {
            return current(client).await;
        }
        let mut found = BTreeMap::new();
        for ObjectKey { kind, namespace, name } in self.rules.iter().map(|rule| rule.object.key()) {
            let one = Get {
                kind: Some(kind),
                namespace: Some(namespace.to_string()),
                name: Some(name.to_string()),
                ..Get::default()
            };
            let answer = client.call(&Request::Get(one)).await?;
            let items = answer!(answer, Response::Resources { items, .. } => items)?;
            found.extend(items.into_iter().map(|stored| (stored.object.key(), stored)));
        }
        Ok(found)
    }

    fn batch(&self, current: &BTreeMap<ObjectKey, Stored>) -> Batch {
        let mut changes: Vec<_> = self.rules.iter().map(|rule| change(&rule.object, current)).collect();
        if self.prune {
            let keep: BTreeSet<_> = self.rules.iter().map(|rule| rule.object.key()).collect();
            let namespaces: BTreeSet<_> = keep.iter().map(|key| &key.namespace).collect();
            let gone =
                current.iter().filter(|(key, _)| namespaces.contains(&key.namespace) && !keep.contains(key));
            changes.extend(gone.map(|(key, stored)| ResourceChange {
                key: key.clone(),
                object: None,
                expect: Precondition::At(stored.changed),
            }));
        }
        Batch { changes, reason: self.reason.clone() }
    }

    /// A document that names the version it was made from must not replace another one.
    fn may_retry(&self) -> bool {
        self.rules.iter().all(|rule| rule.object.metadata.resource_version.is_none())
    }

    fn print(&self, applied: &Applied) -> Result {
        let findings = self.placed(&applied.findings);
        rules::tell_findings(&findings);
        say(&outcomes(&applied.results, self.dry_run))
    }

    fn refusal(&self, error: ApiError) -> Failure {
        let findings = self.placed(&error.findings);
        rules::tell_findings(&findings);
        let errors = rules::number(&findings, Severity::Error);
        let warnings = rules::number(&findings, Severity::Warning);
        let mut failure = Failure::from(error);
        if errors + warnings > 0 {
            let told = if failure.message.contains(UNCHANGED) { "" } else { UNCHANGED };
            let separator = if told.is_empty() { "" } else { "; " };
            let totals = rules::totals(errors, warnings);
            failure.message = format!("{} ({totals}){separator}{told}", failure.message);
        }
        failure
    }

    /// Names the file of each finding that the mesh made: it knows only objects.
    fn placed(&self, findings: &[Finding]) -> Vec<Finding> {
        let mut findings = findings.to_vec();
        for finding in findings.iter_mut().filter(|finding| finding.file.is_none()) {
            let rule = self
                .rules
                .iter()
                .find(|rule| finding.object.as_ref() == Some(&rule.object.key().to_string()));
            if let Some(rule) = rule {
                rule.place(finding);
            }
        }
        findings
    }
}

fn change(object: &Object, current: &BTreeMap<ObjectKey, Stored>) -> ResourceChange {
    let key = object.key();
    let expect = match (object.metadata.resource_version, current.get(&key)) {
        (Some(version), _) => Precondition::At(Revision(version)),
        (None, Some(stored)) => Precondition::At(stored.changed),
        (None, None) => Precondition::Absent,
    };
    let mut object = object.clone();
    object.metadata.resource_version = None;
    ResourceChange { key, object: Some(object), expect }
}

/// One line for each object and what became of it.
pub(crate) fn outcomes(results: &[(ObjectKey, Outcome)], dry_run: bool) -> String {
    let dry = if dry_run { " (dry run)" } else { "" };
    let mut lines = String::new();
    for (key, outcome) in results {
        let (word, tone) = word(*outcome);
        let _ = writeln!(lines, "{} {}{dry}", lower(key), paint(tone, word));
    }
    lines
}

/// The word for what became of an object.
pub(crate) fn word(outcome: Outcome) -> (&'static str, Tone) {
    match outcome {
        Outcome::Created => ("created", Tone::Good),
        Outcome::Configured => ("configured", Tone::Warn),
        Outcome::Unchanged => ("unchanged", Tone::Plain),
        Outcome::Deleted => ("deleted", Tone::Bad),
    }
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(" ")
}

/// What a refusal must say, once.
const UNCHANGED: &str = "nothing was changed";

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Rule> {
        let mut rules = Rules::default();
        rules.add("rules.yaml", text, "default");
        assert!(rules.findings.is_empty(), "{:?}", rules.findings);
        rules.all
    }

    fn order(text: &str, prune: bool) -> Order {
        Order { rules: rules(text), reason: "apply".into(), prune, dry_run: false, strict: false }
    }

    fn stored(text: &str, changed: u64) -> BTreeMap<ObjectKey, Stored> {
        let object = rules(text).remove(0).object;
        let stored = Stored { object, created: Revision(1), changed: Revision(changed) };
        BTreeMap::from([(stored.object.key(), stored)])
    }

    const RULE: &str = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: reviews}, \
                        spec: {host: reviews}}";
    const OTHER: &str = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: ratings}, \
                         spec: {host: ratings}}";
    const VERSIONED: &str = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, \
                             metadata: {name: reviews, resourceVersion: '7'}, spec: {host: reviews}}";

    #[test]
    fn a_new_object_must_still_be_absent() {
        let batch = order(RULE, false).batch(&BTreeMap::new());

        assert_eq!(batch.changes[0].expect, Precondition::Absent);
    }

    #[test]
    fn a_known_object_must_still_be_at_the_revision_read() {
        let batch = order(RULE, false).batch(&stored(RULE, 12));

        assert_eq!(batch.changes[0].expect, Precondition::At(Revision(12)));
    }

    #[test]
    fn a_named_resource_version_is_the_one_expected_and_is_not_stored() {
        let order = order(VERSIONED, false);
        let batch = order.batch(&stored(RULE, 12));

        assert_eq!(batch.changes[0].expect, Precondition::At(Revision(7)));
        assert_eq!(
            batch.changes[0].object.as_ref().and_then(|object| object.metadata.resource_version),
            None
        );
        assert!(!order.may_retry());
    }

    #[test]
    fn prune_deletes_only_what_is_in_the_namespaces_of_the_files() {
        let mut current = stored(OTHER, 3);
        let mut elsewhere = current.values().next().expect("one").clone();
        elsewhere.object.metadata.namespace = "shop".into();
        current.insert(elsewhere.object.key(), elsewhere);

        let batch = order(RULE, true).batch(&current);

        let gone: Vec<_> = batch
            .changes
            .iter()
            .filter(|change| change.object.is_none())
            .map(|change| change.key.to_string())
            .collect();
        assert_eq!(gone, ["DestinationRule default/ratings"]);
    }

    #[test]
    fn findings_of_the_mesh_get_the_file_of_their_object() {
        let finding = Finding::warning("missing-host", "spec.host", "no service")
            .on(&"DestinationRule default/reviews");

        let placed = order(RULE, false).placed(&[finding]);

        assert_eq!(placed[0].file.as_deref(), Some("rules.yaml"));
    }
}
