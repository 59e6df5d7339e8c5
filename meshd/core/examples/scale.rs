//! How long the World takes to become a Plan, and what it weighs: 10,000 rules of each kind, 100,000 endpoints.
//!
//! `cargo run --release --example scale -p mesh-core`. Prints the mean of several runs in time of one core, which a busy
//! machine does not lengthen, and the quickest of them by the clock: the kernel's account of a core moves in ticks of 4 ms.
//! The World comes as it does to an agent: as JSON, fact by fact, made by a process of its own.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "it measures, prints, and stops when it is wrong"
)]

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::compile::compile;
use mesh_core::plan::{Cluster, ClusterName, Node, Plan, Workload};
use mesh_core::world::World;
use mesh_proto::command::{HostId, Liveness, Revision};
use mesh_proto::registration::{Health, Instance, Registration};
use mesh_proto::resource::{Kind, ObjectKey};
use mesh_proto::value::Labels;
use mesh_proto::watch::{Change, Host, Stored};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVICES: usize = 10_000;
const HOSTS: usize = 1_000;
const PER_SERVICE: usize = 10;
const RUNS: usize = 7;
/// Of each change: the mean says more than the account's ticks then.
const CHANGED: usize = 40;

/// With this argument it only writes the facts.
const FACTS: &str = "facts";

/// With this one, the rules: `meshctl validate` is measured by them.
const YAML: &str = "yaml";

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(FACTS) => return tell_facts(),
        Some(YAML) => return tell_yaml(),
        _ => {}
    }
    let mut world = mirrored();
    println!(
        "{SERVICES} VirtualServices, {SERVICES} DestinationRules, {} endpoints on {HOSTS} hosts",
        SERVICES * PER_SERVICE
    );
    let before = resident();
    let node = node();
    let (first, plan) = timed(|| compile(&world, &node, None));
    let mut plan = plan;
    println!("world          {before:>8.1} MB resident");
    println!("plan           {:>8.1} MB resident in all", resident());
    let mut times = vec![first];
    times.extend((1..RUNS).map(|_| timed(|| compile(&world, &node, None)).0));
    tell("World to Plan", &times);

    for (what, change) in CHANGES {
        let mut times = Vec::new();
        for run in 0..CHANGED {
            world.revision.0 += 1;
            change(&mut world, run);
            times.push(step(&world, &node, &mut plan));
        }
        tell(what, &times);
    }
    println!("afterwards     {:>8.1} MB resident", resident());
    println!("peak           {:>8.1} MB resident", peak());
}

