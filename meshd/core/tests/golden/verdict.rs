//! What becomes of a call, in one line of text.

use std::fmt::Write as _;

use http::HeaderMap;
use mesh_core::plan::{Action, Forward, Outbound, Rewrite, TcpRules, UnknownHosts, WeightedCluster};
use mesh_core::route::{self, Call, Matched, cors, headers, path, rewrite};

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) port: u16,
    pub(crate) method: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) target: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

/// What becomes of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    /// `to reviews.default:80/v1`, `404`, `redirect 301 http://…`, `answer 418 body`, `unknown 502`, `unknown pass`.
    pub(crate) what: String,
    /// `VirtualService default/reviews http[0]`, `default`.
    pub(crate) by: String,
    /// Path and query as sent on.
    pub(crate) path: Option<String>,
    /// Authority as sent on.
    pub(crate) authority: Option<String>,
    /// Headers as sent on.
    pub(crate) sent: HeaderMap,
    /// Headers of an answer that had none.
    pub(crate) answered: HeaderMap,
    /// Timeout, retries, fault, mirrors in words.
    pub(crate) with: Vec<String>,
    /// Subsets and versions it may reach.
    pub(crate) versions: Vec<String>,
}

/// Decides a request.
pub(crate) fn decide(outbound: &Outbound, asked: &Asked<'_>) -> Verdict {
    let what = |what: &str| Verdict { what: what.to_owned(), ..Verdict::default() };
    let (raw, query) = path::parts(asked.target);
    let Ok(normal) = path::bring(raw, outbound.paths) else { return what("400") };
    let unknown = || match outbound.unknown {
        UnknownHosts::Allow => match &outbound.egress_proxy {
            Some(proxy) => {
                what(&format!("unknown by {}", connection(&proxy.tcp, None).trim_start_matches("to ")))
            }
            None => what("unknown pass"),
        },
        UnknownHosts::Refuse => what("unknown 502"),
        UnknownHosts::NotFound => what("404"),
    };
    let Some(table) = outbound.ports.get(&asked.port) else { return unknown() };
    let Some(host) = route::find_host(table, asked.authority) else { return unknown() };
    let call = Call {
        method: asked.method,
        scheme: route::scheme_of(None, asked.headers),
        authority: asked.authority,
        path: &normal,
        query,
        headers: asked.headers,
    };
    let Some(matched) = route::route(host, &call) else { return what("404") };
    let mut verdict = act(&matched, &call, asked.port);
    verdict.by = match &matched.route.origin.object {
        Some(key) => format!("{key} {}", matched.route.origin.path),
        None => "default".into(),
    };
    if let Some(policy) = &matched.route.cors {
        match cors::decide(policy, call.method, call.headers) {
            cors::CorsVerdict::Preflight(answer) => {
                verdict = Verdict { what: "preflight".into(), answered: answer, ..verdict };
            }
            cors::CorsVerdict::Actual(answer) => verdict.answered.extend(answer),
            cors::CorsVerdict::None => {}
        }
    }
    if let Some(fault) = &matched.route.fault {
        verdict.with.extend(
            fault.delay.map(|delay| format!("delay {:?} {}ppm", delay.fixed, delay.parts_per_million)),
        );
        verdict.with.extend(
            fault
                .abort
                .map(|abort| format!("abort {} {}ppm", abort.status.as_u16(), abort.parts_per_million)),
        );
    }
    verdict
}

fn act(matched: &Matched<'_>, call: &Call<'_>, port: u16) -> Verdict {
    let target = call.path_and_query();
    let name = matched.route_name();
    let facts = headers::Facts {
        host_name: "vm1",
        route_name: &name,
        ..headers::Facts::of(call, &target, ([127, 0, 0, 1], 4711).into())
    };
    let rules = matched.route.headers.as_deref();
    let mut verdict = Verdict { sent: call.headers.clone(), ..Verdict::default() };
    let mut destination = None;
    let mut many = false;
    match &matched.route.action {
        Action::Redirect(redirect) => {
            let location = rewrite::location(redirect, call, matched.matcher, port);
            verdict.what = format!("redirect {} {location}", redirect.code.as_u16());
        }
        Action::Direct(direct) => {
            verdict.what =
                format!("answer {} {}", direct.status.as_u16(), String::from_utf8_lossy(&direct.body));
            verdict.what.truncate(verdict.what.trim_end().len());
        }
        Action::Forward(forward) => {
            many = forward.destinations.len() > 1;
            destination = forward.destinations.iter().find(|one| one.weight > 0 || !many);
            forwarded(forward, &mut verdict);
            let rewrite: Option<&Rewrite> = forward.rewrite.as_deref();
            let new = rewrite.and_then(|rewrite| rewrite::path(rewrite, matched.matcher, call.path));
            let mut target = new.unwrap_or_else(|| call.path.to_owned());
            if let Some(query) = call.query {
                let _ = write!(target, "?{query}");
            }
            verdict.path = Some(target);
            let own = destination.and_then(|one| one.headers.as_deref());
            let authority = headers::authority(rewrite, rules, own).unwrap_or(call.authority);
            verdict.authority = Some(authority.to_owned());
        }
    }
    let own = destination.and_then(|one: &WeightedCluster| one.headers.as_deref());
    headers::request(rules, own, many, &mut verdict.sent, &facts);
    headers::response(rules, own, many, &mut verdict.answered, call.headers, &facts);
    verdict
}

fn forwarded(forward: &Forward, verdict: &mut Verdict) {
    verdict.what = format!("to {}", destinations(&forward.destinations));
    for one in forward.destinations.iter().filter(|one| one.weight > 0 || forward.destinations.len() == 1) {
        let endpoints = one.cluster.iter().flat_map(|cluster| &cluster.endpoints.all);
        verdict.versions.extend(endpoints.map(|endpoint| endpoint.traits.version.to_string()));
    }
    verdict.with.extend(forward.timeout.map(|timeout| format!("timeout {timeout:?}")));
    let retry = &forward.retry;
    verdict.with.push(format!("retries {}", retry.attempts));
    verdict.with.extend(retry.per_try_timeout.map(|timeout| format!("per try {timeout:?}")));
    for mirror in &forward.mirrors {
        verdict.with.push(format!("mirror {} {}ppm", name(&mirror.name), mirror.parts_per_million));
    }
}

/// Decides a connection by its rules.
pub(crate) fn connection(rules: &TcpRules, destination: Option<std::net::IpAddr>) -> String {
    let fits = |subnets: &[ipnet::IpNet]| {
        subnets.is_empty() || destination.is_some_and(|to| subnets.iter().any(|net| net.contains(&to)))
    };
    match rules.rules.iter().find(|rule| fits(&rule.destination_subnets)) {
        Some(rule) => format!("to {}", destinations(&rule.destinations)),
        None => "cut".into(),
    }
}

fn destinations(list: &[WeightedCluster]) -> String {
    let one = |to: &WeightedCluster| {
        let missing = if to.cluster.is_none() { "missing " } else { "" };
        let share = if list.len() > 1 { format!(" {}", to.weight) } else { String::new() };
        format!("{missing}{}{share}", name(&to.name))
    };
    list.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn name(name: &mesh_core::plan::ClusterName) -> String {
    let host = name.host.trim_end_matches(".svc.cluster.local");
    let subset = if name.subset.is_empty() { String::new() } else { format!("/{}", name.subset) };
    format!("{host}:{}{subset}", name.port)
}
