//! What `explain` says is what happens: the same requests through both, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use http::{HeaderMap, Method};
use mesh_core::compile::compile;
use mesh_core::endpoint::Moment;
use mesh_core::explain::explain;
use mesh_core::plan::Plan;
use mesh_core::sketch;
use mesh_core::world::World;
use mesh_proto::explain::{Ask, End, Explanation};
use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::value::Labels;

use super::lab::{Answer, Backend, request, start};
use super::plan::PORT;

/// Applications: service, version, what answers.
pub(super) type Backends = [(&'static str, &'static str, Backend)];

/// A request: method, host, target, headers.
type Sent = (&'static str, &'static str, String, Vec<(&'static str, &'static str)>);

const RULES: &str = "
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {name: default, namespace: istio-system}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v9, labels: {version: v9}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, authority: elsewhere.example, redirectCode: 302}
  - match: [{uri: {prefix: /fixed}, method: {exact: GET}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: reviews, subset: v7}}]
  - match: [{uri: {prefix: /empty}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - match: [{uri: {prefix: /broken}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /strip/}, headers: {x-strip: {regex: 'a+'}}}]
    rewrite: {uri: /, authority: inner.example}
    headers: {request: {set: {x-set: '1'}, remove: [x-strip]}}
    route: [{destination: {host: reviews, subset: v2}, headers: {request: {add: {x-dest: '2'}}}}]
  - match: [{queryParams: {v: {exact: '2'}}}, {headers: {end-user: {exact: jason}}, withoutHeaders: {x-not: {}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{sourceLabels: {app: somebody-else}}]
    route: [{destination: {host: ratings}}]
  - match: [{uri: {regex: '/r[0-9]+'}}]
    rewrite: {uriRegexRewrite: {match: '[0-9]+', rewrite: 'n'}}
    route: [{destination: {host: ratings}}]
  - match: [{uri: {prefix: /api}, ignoreUriCase: true}, {authority: {exact: 'reviews.default'}}]
    route: [{destination: {host: reviews, subset: v1}}, {destination: {host: reviews, subset: v2}, weight: 1}]
  - match: [{method: {exact: POST}}]
    route: [{destination: {host: reviews, subset: v1}, weight: 50}, {destination: {host: reviews, subset: v2}, weight: 50}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-path, namespace: default}
spec: {host: by-path, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: ':path', maglev: {}}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-authority, namespace: default}
spec: {host: by-authority, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: ':authority', maglev: {}}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-path, namespace: default}
spec:
  hosts: [by-path]
  http:
  - match: [{uri: {prefix: /one/}}]
    rewrite: {uriRegexRewrite: {match: '/one/[^/]+', rewrite: /all}}
    route: [{destination: {host: by-path}}]
  - route: [{destination: {host: by-path}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: default}
spec:
  hosts: ['*.wild.example']
  http:
  - corsPolicy: {allowOrigins: [{exact: 'http://good.example'}], allowMethods: [GET]}
    route: [{destination: {host: ratings}}]
";

fn instance(service: &str, version: &str, backend: &Backend) -> Instance {
    Instance {
        service: service.into(),
        group: None,
        namespace: "default".into(),
        account: service.into(),
        labels: Labels::from([("version".into(), version.into())]),
        ports: [PORT, PORT + 1]
            .map(|number| PortBinding {
                number,
                name: format!("http-{number}"),
                protocol: Protocol::Http,
                target: backend.address,
            })
            .into(),
        // An endpoint outside the mesh: reached in plain text, so that no certificate is needed.
        address: Some(Ipv4Addr::LOCALHOST.into()),
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}

pub(super) fn world(rules: &str, backends: &Backends) -> World {
    let (documents, findings) = mesh_proto::yaml::read("rules", rules);
    assert!(findings.is_empty(), "{findings:?}");
    let objects = documents.into_iter().map(|document| document.object).collect();
    let instances = backends
        .iter()
        .map(|(service, version, backend)| {
            (format!("{service}-{version}"), instance(service, version, backend))
        })
        .collect();
    sketch::of_files(&BTreeMap::from([("vm2".to_owned(), instances)]), objects).expect("a World")
}

fn table() -> Vec<Sent> {
    let plain = |method, host, target: &str, headers: &[(&'static str, &'static str)]| -> Sent {
        (method, host, target.to_owned(), headers.to_vec())
    };
    let jason = &[("end-user", "jason")];
    vec![
        plain("GET", "reviews", "/old", &[]),
        plain("GET", "reviews", "/old?a=b", &[]),
        plain("GET", "reviews:80", "/old", &[]),
        plain("GET", "reviews", "/older", &[]),
        plain("GET", "reviews", "/fixed/x", &[]),
        plain("POST", "reviews", "/fixed/x", &[]),
        plain("GET", "reviews", "/gone", &[]),
        plain("GET", "reviews", "/empty", &[]),
        plain("GET", "reviews", "/broken", &[]),
        plain("GET", "reviews", "/strip/a?q=1", &[("x-strip", "aaa")]),
        plain("GET", "reviews", "/strip/a", &[("x-strip", "aab")]),
        plain("GET", "reviews", "/strip/a", &[]),
        plain("GET", "reviews", "/?v=2", &[]),
        plain("GET", "reviews", "/?v=2&v=3", &[]),
        plain("GET", "reviews", "/?v=3&v=2", &[]),
        plain("GET", "reviews", "/?v", &[]),
        plain("GET", "reviews", "/", jason),
        plain("GET", "reviews", "/", &[("end-user", "jane"), ("end-user", "jason")]),
        plain("GET", "reviews", "/", &[("end-user", "jason"), ("x-not", "")]),
        plain("GET", "reviews", "/", &[("end-user", "Jason")]),
        plain("GET", "reviews", "/r12", &[]),
        plain("GET", "reviews", "/r12x", &[]),
        plain("GET", "reviews", "/r1/../r22", &[]),
        plain("GET", "reviews", "/api", &[]),
        plain("GET", "reviews", "/API/v1?x=%20", &[]),
        plain("GET", "reviews", "/%61pi", &[]),
        plain("GET", "reviews", "/a%2Fpi", &[]),
        plain("GET", "reviews.default", "/", &[]),
        plain("GET", "Reviews.Default", "/", &[]),
        plain("GET", "reviews.default.svc.cluster.local", "/api", &[]),
        plain("GET", "reviews.default.svc.cluster.local.", "/api", &[]),
        plain("GET", "reviews.", "/api", &[]),
        plain("POST", "reviews", "/", &[]),
        plain("PUT", "reviews", "/", &[]),
        plain("GET", "ratings", "/any", &[]),
        plain("GET", "ratings:9999", "/any", &[]),
        plain("GET", "nowhere", "/", &[]),
        plain("GET", "a.wild.example", "/", &[]),
        plain("GET", "wild.example", "/", &[]),
        plain("GET", "a.wild.example", "/", &[("origin", "http://good.example")]),
        plain(
            "OPTIONS",
            "a.wild.example",
            "/",
            &[("origin", "http://good.example"), ("access-control-request-method", "GET")],
        ),
        plain(
            "OPTIONS",
            "a.wild.example",
            "/",
            &[("origin", "http://bad.example"), ("access-control-request-method", "GET")],
        ),
        plain("GET", "reviews", "/", &[("x-envoy-max-retries", "3"), ("end-user", "jason")]),
        plain("FROBNICATE", "reviews", "/", &[]),
    ]
}

/// Requests whose instance is decided by a part of their head, as it is sent on.
fn hashed() -> Vec<Sent> {
    let path = (0..12).map(|number| ("GET", "by-path", format!("/p?n={number}"), vec![]));
    let rewritten = (0..4).map(|number| ("GET", "by-path", format!("/one/{number}/x"), vec![]));
    let authorities = ["by-authority", "by-authority.default", "by-authority.default.svc", "BY-authority"];
    let authority = authorities.into_iter().map(|host| ("GET", host, "/".to_owned(), vec![]));
    path.chain(rewritten).chain(authority).collect()
}

/// Requests made of words that the rules know, put together by chance.
fn generated(seed: u64, count: usize) -> Vec<Sent> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let hosts = ["reviews", "reviews.default", "reviews:80", "ratings", "b.wild.example", "nowhere"];
    let paths = [
        "/", "/api", "/ApI/x", "/old", "/fixed", "/strip/x", "/r7", "/gone/x", "/empty", "/../api", "/x/./r1",
    ];
    let queries = ["", "?v=2", "?v=3", "?w=2&v=2", "?"];
    let headers =
        [("end-user", "jason"), ("end-user", "jane"), ("x-not", "y"), ("x-strip", "aa"), ("x-strip", "b")];
    (0..count)
        .map(|_| {
            let method = ["GET", "POST", "DELETE"][chance.usize(..3)];
            let target =
                format!("{}{}", paths[chance.usize(..paths.len())], queries[chance.usize(..queries.len())]);
            let lines = (0..chance.usize(..3)).map(|_| headers[chance.usize(..headers.len())]).collect();
            (method, hosts[chance.usize(..hosts.len())], target, lines)
        })
        .collect()
}

fn explained(world: &World, plan: &Plan, (method, host, target, headers): &Sent) -> Explanation {
    let ask = Ask {
        method: (*method).into(),
        scheme: "http".into(),
        authority: (*host).into(),
        port: Some(PORT),
        target: target.clone(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Ask::default()
    };
    explain(world, plan, &ask, Moment(0)).expect("an explanation")
}

/// Compares what was said with what happened; returns what differs.
pub(super) fn differs(told: &Explanation, is: &Answer, backends: &Backends) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, told: &str, is: &str| {
        if told != is {
            wrong.push(format!("{what}: told {told:?}, is {is:?}"));
        }
    };
    let instance = is.header("x-instance").unwrap_or("none");
    if let Some(status) = told.outcome.status {
        same("status", &status.to_string(), is.status.as_str());
        same("instance", "none", instance);
        same(
            "location",
            told.outcome.location.as_deref().unwrap_or("none"),
            is.header("location").unwrap_or("none"),
        );
        if let Some(body) = &told.outcome.body {
            same("body", body, &is.body);
        }
        return wrong;
    }
    same("kind", "Forward", &format!("{:?}", told.outcome.kind));
    let name = |to: &mesh_proto::explain::Destination| {
        let picked: Vec<String> = to
            .instances
            .iter()
            .filter(|one| one.picks > 0)
            .map(|one| one.id.replace(" on vm2", ""))
            .collect();
        picked
    };
    let Some(to) =
        told.destinations.iter().find(|to| to.share > 0 && name(to).iter().any(|id| id == instance))
    else {
        // One of several may be told to be out of order.
        let fails = told.destinations.iter().any(|to| to.share > 0 && !to.trouble.is_empty());
        if fails && is.status == http::StatusCode::SERVICE_UNAVAILABLE {
            return wrong;
        }
        wrong.push(format!(
            "it went to {instance} (status {}), told were {:?}",
            is.status, told.outcome.words
        ));
        return wrong;
    };
    let found = backends.iter().find(|(service, version, _)| format!("{service}-{version}") == instance);
    let (_, target, headers): (Method, String, HeaderMap) = found.expect("one of ours").2.last();
    let header = |name: &str| -> String {
        let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        lines.collect::<Vec<_>>().join(" | ")
    };
    same("target", &to.sends.target, &target);
    same("authority", &to.sends.authority, &header("host"));
    let mut lines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &to.sends.set {
        lines.entry(name).or_default().push(value);
    }
    for (name, values) in lines {
        same(name, &values.join(" | "), &header(name));
    }
    for name in &to.sends.removed {
        same(name, "", &header(name));
    }
    wrong
}

#[tokio::test]
async fn explain_and_reality_agree() {
    let backends = [
        ("reviews", "v1", Backend::http1("reviews-v1").await),
        ("reviews", "v2", Backend::http1("reviews-v2").await),
        ("ratings", "v1", Backend::http1("ratings-v1").await),
        ("by-path", "v1", Backend::http1("by-path-v1").await),
        ("by-path", "v2", Backend::http1("by-path-v2").await),
        ("by-authority", "v1", Backend::http1("by-authority-v1").await),
        ("by-authority", "v2", Backend::http1("by-authority-v2").await),
    ];
    let world = world(RULES, &backends);
    let plan = compile(&world, &sketch::node(vec![sketch::nobody()]), None);
    assert_eq!(plan.problems, Vec::<String>::new());
    let lab = start(plan.clone());
    let seed = std::env::var("MESH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut failures = Vec::new();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut by_path: BTreeSet<String> = BTreeSet::new();
    for sent in table().into_iter().chain(hashed()).chain(generated(seed, 200)) {
        let told = explained(&world, &plan, &sent);
        let (method, host, target, headers) = &sent;
        let lines: Vec<(&str, &str)> = headers.iter().copied().chain([("host", *host)]).collect();
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = super::lab::once(lab.address, request(method, target, &lines, "")).await;
        *kinds.entry(format!("{:?}", told.outcome.kind)).or_default() += 1;
        if *host == "by-path" {
            by_path.extend(answer.header("x-instance").map(ToOwned::to_owned));
        }
        let wrong = differs(&told, &answer, &backends);
        if !wrong.is_empty() {
            failures.push(format!("{sent:?}: {}", wrong.join("; ")));
        }
    }
    assert!(failures.is_empty(), "seed {seed}: {} differ:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(by_path.len(), 2, "with one instance for all paths nothing was compared");
    // The table would be worth little if it met only one kind of end.
    for kind in [
        End::Forward,
        End::Redirect,
        End::Answer,
        End::Preflight,
        End::NoRoute,
        End::UnknownHost,
        End::BadRequest,
    ] {
        assert!(kinds.contains_key(&format!("{kind:?}")), "no request ends as {kind:?}: {kinds:?}");
    }
}
