//! The settings in effect, each with the object and field that set it.

use mesh_proto::explain::Setting;
use mesh_proto::resource::{HttpRoute, Kind, ObjectKey, Spec};

use super::Scene;
use super::forward::span;
use crate::compile::authors::Authors;
use crate::compile::hosts::{full_name, of_kind, services, takes};
use crate::compile::mesh::Settings;
use crate::plan::{
    Action, Cluster, ClusterName, Forward, Origin, Route, UpstreamProtocol, UpstreamTls, VirtualHost,
};
use crate::views::{self, words};
use crate::world::World;

/// Settings of a route.
pub(super) fn of_route(scene: &Scene<'_>, host: &VirtualHost, route: &Route) -> Vec<Setting> {
    let source = Source::of(scene, host, &route.origin);
    let mut list = List { source, settings: Vec::new() };
    if let Some(fault) = &route.fault {
        list.add("fault", words::faults(fault).join(", "), "fault", |http| http.fault.is_some());
    }
    if let Action::Forward(forward) = &route.action {
        list.forward(forward);
    }
    if let Some(rules) = &route.headers {
        let count = |ops: &crate::plan::HeaderOps| ops.remove.len() + ops.set.len() + ops.add.len();
        let value =
            format!("{} on the request, {} on the answer", count(&rules.request), count(&rules.response));
        list.add("header rules", value, "headers", |http| http.headers.is_some());
    }
    if route.cors.is_some() {
        list.add("cors", "checked".into(), "corsPolicy", |http| http.cors_policy.is_some());
    }
    list.settings
}

struct List<'a> {
    source: Source<'a>,
    settings: Vec<Setting>,
}

impl List<'_> {
    fn add(&mut self, what: &str, value: String, field: &str, has: impl Fn(&HttpRoute) -> bool) {
        let by = self.source.of_field(field, has);
        self.settings.push(Setting { what: what.into(), value, by, place: None });
    }

    fn forward(&mut self, forward: &Forward) {
        let timeout = forward.timeout.map_or_else(|| "none".into(), span);
        self.add("timeout", timeout, "timeout", |http| http.timeout.is_some());
        self.add("retries", words::retry(&forward.retry), "retries", |http| http.retries.is_some());
        if let Some(rewrite) = forward.rewrite.as_deref() {
            self.add("rewrite", words::rewrite(rewrite), "rewrite", |http| http.rewrite.is_some());
        }
        for mirror in &forward.mirrors {
            let share = words::percent(u64::from(mirror.parts_per_million), 1_000_000);
            let value = format!("{share} to {}", words::named(&mirror.name));
            self.add("mirror", value, "mirror", |http| http.mirror.is_some() || !http.mirrors.is_empty());
        }
    }
}

/// The route as it was written, by its own object and, where that is a delegate, by its root.
struct Source<'a> {
    own: Option<(String, &'a HttpRoute)>,
    root: Option<(String, &'a HttpRoute)>,
    mesh_retries: bool,
}

impl<'a> Source<'a> {
    fn of(scene: &Scene<'a>, host: &VirtualHost, origin: &Origin) -> Self {
        let mesh = Settings::of(scene.world);
        let mesh_retries = mesh.config.is_some_and(|config| config.default_http_retry_policy.is_some());
        let own = origin.object.as_ref().and_then(|key| written(scene.world, key, &origin.path));
        let root = origin.object.as_ref().and_then(|key| root_of(scene, host, key));
        Self { own, root, mesh_retries }
    }

    fn of_field(&self, field: &str, has: impl Fn(&HttpRoute) -> bool) -> String {
        let written = [&self.own, &self.root].into_iter().flatten().find(|(_, http)| has(http));
        match written {
            Some((name, _)) => format!("{name}.{field}"),
            None if field == "retries" && self.mesh_retries => "MeshConfig defaultHttpRetryPolicy".into(),
            None => "Istio's default".into(),
        }
    }
}

fn written<'a>(world: &'a World, key: &ObjectKey, path: &str) -> Option<(String, &'a HttpRoute)> {
    let Spec::VirtualService(spec) = &world.resources.get(key)?.object.spec else { return None };
    let index: usize = path.strip_prefix("http[")?.strip_suffix(']')?.parse().ok()?;
    Some((format!("{key} {path}"), spec.http.get(index)?))
}

