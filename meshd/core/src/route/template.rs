//! Header values with variables: Envoy's format strings, parsed when a Plan is made.
//!
//! Source: Envoy "Custom request/response headers"; Istio's header values are passed to it.

use std::net::SocketAddr;

use http::{HeaderValue, StatusCode};

use super::headers::Facts;
use crate::plan::{HeaderTemplate, Shown, TemplatePart, Variable};
pub use time::{TimeFormat, iso_8601};

mod query;
mod time;

/// Why a header value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// A `%` that neither doubles nor begins a variable.
    #[error("{0:?} has a single %: write %% for a percent sign")]
    LonePercent(String),
    /// A variable that meshd does not know.
    #[error("{0:?} is not a variable meshd knows (has: REQ, RESP, QUERY_PARAM, {known})", known = words())]
    UnknownVariable(String),
    /// A letter of a time's format that stands for nothing.
    #[error("{0:?}: {1:?} stands for no part of a time")]
    BadTime(String, String),
    /// A byte that no header may carry.
    #[error("{0:?} cannot be sent as a header value")]
    NotAValue(String),
}

/// Reads a header value.
pub fn parse(text: &str) -> Result<HeaderTemplate, BadTemplate> {
    HeaderValue::from_str(text).map_err(|_| BadTemplate::NotAValue(shorten(text)))?;
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let end = end_of_variable(after).ok_or_else(|| BadTemplate::LonePercent(shorten(text)))?;
        if !literal.is_empty() {
            parts.push(TemplatePart::Text(std::mem::take(&mut literal)));
        }
        parts.push(variable(&after[..end])?);
        rest = &after[end + 1..];
    }
    literal.push_str(rest);
    if parts.is_empty() {
        let value = HeaderValue::from_str(&literal).map_err(|_| BadTemplate::NotAValue(shorten(text)))?;
        return Ok(HeaderTemplate::Plain(value));
    }
    if !literal.is_empty() {
        parts.push(TemplatePart::Text(literal));
    }
    Ok(HeaderTemplate::Parts(parts))
}

/// Gives a header value its text; `None` where nothing comes of it, and no header is added then.
pub(super) fn render(template: &HeaderTemplate, facts: &Facts<'_>, seen: &Seen<'_>) -> Option<HeaderValue> {
    match template {
        HeaderTemplate::Plain(value) => (!value.is_empty()).then(|| value.clone()),
        HeaderTemplate::Parts(parts) => {
            let mut out = Vec::new();
            for part in parts {
                append(part, facts, seen, &mut out);
            }
            // differs: of what no header may carry, Envoy makes a 503, or splits its answer in two.
            if out.is_empty() { None } else { HeaderValue::from_bytes(&out).ok() }
        }
    }
}

/// The header blocks that variables look into.
pub(super) struct Seen<'a> {
    pub(super) request: &'a http::HeaderMap,
    pub(super) response: Option<&'a http::HeaderMap>,
}

fn append(part: &TemplatePart, facts: &Facts<'_>, seen: &Seen<'_>, out: &mut Vec<u8>) {
    match part {
        TemplatePart::Text(text) => out.extend_from_slice(text.as_bytes()),
        TemplatePart::Request { name, alternative, max_bytes } => {
            let value = request_value(name, facts, seen)
                .or_else(|| alternative.as_ref().and_then(|name| request_value(name, facts, seen)));
            let value = value.unwrap_or_default();
            out.extend_from_slice(cut(&value, *max_bytes));
        }
        TemplatePart::Response { name, alternative, max_bytes } => {
            let field = |name: &str| seen.response.and_then(|headers| headers.get(name));
            let value = field(name).or_else(|| field(alternative.as_deref()?));
            out.extend_from_slice(cut(value.map_or(b"", HeaderValue::as_bytes), *max_bytes));
        }
        TemplatePart::QueryParameter { name, max_bytes } => {
            let query = facts.path_and_query.split_once('?').map_or("", |(_, query)| query);
            let value = query::value(query, name).unwrap_or_default();
            out.extend_from_slice(cut(&value, *max_bytes));
        }
        TemplatePart::StartTime(format) => {
            let mut text = String::new();
            format.write(facts.started, &mut text);
            out.extend_from_slice(text.as_bytes());
        }
        TemplatePart::Variable(variable) => out.extend_from_slice(value(*variable, facts).as_bytes()),
    }
}

fn value(variable: Variable, facts: &Facts<'_>) -> String {
    let answer = &facts.answer;
    let address = |address: Option<SocketAddr>, shown| {
        let written = |address: SocketAddr| match shown {
            Shown::Whole => address.to_string(),
            Shown::WithoutPort => address.ip().to_string(),
            Shown::Port => address.port().to_string(),
        };
        address.map(written).unwrap_or_default()
    };
    match variable {
        Variable::Protocol => protocol(facts.version).to_owned(),
        Variable::StartTime => iso_8601(u64::try_from(facts.started.as_millis()).unwrap_or(0)),
        Variable::Downstream(shown) => address(Some(facts.downstream), shown),
        Variable::DownstreamDirect(shown) => address(Some(facts.direct), shown),
        Variable::DownstreamLocal(shown) => address(facts.local, shown),
        Variable::Upstream(shown) => address(answer.upstream, shown),
        Variable::UpstreamProtocol => answer.upstream_version.map(protocol).unwrap_or_default().to_owned(),
        Variable::Attempts => answer.attempts.to_string(),
        // A request has no status yet: Envoy writes 0.
        Variable::ResponseCode => answer.status.as_ref().map_or("0", StatusCode::as_str).to_owned(),
        Variable::ResponseDetails => answer.details.to_owned(),
        Variable::ResponseFlags => answer.flags.to_string(),
        Variable::RouteName => facts.route_name.to_owned(),
        Variable::Cluster => facts.cluster.map(ToString::to_string).unwrap_or_default(),
        Variable::HostName => facts.host_name.to_owned(),
    }
}

