use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::resource::Object;
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
            target: ([127, 0, 0, 1], 9080).into(),
        }],
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}

fn objects(text: &str) -> Vec<Object> {
    let (documents, findings) = mesh_proto::yaml::read("rules", text);
    assert!(findings.is_empty(), "{findings:?}");
    documents.into_iter().map(|document| document.object).collect()
}

fn world(rules: &str) -> World {
    let reviews = ["v1", "v2"].map(|version| (format!("reviews-{version}"), instance("reviews", version)));
    let callers = ["productpage", "ratings"].map(|name| (name.to_owned(), instance(name, "v1")));
    let instances = reviews.into_iter().chain(callers).collect();
    sketch::of_files(&BTreeMap::from([("vm1".to_owned(), instances)]), objects(rules)).expect("a World")
}

const RULE: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {app: ratings}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - route: [{destination: {host: reviews, subset: v1}, weight: 90}, {destination: {host: reviews, subset: v2}, weight: 10}]
";

fn changed(from: &str, to: &str) -> Vec<Difference> {
    let before = world(RULE);
    let after = world(&RULE.replace(from, to));
    differences(&before, &after, &sketch::node(vec![sketch::nobody()]))
}

#[test]
fn changed_weights_are_told_with_whom_they_concern() {
    let found = changed("weight: 90", "weight: 30");

    assert_eq!(found.len(), 1, "{found:#?}");
    let one = &found[0];
    assert_eq!((one.turn, one.port, one.when.as_str()), (Turn::Changed, 9080, "always"));
    assert_eq!(
        one.deltas,
        [Delta {
            what: "to".into(),
            before: "reviews v1 90 %, v2 10 %".into(),
            after: "reviews v1 75 %, v2 25 %".into()
        }]
    );
    // Calls of ratings are caught by the rule before, and do not change.
    assert_eq!(one.clients, ["default/default", "default/productpage", "default/reviews"]);
    assert!(!one.all_clients);
}

#[test]
fn a_new_timeout_and_another_balancer_are_told() {
    let found = changed("- route: [{dest", "- timeout: 2s\n    route: [{dest");
    let timeout = Delta { what: "timeout".into(), before: String::new(), after: "2s".into() };
    assert_eq!(found[0].deltas, [timeout]);

    let found = changed(
        "{host: reviews, subsets",
        "{host: reviews, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets",
    );
    assert!(found.iter().all(|one| one.port == 0 && one.deltas[0].what == "balancing"), "{found:#?}");
    assert_eq!(found.len(), 3, "the service and its two subsets");
}

#[test]
fn what_concerns_all_is_said_so_though_accounts_have_several_versions() {
    let first = "- match: [{sourceLabels";
    let new = format!(
        "- match: [{{uri: {{prefix: /x}}}}]\n    route: [{{destination: {{host: reviews}}}}]\n  {first}"
    );
    let found = changed(first, &new);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].turn == Turn::Added && found[0].all_clients, "{found:#?}");
}

#[test]
fn the_same_rules_make_no_difference() {
    assert_eq!(changed("weight: 90", "weight: 90"), []);
}
