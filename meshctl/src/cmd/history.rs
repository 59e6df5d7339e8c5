//! `meshctl history` and `rollback`: go on or go back.

use std::fmt::Write as _;
use std::time::Instant;

use mesh_proto::api::{HistoryView, Request, Response};
use mesh_proto::command::Revision;

use super::apply::{outcomes, word};
use super::wait;
use crate::cli::{HistoryArgs, RollbackArgs};
use crate::client::{Client, answer, key};
use crate::exit::{Exit, Result};
use crate::kinds::short;
use crate::output::{Columns, Tone, say, show};
use crate::rules::tell_findings;
use crate::words::{age, now_ms};

/// Runs `history`.
pub(crate) async fn run(args: &HistoryArgs, client: &Client) -> Result<Exit> {
    let answer = client.call(&Request::History { limit: args.limit }).await?;
    let rows = answer!(answer, Response::History(rows) => rows)?;
    show(args.output.output, &rows, || table(&rows, now_ms()))?;
    Ok(Exit::Done)
}

/// Runs `rollback`.
pub(crate) async fn rollback(args: &RollbackArgs, client: &Client) -> Result<Exit> {
    let begun = Instant::now();
    let request = Request::Rollback { to: Revision(args.revision), dry_run: args.dry_run, key: key() };
    let answer = client.call(&request).await?;
    let applied = answer!(answer, Response::Applied(applied) => applied)?;
    tell_findings(&applied.findings);
    let mut lines = outcomes(&applied.results, args.dry_run);
    if applied.results.is_empty() {
        let _ = writeln!(lines, "the rules are as they were at revision {} already", args.revision);
    }
    say(&lines)?;
    if args.dry_run {
        return Ok(Exit::Done);
    }
    wait::for_hosts(client, applied.revision, &args.waiting, begun).await
}

fn table(rows: &[HistoryView], now: u64) -> String {
    let mut columns = Columns::new(["REVISION", "WHEN", "WHO", "WHAT", "OBJECTS"]).numbers(&[0]);
    for row in rows {
        let objects: Vec<_> = row
            .objects
            .iter()
            .map(|(key, outcome)| format!("{}/{} {}", short(key.kind), key.name, word(*outcome).0))
            .collect();
        columns.toned([
            (row.revision.to_string(), Tone::Plain),
            (age(now, row.at.0), Tone::Plain),
            (row.author.clone(), Tone::Plain),
            (row.reason.clone(), Tone::Plain),
            (objects.join(", "), Tone::Dim),
        ]);
    }
    columns.render("no changes of rules yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::api::Outcome;
    use mesh_proto::command::Timestamp;
    use mesh_proto::resource::{Kind, ObjectKey};

    #[test]
    fn each_change_tells_when_who_and_what() {
        let rows = [HistoryView {
            revision: Revision(42),
            at: Timestamp(1_000),
            author: "uid 0 on vm1".into(),
            reason: "apply rules.yaml".into(),
            objects: vec![(ObjectKey::new(Kind::VirtualService, "default", "reviews"), Outcome::Configured)],
        }];

        let text = anstream::adapter::strip_str(&table(&rows, 61_000)).to_string();

        assert_eq!(
            text,
            "REVISION  WHEN     WHO           WHAT              OBJECTS\n      \
             42  60s ago  uid 0 on vm1  apply rules.yaml  vs/reviews configured\n"
        );
    }
}
