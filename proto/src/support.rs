//! The honesty table: what meshd does with each field of Istio's API.
//!
//! A field is honoured, refused by name at apply, or known to have no effect; never silently ignored. The table
//! itself is in `support::table`, one line a field; the page for users is made from [`paths`].

mod report;
mod schema;
mod table;
mod values;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crate::finding::Finding;
use crate::resource::Kind;
use crate::yaml::{Document, Node, Value, join, shorten};
use table::Row;

pub use report::{Field, Word, counts, report};

/// What meshd does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does what Istio says.
    Honoured,
    /// It does what Istio says for these values; others are refused, for the reason given.
    Only(&'static [&'static str], &'static str),
    /// It does what Istio says in some places, and in others nothing, which a warning tells.
    InPart(&'static str),
    /// It is refused at apply, for the reason given.
    Refused(&'static str),
    /// It is accepted and changes nothing, for the reason given.
    WithoutEffect(&'static str),
}

/// Returns every field of every kind, with what meshd does with it.
///
/// Paths are below `spec`, with `[]` for the items of a list and `{}` for the values of a map:
/// `http[].route[].weight`. A list or map of plain values, and a `StringMatch`, is one field. What is said of a field
/// holds for all below it; the empty path is the kind as a whole.
pub fn paths() -> impl Iterator<Item = (Kind, &'static str, Status)> {
    Kind::ALL
        .iter()
        .flat_map(|kind| fields(*kind).iter().map(|(path, status)| (*kind, path.as_str(), *status)))
}

/// Returns what meshd does with a field, named as in [`paths`].
///
/// `None` where there is no such field, or where it has fields of its own that differ.
pub fn status(kind: Kind, path: &str) -> Option<Status> {
    let fields = fields(kind);
    let above = path.char_indices().filter(|(_, letter)| matches!(letter, '.' | '[' | '{'));
    std::iter::once(0)
        .chain(above.map(|(end, _)| end))
        .chain([path.len()])
        .find_map(|end| fields.get(&path[..end]).copied())
}

/// Reports every field the document writes that meshd refuses or that has no effect.
pub fn check(document: &Document) -> Vec<Finding> {
    let kind = document.object.kind();
    if let Some(Status::Refused(reason)) = fields(kind).get("") {
        let finding = Finding::error("refused-kind", "kind", format!("{kind} is read but {reason}"));
        return vec![document.place(finding.with_hint("leave it out until it is"))];
    }
    let mut walk = Walk { kind, found: Vec::new() };
    if let Some(spec) = document.spec() {
        walk.visit(spec, "", "spec");
    }
    walk.found.extend(values::check(&document.object));
    walk.found.into_iter().map(|finding| document.place(finding)).collect()
}

type Fields = BTreeMap<String, Status>;

fn fields(kind: Kind) -> &'static Fields {
    static TABLE: OnceLock<BTreeMap<Kind, Fields>> = OnceLock::new();
    static NONE: Fields = Fields::new();
    let table = TABLE.get_or_init(|| {
        let fields = |kind: &Kind| {
            let mut fields = Fields::new();
            expand("", table::of(*kind), &mut fields);
            (*kind, fields)
        };
        Kind::ALL.iter().map(fields).collect()
    });
    table.get(&kind).unwrap_or(&NONE)
}

fn expand(prefix: &str, rows: &[Row], into: &mut Fields) {
    for row in rows {
        match row {
            Row::Field(path, status) => {
                into.insert(below(prefix, path), *status);
            }
            Row::Message(path, rows) => expand(&below(prefix, path), rows, into),
        }
    }
}

fn below(prefix: &str, path: &str) -> String {
    if prefix.is_empty() { path.to_owned() } else { format!("{prefix}.{path}") }
}

struct Walk {
    kind: Kind,
    found: Vec<Finding>,
}

impl Walk {
    /// Looks at a value: `field` is its name in the table, `path` its name in the file.
    fn visit(&mut self, node: &Node, field: &str, path: &str) {
        if let Some(status) = fields(self.kind).get(field) {
            self.judge(*status, node, path);
            return;
        }
        match &node.value {
            Value::Map(entries) => {
                let is_map = has_below(self.kind, &format!("{field}{{}}"));
                for (key, child) in entries {
                    let next = if is_map { format!("{field}{{}}") } else { below(field, &key.name) };
                    self.visit(child, &next, &join(path, &key.name));
                }
            }
            Value::List(items) => {
                let next = format!("{field}[]");
                for (index, item) in items.iter().enumerate() {
                    self.visit(item, &next, &format!("{path}[{index}]"));
                }
            }
            // A field the table does not know cannot be honoured. Unknown fields are reported by the reader.
            _ => {}
        }
    }

    fn judge(&mut self, status: Status, node: &Node, path: &str) {
        match status {
            Status::Honoured => {
                for (path, text) in
                    texts(node, path).into_iter().filter(|(_, text)| is_socket(self.kind, text))
                {
                    let message =
                        format!("{:?} is not enforced: sockets of files are not listened on", shorten(text));
                    let hint = "write an address of this host";
                    self.found.push(Finding::error("refused-value", path, message).with_hint(hint));
                }
            }
            _ if is_unused(node) || is_quiet(self.kind, path, node) => {}
            Status::Only(values, reason) => {
                for (path, text) in texts(node, path) {
                    if !values.contains(&text) {
                        let message = format!("{:?} is not enforced yet: {reason}", shorten(text));
                        let hint = format!("meshd takes {}", values.join(", "));
                        self.found.push(Finding::error("refused-value", path, message).with_hint(hint));
                    }
                }
            }
            Status::Refused(reason) => {
                self.found.push(Finding::error("refused-field", path, reason));
            }
            Status::InPart(reason) => {
                self.found.push(Finding::warning("in-part", path, format!("counts in part: {reason}")));
            }
            Status::WithoutEffect(reason) => {
                let message = format!("has no effect: {reason}");
                self.found.push(Finding::warning("without-effect", path, message));
            }
        }
    }
}

/// Whether a field that needs a warning needs none here: Istio wants it written, or it asks for what is done anyway.
fn is_quiet(kind: Kind, path: &str, node: &Node) -> bool {
    match kind {
        Kind::Sidecar | Kind::Gateway => path.ends_with(".port.name"),
        Kind::ServiceEntry => {
            path == "spec.location" && matches!(&node.value, Value::Text(text) if **text == *"MESH_EXTERNAL")
        }
        _ => false,
    }
}

/// Whether a text is a Unix socket where an address is meant.
fn is_socket(kind: Kind, text: &str) -> bool {
    matches!(kind, Kind::Gateway | Kind::Sidecar) && text.starts_with("unix://")
}

fn has_below(kind: Kind, prefix: &str) -> bool {
    fields(kind).range(prefix.to_owned()..).next().is_some_and(|(path, _)| path.starts_with(prefix))
}

/// Whether a value is the same as none. `false` is not: some fields are on by default.
fn is_unused(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::List(items) => items.is_empty(),
        _ => false,
    }
}

/// Returns the texts (or the truth) of a field, with their paths: of the value or of the items of a list.
fn texts<'n>(node: &'n Node, path: &str) -> Vec<(String, &'n str)> {
    match &node.value {
        Value::Text(text) => vec![(path.to_owned(), text)],
        Value::Bool(true) => vec![(path.to_owned(), "true")],
        Value::Bool(false) => vec![(path.to_owned(), "false")],
        Value::List(items) => items
            .iter()
            .enumerate()
            .flat_map(|(index, item)| texts(item, &format!("{path}[{index}]")))
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
