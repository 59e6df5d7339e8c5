//! A request as a line of an access log.
//!
//! Source: Envoy `SubstitutionFormatter`, `JsonFormatterImpl`.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{Display, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::plan::Via;
use mesh_core::route::template::{iso_8601, protocol};
use mesh_proto::log_format::{LogFormat, Operator, Part, Template, TimePiece, strftime};

use super::{Goal, Record};

/// Adds a line, with its end.
pub(super) fn write(format: &LogFormat, record: &Record, line: &mut String) {
    match format {
        LogFormat::Text(template) => text(template, record, line),
        LogFormat::Json(members) => json(members, record, line),
    }
    line.push('\n');
}

impl Record {
    /// Returns what stands for an operator; empty where that is not known.
    pub(crate) fn shown(&self, operator: &Operator) -> String {
        let mut value = String::with_capacity(64);
        put(operator, self, &mut Out { line: &mut value, most: None, is_escaped: false });
        value
    }
}

fn text(template: &Template, record: &Record, line: &mut String) {
    for part in template.parts() {
        match part {
            Part::Text(text) => line.push_str(text),
            Part::Operator(operator, most) => {
                if !put(operator, record, &mut Out { line, most: *most, is_escaped: true }) {
                    line.push('-');
                }
            }
        }
    }
}

/// A member that is one operator keeps its type, as in Envoy; what is not known is `null`.
fn json(members: &[(String, Template)], record: &Record, line: &mut String) {
    let mut value = String::new();
    line.push('{');
    for (at, (name, template)) in members.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        quoted(name, line);
        line.push(':');
        value.clear();
        if let [Part::Operator(operator, most)] = template.parts() {
            let mut out = Out { line: &mut value, most: *most, is_escaped: false };
            if !put(operator, record, &mut out) {
                line.push_str("null");
            } else if is_number(operator) {
                line.push_str(&value);
            } else {
                quoted(&value, line);
            }
        } else {
            text(template, record, &mut value);
            quoted(&value, line);
        }
    }
    line.push('}');
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
fn quoted(text: &str, line: &mut String) {
    line.push('"');
    if text.bytes().all(|byte| byte >= b' ' && !matches!(byte, b'"' | b'\\')) {
        line.push_str(text);
    } else {
        for c in text.chars() {
            let _ = match c {
                '"' | '\\' => write!(line, "\\{c}"),
                c if c < ' ' => write!(line, "\\u{:04x}", u32::from(c)),
                c => write!(line, "{c}"),
            };
        }
    }
    line.push('"');
}

/// Where a value is written.
struct Out<'o> {
    line: &'o mut String,
    /// Bytes that are kept of it.
    most: Option<usize>,
    /// Whether nothing in it may fake another field or line.
    is_escaped: bool,
}

impl Out<'_> {
    /// Writes what somebody else has said.
    fn text(&mut self, text: &str) -> bool {
        let text = cut(text, self.most);
        if !self.is_escaped || text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"') {
            self.line.push_str(text);
            return true;
        }
        for c in text.chars() {
            if c == '"' || c.is_control() {
                self.line.extend(c.escape_default());
            } else {
                self.line.push(c);
            }
        }
        true
    }

    fn known(&mut self, text: &str) -> bool {
        !text.is_empty() && self.text(text)
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
    fn kept(&mut self, write: impl FnOnce(&mut String)) -> bool {
        let begin = self.line.len();
        write(self.line);
        if let Some(most) = self.most {
            let end = begin + cut(&self.line[begin..], Some(most)).len();
            self.line.truncate(end);
        }
        true
    }
}

