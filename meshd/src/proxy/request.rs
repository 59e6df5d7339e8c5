//! The head of a request on its way up: what is taken off at the door, what meshd adds, and its two spellings.
//!
//! Source: RFC 9110 section 7.6.1 (hop-by-hop); Envoy's connection manager and router (`x-envoy-…`, `x-request-id`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};
use http_body::Body;
use mesh_core::hex;
use mesh_core::plan::Via;
pub(crate) use mesh_core::wire::strip::{strip, strip_hop_by_hop};

use super::body::Outgoing;
use super::outbound::{Connection, Edge};
use super::upstream::Pool;

/// A head, ready to be sent to any endpoint.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// As the endpoint shall see it.
    pub(crate) authority: HeaderValue,
    pub(crate) https: bool,
    pub(crate) target: PathAndQuery,
    pub(crate) headers: HeaderMap,
    /// What the caller speaks.
    pub(crate) version: Version,
    /// `upgrade: websocket`.
    pub(crate) upgrade: bool,
    /// How often a meshd has sent it on, this time included.
    pub(crate) hops: u8,
}

/// Whether the caller asks to switch to another protocol, and to which.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let asked = headers.get(header::UPGRADE)?;
    let is_upgrade = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    headers.get_all(header::CONNECTION).iter().any(is_upgrade).then_some(asked)
}

/// Reads how often a meshd has sent a request on. Anybody may write it: too high a number harms only the one who does.
pub(crate) fn hops(headers: &HeaderMap) -> u8 {
    let text = headers.get(HOPS).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether the caller wants errors as gRPC has them.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
    })
}

/// Reads `grpc-timeout`: up to eight digits and a unit. Source: gRPC over HTTP/2.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Writes a `grpc-timeout`, in the smallest unit that eight digits are enough for.
pub(crate) fn grpc_timeout_of(millis: u64) -> HeaderValue {
    const MOST: u64 = 99_999_999;
    let units = [(1, 'm'), (1_000, 'S'), (60_000, 'M'), (3_600_000, 'H')];
    let fits = units.into_iter().find(|(unit, _)| millis / unit <= MOST);
    let text = fits.map_or_else(|| format!("{MOST}H"), |(unit, letter)| format!("{}{letter}", millis / unit));
    HeaderValue::from_str(&text).expect("digits and a letter")
}

/// Returns where a caller is: the last of those that `x-forwarded-for` names, which whoever stands before us has seen,
/// else who has opened the connection. Gateways believe nobody.
///
/// Source: Envoy `ConnectionManagerUtility::mutateRequestHeaders` without `use_remote_address`, `getLastAddressFromXFF`.
pub(crate) fn remote(headers: &HeaderMap, connection: &Connection) -> SocketAddr {
    let last = headers.get_all(FORWARDED_FOR).iter().next_back().filter(|_| connection.edge.is_none());
    let named = last.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    named.map_or(connection.peer, |address: IpAddr| SocketAddr::new(address, 0))
}

/// Adds what every request carries, and what rules may ask for: the scheme it came by and an id. Callers on this host
/// come by `http`, whatever the scheme of their target.
pub(crate) fn add_standard(headers: &mut HeaderMap) {
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !headers.contains_key(REQUEST_ID) {
        headers.insert(REQUEST_ID, random_id());
    }
}

/// Writes down where a gateway's visitor comes from and how; what it says of that itself does not count. Returns the
/// scheme.
///
/// Source: Envoy `ConnectionManagerUtility::mutateRequestHeaders` with `use_remote_address`, as Istio sets it for
/// gateways without trusted proxies before them.
pub(crate) fn at_the_edge(headers: &mut HeaderMap, visitor: IpAddr, edge: &Edge) -> Scheme {
    let (scheme, text) = match edge {
        Edge::Plain => (Scheme::HTTP, "http"),
        Edge::Tls(_) => (Scheme::HTTPS, "https"),
    };
    if let Edge::Tls(Some(shown)) = edge {
        headers.insert(CLIENT_CERTIFICATE, shown.clone());
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(text));
    headers.insert(REQUEST_ID, random_id());
    let address = visitor.to_string();
    let before: Vec<&str> =
        headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
    let all = if before.is_empty() { address.clone() } else { format!("{},{address}", before.join(",")) };
    if let (Ok(all), Ok(address)) = (HeaderValue::from_str(&all), HeaderValue::from_str(&address)) {
        headers.insert(FORWARDED_FOR, all);
        headers.insert(EXTERNAL_ADDRESS, address);
    }
    scheme
}

/// Writes a number that is nearly always small: those of one digit cost no memory.
pub(crate) fn number(number: u64) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let digit = usize::try_from(number).ok().and_then(|number| DIGITS.get(number));
    digit.map_or_else(|| number.into(), |digit| HeaderValue::from_static(digit))
}

