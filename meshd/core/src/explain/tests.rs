use std::collections::BTreeMap;

use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::value::Labels;

use super::*;
use crate::sketch;

fn instance(service: &str, version: &str) -> Instance {
    Instance {
        service: service.into(),
        group: None,
        namespace: "default".into(),
        account: service.into(),
        labels: Labels::from([("version".into(), version.into()), ("app".into(), service.into())]),
        ports: vec![PortBinding {
            number: 9080,
            name: "http".into(),
            protocol: Protocol::Http,
            target: ([127, 0, 0, 1], 8081).into(),
        }],
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}

const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - name: admin
    match: [{uri: {prefix: /admin}}, {headers: {x-admin: {exact: 'yes'}}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - name: ratings only
    match: [{sourceLabels: {app: ratings}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - name: jason
    match: [{headers: {end-user: {exact: jason}}, queryParams: {v: {exact: '2'}}}]
    rewrite: {uri: /v2}
    timeout: 2s
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}, weight: 90}, {destination: {host: reviews, subset: v2}, weight: 10}]
";

fn world(rules: &str) -> World {
    let reviews = ["v1", "v2"].map(|version| (format!("reviews-{version}"), instance("reviews", version)));
    let callers = ["productpage", "ratings"].map(|name| (name.to_owned(), instance(name, "v1")));
    let (documents, findings) = mesh_proto::yaml::read("rules", rules);
    assert!(findings.is_empty(), "{findings:?}");
    let objects = documents.into_iter().map(|document| document.object).collect();
    let instances = reviews.into_iter().chain(callers).collect();
    sketch::of_files(&BTreeMap::from([("vm1".to_owned(), instances)]), objects).expect("a World")
}

fn ask(target: &str, headers: &[(&str, &str)], from: &str) -> Explanation {
    let world = world(RULES);
    let node = sketch::node(vec![sketch::nobody()]);
    let plan = compile(&world, &node, None);
    let ask = Ask {
        method: "GET".into(),
        scheme: "http".into(),
        authority: "reviews:9080".into(),
        target: target.into(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        from: from.into(),
        ..Ask::default()
    };
    explain(&world, &plan, &ask, Moment(0)).expect("an explanation")
}

#[test]
fn each_rule_passed_over_tells_the_first_condition_that_failed() {
    let told = ask("/api?v=2", &[("end-user", "jason")], "productpage");

    let passed: Vec<_> =
        told.passed.iter().map(|one| (one.rule.path.as_str(), one.because.join(" | "))).collect();
    assert_eq!(
        passed,
        [
            (
                "http[0]",
                "uri prefix /admin: it is \"/api\" | header x-admin = yes: it is not there".to_owned()
            ),
            ("http[1]", "sourceLabels app = ratings: the caller has \"productpage\"".to_owned()),
        ]
    );
    let rule = told.rule.expect("a rule");
    assert_eq!((rule.object.as_str(), rule.path.as_str()), ("VirtualService default/reviews", "http[2]"));
    assert_eq!(told.because, "header end-user = jason and query v = 2");
}

#[test]
fn the_destination_tells_what_it_is_sent_and_its_instances() {
    let told = ask("/api?v=2", &[("end-user", "jason")], "productpage");

    let [to] = told.destinations.as_slice() else { panic!("one destination") };
    assert_eq!((to.subset.as_str(), to.share, to.sends.target.as_str()), ("v2", 1_000_000, "/v2api?v=2"));
    let [instance] = to.instances.as_slice() else { panic!("one instance") };
    assert_eq!(
        (instance.id.as_str(), instance.state.as_str(), instance.picks),
        ("reviews-v2 on vm1", "healthy", 1_000)
    );
    assert!(instance.there.ends_with("there to 127.0.0.1:8081"), "{}", instance.there);
}

#[test]
fn every_setting_names_the_field_that_set_it() {
    let told = ask("/api?v=2", &[("end-user", "jason")], "productpage");

    let by = |list: &[mesh_proto::explain::Setting], what: &str| {
        let found = list.iter().find(|setting| setting.what == what);
        found.map(|setting| setting.by.clone()).unwrap_or_default()
    };
    assert_eq!(by(&told.settings, "timeout"), "VirtualService default/reviews http[2].timeout");
    assert_eq!(by(&told.settings, "retries"), "Istio's default");
    let of = &told.destinations[0].settings;
    assert_eq!(by(of, "balancing"), "DestinationRule default/reviews spec.trafficPolicy.loadBalancer");
    assert_eq!(
        by(of, "outlier detection"),
        "DestinationRule default/reviews spec.subsets[1].trafficPolicy.outlierDetection"
    );
    assert_eq!(by(of, "subset"), "DestinationRule default/reviews spec.subsets[1]");
}

#[test]
fn a_subset_that_is_not_there_is_503_and_says_why() {
    let told = ask("/", &[], "ratings");

    assert_eq!(told.outcome.status, Some(503));
    assert_eq!(
        told.destinations[0].trouble,
        "no DestinationRule for reviews.default.svc.cluster.local has a subset v9"
    );
}

#[test]
fn shares_are_told_not_drawn() {
    let told = ask("/", &[], "");

    let shares: Vec<_> = told.destinations.iter().map(|one| (one.subset.as_str(), one.share)).collect();
    assert_eq!(shares, [("v1", 900_000), ("v2", 100_000)]);
    assert_eq!(told.outcome.status, None);
}

#[test]
fn a_caller_nobody_knows_is_an_error_that_names_those_there_are() {
    let world = world(RULES);
    let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
    let ask = Ask {
        method: "GET".into(),
        authority: "reviews".into(),
        target: "/".into(),
        from: "prodpage".into(),
        ..Ask::default()
    };

    let error = explain(&world, &plan, &ask, Moment(0)).expect_err("nobody");

    assert_eq!(error, "no workload prodpage is registered (there are productpage, ratings, reviews)");
}

const CONNECTIONS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mongo, namespace: default}
spec: {host: mongo, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mongo, namespace: default}
spec:
  hosts: [mongo]
  tcp:
  - {match: [{port: 1}], route: [{destination: {host: mongo, subset: v9}}]}
  - {match: [{sourceLabels: {app: other}}], route: [{destination: {host: mongo, subset: v2}}]}
  - route: [{destination: {host: mongo, subset: v1}, weight: 80}, {destination: {host: mongo, subset: v2}, weight: 20}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: shop}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - {match: [{uri: {prefix: /a}}], directResponse: {status: 418}}
  - {directResponse: {status: 200}}
";

fn ask_of(ask: &Ask) -> Explanation {
    let (documents, findings) = mesh_proto::yaml::read("rules", CONNECTIONS);
    assert!(findings.is_empty(), "{findings:?}");
    let objects = documents.into_iter().map(|document| document.object).collect();
    let mongo = ["v1", "v2"].map(|version| {
        let mut one = instance("mongo", version);
        one.ports[0] = PortBinding {
            number: 27_017,
            name: "mongo".into(),
            protocol: Protocol::Mongo,
            target: ([127, 0, 0, 1], 27_017).into(),
        };
        (format!("mongo-{version}"), one)
    });
    let hosts = BTreeMap::from([("vm1".to_owned(), mongo.into_iter().collect())]);
    let world = sketch::of_files(&hosts, objects).expect("a World");
    let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
    explain(&world, &plan, ask, Moment(0)).expect("an explanation")
}

fn passed_over(told: &Explanation) -> Vec<String> {
    told.passed.iter().map(|one| format!("{} {}", one.rule.path, one.because.join(" | "))).collect()
}

#[test]
fn a_connection_tells_the_blocks_passed_over_and_its_shares() {
    let told = ask_of(&Ask { speaks: Speaks::Tcp, authority: "mongo:27017".into(), ..Ask::default() });

    assert_eq!(
        passed_over(&told),
        ["tcp[0] port 1: it is 27017", "tcp[1] sourceLabels app = other: the caller has no such label"]
    );
    assert_eq!(told.rule.expect("a rule").path, "tcp[2]");
    let shares: Vec<_> = told.destinations.iter().map(|one| (one.subset.as_str(), one.share)).collect();
    assert_eq!(shares, [("v1", 800_000), ("v2", 200_000)]);
    assert!(told.notes.iter().any(|note| note.starts_with("DNS answers 240.240.")), "{:?}", told.notes);
}

#[test]
fn a_visitor_tells_the_server_and_the_rule_of_the_gateway() {
    let visit = |gateway: &str, authority: &str| {
        ask_of(&Ask {
            method: "GET".into(),
            scheme: "https".into(),
            authority: authority.into(),
            target: "/b".into(),
            gateway: gateway.into(),
            ..Ask::default()
        })
    };

    let told = visit("default/edge", "shop.example.com");
    assert_eq!(told.outcome.status, Some(200));
    assert_eq!(passed_over(&told), ["http[0] uri prefix /a: it is \"/b\""]);
    assert_eq!(
        told.notes.first().map(String::as_str),
        Some("TLS ends at the gateway, by Gateway default/edge: its certificate is of secret shop")
    );

    let told = visit("default/edge", "other.example.com");
    assert_eq!(
        told.outcome.words,
        "closed: no server of the gateway on port 443 has the name other.example.com"
    );
    let told = visit("default/edge", "shop.example.com:8443");
    assert_eq!(told.outcome.words, "closed: nobody listens on port 8443 (the gateway opens 443)");
}

/// A balancer by key, over both versions, of what is sent on: rules have changed it by then.
fn hashed(header: &str, target: &str) -> (Vec<String>, Explanation) {
    let rules = format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews, namespace: default}}
spec: {{host: reviews, trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: '{header}', maglev: {{}}}}}}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: default}}
spec:
  hosts: [reviews]
  http:
  - match: [{{uri: {{prefix: /same}}}}]
    rewrite: {{uriRegexRewrite: {{match: '.*', rewrite: /same}}, authority: same.example}}
    route: [{{destination: {{host: reviews}}}}]
  - route: [{{destination: {{host: reviews}}}}]
