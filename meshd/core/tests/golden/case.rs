//! One case file, and running it.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::compile::compile;
use mesh_core::plan::{Locality, Node, Outbound, Plan, Workload};
use mesh_core::world::World;
use mesh_proto::value::Labels;
use mesh_proto::yaml::Document;
use serde::Deserialize;

use super::verdict::{self, Asked, Verdict};
use super::world::{Maker, instance, node};
use super::{door, told};

/// A case: services, rules, calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// One sentence: what it shows.
    about: String,
    /// Where expectations come from: `envoy` (observed), `istio` (its source or reference) or `meshd` (our own choice).
    source: Source,
    #[serde(default)]
    callers: Vec<Caller>,
    /// Labels of the host: which gateways it is.
    #[serde(default)]
    host: Labels,
    /// Where the host is, `region/zone/subzone`.
    #[serde(default)]
    locality: String,
    #[serde(default)]
    services: BTreeMap<String, Service>,
    pub(crate) rules: String,
    #[serde(default)]
    pub(crate) calls: Vec<Call>,
    /// Beginnings of what cannot be carried out.
    #[serde(default)]
    problems: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Envoy,
    Istio,
    Meshd,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Caller {
    namespace: String,
    /// Default: `default`.
    account: Option<String>,
    #[serde(default)]
    labels: Labels,
}

/// A registered service, by `name` or `name.namespace`; ports as `9080: http` or `9080: name/PROTOCOL`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    ports: BTreeMap<u16, String>,
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    here: bool,
}

/// A call and what is expected of it. Only what is written is compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    /// Host, optionally `METHOD HOST/PATH`: `GET reviews/x?y`, `reviews/x`; `tls SNI`; `tcp`, `tcp ADDRESS`; `dns NAME`.
    #[serde(rename = "call")]
    pub(crate) line: String,
    #[serde(default)]
    pub(crate) from: usize,
    #[serde(default = "http_port")]
    pub(crate) port: u16,
    /// A visitor's call: to the door of this address (`:80` is `0.0.0.0:80`).
    pub(crate) at: Option<String>,
    /// The name a visitor asks for in TLS.
    pub(crate) sni: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<String>,
    pub(crate) verdict: String,
    by: Option<String>,
    path: Option<String>,
    authority: Option<String>,
    /// Headers sent on; an empty list: absent.
    #[serde(default)]
    sent: BTreeMap<String, Vec<String>>,
    /// Headers of the answer.
    #[serde(default)]
    answered: BTreeMap<String, Vec<String>>,
    with: Option<Vec<String>>,
}

fn http_port() -> u16 {
    80
}

impl Case {
    /// Decides every call; returns what is not as written.
    pub(crate) fn run(&self) -> Vec<String> {
        let (documents, findings) = mesh_proto::yaml::read("rules", &self.rules);
        let mut failures: Vec<String> =
            findings.iter().filter(|finding| finding.is_error()).map(ToString::to_string).collect();
        let (world, node) = self.mesh(documents);
        let plan = compile(&world, &node, None);
        failures.extend(self.problems(&plan));
        let again = compile(&world, &node, Some(&plan));
        for plan in [&plan, &again] {
            failures.extend(self.calls.iter().flat_map(|call| call.check(plan)));
        }
        failures.dedup();
        if !failures.is_empty() {
            failures.push(format!("{} (expectations by {:?})", self.about, self.source));
        }
        failures
    }

    /// Asks `explain` about every call: how many, and what it says otherwise.
    pub(crate) fn told(&self) -> (usize, Vec<String>) {
        let (documents, _) = mesh_proto::yaml::read("rules", &self.rules);
        let (world, node) = self.mesh(documents);
        let plan = compile(&world, &node, None);
        let differ = self.calls.iter().filter_map(|call| told::differs(&world, &plan, call)).collect();
        (self.calls.len(), differ)
    }

    /// The Plan of the case with other rules in the place of its own.
    pub(crate) fn plan_of(&self, documents: Vec<Document>) -> Plan {
        let (world, node) = self.mesh(documents);
        compile(&world, &node, None)
    }

    /// What becomes of each call, in words.
    pub(crate) fn verdicts(&self, plan: &Plan) -> Vec<String> {
        self.calls.iter().map(|call| format!("{:?}", call.decide(plan))).collect()
    }

