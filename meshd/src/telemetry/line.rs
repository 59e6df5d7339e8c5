//! A request as a line of an access log.
//!
//! Source: Envoy `SubstitutionFormatter`, `JsonFormatterImpl`.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::route::template::{iso_8601, protocol};
use mesh_proto::log_format::{LogFormat, Operator, Part, Template, TimePiece, strftime};

use super::Record;

/// Writes a line, with its end.
pub(super) fn write(format: &LogFormat, record: &Record) -> String {
    let mut line = String::with_capacity(512);
    match format {
        LogFormat::Text(template) => text(template, record, &mut line),
        LogFormat::Json(members) => json(members, record, &mut line),
    }
    line.push('\n');
    line
}

fn text(template: &Template, record: &Record, line: &mut String) {
    for part in template.parts() {
        match part {
            Part::Text(text) => line.push_str(text),
            Part::Operator(operator, most) => match value(operator, record) {
                Some(value) => shown(cut(&value, *most), line),
                None => line.push('-'),
            },
        }
    }
}

/// Nothing that could fake another field or line.
fn shown(text: &str, line: &mut String) {
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
    let mut object = serde_json::Map::new();
    for (name, template) in members {
        let value = if let [Part::Operator(operator, most)] = template.parts() {
            match value(operator, record) {
                None => serde_json::Value::Null,
                Some(value) if is_number(operator) => {
                    value.parse::<u64>().map_or(serde_json::Value::Null, Into::into)
                }
                Some(value) => cut(&value, *most).into(),
            }
        } else {
            let mut all = String::new();
            text(template, record, &mut all);
            all.into()
        };
        object.insert(name.clone(), value);
    }
    line.push_str(&serde_json::Value::Object(object).to_string());
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

fn value(operator: &Operator, record: &Record) -> Option<String> {
    let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let millis = |time: Duration| Some(time.as_millis().to_string());
    let downstream = || record.downstream.map(|address| address.to_string());
    match operator {
        Operator::Request(name, other) => {
            let found = record.request(name).or_else(|| record.request(other.as_deref()?));
            found.map(std::borrow::Cow::into_owned)
        }
        Operator::Response(name, other) => {
            let found = record.response(name).or_else(|| record.response(other.as_deref()?));
            found.map(std::borrow::Cow::into_owned)
        }
        Operator::StartTime(format) => Some(time(record.started, format.as_deref())),
        Operator::Protocol => record.method.as_ref().map(|_| protocol(record.version).to_owned()),
        Operator::ResponseCode => Some(record.status.to_string()),
        Operator::ResponseCodeDetails => known(record.details),
        Operator::ResponseFlags => Some(record.flags.to_string()),
        Operator::BytesReceived => Some(record.received_bytes.to_string()),
        Operator::BytesSent => Some(record.sent_bytes.to_string()),
        Operator::Duration => millis(record.duration),
        Operator::ResponseDuration => record.upstream_duration.and_then(millis),
        Operator::ResponseTxDuration => {
            record.upstream_duration.and_then(|head| millis(record.duration.saturating_sub(head)))
        }
        Operator::RouteName => known(&record.route),
        Operator::UpstreamHost => known(&record.upstream_host),
        Operator::UpstreamCluster | Operator::UpstreamClusterRaw => known(&record.upstream_cluster),
        Operator::UpstreamRequestAttemptCount => Some(record.attempts.to_string()),
        Operator::DownstreamRemoteAddress | Operator::DownstreamDirectRemoteAddress => downstream(),
        Operator::DownstreamRemoteAddressWithoutPort | Operator::DownstreamDirectRemoteAddressWithoutPort => {
            record.downstream.map(|address| address.ip().to_string())
        }
        Operator::DownstreamPeerUriSan => record.principal.clone(),
        Operator::RequestedServerName => known(&record.server_name),
        Operator::GrpcStatus => record.grpc.map(|status| grpc_word(status).to_owned()),
        Operator::GrpcStatusNumber => record.grpc.map(|status| status.to_string()),
        Operator::TraceId => record.trace.map(|trace| format!("{trace:032x}")),
        Operator::HostName => known(&record.host),
        Operator::Revision => Some(record.revision.to_string()),
        // differs: meshd's own addresses and the reasons of its TLS are not kept with a request.
        Operator::UpstreamTransportFailureReason
        | Operator::ConnectionTerminationDetails
        | Operator::UpstreamLocalAddress
        | Operator::DownstreamLocalAddress => None,
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
