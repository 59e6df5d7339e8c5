//! The demo's live view, as a user sees it: on a terminal, with its own hints typed in a second one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::commands::{build_meshd, meshctl, own_base, typed};
use crate::root;
use crate::terminal::Terminal;

/// Longest time until something shows, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// A percentage in a row of the screen, the `column`th from 0, in tenths of a percent.
fn tenths(lines: &[String], row: &str, column: usize) -> Option<u32> {
    let line = lines.iter().find(|line| line.split_whitespace().next() == Some(row))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut percents = words.windows(2).filter(|pair| pair[1] == "%").map(|pair| pair[0]);
    in_tenths(percents.nth(column)?)
}

fn in_tenths(percent: &str) -> Option<u32> {
    let (whole, rest) = percent.split_once('.').unwrap_or((percent, "0"));
    Some(whole.parse::<u32>().ok()? * 10 + rest.get(..1)?.parse::<u32>().ok()?)
}

const ASKED: usize = 0;
const MEASURED: usize = 1;
const SUCCESS: usize = 2;

/// The command that the view shows beside `about`.
fn hint(lines: &[String], about: &str) -> Option<String> {
    let line = lines.iter().find(|line| line.trim_end().ends_with(about))?;
    let command = line.trim_end().strip_suffix(about)?.trim();
    (!command.is_empty()).then(|| command.to_owned())
}

fn on_screen(text: &str) -> impl Fn(&[String]) -> Option<()> + '_ {
    move |lines| lines.iter().any(|line| line.contains(text)).then_some(())
}

/// Everything that the demo promises to show.
fn check_the_view(terminal: &Terminal) {
    terminal.until(LIMIT, "the canary, asked for and measured", |lines| {
        let asked = (tenths(lines, "v1", ASKED)?, tenths(lines, "v2", ASKED)?);
        let measured = (tenths(lines, "v1", MEASURED)?, tenths(lines, "v2", MEASURED)?);
        let near = (700..1000).contains(&measured.0) && (1..300).contains(&measured.1);
        (asked == (900, 100) && near && tenths(lines, "v1", SUCCESS)? == 1000).then_some(())
    });
    let heads = ["REVIEWS", "ASKED", "MEASURED", "REQ/S", "SUCCESS", "P50", "P99"];
    terminal.until(LIMIT, "the heads of the table", |lines| {
        lines.iter().any(|line| line.split_whitespace().eq(heads)).then_some(())
    });
    terminal.until(LIMIT, "times of v1", |lines| {
        let row = lines.iter().find(|line| line.starts_with("v1 "))?;
        (row.matches(" ms").count() + row.matches(" µs").count() >= 2).then_some(())
    });
    for text in
        ["leader vm", "no request has failed", "try next, in another terminal:", "q or Ctrl-C ends the demo"]
    {
        terminal.until(LIMIT, text, on_screen(text));
    }
    for host in ["vm1", "vm2", "vm3"] {
        terminal.until(LIMIT, host, |lines| {
            let row = lines.iter().find(|line| line.starts_with(host))?;
            row.contains(" live ").then_some(())
        });
    }
}

/// Types the command that the view shows beside `about` in a second terminal.
fn type_hint(terminal: &Terminal, about: &str, folder: &Path) -> String {
    let command = terminal.until(LIMIT, about, |lines| hint(lines, about));
    let (code, said) = typed(&command, folder);
    assert_eq!(code, Some(0), "$ {command}\n{said}");
    said
}

#[test]
fn the_live_view_shows_what_its_own_hints_change_and_leaves_nothing() {
    if Command::new("setsid").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: setsid (util-linux) is not installed");
        return;
    }
    build_meshd();
    let folder = tempfile::Builder::new().prefix("live").tempdir_in("/tmp").expect("a folder");
    let mut terminal = Terminal::start(&meshctl(), |command| {
        command.args(["demo", "--base", &own_base(192, 60)]).current_dir(root());
        command.env("XDG_RUNTIME_DIR", folder.path()).env_remove("MESHD_SOCKET");
    })
    .expect("a terminal");
    check_the_view(&terminal);
    let hosts = children(terminal.id());
    assert_eq!(hosts.len(), 3, "three meshd");

    type_hint(&terminal, "shift the weights: half to v2", folder.path());
    terminal.until(LIMIT, "half of the requests on v2", |lines| {
        (tenths(lines, "v2", ASKED)? == 500 && tenths(lines, "v2", MEASURED)? > 300).then_some(())
    });
    type_hint(&terminal, "inject a fault: some 503, some late", folder.path());
    terminal.until(LIMIT, "requests that fail", |lines| {
        let told = lines
            .iter()
            .any(|line| line.contains("failed since the start: 502 Bad Gateway: reviews answered 503"));
        let success =
            lines.iter().find_map(|line| line.split_once("last 10 s: success ")?.1.split_once(" %"));
        let counted = success.is_some_and(|(share, _)| in_tenths(share).is_some_and(|share| share < 1000));
        (told && counted).then_some(())
    });
    type_hint(&terminal, "back to the canary", folder.path());
    terminal.until(LIMIT, "the canary again", |lines| (tenths(lines, "v1", ASKED)? == 900).then_some(()));
    let routes = type_hint(&terminal, "what vm1 does with requests", folder.path());
    assert!(routes.contains("reviews") && routes.contains("90"), "{routes}");
    let top = type_hint(&terminal, "who calls whom", folder.path());
    assert!(top.contains("reviews") && top.contains("productpage"), "{top}");
    type_hint(&terminal, "stop a host (start brings it back)", folder.path());
    terminal.until(LIMIT, "vm3 stopped", |lines| {
        lines.iter().find(|line| line.starts_with("vm3"))?.contains("stopped").then_some(())
    });

    terminal.press(b"\x03");
    let (code, given_back) = terminal.end(LIMIT);

    assert_eq!((code, given_back), (Some(0), true));
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("the folder").flatten().map(|file| file.path()).collect();
    assert!(left.is_empty(), "the demo left {left:?}");
    let alive: Vec<_> = hosts.iter().filter(|id| is_meshd(**id)).collect();
    assert!(alive.is_empty(), "the demo left processes {alive:?}");
}

/// The processes that a process has started and that live.
fn children(id: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).expect("a running process");
    let of_task =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let text: String = tasks.flatten().map(|task| of_task(task) + " ").collect();
    text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

fn is_meshd(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("meshd"))
}
