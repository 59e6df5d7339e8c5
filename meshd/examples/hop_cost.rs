//! What a request costs in the proxy: an explicit listener in front of one address.
//!
//! `cargo run --release -p meshd --example hop_cost -- 127.0.0.1:9000` prints the address to call and, once a second,
//! requests and CPU microseconds of the workers for each. `-- serve` is an application that answers 1 KiB.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_core::balance::EndpointSet;
use mesh_core::plan::{
    Action, Balancer, Cluster, ClusterName, Endpoint, Forward, Locality, LocalityPolicy, Node, Origin,
    Outbound, Plan, PortTable, RetryOn, RetryPolicy, Route, Via, VirtualHost, WeightedCluster, Workload,
};
use mesh_proto::command::Liveness;
use mesh_proto::registration::Health;
use meshd::proxy::{Declared, Entrance, Settings, Shared, Sockets, Way};
use meshd::telemetry::Stats;
use meshd::transport::{Credentials, Dialer, SocketOptions, Trust, socket};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve();
    }
    let backend: SocketAddr =
        std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned()).parse()?;
    let settings = Settings { workers: 1, ..Settings::default() };
    let stats = Arc::new(Stats::new(1));
    let sockets = socket::listen_tcp_group("127.0.0.1:0".parse()?, 1)?;
    eprintln!("listening on {}", sockets[0].local_addr()?);
    let shared = Shared {
        plans: Arc::new(ArcSwap::from_pointee(plan(backend))),
        dialer: Dialer::new(Credentials::new(trust()?), SocketOptions::default()),
        settings: Arc::new(settings),
        stats: stats.clone(),
        access_log: None,
        started: Instant::now(),
    };
    let way = Way::Service { port: 80, protocol: Declared::Http, caller: 0 };
    let _proxy = meshd::proxy::start(
        shared,
        Sockets { entrances: vec![Entrance { way, sockets }], quic: Vec::new() },
    )?;
    let (mut before, mut cpu_before) = (0, cpu_micros()?);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let requests: u64 = stats.snapshot().iter().map(|row| row.requests).sum();
        let cpu = cpu_micros()?;
        if requests > before {
            let each = (cpu - cpu_before) / (requests - before);
            eprintln!("{} requests, {each} us of CPU each", requests - before);
        }
        (before, cpu_before) = (requests, cpu);
    }
}

fn serve() -> anyhow::Result<()> {
    use std::convert::Infallible;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        eprintln!("serving on {}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            meshd::task::spawn("application", async move {
                let service = hyper::service::service_fn(|_| async {
                    let body = bytes::Bytes::from_static(&[b'x'; 1024]);
                    Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(body)))
                });
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    })
}

/// Returns user and system time of this process, in microseconds. One tick is 10 ms.
fn cpu_micros() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * 10_000)
}

fn trust() -> anyhow::Result<Arc<Trust>> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&rcgen::KeyPair::generate()?)?;
    Trust::new("mesh.test", vec![root.into()]).map_err(|fault| anyhow::anyhow!("{fault}"))
}

fn plan(backend: SocketAddr) -> Plan {
    let endpoint = Endpoint {
        id: "a".into(),
        via: Via::Local(backend),
        weight: 1,
        locality: Arc::default(),
        version: "v1".into(),
        health: Health::Healthy,
        liveness: Liveness::Live,
        state: Arc::default(),
    };
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
