//! Repeated lines of a head made one, where one is meant.
//!
//! Rules compare header lines one by one; fields that are one value by nature must be one line before that, or a rule could
//! be walked around by sending half of it on a line of its own. Source: Envoy's single-valued headers (its
//! `HeaderMap` joins them with a comma); RFC 9113, section 8.2.3, for the crumbs of a cookie.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Joins repeated lines: with a comma those Envoy holds as one value, with `; ` the cookies of HTTP/2.
///
/// Looks at nothing when no field is repeated, which is the usual case.
pub fn fold(headers: &mut HeaderMap, http2: bool) {
    if headers.len() == headers.keys_len() {
        return;
    }
    for name in &SINGLE {
        join(headers, name, b",");
    }
    if http2 {
        join(headers, &header::COOKIE, b"; ");
    }
}

/// Joins repeated lines of an answer that Envoy holds as one value.
pub fn fold_answer(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    for name in &SINGLE_IN_ANSWERS {
        join(headers, name, b",");
    }
}

fn join(headers: &mut HeaderMap, name: &HeaderName, by: &[u8]) {
    let mut lines = headers.get_all(name).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(by);
        joined.extend_from_slice(line.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(name, value);
    }
}

/// What Envoy 1.40 was seen to join in requests of a sidecar.
const SINGLE: [HeaderName; 27] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCESS_CONTROL_REQUEST_HEADERS,
    header::ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName::from_static("access-control-request-private-network"),
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-timeout"),
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::ORIGIN,
    header::PRAGMA,
    header::REFERER,
    header::USER_AGENT,
    header::VIA,
    HeaderName::from_static("x-client-trace-id"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-request-id"),
];

/// The same in answers.
const SINGLE_IN_ANSWERS: [HeaderName; 20] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
    header::AGE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::DATE,
    header::ETAG,
    header::EXPIRES,
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status"),
    header::LAST_MODIFIED,
    header::LOCATION,
    header::VARY,
    header::VIA,
    HeaderName::from_static("x-request-id"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(lines: &[(&'static str, &'static str)], http2: bool) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        fold(&mut headers, http2);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect()
    }

    #[test]
    fn single_values_become_one_line_and_others_stay() {
        assert_eq!(folded(&[("origin", "a"), ("origin", "b"), ("origin", "c")], false), ["origin: a,b,c"]);
        assert_eq!(folded(&[("x-any", "a"), ("x-any", "b")], true), ["x-any: a", "x-any: b"]);
        assert_eq!(folded(&[("origin", "a"), ("x-any", "a")], true), ["origin: a", "x-any: a"]);
    }

    #[test]
    fn answers_have_single_values_of_their_own() {
        let mut headers = HeaderMap::new();
        for name in ["vary", "link", "pragma"] {
            headers.append(name, HeaderValue::from_static("a"));
            headers.append(name, HeaderValue::from_static("b"));
        }
        fold_answer(&mut headers);
        let lines = |name: &str| {
            headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(
            (lines("vary"), lines("link"), lines("pragma")),
            (vec!["a,b"], vec!["a", "b"], vec!["a", "b"])
        );
    }

    #[test]
    fn crumbs_of_http2_are_one_cookie() {
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2")];
        assert_eq!(folded(&crumbs, true), ["cookie: a=1; b=2"]);
        assert_eq!(folded(&crumbs, false), ["cookie: a=1", "cookie: b=2"]);
    }
}
