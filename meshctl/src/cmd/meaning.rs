//! What a change means for traffic, in a few lines: for `diff` and `apply --dry-run`.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_proto::api::{Request, Response};
use mesh_proto::command::Batch;
use mesh_proto::explain::{Delta, Difference, Turn};

use crate::client::Client;
use crate::output::{Tone, paint, tell};
use crate::words::count;

/// Two Plans of a large mesh may have to be made.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most clients named in a line.
const MOST_CLIENTS: usize = 6;

/// Asks what a batch would mean; empty where nothing would change. A meshd older than the question is no failure.
pub(super) async fn of(client: &Client, batch: &Batch) -> Option<String> {
    let why = match client.ask(&Request::Preview(batch.clone()), PATIENCE).await {
        Ok(Ok(Response::Differences(differences))) => return Some(page(&differences)),
        Ok(Ok(_)) => "meshd answered another question".into(),
        Ok(Err(error)) => error.message,
        Err(failure) => failure.message,
    };
    tell(&paint(Tone::Dim, &format!("note: what it means for traffic is not told: {why}")));
    None
}

/// Writes differences, a paragraph a route.
pub(super) fn page(differences: &[Difference]) -> String {
    let mut text = String::new();
    let mut host = String::new();
    for one in differences {
        let this = if one.port == 0 { one.host.clone() } else { format!("{}:{}", one.host, one.port) };
        if this != host {
            let _ = writeln!(text, "{this}");
            host = this;
        }
        let (word, tone) = match one.turn {
            Turn::Added => ("new", Tone::Good),
            Turn::Changed => ("changed", Tone::Warn),
            Turn::Removed => ("gone", Tone::Bad),
        };
        let what = if one.when.is_empty() { String::new() } else { format!(" route when {}", one.when) };
        let _ = writeln!(text, "  {}{what}{}", paint(tone, word), clients(one));
        let width = one.deltas.iter().map(|delta| delta.what.len()).max().unwrap_or(0);
        for delta in &one.deltas {
            let _ = writeln!(text, "    {:width$}  {}", delta.what, arrow(delta));
        }
    }
    text
}

fn arrow(delta: &Delta) -> String {
    let or = |text: &String| if text.is_empty() { "none".to_owned() } else { text.clone() };
    match (delta.before.is_empty(), delta.after.is_empty()) {
        (true, false) if delta.what == "to" => delta.after.clone(),
        (false, true) if delta.what == "to" => format!("was {}", delta.before),
        _ => format!("{} -> {}", or(&delta.before), paint(Tone::Warn, &or(&delta.after))),
    }
}

/// Whom it concerns.
fn clients(one: &Difference) -> String {
    if one.port == 0 {
        return String::new();
    }
    if one.all_clients {
        return "  (every caller)".into();
    }
    let named: Vec<&str> = one.clients.iter().take(MOST_CLIENTS).map(String::as_str).collect();
    let more = one.clients.len().saturating_sub(MOST_CLIENTS);
    let more = if more > 0 { format!(" and {} more", count(more, "caller")) } else { String::new() };
    format!("  (callers {}{more})", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reads_as_what_it_was_and_what_it_will_be() {
        let delta = |what: &str, before: &str, after: &str| Delta {
            what: what.into(),
            before: before.into(),
            after: after.into(),
        };
        let one = Difference {
            turn: Turn::Changed,
            host: "reviews.default.svc.cluster.local".into(),
            port: 9080,
            when: "always".into(),
            deltas: vec![
                delta("to", "reviews v1 90 %, v2 10 %", "reviews v1 50 %, v2 50 %"),
                delta("timeout", "", "timeout 2s"),
            ],
            all_clients: false,
            clients: vec!["default/productpage".into()],
        };

        let text = anstream::adapter::strip_str(&page(&[one])).to_string();

        assert_eq!(
            text,
            "reviews.default.svc.cluster.local:9080\n  changed route when always  (callers default/productpage)\n    \
             to       reviews v1 90 %, v2 10 % -> reviews v1 50 %, v2 50 %\n    timeout  none -> timeout 2s\n"
        );
    }
}
