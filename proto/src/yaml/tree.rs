//! A document as a tree whose every part knows its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::split::Part;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
}

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Box<str>),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map with its place.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: Box<str>,
    pub(crate) at: Position,
}

/// What is wrong with a text that is no YAML.
pub(super) struct Mistake {
    pub(super) at: Position,
    pub(super) message: String,
}

/// Reads one document. Keys that come twice are kept twice.
pub(super) fn parse(part: &Part<'_>) -> Result<Node, Mistake> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        with_snippet: false,
        // Kubernetes and Istio read YAML 1.1: 017 is 15.
        legacy_octal_numbers: true,
        budget: serde_saphyr::budget! {
            max_events: MAX_NODES * 3,
            max_nodes: MAX_NODES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
    };
    serde_saphyr::from_str_with_options::<Spanned<Value>>(part.text, options)
        .map(|node| Node::from(node).shifted(part.line - 1))
        .map_err(|error| mistake(&error, part))
}

/// Nodes of a document: several times those of the largest sensible rule.
const MAX_NODES: usize = 50_000;
/// Istio's own messages nest about 16 deep. Each level costs some 20 KB of stack in a debug build.
const MAX_DEPTH: usize = 32;
/// Events that aliases may repeat.
const MAX_REPLAYED: usize = 20_000;

fn mistake(error: &serde_saphyr::Error, part: &Part<'_>) -> Mistake {
    let at = error.location().map_or(Position { line: 1, column: 1 }, position);
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let message = match text {
        text if text.starts_with("budget breached: Nodes") || text.starts_with("budget breached: Events") => {
            format!("it holds more than {MAX_NODES} values; split it into several objects")
        }
        text if text.starts_with("recursion limit") || text.starts_with("budget breached: Depth") => {
            format!("it is nested more than {MAX_DEPTH} deep")
        }
        text if text.starts_with("alias replay limit") => {
            format!("its aliases repeat more than {MAX_REPLAYED} values")
        }
        // The place stands in front of our own message already.
        text => shorten(text.split(" at line ").next().unwrap_or(text)),
    };
    Mistake { at: Position { line: at.line.saturating_add(part.line - 1), ..at }, message }
}

fn position(location: Location) -> Position {
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).max(1);
    Position { line: number(location.line()), column: number(location.column()) }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { value: spanned.value, at: position(spanned.referenced) }
    }
}

impl Node {
    /// Returns the entry of a map.
    pub(crate) fn entry(&self, name: &str) -> Option<(&Key, &Self)> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| &*key.name == name).map(|(key, node)| (key, node))
    }

    /// Returns the field at a path such as `spec.http[0].headers["x.y"]`.
    pub(crate) fn get(&self, path: &str) -> Option<&Self> {
        steps(path).try_fold(self, |node, step| node.step(step).map(|(_, node)| node))
    }

    /// Returns the place of the field at a path, or of the nearest field around it.
    pub(crate) fn find(&self, path: &str) -> Position {
        let mut node = self;
        let mut at = self.at;
        for step in steps(path) {
            let Some((key, next)) = node.step(step) else { break };
            at = next.place(key);
            node = next;
        }
        at
    }

    /// Returns the place to show for this value under a key: its own if it fits a line, else the key's.
    pub(crate) fn place(&self, key: Option<&Key>) -> Position {
        match (&self.value, key) {
            (Value::List(_) | Value::Map(_) | Value::Null, Some(key)) => key.at,
            _ => self.at,
        }
    }

    /// Says what the value is, for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("{value}"),
            Value::Unsigned(value) => format!("the number {value}"),
            Value::Signed(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(text) => format!("the text {:?}", shorten(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    /// Returns the keys that come again in the same map: path, place, place of the first.
    pub(super) fn duplicate_keys(&self) -> Vec<(String, Position, Position)> {
        let mut found = Vec::new();
        // Paths are only written out where they are needed.
        if self.has_duplicates() {
            self.collect_duplicates("", &mut found);
        }
        found
    }

    fn has_duplicates(&self) -> bool {
        match &self.value {
            Value::Map(entries) => {
                let mut seen = BTreeSet::new();
                entries.iter().any(|(key, node)| !seen.insert(&*key.name) || node.has_duplicates())
            }
            Value::List(items) => items.iter().any(Self::has_duplicates),
            _ => false,
        }
    }

    fn collect_duplicates(&self, path: &str, found: &mut Vec<(String, Position, Position)>) {
        match &self.value {
            Value::Map(entries) => {
                let mut seen = BTreeMap::new();
                for (key, node) in entries {
                    let here = join(path, &key.name);
                    node.collect_duplicates(&here, found);
                    let first = *seen.entry(&*key.name).or_insert(key.at);
                    if first != key.at {
                        found.push((here, key.at, first));
                    }
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.collect_duplicates(&format!("{path}[{index}]"), found);
                }
            }
            _ => {}
        }
    }

    fn step(&self, step: Step<'_>) -> Option<(Option<&Key>, &Self)> {
        match (step, &self.value) {
            (Step::Name(name), Value::Map(_)) => self.entry(name).map(|(key, node)| (Some(key), node)),
            (Step::Index(index), Value::List(items)) => items.get(index).map(|node| (None, node)),
            _ => None,
        }
    }

    fn shifted(mut self, lines: u32) -> Self {
        if lines > 0 {
            self.shift(lines);
        }
        self
    }

    fn shift(&mut self, lines: u32) {
        self.at.line = self.at.line.saturating_add(lines);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => {
                for (key, node) in entries {
                    key.at.line = key.at.line.saturating_add(lines);
                    node.shift(lines);
                }
            }
            _ => {}
        }
    }
}

/// Appends a name to a path; a name with other than letters, digits, `-` and `_` is quoted.
pub(crate) fn join(path: &str, name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    if name.is_empty() || !name.chars().all(plain) {
        return format!("{path}[{:?}]", shorten(name));
    }
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Keeps a message readable when somebody's text is a megabyte.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

/// Takes a path apart.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (name, after) = quoted.split_once("\"]")?;
            rest = after.strip_prefix('.').unwrap_or(after);
            return Some(Step::Name(name));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let (index, after) = index.split_once(']')?;
            rest = after.strip_prefix('.').unwrap_or(after);
            return index.parse().ok().map(Step::Index);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after.strip_prefix('.').unwrap_or(after);
        Some(Step::Name(name))
    })
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    #[expect(clippy::cast_precision_loss, reason = "no field takes numbers this large")]
    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Float(value as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "no field takes numbers this large")]
    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Float(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("the tag !!binary is not used here; write base64 text"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Spanned<Value>>()? {
            if key.value.len() > MAX_KEY_BYTES {
                return Err(A::Error::custom(format!("a key is longer than {MAX_KEY_BYTES} bytes")));
            }
            let key = Key { name: key.value.into(), at: position(key.referenced) };
            map.push((key, value.into()));
        }
        Ok(Value::Map(map))
    }
}

/// Annotations of Kubernetes allow 317; header names are shorter.
const MAX_KEY_BYTES: usize = 1024;
