//! What one decision of the request path costs: routing by host, picking an endpoint, looking at a head.
//!
//! `cargo run --release --example decide -p mesh-core` prints the time of each in nanoseconds; with a name and a count it
//! makes that many decisions and nothing else, for `benches/decisions/run.py`, which counts instructions.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it measures, prints, and stops when it is wrong"
)]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use mesh_core::balance::{self, EndpointSet, Hint};
use mesh_core::compile::compile;
use mesh_core::endpoint::Moment;
use mesh_core::plan::{
    Balancer, Cluster, Endpoint, EndpointFacts, HashKey, HashPolicy, Locality, LocalityPolicy, Node, Plan,
    Via, Workload,
};
use mesh_core::route::{self, Call};
use mesh_core::wire::guard::{self, Limits};
use mesh_core::wire::http1::Requests;
use mesh_core::wire::http2::{FrameLimits, Frames};
use mesh_core::world::World;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::registration::Registration;
use mesh_proto::watch::{Change, Host, Stored};
use rand_core::RngCore;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, count] = arguments.as_slice() {
        let (_, prepare) = decisions().into_iter().find(|(known, _)| known == name).unwrap();
        return prepare().make(count.parse().unwrap());
    }
    for (name, prepare) in decisions() {
        let mut decision = prepare();
        decision.make(WARM_UP);
        let mut nanos: Vec<f64> = (0..RUNS).map(|_| time_of(&mut decision)).collect();
        nanos.sort_by(f64::total_cmp);
        println!("{name:<24} {:>8.1} ns", nanos[RUNS / 2]);
    }
}

const RUNS: usize = 9;
const WARM_UP: u32 = 20_000;
const COUNT: u32 = 200_000;

fn time_of(decision: &mut Decision) -> f64 {
    let begin = Instant::now();
    decision.make(COUNT);
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(COUNT)
}

/// A decision that is prepared, and how it is made once.
struct Decision(Box<dyn FnMut(u32)>);

impl Decision {
    fn make(&mut self, times: u32) {
        for time in 0..times {
            (self.0)(time);
        }
    }
}

type Prepare = Box<dyn Fn() -> Decision>;

fn decisions() -> Vec<(String, Prepare)> {
    let mut all: Vec<(String, Prepare)> = Vec::new();
    for hosts in [1, 100, 10_000] {
        all.push((format!("route-{hosts}"), Box::new(move || routing(hosts))));
    }
    for (name, balancer) in balancers() {
        for endpoints in [10, 1_000, 10_000] {
            let balancer = balancer.clone();
            all.push((format!("pick-{name}-{endpoints}"), Box::new(move || picking(&balancer, endpoints))));
        }
    }
    all.push(("guard-head".to_owned(), Box::new(checking_head)));
    all.push(("guard-http1-bytes".to_owned(), Box::new(checking_http1_bytes)));
    all.push(("guard-http2-bytes".to_owned(), Box::new(checking_http2_bytes)));
    all
}

/// Host and prefix to a route, among services with a plain prefix route each.
fn routing(hosts: usize) -> Decision {
    let plan = plan(hosts);
    let names: Vec<String> = (0..hosts).map(|number| format!("s{number}")).collect();
    let headers = head();
    Decision(Box::new(move |time| {
        let table = &plan.outbounds[0].ports[&80];
        let authority = names[time as usize % names.len()].as_str();
        let path = "/api/x";
        let call = Call { method: "GET", scheme: "http", authority, path, query: None, headers: &headers };
        let host = route::find_host(table, black_box(call.authority)).unwrap();
        black_box(route::route(host, &call).unwrap());
    }))
}

