//! `meshctl top`: who calls whom, how often, how well.

mod live;
pub(crate) mod rates;

use std::time::{Duration, Instant};

use mesh_proto::api::{HostStats, Request, Response, Scope};

use crate::cli::TopArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Columns, Format, Tone, show, tell};
use crate::words::{latency, percent};
use rates::{Rate, rates};

/// The shortest interval: below, counters and clocks are too coarse.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `top`.
pub(crate) async fn run(args: &TopArgs, client: &Client) -> Result<Exit> {
    if args.interval < LEAST_INTERVAL {
        return Err(Failure::usage("--interval: must be at least 100ms"));
    }
    let scope = if args.local { Scope::Host } else { Scope::Mesh };
    let live = !args.once
        && args.output.output == Format::Table
        && std::io::IsTerminal::is_terminal(&std::io::stdout());
    if live {
        return live::run(client, scope, args.interval).await;
    }
    let (before, begun) = (stats(client, scope).await?, Instant::now());
    tokio::time::sleep(args.interval).await;
    let after = stats(client, scope).await?;
    let rows = rates(&before, &after, begun.elapsed());
    show(args.output.output, &rows, || table(&rows))?;
    Ok(Exit::Done)
}

/// Reads the counters.
pub(crate) async fn stats(client: &Client, scope: Scope) -> Result<Vec<HostStats>> {
    let answer = client.call(&Request::Stats { scope }).await?;
    answer!(answer, Response::Stats(stats) => stats)
}

fn table(rows: &[Rate]) -> String {
    let mut columns =
        Columns::new(["FROM", "TO", "VERSION", "REQ/S", "SHARE", "SUCCESS", "P50", "P99", "RETRIES/S"])
            .numbers(&[3, 4, 5, 6, 7, 8]);
    for row in rows {
        columns.toned(cells(row));
    }
    columns.render("no requests in this time")
}

fn cells(row: &Rate) -> [(String, Tone); 9] {
    [
        (row.source.clone(), Tone::Plain),
        (row.to(), Tone::Plain),
        (row.version.clone(), Tone::Plain),
        (format!("{:.1}", row.requests_per_second), Tone::Plain),
        (percent(row.share), Tone::Plain),
        (percent(row.success), success_tone(row.success)),
        (row.p50_us.map_or_else(String::new, latency), Tone::Plain),
        (row.p99_us.map_or_else(String::new, latency), Tone::Plain),
        (format!("{:.1}", row.retries_per_second), Tone::Plain),
    ]
}

/// How a share of success should look: any failure is worth a look, one in a hundred is bad.
pub(crate) fn success_tone(success: f64) -> Tone {
    if success >= 1.0 {
        Tone::Good
    } else if success >= 0.99 {
        Tone::Warn
    } else {
        Tone::Bad
    }
}

/// Says on standard error that a terminal is missing for what was asked.
pub(crate) fn tell_no_terminal(why: &str) {
    tell(&format!("cannot draw on this terminal: {why}"));
}
