//! A request as a line of an access log.
//!
//! Source: Envoy `SubstitutionFormatter`, `JsonFormatterImpl`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::plan::Via;
use mesh_core::route::template::protocol;
use mesh_proto::log_format::{LogFormat, Operator, Part, ResponseField, Template, TimePiece, strftime};

use super::record::shown;
use super::{Goal, Record};
use numbers::{ISO, digits, display, host, iso, socket};

mod numbers;

/// Adds a line, with its end.
pub(super) fn write(format: &LogFormat, record: &Record, line: &mut Vec<u8>) {
    match format {
        LogFormat::Text(template) => text(template, record, line),
        LogFormat::Json(members) => json(members, record, line),
    }
    line.push(b'\n');
}

impl Record {
    /// Returns what stands for an operator; empty where that is not known.
    pub(crate) fn shown(&self, operator: &Operator) -> String {
        let mut value = Vec::with_capacity(64);
        let mut out = Out { line: &mut value, most: None, is_escaped: false, is_harmless: false };
        put(operator, self, &mut out);
        String::from_utf8(value).unwrap_or_default()
    }
}

fn text(template: &Template, record: &Record, line: &mut Vec<u8>) {
    // Asked once, of all that others have said, instead of for each.
    let is_harmless = is_harmless(record.texts.all());
    let mut out = Out { line, most: None, is_escaped: true, is_harmless };
    for part in template.parts() {
        match part {
            Part::Text(text) => between(text.as_bytes(), out.line),
            Part::Operator(operator, most) => {
                out.most = *most;
                if !put(operator, record, &mut out) {
                    out.line.push(b'-');
                }
            }
        }
    }
}

/// A member that is one operator keeps its type, as in Envoy; what is not known is `null`.
fn json(members: &[(String, Template)], record: &Record, line: &mut Vec<u8>) {
    let mut value = Vec::new();
    line.push(b'{');
    for (at, (name, template)) in members.iter().enumerate() {
        if at > 0 {
            line.push(b',');
        }
        quoted(name.as_bytes(), line);
        line.push(b':');
        value.clear();
        if let [Part::Operator(operator, most)] = template.parts() {
            let mut out = Out { line: &mut value, most: *most, is_escaped: false, is_harmless: false };
            if !put(operator, record, &mut out) {
                line.extend_from_slice(b"null");
            } else if is_number(operator) {
                line.extend_from_slice(&value);
            } else {
                quoted(&value, line);
            }
        } else {
            text(template, record, &mut value);
            quoted(&value, line);
        }
    }
    line.push(b'}');
}

/// Writes what stands between two values: one to three bytes, most times, which are put down at once.
fn between(text: &[u8], line: &mut Vec<u8>) {
    match *text {
        [one] => line.push(one),
        [one, two] => line.extend_from_slice(&[one, two]),
        [one, two, three] => line.extend_from_slice(&[one, two, three]),
        _ => line.extend_from_slice(text),
    }
}

fn is_number(operator: &Operator) -> bool {
    matches!(
        operator,
        Operator::ResponseCode
            | Operator::BytesReceived
            | Operator::BytesSent
            | Operator::Duration
            | Operator::ResponseDuration
            | Operator::ResponseTxDuration
            | Operator::UpstreamRequestAttemptCount
            | Operator::GrpcStatusNumber
            | Operator::Revision
    )
}

/// Writes a text as JSON has it. Source: RFC 8259 section 7.
fn quoted(text: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    if text.iter().all(|byte| *byte >= b' ' && !matches!(byte, b'"' | b'\\')) {
        line.extend_from_slice(text);
    } else {
        for byte in text {
            let _ = match byte {
                b'"' | b'\\' => line.write_all(&[b'\\', *byte]),
                0..b' ' => write!(line, "\\u{byte:04x}"),
                _ => line.write_all(&[*byte]),
            };
        }
    }
    line.push(b'"');
}

/// Where a value is written.
struct Out<'o> {
    line: &'o mut Vec<u8>,
    /// Bytes that are kept of it.
    most: Option<usize>,
    /// Whether nothing in it may fake another field or line.
    is_escaped: bool,
    /// Whether nothing among the texts of the record could.
    is_harmless: bool,
}