"
    );
    let world = world(&rules);
    let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
    let ask = Ask {
        method: "GET".into(),
        scheme: "http".into(),
        authority: "reviews:9080".into(),
        target: target.into(),
        ..Ask::default()
    };
    let told = explain(&world, &plan, &ask, Moment(0)).expect("an explanation");
    let picked = told.destinations[0].instances.iter().filter(|one| one.picks > 0);
    (picked.map(|one| one.id.clone()).collect(), told)
}

#[test]
fn a_key_may_be_a_part_of_the_head_as_it_is_sent_on() {
    let owner = |part: &str, target: &str| {
        let (picked, told) = hashed(part, target);
        assert_eq!(picked.len(), 1, "one key, one instance: {picked:?}");
        let note =
            format!("consistent hashing by header {part}: what has the same one goes to the same instance");
        assert!(told.notes.contains(&note), "{:?}", told.notes);
        picked[0].clone()
    };
    // The query is a part of it: of 20 paths some go to either.
    let owners: Vec<String> = (0..20).map(|number| owner(":path", &format!("/a?n={number}"))).collect();
    assert!(owners.iter().any(|one| *one != owners[0]), "{owners:?}");
    // What a rule makes of it counts.
    assert_eq!(owner(":path", "/same/1"), owner(":path", "/same/2"));
    for same in [":authority", ":method", ":scheme"] {
        assert_eq!(owner(same, "/a"), owner(same, "/b"), "{same}");
    }
}
