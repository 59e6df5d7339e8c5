//! `meshctl graph`: who calls whom, as measured, as text or for programs that draw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;

use mesh_proto::api::{Request, Response, Scope, ServiceView};
use serde::Serialize;

use super::top::rates::{Rate, merged, rates, short_host};
use super::top::{stats, success_tone};
use crate::cli::{By, GraphArgs, GraphForm};
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::output::{json_items, paint, say};
use crate::words::{latency, percent};

/// Who calls whom.
#[derive(Debug, PartialEq, Serialize)]
struct Edge {
    /// The caller: its service where exactly one has its account, else `namespace/account`.
    from: String,
    /// The service called.
    to: String,
    /// Its port.
    port: u16,
    requests_per_second: f64,
    /// Share (0 to 1) of requests that did not fail.
    success: f64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    /// Each version that answered, with its share.
    versions: BTreeMap<String, f64>,
}

/// Runs `graph`.
pub(crate) async fn run(args: &GraphArgs, client: &Client) -> Result<Exit> {
    let asked = client.call(&Request::Services).await;
    let services = match asked {
        Ok(answer) => answer!(answer, Response::Services(services) => services)?,
        Err(failure) if client.asks_another().is_none() => return Err(failure),
        // Another host tells what it counts, not what there is.
        Err(_) => Vec::new(),
    };
    let scope = if client.asks_another().is_some() { Scope::Host } else { Scope::Mesh };
    let (before, begun) = (stats(client, scope).await?, Instant::now());
    tokio::time::sleep(args.interval).await;
    let after = stats(client, scope).await?;
    let measured = rates(&before, &after, begun.elapsed(), By::Edge);
    let mut edges = edges(&measured, &services);
    if let Some(service) = &args.service {
        edges.retain(|edge| is_named(&edge.from, service) || is_named(&edge.to, service));
        if edges.is_empty() {
            return Err(Failure::refused(format!(
                "nobody has called {service}, nor was called by it, in this time"
            )));
        }
    }
    let text = match args.output {
        GraphForm::Text => text(&edges),
        GraphForm::Dot => dot(&edges),
        GraphForm::Mermaid => mermaid(&edges),
        GraphForm::Json => json_items(&edges)?,
    };
    say(&text)?;
    Ok(Exit::Done)
}

