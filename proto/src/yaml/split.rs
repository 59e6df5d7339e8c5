//! Splits a file into documents.
//!
//! A line that begins with `---` or `...` ends a document wherever it stands, even inside a quoted or block text
//! (YAML 1.2, section 9.1), so splitting by lines is exact; anchors do not reach over it either.

/// One document: its text, and the line of the file it begins on, from 1.
pub(super) struct Part<'a> {
    pub(super) text: &'a str,
    pub(super) line: u32,
}

/// Returns the documents that hold more than comments and directives.
pub(super) fn documents(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1_u32;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (part, lines) = next_part(rest);
            let found = Part { text: part, line };
            rest = &rest[part.len()..];
            line = line.saturating_add(lines);
            if has_content(found.text) {
                return Some(found);
            }
        }
        None
    })
}

/// Returns the text up to the next marker (never empty), and its number of lines.
fn next_part(text: &str) -> (&str, u32) {
    let mut end = 0;
    let mut lines = 0;
    for piece in text.split_inclusive('\n') {
        if lines > 0 && is_marker(piece) {
            break;
        }
        end += piece.len();
        lines += 1;
    }
    (&text[..end], lines)
}

fn is_marker(line: &str) -> bool {
    (line.starts_with("---") || line.starts_with("..."))
        && line[3..].chars().next().is_none_or(char::is_whitespace)
}

fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let line = if is_marker(line) { &line[3..] } else { line };
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(u32, String)> {
        documents(text).map(|part| (part.line, part.text.to_owned())).collect()
    }

    #[test]
    fn documents_are_cut_at_markers_and_keep_their_lines() {
        let text = "\u{feff}# only a comment\n---\na: 1\n--- # two\nb: |\n  --- not a marker\n...\n---\n";
        assert_eq!(
            split(text),
            [(2, "---\na: 1\n".to_owned()), (4, "--- # two\nb: |\n  --- not a marker\n".to_owned()),]
        );
    }

    #[test]
    fn a_file_of_nothing_has_no_documents() {
        assert!(split("").is_empty());
        assert!(split("\n# nothing\n---\n%YAML 1.2\n---\r\n").is_empty());
    }
}
