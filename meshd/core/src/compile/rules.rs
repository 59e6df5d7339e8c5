//! `VirtualServices` as the mesh and its gateways follow them: names resolved, delegates put in, the oldest first.

use std::collections::BTreeMap;
use std::ops::Deref;

use mesh_proto::command::Revision;
use mesh_proto::resource::{HttpMatchRequest, HttpRoute, Kind, ObjectKey, Spec, VirtualService};
use mesh_proto::value::Labels;
use mesh_proto::watch::Stored;

use super::hosts::{full_name, of_kind};
use super::mesh::Settings;
use super::{Problems, delegates, visibility};
use crate::plan::{Origin, Workload};

/// The name of the callers inside the mesh among `gateways`.
pub(crate) const MESH: &str = "mesh";

/// A `VirtualService`.
pub(crate) struct Rules<'a> {
    /// What names it.
    pub(crate) key: ObjectKey,
    /// Its namespace: short names of it resolve here.
    pub(crate) namespace: &'a str,
    /// Its hosts, in full, lower case.
    pub(crate) hosts: Vec<String>,
    /// Its HTTP routes, delegates put in.
    pub(crate) http: Vec<HttpRule<'a>>,
    /// The rest of it.
    pub(crate) spec: &'a VirtualService,
    /// Whether callers inside the mesh follow it.
    pub(crate) in_mesh: bool,
    /// The gateways that follow it, `namespace/name`.
    pub(crate) gateways: Vec<String>,
    /// What it was made of: itself and its delegates, each at its last change.
    pub(crate) made_of: Vec<(ObjectKey, Revision)>,
    export_to: &'a [String],
}

/// One HTTP route of a `VirtualService`.
pub(crate) struct HttpRule<'a> {
    /// It. Of a delegated route all host names are in full.
    pub(crate) http: Written<'a>,
    /// Which it is.
    pub(crate) origin: Origin,
}

/// A route as its `VirtualService` has it, or with a delegate's merged in.
pub(crate) enum Written<'a> {
    Here(&'a HttpRoute),
    Merged(Box<HttpRoute>),
}

impl Deref for Written<'_> {
    type Target = HttpRoute;

    fn deref(&self) -> &HttpRoute {
        match self {
            Self::Here(route) => route,
            Self::Merged(route) => route,
        }
    }
}

impl Rules<'_> {
    /// Whether callers of a namespace see it.
    pub(crate) fn seen_from(&self, namespace: &str) -> bool {
        visibility::sees(self.export_to, self.namespace, namespace)
    }

    /// How near it is to a namespace that sees it.
    pub(crate) fn nearness(&self, from: &str) -> visibility::Nearness {
        visibility::nearness(self.export_to, self.namespace, from)
    }

    /// Whether any condition asks for the caller's labels.
    pub(crate) fn looks_at_labels(&self) -> bool {
        let http = self.http.iter().flat_map(|rule| &rule.http.r#match);
        let tcp = self.spec.tcp.iter().flat_map(|rule| &rule.r#match);
        let tls = self.spec.tls.iter().flat_map(|rule| &rule.r#match);
        http.map(|one| &one.source_labels)
            .chain(tcp.map(|one| &one.source_labels))
            .chain(tls.map(|one| &one.source_labels))
            .any(|labels| !labels.is_empty())
    }

    /// Returns the conditions of each HTTP route that who asks can meet on this port; routes without any are left
    /// out, and so is everything after a catch-all.
    ///
    /// Source: Istio `BuildHTTPRoutesForVirtualService`.
    pub(crate) fn applicable(
        &self,
        asker: Asker<'_>,
        port: u16,
    ) -> Vec<(&HttpRule<'_>, Vec<&HttpMatchRequest>)> {
        let mut found = Vec::new();
        for rule in &self.http {
            let conditions = &rule.http.r#match;
            if conditions.is_empty() {
                found.push((rule, Vec::new()));
                break;
            }
            let mut kept = Vec::new();
            let mut catches_all = false;
            for condition in conditions {
                if asker.unmet(condition, self.namespace, port).is_none() {
                    kept.push(condition);
                    catches_all = is_catch_all(condition);
                    if catches_all {
                        break;
                    }
                }
            }
            if !kept.is_empty() {
                found.push((rule, kept));
            }
            if catches_all {
                break;
            }
        }
        found
    }
}

/// Who asks: a caller inside the mesh, or a gateway for its visitors.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The caller, or the gateway's own workload.
    pub(crate) caller: &'a Workload,
    /// The gateway, `namespace/name`.
    pub(crate) gateway: Option<&'a str>,
}

impl Asker<'_> {
    /// Returns the first of an HTTP condition's words about who asks, and of the port, that does not hold. `gateways`
    /// decides alone where it is given.
    ///
    /// Source: Istio `sourceMatchHTTP`.
    pub(crate) fn unmet(&self, condition: &HttpMatchRequest, home: &str, port: u16) -> Option<SourceUnmet> {
        let other_port = || condition.port.is_some_and(|wanted| wanted != port).then_some(SourceUnmet::Port);
        if !condition.gateways.is_empty() {
            let among = self.is_among(&condition.gateways, home);
            return if among { other_port() } else { Some(SourceUnmet::Gateways) };
        }
        if !super::hosts::has_all(&self.caller.labels, &condition.source_labels) {
            return Some(SourceUnmet::Labels);
        }
        let other =
            !condition.source_namespace.is_empty() && condition.source_namespace != self.caller.namespace;
        if other { Some(SourceUnmet::Namespace) } else { other_port() }
    }

    /// The same for TCP and TLS: a gateway looks at `gateways` alone, callers inside the mesh at all.
    ///
    /// Source: Istio `matchTCP`, `l4SingleMatch`.
    pub(crate) fn meets(&self, gateways: &[String], labels: &Labels, namespace: &str, home: &str) -> bool {
        self.unmet_by(gateways, labels, namespace, home).is_none()
    }

    /// Returns the first of these words that does not hold.
    pub(crate) fn unmet_by(
        &self,
        gateways: &[String],
        labels: &Labels,
        namespace: &str,
        home: &str,
    ) -> Option<SourceUnmet> {
        if !gateways.is_empty() && !self.is_among(gateways, home) {
            return Some(SourceUnmet::Gateways);
        }
        if self.gateway.is_some() {
            return None;
        }
        if !super::hosts::has_all(&self.caller.labels, labels) {
            return Some(SourceUnmet::Labels);
        }
        let other = !namespace.is_empty() && namespace != self.caller.namespace;
        other.then_some(SourceUnmet::Namespace)
    }

    fn is_among(&self, gateways: &[String], home: &str) -> bool {
        gateways.iter().any(|gateway| match self.gateway {
            None => gateway == MESH,
            Some(own) => gateway != MESH && gateway_name(gateway, home) == own,
        })
    }
}

