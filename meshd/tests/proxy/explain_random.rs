//! Rules put together by chance, and requests in their words: what `explain` says of them is what happens, whoever calls on
//! whichever port.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fastrand::Rng;
use http::Method;
use mesh_core::compile::compile;
use mesh_core::endpoint::Moment;
use mesh_core::explain::explain;
use mesh_core::plan::{Plan, Workload};
use mesh_core::sketch;
use mesh_core::world::World;
use mesh_proto::explain::{Ask, End};
use meshd::proxy::{Declared, Way};
use serde_json::{Value, json};

use super::explain::{Backends, differs, world};
use super::lab::{Backend, Lab, no_credentials, once, request, settings, start_all};

/// Who calls: the name `explain` is given, and the workload.
fn callers() -> [(&'static str, Workload); 3] {
    let workload = |namespace: &str, account: &str, labels: &[(&str, &str)]| Workload {
        namespace: namespace.into(),
        account: account.into(),
        labels: labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..Workload::default()
    };
    [
        ("", sketch::nobody()),
        ("default/sleep", workload("default", "sleep", &[("app", "sleep"), ("tier", "1")])),
        ("other/away", workload("other", "away", &[("app", "away")])),
    ]
}

const PORTS: [u16; 2] = [80, 81];
const PATHS: [&str; 10] = ["/", "/a", "/a/b", "/A", "/ab", "/api/v1", "/x%20y", "/a//b", "/x.y", "/c"];
const FIELDS: [&str; 4] = ["x-a", "x-b", "user-agent", "x-forwarded-proto"];
const VALUES: [&str; 5] = ["1", "2", "abc", "a,b", "http"];
const PARAMETERS: [&str; 3] = ["q", "Q", "v"];

fn one<'a>(chance: &mut Rng, of: &[&'a str]) -> &'a str {
    of[chance.usize(..of.len())]
}

fn now_and_then(chance: &mut Rng, percent: u8) -> bool {
    chance.u8(..100) < percent
}

fn text(chance: &mut Rng, values: &[&str], regexes: &[&str]) -> Value {
    match chance.u8(..4) {
        0 => json!({"regex": one(chance, regexes)}),
        1 => json!({"prefix": one(chance, values)}),
        _ => json!({"exact": one(chance, values)}),
    }
}

fn condition(chance: &mut Rng) -> Value {
    let mut found = json!({});
    if now_and_then(chance, 70) {
        found["uri"] = text(chance, &PATHS, &["/a.*", ".*", "/[a-z]+", "/api/v[0-9]+", "/a(/b)?", "/a//?b"]);
        if now_and_then(chance, 20) {
            found["ignoreUriCase"] = json!(true);
        }
    }
    if now_and_then(chance, 20) {
        found["method"] = text(chance, &["GET", "POST", "P"], &["GET|PUT", "P.*"]);
    }
    if now_and_then(chance, 10) {
        found["authority"] = text(chance, &["reviews", "reviews:80", "Reviews"], &["re.*"]);
    }
    if now_and_then(chance, 8) {
        found["scheme"] = json!({"exact": one(chance, &["http", "https"])});
    }
    if now_and_then(chance, 30) {
        let condition = if now_and_then(chance, 20) {
            json!({})
        } else {
            text(chance, &VALUES, &["a.*", "[0-9]+", ".*"])
        };
        let name = one(chance, &["x-a", "x-b", "X-A", "user-agent", "x-forwarded-proto", ":method", ":path"]);
        found["headers"] = json!({(name): condition});
    }
    if now_and_then(chance, 15) {
        let condition =
            if now_and_then(chance, 50) { json!({}) } else { text(chance, &VALUES, &[".*", "*", "a.*"]) };
        found["withoutHeaders"] = json!({(one(chance, &FIELDS)): condition});
    }
    if now_and_then(chance, 20) {
        found["queryParams"] =
            json!({(one(chance, &PARAMETERS)): text(chance, &["1", "2"], &["[0-9]*", ".+"])});
    }
    if now_and_then(chance, 15) {
        found["sourceLabels"] = one_of(
            chance,
            &[json!({"app": "sleep"}), json!({"app": "away"}), json!({"app": "sleep", "tier": "2"})],
        );
    }
    if now_and_then(chance, 10) {
        found["sourceNamespace"] = json!(one(chance, &["default", "other"]));
    }
    if now_and_then(chance, 12) {
        found["gateways"] = one_of(chance, &[json!(["mesh"]), json!(["door"]), json!(["door", "mesh"])]);
    }
    if now_and_then(chance, 12) {
        found["port"] = json!(PORTS[chance.usize(..2)]);
    }
    if found == json!({}) { json!({"uri": {"prefix": "/c"}}) } else { found }
}

