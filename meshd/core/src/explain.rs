//! Why a request or a connection goes where it goes: the functions that serve traffic, asked one by one.
//!
//! The Plan decides, as for every request: `route::find_host`, `route::route`, `route::rewrite`, `balance`. What the Plan no
//! longer holds — rules that this caller can never meet, older rules for the same host, which object set which field — is
//! read off the World by the functions that compiled it. Nothing here is on a request's path.
//!
//! Left out: what an application answers, and chance. Shares are told, not drawn.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use mesh_proto::explain::{Ask, Caller, End, Explanation, Host, Outcome, Seen, Speaks};

use crate::compile::compile;
use crate::compile::rules::Rules;
use crate::endpoint::Moment;
use crate::plan::{Node, Outbound, Plan, PortTable, UnknownHosts, VirtualHost};
use crate::route::{self, Call, path};
use crate::wire::{fold, guard, strip};
use crate::world::World;

mod caller;
mod connection;
mod door;
mod forward;
mod passed;
mod settings;
mod words;

/// Explains a request, or a connection that is none (`connection`), of a caller inside the mesh or of a gateway's visitor
/// (`door`).
///
/// `plan` is the one that serves traffic now, so that health and ejections are those of this moment; a caller it was not
/// made for gets one of its own, made from `world`.
///
/// # Errors
/// A caller nobody knows, or a request that cannot be read, in words for people.
pub fn explain(world: &World, plan: &Plan, ask: &Ask, now: Moment) -> Result<Explanation, String> {
    if !ask.gateway.is_empty() {
        return door::explain(world, plan, ask, now);
    }
    let found = caller::find(world, plan, ask)?;
    let own = plan.outbounds.iter().position(|outbound| outbound.caller == found.workload);
    if let Some(at) = own {
        return Scene { world, plan, outbound: &plan.outbounds[at], ask, now, gateway: None }.explain(&found);
    }
    let node = Node { callers: vec![found.workload.clone()], ..Node::clone(&plan.node) };
    let made = compile(world, &Arc::new(node), Some(plan));
    let outbound = made.outbounds.first().ok_or("this host has no Plan yet; try again when it is ready")?;
    Scene { world, plan: &made, outbound, ask, now, gateway: None }.explain(&found)
}

/// What is looked at.
struct Scene<'a> {
    world: &'a World,
    plan: &'a Plan,
    outbound: &'a Outbound,
    ask: &'a Ask,
    now: Moment,
    /// The gateway that a visitor came to, `namespace/name`; `None`: the caller is inside the mesh.
    gateway: Option<&'a str>,
}

