//! What other hosts may ask of this one: the instances it has registered, as their `Sidecar`s shape them.
//!
//! Source: Istio `buildInboundChainConfigs`, `buildInboundClusters`, `InboundConnectionPoolForPort`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_proto::registration::{Instance, PortBinding, Protocol};
use mesh_proto::resource::{ConnectionPoolSettings, IstioIngressListener, ObjectKey, Sidecar};
use mesh_proto::watch::Stored;

use super::mesh::Settings;
use super::policy::{self, Effective};
use super::scope::Sidecars;
use super::{Problems, telemetry};
use crate::balance::EndpointSet;
use crate::identity::Identity;
use crate::plan::{
    Balancer, CircuitLimits, Cluster, ClusterName, Endpoint, EndpointFacts, Inbound, LocalInstance,
    LocalPort, Locality, LocalityPolicy, Node, Party, Plan, UpstreamProtocol, UpstreamTls, Via,
};
use crate::world::{ServiceName, World};

/// What the instances of a host are made ready with.
pub(super) struct Scene<'a> {
    pub(super) world: &'a World,
    pub(super) node: &'a Node,
    pub(super) mesh: &'a Settings<'a>,
    pub(super) sidecars: &'a Sidecars<'a>,
    pub(super) telemetry: &'a telemetry::Rules<'a>,
    pub(super) previous: Option<&'a Plan>,
    pub(super) problems: &'a Problems,
}

/// Gathers the instances of this host. Those that stand for an address elsewhere are not its to answer for.
pub(super) fn inbound(scene: &Scene<'_>) -> Inbound {
    let mut inbound = Inbound::default();
    let Some(registration) = scene.world.registrations.get(&scene.node.host) else { return inbound };
    for (id, instance) in &registration.instances {
        if instance.address.is_some() {
            continue;
        }
        let trust_domain = &scene.world.mesh.trust_domain;
        let identity = match Identity::workload(trust_domain, &instance.namespace, &instance.account) {
            Ok(identity) => identity,
            Err(error) => {
                scene.problems.note(format!("instance {id}: {error}"));
                continue;
            }
        };
        let host: Arc<str> = ServiceName::of(instance).fqdn(&scene.node.domain).to_ascii_lowercase().into();
        let local = Arc::new(LocalInstance {
            id: id.as_str().into(),
            host: host.clone(),
            identity,
            telling: scene.telemetry.server(&instance.namespace, &instance.labels, &instance.service),
            party: Party::new(trust_domain, &instance.namespace, &instance.account, &instance.labels),
            version: instance.labels.get("version").map_or("", String::as_str).into(),
            ports: scene.ports(id, instance, &host),
            health: instance.health,
        });
        for (port, binding) in local.ports.iter().zip(&instance.ports) {
            let caught = binding.target.port();
            inbound.targets.entry(caught).or_insert_with(|| (local.clone(), port.clone()));
        }
        inbound.services.entry((&*host).into()).or_default().push(local.clone());
        inbound.instances.insert(id.as_str().into(), local);
    }
    inbound
}

/// What an application is spoken to in when a caller comes in plain text; hops say it themselves.
fn spoken(protocol: Protocol) -> UpstreamProtocol {
    match protocol {
        Protocol::Auto => UpstreamProtocol::AsClient,
        protocol if protocol.upstream_is_http2() => UpstreamProtocol::Http2,
        protocol if protocol.is_http() => UpstreamProtocol::Http1,
        _ => UpstreamProtocol::Tcp,
    }
}

