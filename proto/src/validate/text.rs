//! Forms of text: host names, labels, header names.

use std::net::IpAddr;

use crate::value::Labels;
use crate::yaml::shorten;

/// A DNS label of RFC 1123, upper case allowed as Istio does.
pub(super) fn label(text: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.is_empty()
        || text.len() > 63
        || text.starts_with('-')
        || text.ends_with('-')
        || !text.bytes().all(inner)
    {
        return Err(format!(
            "{:?} is no name: at most 63 letters, digits and \"-\", with a letter or digit at both ends",
            shorten(text)
        ));
    }
    Ok(())
}

/// A host name without wildcard; a dot at its end is allowed.
pub(super) fn fqdn(text: &str) -> Result<(), String> {
    host(text)?;
    top(text, text)
}

fn host(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must be there".to_owned());
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if text.len() > 255 || !name.split('.').all(|part| label(part).is_ok()) {
        return Err(format!("{:?} is no host name", shorten(text)));
    }
    Ok(())
}

/// The last label of a name is no number: what looks like a part of an address is none. `rest` is what counts of it.
fn top(text: &str, rest: &str) -> Result<(), String> {
    match rest.rsplit('.').next() {
        Some(last) if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("{:?} is no host name: its last label is a number", shorten(text)))
        }
        _ => Ok(()),
    }
}

/// A host name, `*`, `*.rest`, or an unfinished first label such as `*-v1.rest`.
pub(super) fn wildcard_host(text: &str) -> Result<(), String> {
    // The first label may be a number: `80` is a short name.
    let beyond = text.split_once('.').map_or("", |(_, rest)| rest);
    let Some(rest) = text.strip_prefix('*') else {
        host(text).map_err(|reason| {
            if text.contains('*') {
                format!("{:?} has a wildcard elsewhere than at its beginning", shorten(text))
            } else {
                reason
            }
        })?;
        return top(text, beyond);
    };
    if rest.is_empty() {
        return Ok(());
    }
    let rest = rest.strip_prefix(['.', '-']).unwrap_or(rest);
    host(rest).map_err(|_| format!("{:?} is no host name with a wildcard", shorten(text)))?;
    top(text, beyond)
}

/// A wildcard stands for whole labels: `*`, `*.rest`.
pub(super) fn whole_labels(text: &str) -> Result<(), String> {
    if text.len() > 1 && text.starts_with('*') && !text.starts_with("*.") {
        return Err(format!("{:?}: a wildcard stands for whole labels here; write *.domain", shorten(text)));
    }
    Ok(())
}

/// Whether two names, each with or without wildcard, stand for a common host.
///
/// Source: Istio `host.Name.Matches`.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
        (Some(suffix), None) => other.ends_with(suffix),
        (None, Some(suffix)) => one.ends_with(suffix),
        (None, None) => one == other,
    }
}

/// The path of a unix socket, or its name in the abstract namespace (`@name`).
pub(super) fn socket(path: &str) -> Result<(), String> {
    if path.starts_with('@') {
        return Ok(());
    }
    if !path.starts_with('/') {
        return Err("a unix socket must be an absolute path (or begin with @)".to_owned());
    }
    if path.ends_with('/') { Err("a unix socket cannot be a folder".to_owned()) } else { Ok(()) }
}

/// How the address of a unix socket begins.
pub(super) const UNIX: &str = "unix://";

/// What a listener is bound to: an address.
pub(super) fn bind(bind: &str) -> Result<(), String> {
    if bind.is_empty() || address(bind) {
        return Ok(());
    }
    Err(format!("{:?} is no IP address", shorten(bind)))
}

/// Whether every host `narrow` stands for is among those of `wide`.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.len() >= wide.len() && narrow.ends_with(suffix),
        None => wide.eq_ignore_ascii_case(narrow),
    }
}

pub(super) fn address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// An address or a range such as `10.0.0.0/8`.
pub(super) fn subnet(text: &str) -> Result<(), String> {
    if address(text) || text.parse::<ipnet::IpNet>().is_ok() {
        return Ok(());
    }
    Err(format!("{:?} is neither an address nor a range such as 10.0.0.0/8", shorten(text)))
}

/// `name`, `namespace/name`, or `mesh`.
pub(super) fn gateway(text: &str) -> Result<(), String> {
    let is_one = match text.split_once('/') {
        Some((namespace, name)) => label(namespace).is_ok() && label(name).is_ok(),
        None => fqdn(text).is_ok(),
    };
    if !is_one {
        return Err(format!("{:?} is no gateway: write \"mesh\", a name, or namespace/name", shorten(text)));
    }
    Ok(())
}

/// Keys and values of labels, by Kubernetes' rules.
pub(super) fn labels(labels: &Labels) -> Result<(), String> {
    for (key, value) in labels {
        if !label_key(key) {
            return Err(format!("{:?} is no key of a label", shorten(key)));
        }
        if value.contains('*') {
            return Err(format!("{:?} is no value of a label: wildcards are not allowed", shorten(value)));
        }
        // Istio knows no bound on the length of a value.
        if !value.is_empty() && !named(value) {
            return Err(format!("{:?} is no value of a label", shorten(value)));
        }
    }
    Ok(())
}

pub(super) fn label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
    prefix.len() <= 253 && !prefix.ends_with('.') && host(prefix).is_ok() && qualified(name)
}

fn qualified(text: &str) -> bool {
    text.len() <= 63 && named(text)
}

fn named(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A header name as HTTP has it.
pub(super) fn header_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a header name must not be empty".to_owned());
    }
    http::HeaderName::from_bytes(name.as_bytes())
        .map(|_| ())
        .map_err(|_| format!("{:?} is no header name", shorten(name)))
}

/// A header value with Envoy's variables: `%NAME%`, `%NAME(argument):length%`, and `%%` for a percent sign.
pub(super) fn header_value(value: &str) -> Result<(), String> {
    if http::HeaderValue::from_str(value).is_err() && http::HeaderValue::from_bytes(value.as_bytes()).is_err()
    {
        return Err("a header value must not hold control characters".to_owned());
    }
    let mut rest = value;
    while let Some(start) = rest.find('%') {
        let after = &rest[start + 1..];
        if let Some(next) = after.strip_prefix('%') {
            rest = next;
            continue;
        }
        rest = variable(after).ok_or_else(|| {
            format!(
                "{:?} has a single \"%\"; write \"%%\" for a percent sign, or a variable such as %REQ(name)%",
                shorten(value)
            )
        })?;
    }
    Ok(())
}

/// Takes a variable's name, argument, length and closing `%`.
fn variable(text: &str) -> Option<&str> {
    let end =
        text.find(|letter: char| !(letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_'))?;
    if end == 0 {
        return None;
    }
    let mut rest = &text[end..];
    if let Some(argument) = rest.strip_prefix('(') {
        rest = &argument[argument.find(')')? + 1..];
    }
    if let Some(length) = rest.strip_prefix(':') {
        rest = length.trim_start_matches(|letter: char| letter.is_ascii_digit());
    }
    rest.strip_prefix('%')
}