impl Scene<'_> {
    fn explain(&self, caller: &caller::Found) -> Result<Explanation, String> {
        match self.ask.speaks {
            Speaks::Http => self.request(caller),
            Speaks::Tcp | Speaks::Tls => connection::explain(self, caller),
        }
    }

    /// Why rules for a host are not for who asks, whatever they say: `None`: they are.
    fn not_bound(&self, rules: &Rules<'_>) -> Option<String> {
        let caller = &self.outbound.caller;
        if !rules.seen_from(&caller.namespace) {
            return Some(format!("exportTo: namespace {} does not see it", caller.namespace));
        }
        match self.gateway {
            Some(gateway) if !rules.gateways.iter().any(|own| own == gateway) => {
                Some(format!("gateways: it is not bound to {gateway}"))
            }
            None if !rules.in_mesh => Some("gateways: it is for visitors of gateways only".into()),
            _ => None,
        }
    }

    fn request(&self, caller: &caller::Found) -> Result<Explanation, String> {
        let mut notes = caller.notes.clone();
        let mut headers = headers(self.ask)?;
        let authority = match headers.get(http::header::HOST).and_then(|host| host.to_str().ok()) {
            Some(host) => host.to_owned(),
            None => self.ask.authority.clone(),
        };
        if let Err(refusal) = self.guard(&headers, &authority) {
            let mut explanation = self.begin(caller, &authority, 0, &self.ask.target, None);
            explanation.outcome = Outcome {
                kind: End::BadRequest,
                status: Some(refusal.status.as_u16()),
                words: format!("refused at the door: {}", refusal.reason),
                ..Outcome::default()
            };
            return Ok(explanation);
        }
        at_the_door(&mut headers, &mut notes);
        let (raw, query) = path::parts(&self.ask.target);
        let Ok(normal) = path::bring(raw, self.outbound.paths) else {
            let mut explanation = self.begin(caller, &authority, 0, raw, query);
            explanation.outcome = Outcome {
                kind: End::BadRequest,
                status: Some(400),
                words: "the path has no sound form".into(),
                ..Outcome::default()
            };
            return Ok(explanation);
        };
        if normal != raw {
            notes.push(format!("the path {raw} is normalised to {normal} before it is matched and sent"));
        }
        let port = self.port(&authority, &mut notes);
        let sent = Some(self.ask.scheme.as_str()).filter(|scheme| *scheme == "https");
        let scheme = route::scheme_of(sent, &headers);
        let call = Call {
            method: &self.ask.method,
            scheme,
            authority: &authority,
            path: &normal,
            query,
            headers: &headers,
        };
        let mut explanation = self.begin(caller, &authority, port, &normal, query);
        explanation.request.scheme = scheme.to_owned();
        explanation.notes = notes;
        self.decide(&call, port, &mut explanation);
        Ok(explanation)
    }

    fn begin(
        &self,
        caller: &caller::Found,
        authority: &str,
        port: u16,
        path: &str,
        query: Option<&str>,
    ) -> Explanation {
        Explanation {
            request: Seen {
                method: self.ask.method.clone(),
                scheme: self.ask.scheme.clone(),
                authority: authority.to_owned(),
                port,
                path: path.to_owned(),
                query: query.map(str::to_owned),
                sni: None,
            },
            caller: Caller {
                name: format!("{}/{}", caller.workload.namespace, caller.workload.account),
                labels: caller.workload.labels.clone(),
                known_as: caller.known_as.clone(),
                seen_from: self.plan.node.name.clone(),
            },
            ..Explanation::default()
        }
    }

    fn guard(&self, headers: &HeaderMap, authority: &str) -> Result<(), guard::Refusal> {
        let bad =
            guard::Refusal { status: http::StatusCode::BAD_REQUEST, reason: "it cannot be written as HTTP" };
        let method: Method = self.ask.method.parse().map_err(|_| bad)?;
        let uri: Uri = self.ask.target.split('#').next().unwrap_or("/").parse().map_err(|_| bad)?;
        let mut headers = headers.clone();
        headers.insert(http::header::HOST, HeaderValue::from_str(authority).map_err(|_| bad)?);
        guard::check(&method, &uri, Version::HTTP_11, &headers, &guard::Limits::default())
    }

    /// The service port: asked for, in the URL, 80 where somebody listens there, or the only one of the host's.
    fn port(&self, authority: &str, notes: &mut Vec<String>) -> u16 {
        let in_url = || authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        if let Some(port) = self.ask.port.or_else(in_url) {
            return port;
        }
        let usual = if self.ask.scheme == "https" { 443 } else { 80 };
        let has = |port: u16| {
            self.outbound.ports.get(&port).is_some_and(|table| route::find_host(table, authority).is_some())
        };
        if has(usual) {
            return usual;
        }
        let mut others: Vec<u16> = self.outbound.ports.keys().copied().filter(|port| has(*port)).collect();
        others.sort_unstable();
        match others.as_slice() {
            [] => usual,
            [first, rest @ ..] => {
                let more = if rest.is_empty() { "" } else { "the first of several ports; " };
                notes.push(format!(
                    "{authority} is not on port {usual}: port {first} is looked at ({more}name another in the URL, as in \
                     http://{authority}:{first}/)"
                ));
                *first
            }
        }
    }

    fn decide(&self, call: &Call<'_>, port: u16, explanation: &mut Explanation) {
        let table = self.outbound.ports.get(&port);
        let host = table.and_then(|table| route::find_host(table, call.authority).map(|host| (table, host)));
        let Some((table, host)) = host else {
            explanation.outcome = self.unknown(call, port);
            return;
        };
        explanation.host = Some(Host {
            name: host.host.clone(),
            port: host.port,
            how: how_found(table, host, call.authority),
        });
        let matched = route::route(host, call);
        let passed = passed::Passing { scene: self, host, call, port };
        explanation.passed = passed.all(matched.as_ref());
        match matched {
            None => {
                explanation.outcome = Outcome {
                    kind: End::NoRoute,
                    status: Some(404),
                    words: "no rule of the host applies: 404 with an empty body (NR)".into(),
                    ..Outcome::default()
                };
            }
            Some(matched) => forward::follow(self, host, call, &matched, port, explanation),
        }
    }

    fn unknown(&self, call: &Call<'_>, port: u16) -> Outcome {
        let elsewhere: Vec<String> = {
            let mut ports: Vec<u16> = self
                .outbound
                .ports
                .values()
                .filter(|table| route::find_host(table, call.authority).is_some())
                .map(|table| table.number)
                .collect();
            ports.sort_unstable();
            ports.iter().map(u16::to_string).collect()
        };
        let hint = if elsewhere.is_empty() {
            format!("nobody declares {}", route::host_of(call.authority))
        } else {
            format!(
                "{} is not on port {port} (it is on {})",
                route::host_of(call.authority),
                elsewhere.join(", ")
            )
        };
        match self.outbound.unknown {
            UnknownHosts::Allow => Outcome {
                kind: End::PassThrough,
                words: format!(
                    "{hint}: it goes where it was going, outside the mesh's rules (outboundTrafficPolicy ALLOW_ANY)"
                ),
                ..Outcome::default()
            },
            UnknownHosts::NotFound => Outcome {
                kind: End::UnknownHost,
                status: Some(404),
                words: format!("{hint}: 404 with an empty body (a gateway knows its own hosts)"),
                ..Outcome::default()
            },
            UnknownHosts::Refuse => Outcome {
                kind: End::UnknownHost,
                status: Some(502),
                words: format!("{hint}: 502 with an empty body (outboundTrafficPolicy REGISTRY_ONLY)"),
                ..Outcome::default()
            },
        }
    }
}

