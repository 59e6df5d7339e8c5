//! What telemetry costs a request: the same proxy with everything off and with everything on, in turn.
//!
//! `cargo run --release -p meshd --example telemetry_cost -- [REQUESTS] [ROUNDS] [ONLY]` runs an application, a load and a collector
//! beside itself and prints the CPU time (user and system) of this process for each request. Metrics are always on. Each
//! measurement stands between two of "off", and is compared with their mean: a machine that becomes slower or faster does
//! so for both. "off again" tells how much such a comparison is worth. ONLY: one of the names in the table. ROUNDS 0, for
//! profilers: that one runs once, and nothing else.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http_body_util::{BodyExt as _, Empty};
use mesh_core::plan::{Carrier, Collector, LogTarget, Logging, Telling, Tracing};
use mesh_proto::log_format::LogFormat;
use meshd::proxy::{Declared, Entrance, Settings, Shared, Sockets, Way};
use meshd::telemetry::{AccessLog, Stats};
use meshd::transport::{Credentials, Dialer, SocketOptions, socket};

use cost::{cpu_micros, plan, serve, trust};

mod cost;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections of the load.
const CONNECTIONS: usize = 16;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("load") => load(arguments[1].parse()?, arguments[2].parse()?),
        first => {
            let requests = first.map_or(Ok(100_000), str::parse)?;
            let rounds = arguments.get(1).map_or(Ok(5), |rounds| rounds.parse())?;
            measure(requests, rounds, arguments.get(2).map(String::as_str))
        }
    }
}