/// What is changed, and how in the n-th run.
type Step = (&'static str, fn(&mut World, usize));

const CHANGES: [Step; 10] = [
    ("one VirtualService changed", |world, run| virtual_service(world, 4_711, 90 + run % 2)),
    ("one VirtualService gone or new", |world, run| match run % 2 {
        0 => remove(world, Kind::VirtualService, "s4711"),
        _ => virtual_service(world, 4_711, 90),
    }),
    ("one DestinationRule changed", |world, run| destination_rule(world, 4_711, 5 + run % 2)),
    ("one DestinationRule gone or new", |world, run| match run % 2 {
        0 => remove(world, Kind::DestinationRule, "s4711"),
        _ => destination_rule(world, 4_711, 5),
    }),
    ("one endpoint's health changed", |world, run| {
        let health = if run % 2 == 0 { Health::Unhealthy } else { Health::Healthy };
        register(world, HostId(17), |offered| {
            let mut first = offered.instances.first_entry().unwrap();
            Arc::make_mut(first.get_mut()).health = health;
        });
    }),
    ("one endpoint gone or new", |world, run| {
        register(world, HostId(18), |offered| match run % 2 {
            0 => drop(offered.instances.pop_first()),
            _ => drop(offered.instances.insert("new".into(), instance(17, "v1").into())),
        });
    }),
    ("one service gone or new", |world, run| {
        let host = "fresh.default.svc.cluster.local".to_owned();
        world.absorb(&Change::VirtualAddress { host, index: (run % 2 == 0).then_some(60_000) });
        register(world, HostId(19), |offered| match run % 2 {
            0 => {
                let fresh = Instance { service: "fresh".into(), ..instance(19, "v1") };
                drop(offered.instances.insert("fresh".into(), fresh.into()));
            }
            _ => drop(offered.instances.remove("fresh")),
        });
    }),
    ("one host silent or back", |world, run| {
        let host = mesh_proto::watch::Host {
            liveness: if run % 2 == 0 { Liveness::Gone } else { Liveness::Live },
            ..mesh_proto::watch::Host::clone(&world.hosts[&HostId(20)])
        };
        world.absorb(&Change::Host { id: HostId(20), host: Some(host) });
    }),
    ("one host gone or new", |world, run| {
        let id = HostId(9_999);
        world.absorb(&Change::Host { id, host: (run % 2 == 0).then(|| host(9_999)) });
        let registration = Registration { instances: [("x".to_owned(), instance(20, "v1").into())].into() };
        world
            .absorb(&Change::Registration { host: id, registration: (run % 2 == 0).then_some(registration) });
    }),
    ("one ServiceEntry gone or new", |world, run| match run % 2 {
        0 => service_entry(world),
        _ => remove(world, Kind::ServiceEntry, "out"),
    }),
];

/// Compiles the next Plan and checks that what did not change is shared.
fn step(world: &World, node: &Arc<Node>, plan: &mut Plan) -> Took {
    let (time, next) = timed(|| compile(world, node, Some(plan)));
    let is_same = |(name, one): &(&ClusterName, &Arc<Cluster>)| {
        plan.clusters.get(*name).is_some_and(|other| Arc::ptr_eq(one, other))
    };
    let shared = next.clusters.iter().filter(is_same).count();
    assert!(
        shared + 2 * 100 >= next.clusters.len(),
        "{shared} of {} clusters are shared",
        next.clusters.len()
    );
    *plan = next;
    time
}

/// How long something took: on a core, and by the clock.
#[derive(Clone, Copy)]
struct Took {
    core: Duration,
    clock: Duration,
}

fn timed<T>(work: impl FnOnce() -> T) -> (Took, T) {
    let (clock, core) = (Instant::now(), on_core());
    let made = work();
    (Took { core: on_core().saturating_sub(core), clock: clock.elapsed() }, made)
}

/// The time that this thread has had a core for, by the kernel's account.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn tell(what: &str, times: &[Took]) {
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    let mean = times.iter().map(|took| millis(took.core)).sum::<f64>() / times.len() as f64;
    let least = times.iter().map(|took| took.clock).min().unwrap();
    println!("{what:<30} {mean:>8.1} ms of a core, by the clock at least {:.1} ms", millis(least));
}

/// Writes every fact of the World, one a line.
fn tell_facts() {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for fact in world().public().facts {
        serde_json::to_writer(&mut out, &fact).unwrap();
        out.write_all(b"\n").unwrap();
    }
}

/// Writes every rule as a document.
fn tell_yaml() {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for service in 0..SERVICES {
        let texts = [virtual_service_text(service, 90), destination_rule_text(service, 5)];
        for text in texts {
            writeln!(out, "---{text}").unwrap();
        }
    }
}

/// Reads the World as an agent does.
fn mirrored() -> World {
    let own = std::env::current_exe().unwrap();
    let mut teller = Command::new(own).arg(FACTS).stdout(Stdio::piped()).spawn().unwrap();
    let mut world = World::default();
    for line in BufReader::new(teller.stdout.take().unwrap()).lines() {
        world.absorb(&serde_json::from_str(&line.unwrap()).unwrap());
    }
    assert!(teller.wait().unwrap().success(), "the facts are told");
    world
}

