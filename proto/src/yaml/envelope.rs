//! What stands around a specification: apiVersion, kind, metadata, status; and `kind: List`.

use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer};

use super::decode::{self, Slip};
use super::split::Part;
use super::tree::{self, Node, Position, Value, shorten};
use super::{Document, Read, State, nearest, refused};
use crate::finding::{Finding, Severity};
use crate::resource::{Kind, MESH_CONFIG_NAME, Object, ObjectMeta, ROOT_NAMESPACE, Spec};

/// Reads one document of a file, or the items of a list.
pub(super) fn read(file: &str, number: u32, part: &Part<'_>, into: &mut Read) {
    let mut about = About { file, number, object: None, errors: State::Clean, read: into };
    if part.text.len() > super::MAX_DOCUMENT_BYTES {
        let message =
            format!("the document has over {} KB, the most that is read", super::MAX_DOCUMENT_BYTES >> 10);
        about.error("document-too-large", start(part), "", &message, Some("split it into several objects"));
        return;
    }
    match tree::parse(part) {
        Ok(root) => about.root(root),
        Err(mistake) => {
            let message = format!("not YAML: {}", mistake.message);
            about.error("not-yaml", mistake.at, "", &message, None);
        }
    }
}

fn start(part: &Part<'_>) -> Position {
    Position { line: part.line, column: 1 }
}

/// One document being read.
struct About<'a> {
    file: &'a str,
    number: u32,
    object: Option<String>,
    errors: State,
    read: &'a mut Read,
}