fn one_of(chance: &mut Rng, of: &[Value]) -> Value {
    of[chance.usize(..of.len())].clone()
}

fn headers(chance: &mut Rng) -> Value {
    let names = ["x-a", "x-b", "x-set", "user-agent"];
    let value = one(chance, &["plain", "%REQ(x-a)%", "%PROTOCOL%", "%ROUTE_NAME%", "100%%"]);
    match chance.u8(..3) {
        0 => json!({"request": {"set": {(one(chance, &names)): value}}}),
        1 => json!({"request": {"add": {(one(chance, &names)): value}}}),
        _ => json!({"request": {"remove": [one(chance, &names)]}}),
    }
}

fn destination(chance: &mut Rng) -> Value {
    let subset = one(chance, &["v1", "v2", "v1", "v2", "v9", "v7", ""]);
    let mut destination = match subset {
        "" => json!({"host": one(chance, &["ratings", "reviews", "nowhere"])}),
        subset => json!({"host": "reviews", "subset": subset}),
    };
    if now_and_then(chance, 15) {
        destination["port"] = json!({"number": PORTS[chance.usize(..2)]});
    }
    destination
}

fn route(chance: &mut Rng, index: usize) -> Value {
    let mut route = json!({"name": format!("r{index}")});
    if now_and_then(chance, 93) {
        route["match"] = (0..chance.usize(1..3)).map(|_| condition(chance)).collect();
    }
    if now_and_then(chance, 25) {
        route["headers"] = headers(chance);
    }
    match chance.u8(..10) {
        0 => {
            route["redirect"] = one_of(
                chance,
                &[
                    json!({"uri": "/new", "redirectCode": 302}),
                    json!({"authority": "else.example"}),
                    json!({"uri": "/n?x=1", "scheme": "https"}),
                    json!({"authority": "else.example", "port": 8443}),
                    json!({"uri": "/p", "derivePort": "FROM_REQUEST_PORT"}),
                ],
            );
        }
        1 => route["directResponse"] = json!({"status": 418, "body": {"string": "short"}}),
        _ => {
            let mut first = json!({"destination": destination(chance)});
            if now_and_then(chance, 25) {
                first["headers"] = headers(chance);
            }
            route["route"] = json!([first]);
            if now_and_then(chance, 25) {
                route["route"] = json!([{"destination": destination(chance), "weight": 30}, {"destination": destination(chance), "weight": 70}]);
            }
            if now_and_then(chance, 25) {
                route["rewrite"] = one_of(
                    chance,
                    &[
                        json!({"uri": "/w"}),
                        json!({"uri": "/"}),
                        json!({"authority": "in.example"}),
                        json!({"uriRegexRewrite": {"match": "a", "rewrite": "Z"}, "authority": "in.example"}),
                    ],
                );
            }
            if now_and_then(chance, 10) {
                route["fault"] = json!({"abort": {"httpStatus": 555, "percentage": {"value": 100}}});
            }
            if now_and_then(chance, 10) {
                route["corsPolicy"] =
                    json!({"allowOrigins": [{"exact": "http://o.example"}], "allowMethods": ["GET"]});
            }
        }
    }
    route
}

/// Rules of a mesh, as one text.
fn rules(chance: &mut Rng) -> String {
    let rule = |name: &str, host: &str, routes: Vec<Value>| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"hosts": [host], "gateways": ["mesh", "door"], "http": routes}})
    };
    let policy = one(chance, &["REGISTRY_ONLY", "REGISTRY_ONLY", "ALLOW_ANY"]);
    let paths = one(chance, &["BASE", "BASE", "NONE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]);
    let subsets = ["v1", "v2", "v9"].map(|name| json!({"name": name, "labels": {"version": name}})).to_vec();
    let mut routes = |count: usize| (0..count).map(|index| route(chance, index)).collect::<Vec<_>>();
    [
        json!({"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig",
            "metadata": {"name": "default", "namespace": "istio-system"},
            "spec": {"outboundTrafficPolicy": {"mode": policy}, "pathNormalization": {"normalization": paths}}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "reviews", "namespace": "default"},
            "spec": {"host": "reviews", "subsets": subsets}}),
        rule("reviews", "reviews", routes(5)),
        rule("ratings", "ratings", routes(2)),
        rule("wild", "*.wild.example", routes(2)),
    ]
    .map(|object| object.to_string())
    .join("\n---\n")
}

/// A request: caller, port, and what is sent.
struct Sent {
    caller: usize,
    port: usize,
    method: &'static str,
    host: &'static str,
    target: String,
    headers: Vec<(&'static str, &'static str)>,
}

