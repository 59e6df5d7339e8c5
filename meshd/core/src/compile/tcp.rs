//! Rules for connections: TLS by SNI, TCP by address.
//!
//! Source: Istio `buildSidecarOutboundTCPFilterChainOpts`, `buildSidecarOutboundTLSFilterChainOpts`, `matchTCP`,
//! `matchTLS`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_proto::registration::Protocol;
use mesh_proto::resource::RouteDestination;

use super::hosts::{Port, Service};
use super::outbound::View;
use super::routes::weight;
use super::rules::Rules;
use crate::plan::{ClusterName, Origin, TcpRule, TcpRules, TlsHost, WeightedCluster};

/// Where the connections of a service's port go.
pub(super) struct Connections {
    /// By SNI, the first rule first.
    pub(super) tls: Vec<(String, Arc<TlsHost>)>,
    /// All others.
    pub(super) tcp: TcpRules,
}

/// Decides for a port of a service; `rules` are positions in the view's rules, the oldest first.
pub(super) fn connections(
    view: &View<'_>,
    service: &Service<'_>,
    port: &Port,
    rules: &[usize],
) -> Connections {
    let protocol = port.protocol;
    if protocol.is_http() {
        // Bytes on a declared HTTP port that are no HTTP are refused before any rule.
        return Connections { tls: Vec::new(), tcp: TcpRules { rules: vec![plain(view, service, port)] } };
    }
    let rules: Vec<&Rules<'_>> = rules.iter().map(|index| view.rules[*index]).collect();
    let mut by_sni = by_sni(view, port, &rules);
    let mut tcp = tcp_rules(view, service, port, &rules);
    if protocol.is_tls() {
        let has_rules = !by_sni.is_empty();
        if has_rules && tcp.rules.iter().all(|rule| rule.origin.object.is_none()) {
            // With rules for SNI, a connection that none takes is cut.
            tcp.rules.clear();
        }
        if !has_rules {
            by_sni.insert(service.host.to_string(), TcpRules { rules: vec![plain(view, service, port)] });
        }
    }
    let tls = by_sni.into_iter().map(|(sni, rules)| {
        let host = Arc::new(TlsHost { host: service.host.to_string(), rules });
        (sni, host)
    });
    Connections { tls: tls.collect(), tcp }
}

fn by_sni(view: &View<'_>, port: &Port, rules: &[&Rules<'_>]) -> BTreeMap<String, TcpRules> {
    let mut found: BTreeMap<String, TcpRules> = BTreeMap::new();
    if !port.protocol.is_tls() && port.protocol != Protocol::Auto {
        return found;
    }
    for rules in rules {
        for (index, block) in rules.spec.tls.iter().enumerate() {
            for condition in &block.r#match {
                let holds = view.asker().meets(
                    &condition.gateways,
                    &condition.source_labels,
                    &condition.source_namespace,
                    rules.namespace,
                ) && condition.port.is_none_or(|wanted| wanted == port.number);
                if !holds {
                    continue;
                }
                let Some(rule) = rule(
                    view,
                    rules,
                    &format!("tls[{index}]"),
                    &condition.destination_subnets,
                    &block.route,
                    port,
                ) else {
                    continue;
                };
                // That they are among the hosts as written was seen at the door; `bank` is not completed.
                for sni in &condition.sni_hosts {
                    found.entry(sni.to_ascii_lowercase()).or_default().rules.push(rule.clone());
                }
            }
        }
    }
    found
}

/// The first block with a condition that holds wins and ends the search; without any, it is the plain service.
fn tcp_rules(view: &View<'_>, service: &Service<'_>, port: &Port, rules: &[&Rules<'_>]) -> TcpRules {
    let mut found = TcpRules::default();
    for rules in rules {
        for (index, block) in rules.spec.tcp.iter().enumerate() {
            let path = format!("tcp[{index}]");
            let mut subnets = Vec::new();
            let mut always = block.r#match.is_empty();
            for condition in &block.r#match {
                let holds = view.asker().meets(
                    &condition.gateways,
                    &condition.source_labels,
                    &condition.source_namespace,
                    rules.namespace,
                ) && condition.port.is_none_or(|wanted| wanted == port.number);
                if holds && condition.destination_subnets.is_empty() {
                    always = true;
                    break;
                }
                if holds {
                    subnets.extend(condition.destination_subnets.iter().cloned());
                }
            }
            if always {
                found.rules.extend(rule(view, rules, &path, &[], &block.route, port));
                return found;
            }
            if !subnets.is_empty() {
                found.rules.extend(rule(view, rules, &path, &subnets, &block.route, port));
            }
        }
    }
    found.rules.push(plain(view, service, port));
    found
}

fn rule(
    view: &View<'_>,
    rules: &Rules<'_>,
    path: &str,
    subnets: &[String],
    route: &[RouteDestination],
    port: &Port,
) -> Option<TcpRule> {
    let problem = |text: &str| view.scene.problems.note(format!("{}: {path}: {text}", rules.key));
    let mut nets = Vec::new();
    for text in subnets {
        let net =
            text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
        let Some(net) = net else {
            problem(&format!("{text:?} is not an address range"));
            return None;
        };
        nets.push(net);
    }
    let destinations: Vec<WeightedCluster> = route
        .iter()
        .filter_map(|entry| {
            let (name, cluster) = view.find(entry.destination.as_ref()?, rules.namespace, port.number);
            Some(WeightedCluster { weight: weight(entry.weight), cluster, name, headers: None })
        })
        .collect();
    if destinations.is_empty() {
        problem("it has no destination");
        return None;
    }
    let origin = Origin { object: Some(rules.key.clone()), path: path.to_owned(), name: String::new() };
    Some(TcpRule { destination_subnets: nets, destinations, origin })
}

fn plain(view: &View<'_>, service: &Service<'_>, port: &Port) -> TcpRule {
    let name = ClusterName { host: service.host.clone(), port: port.number, subset: "".into() };
    let cluster = view.scene.clusters.find(view.scope, &name);
    let destinations = vec![WeightedCluster { weight: 1, cluster, name, headers: None }];
    let origin = Origin { name: "default".into(), ..Origin::default() };
    TcpRule { destination_subnets: Vec::new(), destinations, origin }
}
