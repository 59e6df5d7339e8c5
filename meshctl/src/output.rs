//! What people and scripts see: tables, JSON, YAML, colours only on a terminal.
//!
//! Everything is rendered to a `String` with colours in it; `anstream` takes the colours out where the output is no
//! terminal, or where `NO_COLOR` asks for it.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure, Result};

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// One object `{"version": 1, "items": […]}`, for scripts.
    Json,
    /// YAML; resources come out as they can be applied again.
    Yaml,
}

/// What a word says about the state it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing to say.
    Plain,
    /// All is well.
    Good,
    /// Look here.
    Warn,
    /// Act here.
    Bad,
    /// Of less importance.
    Dim,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Dim => Style::new().dimmed(),
        }
    }
}

/// Colours a text.
pub(crate) fn paint(tone: Tone, text: &str) -> String {
    if tone == Tone::Plain || text.is_empty() {
        return text.to_owned();
    }
    let style = tone.style();
    format!("{style}{text}{style:#}")
}

/// A table without lines: a head in capitals, columns two blanks apart, nothing cut off.
pub(crate) struct Columns<const N: usize> {
    heads: [&'static str; N],
    rows: Vec<[(String, Tone); N]>,
    right: Vec<usize>,
}

impl<const N: usize> Columns<N> {
    /// Begins a table with these column heads.
    pub(crate) fn new(heads: [&'static str; N]) -> Self {
        Self { heads, rows: Vec::new(), right: Vec::new() }
    }

    /// Aligns columns of numbers to the right.
    pub(crate) fn numbers(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Adds a row of plain words.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.toned(cells.map(|cell| (cell, Tone::Plain)));
    }

    /// Adds a row whose words have a tone; an empty word is shown as a dash.
    pub(crate) fn toned(&mut self, cells: [(String, Tone); N]) {
        self.rows.push(cells.map(|(text, tone)| (if text.is_empty() { "-".into() } else { text }, tone)));
    }

    /// Returns the table as text, or `otherwise` if it has no rows.
    pub(crate) fn render(&self, otherwise: &str) -> String {
        if self.rows.is_empty() {
            return format!("{otherwise}\n");
        }
        let heads = self.heads.map(|head| (head.to_owned(), Tone::Plain));
        let widths: Vec<usize> = (0..N)
            .map(|column| {
                let cells = self.rows.iter().chain([&heads]).map(|row| row[column].0.chars().count());
                cells.max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in [&heads].into_iter().chain(&self.rows) {
            self.line(row, &widths, &mut text);
        }
        text
    }

    /// Blanks stand between words, never at the end of a line and never coloured.
    fn line(&self, row: &[(String, Tone); N], widths: &[usize], text: &mut String) {
        let mut blanks = 0;
        for (column, ((word, tone), width)) in row.iter().zip(widths).enumerate() {
            let missing = width - word.chars().count();
            let (before, after) = if self.right.contains(&column) { (missing, 0) } else { (0, missing) };
            text.push_str(&" ".repeat(blanks + before));
            text.push_str(&paint(*tone, word));
            blanks = after + GAP;
        }
        text.push('\n');
    }
}

/// Blanks between two columns.
const GAP: usize = 2;

/// Returns `items` in the form scripts read: `{"version": 1, "items": […]}`.
pub(crate) fn json_items<T: Serialize>(items: &[T]) -> Result<String> {
    let text = serde_json::to_string_pretty(&json!({ "version": 1, "items": items }))
        .map_err(|error| unwritable(&error))?;
    Ok(text + "\n")
}

/// Returns `items` as YAML documents, one after the other.
pub(crate) fn yaml_items<T: Serialize>(items: &[T]) -> Result<String> {
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        text.push_str(&yaml(item)?);
    }
    Ok(text)
}

/// Returns a value as one YAML document, ending in a line feed.
pub(crate) fn yaml<T: Serialize>(item: &T) -> Result<String> {
    let mut text = serde_saphyr::to_string(item).map_err(|error| unwritable(&error))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Prints `items` as JSON or YAML, or else the table.
pub(crate) fn show<T: Serialize>(format: Format, items: &[T], table: impl FnOnce() -> String) -> Result {
    match format {
        Format::Table => say(&table()),
        Format::Json => say(&json_items(items)?),
        Format::Yaml => say(&yaml_items(items)?),
    }
}

/// Prints to standard output.
pub(crate) fn say(text: &str) -> Result {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read our output has seen enough (`meshctl get | head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Done, "")),
        Err(error) => {
            Err(Failure::new(Exit::Unreadable, format!("standard output: {}", crate::exit::plain(&error))))
        }
        Ok(()) => Ok(()),
    }
}

/// Prints a line to standard error: hints, progress, findings. Errors are of no use to anybody there.
pub(crate) fn tell(text: &str) {
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{text}");
}

fn unwritable(error: &dyn std::fmt::Display) -> Failure {
    Failure::refused(format!("the answer cannot be written in this form: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut columns = Columns::new(["NAME", "STATE"]);
        columns.toned([("vm1".into(), Tone::Plain), ("live".into(), Tone::Good)]);
        columns.toned([("a-longer-name".into(), Tone::Plain), (String::new(), Tone::Plain)]);

        let text = anstream::adapter::strip_str(&columns.render("")).to_string();

        assert_eq!(
            text.lines().map(str::trim_end).collect::<Vec<_>>(),
            ["NAME           STATE", "vm1            live", "a-longer-name  -"]
        );
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Columns::new(["NAME"]).render("nothing here"), "nothing here\n");
    }

    #[test]
    fn json_is_one_object_with_a_version() {
        let text = json_items(&["a"]).expect("writes");

        assert_eq!(text, "{\n  \"version\": 1,\n  \"items\": [\n    \"a\"\n  ]\n}\n");
    }
}