impl Out<'_> {
    /// Writes a text of the record, as it came.
    fn said(&mut self, bytes: &[u8]) -> bool {
        if self.is_harmless && self.most.is_none() {
            self.line.extend_from_slice(bytes);
            return true;
        }
        self.text(&shown(bytes))
    }

    /// Writes what somebody else has said.
    fn text(&mut self, text: &str) -> bool {
        let text = cut(text, self.most);
        if !self.is_escaped || is_harmless(text.as_bytes()) {
            self.line.extend_from_slice(text.as_bytes());
            return true;
        }
        for c in text.chars() {
            if c == '"' || c.is_control() {
                display(c.escape_default(), self.line);
            } else {
                display(c, self.line);
            }
        }
        true
    }

    fn known(&mut self, text: &str) -> bool {
        !text.is_empty() && self.text(text)
    }

    /// Writes one of our own words.
    fn word(&mut self, word: &str) -> bool {
        self.kept(|line| line.extend_from_slice(word.as_bytes()))
    }

    fn number(&mut self, number: u64) -> bool {
        self.kept(|line| digits(number, line))
    }

    fn millis(&mut self, time: Duration) -> bool {
        self.number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    fn address(&mut self, address: Option<SocketAddr>) -> bool {
        address.is_some_and(|address| self.kept(|line| socket(address, line)))
    }

    fn ip(&mut self, address: Option<SocketAddr>) -> bool {
        address.is_some_and(|address| self.kept(|line| host(address.ip(), line)))
    }

    /// Writes what needs no escaping.
    fn kept(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let begin = self.line.len();
        write(self.line);
        if let Some(most) = self.most {
            let whole = std::str::from_utf8(&self.line[begin..]).unwrap_or_default();
            let end = begin + cut(whole, Some(most)).len();
            self.line.truncate(end);
        }
        true
    }
}

/// Whether a text is nothing but printable ASCII without quotes. Eight bytes are looked at at once; the last eight once
/// more where they are not whole.
fn is_harmless(text: &[u8]) -> bool {
    let (eights, rest) = text.as_chunks::<8>();
    let odd = eights.iter().fold(0, |odd, eight| odd | odd_of(*eight));
    match text.last_chunk() {
        Some(last) => odd | odd_of(*last) == 0,
        None => rest.iter().all(|byte| matches!(byte, b' ' | b'!' | b'#'..=b'~')),
    }
}

/// Not 0 where one of eight bytes is below a space, a quote, or above `~`. Source: "Bit Twiddling Hacks", `hasless`.
fn odd_of(eight: [u8; 8]) -> u64 {
    const EACH: u64 = u64::MAX / 0xff;
    let all = u64::from_ne_bytes(eight);
    let below = |all: u64, least: u64| all.wrapping_sub(EACH * least) & !all;
    let (quote, delete) = (all ^ (EACH * 0x22), all ^ (EACH * 0x7f));
    (all | below(all, 0x20) | below(quote, 1) | below(delete, 1)) & (EACH * 0x80)
}