/// Tells how a Host led to a virtual host: by its name, a short form of it, or a wildcard.
fn how_found(table: &PortTable, host: &VirtualHost, authority: &str) -> String {
    let asked = route::host_of(authority);
    if *asked == *host.host {
        return "its full name".into();
    }
    if table.http.get(&asked).is_some() {
        return format!("{asked} is a name of it for this caller");
    }
    format!("the longest wildcard that takes {asked}")
}

/// Brings a head into the form in which rules see it.
fn at_the_door(headers: &mut HeaderMap, notes: &mut Vec<String>) {
    let before: Vec<HeaderName> = headers.keys().cloned().collect();
    strip::strip(headers);
    let gone: Vec<&str> =
        before.iter().filter(|name| !headers.contains_key(*name)).map(HeaderName::as_str).collect();
    if !gone.is_empty() {
        notes.push(format!("taken off before rules are asked: {}", gone.join(", ")));
    }
    fold::fold(headers, false);
    headers.remove(http::header::HOST);
    // What the proxy adds before rules are asked; the id is another for each request.
    for (name, value) in
        [("x-forwarded-proto", "http"), ("x-request-id", "00000000-0000-4000-8000-000000000000")]
    {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

fn headers(ask: &Ask) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in &ask.headers {
        let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is not a header's name"))?;
        let value =
            HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} cannot be sent"))?;
        map.append(parsed, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests;