fn world() -> World {
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "mesh.example".into();
    let mut registrations: Vec<Registration> = (0..HOSTS).map(|_| Registration::default()).collect();
    for service in 0..SERVICES {
        for number in 0..PER_SERVICE {
            let version = if number % 2 == 0 { "v1" } else { "v2" };
            let on = (service * PER_SERVICE + number) % HOSTS;
            let id = format!("s{service}-{number}");
            registrations[on].instances.insert(id, instance(service, version).into());
        }
        virtual_service(&mut world, service, 90);
        destination_rule(&mut world, service, 5);
    }
    for (number, registration) in registrations.into_iter().enumerate() {
        let id = HostId(number as u64 + 1);
        world.absorb(&Change::Host { id, host: Some(host(number)) });
        world.absorb(&Change::Registration { host: id, registration: Some(registration) });
    }
    for service in 0..SERVICES {
        let host = format!("s{service}.default.svc.cluster.local");
        world.absorb(&Change::VirtualAddress {
            host,
            index: Some(u16::try_from(service).unwrap_or(u16::MAX)),
        });
    }
    world
}

fn host(number: usize) -> Host {
    serde_json::from_value(serde_json::json!({
        "name": format!("vm{number}"), "public_key": "", "wrap_key": "", "voter_eligible": false,
        "liveness": "live",
        "facts": {"address": format!("10.{}.{}.{}:15008", number / 62_500, number / 250 % 250, number % 250 + 1), "version": "0"},
    }))
    .unwrap()
}

fn register(world: &mut World, host: HostId, edit: impl FnOnce(&mut Registration)) {
    let mut registration = Registration::clone(&world.registrations[&host]);
    edit(&mut registration);
    world.absorb(&Change::Registration { host, registration: Some(registration) });
}

fn remove(world: &mut World, kind: Kind, name: &str) {
    world.absorb(&Change::Resource { key: ObjectKey::new(kind, "default", name), stored: None });
}

fn instance(service: usize, version: &str) -> Instance {
    serde_json::from_value(serde_json::json!({
        "service": format!("s{service}"), "account": format!("s{service}"),
        "labels": {"app": format!("s{service}"), "version": version},
        "ports": [{"number": 80, "name": "http", "target": "127.0.0.1:8080"}],
    }))
    .unwrap()
}

fn virtual_service(world: &mut World, service: usize, share: usize) {
    put(world, &virtual_service_text(service, share));
}

fn virtual_service_text(service: usize, share: usize) -> String {
    let rest = 100 - share;
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: s{service}}}
spec:
  hosts: [s{service}]
  http:
  - match: [{{uri: {{prefix: /v2}}, headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: s{service}}}}}]
    timeout: 2s
  - route:
    - {{destination: {{host: s{service}, subset: v1}}, weight: {share}}}
    - {{destination: {{host: s{service}}}, weight: {rest}}}
"
    )
}

fn destination_rule(world: &mut World, service: usize, errors: usize) {
    put(world, &destination_rule_text(service, errors));
}

fn destination_rule_text(service: usize, errors: usize) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s{service}}}
spec:
  host: s{service}
  trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: {errors}}}}}
  subsets: [{{name: v1, labels: {{version: v1}}}}]
"
    )
}

fn service_entry(world: &mut World) {
    put(
        world,
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out}
spec: {hosts: [out.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}
",
    );
}

fn put(world: &mut World, yaml: &str) {
    let (documents, findings) = mesh_proto::yaml::read("rules", yaml);
    assert!(findings.is_empty(), "{findings:?}");
    for document in documents {
        let key = document.object.key();
        let created = world.resources.get(&key).map_or(Revision(1), |before| before.created);
        let changed = Revision(world.revision.0 + 1);
        let stored = Stored { object: document.object, created, changed };
        world.absorb(&Change::Resource { key, stored: Some(stored.into()) });
    }
}

fn node() -> Arc<Node> {
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    let caller =
        Workload { namespace: "default".into(), account: "web".into(), labels, ..Workload::default() };
    Arc::new(Node {
        host: HostId(1),
        name: "vm0".into(),
        domain: "cluster.local".into(),
        trust_domain: "mesh.example".into(),
        callers: vec![caller],
        ..Node::default()
    })
}

/// Memory of this process, in megabytes.
fn resident() -> f64 {
    status("VmRSS:")
}

fn peak() -> f64 {
    status("VmHWM:")
}

fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_024.0
}
