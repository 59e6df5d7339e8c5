//! `meshctl diff`: what `apply` would change, as text and, for weights, as meaning.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use mesh_core::sketch;
use mesh_proto::resource::{HttpRoute, Object, Spec, VirtualService};
use similar::{ChangeTag, TextDiff};

use super::apply::current;
use crate::cli::DiffArgs;
use crate::client::Client;
use crate::exit::{Exit, Result};
use crate::kinds::lower;
use crate::output::{Tone, paint, say, yaml};
use crate::rules::Rules;

/// Runs `diff`.
pub(crate) async fn run(args: &DiffArgs, client: impl Fn() -> Result<Client>) -> Result<Exit> {
    let paths: Vec<PathBuf> = args.files.iter().chain(&args.filename).cloned().collect();
    let rules = Rules::read(&paths, &args.namespace)?;
    rules.judge(false)?;
    let client = client()?;
    let current = current(&client).await?;
    let mut text = String::new();
    for rule in &rules.all {
        let old = current.get(&rule.object.key()).map(|stored| &stored.object);
        text.push_str(&of_object(old, &rule.object)?);
    }
    if text.is_empty() {
        say("nothing would change\n")?;
        return Ok(Exit::Done);
    }
    let batch = sketch::batch(rules.all.iter().map(|rule| rule.object.clone()).collect());
    match super::meaning::of(&client, &batch).await {
        Some(meaning) if meaning.is_empty() => {
            let none = "no route, share, timeout or policy is other than before";
            let _ = writeln!(text, "\n{}", paint(Tone::Dim, none));
        }
        Some(meaning) => {
            let _ = write!(text, "\nwhat that means for traffic:\n{meaning}");
        }
        None => {}
    }
    say(&text)?;
    Ok(Exit::Refused)
}

/// The difference of one object, empty if there is none.
fn of_object(old: Option<&Object>, new: &Object) -> Result<String> {
    let before = old.map(plain).transpose()?.unwrap_or_default();
    let after = plain(new)?;
    if before == after {
        return Ok(String::new());
    }
    let name = lower(&new.key());
    let mut text = match old {
        Some(_) => format!("{} {name}\n", paint(Tone::Warn, "change")),
        None => format!("{} {name}\n", paint(Tone::Good, "create")),
    };
    if let Some(meaning) = old.and_then(|old| meaning(old, new)) {
        let _ = writeln!(text, "  {meaning}");
    }
    let diff = TextDiff::from_lines(&before, &after);
    for group in diff.grouped_ops(3) {
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let (sign, tone) = match change.tag() {
                ChangeTag::Delete => ('-', Tone::Bad),
                ChangeTag::Insert => ('+', Tone::Good),
                ChangeTag::Equal => (' ', Tone::Dim),
            };
            let line = format!("{sign} {}", change.value().trim_end_matches('\n'));
            let _ = writeln!(text, "  {}", paint(tone, &line));
        }
    }
    Ok(text)
}

/// An object as text, without what the mesh alone says.
fn plain(object: &Object) -> Result<String> {
    let mut object = object.clone();
    object.metadata.resource_version = None;
    yaml(&object)
}

/// What a changed rule means for shares of traffic: `reviews: v1 90 -> 80, v2 10 -> 20`.
fn meaning(old: &Object, new: &Object) -> Option<String> {
    let (Spec::VirtualService(old), Spec::VirtualService(new)) = (&old.spec, &new.spec) else { return None };
    let (before, after) = (all_weights(old), all_weights(new));
    if before.len() != after.len() {
        return None;
    }
    let several = after.len() > 1;
    let mut routes = Vec::new();
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let shifts = shifts(before, after);
        if !shifts.is_empty() {
            let which = if several { format!("http[{index}] ") } else { String::new() };
            routes.push(format!("{which}{}", shifts.join(", ")));
        }
    }
    (!routes.is_empty()).then(|| format!("{}: {}", new.hosts.join(", "), routes.join("; ")))
}

fn shifts(before: &BTreeMap<String, i32>, after: &BTreeMap<String, i32>) -> Vec<String> {
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| {
            let old = before.get(name).copied().unwrap_or(0);
            let new = after.get(name).copied().unwrap_or(0);
            (old != new).then(|| format!("{name} {old} -> {new}"))
        })
        .collect()
}

fn all_weights(rule: &VirtualService) -> Vec<BTreeMap<String, i32>> {
    rule.http.iter().map(|route| weights(route).into_iter().collect()).collect()
}

/// The destinations of a route by their shortest telling name, with their weights; a single one gets 100.
pub(crate) fn weights(route: &HttpRoute) -> Vec<(String, i32)> {
    let single = route.route.len() == 1;
    route
        .route
        .iter()
        .map(|to| {
            let name = to.destination.as_ref().map_or_else(String::new, |destination| {
                if destination.subset.is_empty() {
                    destination.host.clone()
                } else {
                    destination.subset.clone()
                }
            });
            (name, if single { 100 } else { to.weight.unwrap_or(0) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(v1: u32, v2: u32) -> Object {
        let text = format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: reviews, namespace: d}}, \
             spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, subset: v1}}, weight: {v1}}}, \
             {{destination: {{host: reviews, subset: v2}}, weight: {v2}}}]}}]}}}}"
        );
        let mut rules = Rules::default();
        rules.add("a.yaml", &text, "default");
        rules.all.remove(0).object
    }

    #[test]
    fn changed_weights_are_told_in_one_line_and_as_text() {
        let text = of_object(Some(&rule(90, 10)), &rule(80, 20)).expect("written");

        let text = anstream::adapter::strip_str(&text).to_string();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("change virtualservice d/reviews"));
        assert_eq!(lines.next(), Some("  reviews: v1 90 -> 80, v2 10 -> 20"));
        assert!(text.contains("  -       weight: 90\n  +       weight: 80\n"), "{text}");
    }

    #[test]
    fn an_equal_object_makes_no_difference() {
        let mut stored = rule(90, 10);
        stored.metadata.resource_version = Some(12);

        assert_eq!(of_object(Some(&stored), &rule(90, 10)).expect("written"), "");
    }
}
