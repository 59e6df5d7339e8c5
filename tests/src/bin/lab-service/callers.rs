//! Many callers at once: each asks again as soon as it is answered, on a connection that it keeps.

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// No answer for so long is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two requests of one caller: a load that a busy machine can carry.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks `HOST:PORT` for `/` as many callers for so many seconds; prints what came of it, on one line:
/// `requests N failed N p50_us N p99_us N statuses 200:N …`.
pub(crate) fn run(to: &str, callers: usize, seconds: u64) -> std::io::Result<()> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let to = to.to_owned();
            std::thread::spawn(move || call(&to, until))
        })
        .collect();
    let mut all = Vec::new();
    for caller in callers {
        all.extend(caller.join().map_err(|_| Error::other("a caller panicked"))?);
    }
    let mut times: Vec<u128> = all.iter().map(|(_, took)| took.as_micros()).collect();
    times.sort_unstable();
    let quantile = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(0);
    let mut statuses = std::collections::BTreeMap::new();
    for (status, _) in &all {
        *statuses.entry(*status).or_insert(0) += 1;
    }
    let failed = all.iter().filter(|(status, _)| *status != 200).count();
    let statuses: Vec<String> = statuses.iter().map(|(status, count)| format!("{status}:{count}")).collect();
    super::say(&format!(
        "requests {} failed {failed} p50_us {} p99_us {} statuses {}",
        all.len(),
        quantile(50),
        quantile(99),
        statuses.join(" ")
    ));
    Ok(())
}

/// One caller's answers: status (0: none) and time.
fn call(to: &str, until: Instant) -> Vec<(u16, Duration)> {
    let mut answers = Vec::new();
    let mut connection = None;
    while Instant::now() < until {
        let began = Instant::now();
        let status = ask(to, &mut connection).unwrap_or(0);
        if status == 0 {
            connection = None;
        }
        answers.push((status, began.elapsed()));
        std::thread::sleep(PAUSE);
    }
    answers
}

fn ask(to: &str, connection: &mut Option<BufReader<TcpStream>>) -> std::io::Result<u16> {
    if connection.is_none() {
        let address = to.to_socket_addrs()?.next().ok_or_else(|| Error::other("no address"))?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        *connection = Some(BufReader::new(stream));
    }
    let Some(reader) = connection else { return Err(Error::other("no connection")) };
    reader.get_mut().write_all(format!("GET / HTTP/1.1\r\nhost: {to}\r\n\r\n").as_bytes())?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let mut length = 0;
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 {
            return Err(Error::other("the answer ended early"));
        }
        if field == "\r\n" {
            break;
        }
        if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(Error::other)?;
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    status.ok_or_else(|| Error::other("no status"))
}
