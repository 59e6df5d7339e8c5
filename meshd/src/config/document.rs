//! Reads TOML with a place for everything: each finding names file, line, column and key, and all are reported.
//!
//! Used for `meshd.toml` and for the files of `services.d`. What the keys mean is decided by their readers.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use mesh_proto::finding::{Finding, Severity};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value together with where it stands.
pub(crate) type Value<'t> = Spanned<DeValue<'t>>;

/// What a reader makes of a value, or everything that is wrong with it.
pub(crate) type Read<T> = Result<T, Vec<Problem>>;

/// Something wrong with a value.
#[derive(Debug)]
pub(crate) struct Problem {
    span: Range<usize>,
    message: String,
}

impl Problem {
    fn at(value: &Value<'_>, message: impl Into<String>) -> Vec<Self> {
        vec![Self { span: value.span(), message: message.into() }]
    }
}

/// A file being read: its text, what was found wrong, and where each key stands.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    file: String,
    text: &'t str,
    places: BTreeMap<String, Range<usize>>,
    findings: Vec<Finding>,
}

impl<'t> Document<'t> {
    /// Parses `text`. Where the syntax is broken, every place is a finding and there is nothing to read.
    pub(crate) fn parse(file: &str, text: &'t str) -> (Self, Option<Section<'t>>) {
        let mut document =
            Self { file: file.to_owned(), text, places: BTreeMap::new(), findings: Vec::new() };
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            document.report(error.span(), Severity::Error, "syntax", "", error.message());
        }
        let span = root.span();
        let section = errors.is_empty().then(|| Section::new(String::new(), span, root.into_inner()));
        (document, section)
    }

    /// Adds an error about the key at `path`, placed at the key or the nearest one above it.
    pub(crate) fn error(&mut self, code: &'static str, path: &str, message: impl Into<String>) {
        let span = self.place_of(path);
        self.report(span, Severity::Error, code, path, message);
    }

    /// Returns line and column of a key, or of the nearest one above it.
    pub(crate) fn position(&self, path: &str) -> Option<(u32, u32)> {
        self.place_of(path).map(|span| position(self.text, span.start))
    }

    /// Returns everything found, in the order of the file.
    pub(crate) fn into_findings(mut self) -> Vec<Finding> {
        self.findings.sort_by_key(|finding| (finding.line, finding.column));
        self.findings
    }

    fn place_of(&self, path: &str) -> Option<Range<usize>> {
        let mut path = path;
        loop {
            if let Some(span) = self.places.get(path) {
                return Some(span.clone());
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    fn report(
        &mut self,
        span: Option<Range<usize>>,
        severity: Severity,
        code: &'static str,
        path: &str,
        message: impl Into<String>,
    ) {
        let mut finding = Finding::new(severity, code, path, message);
        finding.file = Some(self.file.clone());
        if let Some(span) = span {
            let (line, column) = position(self.text, span.start);
            (finding.line, finding.column) = (Some(line), Some(column));
        }
        self.findings.push(finding);
    }
}

/// A table whose keys are taken one by one; those nobody asked for are unknown.
#[derive(Debug)]
pub(crate) struct Section<'t> {
    /// Dotted path of the table; empty for the whole file.
    pub(crate) path: String,
    span: Range<usize>,
    entries: Vec<(String, Range<usize>, Option<Value<'t>>)>,
    known: Vec<&'static str>,
}

impl<'t> Section<'t> {
    fn new(path: String, span: Range<usize>, table: DeTable<'t>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| (key.get_ref().to_string(), key.span(), Some(value)))
            .collect();
        Self { path, span, entries, known: Vec::new() }
    }

    /// Reads the key if it is there. A value that cannot be read is reported, and counts as absent.
    pub(crate) fn take<T>(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
        read: impl Fn(&Value<'t>) -> Read<T>,
    ) -> Option<T> {
        let (path, value) = self.remove(document, key)?;
        read(&value).map_err(|problems| report_all(document, &path, problems)).ok()
    }

    /// Reads a key that must be there; its absence is reported at the table.
    pub(crate) fn require<T>(
        &mut self,
        document: &mut Document<'t>,
        key: &'static str,
        read: impl Fn(&Value<'t>) -> Read<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            let span = Some(self.span.clone());
            document.report(span, Severity::Error, "missing-key", &self.path_of(key), "is required");
            return None;
        }
        self.take(document, key, read)
    }

    /// Enters a table below this one.
    pub(crate) fn section(&mut self, document: &mut Document<'t>, key: &'static str) -> Option<Self> {
        let (path, value) = self.remove(document, key)?;
        enter(document, path, value)
    }

    /// Enters each table of a list (`[[key]]`).
    pub(crate) fn sections(&mut self, document: &mut Document<'t>, key: &'static str) -> Vec<Self> {
        let Some((path, value)) = self.remove(document, key) else { return Vec::new() };
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(items) => items
                .into_iter()
                .enumerate()
                .filter_map(|(at, item)| {
                    let path = format!("{path}[{at}]");
                    document.places.insert(path.clone(), item.span());
                    enter(document, path, item)
                })
                .collect(),
            other => {
                let message = format!("is {}; write it as [[{key}]]", kind_of(&other));
                document.report(Some(span), Severity::Error, "wrong-type", &path, message);
                Vec::new()
            }
        }
    }

    /// Whether the key stands in the file and was not taken yet.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _, value)| name == key && value.is_some())
    }

    /// Returns the dotted path of a key of this table.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports every key that nobody asked for, with the nearest that exists.
    pub(crate) fn finish(self, document: &mut Document<'t>) {
        for (name, span, value) in &self.entries {
            if value.is_none() {
                continue;
            }
            let path = self.path_of(name);
            document.report(Some(span.clone()), Severity::Error, "unknown-key", &path, "unknown key");
            let hint = match nearest(name, self.known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let hint =
                format!("{hint}; or it is a key of a newer meshd: this is {}", env!("CARGO_PKG_VERSION"));
            if let Some(finding) = document.findings.last_mut() {
                finding.hint = Some(hint);
            }
        }
    }

    fn remove(&mut self, document: &mut Document<'t>, key: &'static str) -> Option<(String, Value<'t>)> {
        self.known.push(key);
        let path = self.path_of(key);
        let (_, span, value) = self.entries.iter_mut().find(|(name, ..)| name == key)?;
        document.places.insert(path.clone(), span.clone());
        Some((path, value.take()?))
    }
}

fn enter<'t>(document: &mut Document<'t>, path: String, value: Value<'t>) -> Option<Section<'t>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Section::new(path, span, table)),
        other => {
            let message = format!("is {}, not a table", kind_of(&other));
            document.report(Some(span), Severity::Error, "wrong-type", &path, message);
            None
        }
    }
}