    fn mesh(&self, documents: Vec<Document>) -> (World, Arc<Node>) {
        let mut maker = Maker::new();
        for (name, service) in &self.services {
            let (short, namespace) = name.split_once('.').unwrap_or((name, "default"));
            let ports: Vec<_> = service.ports.iter().map(|(number, text)| port(*number, text)).collect();
            let versions =
                if service.versions.is_empty() { vec!["v1".to_owned()] } else { service.versions.clone() };
            for version in versions {
                let labels = Labels::from([("version".to_owned(), version.clone())]);
                let id = format!("{short}-{namespace}-{version}");
                maker.instance(&id, instance(short, namespace, &ports, labels), service.here);
            }
        }
        let world = maker.finish(documents.into_iter().map(|document| document.object).collect());
        let workload = |namespace: &str, labels: &Labels| Workload {
            namespace: namespace.to_owned(),
            account: "default".into(),
            labels: labels.clone(),
            ..Workload::default()
        };
        let mut callers: Vec<Workload> =
            self.callers.iter().map(|caller| workload(&caller.namespace, &caller.labels)).collect();
        for (workload, caller) in callers.iter_mut().zip(&self.callers) {
            if let Some(account) = &caller.account {
                workload.account.clone_from(account);
            }
        }
        if callers.is_empty() {
            callers.push(workload("default", &Labels::new()));
        }
        let mut node = node(callers);
        let host = Arc::make_mut(&mut node);
        host.labels.clone_from(&self.host);
        host.locality = Locality::parse(&self.locality);
        (world, node)
    }

    fn problems(&self, plan: &Plan) -> Vec<String> {
        let expected = |problem: &&String| !self.problems.iter().any(|begin| problem.starts_with(begin));
        let mut failures: Vec<_> =
            plan.problems.iter().filter(expected).map(|text| format!("problem: {text}")).collect();
        for begin in &self.problems {
            if !plan.problems.iter().any(|problem| problem.starts_with(begin)) {
                failures.push(format!("no problem begins {begin:?}"));
            }
        }
        failures
    }
}

impl Call {
    fn check(&self, plan: &Plan) -> Vec<String> {
        let mut failures = Vec::new();
        let found = self.decide(plan);
        let mut compare = |what: &str, is: &str, wanted: &str| {
            if is != wanted {
                failures.push(format!("{} on {}: {what} is {is:?}, not {wanted:?}", self.line, self.port));
            }
        };
        compare("verdict", &found.what, &self.verdict);
        if let Some(by) = &self.by {
            compare("by", &found.by, by);
        }
        if let Some(path) = &self.path {
            compare("path", found.path.as_deref().unwrap_or_default(), path);
        }
        if let Some(authority) = &self.authority {
            compare("authority", found.authority.as_deref().unwrap_or_default(), authority);
        }
        if let Some(with) = &self.with {
            compare("with", &found.with.join(", "), &with.join(", "));
        }
        for (map, wanted) in [(&found.sent, &self.sent), (&found.answered, &self.answered)] {
            for (name, lines) in wanted {
                let is: Vec<_> =
                    map.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
                compare(name, &is.join(" | "), &lines.join(" | "));
            }
        }
        failures
    }

    fn decide(&self, plan: &Plan) -> Verdict {
        match &self.at {
            Some(address) => door::decide(plan, address, self.sni.as_deref(), |outbound, port| {
                self.decide_in(plan, outbound, port)
            }),
            None => self.decide_in(plan, &plan.outbounds[self.from], self.port),
        }
    }

    fn decide_in(&self, plan: &Plan, outbound: &Outbound, port: u16) -> Verdict {
        let text = |what: String| Verdict { what, ..Verdict::default() };
        let (first, rest) = self.line.split_once(' ').unwrap_or(("GET", &self.line));
        let table = outbound.ports.get(&port);
        match (first, self.line.as_str()) {
            ("dns", _) => text(match plan.names.find(rest) {
                Some(addresses) => format!("{} addresses", addresses.len()),
                None => "no address".into(),
            }),
            ("tls", _) => text(match table.and_then(|table| table.tls.find(rest)) {
                Some(host) => verdict::connection(&host.rules, None),
                None => "cut".into(),
            }),
            (_, "tcp") => text(match table.and_then(|table| table.tcp.as_ref()) {
                Some(service) => verdict::connection(&service.tcp, None),
                None => "unknown".into(),
            }),
            ("tcp", _) => {
                let address: std::net::IpAddr = rest.parse().expect("an address");
                let exact = outbound.addresses.get(&(address, port));
                let in_range = || {
                    let mut ranges = outbound.ranges.iter();
                    ranges
                        .find(|(net, range_port, _)| net.contains(&address) && *range_port == port)
                        .map(|found| &found.2)
                };
                text(match exact.or_else(in_range) {
                    Some(service) => verdict::connection(&service.tcp, Some(address)),
                    None => "unknown".into(),
                })
            }
            (method, _) => {
                let at = rest.find('/').unwrap_or(rest.len());
                let target = if at == rest.len() { "/" } else { &rest[at..] };
                let headers = self.headers.iter().map(|line| header(line)).collect::<HeaderMap>();
                let asked = Asked { port, method, authority: &rest[..at], target, headers: &headers };
                verdict::decide(outbound, &asked)
            }
        }
    }
}

fn port(number: u16, text: &str) -> (u16, String, String) {
    match text.split_once('/') {
        Some((name, protocol)) => (number, name.to_owned(), protocol.to_owned()),
        None => (number, text.to_owned(), String::new()),
    }
}

fn header(line: &str) -> (HeaderName, HeaderValue) {
    let (name, value) = line.split_once(':').expect("NAME: VALUE");
    (name.parse().expect("a name"), HeaderValue::from_str(value.trim()).expect("a value"))
}
