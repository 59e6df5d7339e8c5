//! The small words of configuration files, each read once and then right: names, labels, localities, addresses.

use std::net::{IpAddr, SocketAddr};

use mesh_core::identity::Identity;
use mesh_core::plan::{Locality, Workload};

use super::document::{Document, Read, Section, Value, map, parsed};
use mesh_proto::value::Labels;

/// Reads a DNS label: the name of a service or namespace.
///
/// Source: RFC 1123, as Kubernetes applies it.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let sound = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if text.is_empty() || text.len() > 63 || !text.bytes().all(sound) {
        return Err(format!("{text:?} is not a name of 1 to 63 letters a-z, digits and '-'"));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(format!("{text:?} begins or ends with '-'"));
    }
    Ok(text.to_owned())
}

/// Reads a service account or instance id: one segment of a SPIFFE path, by the rules of [`Identity`].
pub(crate) fn account(text: &str) -> Result<String, String> {
    Identity::workload("any", "default", text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Reads a host name: dot-separated labels, in lower case.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let sound = |part: &str| {
        let edges = part.starts_with('-') || part.ends_with('-');
        let letters = part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
        !part.is_empty() && part.len() <= 63 && letters && !edges
    };
    if lower.len() > 253 || !lower.split('.').all(sound) {
        return Err(format!("{text:?} is not a host name such as \"web-1.example.com\""));
    }
    Ok(lower)
}

/// Reads `region/zone/subzone`; parts may be missing from the right.
pub(crate) fn locality(text: &str) -> Result<Locality, String> {
    let parts: Vec<&str> = text.split('/').collect();
    if !text.is_empty() && (parts.len() > 3 || parts.iter().any(|part| part.is_empty())) {
        return Err(format!("{text:?} is not region, region/zone or region/zone/subzone"));
    }
    Ok(Locality::parse(text))
}

/// Reads an address with port.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not IP:PORT such as \"127.0.0.1:9080\" or \"[::1]:9080\""))
}

/// Reads an address without port.
pub(crate) fn ip_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address such as \"10.0.0.7\" or \"fd00::7\""))
}

/// Whether an address is one of this host's own: only those can be bound.
pub(crate) fn is_on_this_host(address: IpAddr) -> bool {
    address.is_loopback() || std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// Reads `HOST:PORT`.
pub(crate) fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if port != 0 => Ok((host_name(host)?, port)),
        _ => Err(format!("{text:?} is not HOST:PORT such as \"reviews.default:9080\"")),
    }
}

/// Reads labels of workloads and hosts.
///
/// Source: Kubernetes "Labels and Selectors", syntax and character set.
pub(crate) fn labels(value: &Value<'_>) -> Read<Labels> {
    map(|key, value| {
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let key_is_sound = !key.is_empty()
            && key.len() <= 317
            && key.splitn(2, '/').all(|part| !part.is_empty() && part.bytes().all(sound));
        parsed(
            |_: &str| {
                if key_is_sound { Ok(()) } else { Err(format!("{key:?} cannot be the name of a label")) }
            },
        )(value)?;
        parsed(|text: &str| {
            if text.len() <= 63 && text.bytes().all(sound) {
                return Ok(text.to_owned());
            }
            Err(format!("{text:?} is not a label of at most 63 letters, digits, '-', '_' and '.'"))
        })(value)
    })(value)
    .map(|labels| labels.into_iter().collect())
}

/// Reads who calls: `namespace`, `account`, `labels`, `locality`. What is absent is as in `default`.
pub(crate) fn workload<'t>(
    document: &mut Document<'t>,
    mut section: Section<'t>,
    default: &Workload,
) -> Workload {
    let workload = Workload {
        namespace: section
            .take(document, "namespace", parsed(label))
            .unwrap_or_else(|| default.namespace.clone()),
        account: section
            .take(document, "account", parsed(account))
            .unwrap_or_else(|| default.account.clone()),
        labels: section.take(document, "labels", labels).unwrap_or_else(|| default.labels.clone()),
        locality: section
            .take(document, "locality", parsed(locality))
            .unwrap_or_else(|| default.locality.clone()),
    };
    section.finish(document);
    workload
}

/// Reads a path; it must be absolute, since meshd has no folder of its own.
pub(crate) fn absolute_path(value: &Value<'_>) -> Read<std::path::PathBuf> {
    parsed(|text: &str| {
        let is_absolute = text.starts_with('/');
        is_absolute.then(|| text.into()).ok_or_else(|| format!("{text:?} is not an absolute path"))
    })(value)
}

/// Reads how much is logged: a level, or levels of parts with commas between them.
///
/// `EnvFilter` takes a word that is no level for the name of a part, and then logs nothing else: here it is a mistake.
pub(crate) fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let wrong =
        || format!("{text:?} is not error, warn, info, debug or trace (also per module: info,meshd=debug)");
    let is_known = |directive: &str| {
        directive.contains(['=', '['])
            || LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive.trim()))
    };
    let is_read = tracing_subscriber::EnvFilter::try_new(text).is_ok();
    if text.len() > LONGEST_LEVEL || !is_read || !text.split(',').all(is_known) {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

const LONGEST_LEVEL: usize = 1_000;
