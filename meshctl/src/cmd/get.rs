//! `meshctl get`: rules as the mesh has them.

use std::fmt::Write as _;

use mesh_proto::api::{Get, Request, Response};
use mesh_proto::resource::{HttpRoute, Object, Spec, VirtualService};
use mesh_proto::watch::Stored;
use serde::Serialize;

use crate::cli::GetArgs;
use crate::client::{Client, answer};
use crate::exit::{Exit, Failure, Result};
use crate::kinds;
use crate::output::{Columns, show};
use crate::words::count;

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
        let name = if all { format!("{}/{}", key.namespace, key.name) } else { key.name.to_string() };
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
        Spec::WorkloadEntry(entry) => entry.address.to_string(),
        _ => String::new(),
    }
}

fn says(object: &Object) -> String {
    match &object.spec {
        Spec::VirtualService(rule) => route(rule),
        Spec::DestinationRule(rule) => {
            let names: Vec<_> = rule.subsets.iter().map(|subset| subset.name.clone()).collect();
            if names.is_empty() { String::new() } else { format!("subsets {}", few(&names)) }
        }
        _ => String::new(),
    }
}

/// The last route with destinations, for most rules the one that counts: `v1 90, v2 10; timeout 2s`. Of rules without
/// one, the last route.
fn route(rule: &VirtualService) -> String {
    let Some(shown) = rule.http.iter().rev().find(|route| !route.route.is_empty()).or(rule.http.last())
    else {
        return match rule.tcp.len() + rule.tls.len() {
            0 => String::new(),
            connections => format!("{} for connections", count(connections, "route")),
        };
    };
    let effects = effects(shown);
    let mut parts = vec![target(shown)];
    if !effects.is_empty() {
        parts.push(effects.join(", "));
    }
    let mut text = parts.join("; ");
    let others: Vec<_> = rule.http.iter().filter(|route| !std::ptr::eq(*route, shown)).collect();
    if !others.is_empty() {
        let faults = if others.iter().any(|route| route.fault.is_some()) { ", with faults" } else { "" };
        let _ = write!(text, " (+{}{faults})", count(others.len(), "route"));
    }
    text
}

/// Where a route sends requests, or what it does instead.
fn target(route: &HttpRoute) -> String {
    if let Some(redirect) = &route.redirect {
        return format!(
            "redirect {}",
            if redirect.redirect_code == 0 { 301 } else { redirect.redirect_code }
        );
    }
    if let Some(answer) = &route.direct_response {
        return format!("answer {}", answer.status);
    }
    if let Some(delegate) = &route.delegate {
        return format!("as {} says", delegate.name);
    }
    let weights = super::diff::weights(route);
    weights.iter().map(|(to, weight)| format!("{to} {weight}")).collect::<Vec<_>>().join(", ")
}

/// What else a route does to requests, as far as it changes their fate.
fn effects(route: &HttpRoute) -> Vec<String> {
    let mut words = Vec::new();
    let fault = route.fault.as_ref();
    if let Some(abort) = fault.and_then(|fault| fault.abort.as_ref()) {
        let status = match (abort.http_status, abort.grpc_status.as_str()) {
            (Some(status), _) => status.to_string(),
            (None, grpc) => format!("gRPC {grpc}"),
        };
        words.push(format!("{status} for {} %", abort.percentage.unwrap_or_default().value));
    }
    if let Some(delay) = fault.and_then(|fault| fault.delay.as_ref()) {
        let late = delay.fixed_delay.unwrap_or_default();
        // Istio's default where neither form says how many.
        let share =
            delay.percentage.map(|share| share.value).or(delay.percent.map(f64::from)).unwrap_or(100.0);
        words.push(format!("{late} late for {share} %"));
    }
    words.extend(route.timeout.map(|timeout| format!("timeout {timeout}")));
    if let Some(attempts) = route.retries.as_ref().and_then(|retries| retries.attempts) {
        words.push(match attempts {
            1 => "1 retry".to_owned(),
            attempts => format!("{attempts} retries"),
        });
    }
    if route.mirror.is_some() || !route.mirrors.is_empty() {
        words.push("mirrored".to_owned());
    }
    words
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

    fn said(http: &str) -> String {
        let mut rules = Rules::default();
        let text = format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: a}}, spec: {{hosts: [a], http: {http}}}}}"
        );
        rules.add("a.yaml", &text, "default");
        assert!(rules.findings.is_empty(), "{:?}", rules.findings);
        says(&rules.all[0].object)
    }

    #[test]
    fn the_table_tells_faults_timeouts_and_retries() {
        let to = "route: [{destination: {host: a, subset: v1}}]";
        let cases = [
            (format!("[{{{to}}}]"), "v1 100"),
            (
                format!("[{{{to}, timeout: 2s, retries: {{attempts: 3, perTryTimeout: 0.5s}}}}]"),
                "v1 100; timeout 2s, 3 retries",
            ),
            (
                format!(
                    "[{{{to}, fault: {{abort: {{httpStatus: 503, percentage: {{value: 10}}}}, delay: {{fixedDelay: \
                     0.5s, percentage: {{value: 20}}}}}}}}]"
                ),
                "v1 100; 503 for 10 %, 0.5s late for 20 %",
            ),
            (
                format!(
                    "[{{match: [{{uri: {{prefix: /x}}}}], {to}, fault: {{abort: {{httpStatus: 500, percentage: \
                     {{value: 1}}}}}}}}, {{{to}}}]"
                ),
                "v1 100 (+1 route, with faults)",
            ),
            ("[{redirect: {uri: /b, redirectCode: 302}}]".to_owned(), "redirect 302"),
            ("[{directResponse: {status: 418}}]".to_owned(), "answer 418"),
        ];
        for (http, expected) in cases {
            assert_eq!(said(&http), expected, "{http}");
        }
    }

    #[test]
    fn kind_and_name_may_be_joined_by_a_slash() {
        assert_eq!(split(Some("vs/reviews"), None), (Some("vs"), Some("reviews")));
        assert_eq!(split(Some("all"), None), (None, None));
    }
}
