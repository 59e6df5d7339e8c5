//! Whether a condition of a rule holds for a packet of which not everything is known.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::Packet;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// It asks for what is not known.
    Perhaps,
}

impl Holds {
    pub(super) fn of(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Perhaps => Self::Perhaps,
        }
    }
}

/// What is known of one thing that a rule may look at.
enum Known {
    Number(u64),
    Word(&'static str),
    Address(Ipv4Addr),
    /// Anything but this word.
    Other(&'static str),
}

/// Whether an expression lets the packet on to the next one; what is no condition always does.
pub(super) fn holds(expression: &Value, packet: &Packet) -> Holds {
    let Some((name, argument)) = expression.as_object().and_then(|object| object.iter().next()) else {
        return Holds::Yes;
    };
    match name.as_str() {
        "match" => matches(argument, packet),
        "limit" | "quota" | "ct count" | "socket" | "osf" => Holds::Perhaps,
        _ => Holds::Yes,
    }
}

fn matches(argument: &Value, packet: &Packet) -> Holds {
    let (left, right) = (&argument["left"], &argument["right"]);
    match argument["op"].as_str() {
        Some("==" | "in") => is_equal(left, right, packet),
        Some("!=") => is_equal(left, right, packet).not(),
        _ => Holds::Perhaps,
    }
}

/// Whether the thing that `left` names is `right`: a value, a range, a prefix, a set.
pub(super) fn is_equal(left: &Value, right: &Value, packet: &Packet) -> Holds {
    if let Some(absent) = other_protocol(left, packet) {
        return absent;
    }
    let Some(known) = known(left, packet) else { return Holds::Perhaps };
    is_one_of(&known, right)
}

/// A field of a header that the packet does not have makes the whole match fail.
fn other_protocol(left: &Value, packet: &Packet) -> Option<Holds> {
    let of = left.pointer("/payload/protocol")?.as_str()?;
    let has = matches!(of, "ip" | "th" | "ether") || of == packet.protocol;
    (!has).then_some(Holds::No)
}

fn known(left: &Value, packet: &Packet) -> Option<Known> {
    if let Some([inner, mask]) = left.get("&").and_then(Value::as_array).map(Vec::as_slice) {
        return match known(inner, packet)? {
            Known::Number(number) => Some(Known::Number(number & number_of(mask)?)),
            _ => None,
        };
    }
    let text = |path: &str| left.pointer(path).and_then(Value::as_str);
    match (text("/payload/field"), text("/meta/key"), text("/ct/key")) {
        (Some("dport"), ..) => Some(Known::Number(packet.port.into())),
        (Some("daddr"), ..) => packet.to.map(Known::Address),
        (Some("protocol"), ..) | (_, Some("l4proto"), _) => Some(Known::Word(packet.protocol)),
        (_, Some("nfproto"), _) => Some(Known::Word("ipv4")),
        (_, Some("protocol"), _) => Some(Known::Word("ip")),
        (_, Some("mark"), _) => Some(Known::Number(packet.mark.into())),
        (_, Some("iifname" | "iif"), _) => match packet.in_by_lo {
            Some(true) => Some(Known::Word("lo")),
            Some(false) => Some(Known::Other("lo")),
            None => Some(Known::Word("")),
        },
        (_, _, Some("state")) => Some(Known::Word("new")),
        (_, _, Some("mark")) => Some(Known::Number(0)),
        _ => None,
    }
}

fn is_one_of(known: &Known, right: &Value) -> Holds {
    if let Some(items) = right.get("set").and_then(Value::as_array).or_else(|| right.as_array()) {
        let each = || items.iter().map(|item| is_one_of(known, item));
        if each().any(|holds| holds == Holds::Yes) {
            return Holds::Yes;
        }
        return if each().any(|holds| holds == Holds::Perhaps) { Holds::Perhaps } else { Holds::No };
    }
    if let Some(element) = right.pointer("/elem/val") {
        return is_one_of(known, element);
    }
    match known {
        Known::Number(number) => match range(right) {
            Some((first, last)) => Holds::of((first..=last).contains(number)),
            None => number_of(right).map_or(Holds::Perhaps, |right| Holds::of(*number == right)),
        },
        Known::Address(address) => within(*address, right),
        Known::Word(word) => match right {
            // `@name` is a set that is not printed here.
            Value::String(right) if right.starts_with('@') => Holds::Perhaps,
            Value::String(right) => Holds::of(named(right, word)),
            Value::Number(number) => Holds::of(number.as_u64() == number_of_protocol(word)),
            _ => Holds::Perhaps,
        },
        Known::Other(word) => match right {
            Value::String(right) if right == word => Holds::No,
            _ => Holds::Perhaps,
        },
    }
}

/// `eth*` stands for many interfaces.
fn named(right: &str, word: &str) -> bool {
    right.strip_suffix('*').map_or_else(|| right == word, |begin| word.starts_with(begin))
}

fn range(right: &Value) -> Option<(u64, u64)> {
    match right.get("range")?.as_array()?.as_slice() {
        [first, last] => Some((number_of(first)?, number_of(last)?)),
        _ => None,
    }
}

fn within(address: Ipv4Addr, right: &Value) -> Holds {
    let parse = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
    if let Some(prefix) = right.get("prefix") {
        let length = prefix["len"].as_u64().and_then(|length| u32::try_from(length).ok()).unwrap_or(32);
        let Some(net) = parse(&prefix["addr"]) else { return Holds::Perhaps };
        let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
        return Holds::of(u32::from(net) & mask == u32::from(address) & mask);
    }
    parse(right).map_or(Holds::Perhaps, |right| Holds::of(right == address))
}

fn number_of(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let text = value.as_str()?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    })
}

fn number_of_protocol(word: &str) -> Option<u64> {
    match word {
        "tcp" => Some(6),
        "udp" => Some(17),
        _ => None,
    }
}
