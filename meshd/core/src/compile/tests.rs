use std::sync::atomic::Ordering;

use mesh_proto::command::{HostId, Liveness, Revision};
use mesh_proto::registration::{Health, Instance, Protocol, Registration};
use mesh_proto::watch::{Change, Stored};

use super::*;
use crate::parted::PartedMap;
use crate::plan::{Balancer, ClusterName, Endpoint, UpstreamProtocol, Via, Workload};

/// Whether two lists of endpoints are alike in everything but what is known of them at run time.
fn alike(one: &[Endpoint], other: &[Endpoint]) -> bool {
    let told = |list: &[Endpoint]| -> Vec<String> { list.iter().map(|one| format!("{:?}", **one)).collect() };
    told(one) == told(other)
}

mod destination;
mod near;
mod opaque;
mod patch;
mod reference;
mod telemetry;

fn world() -> World {
    let mut world = World { revision: Revision(7), ..World::default() };
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "mesh.example".into();
    for id in [1, 2] {
        let host: mesh_proto::watch::Host = serde_json::from_value(serde_json::json!({
            "name": format!("vm{id}"), "public_key": "", "wrap_key": "", "voter_eligible": false,
            "liveness": "live", "facts": {"address": format!("10.0.0.{id}:15008"), "version": "0"},
        }))
        .expect("a host");
        world.absorb(&Change::Host { id: HostId(id), host: Some(host) });
        let instances = [("v1", 9081), ("v2", 9082)].map(|(version, target)| {
            let instance: Instance = serde_json::from_value(serde_json::json!({
                "service": "reviews", "account": "reviews", "labels": {"version": version},
                "ports": [{"number": 9080, "name": "http", "target": format!("127.0.0.1:{target}")}],
            }))
            .expect("an instance");
            (format!("reviews-{version}"), instance.into())
        });
        let registration = Registration { instances: instances.into() };
        world.absorb(&Change::Registration { host: HostId(id), registration: Some(registration) });
    }
    world
}

fn apply(world: &mut World, yaml: &str) {
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", yaml);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    for document in documents {
        world.revision.0 += 1;
        let stored = Stored { object: document.object, created: world.revision, changed: world.revision };
        world.resources.insert(stored.object.key(), Arc::new(stored));
    }
}

fn node() -> Arc<Node> {
    let caller = |namespace: &str, account: &str| Workload {
        namespace: namespace.into(),
        account: account.into(),
        ..Workload::default()
    };
    Arc::new(Node {
        host: HostId(1),
        name: "vm1".into(),
        domain: "cluster.local".into(),
        callers: vec![caller("default", "a"), caller("default", "b"), caller("other", "a")],
        ..Node::default()
    })
}

fn name(subset: &str) -> ClusterName {
    ClusterName { host: "reviews.default.svc.cluster.local".into(), port: 9080, subset: subset.into() }
}

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}}]}]
";

#[test]
fn instances_are_reached_locally_or_over_their_hosts_mesh_port() {
    let plan = compile(&world(), &node(), None);
    let endpoints = &plan.clusters[&name("")].endpoints.all;
    assert_eq!(endpoints.len(), 4);
    assert_eq!(endpoints[0].via, Via::Local(([127, 0, 0, 1], 9081).into()));
    let Via::Mesh { to, sni, instance } = &endpoints[2].via else { panic!("over the mesh") };
    assert_eq!(to.hop, ([10, 0, 0, 2], 15008).into());
    assert_eq!(to.identity.to_string(), "spiffe://mesh.example/ns/default/sa/reviews");
    assert_eq!(&**sni, "outbound_.9080_._.reviews.default.svc.cluster.local");
    assert_eq!(
        (&**instance, &*endpoints[2].id, &*endpoints[2].traits.version),
        ("reviews-v1", "reviews-v1@vm2", "v1")
    );
    assert_eq!(plan.inbound.instances.len(), 2);
    assert_eq!(plan.inbound.targets[&9082].0.id, "reviews-v2".into());
}

