//! A caller that asks at a steady rate and forgives nothing: what a restart under load is judged by.
//!
//! Keeps connections alive, as programs do, and opens a new one for every tenth request. A connection that the server
//! announced to close is replaced; any other end without an answer is a failure. Times are those since a request was due,
//! not since it was sent: who waits for an answer and asks late meanwhile does not hide how long others would have waited.

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Asks `rate` times a second for `seconds`, and prints how that went. The exit code tells of failures.
pub(crate) fn run(to: &str, rate: u32, seconds: u64) -> std::io::Result<()> {
    let tally = Arc::new(Tally::default());
    let end = Instant::now() + Duration::from_secs(seconds);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (to, tally) = (to.to_owned(), tally.clone());
            let every = Duration::from_secs(1) * CALLERS / rate;
            std::thread::spawn(move || call(&to, every, every * number / CALLERS, end, &tally))
        })
        .collect();
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.join().map_err(|_| Error::other("a caller panicked"))?);
    }
    times.sort_unstable();
    let quantile = |part: usize| times.get(times.len() * part / 100).map_or(0, Duration::as_micros);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (asked, failed) = (count(&tally.asked), count(&tally.failed));
    crate::say(&format!(
        "asked {asked} failed {failed} slowest_ms {} p50_us {} p99_us {}",
        count(&tally.slowest_ms),
        quantile(50),
        quantile(99)
    ));
    if failed == 0 { Ok(()) } else { Err(Error::other(format!("{failed} of {asked} requests failed"))) }
}

#[derive(Default)]
struct Tally {
    asked: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
}

fn call(to: &str, every: Duration, offset: Duration, end: Instant, tally: &Tally) -> Vec<Duration> {
    let (mut connection, mut times) = (None, Vec::new());
    let mut at = Instant::now() + offset;
    for number in 1.. {
        if at >= end {
            break;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let due = at;
        at += every;
        if number % FRESH_EVERY == 0 {
            connection = None;
        }
        let began = Instant::now();
        tally.asked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = ask(to, &mut connection) {
            connection = None;
            if tally.failed.fetch_add(1, Ordering::Relaxed) < TOLD {
                eprintln!("failed after {:?}: {error}", began.elapsed());
            }
        }
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tally.slowest_ms.fetch_max(took, Ordering::Relaxed);
        times.push(due.elapsed());
    }
    times
}

fn ask(to: &str, connection: &mut Option<BufReader<TcpStream>>) -> std::io::Result<()> {
    let mut reader = match connection.take() {
        Some(open) => open,
        None => BufReader::new(connect(to)?),
    };
    write!(reader.get_mut(), "GET / HTTP/1.1\r\nHost: {to}\r\n\r\n")?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(Error::other(format!("answered {line:?}")));
    }
    let (mut length, mut closes) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let field = line.trim_end().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(Error::other)?;
        }
        closes |= field.starts_with("connection:") && field.contains("close");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if !closes {
        *connection = Some(reader);
    }
    Ok(())
}

fn connect(to: &str) -> std::io::Result<TcpStream> {
    let address = to.to_socket_addrs()?.next().ok_or_else(|| Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

const CALLERS: u32 = 20;
const FRESH_EVERY: u64 = 10;
/// Longer than any restart may keep a caller waiting.
const PATIENCE: Duration = Duration::from_secs(15);
/// Failures that are told one by one.
const TOLD: u64 = 5;
