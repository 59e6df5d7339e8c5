//! What a request costs in the proxy: an explicit listener in front of one address.
//!
//! `cargo run --release -p meshd --example hop_cost -- 127.0.0.1:9000` prints the address to call and, once a second,
//! requests and CPU microseconds of the workers for each. `-- serve` is an application that answers 1 KiB.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use meshd::proxy::{Declared, Entrance, Settings, Shared, Sockets, Way};
use meshd::telemetry::Stats;
use meshd::transport::{Credentials, Dialer, SocketOptions, socket};

use cost::{cpu_micros, plan, serve, trust};

mod cost;

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