fn is_named(node: &str, wanted: &str) -> bool {
    node.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn edges(measured: &[Rate], services: &[ServiceView]) -> Vec<Edge> {
    let names = names(services);
    let mut grouped: BTreeMap<(String, String, u16), Vec<&Rate>> = BTreeMap::new();
    for rate in measured.iter().filter(|rate| rate.destination != INBOUND) {
        let from = names.get(&rate.source).cloned().unwrap_or_else(|| rate.source.clone());
        let to = short_host(&rate.destination).to_owned();
        grouped.entry((from, to, rate.port)).or_default().push(rate);
    }
    let mut edges: Vec<Edge> =
        grouped.into_iter().map(|((from, to, port), rates)| edge(from, to, port, &rates)).collect();
    edges.sort_by(|a, b| (&a.from, &a.to, a.port).cmp(&(&b.from, &b.to, b.port)));
    edges
}

fn edge(from: String, to: String, port: u16, rates: &[&Rate]) -> Edge {
    let sum = merged(rates);
    let mut versions: BTreeMap<String, f64> = BTreeMap::new();
    for rate in rates.iter().filter(|rate| !rate.version.is_empty()) {
        *versions.entry(rate.version.clone()).or_default() +=
            rate.requests_per_second / sum.requests_per_second.max(1e-9);
    }
    Edge {
        from,
        to,
        port,
        requests_per_second: sum.requests_per_second,
        success: sum.success,
        p50_us: sum.p50_us,
        p99_us: sum.p99_us,
        versions,
    }
}

/// Accounts that exactly one service has: what they call, that service calls.
fn names(services: &[ServiceView]) -> BTreeMap<String, String> {
    let mut of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in services {
        for instance in service.instances.iter().filter(|instance| !instance.account.is_empty()) {
            of.entry(instance.account.clone()).or_default().insert(short_host(&service.host).to_owned());
        }
    }
    let only = |(account, names): (String, BTreeSet<String>)| {
        let mut names = names.into_iter();
        Some((account, names.next().filter(|_| names.len() == 0)?))
    };
    of.into_iter().filter_map(only).collect()
}

fn text(edges: &[Edge]) -> String {
    if edges.is_empty() {
        return "no requests in this time\n".into();
    }
    let target = |edge: &Edge| format!("{}:{}", edge.to, edge.port);
    let width = edges.iter().map(|edge| target(edge).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut caller = "";
    for edge in edges {
        if edge.from != caller {
            caller = &edge.from;
            let _ = writeln!(text, "{caller}");
        }
        let success = paint(success_tone(edge.success), &format!("{:>7}", percent(edge.success)));
        let p99 = edge.p99_us.map_or_else(String::new, |p99| format!("  p99 {}", latency(p99)));
        let mut line =
            format!("  → {:width$}  {:>8.1}/s  {success}{p99}", target(edge), edge.requests_per_second);
        if edge.versions.len() > 1 {
            let each = edge.versions.iter().map(|(version, share)| format!("{version} {}", percent(*share)));
            let _ = write!(line, "  {}", each.collect::<Vec<_>>().join(", "));
        }
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Names come from rules of others: what ends a string in these languages is written otherwise.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn dot(edges: &[Edge]) -> String {
    let mut text = String::from(
        "digraph mesh {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=sans];\n  edge [fontname=sans, fontsize=10];\n",
    );
    for edge in edges {
        let colour = if edge.success >= 0.999 {
            "\"#2e7d32\""
        } else if edge.success >= 0.99 {
            "\"#b26a00\""
        } else {
            "\"#c62828\""
        };
        let label = quoted(&label(edge));
        let _ = writeln!(
            text,
            "  {} -> {} [label={label}, color={colour}];",
            quoted(&edge.from),
            quoted(&edge.to)
        );
    }
    text.push_str("}\n");
    text
}

fn mermaid(edges: &[Edge]) -> String {
    let names: BTreeSet<&str> =
        edges.iter().flat_map(|edge| [edge.from.as_str(), edge.to.as_str()]).collect();
    let ids: BTreeMap<&str, String> =
        names.into_iter().enumerate().map(|(at, name)| (name, format!("n{at}"))).collect();
    let plain = |name: &str| name.replace('"', "#quot;");
    let mut text = String::from("graph LR\n");
    for (name, id) in &ids {
        let _ = writeln!(text, "  {id}[\"{}\"]", plain(name));
    }
    for edge in edges {
        let (from, to) = (&ids[edge.from.as_str()], &ids[edge.to.as_str()]);
        let _ = writeln!(text, "  {from} -->|\"{}\"| {to}", plain(&label(edge)));
    }
    text
}

fn label(edge: &Edge) -> String {
    format!("{:.1}/s, {}", edge.requests_per_second, percent(edge.success))
}

/// What a meshd counts of those who come in: no call of anybody here.
const INBOUND: &str = "InboundCluster";

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<Edge> {
        let edge = |from: &str, to: &str, rate: f64, success: f64, versions: &[(&str, f64)]| Edge {
            from: from.into(),
            to: to.into(),
            port: 9080,
            requests_per_second: rate,
            success,
            p50_us: Some(1_000),
            p99_us: Some(4_000),
            versions: versions.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect(),
        };
        vec![
            edge("productpage.default", "reviews.default", 50.0, 1.0, &[("v1", 0.9), ("v2", 0.1)]),
            edge("reviews.default", "ratings.default", 5.0, 0.95, &[("v1", 1.0)]),
        ]
    }

    #[test]
    fn every_form_names_callers_services_rates_and_success() {
        let text = anstream::adapter::strip_str(&text(&example())).to_string();
        assert_eq!(
            text,
            "\
productpage.default
  → reviews.default:9080      50.0/s    100 %  p99 4.00 ms  v1 90.0 %, v2 10.0 %
reviews.default
  → ratings.default:9080       5.0/s   95.0 %  p99 4.00 ms
"
        );
        assert!(dot(&example()).contains(
            "\"reviews.default\" -> \"ratings.default\" [label=\"5.0/s, 95.0 %\", color=\"#c62828\"];"
        ));
        let mermaid = mermaid(&example());
        assert!(
            mermaid.contains("n0[\"productpage.default\"]")
                && mermaid.contains("n0 -->|\"50.0/s, 100 %\"| n2"),
            "{mermaid}"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_string() {
        assert_eq!(quoted("a\"; b\\"), "\"a\\\"; b\\\\\"");
    }
}
