//! Verdicts in JUnit's form, which every CI reads.

use std::fmt::Write as _;

use super::Verdict;

/// Writes a report.
pub(super) fn report(verdicts: &[Verdict]) -> String {
    let failed = verdicts.iter().filter(|verdict| !verdict.passed).count();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites tests=\"{}\" failures=\"{failed}\">", verdicts.len());
    let mut rest = verdicts;
    while let Some(first) = rest.first() {
        let length = rest.iter().take_while(|verdict| verdict.file == first.file).count();
        let (suite, others) = rest.split_at(length);
        rest = others;
        let failed = suite.iter().filter(|verdict| !verdict.passed).count();
        let name = escaped(&first.file);
        let _ = writeln!(
            text,
            "  <testsuite name=\"{name}\" tests=\"{length}\" failures=\"{failed}\" errors=\"0\">"
        );
        for verdict in suite {
            case(verdict, &mut text);
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn case(verdict: &Verdict, text: &mut String) {
    let (name, file) = (escaped(&verdict.name), escaped(&verdict.file));
    let _ = write!(text, "    <testcase name=\"{name}\" classname=\"{file}\"");
    if verdict.passed {
        text.push_str("/>\n");
        return;
    }
    let first = escaped(verdict.failures.first().map_or("", String::as_str));
    let all = escaped(&format!("{}\nby {}", verdict.failures.join("\n"), verdict.rule));
    let _ = writeln!(text, ">\n      <failure message=\"{first}\">{all}</failure>\n    </testcase>");
}

/// Escapes a text for XML; characters XML cannot hold become `?`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' | '\r' => out.push(letter),
            letter if letter.is_control() => out.push('?'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_and_escapes() {
        let verdict = |name: &str, failures: &[&str]| Verdict {
            file: "a.test.yaml".into(),
            name: name.into(),
            passed: failures.is_empty(),
            failures: failures.iter().map(|text| (*text).to_owned()).collect(),
            rule: "no rule".into(),
        };

        let text = report(&[verdict("a < b", &[]), verdict("c", &["\"x\" & y"])]);

        assert!(text.contains("<testsuites tests=\"2\" failures=\"1\">"), "{text}");
        assert!(text.contains("<testcase name=\"a &lt; b\" classname=\"a.test.yaml\"/>"), "{text}");
        assert!(text.contains("<failure message=\"&quot;x&quot; &amp; y\">"), "{text}");
    }
}