/// Returns the full name of a gateway that a rule of a namespace names: `name`, `namespace/name`, `./name`, or
/// `name.namespace.svc.…`, the former form.
///
/// Source: Istio `resolveGatewayName`.
pub(crate) fn gateway_name(text: &str, home: &str) -> String {
    match (text.split_once('/'), text.split_once('.')) {
        (Some((".", name)), _) => format!("{home}/{name}"),
        (Some(_), _) => text.to_owned(),
        (None, Some((name, rest))) => format!("{}/{name}", rest.split('.').next().unwrap_or(rest)),
        (None, None) => format!("{home}/{text}"),
    }
}

/// Loads every `VirtualService`, the oldest first (then by namespace and name).
pub(crate) fn load<'a>(
    world: &'a crate::world::World,
    mesh: &Settings<'a>,
    domain: &str,
    problems: &Problems,
) -> Vec<Rules<'a>> {
    let mut stored: Vec<(&'a Stored, &'a VirtualService)> = of_kind(world, Kind::VirtualService)
        .filter_map(|stored| match &stored.object.spec {
            Spec::VirtualService(spec) => Some((stored, &**spec)),
            _ => None,
        })
        .collect();
    // They come in order of namespace and name.
    stored.sort_by_key(|(stored, _)| stored.created);
    let export_to = |spec: &'a VirtualService| {
        visibility::or_default(&spec.export_to, mesh, |config| &config.default_virtual_service_export_to)
    };
    // A VirtualService without hosts is there to be delegated to.
    let (delegates, roots): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|(_, spec)| spec.hosts.is_empty());
    let delegates: delegates::Delegates<'a> = delegates
        .into_iter()
        .map(|(stored, spec)| {
            let metadata = &stored.object.metadata;
            let export_to = export_to(spec);
            ((&*metadata.namespace, &*metadata.name), delegates::Delegate { stored, spec, export_to })
        })
        .collect::<BTreeMap<_, _>>();
    roots
        .into_iter()
        .map(|(stored, spec)| {
            let key = stored.object.key();
            let namespace = &*stored.object.metadata.namespace;
            let mut made_of = vec![(key.clone(), stored.changed)];
            let http = delegates::put_in(&key, spec, &delegates, domain, &mut made_of, problems);
            let hosts = spec.hosts.iter().map(|host| full_name(host, namespace, domain)).collect();
            let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == MESH);
            let others = spec.gateways.iter().filter(|gateway| *gateway != MESH);
            let gateways = others.map(|gateway| gateway_name(gateway, namespace)).collect();
            let export_to = export_to(spec);
            Rules { key, namespace, hosts, http, spec, in_mesh, gateways, made_of, export_to }
        })
        .collect()
}

/// What a condition says about the caller, or the port, that does not hold: its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceUnmet {
    Gateways,
    Labels,
    Namespace,
    Port,
}

/// Whether a condition that this caller can meet is met by every request.
///
/// Source: Istio `IsCatchAllRoute`.
pub(crate) fn is_catch_all(condition: &HttpMatchRequest) -> bool {
    use mesh_proto::value::StringMatch;
    let any_path = match &condition.uri {
        None | Some(StringMatch::Present) => true,
        Some(StringMatch::Prefix(prefix)) => prefix == "/",
        Some(StringMatch::Regex(regex)) => regex == ".*",
        Some(StringMatch::Exact(_)) => false,
    };
    any_path
        && condition.scheme.is_none()
        && condition.method.is_none()
        && condition.authority.is_none()
        && condition.headers.is_empty()
        && condition.without_headers.is_empty()
        && condition.query_params.is_empty()
}
