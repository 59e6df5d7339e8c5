//! The end of `meshctl demo --for`: a table, and a verdict.

use std::fmt::Write as _;
use std::time::Duration;

use super::judge::{Judge, Line, Recent};
use super::picture::time;
use super::story::USER;
use crate::output::{Columns, Tone, paint};
use crate::words::{count, percent};

/// Writes the summary.
pub(crate) fn write(judge: &Judge, recent: &Recent, took: Duration) -> String {
    let mut columns =
        Columns::new(["REVIEWS", "WHOSE", "ASKED", "MEASURED", "REQUESTS", "CHANCE ALLOWS", "VERDICT"])
            .numbers(&[2, 3, 4]);
    let lines = judge.lines();
    for line in &lines {
        columns.toned(cells(line));
    }
    let mut text = format!("\n{}", columns.render("no share was asked for while the demo ran"));
    let _ = write!(
        text,
        "\n{} in {:.0} s, {} failed · p50 {} · p99 {} (last 10 s)\n",
        count(usize::try_from(judge.requests).unwrap_or(usize::MAX), "request"),
        took.as_secs_f64(),
        judge.failed,
        time(recent.p50_us),
        time(recent.p99_us),
    );
    for (reason, number) in &judge.reasons {
        let _ = writeln!(text, "  {number} × {reason}");
    }
    let (tone, verdict) = verdict(judge, &lines);
    text.push_str(&paint(tone, &verdict));
    text.push('\n');
    text
}

fn cells(line: &Line) -> [(String, Tone); 7] {
    let (word, tone) = if line.holds() { ("holds", Tone::Good) } else { ("does not hold", Tone::Bad) };
    [
        (line.version.clone(), Tone::Plain),
        (if line.signed_in { USER.into() } else { "everybody".into() }, Tone::Plain),
        (percent(line.asked), Tone::Plain),
        (percent(line.share()), Tone::Plain),
        (format!("{} of {}", line.got, line.of), Tone::Plain),
        (format!("{} to {}", line.bounds.0, line.bounds.1), Tone::Plain),
        (word.into(), tone),
    ]
}

fn verdict(judge: &Judge, lines: &[Line]) -> (Tone, String) {
    if judge.holds() {
        return (Tone::Good, "every version got its share, and no request failed".into());
    }
    let mut problems = Vec::new();
    if judge.failed > 0 {
        problems.push(format!("{} of {} requests failed", judge.failed, judge.requests));
    }
    if lines.is_empty() {
        problems.push("no share could be measured".into());
    }
    let beyond = lines.iter().filter(|line| !line.holds()).count();
    if beyond > 0 {
        problems.push(format!(
            "{} beyond what chance allows (odds of a false alarm: one in a million)",
            count(beyond, "share")
        ));
    }
    (Tone::Bad, problems.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::judge::Asked;
    use super::super::traffic::Sample;
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_summary_tells_share_bounds_and_verdict() {
        let now = Instant::now();
        let shares = Some([("v1".to_owned(), 0.9), ("v2".to_owned(), 0.1)].into_iter().collect());
        let asked = Asked { all: shares.clone(), user: shares };
        let one = |version: &str| Sample {
            done: now,
            signed_in: false,
            outcome: Ok(version.into()),
            latency_us: 2_000,
        };
        let mut samples = vec![one("v1"); 1_790];
        samples.extend(vec![one("v2"); 210]);
        let mut judge = Judge::default();
        judge.take(samples, &asked, now);

        let text = write(&judge, &judge.recent(), Duration::from_secs(20));

        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            text,
            "
REVIEWS  WHOSE       ASKED  MEASURED      REQUESTS  CHANCE ALLOWS  VERDICT
v1       everybody  90.0 %    89.5 %  1790 of 2000  1729 to 1864   holds
v2       everybody  10.0 %    10.5 %   210 of 2000  136 to 271     holds

2000 requests in 20 s, 0 failed · p50 2.00 ms · p99 2.00 ms (last 10 s)
every version got its share, and no request failed
"
        );
    }
}
