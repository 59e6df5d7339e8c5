//! The connections of a gateway's TCP and TLS servers: where each goes.
//!
//! Source: Istio `buildGatewayNetworkFiltersFromTCPRoutes`, `buildGatewayNetworkFiltersFromTLSRoutes`,
//! `pickMatchingGatewayHosts`, `l4MultiMatch`.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_proto::resource::{Location, RouteDestination};
use mesh_proto::value::Labels;

use super::super::hosts::{meet, takes};
use super::super::routes::weight;
use super::super::rules::{Asker, Rules};
use super::{Behind, Open};
use crate::identity::sni;
use crate::plan::{Cluster, Origin, ServicePort, TcpRule, TcpRules, WeightedCluster};

impl Behind<'_> {
    /// Finds where the connections of a server without SNI of its own go: the first block that is for it.
    pub(super) fn tcp(&self, server: &Open<'_>) -> Option<Arc<ServicePort>> {
        for rules in self.bound(server) {
            for (index, block) in rules.spec.tcp.iter().enumerate() {
                let is_for = block.r#match.is_empty()
                    || block
                        .r#match
                        .iter()
                        .any(|condition| self.is_for(server, rules, condition.port, &condition.gateways));
                if is_for && !block.route.is_empty() {
                    let path = format!("tcp[{index}]");
                    return Some(self.service(server, rules, &path, &block.route, &rules.hosts.join(",")));
                }
            }
        }
        None
    }

    /// Finds where TLS that passes through goes, by SNI; of two rules for one name the first counts.
    pub(super) fn passed(&self, server: &Open<'_>) -> Vec<(String, Arc<ServicePort>)> {
        let mut found = Vec::new();
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for rules in self.bound(server) {
            for (index, block) in
                rules.spec.tls.iter().enumerate().filter(|(_, block)| !block.route.is_empty())
            {
                for condition in &block.r#match {
                    if !self.is_for(server, rules, condition.port, &condition.gateways) {
                        continue;
                    }
                    let path = format!("tls[{index}]");
                    for sni in &condition.sni_hosts {
                        let sni = sni.to_ascii_lowercase();
                        if !taken.insert(sni.clone()) {
                            self.scene.problems.note(format!(
                                "{}: {path}: SNI {sni} has a rule on gateway {} already: this one is ignored for it",
                                rules.key, server.gateway
                            ));
                            continue;
                        }
                        let service = self.service(server, rules, &path, &block.route, &sni);
                        found.push((sni, service));
                    }
                }
            }
        }
        found
    }

    /// Finds the hops that a server passes on, by the name they ask for: those to services of the mesh whose names its
    /// hosts take, with their subsets. Source: Istio `builtAutoPassthroughFilterChains`.
    pub(super) fn hops(&self, server: &Open<'_>) -> Vec<(String, Arc<Cluster>)> {
        let mut found = Vec::new();
        for service in self.scope.reachable() {
            let is_outside =
                service.entry().is_some_and(|entry| entry.spec.location() == Location::MeshExternal);
            let is_taken = server.names().iter().any(|name| takes(name, &service.host));
            if is_outside || !is_taken {
                continue;
            }
            for cluster in self.scene.clusters.all(self.scope, service) {
                let name = &cluster.name;
                found.push((sni::format(name.port, &name.subset, &name.host), cluster));
            }
        }
        found
    }

    fn bound<'b>(&'b self, server: &'b Open<'_>) -> impl Iterator<Item = &'b &'b Rules<'b>> {
        self.rules.to(&server.gateway).iter().filter(|rules| {
            server.hosts.iter().any(|host| {
                let name = match host.split_once('/') {
                    Some((namespace, _)) if namespace != rules.namespace => return false,
                    Some((_, name)) => name,
                    None => host.as_str(),
                };
                rules.hosts.iter().any(|other| meet(name, other))
            })
        })
    }

    fn is_for(&self, server: &Open<'_>, rules: &Rules<'_>, port: Option<u16>, gateways: &[String]) -> bool {
        let asker = Asker { caller: self.scope.caller, gateway: Some(&server.gateway) };
        port.is_none_or(|port| port == server.port)
            && asker.meets(gateways, &Labels::new(), "", rules.namespace)
    }

    fn service(
        &self,
        server: &Open<'_>,
        rules: &Rules<'_>,
        path: &str,
        route: &[RouteDestination],
        host: &str,
    ) -> Arc<ServicePort> {
        let destinations = route.iter().filter_map(|entry| {
            let wanted = entry.destination.as_ref()?;
            let (name, cluster) = self.scene.find(self.scope, wanted, rules.namespace, server.port);
            Some(WeightedCluster { weight: weight(entry.weight), cluster, name, headers: None })
        });
        let origin = Origin { object: Some(rules.key.clone()), path: path.to_owned(), name: String::new() };
        let rule = TcpRule { destination_subnets: Vec::new(), destinations: destinations.collect(), origin };
        Arc::new(ServicePort {
            host: host.to_owned(),
            number: server.port,
            protocol: server.protocol,
            tcp: TcpRules { rules: vec![rule] },
        })
    }
}
