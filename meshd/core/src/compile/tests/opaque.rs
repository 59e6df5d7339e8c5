//! Random rules for TCP and TLS against a naive reading of them: who is meant, and which block counts.

use mesh_proto::registration::Protocol;
use mesh_proto::resource::{
    Destination, L4MatchAttributes, Object, ObjectMeta, RouteDestination, Spec, TcpRoute, TlsMatchAttributes,
    TlsRoute, VirtualService,
};
use mesh_proto::value::Labels;
use proptest::prelude::*;
use std::collections::BTreeMap;

use super::reference::{seeded, service};
use crate::compile::compile;
use crate::plan::{TcpRules, Workload};
use crate::sketch;

/// What a condition of either kind says of the caller and the port.
#[derive(Clone, Debug)]
struct Meant {
    port: Option<u16>,
    label: Option<&'static str>,
    namespace: Option<&'static str>,
    gateway: Option<&'static str>,
}

prop_compose! {
    fn meant()(
        port in proptest::option::weighted(0.3, prop_oneof![Just(7000_u16), Just(7001)]),
        label in proptest::option::weighted(0.3, prop_oneof![Just("a"), Just("b")]),
        namespace in proptest::option::weighted(0.2, prop_oneof![Just("default"), Just("shop")]),
        gateway in proptest::option::weighted(0.2, prop_oneof![Just("mesh"), Just("edge")]),
    ) -> Meant {
        Meant { port, label, namespace, gateway }
    }
}

impl Meant {
    /// All of it must hold; for HTTP `gateways` decides alone. Source: pilot's `matchTCP` and `matchTLS`.
    fn holds(&self, label: Option<&str>, port: u16) -> bool {
        self.port.is_none_or(|wanted| wanted == port)
            && self.label.is_none_or(|wanted| label == Some(wanted))
            && self.namespace.is_none_or(|wanted| wanted == "default")
            && self.gateway.is_none_or(|wanted| wanted == "mesh")
    }

    fn labels(&self) -> Labels {
        self.label.map(|value| ("app".to_owned(), value.to_owned())).into_iter().collect()
    }

    fn gateways(&self) -> Vec<String> {
        self.gateway.map(str::to_owned).into_iter().collect()
    }

    fn tcp(&self) -> L4MatchAttributes {
        L4MatchAttributes {
            port: self.port,
            source_labels: self.labels(),
            source_namespace: self.namespace.unwrap_or_default().to_owned(),
            gateways: self.gateways(),
            ..L4MatchAttributes::default()
        }
    }

    fn tls(&self, names: &[&str]) -> TlsMatchAttributes {
        TlsMatchAttributes {
            sni_hosts: names.iter().map(|&name| name.to_owned()).collect(),
            port: self.port,
            source_labels: self.labels(),
            source_namespace: self.namespace.unwrap_or_default().to_owned(),
            gateways: self.gateways(),
            ..TlsMatchAttributes::default()
        }
    }
}

/// Each block is told from the others by the subset that it sends to.
fn to(block: usize) -> Vec<RouteDestination> {
    let destination = Destination { host: "db".into(), subset: block.to_string(), ..Destination::default() };
    vec![RouteDestination { destination: Some(destination), ..RouteDestination::default() }]
}

fn object(name: &str, spec: VirtualService) -> Object {
    let metadata = ObjectMeta { name: name.into(), namespace: "default".into(), ..ObjectMeta::default() };
    Object { metadata, spec: Spec::VirtualService(spec.into()) }
}

fn subset(rules: &TcpRules) -> String {
    rules.rules.first().map_or_else(|| "none".into(), |rule| rule.destinations[0].name.subset.to_string())
}

/// Compiles one rule for a caller with this label.
fn plan_of(rule: Object, protocol: Protocol, label: Option<&str>) -> crate::plan::Plan {
    let db = service("db", protocol, &[7000, 7001]);
    let hosts = BTreeMap::from([("vm2".to_owned(), BTreeMap::from([("db".to_owned(), db)]))]);
    let world = sketch::of_files(&hosts, vec![rule]).expect("a World");
    let labels = label.map(|value| ("app".to_owned(), value.to_owned())).into_iter().collect();
    compile(&world, &sketch::node(vec![Workload { labels, ..sketch::nobody() }]), None)
}

const NAMES: [&str; 6] = ["a.x.test", "b.x.test", "a.b.x.test", "*.x.test", "*.b.x.test", "*.test"];

fn covers(pattern: &str, name: &str) -> bool {
    pattern
        .strip_prefix('*')
        .map_or(pattern == name, |suffix| name.ends_with(suffix) && name.len() > suffix.len())
}

proptest! {
    #![proptest_config(seeded(400))]

    #[test]
    fn a_connection_takes_the_block_that_a_naive_reading_takes(
        blocks in proptest::collection::vec(proptest::collection::vec(meant(), 0..3), 1..5),
        label in proptest::option::of(prop_oneof![Just("a"), Just("b")]),
        port in prop_oneof![Just(7000_u16), Just(7001)],
    ) {
        let tcp = blocks.iter().enumerate().map(|(index, conditions)| TcpRoute {
            r#match: conditions.iter().map(Meant::tcp).collect(),
            route: to(index),
        });
        let spec = VirtualService { hosts: vec!["db".into()], tcp: tcp.collect(), ..VirtualService::default() };
        let plan = plan_of(object("db", spec), Protocol::Tcp, label);

        let found = plan.outbounds[0].ports[&port].tcp.as_ref().map(|service| subset(&service.tcp));

        let counts = |conditions: &Vec<Meant>| {
            conditions.is_empty() || conditions.iter().any(|one| one.holds(label, port))
        };
        // Where no block is for this caller, the service is reached as if there were no rule.
        let wanted = blocks.iter().position(counts).map_or_else(String::new, |index| index.to_string());
        prop_assert_eq!(found, Some(wanted));
    }

    #[test]
    fn a_server_name_takes_the_most_specific_block_for_its_caller(
        blocks in proptest::collection::vec((meant(), proptest::sample::subsequence(NAMES.to_vec(), 1..3)), 1..5),
        label in proptest::option::of(prop_oneof![Just("a"), Just("b")]),
        port in prop_oneof![Just(7000_u16), Just(7001)],
        name in prop_oneof![Just("a.x.test"), Just("b.x.test"), Just("a.b.x.test"), Just("c.b.x.test"), Just("x.test")],
    ) {
        let tls = blocks.iter().enumerate().map(|(index, (meant, names))| TlsRoute {
            r#match: vec![meant.tls(names)],
            route: to(index),
        });
        let hosts = vec!["db".into(), "*.test".into()];
        let spec = VirtualService { hosts, tls: tls.collect(), ..VirtualService::default() };
        let plan = plan_of(object("db", spec), Protocol::Tls, label);

        let found = plan.outbounds[0].ports.get(&port).and_then(|table| table.tls.find(name));

        // Exact before wildcard, the longest wildcard first, then the earlier block.
        let fitting = blocks.iter().enumerate().filter(|(_, (meant, _))| meant.holds(label, port)).flat_map(
            |(index, (_, names))| names.iter().filter(|pattern| covers(pattern, name)).map(move |pattern| (index, *pattern)),
        );
        let best = fitting.min_by_key(|(index, pattern)| (pattern.starts_with('*'), usize::MAX - pattern.len(), *index));
        prop_assert_eq!(found.map(|host| subset(&host.rules)), best.map(|(index, _)| index.to_string()), "{}", name);
    }
}