/// Makes a random UUID (version 4). Source: RFC 9562.
fn random_id() -> HeaderValue {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let random = fastrand::u128(..) & !VERSION & !VARIANT | 4 << 76 | 0b10 << 62;
    let digits = hex::thirty_two(random);
    let mut text = [b'-'; 36];
    for (to, from) in [(0..8, 0..8), (9..13, 8..12), (14..18, 12..16), (19..23, 16..20), (24..36, 20..32)] {
        text[to].copy_from_slice(&digits[from]);
    }
    // Shared from the start: it is copied with the other fields.
    HeaderValue::from_maybe_shared(Bytes::from_owner(text)).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

impl Head {
    /// Returns the host that the endpoint is asked for: lower case, without port or brackets.
    pub(crate) fn host(&self) -> Option<String> {
        let host = mesh_core::route::host_of(self.authority.to_str().ok()?);
        Some(host.trim_matches(['[', ']']).to_owned()).filter(|host| !host.is_empty())
    }

    /// Writes the request for an endpoint's connection: origin form for HTTP/1, absolute for HTTP/2 and hops.
    ///
    /// `None` when the authority, by a rule or by the caller, cannot be written there.
    pub(crate) fn request(
        &self,
        headers: HeaderMap,
        pool: &Pool,
        body: Outgoing,
    ) -> Option<Request<Outgoing>> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = headers;
        if pool.http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.absolute()?;
            for name in [header::HOST, header::CONNECTION, header::UPGRADE] {
                request.headers_mut().remove(name);
            }
        } else {
            *request.uri_mut() = Uri::from(self.target.clone());
            request.headers_mut().insert(header::HOST, self.authority.clone());
            say_length(&mut request);
            self.ask_to_switch(request.headers_mut());
        }
        // Whoever gets it may be another proxy, that sends it back to us.
        request.headers_mut().insert(HOPS, number(u64::from(self.hops)));
        if let Via::Mesh { instance, .. } = &pool.via
            && pool.is_hop()
        {
            request.headers_mut().insert(INSTANCE, HeaderValue::from_str(instance).ok()?);
            if let Some(name) = pool.server_name() {
                request.headers_mut().insert(SERVER_NAME, name);
            }
        }
        Some(request)
    }

    /// Writes the request for HTTP/1.1 through a tunnel.
    pub(crate) fn tunnelled(&self, headers: HeaderMap, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.headers_mut() = headers;
        request.headers_mut().insert(header::HOST, self.authority.clone());
        say_length(&mut request);
        request.headers_mut().insert(HOPS, number(u64::from(self.hops)));
        self.ask_to_switch(request.headers_mut());
        request
    }

    fn ask_to_switch(&self, headers: &mut HeaderMap) {
        if self.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
    }

    fn absolute(&self) -> Option<Uri> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.https { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority =
            Some(Authority::from_maybe_shared(Bytes::copy_from_slice(self.authority.as_bytes())).ok()?);
        parts.path_and_query = Some(self.target.clone());
        Uri::from_parts(parts).ok()
    }
}

/// Says of a request of HTTP/1 how its body ends where the writer would not: that there is none, where one is expected of
/// its method, and that there is one behind a GET. Source: RFC 9110 section 8.6; Envoy `StreamEncoderImpl::encodeHeadersBase`.
fn say_length(request: &mut Request<Outgoing>) {
    let without = [Method::GET, Method::HEAD, Method::DELETE, Method::TRACE, Method::CONNECT];
    let expects_none = without.contains(request.method());
    if matches!(request.body(), Outgoing::Empty) {
        if !expects_none {
            request.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
        }
    } else if expects_none
        && request.body().size_hint().exact().is_none()
        && !request.headers().contains_key(header::CONTENT_LENGTH)
    {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// How often a meshd has sent a request on, whether to another host or to an application. differs: Envoy and Istio count none.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("x-mesh-hops");
/// Which instance on the other host a hop is for.
pub(crate) const INSTANCE: HeaderName = HeaderName::from_static("x-mesh-instance");
/// The name that a gateway's server is known by, where a rule says one (`sni` with `ISTIO_MUTUAL`).
pub(crate) const SERVER_NAME: HeaderName = HeaderName::from_static("x-mesh-server-name");
/// Who calls, as telemetry names it: what the certificate of a hop does not say.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("x-mesh-source");
/// Says that the application shall be spoken to in HTTP/2 whatever its port declares.
pub(crate) const SPEAK: HeaderName = HeaderName::from_static("x-mesh-protocol");
pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(crate) const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
pub(crate) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
pub(crate) const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("250m", Some(Duration::from_millis(250))),
            ("2S", Some(Duration::from_secs(2))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5x", None),
        ] {
            assert_eq!(grpc_timeout(&headers(&[("grpc-timeout", text)])), expected, "{text}");
        }
    }

    #[test]
    fn an_id_is_a_uuid() {
        let id = random_id();
        let id = id.to_str().expect("ASCII");
        assert_eq!((id.len(), &id[14..15]), (36, "4"), "{id}");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
    }
}
