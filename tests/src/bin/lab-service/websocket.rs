//! WebSocket, both ends: RFC 6455 with short text frames and the key of its own example.

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::TcpStream;

/// Greets, then sends every text back until the caller closes.
pub(crate) fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let head = head(&mut reader)?;
    if !head.to_ascii_lowercase().contains("upgrade: websocket") || !head.contains(KEY) {
        return stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    }
    let accept = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(accept.as_bytes())?;
    stream.write_all(&frame(TEXT, b"welcome", None)?)?;
    loop {
        let (kind, payload) = receive(&mut reader)?;
        stream.write_all(&frame(kind, &payload, None)?)?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}

/// Opens a WebSocket, says two things, and prints what comes back, a line each.
pub(crate) fn call(to: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let open = format!(
        "GET /chat HTTP/1.1\r\nHost: {to}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(open.as_bytes())?;
    let answer = head(&mut reader)?;
    if !answer.starts_with("HTTP/1.1 101 ") || !answer.contains(ACCEPT) {
        return Err(Error::other(answer));
    }
    print(&receive(&mut reader)?.1);
    for text in ["one", "two"] {
        stream.write_all(&frame(TEXT, text.as_bytes(), Some(MASK))?)?;
        print(&receive(&mut reader)?.1);
    }
    stream.write_all(&frame(CLOSE, b"", Some(MASK))?)?;
    let (kind, _) = receive(&mut reader)?;
    print(if kind == CLOSE { b"closed" } else { b"not closed" });
    // The server ends the connection, and that end must come through, too.
    if reader.read(&mut [0])? != 0 {
        return Err(Error::other("bytes after the close"));
    }
    Ok(())
}

fn print(text: &[u8]) {
    crate::say(&String::from_utf8_lossy(text));
}

fn head(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(Error::other(format!("the head ended early: {head}")));
        }
    }
    Ok(head)
}

fn frame(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> std::io::Result<Vec<u8>> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126);
    let length = length.ok_or_else(|| Error::other("a frame of the lab is short"))?;
    let mut bytes = vec![0x80 | kind, length | if mask.is_some() { 0x80 } else { 0 }];
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Ok(bytes)
}

fn receive(reader: &mut impl Read) -> std::io::Result<(u8, Vec<u8>)> {
    let mut start = [0; 2];
    reader.read_exact(&mut start)?;
    let mut mask = [0; 4];
    if start[1] & 0x80 != 0 {
        reader.read_exact(&mut mask)?;
    }
    let mut payload = vec![0; usize::from(start[1] & 0x7f)];
    reader.read_exact(&mut payload)?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((start[0] & 0x0f, payload))
}

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const MASK: [u8; 4] = [7, 77, 111, 211];
/// Key and answer of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
