//! Whether the head of a request may be acted on at all.
//!
//! A parser is lenient where a proxy must not be: what two programs read differently is how requests are smuggled.
//! This is the half of the guard that looks at the parsed head; line ends and repeated framing fields, which the parser
//! hides, are seen by [`http1`](super::http1) before it. Source: RFC 9110, RFC 9112; Envoy's HTTP/1 codec; `docs/compatibility.md` where stricter.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};

use super::sniff;

/// Limits of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the target. Default 16 KiB.
    pub uri_bytes: usize,
    /// Bytes of all fields, names and values. Default 60 KiB, Envoy's.
    pub header_bytes: usize,
    /// Lines of fields. Default 100, Envoy's.
    pub headers: usize,
    /// Bytes of the method. Default 32.
    pub method_bytes: usize,
    /// Bytes of all extensions of a body's chunks. Default 4 KiB.
    pub chunk_extension_bytes: usize,
    /// Bytes of all trailers. Default 16 KiB.
    pub trailer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uri_bytes: 16 * 1024,
            header_bytes: 60 * 1024,
            headers: 100,
            method_bytes: 32,
            chunk_extension_bytes: 4 * 1024,
            trailer_bytes: 16 * 1024,
        }
    }
}

/// Why a request is refused, and with which status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller is answered.
    pub status: StatusCode,
    /// Why, for the log and the counter: a few constant words.
    pub reason: &'static str,
}

/// Checks the head of a request. The first thing that is wrong decides.
pub fn check(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
    limits: &Limits,
) -> Result<(), Refusal> {
    check_method(method, version, limits)?;
    check_target(method, uri, version, limits)?;
    check_size(headers, limits)?;
    check_host(method, uri, version, headers)?;
    if version < Version::HTTP_2 {
        check_framing(version, headers)?;
    } else {
        // The parser has compared it with the data; towards HTTP/1 it must not be said twice.
        check_length(headers)?;
    }
    check_connection(headers)?;
    check_expect(headers)
}

/// Checks the framing of an answer: an application is a stranger too, and its answer is written anew. The parser looks at
/// lengths only where a body follows.
pub fn check_answer(status: StatusCode, version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let length = headers.get(header::CONTENT_LENGTH);
    if status == StatusCode::NO_CONTENT && length.is_some_and(|length| length != "0") {
        return bad("No Content of some length");
    }
    if version >= Version::HTTP_2 || !headers.contains_key(header::TRANSFER_ENCODING) {
        return check_length(headers);
    }
    check_framing(version, headers)
}

fn check_method(method: &Method, version: Version, limits: &Limits) -> Result<(), Refusal> {
    let token = method.as_str().as_bytes();
    if token.len() > limits.method_bytes {
        return bad("method too long");
    }
    if version < Version::HTTP_2 && !sniff::is_method(token) {
        return bad("unknown method");
    }
    Ok(())
}

fn check_target(method: &Method, uri: &Uri, version: Version, limits: &Limits) -> Result<(), Refusal> {
    let has_path = uri.path_and_query().is_some_and(|target| target.as_str() != "*");
    let may_lack_one = *method == Method::CONNECT || (*method == Method::OPTIONS && uri.path() == "*");
    if !has_path && !may_lack_one && (version < Version::HTTP_2 || uri.path() == "*") {
        return bad("a target without a path");
    }
    let path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    if path.len() + uri.authority().map_or(0, |authority| authority.as_str().len()) > limits.uri_bytes {
        return refuse(StatusCode::URI_TOO_LONG, "target too long");
    }
    if path.as_bytes().windows(3).any(|part| part == b"%00") {
        return bad("NUL in the target");
    }
    match uri.scheme_str() {
        None | Some("http" | "https") => Ok(()),
        Some(_) => bad("scheme of the target"),
    }
}

fn check_size(headers: &HeaderMap, limits: &Limits) -> Result<(), Refusal> {
    if headers.len() > limits.headers {
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers");
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > limits.header_bytes {
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers too large");
    }
    Ok(())
}

/// differs: Envoy looks for a host of that name, and finds none.
fn check_host(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("two Hosts");
    }
    if let Some(authority) = uri.authority() {
        let differs =
            |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
        if version >= Version::HTTP_2 && host.is_some_and(differs) {
            return bad("Host differs from :authority");
        }
        let needs_port = method == Method::CONNECT && authority.port_u16().is_none();
        return if needs_port || !is_host(authority.as_str().as_bytes()) {
            bad("bad authority")
        } else {
            Ok(())
        };
    }
    match host {
        None => bad("no Host"),
        Some(host) if host.is_empty() || !is_host(host.as_bytes()) => bad("bad Host"),
        Some(_) => Ok(()),
    }
}

/// Whether this may be a host with or without port: no path, no user, no blanks, no escapes.
fn is_host(host: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:[]*!$&'()+,;=".contains(byte);
    host.iter().all(fits)
}

fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let has_length = headers.contains_key(header::CONTENT_LENGTH);
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if has_length {
            return bad("Content-Length with Transfer-Encoding");
        }
        if codings.next().is_some() {
            return bad("two Transfer-Encodings");
        }
        if version == Version::HTTP_10 {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return refuse(StatusCode::NOT_IMPLEMENTED, "unknown transfer coding");
        }
    }
    check_length(headers)
}

fn check_length(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    if lengths.next().is_some() {
        return bad("two Content-Lengths");
    }
    let is_number = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    if is_number { Ok(()) } else { bad("bad Content-Length") }
}

/// `Connection` may name only fields that belong to one hop: by naming others a caller would have them removed.
fn check_connection(headers: &HeaderMap) -> Result<(), Refusal> {
    for value in headers.get_all(header::CONNECTION) {
        let named = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for name in named {
            if KEPT.iter().any(|kept| name.eq_ignore_ascii_case(kept.as_bytes()))
                || KEPT_PREFIXES.iter().any(|prefix| {
                    name.get(..prefix.len())
                        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
                })
            {
                return bad("Connection names an end-to-end field");
            }
        }
    }
    Ok(())
}

/// differs: Envoy passes unknown expectations on.
fn check_expect(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().all(is_known) {
        return Ok(());
    }
    refuse(StatusCode::EXPECTATION_FAILED, "unknown expectation")
}

/// Fields that say something about one connection only and are never passed on. `te` is looked at separately.
pub const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

const KEPT: [&str; 4] = ["host", "content-length", "authorization", "cookie"];
const KEPT_PREFIXES: [&str; 3] = ["x-forwarded-", "x-mesh-", "x-envoy-"];

fn bad<T>(reason: &'static str) -> Result<T, Refusal> {
    refuse(StatusCode::BAD_REQUEST, reason)
}

fn refuse<T>(status: StatusCode, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

#[cfg(test)]
mod tests;
