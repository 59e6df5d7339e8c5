//! A small HTTP/1.1 service for stories: `lab-service PORT TEXT` answers every request with `TEXT` and a newline.
//!
//! A path `/status/NNN` answers with that status; `/echo` answers with the request's head. Keeps connections alive.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-service: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(port), Some(text)) =
        (arguments.next().and_then(|port| port.parse::<u16>().ok()), arguments.next())
    else {
        return Err(std::io::Error::other("usage: lab-service PORT TEXT"));
    };
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    for stream in listener.incoming() {
        let (stream, text) = (stream?, text.clone());
        std::thread::spawn(move || drop(serve(stream, &text)));
    }
    Ok(())
}

fn serve(stream: TcpStream, text: &str) -> std::io::Result<()> {
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
        let body = if path == "/echo" { head.clone() } else { format!("{text}\n") };
        write!(writer, "HTTP/1.1 {status} Answer\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}

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
