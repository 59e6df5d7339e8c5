use std::sync::Arc;

use mesh_proto::command::Revision;
use mesh_proto::watch::Stored;

use super::*;

fn world(yaml: &str) -> World {
    let mut world = World::default();
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", yaml);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    for document in documents {
        let stored = Stored { object: document.object, created: Revision(1), changed: Revision(1) };
        world.resources.insert(stored.object.key(), Arc::new(stored));
    }
    world
}

/// A member that says no more than that.
fn bare() -> Instance {
    serde_json::from_value(serde_json::json!({
        "service": "reviews-vms", "namespace": "shop", "group": "reviews-vms", "ports": [],
    }))
    .expect("an instance")
}

fn filled(world: &World, instance: Instance, locality: &str) -> (Option<Instance>, Vec<String>) {
    let registration = Registration { instances: [("m".to_owned(), Arc::new(instance))].into() };
    let (mut filled, problems) = fill(world, &registration, locality);
    (filled.instances.remove("m").map(Arc::unwrap_or_clone), problems)
}

const GROUP: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: reviews-vms, namespace: shop}
spec:
  metadata: {labels: {app: reviews, tier: from-metadata}}
  template:
    ports: {http: 8080, grpc-admin: 8090}
    labels: {version: v3, tier: from-template}
    serviceAccount: reviews
    network: east
    locality: eu/a
    weight: 5
  probe:
    initialDelaySeconds: 2
    timeoutSeconds: 3
    periodSeconds: 4
    successThreshold: 5
    failureThreshold: 6
    httpGet: {path: health, port: 8081, host: 127.0.0.2, scheme: HTTPS, httpHeaders: [{name: Host, value: a.example}]}
";

#[test]
fn a_member_gets_what_the_group_says() {
    let (member, problems) = filled(&world(GROUP), bare(), "");
    let member = member.expect("a member");
    assert!(problems.is_empty(), "{problems:?}");
    let labels: Vec<_> = member.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(labels, ["app=reviews", "tier=from-metadata", "topology.istio.io/network=east", "version=v3"]);
    assert_eq!(
        (member.account.as_str(), member.weight, member.locality.as_deref()),
        ("reviews", 5, Some("eu/a"))
    );
    let ports: Vec<_> =
        member.ports.iter().map(|port| (port.number, port.name.as_str(), port.target.to_string())).collect();
    assert_eq!(
        ports,
        [(8080, "http", "127.0.0.1:8080".into()), (8090, "grpc-admin", "127.0.0.1:8090".into())]
    );
    let check = member.check.expect("a check");
    assert_eq!((check.initial_delay_ms, check.timeout_ms, check.interval_ms), (2_000, 3_000, 4_000));
    assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (5, 6));
    let ask = HttpAsk {
        host: Some("127.0.0.2".into()),
        https: true,
        headers: vec![("Host".into(), "a.example".into())],
    };
    assert_eq!(check.probe, Probe::Http { path: "/health".into(), port: Some(8081), ask });
}

#[test]
fn what_a_member_says_itself_counts_before_the_group() {
    let mut own = bare();
    own.labels = [("version".to_owned(), "v9".to_owned())].into();
    (own.account, own.weight, own.locality) = ("mine".into(), 7, Some("us/b".into()));
    own.ports = vec![binding(9, "tcp", Protocol::Tcp)];
    own.check = check(&ReadinessProbe { exec: Some(exec(&["/bin/true"])), ..ReadinessProbe::default() });
    let (member, _) = filled(&world(GROUP), own.clone(), "");
    let member = member.expect("a member");
    assert_eq!((&member.account, member.weight, &member.locality), (&own.account, 7, &own.locality));
    assert_eq!((&member.ports, &member.check), (&own.ports, &own.check));
    assert_eq!(member.labels["version"], "v9");
    // The locality of the host counts before the group's too, as that of a proxy does in Istio.
    assert_eq!(filled(&world(GROUP), bare(), "eu/b").0.expect("a member").locality, None);
}

fn exec(argv: &[&str]) -> mesh_proto::resource::ExecHealthCheck {
    mesh_proto::resource::ExecHealthCheck { command: argv.iter().map(|&word| word.to_owned()).collect() }
}

#[test]
fn every_kind_of_probe_is_read_with_the_defaults_of_kubernetes() {
    let probes = [
        (
            "tcpSocket: {port: 7, host: 127.0.0.9}",
            Probe::Tcp { host: Some("127.0.0.9".into()), port: Some(7) },
        ),
        ("grpc: {port: 8, service: a.B}", Probe::Grpc { service: "a.B".into(), port: Some(8) }),
        (
            "exec: {command: [/bin/check, now]}",
            Probe::Command { argv: vec!["/bin/check".into(), "now".into()] },
        ),
        (
            "httpGet: {path: /x, port: 9}",
            Probe::Http { path: "/x".into(), port: Some(9), ask: HttpAsk::default() },
        ),
    ];
    for (text, expected) in probes {
        let group = GROUP.split("  probe:").next().expect("a group").to_owned() + "  probe: {" + text + "}\n";
        let check = filled(&world(&group), bare(), "").0.expect("a member").check.expect("a check");
        assert_eq!(check.probe, expected);
        assert_eq!((check.initial_delay_ms, check.timeout_ms, check.interval_ms), (0, 1_000, 10_000));
        assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (1, 3));
    }
}

#[test]
fn ports_that_nobody_says_are_those_a_service_entry_sends_to() {
    let group = GROUP.replace("    ports: {http: 8080, grpc-admin: 8090}\n", "");
    let (member, problems) = filled(&world(&group), bare(), "");
    assert!(member.is_none() && problems[0].contains("give the group template.ports"), "{problems:?}");
    let entry = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews.example.com]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8088}, {number: 9, name: tcp, protocol: TCP}]
  resolution: STATIC
  workloadSelector: {labels: {app: reviews}}
";
    let member = filled(&world(&(group + entry)), bare(), "").0.expect("a member");
    let ports: Vec<_> = member.ports.iter().map(|port| (port.number, port.protocol)).collect();
    assert_eq!(ports, [(9, Protocol::Tcp), (8088, Protocol::Http)]);
}

#[test]
fn a_group_that_is_not_there_is_told_by_name() {
    let (member, problems) = filled(&World::default(), bare(), "");
    assert!(member.is_none());
    assert!(
        problems[0].starts_with("instance m: there is no WorkloadGroup shop/reviews-vms"),
        "{problems:?}"
    );
}
