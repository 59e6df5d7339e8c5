//! The key of consistent hashing: what a request shows of who it belongs to.
//!
//! Source: Istio `consistentHash`; Envoy's hash policies.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use http::header::COOKIE;
use rand_core::RngCore;

use super::hash::xxh64;
use crate::plan::{HashKey, HashPolicy, HeadPart};
use crate::route::Call;

/// What the key of consistent hashing is for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKeyOutcome {
    /// This.
    Hash(u64),
    /// This; and the caller is given a cookie, so that it comes again with the same key.
    MakeCookie {
        /// The key.
        hash: u64,
        /// Value of a `set-cookie` line of the answer: `name="hex"; Max-Age=60; Path=/app; HttpOnly`.
        set_cookie: String,
    },
    /// None: the request is balanced freely.
    None,
}

impl HashKeyOutcome {
    /// Returns the key for [`Hint::hash`](super::Hint::hash).
    pub fn hash(&self) -> Option<u64> {
        match self {
            Self::Hash(hash) | Self::MakeCookie { hash, .. } => Some(*hash),
            Self::None => None,
        }
    }
}

/// Finds the key of consistent hashing.
///
/// `sent` is the request as it is sent on, rules applied; `source` is the caller's address; chance makes the values of new
/// cookies.
pub fn hash_key(
    policy: &HashPolicy,
    sent: &Call<'_>,
    source: IpAddr,
    rng: &mut impl RngCore,
) -> HashKeyOutcome {
    let found = match &policy.key {
        HashKey::Header(name) => {
            let values = sent.headers.get_all(name).iter().map(|value| xxh64(value.as_bytes(), 0));
            // Several lines count whatever their order.
            values.reduce(u64::wrapping_add)
        }
        HashKey::Head(part) => {
            let path = sent.path_and_query();
            let text = match part {
                HeadPart::Method => sent.method,
                HeadPart::Scheme => sent.scheme,
                HeadPart::Authority => sent.authority,
                HeadPart::Path => &path,
            };
            Some(xxh64(text.as_bytes(), 0))
        }
        HashKey::Cookie { name, path, ttl, attributes } => match (cookie(sent.headers, name), ttl) {
            (Some(value), _) => Some(xxh64(value, 0)),
            (None, Some(ttl)) => return make_cookie(name, path, *ttl, attributes, rng),
            (None, None) => None,
        },
        HashKey::SourceIp => Some(source_key(source)),
        HashKey::Query(name) => {
            sent.query.and_then(|query| parameter(query, name)).map(|value| xxh64(value.as_bytes(), 0))
        }
    };
    found.map_or(HashKeyOutcome::None, HashKeyOutcome::Hash)
}

/// Finds the key of consistent hashing of a connection that is no request: it shows its caller's address and nothing else.
///
/// Source: Istio `maybeSetHashPolicy`, which gives Envoy's TCP proxy a hash policy for `useSourceIp` only.
pub fn connection_key(policy: &HashPolicy, source: IpAddr) -> Option<u64> {
    matches!(policy.key, HashKey::SourceIp).then(|| source_key(source))
}

fn source_key(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(address) => xxh64(&address.octets(), 0),
        IpAddr::V6(address) => xxh64(&address.octets(), 0),
    }
}

/// Makes a cookie with a value of chance. `ttl` 0 is a session cookie.
///
/// differs: Envoy derives the value from the addresses of the connection.
fn make_cookie(
    name: &str,
    path: &str,
    ttl: Duration,
    attributes: &str,
    rng: &mut impl RngCore,
) -> HashKeyOutcome {
    let value = format!("{:016x}", rng.next_u64());
    let mut set_cookie = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        // Writing into a String cannot fail.
        let _ = write!(set_cookie, "; Max-Age={}", ttl.as_secs());
    }
    if !path.is_empty() {
        let _ = write!(set_cookie, "; Path={path}");
    }
    set_cookie.push_str(attributes);
    set_cookie.push_str("; HttpOnly");
    HashKeyOutcome::MakeCookie { hash: xxh64(value.as_bytes(), 0), set_cookie }
}

