use std::sync::Arc;

use mesh_proto::command::{HostId, Revision};
use mesh_proto::registration::{Instance, Registration};
use mesh_proto::watch::{Change, Stored};

use super::*;
use crate::compile::compile;
use crate::plan::Workload;

fn plan(rules: &str) -> (World, Plan) {
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "cluster.local".into();
    let host: mesh_proto::watch::Host = serde_json::from_value(serde_json::json!({
        "name": "vm2", "public_key": "", "wrap_key": "", "voter_eligible": false, "liveness": "live",
        "facts": {"address": "10.0.0.2:15008", "version": "0"},
    }))
    .expect("a host");
    world.absorb(&Change::Host { id: HostId(2), host: Some(host) });
    let instance = |version: &str| -> Instance {
        serde_json::from_value(serde_json::json!({
            "service": "reviews", "labels": {"version": version},
            "ports": [{"number": 9080, "name": "http", "target": "127.0.0.1:9080"}],
        }))
        .expect("an instance")
    };
    let instances = ["v1", "v2"].map(|version| (format!("reviews-{version}"), instance(version).into()));
    let registration = Registration { instances: instances.into() };
    world.absorb(&Change::Registration { host: HostId(2), registration: Some(registration) });
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", rules);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    for document in documents {
        let key = document.object.key();
        let stored = Stored { object: document.object, created: Revision(1), changed: Revision(1) };
        world.resources.insert(key, Arc::new(stored));
    }
    let node = Arc::new(Node {
        host: HostId(1),
        domain: "cluster.local".into(),
        callers: vec![Workload { namespace: "default".into(), ..Workload::default() }],
        ..Node::default()
    });
    let plan = compile(&world, &node, None);
    (world, plan)
}

const CANARY: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - name: canary
    match: [{uri: {prefix: /reviews}, headers: {end-user: {exact: jason}}}]
    timeout: 2s
    retries: {attempts: 3, retryOn: 5xx}
    fault: {abort: {httpStatus: 503, percentage: {value: 0.5}}}
    route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
  - route: [{destination: {host: reviews, subset: v3}}]
";

#[test]
fn routes_read_like_sentences() {
    let (_, plan) = plan(CANARY);
    let rows = routes(&plan, &PlanFilter { host: Some("reviews".into()), port: None });
    assert_eq!(rows.len(), 2, "{rows:#?}");
    assert_eq!(rows[0].when, "uri prefix /reviews and header end-user = jason");
    assert_eq!(rows[0].then, "reviews v1 90 %, v2 10 %");
    assert_eq!(rows[0].with, ["abort 503 for 0.5 %", "timeout 2s", "3 retries on 5xx"]);
    assert_eq!(rows[0].by, "VirtualService default/reviews http[0]");
    assert_eq!((rows[1].when.as_str(), rows[1].then.as_str()), ("always", "reviews v3 (not there: 503)"));
}

#[test]
fn clusters_and_endpoints_show_limits_state_and_way() {
    let (_, plan) = plan(CANARY);
    let filter = PlanFilter { host: Some("reviews.default".into()), port: Some(9080) };
    let rows = clusters(&plan, &filter, Moment(0));
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    let host = "reviews.default.svc.cluster.local";
    assert_eq!(names, ["", "v1", "v2"].map(|subset| format!("outbound|9080|{subset}|{host}")));
    assert_eq!((rows[0].endpoints, rows[0].usable), (2, 2));
    assert_eq!(rows[0].limits, ["7 connections"]);
    let rows = endpoints(&plan, &filter, Moment(0));
    assert_eq!(rows[0].endpoint, "reviews-v1 on vm2");
    assert_eq!((rows[0].via.as_str(), rows[0].address.as_str()), ("mesh", "10.0.0.2:15008"));
    assert_eq!(rows[0].identity, "spiffe://cluster.local/ns/default/sa/default");
    assert_eq!(rows[0].state, "healthy");
    plan.clusters.values().for_each(|cluster| {
        cluster.endpoints.all.iter().for_each(|one| one.state.ejected_until.store(28_000, Ordering::Relaxed));
    });
    assert_eq!(endpoints(&plan, &filter, Moment(500))[0].state, "ejected for 28 s");
}

#[test]
fn services_show_ports_and_instances() {
    let (world, _) = plan("");
    let rows = services(&world);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].ports, [(9080, "http".to_owned(), "HTTP".to_owned())]);
    assert_eq!((rows[0].instances[1].id.as_str(), rows[0].instances[1].on.as_str()), ("reviews-v2", "vm2"));
}

