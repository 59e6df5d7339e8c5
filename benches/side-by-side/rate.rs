//! Requests of HTTP/1.1 at a fixed rate, whatever comes back: latency counts from when a request should have been sent.
//!
//! A generator that waits for an answer before it sends the next request sends fewer of them while a proxy stands still,
//! and so hides what it measures. Here each connection has a timetable; what is late is late. Standard library only:
//! `rustc -O rate.rs`.
//!
//! `rate PORT HOST PATH REQUESTS_PER_SECOND CONNECTIONS SECONDS`, then lines of headers. Prints every latency in
//! microseconds, one a line.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, host, path, rate, connections, seconds, headers @ ..] = arguments.as_slice() else {
        panic!("rate PORT HOST PATH REQUESTS_PER_SECOND CONNECTIONS SECONDS [HEADER…]")
    };
    let port: u16 = port.parse().expect("a port");
    let (rate, connections): (f64, u32) = (rate.parse().expect("a rate"), connections.parse().expect("a number"));
    let seconds: f64 = seconds.parse().expect("seconds");
    let fields: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    let every = Duration::from_secs_f64(f64::from(connections) / rate);
    let begin = Instant::now() + Duration::from_millis(200);
    let end = begin + Duration::from_secs_f64(seconds);
    let threads: Vec<_> = (0..connections)
        .map(|number| {
            let request = request.clone();
            // Spread over one interval, so that not all send at once.
            let first = begin + every * number / connections;
            std::thread::spawn(move || timetable(port, request.as_bytes(), first, every, end).expect("a connection"))
        })
        .collect();
    let mut out = String::new();
    for thread in threads {
        for latency in thread.join().expect("a thread") {
            out += &format!("{}\n", latency.as_micros());
        }
    }
    io::stdout().write_all(out.as_bytes()).expect("a reader");
}

/// Sends by the timetable of one connection.
fn timetable(port: u16, request: &[u8], first: Instant, every: Duration, end: Instant) -> io::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let (mut due, mut latencies) = (first, Vec::new());
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request)?;
        read_answer(&mut stream)?;
        latencies.push(due.elapsed());
        due += every;
    }
    Ok(latencies)
}

/// Reads an answer with a `Content-Length` to its end; anything but 200 is an error.
fn read_answer(stream: &mut TcpStream) -> io::Result<()> {
    let (mut buffer, mut have) = ([0; 8 * 1024], 0);
    loop {
        let count = stream.read(&mut buffer[have..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += count;
        let text = String::from_utf8_lossy(&buffer[..have]).to_ascii_lowercase();
        let Some(head) = text.find("\r\n\r\n") else { continue };
        if !text.starts_with("http/1.1 200") {
            return Err(io::Error::other(text));
        }
        let length = text[..head].split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        if have >= head + 4 + length {
            return Ok(());
        }
    }
}
