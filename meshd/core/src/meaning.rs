//! What a change of rules means for traffic: routes, shares and settings before and after, and for which callers.
//!
//! Two Plans are compiled, one of each World, and compared route by route in the words in which `meshctl routes` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proto::api::{PlanFilter, RouteView};
use mesh_proto::explain::{Delta, Difference, Turn};
use mesh_proto::value::Labels;

use crate::compile::compile;
use crate::plan::{Node, Plan, Workload};
use crate::views;
use crate::world::World;

/// The most unlike callers that are compared; more would not be read by anybody.
const MOST_CALLERS: usize = 100;

/// Tells what differs between two Worlds, in order of host, port and route.
///
/// `node` is the host from which all is seen; its callers count beside those that are registered anywhere.
pub fn differences(before: &World, after: &World, node: &Node) -> Vec<Difference> {
    let (callers, names) = callers(after, node);
    let node = Arc::new(Node { callers, ..node.clone() });
    let old = compile(before, &node, None);
    // Not from the old one: a Plan is carried on by revision, and Worlds made of files have the same.
    let new = compile(after, &node, None);
    let mut found: BTreeMap<Shown, BTreeSet<String>> = BTreeMap::new();
    for (at, names) in names.iter().enumerate() {
        for shown in routes(&old, &new, at) {
            found.entry(shown).or_default().extend(names.iter().cloned());
        }
    }
    // Instances of one account may differ in labels: a name counts once.
    let everybody = names.iter().flatten().collect::<BTreeSet<_>>().len();
    let mut differences: Vec<Difference> = found
        .into_iter()
        .map(|(shown, clients)| Difference {
            turn: shown.turn,
            host: shown.host,
            port: shown.port,
            when: shown.when,
            deltas: shown
                .deltas
                .into_iter()
                .map(|(what, before, after)| Delta { what, before, after })
                .collect(),
            all_clients: clients.len() == everybody,
            clients: clients.into_iter().collect(),
        })
        .collect();
    differences.extend(clusters(&old, &new));
    differences
}

/// A difference, without whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    host: String,
    port: u16,
    index: usize,
    when: String,
    turn: Turn,
    deltas: Vec<(String, String, String)>,
}

/// Callers by what rules can tell apart: namespace and labels.
type Alike = BTreeMap<(String, Labels), (Workload, BTreeSet<String>)>;

/// Gathers callers that rules can tell apart, with the names of all who are alike.
fn callers(world: &World, node: &Node) -> (Vec<Workload>, Vec<BTreeSet<String>>) {
    let mut alike = Alike::new();
    let registered = world.instances().map(|found| Workload {
        namespace: found.instance.namespace.clone(),
        account: found.instance.account.clone(),
        labels: found.instance.labels.clone(),
        ..Workload::default()
    });
    for workload in node.callers.iter().cloned().chain(registered) {
        let name = format!("{}/{}", workload.namespace, workload.account);
        let key = (workload.namespace.clone(), workload.labels.clone());
        alike.entry(key).or_insert_with(|| (workload, BTreeSet::new())).1.insert(name);
    }
    alike.into_values().take(MOST_CALLERS).unzip()
}

fn routes(old: &Plan, new: &Plan, caller: usize) -> Vec<Shown> {
    let all = PlanFilter::default();
    let by_host = |plan: &Plan| {
        let mut hosts: BTreeMap<(String, u16), Vec<RouteView>> = BTreeMap::new();
        for row in views::routes_of(plan, caller, &all) {
            hosts.entry((row.host.clone(), row.port)).or_default().push(row);
        }
        hosts
    };
    let (before, after) = (by_host(old), by_host(new));
    let hosts: BTreeSet<&(String, u16)> = before.keys().chain(after.keys()).collect();
    let none = Vec::new();
    hosts
        .into_iter()
        .flat_map(|host| {
            let (before, after) = (before.get(host).unwrap_or(&none), after.get(host).unwrap_or(&none));
            if before == after { Vec::new() } else { compare(host, before, after) }
        })
        .collect()
}