fn cut(text: &str, most: Option<usize>) -> &str {
    let Some(most) = most.filter(|most| *most < text.len()) else { return text };
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Writes a value. `false`: it is not known, and nothing was written.
fn put(operator: &Operator, record: &Record, out: &mut Out<'_>) -> bool {
    match operator {
        Operator::Request(name, other) => {
            let found = record.request(name).or_else(|| record.request(other.as_deref()?));
            found.is_some_and(|value| out.text(&value))
        }
        Operator::Response(name, other) => {
            let found = record.response(name).or_else(|| record.response(other.as_deref()?));
            found.is_some_and(|value| out.text(&value))
        }
        Operator::StartTime(None) => out.kept(|line| iso(record.started, line)),
        Operator::StartTime(Some(format)) => out.kept(|line| time(record.started, format, line)),
        Operator::Protocol => record.method.is_some() && out.known(protocol(record.version)),
        Operator::ResponseCode => out.number(record.status.into()),
        Operator::ResponseCodeDetails => details(record).is_some_and(|details| out.text(&details)),
        Operator::ResponseFlags if record.flags.is_empty() => out.known("-"),
        Operator::ResponseFlags => out.kept(|line| display(record.flags, line)),
        Operator::BytesReceived => out.number(record.received_bytes),
        Operator::BytesSent => out.number(record.sent_bytes),
        Operator::Duration => out.millis(record.duration),
        Operator::ResponseDuration => record.upstream_duration.is_some_and(|time| out.millis(time)),
        Operator::ResponseTxDuration => {
            record.upstream_duration.is_some_and(|head| out.millis(record.duration.saturating_sub(head)))
        }
        Operator::RouteName => out.known(&record.route),
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
        Operator::GrpcStatus => record.grpc.is_some_and(|status| out.known(grpc_word(status))),
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

fn display(value: impl Display, line: &mut String) {
    // Memory does not refuse.
    let _ = write!(line, "{value}");
}

/// As `Display` writes it, without what that costs: a line has a dozen numbers.
fn digits(mut number: u64, line: &mut String) {
    let mut text = [0; 20];
    let mut begin = text.len();
    loop {
        begin -= 1;
        text[begin] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.push_str(std::str::from_utf8(&text[begin..]).unwrap_or_default());
}

fn host(ip: IpAddr, line: &mut String) {
    let IpAddr::V4(ip) = ip else { return display(ip, line) };
    for (at, octet) in ip.octets().into_iter().enumerate() {
        if at > 0 {
            line.push('.');
        }
        digits(octet.into(), line);
    }
}

fn socket(address: SocketAddr, line: &mut String) {
    if address.is_ipv6() {
        return display(address, line);
    }
    host(address.ip(), line);
    line.push(':');
    digits(address.port().into(), line);
}

/// As `Display` writes it.
fn goal(goal: &Goal, line: &mut String) {
    let Goal::Cluster(cluster) = goal else { return display(goal, line) };
    line.push_str("outbound|");
    digits(cluster.name.port.into(), line);
    for part in [&cluster.name.subset, &cluster.name.host] {
        line.push('|');
        line.push_str(part);
    }
}

/// Within the braces of Envoy's details stands why the endpoint was not reached.
fn details(record: &Record) -> Option<Cow<'_, str>> {
    let details = Some(record.details).filter(|details| !details.is_empty())?;
    Some(match (&record.transport_failure, details.strip_suffix('}')) {
        (Some(why), Some(open)) => Cow::Owned(format!("{open}|{why}}}")),
        _ => Cow::Borrowed(details),
    })
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

/// Writes a time as ISO 8601. Its seconds are those of the line before, most times.
fn iso(at: SystemTime, line: &mut String) {
    thread_local! { static LAST: Cell<(u64, [u8; SECONDS])> = const { Cell::new((u64::MAX, [0; SECONDS])) }; }
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = LAST.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let whole = iso_8601(second.saturating_mul(1_000));
        text.copy_from_slice(whole.as_bytes().get(..SECONDS).unwrap_or(&[b'-'; SECONDS]));
        LAST.set((second, text));
    }
    line.push_str(std::str::from_utf8(&text).unwrap_or_default());
    let millis = since.subsec_millis();
    line.extend(['.', digit(millis / 100), digit(millis / 10), digit(millis), 'Z']);
}

fn digit(number: u32) -> char {
    char::from_digit(number % 10, 10).unwrap_or('0')
}

/// Bytes of `2026-11-28T08:30:16`.
const SECONDS: usize = 19;

fn time(at: SystemTime, format: &str, line: &mut String) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let Some(pieces) = strftime(format) else { return iso(at, line) };
    let mut whole = String::with_capacity(SECONDS + 5);
    iso(at, &mut whole);
    for piece in pieces {
        let _ = match piece {
            TimePiece::Plain(c) => write!(line, "{c}"),
            TimePiece::Year => write!(line, "{}", &whole[..4]),
            TimePiece::Month => write!(line, "{}", &whole[5..7]),
            TimePiece::Day => write!(line, "{}", &whole[8..10]),
            TimePiece::Hour => write!(line, "{}", &whole[11..13]),
            TimePiece::Minute => write!(line, "{}", &whole[14..16]),
            TimePiece::Second => write!(line, "{}", &whole[17..19]),
            TimePiece::Millis => write!(line, "{:03}", since.subsec_millis()),
            TimePiece::Micros => write!(line, "{:06}", since.subsec_micros()),
            TimePiece::Seconds => write!(line, "{}", since.as_secs()),
            TimePiece::Zone => write!(line, "+0000"),
        };
    }
}
