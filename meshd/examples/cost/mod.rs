//! A proxy in front of one address, and what it is measured with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::balance::EndpointSet;
use mesh_core::plan::{
    Action, Balancer, Cluster, ClusterName, Endpoint, EndpointFacts, Forward, Locality, LocalityPolicy, Node,
    Origin, Outbound, Plan, PortTable, RetryOn, RetryPolicy, Route, Via, VirtualHost, WeightedCluster,
    Workload,
};
use meshd::transport::Trust;

/// An application that answers 1 KiB, also to what is posted; tells where on standard error.
pub(crate) fn serve() -> anyhow::Result<()> {
    use std::convert::Infallible;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        eprintln!("serving on {}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            meshd::task::spawn("application", async move {
                let service = hyper::service::service_fn(|_: http::Request<hyper::body::Incoming>| async {
                    let body = bytes::Bytes::from_static(&[b'x'; 1024]);
                    Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(body)))
                });
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    })
}

/// Returns how long the threads of this process have run, in user and system, in microseconds. A thread that has ended
/// counts no more.
pub(crate) fn cpu_micros() -> anyhow::Result<u64> {
    let mut nanos = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let ran = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += ran.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(nanos / 1_000)
}

pub(crate) fn trust() -> anyhow::Result<Arc<Trust>> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&rcgen::KeyPair::generate()?)?;
    Trust::new("mesh.test", vec![root.into()]).map_err(|fault| anyhow::anyhow!("{fault}"))
}

pub(crate) fn plan(backend: SocketAddr) -> Plan {
    let endpoint = Endpoint::new(EndpointFacts::new("a", Via::Local(backend)))
        .but(|facts| facts.traits.version = "v1".into());
    let balancer = Balancer::LeastRequest;
    let set = EndpointSet::new(vec![endpoint], &balancer, &LocalityPolicy::Ignore, &Locality::default());
    let name = ClusterName { host: "reviews".into(), port: 80, subset: "".into() };
    let cluster = Cluster { name: name.clone(), balancer, endpoints: Arc::new(set), ..Cluster::default() };
    let on = RetryOn { connect_failure: true, refused_stream: true, ..RetryOn::default() };
    let retry = RetryPolicy {
        attempts: 2,
        per_try_timeout: None,
        on,
        status_codes: Vec::new(),
        backoff: Duration::from_millis(25),
        avoid_previous: true,
        other_localities: false,
    };
    let destination = WeightedCluster { weight: 100, cluster: Some(Arc::new(cluster)), name, headers: None };
    let forward = Forward {
        destinations: vec![destination],
        total_weight: 100,
        timeout: None,
        retry,
        rewrite: None,
        mirrors: Vec::new(),
    };
    let route = Route {
        origin: Origin::default(),
        matchers: Vec::new(),
        action: Action::Forward(Box::new(forward)),
        headers: None,
        fault: None,
        cors: None,
    };
    let mut table = PortTable { number: 80, ..PortTable::default() };
    table.http.add(
        "*",
        Arc::new(VirtualHost {
            host: "reviews".into(),
            port: 80,
            routes: vec![Arc::new(route)],
            ..VirtualHost::default()
        }),
    );
    let caller = Workload { namespace: "default".into(), account: "web".into(), ..Workload::default() };
    let mut outbound = Outbound { caller: caller.clone(), ..Outbound::default() };
    outbound.ports.insert(80, Arc::new(table));
    let node = Node { trust_domain: "mesh.test".into(), callers: vec![caller], ..Node::default() };
    Plan { node: Arc::new(node), outbounds: vec![Arc::new(outbound)], ..Plan::default() }
}
