//! The live view: shares asked and measured, hosts, and what to try next.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table};

use super::picture::{HostRow, Picture, VersionRow, time};
use crate::cmd::top::success_tone;
use crate::output::Tone;
use crate::screen::style;
use crate::words::percent;

/// Cells of the bar that shows a share.
const BAR: f64 = 20.0;

/// A command to try, and what it shows.
#[derive(Clone, Debug)]
pub(crate) struct Hint {
    /// As it is typed.
    pub(crate) command: String,
    /// What happens.
    pub(crate) about: &'static str,
}

/// Draws a moment.
pub(crate) fn draw(frame: &mut Frame<'_>, picture: &Picture, hints: &[Hint]) {
    let hints_height = u16::try_from(hints.len() + 1).unwrap_or(8);
    let [head, versions, _, visitors, _, hosts, _, hints_area, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(4),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(1),
        Constraint::Length(hints_height),
        Constraint::Min(1),
    ])
    .areas(frame.area());
    frame.render_widget(title(picture), head);
    frame.render_widget(versions_table(&picture.versions), versions);
    draw_visitors(frame, picture, visitors);
    frame.render_widget(hosts_table(&picture.hosts), hosts);
    draw_hints(frame, hints, hints_area);
    frame.render_widget(
        Line::styled("q or Ctrl-C ends the demo and leaves nothing behind", style(Tone::Dim)),
        foot,
    );
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn title(picture: &Picture) -> Line<'static> {
    let leader = match &picture.leader {
        Ok(leader) => Span::raw(format!("leader {leader}")),
        Err(why) => Span::styled(why.clone(), style(Tone::Bad)),
    };
    Line::from(vec![
        Span::styled("meshd demo", bold()),
        Span::raw(format!(
            "  three hosts, {:.0} requests/s, {} s   ",
            picture.recent.rate(),
            picture.elapsed.as_secs()
        )),
        leader,
        Span::raw(format!(" · rules of revision {}", picture.revision)),
    ])
}

fn versions_table(rows: &[VersionRow]) -> Table<'static> {
    let heads = ["REVIEWS", "ASKED", "MEASURED", "", "REQ/S", "SUCCESS", "P50", "P99"];
    Table::new(rows.iter().map(version_row), [8, 8, 9, 22, 8, 9, 10, 10].map(Constraint::Length))
        .header(Row::new(heads).style(bold()))
        .column_spacing(1)
}

fn version_row(row: &VersionRow) -> Row<'static> {
    let mut cells = vec![
        Cell::from(row.version.clone()),
        Cell::from(row.asked.map_or_else(|| "-".into(), percent)),
        Cell::from(percent(row.measured)),
        Cell::from(bar(row.measured)).style(Style::new().fg(ratatui::style::Color::Cyan)),
    ];
    match &row.edge {
        Some(edge) => cells.extend([
            Cell::from(format!("{:.1}", edge.requests_per_second)),
            Cell::from(percent(edge.success)).style(style(success_tone(edge.success))),
            Cell::from(time(edge.p50_us)),
            Cell::from(time(edge.p99_us)),
        ]),
        None => cells.extend(["-", "-", "-", "-"].map(Cell::from)),
    }
    Row::new(cells)
}

/// A bar of whole and half cells.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share times 40 is a small number"
)]
fn bar(share: f64) -> String {
    let halves = (share.clamp(0.0, 1.0) * BAR * 2.0).round() as usize;
    let half = if halves % 2 == 1 { "╸" } else { "" };
    format!("{}{half}", "━".repeat(halves / 2))
}

fn draw_visitors(frame: &mut Frame<'_>, picture: &Picture, area: Rect) {
    let recent = &picture.recent;
    let mut first = vec![
        Span::raw("visitors of productpage, last 10 s: "),
        Span::styled(format!("success {}", percent(recent.success())), style(success_tone(recent.success()))),
        Span::raw(format!("   p50 {}   p99 {}", time(recent.p50_us), time(recent.p99_us))),
    ];
    if let Some(jason) = &picture.jason {
        first.push(Span::raw(format!("   signed in as jason: {jason}")));
    }
    let second = match (&picture.reason, picture.failed) {
        (Some(reason), failed) if failed > 0 => {
            let reason: String = reason.chars().take(90).collect();
            Line::styled(format!("{failed} failed since the start: {reason}"), style(Tone::Warn))
        }
        _ => Line::styled("no request has failed", style(Tone::Dim)),
    };
    frame.render_widget(ratatui::text::Text::from(vec![Line::from(first), second]), area);
}

fn hosts_table(rows: &[HostRow]) -> Table<'static> {
    let heads = ["HOST", "ADDRESS", "ROLE", "STATE", "REVISION", "SERVICES"];
    let rows = rows.iter().map(|row| {
        Row::new(vec![
            Cell::from(row.name.clone()),
            Cell::from(row.address.clone()),
            Cell::from(row.role.0.clone()).style(style(row.role.1)),
            Cell::from(row.state.0.clone()).style(style(row.state.1)),
            Cell::from(row.revision.clone()),
            Cell::from(row.services.clone()),
        ])
    });
    Table::new(rows, [8, 16, 10, 22, 9, 9].map(Constraint::Length))
        .header(Row::new(heads).style(bold()))
        .column_spacing(1)
}

fn draw_hints(frame: &mut Frame<'_>, hints: &[Hint], area: Rect) {
    let mut lines = vec![Line::styled("try next, in another terminal:", bold())];
    let longest = hints.iter().map(|hint| hint.command.chars().count()).max().unwrap_or(0);
    for hint in hints {
        lines.push(Line::from(vec![
            Span::raw(format!("  {:<longest$}  ", hint.command)),
            Span::styled(hint.about, style(Tone::Dim)),
        ]));
    }
    frame.render_widget(ratatui::text::Text::from(lines), area);
}

#[cfg(test)]
mod tests {
    use super::super::judge::Recent;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::Duration;

    #[test]
    fn the_view_fits_a_plain_terminal_and_names_what_to_try() {
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).expect("terminal");
        let picture = Picture {
            elapsed: Duration::from_secs(12),
            versions: ["v1", "v2", "v3"]
                .map(|version| VersionRow {
                    version: version.into(),
                    asked: Some(0.9),
                    measured: 0.525,
                    edge: None,
                })
                .to_vec(),
            hosts: vec![HostRow {
                name: "vm1".into(),
                address: "127.0.1.1".into(),
                role: ("leader *".into(), Tone::Good),
                state: ("live".into(), Tone::Good),
                revision: "14".into(),
                services: "1/1".into(),
            }],
            recent: Recent { requests: 1_000, time: Duration::from_secs(10), ..Recent::default() },
            failed: 0,
            reason: None,
            leader: Ok("vm1".into()),
            revision: 14,
            jason: None,
        };
        let hints = [Hint { command: "meshctl top".into(), about: "who calls whom" }];

        terminal.draw(|frame| draw(frame, &picture, &hints)).expect("drawn");

        let text = terminal.backend().to_string();
        for wanted in [
            "meshd demo  three hosts, 100 requests/s, 12 s   leader vm1 · rules of revision 14",
            "v1       90.0 %   52.5 %    ━━━━━━━━━━╸",
            "vm1      127.0.1.1        leader *   live",
            "  meshctl top  who calls whom",
            "q or Ctrl-C ends the demo",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
        }
    }
}