fn measure(requests: usize, rounds: usize, only: Option<&str>) -> anyhow::Result<()> {
    let (backend, mut application) = start_server()?;
    let (collector, mut collecting) = start_server()?;
    let folder = std::env::temp_dir().join(format!("telemetry_cost.{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let log = folder.join("access.log").to_string_lossy().into_owned();
    let logs = || vec![log_to(&log)];
    let traces = |sampling| Some(Arc::new(tracing(collector, sampling)));
    let all = [
        ("off again", Telling::default()),
        ("access log", with(Telling { logs: logs(), ..Telling::default() })),
        ("traces of 1 %", with(Telling { tracing: traces(10_000), ..Telling::default() })),
        ("log, traces of 1 %", with(Telling { logs: logs(), tracing: traces(10_000), ..Telling::default() })),
        (
            "log, traces of 100 %",
            with(Telling { logs: logs(), tracing: traces(1_000_000), ..Telling::default() }),
        ),
    ];
    let told: Vec<_> = all.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    let sockets = socket::listen_tcp_group("127.0.0.1:0".parse()?, 1)?;
    let address = sockets[0].local_addr()?;
    let plans = Arc::new(ArcSwap::from_pointee(plan(backend)));
    let shared = Shared {
        plans: plans.clone(),
        dialer: Dialer::new(Credentials::new(trust()?), SocketOptions::default()),
        settings: Arc::new(Settings { workers: 1, ..Settings::default() }),
        stats: Arc::new(Stats::new(1)),
        access_log: Some(AccessLog::for_rules()?),
        started: Instant::now(),
    };
    let way = Way::Service { port: 80, protocol: Declared::Http, caller: 0 };
    let entrances = vec![Entrance { way, sockets }];
    let _proxy = meshd::proxy::start(shared, Sockets { entrances, quic: Vec::new() })?;
    let measured = |telling: &Telling| {
        let mut plan = plan(backend);
        let mut outbound = (*plan.outbounds[0]).clone();
        outbound.telling = Arc::new(telling.clone());
        plan.outbounds[0] = Arc::new(outbound);
        plans.store(Arc::new(plan));
        let before = cpu_micros()?;
        let load = Command::new(std::env::current_exe()?)
            .args(["load", &address.to_string(), &requests.to_string()])
            .status()?;
        anyhow::ensure!(load.success(), "the load failed");
        // The last batch of spans, and the last lines.
        std::thread::sleep(Duration::from_millis(1_500));
        anyhow::Ok(cpu_micros()? - before)
    };
    let mut pairs = vec![Vec::new(); told.len()];
    if rounds == 0 {
        told.iter().try_for_each(|(_, telling)| measured(telling).map(drop))?;
    }
    let off = || measured(&Telling::default());
    let mut before = if rounds == 0 { 0 } else { off()? };
    for _ in 0..rounds {
        for ((_, telling), pairs) in told.iter().zip(&mut pairs) {
            let (took, after) = (measured(telling)?, off()?);
            pairs.push((took, u64::midpoint(before, after)));
            before = after;
        }
    }
    application.kill()?;
    collecting.kill()?;
    std::fs::remove_dir_all(&folder)?;
    report(&told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), &pairs, requests);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of minutes")]
#[expect(clippy::print_stdout, reason = "what it is for")]
fn report(names: &[&str], pairs: &[Vec<(u64, u64)>], requests: usize) {
    println!(
        "| telemetry | CPU for each request, median | beside off, median | mean, and its standard error |"
    );
    println!("|---|---|---|---|");
    for (name, pairs) in names.iter().zip(pairs).filter(|(_, pairs)| !pairs.is_empty()) {
        let took = median(pairs.iter().map(|(took, _)| *took as f64 / requests as f64));
        let more = |(took, off): &(u64, u64)| (*took as f64 / *off as f64 - 1.0) * 100.0;
        let count = pairs.len() as f64;
        let mean = pairs.iter().map(more).sum::<f64>() / count;
        let spread = pairs.iter().map(|pair| (more(pair) - mean).powi(2)).sum::<f64>();
        let error = (spread / (count - 1.0).max(1.0) / count).sqrt();
        let median = median(pairs.iter().map(more));
        println!("| {name} | {took:.2} µs | {median:+.1} % | {mean:+.1} ± {error:.1} % |");
    }
}

fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = of.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn with(mut telling: Telling) -> Telling {
    for logging in &telling.logs {
        telling.wanted.add(logging);
    }
    if telling.tracing.is_some() {
        let names = [http::header::USER_AGENT, http::HeaderName::from_static("x-request-id")];
        telling.wanted.request.extend(names);
    }
    telling
}

fn log_to(path: &str) -> Arc<Logging> {
    let target = LogTarget { path: Some(path.to_owned()), format: LogFormat::istio() };
    Arc::new(Logging { target, filter: None })
}

fn tracing(collector: SocketAddr, sampling: u32) -> Tracing {
    let collector = Collector {
        host: collector.ip().to_string().into(),
        port: collector.port(),
        carrier: Carrier::Http("/v1/traces".into()),
        headers: Vec::new(),
        timeout: Duration::from_secs(3),
        max_tag_bytes: 256,
    };
    Tracing {
        collector: Arc::new(collector),
        sampling,
        reports: true,
        propagates: true,
        istio_tags: true,
        tags: Vec::new(),
    }
}

fn start_server() -> anyhow::Result<(SocketAddr, std::process::Child)> {
    let mut child = Command::new(std::env::current_exe()?).arg("serve").stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    std::io::BufReader::new(child.stderr.take().expect("it is piped")).read_line(&mut line)?;
    let address = line.trim().rsplit(' ').next().unwrap_or_default().parse()?;
    Ok((address, child))
}

fn load(address: SocketAddr, requests: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            clients.spawn(call(address, requests / CONNECTIONS));
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn call(address: SocketAddr, requests: usize) -> anyhow::Result<()> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    meshd::task::spawn("client", connection);
    for _ in 0..requests {
        let request = http::Request::get("/products/42?currency=EUR")
            .header("host", "reviews")
            .header("user-agent", "load/1")
            .body(Empty::<bytes::Bytes>::new())?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == 200, "{}", response.status());
        response.into_body().collect().await?;
    }
    Ok(())
}
