//! A request as a line of an access log.
//!
//! Source: Envoy `SubstitutionFormatter`, `JsonFormatterImpl`.

use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::route::template::{iso_8601, protocol};
use mesh_proto::log_format::{LogFormat, Operator, Part, Template, TimePiece, strftime};

use super::Record;

/// Adds a line, with its end.
pub(super) fn write(format: &LogFormat, record: &Record, line: &mut String) {
    match format {
        LogFormat::Text(template) => text(template, record, line),
        LogFormat::Json(members) => json(members, record, line),
    }
    line.push('\n');
}

/// What stands for an operator.
enum Value<'r> {
    Text(Cow<'r, str>),
    Number(u64),
    Shown(&'r dyn Display),
}

fn text(template: &Template, record: &Record, line: &mut String) {
    for part in template.parts() {
        match part {
            Part::Text(text) => line.push_str(text),
            Part::Operator(operator, most) => match value(operator, record) {
                None => line.push('-'),
                Some(Value::Number(number)) => number_to(number, *most, line),
                Some(Value::Text(text)) => shown(cut(&text, *most), line),
                Some(Value::Shown(value)) => shown(cut(&value.to_string(), *most), line),
            },
        }
    }
}

fn number_to(number: u64, most: Option<usize>, line: &mut String) {
    let begin = line.len();
    let _ = write!(line, "{number}");
    line.truncate(most.map_or(line.len(), |most| line.len().min(begin + most)));
}

/// Nothing that could fake another field or line.
fn shown(text: &str, line: &mut String) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"') {
        return line.push_str(text);
    }
    for c in text.chars() {
        if c == '"' || c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
}

fn cut(text: &str, most: Option<usize>) -> &str {
    let Some(most) = most.filter(|most| *most < text.len()) else { return text };
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// A member that is one operator keeps its type, as in Envoy; what is not known is `null`.
fn json(members: &[(String, Template)], record: &Record, line: &mut String) {
    for (at, (name, template)) in members.iter().enumerate() {
        line.push(if at == 0 { '{' } else { ',' });
        quoted(name, line);
        line.push(':');
        if let [Part::Operator(operator, most)] = template.parts() {
            match value(operator, record) {
                None => line.push_str("null"),
                Some(Value::Number(number)) => number_to(number, None, line),
                Some(Value::Text(text)) => quoted(cut(&text, *most), line),
                Some(Value::Shown(value)) => quoted(cut(&value.to_string(), *most), line),
            }
        } else {
            let mut all = String::new();
            text(template, record, &mut all);
            quoted(&all, line);
        }
    }
    line.push_str(if members.is_empty() { "{}" } else { "}" });
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

fn value<'r>(operator: &Operator, record: &'r Record) -> Option<Value<'r>> {
    let known = |text: &'r str| Some(Value::Text(Cow::Borrowed(text))).filter(|_| !text.is_empty());
    let owned = |text: String| Some(Value::Text(Cow::Owned(text)));
    let number = |number: u64| Some(Value::Number(number));
    let millis = |time: Duration| Some(Value::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
    let address = |address: &'r Option<SocketAddr>| address.as_ref().map(|it| Value::Shown(it));
    let ip = |address: Option<SocketAddr>| address.and_then(|address| owned(address.ip().to_string()));
    match operator {
        Operator::Request(name, other) => {
            let found = record.request(name).or_else(|| record.request(other.as_deref()?));
            found.map(Value::Text)
        }
        Operator::Response(name, other) => {
            let found = record.response(name).or_else(|| record.response(other.as_deref()?));
            found.map(Value::Text)
        }
        Operator::StartTime(format) => owned(time(record.started, format.as_deref())),
        Operator::Protocol => record.method.as_ref().and_then(|_| known(protocol(record.version))),
        Operator::ResponseCode => number(record.status.into()),
        Operator::ResponseCodeDetails => details(record).map(Value::Text),
        Operator::ResponseFlags => Some(Value::Shown(&record.flags)),
        Operator::BytesReceived => number(record.received_bytes),
        Operator::BytesSent => number(record.sent_bytes),
        Operator::Duration => millis(record.duration),
        Operator::ResponseDuration => record.upstream_duration.and_then(millis),
        Operator::ResponseTxDuration => {
            record.upstream_duration.and_then(|head| millis(record.duration.saturating_sub(head)))
        }
        Operator::RouteName => known(&record.route),
        Operator::UpstreamHost => record.upstream.as_ref().map(|via| Value::Shown(via)),
        Operator::UpstreamCluster | Operator::UpstreamClusterRaw => {
            record.goal.is_known().then_some(Value::Shown(&record.goal))
        }
        Operator::UpstreamRequestAttemptCount => number(record.attempts.into()),
        Operator::UpstreamLocalAddress => address(&record.upstream_local),
        Operator::UpstreamTransportFailureReason => record.transport_failure.as_deref().and_then(known),
        Operator::DownstreamLocalAddress => address(&record.downstream_local),
        Operator::DownstreamRemoteAddress => address(&record.downstream),
        Operator::DownstreamRemoteAddressWithoutPort => ip(record.downstream),
        Operator::DownstreamDirectRemoteAddress => address(&record.direct),
        Operator::DownstreamDirectRemoteAddressWithoutPort => ip(record.direct),
        Operator::DownstreamPeerUriSan => record.principal.as_deref().and_then(known),
        Operator::RequestedServerName => record.server_name.as_deref().and_then(known),
        Operator::GrpcStatus => record.grpc.and_then(|status| known(grpc_word(status))),
        Operator::GrpcStatusNumber => record.grpc.and_then(|status| number(status.into())),
        Operator::TraceId => record.trace.and_then(|trace| owned(format!("{trace:032x}"))),
        Operator::HostName => known(&record.host),
        Operator::Revision => number(record.revision),
        // Only Envoy's filters of access say something here: Envoy 1.40 writes nothing either.
        Operator::ConnectionTerminationDetails => None,
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

fn time(at: SystemTime, format: Option<&str>) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let iso = iso_8601(u64::try_from(since.as_millis()).unwrap_or(0));
    let Some(pieces) = format.and_then(strftime) else { return iso };
    let mut text = String::new();
    for piece in pieces {
        let _ = match piece {
            TimePiece::Plain(c) => write!(text, "{c}"),
            TimePiece::Year => write!(text, "{}", &iso[..4]),
            TimePiece::Month => write!(text, "{}", &iso[5..7]),
            TimePiece::Day => write!(text, "{}", &iso[8..10]),
            TimePiece::Hour => write!(text, "{}", &iso[11..13]),
            TimePiece::Minute => write!(text, "{}", &iso[14..16]),
            TimePiece::Second => write!(text, "{}", &iso[17..19]),
            TimePiece::Millis => write!(text, "{:03}", since.subsec_millis()),
            TimePiece::Micros => write!(text, "{:06}", since.subsec_micros()),
            TimePiece::Seconds => write!(text, "{}", since.as_secs()),
            TimePiece::Zone => write!(text, "+0000"),
        };
    }
    text
}
