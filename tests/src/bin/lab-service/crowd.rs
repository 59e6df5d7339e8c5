//! Callers for stories about more than there is: requests at a steady rate, and crowds of connections that only weigh.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Asks `host` at `to` for `/echo` at a rate, whether earlier answers have come or not, until a file `stop` exists.
/// Prints how many requests were sent, answered rightly (200 and the request's own number in it) and not.
pub(super) fn steady(to: &str, host: &str, rate: u32, stop: &str) -> io::Result<()> {
    let tally = run(async {
        let tally = Rc::new(Tally::default());
        let idle: Rc<RefCell<Vec<BufReader<TcpStream>>>> = Rc::default();
        let (mut beat, stop) = (tokio::time::interval(Duration::from_secs(1) / rate), PathBuf::from(stop));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        let mut under_way = tokio::task::JoinSet::new();
        for number in 1_u64.. {
            beat.tick().await;
            if number.is_multiple_of(u64::from(rate.div_ceil(10))) && stop.exists() {
                break;
            }
            while under_way.try_join_next().is_some() {}
            let (tally, idle, to, host) = (tally.clone(), idle.clone(), to.to_owned(), host.to_owned());
            under_way.spawn_local(async move {
                tally.sent.set(tally.sent.get() + 1);
                let kept = idle.borrow_mut().pop();
                let began = Instant::now();
                match ask(kept, &to, &host, number).await {
                    Ok(connection) => {
                        tally.right.set(tally.right.get() + 1);
                        tally.slowest.set(tally.slowest.get().max(began.elapsed()));
                        idle.borrow_mut().push(connection);
                    }
                    Err(error) => tally.wrong.borrow_mut().push(format!("request {number}: {error}")),
                }
            });
        }
        under_way.join_all().await;
        tally
    })?;
    let wrong = tally.wrong.borrow();
    super::say(&format!(
        "sent {} right {} wrong {} slowest {:?}",
        tally.sent.get(),
        tally.right.get(),
        wrong.len(),
        tally.slowest.get()
    ));
    wrong.iter().take(5).for_each(|wrong| super::say(wrong));
    Ok(())
}

#[derive(Default)]
struct Tally {
    sent: Cell<u64>,
    right: Cell<u64>,
    slowest: Cell<Duration>,
    wrong: RefCell<Vec<String>>,
}

async fn ask(
    kept: Option<BufReader<TcpStream>>,
    to: &str,
    host: &str,
    number: u64,
) -> io::Result<BufReader<TcpStream>> {
    let mut connection = match kept {
        Some(kept) => kept,
        None => BufReader::new(TcpStream::connect(to).await?),
    };
    let head = format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nX-Number: {number}\r\n\r\n");
    connection.get_mut().write_all(head.as_bytes()).await?;
    let (status, length) = head_of(&mut connection).await?;
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if status != 200 || !body.contains(&format!("x-number: {number}\r\n")) {
        return Err(io::Error::other(format!("status {status}: {body:?}")));
    }
    Ok(connection)
}

async fn head_of(connection: &mut BufReader<TcpStream>) -> io::Result<(u16, usize)> {
    let (mut line, mut status, mut length) = (String::new(), 0, 0);
    loop {
        line.clear();
        if connection.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return Ok((status, length));
        }
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0);
        }
        if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = rest.trim().parse().map_err(io::Error::other)?;
        }
    }
}

/// Opens connections to `to`; each begins a request with a body, sends `bytes` of it and no more, and stays until a file
/// `stop` exists. 0 bytes: says nothing at all. Prints what became of them, by status.
pub(super) fn crowd(to: &str, host: &str, count: usize, bytes: usize, stop: &str) -> io::Result<()> {
    let ends = run(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (to, host, stop) = (to.to_owned(), host.to_owned(), PathBuf::from(stop));
            all.spawn_local(async move { weigh(&to, &host, bytes, &stop).await });
        }
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        while let Some(end) = all.join_next().await {
            *ends.entry(end.unwrap_or_else(|error| error.to_string())).or_default() += 1;
        }
        ends
    })?;
    let ends: Vec<_> = ends.into_iter().map(|(end, count)| format!("{end}: {count}")).collect();
    super::say(&ends.join("  "));
    Ok(())
}

/// Returns how it ended: a status, `closed`, or `held` where nothing happened before all were told to stop.
async fn weigh(to: &str, host: &str, bytes: usize, stop: &Path) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        if bytes > 0 {
            let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", bytes + 1);
            stream.write_all(head.as_bytes()).await?;
            // The answer may come before all is sent: what is left is not sent then.
            let _ = stream.write_all(&vec![b'x'; bytes]).await;
        }
        let (status, _) = head_of(&mut BufReader::new(stream)).await?;
        io::Result::Ok(status.to_string())
    };
    let stopped = async {
        while !stop.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        end = talk => end.unwrap_or_else(|_| "closed".to_owned()),
        () = stopped => "held".to_owned(),
    }
}

fn run<T>(story: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, story))
}
