//! Random changes, one after the other: the Plan made out of the one before is the Plan made of the whole World.

use std::collections::BTreeSet;
use std::fmt::Debug;

use mesh_proto::resource::{Kind, ObjectKey};
use mesh_proto::value::Labels;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn host(liveness: Liveness, id: u64) -> Change {
    named(&format!("vm{id}"), liveness, id)
}

fn named(name: &str, liveness: Liveness, id: u64) -> Change {
    let host: mesh_proto::watch::Host = serde_json::from_value(serde_json::json!({
        "name": name, "public_key": "", "wrap_key": "", "voter_eligible": false,
        "liveness": liveness, "facts": {"address": format!("10.0.0.{id}:15008"), "version": "0"},
    }))
    .expect("a host");
    Change::Host { id: HostId(id), host: Some(host) }
}

fn instance(service: usize, version: usize) -> Instance {
    // Ports of every sort: HTTP on 80 and elsewhere, TCP, undeclared.
    let (number, name) = [(80, "http"), (9080, "http"), (9080, "http-b"), (7000, "tcp"), (80, "")][service];
    serde_json::from_value(serde_json::json!({
        "service": SERVICES[service], "account": "x", "labels": {"version": format!("v{version}")},
        "ports": [{"number": number, "name": name, "target": "127.0.0.1:8080"}],
    }))
    .expect("an instance")
}

fn mesh() -> World {
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "mesh.example".into();
    for id in 1..=3 {
        world.absorb(&host(Liveness::Live, id));
        let instances = (0..SERVICES.len())
            .map(|service| {
                (format!("{}-{id}", SERVICES[service]), instance(service, usize::from(id > 1)).into())
            })
            .collect();
        let registration = Some(Registration { instances });
        world.absorb(&Change::Registration { host: HostId(id), registration });
    }
    for (index, name) in (1_u16..).zip(SERVICES) {
        let host = format!("{name}.default.svc.cluster.local");
        world.absorb(&Change::VirtualAddress { host, index: Some(index) });
    }
    world
}

/// Puts an object, which keeps the revision of its making.
fn put(world: &mut World, kind: &str, name: &str, spec: &str) {
    let version = if kind == "MeshConfig" { "mesh.istio.io/v1alpha1" } else { "networking.istio.io/v1" };
    let namespace = if kind == "MeshConfig" { "istio-system" } else { "default" };
    let yaml = format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    );
    let (documents, findings) = mesh_proto::yaml::read("rules.yaml", &yaml);
    assert!(findings.iter().all(|finding| !finding.is_error()), "{findings:?}");
    for document in documents {
        let key = document.object.key();
        let created = world.resources.get(&key).map_or(world.revision, |before| before.created);
        let stored = Stored { object: document.object, created, changed: world.revision };
        world.resources.insert(key, Arc::new(stored));
    }
}

fn drop_object(world: &mut World, kind: Kind, name: &str) {
    world.resources.remove(&ObjectKey::new(kind, "default", name));
}

fn edit(world: &mut World, id: u64, service: usize, edit: impl FnOnce(&mut Instance)) {
    let Some(present) = world.registrations.get(&HostId(id)) else { return };
    let mut registration = Registration::clone(present);
    if let Some(instance) = registration.instances.get_mut(&format!("{}-{id}", SERVICES[service])) {
        edit(Arc::make_mut(instance));
    }
    world.absorb(&Change::Registration { host: HostId(id), registration: Some(registration) });
}

