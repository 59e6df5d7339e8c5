//! `meshctl get`: rules as the mesh has them.

use mesh_proto::api::{Get, Request, Response};
use mesh_proto::resource::{Object, Spec, VirtualService};
use mesh_proto::watch::Stored;
use serde::Serialize;

use crate::cli::GetArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::kinds;
use crate::output::{Columns, show};

/// Runs `get`.
pub(crate) async fn run(args: &GetArgs, client: &Client) -> Result<Exit> {
    let (kind, name) = split(args.kind.as_deref(), args.name.as_deref());
    let kind = kind.map(kinds::kind).transpose()?;
    let get = Get {
        kind,
        namespace: (!args.all_namespaces).then(|| args.namespace.clone()),
        name: name.map(str::to_owned),
        stale: args.stale,
    };
    let answer = client.call(&Request::Get(get)).await?;
    let items = answer!(answer, Response::Resources { items, .. } => items)?;
    if let (Some(name), true) = (name, items.is_empty()) {
        let what = kind.map_or_else(String::new, |kind| format!("{kind} "));
        return Err(Failure::refused(format!(
            "there is no {what}{}/{name}; `meshctl get -A` lists all there is",
            args.namespace
        )));
    }
    let objects: Vec<_> = items.iter().map(versioned).collect();
    show(args.output.output, &objects, || table(&items, args.all_namespaces, &args.namespace))?;
    Ok(Exit::Done)
}

/// `get vs/reviews` is `get vs reviews`; `get all` is `get`.
fn split<'a>(kind: Option<&'a str>, name: Option<&'a str>) -> (Option<&'a str>, Option<&'a str>) {
    match (kind, name) {
        (Some("all"), name) => (None, name),
        (Some(both), None) => match both.split_once('/') {
            Some((kind, name)) => (Some(kind), Some(name)),
            None => (Some(both), None),
        },
        other => other,
    }
}

/// An object as it can be applied again: with the revision it is at.
fn versioned(stored: &Stored) -> impl Serialize + use<> {
    let mut object = stored.object.clone();
    object.metadata.resource_version = Some(stored.changed.0);
    object
}

fn table(items: &[Stored], all: bool, namespace: &str) -> String {
    let nothing = if all {
        "no rules yet; `meshctl apply -f FILE` brings some".to_owned()
    } else {
        format!("no such rules in namespace {namespace} (-A shows all namespaces)")
    };
    let mut columns = Columns::new(["KIND", "NAME", "FOR", "SAYS", "REVISION"]).numbers(&[4]);
    for stored in items {
        let key = stored.object.key();
        let name = if all { format!("{}/{}", key.namespace, key.name) } else { key.name.clone() };
        columns.row([
            key.kind.name().to_owned(),
            name,
            hosts(&stored.object),
            says(&stored.object),
            stored.changed.to_string(),
        ]);
    }
    columns.render(&nothing)
}

fn hosts(object: &Object) -> String {
    match &object.spec {
        Spec::VirtualService(rule) => few(&rule.hosts),
        Spec::DestinationRule(rule) => rule.host.clone(),
        Spec::ServiceEntry(entry) => few(&entry.hosts),
        Spec::WorkloadEntry(entry) => entry.address.clone(),
        _ => String::new(),
    }
}

fn says(object: &Object) -> String {
    match &object.spec {
        Spec::VirtualService(rule) => shares(rule),
        Spec::DestinationRule(rule) => {
            let names: Vec<_> = rule.subsets.iter().map(|subset| subset.name.clone()).collect();
            if names.is_empty() { String::new() } else { format!("subsets {}", few(&names)) }
        }
        _ => String::new(),
    }
}

/// The weights of the last route with any, for most rules the one that counts: `v1 90, v2 10`.
fn shares(rule: &VirtualService) -> String {
    let Some(route) = rule.http.iter().rev().find(|route| !route.route.is_empty()) else {
        return String::new();
    };
    let more =
        if rule.http.len() > 1 { format!(" (+{} routes)", rule.http.len() - 1) } else { String::new() };
    format!(
        "{}{more}",
        super::diff::weights(route)
            .iter()
            .map(|(to, weight)| format!("{to} {weight}"))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

fn few(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one, two, three, rest @ ..] if !rest.is_empty() => format!("{one}, {two}, {three} +{}", rest.len()),
        names => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;
    use mesh_proto::command::Revision;

    #[test]
    fn the_table_tells_what_a_rule_is_for_and_how_it_splits() {
        let mut rules = Rules::default();
        rules.add(
            "a.yaml",
            "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews}, spec: {hosts: \
             [reviews], http: [{route: [{destination: {host: reviews, subset: v1}, weight: 90}, {destination: \
             {host: reviews, subset: v2}, weight: 10}]}]}}",
            "default",
        );
        let items: Vec<_> = rules
            .all
            .into_iter()
            .map(|rule| Stored { object: rule.object, created: Revision(4), changed: Revision(7) })
            .collect();

        assert_eq!(
            table(&items, false, "default"),
            "KIND            NAME     FOR      SAYS          REVISION\n\
             VirtualService  reviews  reviews  v1 90, v2 10         7\n"
        );
    }

    #[test]
    fn kind_and_name_may_be_joined_by_a_slash() {
        assert_eq!(split(Some("vs/reviews"), None), (Some("vs"), Some("reviews")));
        assert_eq!(split(Some("all"), None), (None, None));
    }
}