fn cut(text: &str, most: Option<usize>) -> &str {
    let Some(most) = most.filter(|most| *most < text.len()) else { return text };
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Writes a value. `false`: it is not known, and nothing was written.
fn put(operator: &Operator, record: &Record, out: &mut Out<'_>) -> bool {
    match operator {
        Operator::Request(field, other) => {
            let found = record.asked(field).or_else(|| record.asked(other.as_ref()?));
            found.is_some_and(|value| out.said(value))
        }
        Operator::Response(field, other) => {
            response(field, record, out) || other.as_ref().is_some_and(|other| response(other, record, out))
        }
        Operator::StartTime(None) => out.kept(|line| iso(record.started, line)),
        Operator::StartTime(Some(format)) => out.kept(|line| time(record.started, format, line)),
        Operator::Protocol => record.method.is_some() && out.word(protocol(record.version)),
        Operator::ResponseCode => out.number(record.status.into()),
        Operator::ResponseCodeDetails => details(record, out),
        Operator::ResponseFlags if record.flags.is_empty() => out.word("-"),
        Operator::ResponseFlags => out.kept(|line| display(record.flags, line)),
        Operator::BytesReceived => out.number(record.received_bytes),
        Operator::BytesSent => out.number(record.sent_bytes),
        Operator::Duration => out.millis(record.duration),
        Operator::ResponseDuration => record.upstream_duration.is_some_and(|time| out.millis(time)),
        Operator::ResponseTxDuration => {
            record.upstream_duration.is_some_and(|head| out.millis(record.duration.saturating_sub(head)))
        }
        Operator::RouteName => !record.route().is_empty() && out.said(record.route()),
        Operator::UpstreamHost => record.upstream.as_ref().is_some_and(|via| match via {
            Via::Local(address) | Via::Plain(address) => out.address(Some(*address)),
            other => out.text(&other.to_string()),
        }),
        Operator::UpstreamCluster | Operator::UpstreamClusterRaw => {
            record.goal.is_known() && out.kept(|line| goal(&record.goal, line))
        }
        Operator::UpstreamRequestAttemptCount => out.number(record.attempts.into()),
        Operator::UpstreamLocalAddress => out.address(record.upstream_local),
        Operator::UpstreamTransportFailureReason => {
            record.transport_failure.as_deref().is_some_and(|reason| out.known(reason))
        }
        Operator::DownstreamLocalAddress => out.address(record.downstream_local),
        Operator::DownstreamRemoteAddress => out.address(record.downstream),
        Operator::DownstreamRemoteAddressWithoutPort => out.ip(record.downstream),
        Operator::DownstreamDirectRemoteAddress => out.address(record.direct),
        Operator::DownstreamDirectRemoteAddressWithoutPort => out.ip(record.direct),
        Operator::DownstreamPeerUriSan => record.principal.as_deref().is_some_and(|id| out.known(id)),
        Operator::RequestedServerName => record.server_name.as_deref().is_some_and(|name| out.known(name)),
        Operator::GrpcStatus => record.grpc.is_some_and(|status| out.word(grpc_word(status))),
        Operator::GrpcStatusNumber => record.grpc.is_some_and(|status| out.number(status.into())),
        Operator::TraceId => {
            record.trace.is_some_and(|trace| out.kept(|line| display(format_args!("{trace:032x}"), line)))
        }
        Operator::HostName => out.known(&record.host),
        Operator::Revision => out.number(record.revision),
        // Only Envoy's filters of access say something here: Envoy 1.40 writes nothing either.
        Operator::ConnectionTerminationDetails => false,
    }
}

fn response(field: &ResponseField, record: &Record, out: &mut Out<'_>) -> bool {
    match field {
        ResponseField::ServiceTime => record.upstream_duration.is_some_and(|time| out.millis(time)),
        ResponseField::Status => record.status > 0 && out.number(record.status.into()),
        ResponseField::Header(name) => record.answered(name).is_some_and(|value| out.said(value)),
    }
}

/// As `Display` writes it.
fn goal(goal: &Goal, line: &mut Vec<u8>) {
    let Goal::Cluster(cluster) = goal else { return display(goal, line) };
    line.extend_from_slice(b"outbound|");
    digits(cluster.name.port.into(), line);
    for part in [&cluster.name.subset, &cluster.name.host] {
        line.push(b'|');
        line.extend_from_slice(part.as_bytes());
    }
}

/// Within the braces of Envoy's details stands why the endpoint was not reached.
fn details(record: &Record, out: &mut Out<'_>) -> bool {
    let Some(why) = &record.transport_failure else {
        return !record.details.is_empty() && out.word(record.details);
    };
    match record.details.strip_suffix('}') {
        Some(open) => out.text(&format!("{open}|{why}}}")),
        None => !record.details.is_empty() && out.word(record.details),
    }
}

/// Source: Envoy `Grpc::Utility::grpcStatusToString`.
fn grpc_word(status: u16) -> &'static str {
    const WORDS: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    WORDS.get(usize::from(status)).copied().unwrap_or("InvalidCode")
}

fn time(at: SystemTime, format: &str, line: &mut Vec<u8>) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(pieces) = strftime(format) else { return iso(at, line) };
    let mut whole = Vec::with_capacity(ISO);
    iso(at, &mut whole);
    for piece in pieces {
        let _ = match piece {
            TimePiece::Plain(c) => write!(line, "{c}"),
            TimePiece::Year => line.write_all(&whole[..4]),
            TimePiece::Month => line.write_all(&whole[5..7]),
            TimePiece::Day => line.write_all(&whole[8..10]),
            TimePiece::Hour => line.write_all(&whole[11..13]),
            TimePiece::Minute => line.write_all(&whole[14..16]),
            TimePiece::Second => line.write_all(&whole[17..19]),
            TimePiece::Millis => write!(line, "{:03}", since.subsec_millis()),
            TimePiece::Micros => write!(line, "{:06}", since.subsec_micros()),
            TimePiece::Seconds => write!(line, "{}", since.as_secs()),
            TimePiece::Zone => line.write_all(b"+0000"),
        };
    }
}