/// One change; the first kinds are those that can be patched, and the more likely.
fn change(world: &mut World, (kind, one, two, number): (u8, usize, usize, u64)) {
    world.revision.0 += 1;
    let (from, to, id) = (SERVICES[one], SERVICES[two], number % 3 + 1);
    let seconds = number + 1;
    let routes = format!("http: [{{timeout: {seconds}s, route: [{{destination: {{host: {to}}}}}]}}]");
    match kind {
        0..6 => edit(world, id, one, |instance| {
            let ill = instance.health == Health::Unhealthy;
            instance.health = if ill { Health::Healthy } else { Health::Unhealthy };
        }),
        6 => edit(world, id, one, |instance| instance.weight = u32::try_from(seconds).unwrap_or(1)),
        7 => edit(world, id, one, |instance| {
            instance.labels.insert("version".into(), format!("v{two}"));
        }),
        8..13 => put(world, "VirtualService", from, &format!("{{hosts: [{from}], {routes}}}")),
        13 => put(
            world,
            "VirtualService",
            from,
            &format!(
                "{{hosts: [{from}], http: [{{match: [{{sourceLabels: {{app: web}}, port: 80}}], mirror: {{host: {to}}},
                route: [{{destination: {{host: {from}, subset: v1}}}}]}}]}}"
            ),
        ),
        14 => put(world, "VirtualService", "two", &format!("{{hosts: [{from}, out.example.com], {routes}}}")),
        15 => put(world, "VirtualService", "short", &format!("{{hosts: [{from}.default], {routes}}}")),
        16 => put(world, "VirtualService", "wild", &format!("{{hosts: ['*.example.com'], {routes}}}")),
        17 => put(world, "VirtualService", "tcp", &format!("{{hosts: [{from}], tcp: [{{route: [{{destination: {{host: {to}}}}}]}}]}}")),
        18 | 19 => put(
            world,
            "DestinationRule",
            from,
            &format!("{{host: {from}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {seconds}}}}}}},
            subsets: [{{name: v1, labels: {{version: v{}}}}}]}}", number % 2),
        ),
        20 => put(world, "DestinationRule", "wild", &format!(
            "{{host: '*.default.svc.cluster.local', trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {seconds}}}}}}}}}"
        )),
        21 => put(
            world,
            "ServiceEntry",
            "out",
            "{hosts: [out.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}",
        ),
        22 => put(world, "Sidecar", "all", "{egress: [{hosts: ['./a.default.svc.cluster.local', './b.default.svc.cluster.local']}]}"),
        23 => world.absorb(&host(if two == 0 { Liveness::Gone } else { Liveness::Live }, id)),
        24 => put(world, "MeshConfig", "default", &format!("{{connectTimeout: {seconds}s}}")),
        25 => edit(world, id, one, |instance| instance.ports.push(instance.ports[0].clone())),
        26 => edit(world, id, one, |instance| instance.service = to.into()),
        27 => drop(world.registrations.remove(&HostId(id))),
        28 | 29 => withdraw(world, id, one),
        30..33 => register(world, id, one),
        33 => drop_object(world, Kind::VirtualService, from),
        34 => drop_object(world, Kind::DestinationRule, from),
        35 => put(world, "ServiceEntry", "out", "{hosts: [out.example.com], addresses: [10.9.0.0/16, 10.8.0.1], resolution: STATIC, endpoints: [{address: 1.2.3.4}], ports: [{number: 7000, name: tcp, protocol: TCP}, {number: 443, name: tls, protocol: TLS}]}"),
        36 => put(world, "ServiceEntry", "more", &format!(
            "{{hosts: ['*.example.org', more.example.com], addresses: [10.9.0.0/16], resolution: NONE, ports: [{{number: {}, name: x, protocol: TCP}}]}}",
            [80, 7000][two % 2],
        )),
        37 => put(world, "VirtualService", "root", &format!("{{hosts: [{from}], http: [{{match: [{{uri: {{prefix: /d}}}}], delegate: {{name: leaf}}}}]}}")),
        38 => put(world, "VirtualService", "leaf", &format!("{{{routes}}}")),
        39 => put(world, "VirtualService", "near", &format!("{{hosts: ['*.default.svc.cluster.local'], {routes}}}")),
        40 => put(world, "VirtualService", "sni", &format!(
            "{{hosts: [out.example.com, more.example.com], tls: [{{match: [{{port: 443, sniHosts: [out.example.com, more.example.com]}}], route: [{{destination: {{host: {to}}}}}]}}]}}"
        )),
        41 => put(world, "VirtualService", "own", &format!("{{hosts: [{from}], exportTo: ['.'], {routes}}}")),
        42 => world.absorb(&Change::Host { id: HostId(4), host: None }),
        43 => world.absorb(&named(["vm1", "vm4"][two % 2], Liveness::Live, 4)),
        44 => register(world, 4, one),
        45 => world.absorb(&Change::VirtualAddress {
            host: format!("{from}.default.svc.cluster.local"),
            index: (two > 0).then(|| u16::try_from(one * 10 + two).unwrap_or(1)),
        }),
        46 => put(world, "VirtualService", "bad", &format!("{{hosts: [{from}], tcp: [{{match: [{{destinationSubnets: ['{}']}}], route: [{{destination: {{host: {to}}}}}]}}]}}", ["10.0.0.0/8", "nonsense"][two % 2])),
        47 => put(world, "DestinationRule", from, &format!("{{host: {from}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}, subsets: [{{name: v2, labels: {{version: v2}}}}]}}")),
        _ => {
            for name in ["wild", "short", "tcp", "two", "root", "leaf", "near", "sni", "own", "bad"] {
                drop_object(world, Kind::VirtualService, name);
            }
            drop_object(world, Kind::Sidecar, "all");
            drop_object(world, Kind::DestinationRule, "wild");
            drop_object(world, Kind::ServiceEntry, "out");
            drop_object(world, Kind::ServiceEntry, "more");
        }
    }
}

