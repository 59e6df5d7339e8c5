//! `meshctl top`: who calls whom, how often, how well.

mod live;
pub(crate) mod rates;

use std::time::{Duration, Instant};

use mesh_proto::api::{HostStats, Request, Response, Scope};

use crate::cli::{By, TopArgs};
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{Columns, Format, Tone, show, tell};
use crate::words::{latency, percent};
use rates::{Rate, rates};

/// The shortest interval: below, counters and clocks are too coarse.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// Runs `top`.
pub(crate) async fn run(args: &TopArgs, of_one: bool, client: &Client) -> Result<Exit> {
    if args.interval < LEAST_INTERVAL {
        return Err(Failure::usage("--interval: must be at least 100ms"));
    }
    let scope = if args.local || of_one { Scope::Host } else { Scope::Mesh };
    let live = !args.once
        && args.output.output == Format::Table
        && std::io::IsTerminal::is_terminal(&std::io::stdout());
    if live {
        return live::run(client, scope, args.interval, args.by).await;
    }
    let (before, begun) = (stats(client, scope).await?, Instant::now());
    tokio::time::sleep(args.interval).await;
    let after = stats(client, scope).await?;
    let rows = rates(&before, &after, begun.elapsed(), args.by);
    show(args.output.output, &rows, || table(&rows, args.by))?;
    Ok(Exit::Done)
}

/// Reads the counters.
pub(crate) async fn stats(client: &Client, scope: Scope) -> Result<Vec<HostStats>> {
    let answer = client.call(&Request::Stats { scope }).await?;
    answer!(answer, Response::Stats(stats) => stats)
}

/// Column heads of an edge.
const EDGE: [&str; 9] = ["FROM", "TO", "VERSION", "REQ/S", "SHARE", "SUCCESS", "P50", "P99", "RETRIES/S"];
const SERVICE: [&str; 7] = ["SERVICE", "REQ/S", "SHARE", "SUCCESS", "P50", "P99", "RETRIES/S"];
const HOST: [&str; 7] = ["HOST", "REQ/S", "SHARE", "SUCCESS", "P50", "P99", "RETRIES/S"];

fn heads(by: By) -> &'static [&'static str] {
    match by {
        By::Edge => &EDGE,
        By::Service => &SERVICE,
        By::Host => &HOST,
    }
}

fn table(rows: &[Rate], by: By) -> String {
    const NOTHING: &str = "no requests in this time";
    if by == By::Edge {
        let mut columns = Columns::new(EDGE).numbers(&[3, 4, 5, 6, 7, 8]);
        for row in rows {
            columns.toned(edge_cells(row));
        }
        return columns.render(NOTHING);
    }
    let mut columns = Columns::new(if by == By::Host { HOST } else { SERVICE }).numbers(&[1, 2, 3, 4, 5, 6]);
    for row in rows {
        columns.toned(cells_of_one(row));
    }
    columns.render(NOTHING)
}

/// The cells of a row, as many as [`heads`].
fn cells(row: &Rate, by: By) -> Vec<(String, Tone)> {
    if by == By::Edge { edge_cells(row).into() } else { cells_of_one(row).into() }
}

fn edge_cells(row: &Rate) -> [(String, Tone); 9] {
    let [one, two, three, four, five, six] = numbers(row);
    let plain = |text: &str| (text.to_owned(), Tone::Plain);
    [plain(&row.source), plain(&row.to()), plain(&row.version), one, two, three, four, five, six]
}

/// Of a service or a host.
fn cells_of_one(row: &Rate) -> [(String, Tone); 7] {
    let [one, two, three, four, five, six] = numbers(row);
    let name = if row.host.is_empty() { row.to() } else { row.host.clone() };
    [(name, Tone::Plain), one, two, three, four, five, six]
}

fn numbers(row: &Rate) -> [(String, Tone); 6] {
    [
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