#[test]
fn ill_instances_and_gone_hosts_stay_to_be_seen() {
    let mut world = world();
    let mut registration = Registration::clone(&world.registrations[&HostId(1)]);
    Arc::make_mut(registration.instances.get_mut("reviews-v1").expect("it")).health = Health::Unhealthy;
    world.absorb(&Change::Registration { host: HostId(1), registration: Some(registration) });
    let host = mesh_proto::watch::Host { liveness: Liveness::Gone, ..(*world.hosts[&HostId(2)]).clone() };
    world.absorb(&Change::Host { id: HostId(2), host: Some(host) });
    let plan = compile(&world, &node(), None);
    let endpoints = &plan.clusters[&name("")].endpoints.all;
    assert_eq!((endpoints[0].health, endpoints[2].liveness), (Health::Unhealthy, Liveness::Gone));
}

#[test]
fn what_does_not_change_is_shared_and_counters_move_over() {
    let mut world = world();
    apply(&mut world, SUBSETS);
    let node = node();
    let first = compile(&world, &node, None);
    let host = |plan: &Plan| plan.outbounds[0].ports[&9080].http.get("reviews").cloned().expect("a host");
    let again = compile(&world, &node, Some(&first));
    assert!(Arc::ptr_eq(&host(&first), &host(&again)));
    assert!(Arc::ptr_eq(&first.clusters[&name("v1")], &again.clusters[&name("v1")]));

    let state = |plan: &Plan| plan.clusters[&name("v1")].endpoints.all.last().expect("one").state.clone();
    state(&first).requests.store(5, Ordering::Relaxed);
    world.absorb(&Change::Registration { host: HostId(1), registration: None });
    let less = compile(&world, &node, Some(&again));
    assert_eq!(less.clusters[&name("v1")].endpoints.all.len(), 1);
    assert_eq!(state(&less).requests.load(Ordering::Relaxed), 5);
    assert!(Arc::ptr_eq(&first.clusters[&name("v1")].state, &less.clusters[&name("v1")].state));
    assert!(!Arc::ptr_eq(&host(&again), &host(&less)));

    apply(
        &mut world,
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v2}}]}]
",
    );
    let other = compile(&world, &node, Some(&less));
    assert!(!Arc::ptr_eq(&host(&other), &host(&less)));
    assert!(Arc::ptr_eq(&other.clusters[&name("v1")], &less.clusters[&name("v1")]));
}

#[test]
fn callers_that_rules_cannot_tell_apart_share_their_tables() {
    let mut world = world();
    apply(&mut world, SUBSETS);
    let plan = compile(&world, &node(), None);
    let table = |at: usize| plan.outbounds[at].ports[&9080].clone();
    assert!(Arc::ptr_eq(&table(0), &table(1)));
    assert_eq!(plan.outbounds[1].caller.account, "b");
    assert!(table(2).http.get("reviews").is_none());
    let of = |at: usize| plan.outbounds[at].ports[&9080].http.get("reviews.default").cloned();
    assert!(of(2).is_some());
}

#[test]
fn policies_of_a_port_inherit_nothing_and_subsets_replace_blocks() {
    let mut world = world();
    apply(
        &mut world,
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    connectionPool: {tcp: {maxConnections: 7}, http: {http2MaxRequests: 3, h2UpgradePolicy: UPGRADE}}
    outlierDetection: {consecutive5xxErrors: 0}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
  - name: v2
    labels: {version: v2}
    trafficPolicy: {portLevelSettings: [{port: {number: 9080}, connectionPool: {tcp: {connectTimeout: 1s}}}]}
",
    );
    let plan = compile(&world, &node(), None);
    let of = |subset: &str| &plan.clusters[&name(subset)];
    assert!(matches!(of("").balancer, Balancer::RoundRobin));
    assert!(matches!(of("v1").balancer, Balancer::Random));
    assert_eq!((of("v1").limits.max_connections, of("v1").limits.max_requests), (Some(7), Some(3)));
    assert_eq!(of("v1").outlier.as_ref().map(|outlier| outlier.consecutive_5xx), Some(0));
    assert_eq!(of("v1").protocol, UpstreamProtocol::Http2);
    assert!(matches!(of("v2").balancer, Balancer::LeastRequest));
    assert_eq!((of("v2").limits.max_connections, &of("v2").outlier), (None, &None));
    assert_eq!(of("v2").limits.connect_timeout.as_secs(), 1);
    assert_eq!(of("v2").protocol, UpstreamProtocol::Http1);
}