fn register(world: &mut World, id: u64, service: usize) {
    let mut registration =
        world.registrations.get(&HostId(id)).map(|known| Registration::clone(known)).unwrap_or_default();
    let version = usize::from(id > 1);
    registration.instances.insert(format!("{}-{id}", SERVICES[service]), instance(service, version).into());
    world.absorb(&Change::Registration { host: HostId(id), registration: Some(registration) });
}

fn withdraw(world: &mut World, id: u64, service: usize) {
    let Some(present) = world.registrations.get(&HostId(id)) else { return };
    let mut registration = Registration::clone(present);
    registration.instances.remove(&format!("{}-{id}", SERVICES[service]));
    let rest = Some(registration).filter(|rest| !rest.instances.is_empty());
    world.absorb(&Change::Registration { host: HostId(id), registration: rest });
}

fn sorted(items: impl Iterator<Item = impl Debug>) -> Vec<String> {
    let mut items: Vec<String> = items.map(|item| format!("{item:?}")).collect();
    items.sort();
    items
}

/// Everything that a Plan says, in order; clusters are spelled out wherever they hang.
fn told(plan: &Plan) -> Vec<String> {
    let mut told = vec![format!("{:?} {:?}", plan.revision, plan.problems)];
    told.extend(plan.clusters.iter().map(|cluster| format!("{cluster:?}")));
    told.extend(sorted(
        plan.memory.iter().map(|((name, variant), (stamp, cluster))| (name, variant, stamp, cluster)),
    ));
    for outbound in &plan.outbounds {
        told.push(format!("{:?} {:?} {:?}", outbound.caller, outbound.unknown, outbound.ranges));
        told.push(format!("{:?}", outbound.ports.keys().collect::<BTreeSet<_>>()));
        told.extend(sorted(outbound.addresses.iter()));
        for (number, table) in outbound.ports.iter().collect::<BTreeMap<_, _>>() {
            told.push(format!("{number} {:?}", table.tcp));
            told.extend(sorted(table.tls.iter()));
            // Stamps stand for what was looked at, which is less for a patch.
            told.extend(sorted(
                table.http.iter().map(|(name, host)| (name, &host.host, host.port, &host.routes)),
            ));
        }
    }
    told.extend(sorted(plan.names.exact.iter()));
    told.push(format!("{:?}", plan.names.wildcard));
    told.extend(sorted(plan.inbound.instances.iter()));
    told
}