fn report_all(document: &mut Document<'_>, path: &str, problems: Vec<Problem>) {
    for problem in problems {
        document.report(Some(problem.span), Severity::Error, "invalid-value", path, problem.message);
    }
}

/// Returns the known word that was probably meant; `None` when none is near.
pub(crate) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // 0.75 finds one slip in a short word and two in a long one, and does not guess between strangers.
    let alike = |other: &str| strsim::jaro_winkler(&word.to_ascii_lowercase(), other);
    known
        .map(|other| (alike(other), other))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}

/// Reads a text.
pub(crate) fn text(value: &Value<'_>) -> Read<String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        other => Err(Problem::at(value, format!("is {}, not a text in quotes", kind_of(other)))),
    }
}

/// Reads `true` or `false`.
pub(crate) fn flag(value: &Value<'_>) -> Read<bool> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Ok(*flag),
        other => Err(Problem::at(value, format!("is {}, not true or false", kind_of(other)))),
    }
}

/// Makes a reader of whole numbers within a range.
pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&Value<'_>) -> Read<T>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let DeValue::Integer(digits) = value.get_ref() else {
            return Err(Problem::at(value, format!("is {}, not a whole number", kind_of(value.get_ref()))));
        };
        i64::from_str_radix(digits.as_str(), digits.radix())
            .ok()
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                Problem::at(
                    value,
                    format!("must lie between {} and {}, is {}", range.start(), range.end(), digits.as_str()),
                )
            })
    }
}

/// Makes a reader of texts that `parse` understands; its error says what is wrong.
pub(crate) fn parsed<T, E: ToString>(parse: impl Fn(&str) -> Result<T, E>) -> impl Fn(&Value<'_>) -> Read<T> {
    move |value| {
        let text = text(value)?;
        parse(&text).map_err(|error| Problem::at(value, error.to_string()))
    }
}

/// Makes a reader for which the empty text means "none".
pub(crate) fn optional<T>(read: impl Fn(&Value<'_>) -> Read<T>) -> impl Fn(&Value<'_>) -> Read<Option<T>> {
    move |value| {
        if value.get_ref().as_str() == Some("") {
            return Ok(None);
        }
        read(value).map(Some)
    }
}

/// Makes a reader of lists; one value stands for a list of one, the empty text for an empty list.
pub(crate) fn list<T>(read: impl Fn(&Value<'_>) -> Read<T>) -> impl Fn(&Value<'_>) -> Read<Vec<T>> {
    move |value| match value.get_ref() {
        DeValue::String(text) if text.is_empty() => Ok(Vec::new()),
        DeValue::Array(items) => {
            let mut problems = Vec::new();
            let items = items.iter().filter_map(|item| read(item).map_err(|p| problems.extend(p)).ok());
            let items = items.collect();
            if problems.is_empty() { Ok(items) } else { Err(problems) }
        }
        _ => read(value).map(|item| vec![item]),
    }
}

/// Makes a reader of tables whose keys are free.
pub(crate) fn map<T>(
    read: impl Fn(&str, &Value<'_>) -> Read<T>,
) -> impl Fn(&Value<'_>) -> Read<BTreeMap<String, T>> {
    move |value| {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(Problem::at(
                value,
                format!("is {}, not a table such as {{ version = \"v1\" }}", kind_of(value.get_ref())),
            ));
        };
        let mut problems = Vec::new();
        let mut all = BTreeMap::new();
        for (key, value) in table {
            match read(key.get_ref(), value) {
                Ok(item) => drop(all.insert(key.get_ref().to_string(), item)),
                Err(more) => problems.extend(more),
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(problems) }
    }
}

/// Makes a reader of one word out of several.
pub(crate) fn choice<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&Value<'_>) -> Read<T> {
    let words = words.to_vec();
    parsed(move |text| {
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let near = nearest(text, words.iter().map(|(word, _)| *word));
            let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            format!("{text:?} is not one of {}{near}", all.join(", "))
        })
    })
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Turns a byte offset into a line and a column in characters, both from 1.
fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}
