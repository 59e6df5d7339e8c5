//! The virtual hosts of a gateway's HTTP servers.
//!
//! A rule's hosts and a server's meet where one takes the other; the narrower name is the virtual host. Several rules of
//! one host are united: their routes in order, those that take every request last. Source: Istio
//! `buildGatewayHTTPRouteConfig`, `Names.Intersection`, `NamesForNamespace`, `SortVHostRoutes`.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use mesh_proto::resource::Destination;

use super::super::fingerprint;
use super::super::hosts::takes;
use super::super::routes::Context;
use super::super::rules::{Asker, Rules};
use super::{Behind, Open};
use crate::plan::{
    Action, Matcher, Origin, Outbound, PathMatch, PortSource, PortTable, Redirect, Route, VirtualHost,
};

/// What one virtual host is made of.
#[derive(Default)]
struct Making {
    port: u16,
    routes: Vec<Arc<Route>>,
    /// The server that says that plain requests are sent to HTTPS.
    redirect: Option<Arc<Route>>,
}

impl Behind<'_> {
    /// Makes what visitors of some servers with one table may reach.
    pub(super) fn http(&self, seat: usize, servers: &[Open<'_>]) -> Outbound {
        let mut outbound = self.outbound();
        let Some(first) = servers.first() else { return outbound };
        let before = self.previous.and_then(|plan| plan.doors.seats.get(&seat));
        let stamp = self.stamp(servers);
        let same = before.and_then(|before| before.ports.get(&first.port)).filter(|table| {
            let mut hosts = table.http.iter();
            hosts.all(|(_, host)| host.stamp == stamp && self.scene.has_same_clusters(self.scope, host))
        });
        let table = match same {
            Some(table) if table.has_http() => table.clone(),
            _ => Arc::new(self.table(first.port, servers, stamp)),
        };
        outbound.ports.insert(first.port, table);
        outbound
    }

    fn stamp(&self, servers: &[Open<'_>]) -> u64 {
        let mut made_of = Vec::new();
        for server in servers {
            let metadata = &server.stored.object.metadata;
            made_of.push((fingerprint(&(&metadata.namespace, &metadata.name)), server.stored.changed));
            let rules = self.rules.to(&server.gateway).iter();
            made_of
                .extend(rules.map(|rules| (fingerprint(&rules.made_of), mesh_proto::command::Revision(0))));
        }
        fingerprint(&(self.scene.topology, self.scope.stamp, made_of))
    }

    fn table(&self, port: u16, servers: &[Open<'_>], stamp: u64) -> PortTable {
        let mut hosts: BTreeMap<String, Making> = BTreeMap::new();
        let mut known: BTreeMap<(&str, &mesh_proto::resource::ObjectKey), Vec<Arc<Route>>> = BTreeMap::new();
        for server in servers {
            let redirect = redirect(server);
            for rules in self.rules.to(&server.gateway) {
                let meeting = meeting(server, rules);
                if meeting.is_empty() {
                    continue;
                }
                let routes = known
                    .entry((&server.gateway, &rules.key))
                    .or_insert_with(|| self.routes(rules, &server.gateway, server.port));
                if routes.is_empty() {
                    continue;
                }
                for name in meeting {
                    let host = hosts.entry(name).or_default();
                    host.port = server.port;
                    host.routes.extend(routes.iter().cloned());
                    host.redirect = host.redirect.take().or_else(|| redirect.clone());
                }
            }
            if redirect.is_some() {
                for name in server.names() {
                    let host = hosts
                        .entry(name.to_owned())
                        .or_insert_with(|| Making { port: server.port, ..Making::default() });
                    host.redirect.clone_from(&redirect);
                }
            }
        }
        let mut table = PortTable { number: port, ..PortTable::default() };
        if hosts.is_empty() {
            // So that HTTP is spoken, and 404 said.
            hosts.insert("*".into(), Making { port, ..Making::default() });
        }
        for (name, making) in hosts {
            let routes = match making.redirect {
                Some(redirect) => vec![redirect],
                None => sorted(making.routes),
            };
            let host = VirtualHost { host: name.clone(), port: making.port, routes, stamp };
            table.http.add(&name, Arc::new(host));
        }
        table
    }

    fn routes(&self, rules: &Rules<'_>, gateway: &str, port: u16) -> Vec<Arc<Route>> {
        let asker = Asker { caller: self.scope.caller, gateway: Some(gateway) };
        let find =
            |wanted: &Destination, namespace: &str| self.scene.find(self.scope, wanted, namespace, port);
        let context = Context { find: &find, mesh: self.scene.mesh, problems: self.scene.problems };
        let applicable = rules.applicable(asker, port);
        applicable
            .iter()
            .filter_map(|(rule, conditions)| context.route(rules, rule, conditions))
            .map(Arc::new)
            .collect()
    }
}

/// Returns the names that a server and a rule have in common.
fn meeting(server: &Open<'_>, rules: &Rules<'_>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for host in &server.hosts {
        let name = match host.split_once('/') {
            Some((namespace, _)) if namespace != rules.namespace => continue,
            Some((_, name)) => name,
            None => host.as_str(),
        };
        for other in &rules.hosts {
            let narrower = if takes(other, name) {
                name
            } else if takes(name, other) {
                other.as_str()
            } else {
                continue;
            };
            if !found.iter().any(|known| known == narrower) {
                found.push(narrower.to_owned());
            }
        }
    }
    found
}

/// Puts routes that take every request last; the others keep their order.
fn sorted(mut routes: Vec<Arc<Route>>) -> Vec<Arc<Route>> {
    routes.sort_by_key(|route| takes_all(route));
    routes
}

/// Source: Istio `IsCatchAllRoute`.
fn takes_all(route: &Route) -> bool {
    let any = |matcher: &Matcher| {
        let any_path = match &matcher.path {
            None => true,
            Some(PathMatch::Prefix { value, .. }) => value == "/",
            Some(PathMatch::Regex(regex)) => matches!(regex.as_str(), ".*" | "^(?:.*)$"),
            Some(PathMatch::Exact { .. }) => false,
        };
        any_path
            && matcher.method.is_none()
            && matcher.scheme.is_none()
            && matcher.authority.is_none()
            && matcher.headers.is_empty()
            && matcher.without_headers.is_empty()
            && matcher.query.is_empty()
    };
    route.matchers.is_empty() || route.matchers.iter().any(any)
}

/// Sends plain requests to HTTPS, the Host kept. Source: Istio `httpsRedirect`, Envoy `require_tls: ALL`.
fn redirect(server: &Open<'_>) -> Option<Arc<Route>> {
    server.tls().filter(|tls| tls.https_redirect)?;
    let redirect = Redirect {
        path: None,
        prefix: None,
        authority: None,
        scheme: Some("https".into()),
        port: PortSource::Keep,
        code: StatusCode::MOVED_PERMANENTLY,
    };
    let origin = Origin {
        object: Some(server.stored.object.key()),
        path: format!("servers[{}].tls.httpsRedirect", server.index),
        name: String::new(),
    };
    Some(Arc::new(Route {
        origin,
        matchers: Vec::new(),
        action: Action::Redirect(Box::new(redirect)),
        headers: None,
        fault: None,
        cors: None,
    }))
}