#[expect(clippy::disallowed_methods, reason = "a longer run is asked for by hand")]
fn seeded(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: std::env::var("MESH_SEQUENCES").ok().and_then(|more| more.parse().ok()).unwrap_or(cases),
        rng_seed: RngSeed::Fixed(0x7061_7463),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn callers() -> Arc<Node> {
    let caller = |namespace: &str, app: &str| Workload {
        namespace: namespace.into(),
        account: app.into(),
        labels: Labels::from([("app".to_owned(), app.to_owned())]),
        ..Workload::default()
    };
    let callers = vec![caller("default", "web"), caller("default", "b"), caller("other", "web")];
    Arc::new(Node { callers, ..Node::clone(&node()) })
}

proptest! {
    #![proptest_config(seeded(CASES))]

    #[test]
    fn a_patched_plan_is_the_plan_of_the_whole_world(
        changes in proptest::collection::vec((0_u8..50, 0_usize..5, 0_usize..5, 0_u64..6), 1..16),
    ) {
        let (mut world, node) = (mesh(), callers());
        let mut plan = compile(&world, &node, None);
        for one in changes {
            change(&mut world, one);
            plan = compile(&world, &node, Some(&plan));
            let fresh = compile(&world, &node, None);
            for (patched, fresh) in told(&plan).iter().zip(&told(&fresh)) {
                prop_assert_eq!(patched, fresh, "after {:?}", one);
            }
            prop_assert_eq!(told(&plan).len(), told(&fresh).len());
        }
    }
}

#[test]
fn a_changed_rule_and_an_ill_instance_are_patched_and_the_rest_is_shared() {
    let (mut world, node) = (mesh(), callers());
    for from in ["a", "b", "c"] {
        put(
            &mut world,
            "VirtualService",
            from,
            &format!("{{hosts: [{from}], http: [{{route: [{{destination: {{host: b}}}}]}}]}}"),
        );
    }
    let first = compile(&world, &node, None);
    for kind in [0, 8] {
        change(&mut world, (kind, 1, 1, 0));
        let next = crate::compile::patch::next(&world, &node, &first).expect("patched");
        let host = |plan: &Plan, name: &str| plan.outbounds[0].ports[&80].http.get(name).cloned();
        // The rule of `a` leads to `b`.
        let shared = Arc::ptr_eq(&host(&first, "a").expect("a"), &host(&next, "a").expect("a"));
        assert!(!shared);
        assert!(Arc::ptr_eq(&first.names, &next.names));
    }
}

/// Every sort of change that is patched: `None` would be the whole World, and tens of times as slow in a large mesh.
#[test]
fn what_may_stand_alone_is_patched() {
    let patched = |world: &mut World, plan: &mut Plan, kinds: &[u8]| {
        let node = callers();
        for kind in kinds {
            change(world, (*kind, 1, 2, 0));
            let next = crate::compile::patch::next(world, &node, plan);
            *plan = next.unwrap_or_else(|| panic!("a change of kind {kind} is for the whole"));
        }
    };
    let (mut world, node) = (mesh(), callers());
    let mut plan = compile(&world, &node, None);
    // Rules and policies that come, change, and go; instances that fall ill, leave, come back; hosts that fall silent.
    patched(&mut world, &mut plan, &[8, 13, 33, 18, 47, 34, 0, 28, 30, 23, 45, 43, 44, 42, 41, 17]);
    // Entries, delegates, wildcards, and problems that stand.
    patched(&mut world, &mut plan, &[21, 38, 37, 38, 16, 14, 46, 0]);
    // The connections of a port that only one service is on.
    change(&mut world, (0, 3, 3, 0));
    assert!(crate::compile::patch::next(&world, &node, &plan).is_some(), "an instance behind a TCP port");
    for kind in [22, 24] {
        let mut other = world.clone();
        change(&mut other, (kind, 1, 1, 0));
        assert!(crate::compile::patch::next(&other, &node, &plan).is_none(), "{kind} is for the whole");
    }
}

/// How many sequences are tried; `MESH_SEQUENCES` asks for more.
const CASES: u32 = 60;