fn cut(value: &[u8], most: Option<usize>) -> &[u8] {
    &value[..most.unwrap_or(usize::MAX).min(value.len())]
}

fn request_value(name: &str, facts: &Facts<'_>, seen: &Seen<'_>) -> Option<Vec<u8>> {
    let text = match name {
        ":method" => facts.method.to_owned(),
        ":scheme" => facts.scheme.to_owned(),
        ":authority" | "host" => facts.authority.to_owned(),
        ":path" => facts.path_and_query.to_owned(),
        _ => return seen.request.get(name).map(|value| value.as_bytes().to_vec()),
    };
    Some(text.into_bytes())
}

/// Finds the `%` that ends a variable. Within parentheses there may be others.
fn end_of_variable(text: &str) -> Option<usize> {
    let closing = |at: usize| {
        let rest = &text[at + 1..];
        let length = rest
            .strip_prefix(':')
            .map_or(0, |digits| 1 + digits.chars().take_while(char::is_ascii_digit).count());
        rest[length..].starts_with('%').then_some(at + 1 + length)
    };
    match (text.find('('), text.find('%')?) {
        (Some(open), end) if open < end => {
            text.match_indices(')').find_map(|(at, _)| closing(at)).or(Some(end))
        }
        (_, end) => Some(end),
    }
}

fn variable(text: &str) -> Result<TemplatePart, BadTemplate> {
    let unknown = || BadTemplate::UnknownVariable(format!("%{}%", shorten(text)));
    let (name, argument, length) = match text.split_once('(') {
        None => (text, None, None),
        Some((name, rest)) => {
            let (argument, length) = rest.rsplit_once(')').ok_or_else(unknown)?;
            let length = match length.strip_prefix(':') {
                Some(digits) => Some(digits.parse().map_err(|_| unknown())?),
                None if length.is_empty() => None,
                None => return Err(unknown()),
            };
            (name, Some(argument), length)
        }
    };
    Ok(match (name, argument, length) {
        ("REQ" | "RESP", Some(argument), max_bytes) if !argument.is_empty() => {
            let argument = argument.to_ascii_lowercase();
            let (field, alternative) = match argument.split_once('?') {
                Some((name, other)) => (name.to_owned(), Some(other.to_owned())),
                None => (argument, None),
            };
            if name == "REQ" {
                TemplatePart::Request { name: field, alternative, max_bytes }
            } else {
                TemplatePart::Response { name: field, alternative, max_bytes }
            }
        }
        ("QUERY_PARAM", Some(name), max_bytes) if !name.is_empty() => {
            TemplatePart::QueryParameter { name: name.to_owned(), max_bytes }
        }
        ("START_TIME", Some(format), None) if !format.is_empty() => {
            let read = TimeFormat::parse(format);
            TemplatePart::StartTime(
                read.map_err(|letter| BadTemplate::BadTime(format!("%{}%", shorten(text)), letter))?,
            )
        }
        (word, None, None) => {
            let known = WORDS.iter().find(|(known, _)| *known == word);
            TemplatePart::Variable(known.ok_or_else(unknown)?.1)
        }
        _ => return Err(unknown()),
    })
}

/// Variables that are one word.
const WORDS: [(&str, Variable); 24] = [
    ("PROTOCOL", Variable::Protocol),
    ("START_TIME", Variable::StartTime),
    ("DOWNSTREAM_REMOTE_ADDRESS", Variable::Downstream(Shown::Whole)),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Variable::Downstream(Shown::WithoutPort)),
    ("DOWNSTREAM_REMOTE_PORT", Variable::Downstream(Shown::Port)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Variable::DownstreamDirect(Shown::Whole)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Variable::DownstreamDirect(Shown::WithoutPort)),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Variable::DownstreamDirect(Shown::Port)),
    ("DOWNSTREAM_LOCAL_ADDRESS", Variable::DownstreamLocal(Shown::Whole)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Variable::DownstreamLocal(Shown::WithoutPort)),
    ("DOWNSTREAM_LOCAL_PORT", Variable::DownstreamLocal(Shown::Port)),
    ("UPSTREAM_HOST", Variable::Upstream(Shown::Whole)),
    ("UPSTREAM_REMOTE_ADDRESS", Variable::Upstream(Shown::Whole)),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Variable::Upstream(Shown::WithoutPort)),
    ("UPSTREAM_REMOTE_PORT", Variable::Upstream(Shown::Port)),
    ("UPSTREAM_PROTOCOL", Variable::UpstreamProtocol),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Variable::Attempts),
    ("UPSTREAM_CLUSTER", Variable::Cluster),
    ("UPSTREAM_CLUSTER_RAW", Variable::Cluster),
    ("ROUTE_NAME", Variable::RouteName),
    ("RESPONSE_CODE", Variable::ResponseCode),
    ("RESPONSE_CODE_DETAILS", Variable::ResponseDetails),
    ("RESPONSE_FLAGS", Variable::ResponseFlags),
    ("HOSTNAME", Variable::HostName),
];

fn words() -> String {
    WORDS.map(|(word, _)| word).join(", ")
}

/// Writes a version as `%PROTOCOL%` does.
pub fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
