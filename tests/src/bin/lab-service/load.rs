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

/// Asks `rate` times a second for `seconds`, or until [`TAIL`] after a file `stop` is there, and prints how that went. The
/// exit code tells of failures. It begins, and prints `flows`, once a request has been answered: until then none counts.
pub(crate) fn run(to: &str, rate: u32, seconds: u64, stop: Option<&str>) -> std::io::Result<()> {
    await_an_answer(to)?;
    crate::say("flows");
    let tally = Arc::new(Tally::default());
    let began = Instant::now();
    let end = Arc::new(End { began, after_ms: AtomicU64::new(seconds * 1_000) });
    if let Some(stop) = stop {
        let (stop, end) = (stop.to_owned(), end.clone());
        std::thread::spawn(move || end.comes_with(&stop));
    }
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (to, tally, end) = (to.to_owned(), tally.clone(), end.clone());
            let every = Duration::from_secs(1) * CALLERS / rate;
            std::thread::spawn(move || call(&to, every, every * number / CALLERS, &end, &tally))
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
        "asked {asked} failed {failed} slowest_ms {} p50_us {} p99_us {} within_ms {}",
        count(&tally.slowest_ms),
        quantile(50),
        quantile(99),
        began.elapsed().as_millis()
    ));
    if failed == 0 { Ok(()) } else { Err(Error::other(format!("{failed} of {asked} requests failed"))) }
}

/// Asks until there is an answer, for as long as [`ROUTED_WITHIN`].
fn await_an_answer(to: &str) -> std::io::Result<()> {
    let began = Instant::now();
    loop {
        match ask(to, &mut None) {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > ROUTED_WITHIN => return Err(error),
            // Between two looks at whether the route is there.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// When callers stop.
struct End {
    began: Instant,
    after_ms: AtomicU64,
}

impl End {
    fn is_there(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began).as_millis() >= self.after_ms.load(Ordering::Relaxed).into()
    }

    /// Waits for the file, and ends the load a little after.
    fn comes_with(&self, stop: &str) {
        while !std::path::Path::new(stop).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let after = u64::try_from((self.began.elapsed() + TAIL).as_millis()).unwrap_or(u64::MAX);
        self.after_ms.fetch_min(after, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Tally {
    asked: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
}

fn call(to: &str, every: Duration, offset: Duration, end: &End, tally: &Tally) -> Vec<Duration> {
    let (mut connection, mut times) = (None, Vec::new());
    let mut at = Instant::now() + offset;
    for number in 1.. {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if end.is_there(at) {
            break;
        }
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
    let mut status = String::new();
    reader.read_line(&mut status)?;
    let (mut length, mut closes, mut line) = (0, false, String::new());
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
    if !status.starts_with("HTTP/1.1 200") {
        return Err(Error::other(format!("answered {status:?}: {}", String::from_utf8_lossy(&body))));
    }
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
/// A route is told to every host, and looked up by a busy machine.
const ROUTED_WITHIN: Duration = Duration::from_secs(30);
/// What comes of an upgrade may come a little after it.
const TAIL: Duration = Duration::from_secs(3);
/// Failures that are told one by one.
const TOLD: u64 = 5;
