//! Header values with variables: Envoy's format strings, parsed when a Plan is made.
//!
//! Source: Envoy "Custom request/response headers"; Istio's header values are passed to it.

use http::{HeaderValue, StatusCode};

use super::headers::Facts;
use crate::plan::{HeaderTemplate, TemplatePart};

/// Why a header value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// A `%` that neither doubles nor begins a variable.
    #[error("{0:?} has a single %: write %% for a percent sign")]
    LonePercent(String),
    /// A variable that meshd does not know.
    #[error(
        "{0:?} is not a variable meshd knows (has: REQ, RESP, PROTOCOL, DOWNSTREAM_REMOTE_ADDRESS, DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT, UPSTREAM_HOST, START_TIME, RESPONSE_CODE, HOSTNAME)"
    )]
    UnknownVariable(String),
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
        let end = after.find('%').ok_or_else(|| BadTemplate::LonePercent(shorten(text)))?;
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
        TemplatePart::Protocol => out.extend_from_slice(protocol(facts.version).as_bytes()),
        TemplatePart::DownstreamAddress { with_port: true } => {
            out.extend_from_slice(facts.downstream.to_string().as_bytes());
        }
        TemplatePart::DownstreamAddress { with_port: false } => {
            out.extend_from_slice(facts.downstream.ip().to_string().as_bytes());
        }
        TemplatePart::UpstreamHost => {
            let text = facts.upstream.map(|upstream| upstream.to_string()).unwrap_or_default();
            out.extend_from_slice(text.as_bytes());
        }
        TemplatePart::StartTime => out.extend_from_slice(iso_8601(facts.started_ms).as_bytes()),
        TemplatePart::ResponseCode => {
            // A request has no status yet: Envoy writes 0.
            out.extend_from_slice(facts.status.as_ref().map_or("0", StatusCode::as_str).as_bytes());
        }
        TemplatePart::HostName => out.extend_from_slice(facts.host_name.as_bytes()),
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
            (name, Some(argument.to_ascii_lowercase()), length)
        }
    };
    Ok(match (name, argument, length) {
        ("REQ" | "RESP", Some(argument), max_bytes) if !argument.is_empty() => {
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
        ("PROTOCOL", None, None) => TemplatePart::Protocol,
        ("DOWNSTREAM_REMOTE_ADDRESS", None, None) => TemplatePart::DownstreamAddress { with_port: true },
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None, None) => {
            TemplatePart::DownstreamAddress { with_port: false }
        }
        ("UPSTREAM_HOST", None, None) => TemplatePart::UpstreamHost,
        ("START_TIME", None, None) => TemplatePart::StartTime,
        ("RESPONSE_CODE", None, None) => TemplatePart::ResponseCode,
        ("HOSTNAME", None, None) => TemplatePart::HostName,
        _ => return Err(unknown()),
    })
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

/// Writes a time as `2026-01-31T12:00:00.123Z`.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub fn iso_8601(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
