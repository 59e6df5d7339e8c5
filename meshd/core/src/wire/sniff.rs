//! What a connection speaks, told from its first bytes.
//!
//! Used only for ports whose protocol nobody declared. Source: Envoy's `http_inspector` and `tls_inspector`.

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS handshake record.
    Tls,
    /// Something else: opaque bytes.
    Other,
    /// Too little to tell.
    More,
}

/// The preface that opens an HTTP/2 connection. Source: RFC 9113, section 3.4.
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How many bytes are always enough to tell.
pub const ENOUGH_BYTES: usize = 24;

/// Whether servers on a port are known to speak first: waiting there for the caller's first bytes is of no use.
///
/// Source: Istio's well-known ports of SMTP, DNS, MySQL and MongoDB (`ConvertProtocol`).
pub const fn server_speaks_first(port: u16) -> bool {
    matches!(port, 25 | 53 | 3306 | 27017)
}

/// Tells what a connection speaks from its first bytes. Never returns [`Sniff::More`] for [`ENOUGH_BYTES`] or more.
///
/// HTTP/1 is a method of the registered ones, a space, and the beginning of a target: `EHLO host` and `PING` are not.
pub fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.is_empty() {
        return Sniff::More;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Sniff::Http2;
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Sniff::More;
    }
    if bytes[0] == TLS_HANDSHAKE {
        return sniff_tls(bytes);
    }
    sniff_http1(bytes)
}

fn sniff_tls(bytes: &[u8]) -> Sniff {
    match bytes {
        [_, 3, 0..=4, ..] => Sniff::Tls,
        [_] | [_, 3] => Sniff::More,
        _ => Sniff::Other,
    }
}

fn sniff_http1(bytes: &[u8]) -> Sniff {
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let may_become_one = METHODS.iter().any(|method| method.as_bytes().starts_with(bytes));
        return if may_become_one { Sniff::More } else { Sniff::Other };
    };
    let (method, target) = (&bytes[..space], &bytes[space + 1..]);
    if !is_method(method) {
        return Sniff::Other;
    }
    match target.first() {
        None => Sniff::More,
        Some(b'/' | b'*' | b'h' | b'H') => Sniff::Http1,
        Some(byte) if method == b"CONNECT" && byte.is_ascii_graphic() => Sniff::Http1,
        Some(_) => Sniff::Other,
    }
}

/// Whether this is a method that Envoy's HTTP/1 parser accepts: the registered ones, in upper case.
pub fn is_method(method: &[u8]) -> bool {
    METHODS.iter().any(|known| known.as_bytes() == method)
}

const TLS_HANDSHAKE: u8 = 22;

/// Source: Envoy's Balsa codec, `isMethodValid`.
const METHODS: [&str; 33] = [
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "CONNECT",
    "TRACE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "M-SEARCH",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        let cases: &[(&[u8], Sniff)] = &[
            (b"", Sniff::More),
            (b"G", Sniff::More),
            (b"GET ", Sniff::More),
            (b"GET / HTTP/1.1\r\n", Sniff::Http1),
            (b"GET http://a/ HTTP/1.1\r\n", Sniff::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Sniff::Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Sniff::Http1),
            (b"get / HTTP/1.1\r\n", Sniff::Other),
            (b"EHLO example.com\r\n", Sniff::Other),
            (b"PING\r\n", Sniff::Other),
            (b"PRI * HT", Sniff::More),
            (HTTP2_PREFACE, Sniff::Http2),
            (b"PRI * HTTP/1.1\r\n", Sniff::Other),
            (&[22], Sniff::More),
            (&[22, 3], Sniff::More),
            (&[22, 3, 1], Sniff::Tls),
            (&[22, 9, 1], Sniff::Other),
            (&[0, 1, 2], Sniff::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), *expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn enough_bytes_always_tell(bytes in proptest::collection::vec(0u8.., ENOUGH_BYTES..64)) {
            proptest::prop_assert_ne!(sniff(&bytes), Sniff::More);
        }
    }
}