fn sent(chance: &mut Rng) -> Sent {
    let hosts = [
        "reviews.default",
        "reviews.default",
        "reviews.default:80",
        "Reviews.default",
        "ratings.default",
        "b.wild.example",
        "wild.example",
    ];
    let paths = [
        "/", "/a", "/a/b", "/A/B", "/ab", "/api/v1", "/api/v12", "/x%20y", "/a//b", "/./a", "/c/../a",
        "/%61", "/a%2Fb", "/c", "/x.y",
    ];
    let query = one(chance, &["", "", "?q=1", "?q=2&q=1", "?Q=1&v", "?v=2", "?"]);
    let mut headers: Vec<_> =
        (0..chance.usize(..3)).map(|_| (one(chance, &FIELDS), one(chance, &VALUES))).collect();
    if now_and_then(chance, 10) {
        headers.push(("origin", "http://o.example"));
    }
    let method = one(chance, &["GET", "GET", "POST", "PUT", "OPTIONS"]);
    if method == "OPTIONS" {
        headers.push(("access-control-request-method", "GET"));
    }
    let target = format!("{}{query}", one(chance, &paths));
    Sent {
        caller: chance.usize(..3),
        port: chance.usize(..2),
        method,
        host: one(chance, &hosts),
        target,
        headers,
    }
}

/// A mesh of rules by chance: what is said about it, and what it does.
struct Mesh {
    world: World,
    plan: Plan,
    /// Kept for what dropping it does.
    _lab: Lab,
    addresses: Vec<SocketAddr>,
}

impl Mesh {
    fn start(rules: &str, backends: &Backends) -> Self {
        let world = world(rules, backends);
        let node = sketch::node(callers().map(|(_, workload)| workload).into());
        let plan = compile(&world, &node, None);
        assert_eq!(plan.problems, Vec::<String>::new(), "{rules}");
        let way = |caller: usize, port: u16| Way::Service { port, protocol: Declared::Http, caller };
        let ways = (0..3).flat_map(|caller| PORTS.map(|port| way(caller, port))).collect();
        let (lab, addresses) = start_all(plan.clone(), ways, settings(), &no_credentials());
        Self { world, plan, _lab: lab, addresses }
    }

    /// Asks both; returns how it ends, and what differs.
    async fn compare(&self, sent: &Sent, backends: &Backends) -> (End, Vec<String>) {
        let Sent { caller, port, method, host, target, headers } = sent;
        let ask = Ask {
            method: (*method).into(),
            scheme: "http".into(),
            authority: (*host).into(),
            port: Some(PORTS[*port]),
            target: target.clone(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            from: callers()[*caller].0.into(),
            ..Ask::default()
        };
        let told = explain(&self.world, &self.plan, &ask, Moment(0)).expect("an explanation");
        if told.outcome.kind == End::PassThrough {
            // Where it was going is nobody's to know.
            return (End::PassThrough, Vec::new());
        }
        let lines: Vec<(&str, &str)> = headers.iter().copied().chain([("host", *host)]).collect();
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = once(self.addresses[caller * 2 + port], request(method, target, &lines, "")).await;
        (told.outcome.kind, differs(&told, &answer, backends))
    }
}

#[tokio::test]
async fn explain_and_reality_agree_on_rules_by_chance() {
    let backends = [
        ("reviews", "v1", Backend::http1("reviews-v1").await),
        ("reviews", "v2", Backend::http1("reviews-v2").await),
        ("ratings", "v1", Backend::http1("ratings-v1").await),
    ];
    let number =
        |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seed, count) = (number("MESH_SEED", 11), number("MESH_MESHES", 25));
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut failures = Vec::new();
    for seed in seed..seed + count {
        let mut chance = Rng::with_seed(seed);
        let rules = rules(&mut chance);
        let mesh = Mesh::start(&rules, &backends);
        for _ in 0..30 {
            let sent = sent(&mut chance);
            let (kind, wrong) = mesh.compare(&sent, &backends).await;
            *kinds.entry(format!("{kind:?}")).or_default() += 1;
            if !wrong.is_empty() {
                let Sent { caller, port, method, host, target, headers } = &sent;
                let (caller, port) = (callers()[*caller].0, PORTS[*port]);
                failures.push(format!(
                    "seed {seed}: {caller:?}:{port} {method} {host} {target} {headers:?}: {}\n{rules}",
                    wrong.join("; ")
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n\n"));
    for kind in [End::Forward, End::Redirect, End::Answer, End::NoRoute, End::UnknownHost] {
        assert!(kinds.contains_key(&format!("{kind:?}")), "no request ends as {kind:?}: {kinds:?}");
    }
}
