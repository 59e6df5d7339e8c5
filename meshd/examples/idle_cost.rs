//! What an idle caller's connection keeps: a proxy's memory with many connections that have asked once, beside none.
//!
//! `cargo run --release -p meshd --example idle_cost -- [CONNECTIONS]` opens them from a process of its own, one after
//! another, waits until they doze, and prints how much this process has grown for each, and the CPU time (user and
//! system) that it took to get there. Opened twice: what the first time leaves behind in the allocator is there for the
//! second.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(),
        Some("hold") => hold(arguments[1].parse()?, arguments[2].parse()?),
        first => measure(first.map_or(Ok(5_000), str::parse)?),
    }
}

#[expect(clippy::print_stdout, reason = "what it is for")]
fn measure(count: usize) -> anyhow::Result<()> {
    let mut application =
        Command::new(std::env::current_exe()?).arg("serve").stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    std::io::BufReader::new(application.stderr.take().expect("it is piped")).read_line(&mut line)?;
    let backend: SocketAddr = line.trim().rsplit(' ').next().unwrap_or_default().parse()?;
    let sockets = socket::listen_tcp_group("127.0.0.1:0".parse()?, 1)?;
    let address = sockets[0].local_addr()?;
    let stats = Arc::new(Stats::new(1));
    let shared = Shared {
        plans: Arc::new(ArcSwap::from_pointee(plan(backend))),
        dialer: Dialer::new(Credentials::new(trust()?), SocketOptions::default()),
        settings: Arc::new(Settings { workers: 1, ..Settings::default() }),
        stats: stats.clone(),
        access_log: None,
        started: Instant::now(),
    };
    let way = Way::Service { port: 80, protocol: Declared::Http, caller: 0 };
    let entrances = vec![Entrance { way, sockets }];
    let _proxy = meshd::proxy::start(shared, Sockets { entrances, quic: Vec::new() })?;
    // The first connections pay for what all share.
    drop(opened(address, 100)?);
    let before = settled()?;
    for time in 1..=2 {
        let cpu = cpu_micros()?;
        let held = opened(address, count)?;
        let dozing = || stats.shard(0).counters.dozing_connections.load(Ordering::Relaxed);
        while dozing() < count as u64 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let grown = (settled()? - before) * 1_024 / i64::try_from(count)?;
        let cpu = (cpu_micros()? - cpu) / u64::try_from(count)?;
        println!("{count} connections, opened for the {time}. time: {grown} bytes and {cpu} µs each");
        drop(held);
        while dozing() > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    application.kill()?;
    Ok(())
}

/// Connections that another process keeps open until this is dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn opened(address: SocketAddr, count: usize) -> anyhow::Result<Held> {
    let child = Command::new(std::env::current_exe()?)
        .args(["hold", &address.to_string(), &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut held = Held(child);
    let out = held.0.stdout.take().expect("it is piped");
    let mut line = String::new();
    std::io::BufReader::new(out).read_line(&mut line)?;
    anyhow::ensure!(line == "open\n", "the connections could not be opened");
    Ok(held)
}

#[expect(clippy::print_stdout, reason = "who has started it waits for that")]
fn hold(address: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /products/42 HTTP/1.1\r\nhost: reviews\r\nuser-agent: hold/1\r\n\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(&[b'x'; 1_024]) {
            let mut piece = [0; 4_096];
            let read = stream.read(&mut piece)?;
            anyhow::ensure!(read > 0, "closed");
            answer.extend_from_slice(&piece[..read]);
        }
        held.push(stream);
    }
    println!("open");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Returns resident memory once it has not shrunk for three seconds, in KiB.
fn settled() -> anyhow::Result<i64> {
    let (mut least, mut since) = (resident()?, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        let now = resident()?;
        if now < least {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(least)
}

fn resident() -> anyhow::Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}
