//! A resolver whose answers a story changes as it goes.

use std::io::Result;
use std::net::{Ipv4Addr, UdpSocket};

/// Answers questions for A from a file that is read anew each time: `NAME TTL ADDRESS…` on a line. Other names do not
/// exist; while the file says `fail`, every answer is SERVFAIL.
pub(crate) fn serve(address: &str, file: &str) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut buffer = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let zones = std::fs::read_to_string(file)?;
        if let Some(reply) = answer(&buffer[..length], &zones) {
            socket.send_to(&reply, from)?;
        }
    }
}

/// RFC 1035, section 4: header, the question, then the answers.
fn answer(question: &[u8], zones: &str) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut name = Vec::new();
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let name = name.join(".");
    let found = zones.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = found.into_iter().find(|words| words.first() == Some(&name.as_str()));
    let addresses: Vec<Ipv4Addr> =
        found.iter().flat_map(|words| words.iter().skip(2)).filter_map(|word| word.parse().ok()).collect();
    let ttl: u32 = found.as_ref().and_then(|words| words.get(1)?.parse().ok()).unwrap_or(0);
    let code = match (zones.starts_with("fail"), &found) {
        (true, _) => 2,
        (false, None) => 3,
        _ => 0,
    };
    let given: &[Ipv4Addr] = if kind == A && code == 0 { &addresses } else { &[] };
    let mut reply = question.get(..2)?.to_vec();
    // A response, recursion wanted and to be had.
    reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(given.len()).ok()?, 0, 0, 0, 0]);
    reply.extend(question.get(12..at + 4)?);
    for address in given {
        reply.extend([0xc0, 12, 0, 1, 0, 1]);
        reply.extend(ttl.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

const A: u16 = 1;
