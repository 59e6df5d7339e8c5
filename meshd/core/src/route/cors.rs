//! Cross-origin requests: preflights answered here, answers marked.
//!
//! Source: Istio `TranslateCORSPolicy`; Envoy's `CorsFilter`; the Fetch standard's header names.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue,
    ORIGIN,
};

use super::matcher::value_holds;
use crate::plan::Cors;

/// What a cross-origin policy says to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum CorsVerdict {
    /// It is a preflight: answer 200 with these headers and an empty body.
    Preflight(HeaderMap),
    /// Send it on; these headers replace those of the same name, also what header rules made of them.
    Actual(HeaderMap),
    /// Send it on; leave the answer's headers alone.
    None,
}

/// Decides about a request that is sent on; redirects and direct responses are not looked at.
///
/// A preflight is `OPTIONS` with `access-control-request-method`; whether that method is allowed is for the browser
/// to see. An origin that is not allowed is none of our business, unless `unmatchedPreflights: IGNORE` has preflights
/// answered without `access-control-allow-origin`.
pub fn decide(cors: &Cors, method: &str, headers: &HeaderMap) -> CorsVerdict {
    let Some(origin) = headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else {
        return CorsVerdict::None;
    };
    let allowed = cors
        .allow_origins
        .iter()
        .any(|condition| value_holds(condition, b"*") || value_holds(condition, origin.as_bytes()));
    if !allowed && cors.forward_unmatched {
        return CorsVerdict::None;
    }
    let asks = headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|asked| !asked.is_empty());
    match (method == "OPTIONS" && asks, allowed) {
        (true, _) => CorsVerdict::Preflight(preflight(cors, allowed.then_some(origin), headers)),
        (false, true) => CorsVerdict::Actual(actual(cors, origin)),
        (false, false) => CorsVerdict::None,
    }
}

fn preflight(cors: &Cors, origin: Option<&HeaderValue>, asked: &HeaderMap) -> HeaderMap {
    let mut answer = origin.map_or_else(HeaderMap::new, |origin| actual(cors, origin));
    // A single `*` allows what is asked for; browsers that send credentials do not take it literally.
    let allowed = |list: &Option<HeaderValue>, asked_in: HeaderName| match list {
        Some(list) if list == "*" => {
            Some(asked.get(asked_in).cloned().unwrap_or_else(|| HeaderValue::from_static("")))
        }
        list => list.clone(),
    };
    let lists = [
        (ACCESS_CONTROL_ALLOW_METHODS, allowed(&cors.allow_methods, ACCESS_CONTROL_REQUEST_METHOD)),
        (ACCESS_CONTROL_ALLOW_HEADERS, allowed(&cors.allow_headers, ACCESS_CONTROL_REQUEST_HEADERS)),
        (ACCESS_CONTROL_MAX_AGE, cors.max_age.clone()),
    ];
    for (name, value) in lists {
        if let Some(value) = value {
            answer.insert(name, value);
        }
    }
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    answer
}

fn actual(cors: &Cors, origin: &HeaderValue) -> HeaderMap {
    let mut answer = HeaderMap::new();
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(value) = &cors.expose_headers {
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, value.clone());
    }
    answer
}