#[test]
fn service_entries_have_plain_endpoints_names_and_selected_instances() {
    let mut world = world();
    apply(
        &mut world,
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static}
spec:
  hosts: [static.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints:
  - {address: 192.0.2.1, ports: {http: 9000}, labels: {version: v1}, weight: 5}
  - {address: 192.0.2.2}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: names}
spec:
  hosts: [names.example.com]
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: any}
spec:
  hosts: ['*.any.example.com']
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: picked}
spec:
  hosts: [picked.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  workloadSelector: {labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: old-vm}
spec: {address: 192.0.2.9, labels: {version: v2}}
",
    );
    let plan = compile(&world, &node(), None);
    let of = |host: &str, port| &plan.clusters[&ClusterName { host: host.into(), port, subset: "".into() }];
    let vias =
        |host: &str, port| of(host, port).endpoints.all.iter().map(|one| one.via.clone()).collect::<Vec<_>>();
    let plain = |text: &str| Via::Plain(text.parse().expect("an address"));
    assert_eq!(vias("static.example.com", 80), [plain("192.0.2.1:9000"), plain("192.0.2.2:8080")]);
    assert_eq!(of("static.example.com", 80).endpoints.all[0].weight, 5);
    assert_eq!(
        vias("names.example.com", 443),
        [Via::Name { host: "names.example.com".into(), port: 443, spread: true }]
    );
    assert!(matches!(of("*.any.example.com", 80).balancer, Balancer::Passthrough));
    let picked = vias("picked.example.com", 80);
    assert_eq!(picked.len(), 3);
    assert_eq!(picked[0], plain("192.0.2.9:9080"));
    assert_eq!(picked[1], Via::Local(([127, 0, 0, 1], 9082).into()));
    assert!(matches!(&picked[2], Via::Mesh { sni, .. } if sni.contains("_.9080_._.reviews.default")));
}

#[test]
fn a_sidecar_sends_what_comes_in_elsewhere_and_bounds_it() {
    let mut world = world();
    apply(
        &mut world,
        "
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: reviews}
spec:
  workloadSelector: {labels: {version: v1}}
  ingress:
  - port: {number: 9081, protocol: TCP, name: tcp}
    defaultEndpoint: 0.0.0.0:7000
    connectionPool: {tcp: {maxConnections: 3}}
  - port: {number: 4444, protocol: HTTP, name: none}
  inboundConnectionPool: {http: {http2MaxRequests: 9}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: all}
spec:
  inboundConnectionPool: {http: {http2MaxRequests: 5}}
",
    );
    let plan = compile(&world, &node(), None);
    let port = |plan: &Plan, id: &str| plan.inbound.instances[id].ports[0].clone();
    let one = port(&plan, "reviews-v1");
    assert_eq!((one.number, one.target, one.protocol), (9080, ([127, 0, 0, 1], 7000).into(), Protocol::Tcp));
    let limits = one.bounds.as_ref().expect("bounds").limits.clone();
    assert_eq!((limits.max_connections, limits.max_requests), (Some(3), None));
    let other = port(&plan, "reviews-v2").bounds.expect("bounds");
    assert_eq!(other.limits.max_requests, Some(5));
    // What was caught on its way to the registered port goes there too.
    assert_eq!(plan.inbound.targets[&9081].1.target, ([127, 0, 0, 1], 7000).into());
    let told = "Sidecar default/reviews: ingress[1]: instance reviews-v1 has no port whose target is 4444";
    assert!(plan.problems.iter().any(|problem| problem.starts_with(told)), "{:?}", plan.problems);

    let again = compile(&world, &node(), Some(&plan));
    assert!(Arc::ptr_eq(&other, &port(&again, "reviews-v2").bounds.expect("bounds")));
    world.resources = PartedMap::default();
    assert!(port(&compile(&world, &node(), Some(&again)), "reviews-v1").bounds.is_none());
}

