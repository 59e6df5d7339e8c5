//! No field is honoured in name only: each is taken away, and something must change.
//!
//! For every path that the table of `mesh_proto::support` calls honoured (or in part), the cases that set it are decided
//! once as they are and once without that field, or with another value where it may not be missing. Then
//!
//! - the **verdict** of one of the case's calls is another; or
//! - the **Plan** is, and a test named in [`seen`] says what the data path does with it; or
//! - a test named there is all there is, where not even the Plan holds the field (secrets of a host, files).
//!
//! What no case sets, what changes nothing, and what only the Plan knows of without such a test, is a failure.

mod ablate;
mod picture;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::resource::Kind;
use mesh_proto::support::{Word, report};
use mesh_proto::yaml::{Document, inspect};
use serde_json::Value;

use super::case::Case;
use ablate::Path;

/// How it is known that a field counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Proof {
    /// No case sets it.
    Unset,
    /// Cases set it, and nothing changes without it.
    Ignored(String),
    /// The Plan changes.
    Plan,
    /// A verdict changes.
    Verdict,
}

#[test]
fn no_honoured_field_is_ignored() {
    let cases = Prepared::all();
    let values = ablate::Values::of(cases.iter().flat_map(|case| &case.documents));
    let (mut failures, mut counts) = (Vec::new(), BTreeMap::new());
    for (kind, path) in honoured() {
        let seen = seen::of(kind, &path);
        let proof = prove(&cases, &values, kind, &path, seen.is_some());
        *counts.entry(format!("{proof:?}").split('(').next().unwrap_or_default().to_owned()).or_insert(0) +=
            1;
        let wrong = match (&proof, seen) {
            (Proof::Verdict, _) | (Proof::Plan, Some(_)) => continue,
            (_, Some(seen)) if seen.alone => continue,
            (Proof::Plan, None) => {
                "changes the Plan, but no test sees what the data path does with it: name one in \
                 meshd/core/tests/golden/fields/seen.rs"
                    .to_owned()
            }
            (Proof::Unset, _) => {
                "is set in no case: add a document that sets it, and a call that shows it, to \
                 meshd/core/cases (or to meshd/core/cases/fields, where only the Plan shows it)"
                    .to_owned()
            }
            (Proof::Ignored(set), _) => {
                format!("is set in {set}, but neither a verdict nor the Plan is another without it")
            }
        };
        failures.push(format!("{kind} {path} {wrong}"));
    }
    println!("{counts:?}");
    assert!(
        failures.is_empty(),
        "{} honoured fields without a test that fails when they are ignored:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// That the table does not lie in the other direction; and that a field that nothing reads is found out.
#[test]
fn fields_without_effect_change_nothing() {
    let cases = Prepared::all();
    let values = ablate::Values::of(cases.iter().flat_map(|case| &case.documents));
    let (mut ignored, mut failures) = (0, Vec::new());
    for (kind, path) in leaves(&[Word::NoEffect]) {
        match prove(&cases, &values, kind, &path, true) {
            Proof::Unset => {}
            Proof::Ignored(_) => ignored += 1,
            proof => failures.push(format!("{kind} {path}: {proof:?}")),
        }
    }
    assert!(failures.is_empty(), "fields without effect that have one:\n{}", failures.join("\n"));
    assert!(ignored >= 8, "only {ignored} of them are set in cases");
}

#[test]
fn tests_named_for_fields_are_there() {
    let known: Vec<(Kind, String)> = Kind::ALL
        .iter()
        .flat_map(|kind| report(*kind).into_iter().map(|field| (*kind, field.path)))
        .collect();
    let failures = seen::broken(&known);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every path that is honoured, in whole or in part, and has no fields below it.
fn honoured() -> Vec<(Kind, String)> {
    leaves(&[Word::Honoured, Word::Partial])
}

/// Every path with one of these words that has no fields below it.
fn leaves(words: &[Word]) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        let fields = report(*kind);
        let paths: BTreeSet<&str> = fields.iter().map(|field| field.path.as_str()).collect();
        let has_below = |path: &str| {
            paths
                .iter()
                .any(|other| other.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[', '{'])))
        };
        let wanted = fields.iter().filter(|field| words.contains(&field.status));
        let leaves = wanted.filter(|field| !has_below(&field.path));
        found.extend(leaves.map(|field| (*kind, field.path.clone())));
    }
    found
}

/// A case, read.
struct Prepared {
    name: String,
    case: Case,
    documents: Vec<Value>,
    /// Mistakes that the case makes on purpose.
    mistakes: usize,
    verdicts: Vec<String>,
    picture: String,
}

impl Prepared {
    /// Every golden case; those with a `DestinationRule` once for each place where its policy may stand.
    fn all() -> Vec<Self> {
        let (cases, unread) = super::cases();
        assert!(unread.is_empty(), "{}", unread.join("\n"));
        let mut all = Vec::new();
        for (name, case) in cases {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&case.rules).expect("documents");
            let variants = ablate::spread(&documents);
            all.extend(variants.into_iter().map(|documents| Self::new(&name, case.clone(), documents)));
        }
        all
    }

    fn new(name: &str, case: Case, documents: Vec<Value>) -> Self {
        let (read, mistakes) = read(&documents);
        assert_eq!(read.len(), documents.len(), "{name}: a document cannot be read");
        let plan = case.plan_of(read);
        let (verdicts, picture) = (case.verdicts(&plan), picture::of(&plan));
        Self { name: name.to_owned(), case, documents, mistakes, verdicts, picture }
    }

    /// What is other with these documents; what Istio or meshd would refuse proves nothing.
    fn compare(&self, documents: &[Value]) -> Option<Proof> {
        let (read, mistakes) = read(documents);
        if read.len() != documents.len() || mistakes > self.mistakes {
            return None;
        }
        let plan = self.case.plan_of(read);
        if self.case.verdicts(&plan) != self.verdicts {
            return Some(Proof::Verdict);
        }
        (picture::of(&plan) != self.picture).then_some(Proof::Plan)
    }
}

/// Reads documents and counts mistakes.
fn read(documents: &[Value]) -> (Vec<Document>, usize) {
    let text: Vec<String> = documents.iter().map(Value::to_string).collect();
    let (read, findings) = inspect("rules", &text.join("\n---\n"));
    (read, findings.iter().filter(|finding| finding.is_error()).count())
}

/// Looks for a case that is another without the field; a Plan that is will do where a test sees the rest.
fn prove(cases: &[Prepared], values: &ablate::Values, kind: Kind, path: &str, plan_will_do: bool) -> Proof {
    let path = Path::parse(path);
    let mut best = Proof::Unset;
    for case in cases {
        // That the Plan changes is known: only a call can say more.
        if best == Proof::Plan && case.case.calls.is_empty() {
            continue;
        }
        for (at, document) in case.documents.iter().enumerate() {
            if document["kind"] != kind.to_string() {
                continue;
            }
            for pointer in path.occurrences(document) {
                if best == Proof::Unset {
                    best = Proof::Ignored(case.name.clone());
                }
                for other in values.ablations(&path, document, &pointer) {
                    let mut documents = case.documents.clone();
                    documents[at] = other;
                    match case.compare(&documents) {
                        Some(proof) if plan_will_do || proof == Proof::Verdict => return proof,
                        Some(proof) => best = proof,
                        None => {}
                    }
                }
            }
        }
    }
    best
}
