//! Why a connection that is no request goes where it goes.
//!
//! `route::connection` decides, as for every connection. Which rules were passed over is read off the World by the words
//! that the compiler asks.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use mesh_proto::explain::{Destination, End, Explanation, Host, Outcome, Passed, Speaks};
use mesh_proto::resource::{L4MatchAttributes, ObjectKey, TlsMatchAttributes};

use super::forward::{behind, share};
use super::{Scene, caller, settings, words};
use crate::compile::Problems;
use crate::compile::hosts::takes;
use crate::compile::mesh::Settings;
use crate::compile::rules::{Asker, Rules, load};
use crate::plan::{Origin, TcpRule, TcpRules, UnknownHosts};
use crate::route::Call;
use crate::route::connection::{self, Expected, Spoken, Target, Way};
use crate::views::words as plain;

/// A connection as rules see it.
struct Wanted {
    host: String,
    port: u16,
    /// Where it was going.
    address: Option<SocketAddr>,
    sni: Option<String>,
}

/// Explains a connection of a caller inside the mesh.
pub(super) fn explain(scene: &Scene<'_>, caller: &caller::Found) -> Result<Explanation, String> {
    let wanted = Wanted::of(scene)?;
    let mut told = begin(scene, caller, &wanted);
    let target = match wanted.address {
        Some(address) => Target::Address(address),
        None => Target::Host { host: &wanted.host, port: wanted.port },
    };
    let expected = connection::expected(scene.outbound, &scene.plan.names, target);
    let spoken = match (expected, scene.ask.speaks) {
        (Expected::Http, _) => {
            let url = format!("http://{}", scene.ask.authority);
            told.outcome = closed(&format!(
                "the port is for HTTP: other bytes are refused before any rule; ask for {url}"
            ));
            return Ok(told);
        }
        (Expected::Tcp, Speaks::Tls) => {
            told.notes.push("the port is declared TCP: which server TLS asks for is not looked at".into());
            Spoken::Opaque
        }
        (Expected::Tls, Speaks::Tcp) => {
            told.notes.push("the port is declared TLS: what is none asks for no server".into());
            Spoken::Tls(None)
        }
        (_, Speaks::Tls) => Spoken::Tls(wanted.sni.as_deref()),
        _ => Spoken::Opaque,
    };
    let way = connection::way(scene.outbound, &scene.plan.names, target, spoken);
    told.host = match way {
        Way::Service(service) => {
            let how =
                wanted.address.map_or_else(|| "its name".to_owned(), |address| format!("it is at {address}"));
            Some(Host { name: service.host.clone(), port: service.number, how })
        }
        Way::Tls(host) => {
            let port = connection::port(scene.outbound, target);
            Some(Host { name: host.host.clone(), port, how: "by the server that TLS asks for".into() })
        }
        Way::EgressProxy(_) | Way::Direct | Way::Refused => None,
    };
    match (way, way.rules()) {
        (_, Some(rules)) => follow(scene, rules, &wanted, &mut told),
        (Way::Direct, _) => {
            told.outcome = Outcome {
                kind: End::PassThrough,
                words: format!(
                    "nobody declares {}: it goes where it was going, outside the mesh's rules (outboundTrafficPolicy ALLOW_ANY)",
                    scene.ask.authority
                ),
                ..Outcome::default()
            };
        }
        _ => told.outcome = closed(&refused(scene, &wanted)),
    }
    Ok(told)
}

/// Explains where a connection goes by rules that are found already: those behind a gateway's door.
pub(super) fn by_rules(
    scene: &Scene<'_>,
    caller: &caller::Found,
    rules: &TcpRules,
    host: Host,
) -> Result<Explanation, String> {
    let wanted = Wanted::of(scene)?;
    let mut told = begin(scene, caller, &wanted);
    told.host = Some(host);
    follow(scene, rules, &wanted, &mut told);
    Ok(told)
}

/// What is told of a connection before anything is decided.
pub(super) fn begun(scene: &Scene<'_>, caller: &caller::Found) -> Result<Explanation, String> {
    Ok(begin(scene, caller, &Wanted::of(scene)?))
}

pub(super) fn closed(words: &str) -> Outcome {
    Outcome { kind: End::Closed, words: format!("closed: {words}"), ..Outcome::default() }
}

fn begin(scene: &Scene<'_>, caller: &caller::Found, wanted: &Wanted) -> Explanation {
    let mut told = scene.begin(caller, &scene.ask.authority, wanted.port, "", None);
    (told.request.method, told.request.scheme) = match scene.ask.speaks {
        Speaks::Tls => ("TLS".into(), "tls".into()),
        _ => ("TCP".into(), "tcp".into()),
    };
    told.request.sni.clone_from(&wanted.sni);
    told.notes.clone_from(&caller.notes);
    if let (Some(address), Err(_)) = (wanted.address, wanted.host.parse::<IpAddr>()) {
        told.notes.push(format!("DNS answers {} for {}", address.ip(), wanted.host));
    }
    told
}