impl About<'_> {
    fn root(&mut self, root: Node) {
        let duplicates = root.duplicate_keys();
        self.name(&root);
        for (path, at, first) in duplicates {
            let message = format!("the key is here twice (first on line {})", first.line);
            self.error("duplicate-key", at, &path, &message, Some("remove one of them"));
        }
        if text(&root, "kind").is_some_and(|kind| kind == "List") && root.get("items").is_some() {
            self.list(root);
        } else {
            self.object(root);
        }
    }

    fn list(&mut self, root: Node) {
        let Value::Map(entries) = root.value else { return };
        for (key, node) in entries {
            if &*key.name != "items" {
                continue;
            }
            let Value::List(items) = node.value else {
                self.error("wrong-type", key.at, "items", "must be a list", None);
                return;
            };
            let broken = self.errors;
            for item in items {
                self.errors = broken;
                self.name(&item);
                self.object(item);
            }
        }
    }

    /// Finds out what to call the object, as far as the document tells.
    fn name(&mut self, root: &Node) {
        self.object = text(root, "kind").map(|kind| {
            let name = text(root, "metadata.name").unwrap_or("(no name)");
            let namespace = text(root, "metadata.namespace").unwrap_or(DEFAULT_NAMESPACE);
            format!("{} {}/{}", shorten(kind), shorten(namespace), shorten(name))
        });
    }

    fn object(&mut self, root: Node) {
        if !matches!(root.value, Value::Map(_)) {
            let message = format!(
                "an object must be a map with apiVersion, kind, metadata and spec, not {}",
                root.describe()
            );
            self.error("wrong-type", root.at, "", &message, None);
            return;
        }
        let Some(kind) = self.kind(&root) else { return };
        self.top_level(&root, kind);
        let metadata = self.metadata(&root, kind);
        let spec = self.spec(&root, kind);
        let (Some((metadata, namespace_given)), Some(spec)) = (metadata, spec) else { return };
        let document = Document {
            object: Object { metadata, spec },
            namespace_given,
            file: self.file.to_owned(),
            number: self.number,
            root,
        };
        self.read.documents.push((document, self.errors));
    }

    fn kind(&mut self, root: &Node) -> Option<Kind> {
        let Some(name) = text(root, "kind") else {
            let hint = format!("write for example \"kind: {}\"", Kind::VirtualService);
            self.error("no-kind", root.find("kind"), "kind", "must be there, as text", Some(&hint));
            return None;
        };
        let version = text(root, "apiVersion").unwrap_or_default();
        let (group, number) = version.split_once('/').unwrap_or(("", version));
        let kind = name.parse::<Kind>().ok().filter(|_| group != "gateway.networking.k8s.io");
        let Some(kind) = kind else {
            self.unknown_kind(root, group, name);
            return None;
        };
        if root.get("apiVersion").is_none() {
            let hint = format!("write \"apiVersion: {}\"", kind.api_version());
            self.error("no-api-version", root.at, "apiVersion", "must be there", Some(&hint));
            return Some(kind);
        }
        if group != kind.group() || !kind.versions().contains(&number) {
            let versions: Vec<_> =
                kind.versions().iter().map(|number| format!("{}/{number}", kind.group())).collect();
            let message = format!("{:?} is not a version of {kind} that meshd reads", shorten(version));
            let hint = format!("write {}", versions.join(" or "));
            self.error("unknown-version", root.find("apiVersion"), "apiVersion", &message, Some(&hint));
        }
        Some(kind)
    }

    fn unknown_kind(&mut self, root: &Node, group: &str, name: &str) {
        let at = root.find("kind");
        if let Some((reason, hint)) = refused::reason(group, name) {
            self.error("refused-kind", at, "kind", &format!("{name} {reason}"), Some(hint));
            return;
        }
        let kinds = Kind::ALL.iter().map(|kind| kind.name());
        let hint = match nearest(name, kinds.clone()) {
            Some(kind) => format!("did you mean {kind:?}?"),
            None => format!("there is {}", kinds.collect::<Vec<_>>().join(", ")),
        };
        self.error("unknown-kind", at, "kind", &format!("unknown kind {:?}", shorten(name)), Some(&hint));
    }

    fn top_level(&mut self, root: &Node, kind: Kind) {
        let Value::Map(entries) = &root.value else { return };
        for (key, _) in entries {
            match &*key.name {
                "apiVersion" | "kind" | "metadata" | "spec" => {}
                "status" => {
                    self.info("ignored-status", key.at, "status", "is ignored: it is not for users to set");
                }
                name => {
                    let hint = match nearest(name, ["apiVersion", "kind", "metadata", "spec"]) {
                        Some(right) => format!("did you mean {right:?}?"),
                        None => format!("the fields of a {kind} belong under \"spec:\""),
                    };
                    self.unknown(key.at, &tree::join("", name), &hint);
                }
            }
        }
    }

    fn metadata(&mut self, root: &Node, kind: Kind) -> Option<(ObjectMeta, bool)> {
        let Some((key, node)) = root.entry("metadata") else {
            self.error("no-name", root.at, "metadata.name", "must be there", Some("every object has a name"));
            return None;
        };
        let mut kept = node.clone();
        if let Value::Map(entries) = &mut kept.value {
            for (field, _) in entries.iter().filter(|(field, _)| SERVER_FIELDS.contains(&&*field.name)) {
                let path = format!("metadata.{}", field.name);
                self.info("ignored-metadata", field.at, &path, "is ignored: it is not for users to set");
            }
            entries.retain(|(field, _)| !SERVER_FIELDS.contains(&&*field.name));
        }
        let (metadata, slips) = decode::decode(&Seed::<ObjectMeta>::new(), "metadata", Some(key), &kept);
        self.slips(slips);
        let mut metadata = metadata?;
        if metadata.name.is_empty() {
            self.error(
                "no-name",
                root.find("metadata.name"),
                "metadata.name",
                "must be there",
                Some("every object has a name"),
            );
        } else {
            self.check_name(root, "metadata.name", &metadata.name, 253, true);
        }
        let namespace_given = !metadata.namespace.is_empty();
        if namespace_given {
            self.check_name(root, "metadata.namespace", &metadata.namespace, 63, false);
        } else {
            let namespace = if kind == Kind::MeshConfig { ROOT_NAMESPACE } else { DEFAULT_NAMESPACE };
            metadata.namespace = namespace.into();
        }
        if kind == Kind::MeshConfig
            && (*metadata.name != *MESH_CONFIG_NAME || *metadata.namespace != *ROOT_NAMESPACE)
        {
            let message =
                format!("there is one MeshConfig, and it is named {ROOT_NAMESPACE}/{MESH_CONFIG_NAME}");
            self.error("invalid-name", root.find("metadata.name"), "metadata.name", &message, None);
        }
        Some((metadata, namespace_given))
    }

    /// Kubernetes' rule: lower-case letters, digits and `-`, with dots between where `dots`.
    fn check_name(&mut self, root: &Node, path: &str, name: &str, most: usize, dots: bool) {
        let label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
        };
        let right = if dots { name.split('.').all(label) } else { label(name) };
        if !right || name.len() > most {
            let dot = if dots { ", \"-\" and \".\"" } else { " and \"-\"" };
            let message = format!(
                "{:?} is no name: at most {most} lower-case letters, digits{dot}, with a letter or digit at both ends",
                shorten(name)
            );
            self.error("invalid-name", root.find(path), path, &message, None);
        }
    }

    fn spec(&mut self, root: &Node, kind: Kind) -> Option<Spec> {
        let empty = Node { value: Value::Map(Vec::new()), at: root.at };
        let (key, node) = match root.entry("spec") {
            Some((key, node)) if !matches!(node.value, Value::Null) => (Some(key), node),
            Some((key, _)) => (Some(key), &empty),
            None => {
                self.error("no-spec", root.at, "spec", "must be there", None);
                (None, &empty)
            }
        };
        let (spec, slips) = decode::decode(&kind, "spec", key, node);
        self.slips(slips);
        spec
    }

    fn slips(&mut self, slips: Vec<Slip>) {
        for slip in slips {
            if slip.code == decode::UNKNOWN_FIELD {
                self.unknown(slip.at, &slip.path, slip.hint.as_deref().unwrap_or("remove it"));
            } else {
                self.error(slip.code, slip.at, &slip.path, &slip.message, slip.hint.as_deref());
            }
        }
    }

    fn unknown(&mut self, at: Position, path: &str, hint: &str) {
        if self.errors == State::Clean {
            self.errors = State::Unknown;
        }
        let finding = Finding::error(decode::UNKNOWN_FIELD, path, "unknown field").with_hint(hint);
        self.push(at, finding);
    }

    fn error(&mut self, code: &'static str, at: Position, path: &str, message: &str, hint: Option<&str>) {
        self.errors = State::Broken;
        let finding = Finding::error(code, path, message);
        self.push(at, Finding { hint: hint.map(ToOwned::to_owned), ..finding });
    }

    fn info(&mut self, code: &'static str, at: Position, path: &str, message: &str) {
        self.push(at, Finding::new(Severity::Info, code, path, message));
    }

    fn push(&mut self, at: Position, finding: Finding) {
        // Far more than is shown, so that the order of the file decides what is.
        if self.read.findings.len() < 2 * super::MAX_FINDINGS {
            self.read.findings.push(Finding {
                file: Some(self.file.to_owned()),
                line: Some(at.line),
                column: Some(at.column),
                document: Some(self.number),
                object: self.object.clone(),
                ..finding
            });
        }
    }
}

fn text<'n>(root: &'n Node, path: &str) -> Option<&'n str> {
    match &root.get(path)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

const DEFAULT_NAMESPACE: &str = "default";

/// What Kubernetes adds to objects it hands out.
const SERVER_FIELDS: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "selfLink",
    "uid",
];

/// Reads a type as a whole.
struct Seed<T>(PhantomData<T>);

impl<T> Seed<T> {
    const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Clone for Seed<T> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Seed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        T::deserialize(from)
    }
}
