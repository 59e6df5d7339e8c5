//! Plans made by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::EndpointSet;
use mesh_core::plan::{
    Action, Balancer, CircuitLimits, Cluster, ClusterName, Endpoint, EndpointFacts, Forward, Locality,
    LocalityPolicy, Node, Origin, Outbound, Plan, PortTable, RetryOn, RetryPolicy, Route, ServicePort,
    TcpRule, TcpRules, Via, VirtualHost, WeightedCluster, Workload,
};
use mesh_proto::registration::Protocol;

pub(crate) const PORT: u16 = 80;

pub(crate) fn endpoint(id: &str, via: Via) -> Endpoint {
    Endpoint::new(EndpointFacts::new(id, via)).but(|facts| facts.traits.version = "v1".into())
}

pub(crate) fn local(address: SocketAddr) -> Endpoint {
    endpoint(&address.to_string(), Via::Local(address))
}

pub(crate) fn cluster(host: &str, endpoints: Vec<Endpoint>) -> Cluster {
    let balancer = Balancer::Random;
    let set = EndpointSet::new(endpoints, &balancer, &LocalityPolicy::Ignore, &Locality::default());
    Cluster {
        name: ClusterName { host: host.into(), port: PORT, subset: "".into() },
        balancer,
        endpoints: Arc::new(set),
        limits: CircuitLimits { connect_timeout: Duration::from_secs(2), ..CircuitLimits::default() }.into(),
        ..Cluster::default()
    }
}

/// Istio's default: two retries when nothing reached an application.
pub(crate) fn default_retry() -> RetryPolicy {
    let on = RetryOn {
        connect_failure: true,
        refused_stream: true,
        grpc_unavailable: true,
        grpc_cancelled: true,
        ..RetryOn::default()
    };
    RetryPolicy {
        attempts: 2,
        per_try_timeout: None,
        on,
        status_codes: Vec::new(),
        backoff: Duration::from_millis(1),
        avoid_previous: true,
        other_localities: false,
    }
}

pub(crate) fn to(weight: u32, cluster: Cluster) -> WeightedCluster {
    WeightedCluster { weight, name: cluster.name.clone(), cluster: Some(Arc::new(cluster)), headers: None }
}

pub(crate) fn forward(destinations: Vec<WeightedCluster>) -> Forward {
    Forward {
        total_weight: destinations.iter().map(|destination| destination.weight).sum(),
        destinations,
        timeout: None,
        retry: default_retry(),
        rewrite: None,
        mirrors: Vec::new(),
    }
}

pub(crate) fn route(action: Action) -> Route {
    Route { origin: Origin::default(), matchers: Vec::new(), action, headers: None, fault: None, cors: None }
}

pub(crate) fn forwarding(forward: Forward) -> Route {
    route(Action::Forward(Box::new(forward)))
}

/// A route to one cluster, Istio's defaults.
pub(crate) fn simple(cluster: Cluster) -> Route {
    forwarding(forward(vec![to(1, cluster)]))
}

pub(crate) fn plan(hosts: Vec<(&str, Vec<Route>)>) -> Plan {
    let mut table = PortTable { number: PORT, ..PortTable::default() };
    for (host, routes) in hosts {
        let routes = routes.into_iter().map(Arc::new).collect();
        table.http.add(
            host,
            Arc::new(VirtualHost { host: host.to_owned(), port: PORT, routes, ..VirtualHost::default() }),
        );
    }
    with_table(table)
}

pub(crate) fn with_table(table: PortTable) -> Plan {
    let caller = Workload { namespace: "default".into(), account: "web".into(), ..Workload::default() };
    let mut outbound = Outbound { caller: caller.clone(), ..Outbound::default() };
    outbound.ports.insert(table.number, Arc::new(table));
    let node = Node { trust_domain: "mesh.test".into(), callers: vec![caller], ..Node::default() };
    Plan { node: Arc::new(node), outbounds: vec![Arc::new(outbound)], ..Plan::default() }
}

/// Changes the caller's part of a Plan.
pub(crate) fn change(plan: &mut Plan, change: impl FnOnce(&mut Outbound)) {
    let mut outbound = (*plan.outbounds[0]).clone();
    change(&mut outbound);
    plan.outbounds[0] = Arc::new(outbound);
}

pub(crate) fn tcp_service(destinations: Vec<WeightedCluster>) -> Arc<ServicePort> {
    let rule = TcpRule { destination_subnets: Vec::new(), destinations, origin: Origin::default() };
    let tcp = TcpRules { rules: vec![rule] };
    Arc::new(ServicePort {
        host: "db.default.svc.cluster.local".into(),
        number: PORT,
        protocol: Protocol::Tcp,
        tcp,
    })
}
