//! `meshctl api fields`: what meshd does with each field of Istio's API, from the table that `apply` follows.

use mesh_proto::resource::Kind;
use mesh_proto::support::{Field, Word, report};

use crate::cli::FieldsArgs;
use crate::exit::{Exit, Result};
use crate::kinds;
use crate::output::{Columns, Tone, paint, show};
use crate::words::count;

/// Runs `api fields`.
pub(crate) fn fields(args: &FieldsArgs) -> Result<Exit> {
    let asked = args.kind.as_deref().map(kinds::kind).transpose()?;
    let kinds = Kind::ALL.iter().copied().filter(|kind| asked.is_none_or(|asked| asked == *kind));
    let mut all: Vec<Field> = kinds.flat_map(report).collect();
    all.retain(|field| args.status.is_none_or(|status| Word::from(status) == field.status));
    show(args.output.output, &all, || table(&all, asked.is_none()))?;
    Ok(Exit::Done)
}

fn table(fields: &[Field], with_kind: bool) -> String {
    let mut text = if with_kind { of_all(fields) } else { of_one(fields) };
    if fields.is_empty() {
        return text;
    }
    let counts = Word::ALL.map(|word| (word, fields.iter().filter(|field| field.status == word).count()));
    let told: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(word, count)| format!("{count} {}", word.name()))
        .collect();
    let total = count(fields.len(), "field");
    text.push_str(&paint(Tone::Dim, &format!("\n{total}: {}", told.join(", "))));
    text.push('\n');
    text
}

fn of_all(fields: &[Field]) -> String {
    let mut columns = Columns::new(["KIND", "FIELD", "STATUS", "REASON"]);
    for field in fields {
        let [path, status, reason] = cells(field);
        columns.toned([(field.kind.name().to_owned(), Tone::Plain), path, status, reason]);
    }
    columns.render(NONE)
}

fn of_one(fields: &[Field]) -> String {
    let mut columns = Columns::new(["FIELD", "STATUS", "REASON"]);
    for field in fields {
        columns.toned(cells(field));
    }
    columns.render(NONE)
}

fn cells(field: &Field) -> [(String, Tone); 3] {
    let tone = match field.status {
        Word::Honoured => Tone::Good,
        Word::Partial | Word::NoEffect => Tone::Warn,
        Word::Refused => Tone::Bad,
    };
    [
        (field.path.clone(), Tone::Plain),
        (field.status.name().to_owned(), tone),
        (field.reason.clone(), Tone::Dim),
    ]
}

const NONE: &str = "no field is so";
