//! The live view of `top`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mesh_proto::api::{HostStats, Scope};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use super::rates::{Rate, rates};
use super::{cells, heads, stats, tell_no_terminal};
use crate::cli::By;
use crate::client::Client;
use crate::exit::{Exit, Failure, Result};
use crate::screen::{Screen, style};

/// Readings over which rates are taken: the last ten, so that percentiles rest on enough requests.
const WINDOW: usize = 10;

/// Draws until the user leaves.
pub(super) async fn run(client: &Client, scope: Scope, interval: Duration, by: By) -> Result<Exit> {
    let mut readings: VecDeque<(Instant, Vec<HostStats>)> = VecDeque::new();
    readings.push_back((Instant::now(), stats(client, scope).await?));
    let mut screen = Screen::open().map_err(|error| {
        tell_no_terminal(&error.to_string());
        Failure::usage("use `meshctl top --once`")
    })?;
    let mut next = tokio::time::interval(interval);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let trouble = tokio::select! {
            _ = next.tick() => match stats(client, scope).await {
                Ok(reading) => {
                    readings.push_back((Instant::now(), reading));
                    None
                }
                Err(failure) => Some(failure.message),
            },
            () = screen.leave_asked() => return Ok(Exit::Done),
        };
        if readings.len() > WINDOW + 1 {
            readings.pop_front();
        }
        let (Some(first), Some(last)) = (readings.front(), readings.back()) else { continue };
        let time = last.0.saturating_duration_since(first.0);
        let rows = rates(&first.1, &last.1, time, by);
        screen.draw(|frame| view(frame, &rows, by, last.1.len(), time, trouble.as_deref()));
    }
}

fn view(frame: &mut Frame<'_>, rows: &[Rate], by: By, hosts: usize, time: Duration, trouble: Option<&str>) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    let total: f64 = rows.iter().map(|row| row.requests_per_second).sum();
    let line = match trouble {
        Some(trouble) => Line::styled(format!("no answer: {trouble}"), style(crate::output::Tone::Bad)),
        None => Line::from(format!(
            "{total:.0} requests/s · {hosts} hosts · over the last {:.0} s",
            time.as_secs_f64()
        )),
    };
    frame.render_widget(line, head);
    let heads = heads(by);
    let rows: Vec<_> = rows.iter().map(|row| cells(row, by)).collect();
    let widths = (0..heads.len()).map(|column| {
        let cells = rows.iter().map(|row| row[column].0.chars().count());
        let width = cells.chain([heads[column].len()]).max().unwrap_or(0);
        Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
    });
    let widths: Vec<_> = widths.collect();
    let table = Table::new(
        rows.into_iter()
            .map(|row| Row::new(row.into_iter().map(|(text, tone)| Cell::from(text).style(style(tone))))),
        widths,
    )
    .header(Row::new(heads.iter().copied()).style(Style::new().add_modifier(Modifier::BOLD)))
    .column_spacing(2);
    frame.render_widget(table, body);
    frame.render_widget(Line::styled("q leaves", style(crate::output::Tone::Dim)), foot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_view_shows_a_row_per_version() {
        let mut terminal = Terminal::new(TestBackend::new(110, 8)).expect("terminal");
        let row = Rate {
            host: String::new(),
            source: "default/productpage".into(),
            destination: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            subset: "v2".into(),
            version: "v2".into(),
            requests: 100,
            requests_per_second: 10.0,
            share: 0.1,
            success: 1.0,
            retries_per_second: 0.0,
            p50_us: Some(1_500),
            p99_us: Some(3_000),
            buckets: std::collections::BTreeMap::new(),
            failures: 0,
        };

        terminal
            .draw(|frame| view(frame, &[row], By::Edge, 3, Duration::from_secs(10), None))
            .expect("drawn");

        let text = terminal.backend().to_string();
        assert!(text.contains("10 requests/s · 3 hosts · over the last 10 s"), "{text}");
        assert!(text.contains("default/productpage"), "{text}");
        assert!(text.contains("1.50 ms"), "{text}");
    }
}
