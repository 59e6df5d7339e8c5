//! The header with which a load balancer says who its caller is, before that caller's own bytes: PROXY protocol 1 and 2.
//!
//! Only what comes from a load balancer that the host's owner names is read as one: anybody can write a header.
//!
//! Source: the PROXY protocol, sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header; more must come.
    More,
    /// A header of so many bytes. `source`: where the caller is; `None`: the load balancer speaks for itself, or cannot say.
    Header {
        /// Where the caller is.
        source: Option<SocketAddr>,
        /// How many bytes the header has.
        length: usize,
    },
    /// No header.
    Other,
}

/// Reads a header. Never looks at more than [`MAX_BYTES`].
pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(SIGNATURE) || (bytes.len() < SIGNATURE.len() && SIGNATURE.starts_with(bytes)) {
        return version_2(bytes);
    }
    let begins = bytes.starts_with(PREFIX) || (bytes.len() < PREFIX.len() && PREFIX.starts_with(bytes));
    if begins { version_1(bytes) } else { Parsed::Other }
}

fn version_1(bytes: &[u8]) -> Parsed {
    let line = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < LONGEST_LINE { Parsed::More } else { Parsed::Other };
    };
    let Ok(text) = std::str::from_utf8(&line[PREFIX.len()..end]) else { return Parsed::Other };
    let length = end + 2;
    // What follows UNKNOWN is to be ignored.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Parsed::Header { source: None, length };
    }
    let words: Vec<&str> = text.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = words.as_slice() else {
        return Parsed::Other;
    };
    let addresses = match *family {
        "TCP4" => [source, destination].map(|text| text.parse::<Ipv4Addr>().map(IpAddr::from).ok()),
        "TCP6" => [source, destination].map(|text| text.parse::<Ipv6Addr>().map(IpAddr::from).ok()),
        _ => return Parsed::Other,
    };
    match (addresses, port(source_port), port(destination_port)) {
        ([Some(ip), Some(_)], Some(port), Some(_)) => {
            Parsed::Header { source: Some(SocketAddr::new(ip, port)), length }
        }
        _ => Parsed::Other,
    }
}

/// Decimal digits and nothing else, without zeroes before them.
fn port(text: &str) -> Option<u16> {
    let sound = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if sound { text.parse().ok() } else { None }
}

fn version_2(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.get(..HEAD) else { return Parsed::More };
    let (command, family) = (head[12], head[13]);
    let rest = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let length = HEAD + rest;
    let (version, command) = (command >> 4, command & 0xf);
    if version != 2 || command > 1 || length > MAX_BYTES {
        return Parsed::Other;
    }
    let Some(body) = bytes.get(HEAD..length) else { return Parsed::More };
    // LOCAL: the load balancer looks whether we are well.
    if command == 0 {
        return Parsed::Header { source: None, length };
    }
    let number = |at: usize| body.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let source = match family {
        0x11 => body.first_chunk::<4>().map(|ip| IpAddr::from(*ip)).zip(number(8)),
        0x21 => body.first_chunk::<16>().map(|ip| IpAddr::from(*ip)).zip(number(32)),
        // Of a family that is not ours.
        _ => return Parsed::Header { source: None, length },
    };
    let shortest = if family == 0x11 { 12 } else { 36 };
    match source.filter(|_| rest >= shortest) {
        Some((ip, port)) => Parsed::Header { source: Some(SocketAddr::new(ip, port)), length },
        None => Parsed::Other,
    }
}

/// The longest header that is read; with what a load balancer adds of its own (TLVs) one has some hundred bytes.
pub const MAX_BYTES: usize = 2_048;
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const PREFIX: &[u8] = b"PROXY ";
const HEAD: usize = 16;
/// Version 1 has no longer line, with its end.
const LONGEST_LINE: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, length: usize) -> Parsed {
        Parsed::Header { source: Some(source.parse().expect("an address")), length }
    }

    #[test]
    fn version_1_says_where_the_caller_is() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(line), header("192.0.2.7:56324", 45));
        assert_eq!(parse(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n"), header("[2001:db8::7]:1", 32));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Parsed::Header { source: None, length: 15 });
        assert_eq!(parse(b"PROXY UNKNOWN a b c\r\nx"), Parsed::Header { source: None, length: 21 });
    }

    #[test]
    fn what_is_no_header_is_none() {
        let long = [b"PROXY ".as_slice(), &[b'x'; 200]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n".as_slice(),
            b"PROXYx",
            b"proxy TCP4",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
            b"PROXY TCP4 192.0.2.7  198.51.100.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
            b"PROXY TCP5 192.0.2.7 198.51.100.1 1 2\r\n",
            b"PROXY \xff\r\n",
            &long,
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\x01\x02\x03\x04",
            b"\x16\x03\x01",
        ] {
            assert_eq!(parse(bytes), Parsed::Other, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn version_2_says_where_the_caller_is_and_more_is_skipped() {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x21, 0x11, 0, 12 + 5, 192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 187, 4, 0, 2, 9, 9]);
        assert_eq!(parse(&bytes), header("192.0.2.7:56324", 33));
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20, 0, 0, 0]);
        assert_eq!(parse(&bytes), Parsed::Header { source: None, length: 16 });
    }

    #[test]
    fn every_beginning_of_a_header_waits_for_more() {
        let mut six = SIGNATURE.to_vec();
        six.extend([0x21, 0x21, 0, 36]);
        six.extend([7; 36]);
        for whole in [b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".as_slice(), &six] {
            for length in 0..whole.len() {
                assert_eq!(parse(&whole[..length]), Parsed::More, "{length}");
            }
            assert!(matches!(parse(whole), Parsed::Header { source: Some(_), .. }));
        }
    }
}