fn plan(hosts: usize) -> Plan {
    let mut world = World::default();
    world.mesh.domain = "cluster.local".into();
    world.mesh.trust_domain = "mesh.example".into();
    let mut registration = Registration::default();
    for number in 0..hosts {
        let instance = serde_json::json!({
            "service": format!("s{number}"), "account": "web",
            "ports": [{"number": 80, "name": "http", "target": "127.0.0.1:8080"}],
        });
        registration.instances.insert(format!("s{number}"), serde_json::from_value(instance).unwrap());
        let rule = format!(
            "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: s{number}}}
spec:
  hosts: [s{number}]
  http: [{{match: [{{uri: {{prefix: /api/}}}}], route: [{{destination: {{host: s{number}}}}}]}}]
"
        );
        let (documents, findings) = mesh_proto::yaml::read("rules", &rule);
        assert!(findings.is_empty(), "{findings:?}");
        for document in documents {
            let key = document.object.key();
            let stored = Stored { object: document.object, created: Revision(1), changed: Revision(1) };
            world.resources.insert(key, Arc::new(stored));
        }
    }
    let host: Host = serde_json::from_value(serde_json::json!({
        "name": "vm0", "public_key": "", "wrap_key": "", "voter_eligible": false, "liveness": "live",
        "facts": {"address": "198.18.0.1:15008", "version": "0"},
    }))
    .unwrap();
    world.absorb(&Change::Host { id: HostId(1), host: Some(host) });
    world.absorb(&Change::Registration { host: HostId(1), registration: Some(registration) });
    let caller = Workload { namespace: "default".into(), account: "web".into(), ..Workload::default() };
    let node = Node {
        host: HostId(1),
        name: "vm0".into(),
        domain: "cluster.local".into(),
        trust_domain: "mesh.example".into(),
        callers: vec![caller],
        ..Node::default()
    };
    compile(&world, &Arc::new(node), None)
}

fn balancers() -> Vec<(&'static str, Balancer)> {
    let policy = || Box::new(HashPolicy { key: HashKey::SourceIp });
    vec![
        ("least-request", Balancer::LeastRequest),
        ("round-robin", Balancer::RoundRobin),
        ("random", Balancer::Random),
        ("ring-hash", Balancer::RingHash { policy: policy(), minimum_ring_size: 1_024 }),
        ("maglev", Balancer::Maglev { policy: policy(), table_size: 65_537 }),
    ]
}

/// One endpoint of many that are all well.
fn picking(balancer: &Balancer, endpoints: u32) -> Decision {
    let endpoints = (0..endpoints).map(|number| {
        Endpoint::new(EndpointFacts::new(
            format!("e{number}"),
            Via::Plain(SocketAddr::from((Ipv4Addr::from(0xc612_0000 + number), 8080))),
        ))
    });
    let set = EndpointSet::new(endpoints.collect(), balancer, &LocalityPolicy::Ignore, &Locality::parse(""));
    let cluster = Cluster { balancer: balancer.clone(), endpoints: Arc::new(set), ..Cluster::default() };
    let mut rng = Steps(1);
    Decision(Box::new(move |_| {
        let hint = Hint { hash: Some(rng.next_u64()), ..Hint::default() };
        black_box(balance::pick(&cluster, &hint, Moment(1), &mut rng).unwrap());
    }))
}

/// Numbers that look random and are always the same. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators" (2014).
struct Steps(u64);

impl RngCore for Steps {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).unwrap_or(0)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next_u64().to_le_bytes()[0];
        }
    }
}

/// The head of a request as a browser's library sends it.
fn head() -> HeaderMap {
    FIELDS.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

const FIELDS: [(&str, &str); 9] = [
    ("host", "s0"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "application/json"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("referer", "http://shop.example/list?page=2"),
    ("cookie", "session=4e1f0a7b2c5d4e6f8a9b0c1d2e3f4a5b; theme=dark"),
    ("x-request-id", "7f9c24e8-3b6a-4f1e-9a57-1f0b5c3d2e4a"),
    ("x-user", "beta"),
];

fn checking_head() -> Decision {
    let (headers, uri, limits) = (head(), Uri::from_static("/api/x?a=1"), Limits::default());
    Decision(Box::new(move |_| {
        guard::check(&Method::GET, black_box(&uri), Version::HTTP_11, black_box(&headers), &limits).unwrap();
    }))
}

fn checking_http1_bytes() -> Decision {
    let fields: Vec<String> = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let bytes = format!("GET /api/x?a=1 HTTP/1.1\r\n{}\r\n", fields.concat());
    let mut requests = Requests::new(Limits::default());
    Decision(Box::new(move |_| {
        let seen = requests.admit(black_box(bytes.as_bytes()));
        assert!(seen.pass == bytes.len() && seen.refused.is_none());
    }))
}

/// The frames of one unary call: a head of 60 bytes and a message of 105.
fn checking_http2_bytes() -> Decision {
    let frame = |kind: u8, flags: u8, length: u8| {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + usize::from(length), 0);
        bytes
    };
    let bytes = [frame(1, 4, 60), frame(0, 1, 105)].concat();
    let mut frames = Frames::new(FrameLimits::default());
    assert!(frames.follow(PREFACE, 0).is_none());
    Decision(Box::new(move |_| assert!(frames.follow(black_box(&bytes), 0).is_none())))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