impl Wanted {
    fn of(scene: &Scene<'_>) -> Result<Self, String> {
        let text = &scene.ask.authority;
        let wrong = || format!("{text}: a host with its port is wanted, such as mongo:27017");
        let (host, port) = match (text.rsplit_once(':'), scene.ask.port) {
            (Some((host, port)), _) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            (_, Some(port)) => (text.as_str(), port),
            _ => return Err(wrong()),
        };
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let known = || scene.plan.names.find(host.trim_end_matches('.'))?.first().copied();
        let address = host.parse().ok().or_else(known).map(|address| SocketAddr::new(address, port));
        let named = || host.parse::<IpAddr>().is_err().then(|| host.clone());
        let sni = scene.ask.sni.as_ref().map(|name| name.to_ascii_lowercase());
        let sni = (scene.ask.speaks == Speaks::Tls).then(|| sni.or_else(named)).flatten();
        Ok(Self { host, port, address, sni })
    }

    fn destination(&self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }
}

fn refused(scene: &Scene<'_>, wanted: &Wanted) -> String {
    match (scene.outbound.unknown, &wanted.sni) {
        (UnknownHosts::Refuse | UnknownHosts::NotFound, _) => {
            format!("nobody declares {} (outboundTrafficPolicy REGISTRY_ONLY)", scene.ask.authority)
        }
        (_, Some(name)) => format!("no rule is for the server {name}"),
        (_, None) => "no rule takes it, and where it was going is not known".into(),
    }
}

/// Follows the first rule that applies.
fn follow(scene: &Scene<'_>, rules: &TcpRules, wanted: &Wanted, told: &mut Explanation) {
    let counts = connection::rule(rules, wanted.destination());
    told.passed = passed(scene, rules, counts, wanted, told.host.as_ref());
    let Some(rule) = counts else {
        told.outcome = closed("no rule of the host takes it");
        return;
    };
    let origin = &rule.origin;
    told.rule = Some(words::rule(scene.world, origin.object.as_ref(), &origin.path, &origin.name));
    told.because = because(rule);
    let total: u32 = rule.destinations.iter().map(|one| one.weight).sum();
    let many = rule.destinations.len() > 1;
    let headers = HeaderMap::new();
    let call =
        Call { method: "", scheme: "", authority: &wanted.host, path: "", query: None, headers: &headers };
    for one in &rule.destinations {
        let mut to = Destination {
            host: one.name.host.to_string(),
            port: one.name.port,
            subset: one.name.subset.to_string(),
            share: if many { share(one.weight, total) } else { 1_000_000 },
            ..Destination::default()
        };
        match &one.cluster {
            None => to.trouble = settings::missing(scene, &one.name),
            Some(cluster) => behind(scene, &call, cluster, &mut to, &mut told.notes),
        }
        // There is no status without a request: the connection is closed.
        to.status = None;
        told.destinations.push(to);
    }
    let reached: Vec<&Destination> = told.destinations.iter().filter(|one| one.share > 0).collect();
    let kind = if reached.iter().all(|one| !one.trouble.is_empty()) { End::Closed } else { End::Forward };
    let list: Vec<String> = reached.into_iter().map(|one| in_words(one, many)).collect();
    told.outcome = Outcome { kind, words: format!("carried {}", list.join(", ")), ..Outcome::default() };
}

fn in_words(to: &Destination, many: bool) -> String {
    let share =
        if many { format!("{} ", plain::percent(u64::from(to.share), 1_000_000)) } else { String::new() };
    let subset = if to.subset.is_empty() { String::new() } else { format!(" {}", to.subset) };
    let trouble = if to.trouble.is_empty() { String::new() } else { format!(" (closed: {})", to.trouble) };
    format!("{share}to {}:{}{subset}{trouble}", to.host, to.port)
}

fn because(rule: &TcpRule) -> String {
    let nets: Vec<String> = rule.destination_subnets.iter().map(ToString::to_string).collect();
    match (rule.origin.object.is_some(), nets.is_empty()) {
        (false, _) => "no rule is for this connection: the service itself".into(),
        (true, true) => "its conditions hold".into(),
        (true, false) => format!("it was going to one of {}", nets.join(", ")),
    }
}

/// Blocks that were looked at and do not count, each with the first reason of each of its conditions.
fn passed(
    scene: &Scene<'_>,
    compiled: &TcpRules,
    counts: Option<&TcpRule>,
    wanted: &Wanted,
    host: Option<&Host>,
) -> Vec<Passed> {
    let Some(host) = host else { return Vec::new() };
    let mesh = Settings::of(scene.world);
    let rules = load(scene.world, &mesh, &scene.plan.node.domain, &Problems::default());
    let mut passed = Vec::new();
    for rules in rules.iter().filter(|rules| is_about(rules, host, wanted)) {
        if let Some(because) = scene.not_bound(rules) {
            passed.push(Passed {
                rule: words::rule(scene.world, Some(&rules.key), "", ""),
                because: vec![because],
            });
            continue;
        }
        let looked = Looked { scene, rules, wanted, port: host.port, compiled };
        for (path, because) in looked.blocks() {
            if counts.is_some_and(|rule| is_of(&rule.origin, &rules.key, &path)) {
                return passed;
            }
            passed.push(Passed { rule: words::rule(scene.world, Some(&rules.key), &path, ""), because });
        }
    }
    passed
}