impl Scene<'_> {
    fn ports(&self, id: &str, instance: &Instance, host: &Arc<str>) -> Vec<LocalPort> {
        let sidecar = self.sidecars.of(&instance.namespace, &instance.labels);
        if let Some((stored, spec)) = sidecar {
            self.tell_unused(id, instance, stored, spec);
        }
        let port = |binding: &PortBinding| {
            let listener = sidecar.and_then(|(_, spec)| listener(spec, binding));
            let declared = listener.and_then(|one| Protocol::parse(&one.port.as_ref()?.protocol));
            let target = listener.map_or(binding.target, |one| target(one, binding.target));
            let pool = listener.and_then(|one| one.connection_pool.as_ref());
            let pool = pool.or_else(|| sidecar?.1.inbound_connection_pool.as_ref());
            let origin = sidecar.map(|(stored, _)| stored.object.key());
            let name = ClusterName { host: host.clone(), port: binding.number, subset: "inbound".into() };
            let protocol = declared.unwrap_or_else(|| Protocol::of_port(binding.protocol, &binding.name));
            let application = (target, spoken(protocol));
            LocalPort {
                number: binding.number,
                protocol,
                target,
                bounds: pool
                    .zip(origin)
                    .map(|(pool, origin)| self.bounds(id, name, application, pool, origin)),
            }
        };
        instance.ports.iter().map(port).collect()
    }

    /// A cluster of the one application, whose counters move over from the Plan before.
    fn bounds(
        &self,
        id: &str,
        name: ClusterName,
        (target, protocol): (SocketAddr, UpstreamProtocol),
        pool: &ConnectionPoolSettings,
        origin: ObjectKey,
    ) -> Arc<Cluster> {
        let mut limits = policy::limits(&Effective::of_pool(pool), self.mesh);
        // Nothing is tried twice on its way in.
        limits.max_retries = CircuitLimits::default().max_retries;
        let known = self.previous.and_then(|plan| plan.inbound.instances.get(id));
        let known = known.and_then(|instance| instance.port(name.port)).and_then(|port| port.bounds.as_ref());
        let via = Via::Local(target);
        let alike = |known: &&Arc<Cluster>| {
            *known.limits == limits && known.protocol == protocol && known.endpoints.all[0].via == via
        };
        if let Some(same) = known.filter(alike) {
            return same.clone();
        }
        let facts = EndpointFacts::new(id, via);
        let state = known.map_or_else(Arc::default, |known| known.endpoints.all[0].state.clone());
        let endpoint = Endpoint::with_state(facts.into(), state);
        let balancer = Balancer::Passthrough;
        let set = EndpointSet::new(vec![endpoint], &balancer, &LocalityPolicy::Ignore, &Locality::default());
        Arc::new(Cluster {
            name,
            protocol,
            balancer,
            endpoints: Arc::new(set),
            limits: limits.into(),
            outlier: None,
            tls: UpstreamTls::Disable,
            proxy_protocol: None,
            detour: None,
            warmup: None,
            resolved: None,
            state: known.map_or_else(Arc::default, |known| known.state.clone()),
            origins: [origin].into(),
        })
    }

    /// Tells of ingress listeners on which no instance can be met.
    fn tell_unused(&self, id: &str, instance: &Instance, stored: &Stored, spec: &Sidecar) {
        for (index, one) in spec.ingress.iter().enumerate() {
            let number = one.port.as_ref().map_or(0, |port| port.number);
            if !instance.ports.iter().any(|binding| binding.target.port() == number) {
                self.problems.note(format!(
                    "{}: ingress[{index}]: instance {id} has no port whose target is {number}: it changes nothing there",
                    stored.object.key()
                ));
            }
        }
    }
}

/// Finds the ingress listener for a port of an instance: by the port where the application is said to listen.
fn listener<'a>(spec: &'a Sidecar, binding: &PortBinding) -> Option<&'a IstioIngressListener> {
    let is_for = |one: &&IstioIngressListener| {
        one.port.as_ref().is_some_and(|port| port.number == binding.target.port())
    };
    spec.ingress.iter().find(is_for)
}

/// Returns where a listener sends what comes: to its `defaultEndpoint`, in which an unspecified address is the
/// instance's own, and none at all (`:8080`) that of the loopback.
fn target(listener: &IstioIngressListener, registered: SocketAddr) -> SocketAddr {
    let endpoint = &listener.default_endpoint;
    if let Some(port) = endpoint.strip_prefix(':').and_then(|port| port.parse().ok()) {
        return SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    }
    let Ok(wanted) = endpoint.parse::<SocketAddr>() else { return registered };
    let own: IpAddr = registered.ip();
    SocketAddr::new(if wanted.ip().is_unspecified() { own } else { wanted.ip() }, wanted.port())
}
