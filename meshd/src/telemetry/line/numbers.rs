//! Numbers, addresses and times as text, as `Display` writes them but for what that costs: a line has two dozen of them.
//!
//! What has few bytes is put down with as many as it may have at most, and cut: a copy of a known length is two
//! instructions, one of any length a call.

use std::cell::Cell;
use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::route::template::iso_8601;

/// Writes what is rare enough to be written as it comes.
pub(super) fn display(value: impl Display, line: &mut Vec<u8>) {
    // Memory does not refuse.
    let _ = write!(line, "{value}");
}

/// Writes a number.
pub(super) fn digits(number: u64, line: &mut Vec<u8>) {
    match u16::try_from(number) {
        Ok(small @ 0..10) => line.push(b'0' + small.to_le_bytes()[0]),
        Ok(small) => {
            let (text, length) = five(small);
            short(&text, length, line);
        }
        Err(_) => display(number, line),
    }
}

/// Writes an address without a port.
pub(super) fn host(ip: IpAddr, line: &mut Vec<u8>) {
    let IpAddr::V4(ip) = ip else { return display(ip, line) };
    let (text, length) = dotted(ip);
    short(&text, length - 1, line);
}

/// Writes an address with its port.
pub(super) fn socket(address: SocketAddr, line: &mut Vec<u8>) {
    let SocketAddr::V4(address) = address else { return display(address, line) };
    host((*address.ip()).into(), line);
    line.push(b':');
    digits(address.port().into(), line);
}

/// Writes a time as ISO 8601. Its seconds are those of the line before, most times.
pub(super) fn iso(at: SystemTime, line: &mut Vec<u8>) {
    thread_local! { static LAST: Cell<(u64, [u8; ISO])> = const { Cell::new((u64::MAX, [0; ISO])) }; }
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = LAST.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let whole = iso_8601(second.saturating_mul(1_000));
        text.copy_from_slice(whole.as_bytes().get(..ISO).unwrap_or(&[b'-'; ISO]));
        LAST.set((second, text));
    }
    // Thousands of a second, below a thousand.
    let millis = u16::try_from(since.subsec_millis()).unwrap_or_default();
    let [ten, one] = pair(millis % 100);
    text[SECONDS + 1..SECONDS + 4].copy_from_slice(&[pair(millis / 100)[1], ten, one]);
    line.extend_from_slice(&text);
}

/// Bytes of `2026-11-28T08:30:16.123Z`.
pub(super) const ISO: usize = 24;
/// Bytes of its seconds.
const SECONDS: usize = 19;

/// Adds the beginning of a text.
fn short<const MOST: usize>(text: &[u8; MOST], length: usize, line: &mut Vec<u8>) {
    let begin = line.len();
    line.extend_from_slice(text);
    line.truncate(begin + length);
}

/// Writes a number of up to five digits, and says how many it has.
fn five(number: u16) -> ([u8; 5], usize) {
    let ([thousand, hundred], [ten, one]) = (pair(number / 100 % 100), pair(number % 100));
    match number {
        0..10 => ([one, 0, 0, 0, 0], 1),
        10..100 => ([ten, one, 0, 0, 0], 2),
        100..1_000 => ([hundred, ten, one, 0, 0], 3),
        1_000..10_000 => ([thousand, hundred, ten, one, 0], 4),
        10_000.. => ([pair(number / 10_000)[1], thousand, hundred, ten, one], 5),
    }
}

/// Both digits of a number below a hundred.
fn pair(number: u16) -> [u8; 2] {
    PAIRS[usize::from(number)]
}

/// Each number below a hundred, with two digits.
static PAIRS: [[u8; 2]; 100] = {
    let mut all = [[0; 2]; 100];
    let mut number = 0_u8;
    while number < 100 {
        all[number as usize] = [b'0' + number / 10, b'0' + number % 10];
        number += 1;
    }
    all
};

/// Writes an address with a dot behind each octet, and says how long that is.
fn dotted(ip: Ipv4Addr) -> ([u8; 16], usize) {
    let (mut text, mut length) = (0_u128, 0);
    for octet in ip.octets() {
        text |= u128::from(u32::from_le_bytes(OCTETS[usize::from(octet)])) << (8 * length);
        length += 2 + usize::from(octet > 9) + usize::from(octet > 99);
    }
    (text.to_le_bytes(), length)
}

/// Each octet as text, with a dot behind it.
static OCTETS: [[u8; 4]; 256] = {
    let mut all = [[0; 4]; 256];
    let mut octet = 0_u8;
    loop {
        let [hundred, ten, one] = [b'0' + octet / 100, b'0' + octet / 10 % 10, b'0' + octet % 10];
        all[octet as usize] = match octet {
            0..10 => [one, b'.', 0, 0],
            10..100 => [ten, one, b'.', 0],
            _ => [hundred, ten, one, b'.'],
        };
        if octet == u8::MAX {
            break all;
        }
        octet += 1;
    }
};
