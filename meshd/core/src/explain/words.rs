//! Reasons in words.

use mesh_proto::explain::Rule;
use mesh_proto::resource::ObjectKey;
use mesh_proto::value::Labels;

use super::Scene;
use crate::compile::rules::SourceUnmet;
use crate::plan::{HeaderTarget, Matcher, ValueMatch};
use crate::route::Call;
use crate::route::matcher::Unmet;
use crate::views::words as plain;
use crate::world::World;

/// Names a rule.
pub(super) fn rule(world: &World, object: Option<&ObjectKey>, path: &str, name: &str) -> Rule {
    let stored = object.and_then(|key| world.resources.get(key));
    let index =
        path.split_once('[').and_then(|(_, rest)| rest.split(']').next()).and_then(|at| at.parse().ok());
    Rule {
        object: object.map(ToString::to_string).unwrap_or_default(),
        path: path.to_owned(),
        name: name.to_owned(),
        index,
        revision: stored.map(|stored| stored.changed.0),
        place: None,
    }
}

/// Says which condition fails and what there was instead: `header end-user = jason: it is "bob"`.
pub(super) fn unmet(matcher: &Matcher, unmet: Unmet, call: &Call<'_>) -> String {
    let is = |value: &str| format!("it is {:?}", shortened(value));
    let named = |what: &str, condition: &Option<ValueMatch>, value: &str| {
        let condition = condition.as_ref().map(plain::condition).unwrap_or_default();
        format!("{what} {condition}: {}", is(value))
    };
    match unmet {
        Unmet::Path => {
            let only_path = Matcher { path: matcher.path.clone(), ..Matcher::default() };
            format!("{}: {}", plain::conditions(&only_path), is(call.path))
        }
        Unmet::Method => named("method", &matcher.method, call.method),
        Unmet::Scheme => named("scheme", &matcher.scheme, call.scheme),
        Unmet::Authority => named("authority", &matcher.authority, call.authority),
        Unmet::Header(at) => matcher.headers.get(at).map_or_else(String::new, |(target, condition)| {
            format!(
                "header {} {}: {}",
                plain::target(target),
                plain::condition(condition),
                lines(target, call)
            )
        }),
        Unmet::Without(at) => {
            matcher.without_headers.get(at).map_or_else(String::new, |(target, condition)| {
                format!(
                    "not header {} {}: {}",
                    plain::target(target),
                    plain::condition(condition),
                    lines(target, call)
                )
            })
        }
        Unmet::Query(at) => matcher.query.get(at).map_or_else(String::new, |(name, condition)| {
            let parameters = call.query.unwrap_or_default().split('&');
            let mut pairs = parameters.map(|part| part.split_once('=').unwrap_or((part, "")));
            let there = pairs.find(|(found, _)| found == name);
            let there = there.map_or_else(|| "it is not there".to_owned(), |(_, value)| is(value));
            format!("query {name} {}: {there}", plain::condition(condition))
        }),
    }
}

/// What a condition asks of who asks, and of the port.
pub(super) struct Asked<'a> {
    pub(super) gateways: &'a [String],
    pub(super) labels: &'a Labels,
    pub(super) namespace: &'a str,
    pub(super) port: Option<u16>,
}

/// Says what a rule asks of its callers that this one is not.
pub(super) fn source(asked: &Asked<'_>, unmet: SourceUnmet, scene: &Scene<'_>, port: u16) -> String {
    let caller = &scene.outbound.caller;
    match unmet {
        SourceUnmet::Gateways => {
            let is = scene.gateway.map_or_else(
                || "the caller is inside the mesh".to_owned(),
                |gateway| format!("it came to {gateway}"),
            );
            format!("gateways {}: {is}", asked.gateways.join(", "))
        }
        SourceUnmet::Labels => {
            let missing = asked.labels.iter().find(|(name, value)| caller.labels.get(*name) != Some(*value));
            let Some((name, value)) = missing else { return "sourceLabels".into() };
            let has = caller.labels.get(name).map_or_else(
                || "the caller has no such label".to_owned(),
                |value| format!("the caller has {value:?}"),
            );
            format!("sourceLabels {name} = {value}: {has}")
        }
        SourceUnmet::Namespace => {
            format!("sourceNamespace {}: the caller is in {}", asked.namespace, caller.namespace)
        }
        SourceUnmet::Port => {
            format!("port {}: it is {port}", asked.port.map(|port| port.to_string()).unwrap_or_default())
        }
    }
}

fn lines(target: &HeaderTarget, call: &Call<'_>) -> String {
    let values: Vec<String> = match target {
        HeaderTarget::Field(name) => {
            let lines = call.headers.get_all(name).iter();
            lines.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
        }
        HeaderTarget::Path => vec![call.path_and_query().into_owned()],
        HeaderTarget::Method => vec![call.method.to_owned()],
        HeaderTarget::Authority => vec![call.authority.to_owned()],
        HeaderTarget::Scheme => vec![call.scheme.to_owned()],
    };
    match values.as_slice() {
        [] => "it is not there".into(),
        [only] => format!("it is {:?}", shortened(only)),
        several => {
            format!("its lines are {:?}", several.iter().map(|line| shortened(line)).collect::<Vec<_>>())
        }
    }
}

/// Cuts what would fill a screen.
fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain(['…']).collect()
}
