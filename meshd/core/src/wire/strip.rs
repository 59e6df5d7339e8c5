//! Takes off a request's head what belongs to one connection only, and what only meshd may say.
//!
//! Rules see what is left, and so does the next hop. Source: RFC 9110 section 7.6.1; Envoy's connection manager.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::guard::HOP_BY_HOP;

/// Takes off what belongs to one connection only, and what only meshd may say.
///
/// differs: all of `x-envoy-…`, where Envoy lets those pass that it does not obey.
pub fn strip(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    let ours = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-envoy-") || name.starts_with("x-mesh-") || name == CLIENT_CERTIFICATE.as_str()
    };
    // Most requests have none: look before making a list.
    if headers.keys().any(ours) {
        let names: Vec<_> = headers.keys().filter(|name| ours(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Takes off the fields that say something about one connection only. `te: trailers` stays, as Envoy has it.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at the names is cheaper than a search for each field: most messages have none, or one.
    let mut present = [false; NAMES.len()];
    let (mut any, mut has_te) = (false, false);
    for name in headers.keys() {
        has_te |= *name == header::TE;
        if let Some(index) = NAMES.iter().position(|other| other == name) {
            (present[index], any) = (true, true);
        }
    }
    if any {
        remove_named(headers);
        for (name, _) in NAMES.iter().zip(present).filter(|(_, present)| *present) {
            headers.remove(name);
        }
    }
    if has_te {
        let trailers = headers.get_all(header::TE).iter().any(|value| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|te| te.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Takes off what `connection` names.
fn remove_named(headers: &mut HeaderMap) {
    let is_plain = |value: &[u8]| {
        [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|plain| value.eq_ignore_ascii_case(plain))
    };
    let mut values = headers.get_all(header::CONNECTION).iter();
    // What most say names no field that is not hop by hop anyway.
    if values.all(|value| is_plain(value.as_bytes())) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| name != header::TE)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// In one place of memory, where a constant would be made anew for each look.
static NAMES: [HeaderName; 6] = HOP_BY_HOP;

const CLIENT_CERTIFICATE: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

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
    fn hop_by_hop_fields_and_our_own_names_are_taken_off() {
        let mut sent = headers(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("te", "gzip, trailers"),
            ("x-envoy-max-retries", "9"),
            ("x-mesh-instance", "other"),
            ("x-forwarded-client-cert", "forged"),
            ("x-forwarded-for", "10.1.2.3"),
        ]);

        strip(&mut sent);

        assert_eq!(sent, headers(&[("x-forwarded-for", "10.1.2.3"), ("te", "trailers")]));
    }
}