/// The route that delegates to an object, for this host.
fn root_of<'a>(
    scene: &Scene<'a>,
    host: &VirtualHost,
    delegate: &ObjectKey,
) -> Option<(String, &'a HttpRoute)> {
    let domain = &scene.plan.node.domain;
    of_kind(scene.world, Kind::VirtualService).find_map(|stored| {
        let Spec::VirtualService(spec) = &stored.object.spec else { return None };
        let key = stored.object.key();
        let mut hosts = spec.hosts.iter().map(|name| full_name(name, &key.namespace, domain));
        if !hosts.any(|name| takes(&name, &host.host)) {
            return None;
        }
        let names = |http: &&HttpRoute| {
            http.delegate.as_ref().is_some_and(|wanted| {
                let namespace =
                    if wanted.namespace.is_empty() { &*key.namespace } else { wanted.namespace.as_str() };
                wanted.name == *delegate.name && namespace == &*delegate.namespace
            })
        };
        let index = spec.http.iter().position(|http| names(&http))?;
        Some((format!("{key} http[{index}]"), &spec.http[index]))
    })
}

/// Settings of a destination.
pub(super) fn of_cluster(cluster: &Cluster, authors: &Authors) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |what: &str, value: String, by: &Option<String>| {
        let by = by.clone().unwrap_or_else(|| "Istio's default".into());
        settings.push(Setting { what: what.into(), value, by, place: None });
    };
    if let Some((labels, by)) = &authors.subset {
        add("subset", labels.clone(), &Some(by.clone()));
    }
    add("balancing", views::balancing(&cluster.balancer), &authors.balancer);
    let protocol = match cluster.protocol {
        UpstreamProtocol::Http1 => "HTTP/1.1",
        UpstreamProtocol::Http2 => "HTTP/2",
        UpstreamProtocol::AsClient => "as the caller",
        UpstreamProtocol::Tcp => "bytes",
    };
    let declared = Some("the port of the service".to_owned());
    add("spoken to in", protocol.into(), &declared);
    let limits = words::limits(&Cluster { outlier: None, tls: UpstreamTls::Disable, ..cluster.clone() });
    if !limits.is_empty() {
        add("limits", limits.join(", "), &authors.pool);
    }
    if let Some(outlier) = &cluster.outlier {
        let value = format!(
            "after {} failures in a row left alone for {}, at most {} % of the instances",
            outlier.consecutive_5xx,
            span(outlier.base_ejection),
            outlier.max_ejection_percent
        );
        add("outlier detection", value, &authors.outlier);
    }
    if matches!(cluster.tls, UpstreamTls::Originate(_)) {
        add("tls", "begun here".into(), &authors.tls);
    }
    settings
}

/// Why a destination is not there.
pub(super) fn missing(scene: &Scene<'_>, name: &ClusterName) -> String {
    let mesh = Settings::of(scene.world);
    let services = services(scene.world, &scene.plan.node, &mesh);
    let namespace = &scene.outbound.caller.namespace;
    match services.find(&name.host) {
        None => format!("no service has host {}", name.host),
        Some(service) if !service.seen_from(namespace) => {
            format!("{} is not exported to namespace {namespace}", name.host)
        }
        Some(service) => match service.port(name.port) {
            None => {
                let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
                format!("{} has no port {} (has {})", name.host, name.port, ports.join(", "))
            }
            Some(_) => format!("no DestinationRule for {} has a subset {}", name.host, name.subset),
        },
    }
}