#[test]
fn settings_of_the_mesh_reach_clusters_that_say_nothing_themselves() {
    let mut world = world();
    apply(
        &mut world,
        "
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: default, namespace: istio-system}
spec:
  connectTimeout: 3s
  tcpKeepalive: {probes: 4, time: 60s, interval: 5s}
  h2UpgradePolicy: UPGRADE
  protocolDetectionTimeout: 700ms
  localityLbSetting: {distribute: [{from: '*', to: {east: 100}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}, http: {h2UpgradePolicy: DO_NOT_UPGRADE}}}
",
    );
    let plan = compile(&world, &node(), None);
    let seconds = std::time::Duration::from_secs;
    let (all, one) = (&plan.clusters[&name("")], &plan.clusters[&name("v1")]);
    assert_eq!((all.limits.connect_timeout, one.limits.connect_timeout), (seconds(3), seconds(1)));
    assert_eq!((all.protocol, one.protocol), (UpstreamProtocol::Http2, UpstreamProtocol::Http1));
    let keepalive = Some((Some(4), Some(seconds(60)), Some(seconds(5))));
    assert_eq!((all.limits.tcp_keepalive, one.limits.tcp_keepalive), (keepalive, keepalive));
    assert_eq!(plan.outbounds[0].sniff, Some(std::time::Duration::from_millis(700)));
    assert!(matches!(all.balancer, Balancer::LeastRequest));

    // Shares of localities make the near endpoint of another region come first.
    let mesh = mesh::Settings::of(&world);
    let policy = policy::locality(&policy::Effective::default(), &mesh, false, Vec::new(), Vec::new());
    assert!(matches!(policy, crate::plan::LocalityPolicy::Distribute(shares) if shares.len() == 1));
}

#[test]
fn endpoints_follow_hosts_and_instances_plan_by_plan_as_if_made_anew() {
    let mut world = world();
    apply(&mut world, SUBSETS);
    let node = node();
    let mut plan = compile(&world, &node, None);
    let registration = Registration::clone(&world.registrations[&HostId(2)]);
    let mut ill = registration.clone();
    Arc::make_mut(ill.instances.get_mut("reviews-v1").expect("it")).health = Health::Unhealthy;
    let mut moved = registration.clone();
    Arc::make_mut(moved.instances.get_mut("reviews-v2").expect("it")).service = "ratings".into();
    let host = |edit: &dyn Fn(&mut mesh_proto::watch::Host)| {
        let mut host = (*world.hosts[&HostId(2)]).clone();
        edit(&mut host);
        Change::Host { id: HostId(2), host: Some(host) }
    };
    let changed = |registration| Change::Registration { host: HostId(2), registration };
    let changes = [
        changed(Some(ill)),
        changed(Some(moved)),
        host(&|host| host.liveness = Liveness::Suspect),
        host(&|host| host.facts.address = ([10, 0, 0, 9], 15008).into()),
        host(&|host| host.name = "vm1".into()),
        changed(None),
        changed(Some(registration)),
    ];
    for change in changes {
        world.absorb(&change);
        let before = plan.clusters.clone();
        plan = compile(&world, &node, Some(&plan));
        let fresh = compile(&world, &node, None);
        assert_eq!(plan.clusters.keys().collect::<Vec<_>>(), fresh.clusters.keys().collect::<Vec<_>>());
        for (name, cluster) in plan.clusters.iter() {
            assert!(
                alike(&cluster.endpoints.all, &fresh.clusters[name].endpoints.all),
                "{name} after {change:?}"
            );
        }
        assert!(
            plan.clusters.iter().any(|(name, one)| before.get(name).is_none_or(|was| !Arc::ptr_eq(was, one)))
        );
    }
}
