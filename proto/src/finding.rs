//! What is wrong, or worth knowing, about a document: one sentence with a place.
//!
//! A [`Finding`] is the product's face to whoever writes rules: it names the file, line and column, the object, the
//! field, what is the matter and what to do. Findings travel from servers to `meshctl` as JSON.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong; the writer may want to know.
    Info,
    /// Taken as it is, and probably not what was meant.
    Warning,
    /// Refused: nothing of the whole apply takes effect.
    Error,
}

/// One thing to say about one place of one document.
///
/// `Display` gives the line a user reads:
/// `rules.yaml:14:7: VirtualService default/reviews: spec.http[0].retrys: unknown field; did you mean "retries"?`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word for scripts, such as `unknown-field`.
    pub code: Cow<'static, str>,
    /// How much it weighs.
    pub severity: Severity,
    /// The file as the user named it; `None` where the object came over the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The column in characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Which document of the file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<u32>,
    /// The object, such as `VirtualService default/reviews`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, such as `spec.http[0].route[1].weight`; empty for the document as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is the matter: lower case, no trailing dot.
    pub message: String,
    /// What to do about it, such as `did you mean "retries"?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    /// Makes a finding about the field at `path`, placed nowhere yet.
    pub fn new(
        severity: Severity,
        code: impl Into<Cow<'static, str>>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            severity,
            file: None,
            line: None,
            column: None,
            document: None,
            object: None,
            path: path.into(),
            message: message.into(),
            hint: None,
        }
    }

    /// Makes an error; see [`Finding::new`].
    pub fn error(
        code: impl Into<Cow<'static, str>>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Error, code, path, message)
    }

    /// Makes a warning; see [`Finding::new`].
    pub fn warning(
        code: impl Into<Cow<'static, str>>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, code, path, message)
    }

    /// Makes a note; see [`Finding::new`].
    pub fn info(
        code: impl Into<Cow<'static, str>>,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Info, code, path, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the object, such as an [`ObjectKey`](crate::resource::ObjectKey).
    #[must_use]
    pub fn on(mut self, object: &impl ToString) -> Self {
        self.object = Some(object.to_string());
        self
    }

    /// Whether this finding refuses the document.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(out, "{file}:")?;
            if let Some(line) = self.line {
                write!(out, "{line}:{}:", self.column.unwrap_or(1))?;
            }
            out.write_str(" ")?;
        }
        match self.severity {
            Severity::Error => {}
            Severity::Warning => out.write_str("warning: ")?,
            Severity::Info => out.write_str("note: ")?,
        }
        match (&self.object, self.document) {
            (Some(object), _) => write!(out, "{object}: ")?,
            (None, Some(document)) => write!(out, "document {document}: ")?,
            (None, None) => {}
        }
        if !self.path.is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        out.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(out, "; {hint}"),
            None => Ok(()),
        }
    }
}
