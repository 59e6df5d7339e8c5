//! The honesty table spread out: one entry for every field path of Istio's schema.
//!
//! What the table says of a field holds for all below it; of a message whose fields differ it says nothing, and here it is
//! `partial`, with how many of its fields do what.

use serde::Serialize;

use super::{Status, fields, schema, status};
use crate::resource::Kind;

/// What meshd does with a field path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// The kind.
    pub kind: Kind,
    /// The path below `spec`, `[]` for the items of a list, `{}` for the values of a map.
    pub path: String,
    /// What is done with it.
    pub status: Word,
    /// Why, where it is not simply honoured; for `partial` which values, or what becomes of the fields below.
    pub reason: String,
}

/// A [`Status`] in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It does what Istio says.
    Honoured,
    /// Some of its values, or some of the fields below it, do what Istio says; the others are refused or without effect.
    Partial,
    /// It is refused at apply.
    Refused,
    /// It is accepted with a warning and changes nothing.
    NoEffect,
}

impl Word {
    /// Every word.
    pub const ALL: [Self; 4] = [Self::Honoured, Self::Partial, Self::Refused, Self::NoEffect];

    /// Returns the word as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Honoured => "honoured",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::NoEffect => "no-effect",
        }
    }
}

/// Returns every field path of a kind, in order of path.
pub fn report(kind: Kind) -> Vec<Field> {
    let paths = schema::paths(kind);
    let entry = |path: &String| {
        let (status, reason) = match status(kind, path) {
            Some(status) => said(status),
            None => mixed(kind, path),
        };
        Field { kind, path: path.clone(), status, reason }
    };
    paths.iter().map(entry).collect()
}

/// Returns how many paths of a kind have each word, in the order of [`Word::ALL`].
pub fn counts(kind: Kind) -> [usize; 4] {
    let fields = report(kind);
    Word::ALL.map(|word| fields.iter().filter(|field| field.status == word).count())
}

fn said(status: Status) -> (Word, String) {
    match status {
        Status::Honoured => (Word::Honoured, String::new()),
        Status::Only(values, reason) => (Word::Partial, format!("only {}: {reason}", values.join(", "))),
        Status::InPart(reason) => (Word::Partial, reason.to_owned()),
        Status::Refused(reason) => (Word::Refused, reason.to_owned()),
        Status::WithoutEffect(reason) => (Word::NoEffect, reason.to_owned()),
    }
}

/// A message, or a list or map of messages: what becomes of the fields below it.
fn mixed(kind: Kind, path: &str) -> (Word, String) {
    let below =
        |field: &&String| field.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[', '{']));
    let words: Vec<Word> =
        fields(kind).iter().filter(|(field, _)| below(field)).map(|(_, status)| said(*status).0).collect();
    match words.as_slice() {
        [] => (Word::Refused, "is not known to meshd".into()),
        [first, rest @ ..] if rest.iter().all(|word| word == first) && *first != Word::Partial => {
            let reason = match first {
                Word::Honoured | Word::Partial => "",
                Word::Refused => "all of its fields are",
                Word::NoEffect => "none of its fields has any",
            };
            (*first, reason.into())
        }
        words => {
            let count = |word: Word| words.iter().filter(|other| **other == word).count();
            let told =
                Word::ALL.iter().map(|word| (count(*word), word.name())).filter(|(count, _)| *count > 0);
            let told: Vec<String> = told.map(|(count, name)| format!("{count} {name}")).collect();
            (Word::Partial, format!("fields below: {}", told.join(", ")))
        }
    }
}