/// Finds a cookie by name, over all `cookie` lines; quotes do not count, an empty one is as none.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).into_iter().map(http::HeaderValue::as_bytes);
    let mut crumbs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    let value = crumbs.find_map(|crumb| crumb.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

/// Finds the first parameter of a name; raw bytes, one without `=` is empty.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::chance::SeededRng;
    use super::*;

    fn key(key: HashKey, headers: &[(&'static str, &'static str)], query: Option<&str>) -> HashKeyOutcome {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_static(value));
        }
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let sent =
            Call { method: "GET", scheme: "http", authority: "reviews:80", path: "/a", query, headers: &map };
        hash_key(&HashPolicy { key }, &sent, source, &mut SeededRng(7))
    }

    fn cookie_key(ttl: Option<u64>, path: &str) -> HashKey {
        let attributes = String::new();
        HashKey::Cookie {
            name: "user".into(),
            path: path.into(),
            ttl: ttl.map(Duration::from_secs),
            attributes,
        }
    }

    #[test]
    fn a_cookie_is_made_where_absent() {
        let HashKeyOutcome::MakeCookie { hash, set_cookie } = key(cookie_key(Some(60), "/app"), &[], None)
        else {
            panic!("a cookie is made");
        };
        let value = set_cookie.strip_prefix("user=\"").and_then(|rest| rest.split_once('"')).expect("quoted");
        assert_eq!(value.1, "; Max-Age=60; Path=/app; HttpOnly");
        assert!(value.0.len() == 16 && value.0.bytes().all(|byte| byte.is_ascii_hexdigit()), "{set_cookie}");
        assert_eq!(hash, xxh64(value.0.as_bytes(), 0), "the cookie brings the caller back");
    }

    #[test]
    fn a_made_cookie_has_the_attributes_asked_for() {
        let HashKey::Cookie { name, path, ttl, .. } = cookie_key(Some(5), "/") else { unreachable!() };
        let asked = HashKey::Cookie { name, path, ttl, attributes: "; SameSite=Strict; Secure".into() };
        let HashKeyOutcome::MakeCookie { set_cookie, .. } = key(asked, &[], None) else {
            panic!("a cookie is made");
        };
        assert!(set_cookie.ends_with("; Path=/; SameSite=Strict; Secure; HttpOnly"), "{set_cookie}");
    }

    #[test]
    fn a_session_cookie_has_no_age_and_without_ttl_none_is_made() {
        let HashKeyOutcome::MakeCookie { set_cookie, .. } = key(cookie_key(Some(0), ""), &[], None) else {
            panic!("a cookie is made");
        };
        assert!(set_cookie.ends_with("\"; HttpOnly") && !set_cookie.contains("Max-Age"), "{set_cookie}");
        assert_eq!(key(cookie_key(None, "/"), &[], None), HashKeyOutcome::None);
    }

    #[test]
    fn a_cookie_is_found_among_others_with_or_without_quotes() {
        let expected = HashKeyOutcome::Hash(xxh64(b"42", 0));
        for line in ["user=42", "a=1; user=42; b=2", "superuser=1;user=\"42\""] {
            assert_eq!(key(cookie_key(Some(9), "/"), &[("cookie", line)], None), expected, "{line}");
        }
        let crumbs = [("cookie", "a=1"), ("cookie", "user=42")];
        assert_eq!(key(cookie_key(None, "/"), &crumbs, None), expected);
    }

    #[test]
    fn a_header_counts_in_any_order_of_its_lines() {
        let name = || HashKey::Header(http::HeaderName::from_static("x-user"));
        assert_eq!(key(name(), &[], None), HashKeyOutcome::None);
        assert_eq!(key(name(), &[("x-user", "a")], None), HashKeyOutcome::Hash(xxh64(b"a", 0)));
        let (one, other) = ([("x-user", "a"), ("x-user", "b")], [("x-user", "b"), ("x-user", "a")]);
        assert_eq!(key(name(), &one, None), key(name(), &other, None));
    }

    #[test]
    fn the_head_counts_like_a_header() {
        for (part, text) in [
            (HeadPart::Method, "GET"),
            (HeadPart::Scheme, "http"),
            (HeadPart::Authority, "reviews:80"),
            (HeadPart::Path, "/a?b"),
        ] {
            let expected = HashKeyOutcome::Hash(xxh64(text.as_bytes(), 0));
            assert_eq!(key(HashKey::Head(part), &[], Some("b")), expected, "{part:?}");
        }
    }

    #[test]
    fn a_connection_shows_nothing_but_where_it_is_from() {
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let of = |key: HashKey| connection_key(&HashPolicy { key }, source);
        assert_eq!(of(HashKey::SourceIp), key(HashKey::SourceIp, &[], None).hash());
        assert!(of(HashKey::SourceIp).is_some());
        for none in [
            HashKey::Head(HeadPart::Path),
            HashKey::Header(http::header::HOST),
            HashKey::Query("q".into()),
            cookie_key(Some(0), "/"),
        ] {
            assert_eq!(of(none.clone()), None, "{none:?}");
        }
    }

    #[test]
    fn the_first_query_parameter_counts_undecoded() {
        let query = || HashKey::Query("u".into());
        let expected = HashKeyOutcome::Hash(xxh64(b"%61", 0));
        assert_eq!(key(query(), &[], Some("x=1&u=%61&u=2")), expected);
        assert_eq!(key(query(), &[], Some("user=1")), HashKeyOutcome::None);
        assert_eq!(key(query(), &[], None), HashKeyOutcome::None);
    }
}