/// Compares the routes of one host: those with one condition are one route.
fn compare(host: &(String, u16), before: &[RouteView], after: &[RouteView]) -> Vec<Shown> {
    let shown = |row: &RouteView, turn: Turn, deltas: Vec<(String, String, String)>| Shown {
        host: host.0.clone(),
        port: host.1,
        index: row.index,
        when: row.when.clone(),
        turn,
        deltas,
    };
    let (old, new) = (keyed(before), keyed(after));
    let mut found = Vec::new();
    let common: Vec<_> = new.iter().filter(|(key, _)| old.iter().any(|(other, _)| other == key)).collect();
    let mut order: Vec<usize> = Vec::new();
    for (key, row) in &common {
        let Some((_, was)) = old.iter().find(|(other, _)| other == key) else { continue };
        order.push(was.index);
        let deltas = deltas(was, row);
        if !deltas.is_empty() {
            found.push(shown(row, Turn::Changed, deltas));
        }
    }
    if !order.is_sorted() {
        let list = |rows: &[((String, usize), &RouteView)]| {
            rows.iter().map(|(_, row)| row.when.clone()).collect::<Vec<_>>().join("; ")
        };
        if let Some((_, first)) = common.first() {
            let order = vec![("order".to_owned(), list(&old), list(&new))];
            found.push(Shown { when: String::new(), ..shown(first, Turn::Changed, order) });
        }
    }
    let added = new.iter().filter(|(key, _)| !old.iter().any(|(other, _)| other == key));
    found.extend(added.map(|(_, row)| {
        let mut deltas = vec![("to".to_owned(), String::new(), row.then.clone())];
        deltas.extend(row.with.iter().map(|with| {
            let topic = topic(with);
            (topic.to_owned(), String::new(), without_topic(with, topic))
        }));
        shown(row, Turn::Added, deltas)
    }));
    let gone = old.iter().filter(|(key, _)| !new.iter().any(|(other, _)| other == key));
    found.extend(
        gone.map(|(_, row)| {
            shown(row, Turn::Removed, vec![("to".to_owned(), row.then.clone(), String::new())])
        }),
    );
    found.sort();
    found
}

/// Routes by condition; of several with the same one, by their order.
fn keyed(rows: &[RouteView]) -> Vec<((String, usize), &RouteView)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter()
        .map(|row| {
            let count = seen.entry(&row.when).or_default();
            *count += 1;
            ((row.when.clone(), *count), row)
        })
        .collect()
}

fn deltas(before: &RouteView, after: &RouteView) -> Vec<(String, String, String)> {
    let mut deltas = Vec::new();
    if before.then != after.then {
        deltas.push(("to".into(), before.then.clone(), after.then.clone()));
    }
    let by_topic = |row: &RouteView| {
        let mut topics: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for with in &row.with {
            topics.entry(topic(with)).or_default().push(with.clone());
        }
        topics
    };
    let (old, new) = (by_topic(before), by_topic(after));
    let topics: BTreeSet<&&str> = old.keys().chain(new.keys()).collect();
    for topic in topics {
        let text = |words: Option<&Vec<String>>| match words {
            Some(words) => words.iter().map(|with| without_topic(with, topic)).collect::<Vec<_>>().join(", "),
            // Without a word about them there are those that Istio makes.
            None if *topic == "retries" => "Istio's default".into(),
            None => String::new(),
        };
        let (was, is) = (text(old.get(*topic)), text(new.get(*topic)));
        if was != is {
            deltas.push(((*topic).to_owned(), was, is));
        }
    }
    deltas
}

/// `timeout 2s` about the timeout is `2s`.
fn without_topic(with: &str, topic: &str) -> String {
    with.strip_prefix(topic).and_then(|rest| rest.strip_prefix(' ')).unwrap_or(with).to_owned()
}

/// What one of the words of `RouteView::with` is about.
fn topic(with: &str) -> &'static str {
    let begins = [
        ("timeout", "timeout"),
        ("rewrite", "rewrite"),
        ("mirror", "mirror"),
        ("delay", "fault"),
        ("abort", "fault"),
        ("header", "header rules"),
        ("cors", "cors"),
    ];
    let found = begins.iter().find(|(begin, _)| with.starts_with(begin)).map(|(_, topic)| *topic);
    found.unwrap_or(if with.contains("retries") { "retries" } else { "other" })
}

/// What differs in the policies and instances of destinations.
fn clusters(old: &Plan, new: &Plan) -> Vec<Difference> {
    let all = PlanFilter::default();
    let rows = |plan: &Plan| -> BTreeMap<String, _> {
        let rows = views::clusters(plan, &all, crate::endpoint::Moment(0));
        rows.into_iter().map(|row| (row.name.clone(), row)).collect()
    };
    let (before, after) = (rows(old), rows(new));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        let (was, is) = (before.get(name), after.get(name));
        let said = |row: Option<&mesh_proto::api::ClusterView>| match row {
            Some(row) => [row.balancer.clone(), row.limits.join(", "), instances(row.endpoints)],
            None => Default::default(),
        };
        let turn = match (was, is) {
            (None, _) => Turn::Added,
            (_, None) => Turn::Removed,
            _ => Turn::Changed,
        };
        let topics = ["balancing", "limits", "instances"].into_iter();
        let deltas: Vec<Delta> = topics
            .zip(said(was).into_iter().zip(said(is)))
            .filter(|(_, (was, is))| was != is)
            .map(|(what, (before, after))| Delta { what: what.into(), before, after })
            .collect();
        if !deltas.is_empty() {
            found.push(Difference {
                turn,
                host: name.clone(),
                deltas,
                all_clients: true,
                ..Difference::default()
            });
        }
    }
    found
}

fn instances(count: usize) -> String {
    match count {
        0 => "none".into(),
        1 => "1 instance".into(),
        count => format!("{count} instances"),
    }
}

#[cfg(test)]
mod tests;
