//! Reads files of rules: many documents, every finding of each, every finding with its place.
//!
//! A file is split into documents first (`split`), so that a slip in one does not hide the others. Each is read into
//! a tree with positions (`tree`), and the tree into types by a deserializer that does not stop at the first mistake
//! (`decode`). JSON is read too, being YAML. Input is bounded: see [`MAX_FILE_BYTES`] and its neighbours.
//!
//! Whether values make sense is for `validate`, whether meshd carries them out is for `support`; [`inspect`] asks all.

mod decode;
mod envelope;
mod refused;
mod split;
mod tree;

use crate::finding::Finding;
use crate::resource::Object;
use crate::{support, validate};

pub use tree::Position;

/// The largest file that is read, in bytes. A mesh of ten thousand rules has about half of it.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// The largest document, in bytes: what Kubernetes' store takes as well, about.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// The most documents in a file.
pub const MAX_DOCUMENTS: usize = 20_000;
/// The most findings for a file; more would not be read by anybody.
pub const MAX_FINDINGS: usize = 500;

/// One object of a file, with the place of every field.
#[derive(Debug, Clone)]
pub struct Document {
    /// The object.
    pub object: Object,
    /// Whether the file names the namespace; if not, it is `default` and a command line may replace it.
    pub namespace_given: bool,
    /// The file as the user named it.
    pub file: String,
    /// Which document of the file, from 1.
    pub number: u32,
    root: Node,
}

impl Document {
    /// Returns the place of a field such as `spec.http[0].route[1].weight`, or of the nearest field around it.
    ///
    /// A value on one line is pointed at itself; a map or list at the key that holds it.
    pub fn at(&self, path: &str) -> Position {
        self.root.find(path)
    }

    /// Returns whether the file writes the field, whatever its value.
    pub fn has(&self, path: &str) -> bool {
        self.root.get(path).is_some()
    }

    /// Completes a finding about this object with file, line, column, document and name.
    #[must_use]
    pub fn place(&self, mut finding: Finding) -> Finding {
        let at = self.at(&finding.path);
        finding.file = Some(self.file.clone());
        finding.line = Some(at.line);
        finding.column = Some(at.column);
        finding.document = Some(self.number);
        finding.object = Some(self.object.key().to_string());
        finding
    }

    /// The tree of `spec`, for walking what the file writes.
    pub(crate) fn spec(&self) -> Option<&Node> {
        self.root.get("spec")
    }
}

pub(crate) use tree::{Node, Value, join, shorten};

/// Reads the objects of a file.
///
/// Returns the documents without an error, and the findings of all. An empty file has neither.
pub fn read(file: &str, text: &str) -> (Vec<Document>, Vec<Finding>) {
    let read = read_all(file, text);
    let documents = read
        .documents
        .into_iter()
        .filter_map(|(document, state)| (state == State::Clean).then_some(document))
        .collect();
    (documents, read.findings)
}

/// Reads a file and says everything there is to say about it: mistakes of form, values that make no sense, fields that
/// meshd does not carry out. The findings are in the order of the file.
///
/// Returns the documents without a mistake of form; they may only be applied when no finding is an error.
pub fn inspect(file: &str, text: &str) -> (Vec<Document>, Vec<Finding>) {
    let mut read = read_all(file, text);
    for (document, state) in &read.documents {
        read.findings.extend(support::check(document));
        // A field that could not be read would only be called missing.
        if *state != State::Broken {
            let found = validate::validate(&document.object);
            read.findings.extend(found.into_iter().map(|finding| document.place(finding)));
        }
    }
    read.findings.sort_by_key(|finding| (finding.line.is_none(), finding.line, finding.column));
    bound(file, &mut read.findings);
    let documents = read
        .documents
        .into_iter()
        .filter_map(|(document, state)| (state == State::Clean).then_some(document))
        .collect();
    (documents, read.findings)
}

/// How well a document was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// All of it.
    Clean,
    /// All but fields nobody knows.
    Unknown,
    /// Some values could not be read.
    Broken,
}

#[derive(Default)]
struct Read {
    documents: Vec<(Document, State)>,
    findings: Vec<Finding>,
}

fn read_all(file: &str, text: &str) -> Read {
    let mut read = Read::default();
    if text.len() > MAX_FILE_BYTES {
        let message =
            format!("the file has {} MB; at most {} MB are read", text.len() >> 20, MAX_FILE_BYTES >> 20);
        let hint = "split it into several files";
        read.findings.push(in_file(file, Finding::error("file-too-large", "", message)).with_hint(hint));
        return read;
    }
    for (number, part) in (1_u32..).zip(split::documents(text)) {
        if number as usize > MAX_DOCUMENTS || read.findings.len() >= MAX_FINDINGS {
            let message = format!(
                "the rest of the file was not read: over {MAX_DOCUMENTS} documents or {MAX_FINDINGS} findings"
            );
            let finding = Finding::error("too-much", "", message);
            read.findings.push(Finding { line: Some(part.line), column: Some(1), ..in_file(file, finding) });
            break;
        }
        envelope::read(file, number, &part, &mut read);
    }
    bound(file, &mut read.findings);
    read
}

/// Keeps as many findings as are read by anybody. What is cut off may be an error, so the note about it is one.
fn bound(file: &str, findings: &mut Vec<Finding>) {
    if findings.len() > MAX_FINDINGS {
        findings.truncate(MAX_FINDINGS - 1);
        let message = format!("there is more to say than the {} findings above", findings.len());
        findings.push(
            in_file(file, Finding::error("too-many-findings", "", message)).with_hint("mend these first"),
        );
    }
}

fn in_file(file: &str, finding: Finding) -> Finding {
    Finding { file: Some(file.to_owned()), ..finding }
}

/// Returns the name most like `wrong`, if one is like enough to be what was meant.
pub(crate) fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A field of a megabyte is nobody's typing slip.
    if wrong.len() > 60 {
        return None;
    }
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let wrong = plain(wrong);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wrong, &plain(name)), name))
        .filter(|(distance, name)| *distance <= wrong.len().min(name.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
