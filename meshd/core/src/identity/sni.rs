//! The name a hop asks for: which service port, of which subset, of which host.
//!
//! Istio's form (`outbound_.PORT_.SUBSET_.HOST`), so that captures read alike. The destination uses it to find
//! the owner of the port; it carries no trust.

/// What a hop's server name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sni<'a> {
    /// The service's port, not the target's.
    pub port: u16,
    /// The subset that the source chose; empty where it chose none.
    pub subset: &'a str,
    /// The service's full host name.
    pub host: &'a str,
}

/// Writes the server name of a hop.
///
/// Lower case throughout: server names are compared without case, and TLS libraries lower them.
pub fn format(port: u16, subset: &str, host: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}").to_ascii_lowercase()
}

/// Reads the server name of a hop; `None` if it is not one.
///
/// The port has no leading zero and is not 0; subset and host are made of letters, digits, `-`, `_` and `.`, the
/// host is not empty, and the whole has at most 253 bytes: the limit of a name in TLS (RFC 6066, section 3).
pub fn parse(text: &str) -> Option<Sni<'_>> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let rest = text.strip_prefix("outbound_.")?;
    let (port, rest) = rest.split_once("_.")?;
    let (subset, host) = rest.split_once("_.")?;
    let sound =
        |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let number_is_plain = port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
    if !number_is_plain || host.is_empty() || !sound(subset) || !sound(host) {
        return None;
    }
    let port = port.parse().ok()?;
    Some(Sni { port, subset, host })
}

const MAX_BYTES: usize = 253;