fn is_about(rules: &Rules<'_>, host: &Host, wanted: &Wanted) -> bool {
    let names = [Some(host.name.as_str()), wanted.sni.as_deref(), Some(wanted.host.as_str())];
    let has = |name: &str| rules.hosts.iter().any(|own| takes(own, name) || takes(name, own));
    let blocks = !rules.spec.tcp.is_empty() || !rules.spec.tls.is_empty();
    blocks && names.into_iter().flatten().any(has)
}

fn is_of(origin: &Origin, key: &ObjectKey, path: &str) -> bool {
    origin.object.as_ref() == Some(key) && origin.path == path
}

/// The blocks of one object, looked at by a connection.
struct Looked<'a> {
    scene: &'a Scene<'a>,
    rules: &'a Rules<'a>,
    wanted: &'a Wanted,
    port: u16,
    compiled: &'a TcpRules,
}

impl Looked<'_> {
    /// Every block with the reasons why it does not count, in the order in which they are asked: TLS first.
    fn blocks(&self) -> Vec<(String, Vec<String>)> {
        let spec = self.rules.spec;
        let tls = spec.tls.iter().enumerate().map(|(index, block)| {
            let reasons = block.r#match.iter().filter_map(|condition| self.tls(condition));
            (format!("tls[{index}]"), reasons.collect::<Vec<_>>())
        });
        let tcp = spec.tcp.iter().enumerate().map(|(index, block)| {
            let reasons = block.r#match.iter().filter_map(|condition| self.tcp(condition));
            (format!("tcp[{index}]"), reasons.collect())
        });
        tls.chain(tcp).map(|(path, reasons)| self.reasoned(path, reasons)).collect()
    }

    fn reasoned(&self, path: String, mut reasons: Vec<String>) -> (String, Vec<String>) {
        if reasons.is_empty() {
            let is_compiled =
                self.compiled.rules.iter().any(|rule| is_of(&rule.origin, &self.rules.key, &path));
            let tls = path.starts_with("tls");
            reasons.push(match (is_compiled, tls) {
                (false, true) => "the connection is no TLS that is looked at here".into(),
                (false, false) => "another rule before it takes every connection".into(),
                (true, _) => "a rule before it takes the connection".into(),
            });
        }
        (path, reasons)
    }

    fn tls(&self, condition: &TlsMatchAttributes) -> Option<String> {
        let common = L4MatchAttributes {
            destination_subnets: condition.destination_subnets.clone(),
            port: condition.port,
            source_labels: condition.source_labels.clone(),
            gateways: condition.gateways.clone(),
            source_namespace: condition.source_namespace.clone(),
            ..L4MatchAttributes::default()
        };
        let names = || {
            let asked = self.wanted.sni.as_deref().unwrap_or_default();
            let takes = condition.sni_hosts.iter().any(|host| takes(&host.to_ascii_lowercase(), asked));
            let is = if asked.is_empty() {
                "no server is asked for".to_owned()
            } else {
                format!("it asks for {asked:?}")
            };
            (!takes).then(|| format!("sniHosts {}: {is}", condition.sni_hosts.join(", ")))
        };
        self.tcp(&common).or_else(names)
    }

    fn tcp(&self, condition: &L4MatchAttributes) -> Option<String> {
        let asker = Asker { caller: &self.scene.outbound.caller, gateway: self.scene.gateway };
        let unmet = asker.unmet_by(
            &condition.gateways,
            &condition.source_labels,
            &condition.source_namespace,
            self.rules.namespace,
        );
        if let Some(unmet) = unmet {
            let asked = words::Asked {
                gateways: &condition.gateways,
                labels: &condition.source_labels,
                namespace: &condition.source_namespace,
                port: condition.port,
            };
            return Some(words::source(&asked, unmet, self.scene, self.port));
        }
        if let Some(port) = condition.port.filter(|port| *port != self.port) {
            return Some(format!("port {port}: it is {}", self.port));
        }
        let nets = &condition.destination_subnets;
        let lies_in = |net: &String| {
            let net = net.parse::<ipnet::IpNet>().ok().or_else(|| net.parse::<IpAddr>().ok().map(Into::into));
            net.is_some_and(|net| self.wanted.destination().is_some_and(|to| net.contains(&to)))
        };
        if nets.is_empty() || nets.iter().any(lies_in) {
            return None;
        }
        let going = self
            .wanted
            .destination()
            .map_or_else(|| "where it goes is not known".into(), |to| format!("it goes to {to}"));
        Some(format!("destinationSubnets {}: {going}", nets.join(", ")))
    }
}