#[test]
fn routes_of_gateways_tell_where_they_are_open_and_what_is_shown() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: default}
spec:
  selector: {edge: \"yes\"}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.com], tls: {mode: MUTUAL, credentialName: shop}}
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.com]}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: [pass.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop.com]
  gateways: [front]
  http: [{route: [{destination: {host: reviews, port: {number: 9080}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass, namespace: default}
spec:
  hosts: [pass.com]
  gateways: [front]
  tls: [{match: [{sniHosts: [pass.com]}], route: [{destination: {host: reviews, port: {number: 9080}}}]}]
";
    let (world, _) = plan(rules);
    let node = Arc::new(Node {
        host: HostId(1),
        domain: "cluster.local".into(),
        labels: [("edge".to_owned(), "yes".to_owned())].into(),
        callers: vec![Workload { namespace: "default".into(), ..Workload::default() }],
        ..Node::default()
    });
    let plan = compile(&world, &node, None);

    let rows = routes(&plan, &PlanFilter::default());

    let told: Vec<_> = rows
        .iter()
        .filter(|row| !row.gateway.is_empty())
        .map(|row| format!("{}:{} at {}: {} then {}", row.host, row.port, row.gateway, row.when, row.then))
        .collect();
    let expected = [
        "shop.com:80 at 0.0.0.0:80 of Gateway default/front: always then reviews.default:9080",
        "shop.com:443 at 0.0.0.0:443 of Gateway default/front, TLS with secret shop, visitors show one, too: always then reviews.default:9080",
        "pass.com:8443 at 0.0.0.0:8443 of Gateway default/front, TLS passes: sni pass.com then reviews.default:9080",
    ];
    assert_eq!(told, expected);
    let named = PlanFilter { host: Some("shop.com".into()), port: Some(443) };
    assert_eq!(routes(&plan, &named).len(), 1);
    // A gateway's host is no service: it has the clusters that its routes lead to, each with the routes.
    let rows = clusters(&plan, &named, Moment(0));
    let names: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.endpoints)).collect();
    assert_eq!(names, [("outbound|9080||reviews.default.svc.cluster.local", 2)]);
    assert_eq!(
        rows[0].routes,
        ["shop.com:443 by VirtualService default/shop http[0] at 0.0.0.0:443 of Gateway default/front"]
    );
    let passed = PlanFilter { host: Some("pass.com".into()), port: None };
    assert_eq!(
        clusters(&plan, &passed, Moment(0))[0].routes,
        ["pass.com:8443 by VirtualService default/pass tls[0] at 0.0.0.0:8443 of Gateway default/front"]
    );
    let reached: Vec<_> = endpoints(&plan, &passed, Moment(0)).into_iter().map(|row| row.endpoint).collect();
    assert_eq!(reached, ["reviews-v1 on vm2", "reviews-v2 on vm2"]);
    let nobody = PlanFilter { host: Some("nobody.com".into()), port: None };
    assert!(
        clusters(&plan, &nobody, Moment(0)).is_empty() && endpoints(&plan, &nobody, Moment(0)).is_empty()
    );
}

#[test]
fn clusters_tell_which_routes_lead_there_and_with_which_share() {
    let (_, plan) = plan(CANARY);
    let rows = clusters(&plan, &PlanFilter { host: Some("reviews".into()), port: None }, Moment(0));
    let routes: Vec<_> = rows.iter().map(|row| row.routes.join("; ")).collect();
    let host = "reviews.default.svc.cluster.local:9080";
    let rule = "by VirtualService default/reviews http[0]";
    assert_eq!(routes, [String::new(), format!("90 % of {host} {rule}"), format!("10 % of {host} {rule}")]);
    let everything = clusters(&plan, &PlanFilter::default(), Moment(0));
    assert!(everything.iter().all(|row| row.routes.is_empty()), "told of one host at a time");
}

#[test]
fn clusters_tell_what_keys_are_made_of_and_each_detector() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: ':path', maglev: {}}}
    connectionPool: {http: {idleTimeout: 5s}}
    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, minHealthPercent: 40}
";
    let (_, plan) = plan(rules);
    let rows = clusters(&plan, &PlanFilter::default(), Moment(0));
    assert_eq!(rows[0].balancer, "maglev by header :path");
    assert_eq!(
        rows[0].limits,
        [
            "idle for 5s",
            "TCP silent for 3600s",
            "eject for 30s after 3 gateway errors, at most 10 %, unless fewer than 40 % are well"
        ]
    );
}

#[test]
fn endpoints_tell_how_much_each_gets_and_why() {
    let localities = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far}
spec:
  hosts: [far.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, locality: us/b}
  - {address: 10.0.0.2, locality: eu/a}
  - {address: 10.0.0.3, locality: eu/a}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far}
spec: {host: far.example.com, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {}}}
";
    let (world, _) = plan(localities);
    let node = Arc::new(Node {
        host: HostId(1),
        domain: "cluster.local".into(),
        locality: crate::plan::Locality::parse("eu/a"),
        callers: vec![Workload { namespace: "default".into(), ..Workload::default() }],
        ..Node::default()
    });
    let plan = compile(&world, &node, None);
    let told = || -> Vec<String> {
        let rows =
            endpoints(&plan, &PlanFilter { host: Some("far.example.com".into()), port: None }, Moment(0));
        rows.iter().map(|row| format!("{} {}: {}", row.address, row.state, row.chosen())).collect()
    };
    assert_eq!(
        told(),
        [
            "10.0.0.1:80 healthy: 0 %, level 2 of 2 (us/b)",
            "10.0.0.2:80 healthy: 50 %, nearest of 2 levels (eu/a)",
            "10.0.0.3:80 healthy: 50 %, nearest of 2 levels (eu/a)",
        ]
    );
    let cluster = plan.clusters.values().find(|cluster| &*cluster.name.host == "far.example.com");
    let cluster = cluster.expect("the cluster");
    for at in [1, 2] {
        cluster.endpoints.all[at].state.ejected_until.store(28_000, Ordering::Relaxed);
    }
    cluster.state.ejected.store(2, Ordering::Relaxed);
    cluster.state.ejection_epoch.fetch_add(1, Ordering::Release);
    assert_eq!(told()[0], "10.0.0.1:80 healthy: 100 %, level 2 of 2 (us/b)");
    assert_eq!(told()[1], "10.0.0.2:80 ejected for 28 s: 0 %, nearest of 2 levels (eu/a)");
}
