//! Small services and tools for stories.
//!
//! - `lab-service [ADDRESS:]PORT TEXT` answers every HTTP/1.1 request with `TEXT` and a newline, on loopback where no
//!   address is given. A path `/status/NNN` answers with that status; `/echo` answers with the request's head, `/served` with how
//!   many requests were answered before. Keeps connections alive.
//! - `lab-service slow MILLISECONDS [ADDRESS:]PORT TEXT` does the same, and needs so long for each answer, one at a time.
//! - `lab-service callers HOST:PORT COUNT SECONDS` is many callers at once, and counts their answers: see the module.
//! - `lab-service dns ADDRESS:PORT FILE` answers questions from a file: see the module.
//! - `lab-service echo ADDRESS:PORT` sends the first line of each connection back and closes it.
//! - `lab-service grpc ADDRESS:PORT`, `websocket ADDRESS:PORT`, `mail ADDRESS:PORT` speak those protocols; `grpc-call` and
//!   `websocket-call HOST:PORT` are their callers, which know nothing of a mesh: see the modules.
//! - `lab-service steady HOST:PORT NAME RATE STOP` and `crowd HOST:PORT NAME COUNT BYTES STOP` are callers for stories about
//!   load, until a file STOP exists: see the module.
//! - `lab-service load HOST:PORT RATE SECONDS [STOP]` asks at a steady rate and counts what fails, until a file STOP exists.
//! - `lab-service capture FILE` writes every frame that any interface but loopback sees into a file. (`tcpdump` would do,
//!   but insists on becoming another user, which a user namespace with one user does not allow.)

mod callers;
mod crowd;
mod dns;
mod grpc;
mod load;
mod mail;
mod websocket;

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-service: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Prints a line; a reader that has gone is no trouble of ours.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn run(words: &[&str]) -> std::io::Result<()> {
    match words {
        ["capture", file] => capture(file),
        ["echo", address] => each_connection(address, echo),
        ["load", to, rate, seconds, stop @ ..] => {
            let (rate, seconds) =
                (rate.parse().map_err(Error::other)?, seconds.parse().map_err(Error::other)?);
            load::run(to, rate, seconds, stop.first().copied())
        }
        ["mail", address] => each_connection(address, mail::serve),
        ["websocket", address] => each_connection(address, websocket::serve),
        ["websocket-call", to] => websocket::call(to),
        ["callers", to, callers, seconds] => {
            callers::run(to, callers.parse().map_err(Error::other)?, seconds.parse().map_err(Error::other)?)
        }
        ["slow", milliseconds, address, text] => {
            let (text, wait) = ((*text).to_owned(), milliseconds.parse().map_err(Error::other)?);
            each_connection(address, move |stream| {
                serve(stream, &text, std::time::Duration::from_millis(wait))
            })
        }
        ["dns", address, file] => dns::serve(address, file),
        ["grpc", address] => grpc::serve(address),
        ["grpc-call", to, messages] => grpc::call(to, messages.parse().map_err(Error::other)?),
        ["steady", to, host, rate, stop] => {
            crowd::steady(to, host, rate.parse().map_err(Error::other)?, stop)
        }
        ["crowd", to, host, count, bytes, stop] => {
            let number = |text: &str| text.parse().map_err(Error::other);
            crowd::crowd(to, host, number(count)?, number(bytes)?, stop)
        }
        [address, text] => {
            let text = (*text).to_owned();
            each_connection(address, move |stream| serve(stream, &text, std::time::Duration::ZERO))
        }
        _ => Err(Error::other(
            "usage: lab-service [ADDRESS:]PORT TEXT | slow MILLISECONDS [ADDRESS:]PORT TEXT | callers HOST:PORT COUNT SECONDS | dns ADDRESS:PORT FILE | echo|grpc|mail|websocket ADDRESS:PORT | grpc-call HOST:PORT MESSAGES | websocket-call HOST:PORT | steady HOST:PORT NAME RATE STOP | crowd HOST:PORT NAME COUNT BYTES STOP | capture FILE | load HOST:PORT RATE SECONDS [STOP]",
        )),
    }
}

fn each_connection(
    address: &str,
    talk: impl Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
) -> std::io::Result<()> {
    let address = match address.parse::<u16>() {
        Ok(port) => (Ipv4Addr::LOCALHOST, port).into(),
        Err(_) => address.parse::<SocketAddr>().map_err(Error::other)?,
    };
    for stream in TcpListener::bind(address)?.incoming() {
        let (stream, talk) = (stream?, talk.clone());
        std::thread::spawn(move || drop(talk(stream)));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    stream.write_all(line.as_bytes())
}

fn capture(file: &str) -> std::io::Result<()> {
    let every_protocol = i32::from(ETH_P_ALL.to_be());
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every_protocol)))?;
    // A frame that waits here longer than its burst is lost; 16 MiB holds all that a story sends.
    socket.set_recv_buffer_size(16 << 20)?;
    let mut file = std::fs::File::create(file)?;
    let mut frame = vec![0; 1 << 17];
    loop {
        let length = socket.read(&mut frame)?;
        let is_loopback = frame[..length].iter().take(12).all(|byte| *byte == 0);
        if !is_loopback {
            file.write_all(&frame[..length])?;
        }
    }
}

/// Frames of every protocol, in both directions. Source: `linux/if_ether.h`.
const ETH_P_ALL: u16 = 3;

/// Requests answered by this service.
static SERVED: AtomicU64 = AtomicU64::new(0);

fn serve(stream: TcpStream, text: &str, wait: std::time::Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some(head) = read_head(&mut reader)? else { return Ok(()) };
        let length = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<u64>().ok()
            })
            .unwrap_or(0);
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        let path = head.split(' ').nth(1).unwrap_or("/");
        let status = path.strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(200_u16);
        let before = SERVED.fetch_add(1, Ordering::Relaxed);
        let body = match path {
            "/echo" => head.clone(),
            "/served" => before.to_string(),
            _ => format!("{text}\n"),
        };
        if !wait.is_zero() {
            let _one_at_a_time = WORKING.lock();
            std::thread::sleep(wait);
        }
        write!(writer, "HTTP/1.1 {status} Answer\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}

/// Held while an answer is being made, where that takes time.
static WORKING: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn read_head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 || head.len() > 65_536 {
            return Ok(None);
        }
        if &head[before..] == "\r\n" {
            return Ok(Some(head));
        }
    }
}
