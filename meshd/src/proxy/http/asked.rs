//! What a request asks for: read off its head once, and what is taken off with it.

use ::http::header::{self, HeaderMap, HeaderValue};
use ::http::request::Parts;
use ::http::uri::{PathAndQuery, Scheme};
use ::http::{Method, Version};
use mesh_core::wire::fold;

use super::super::local_reply::LocalReply;
use super::super::outbound::{Connection, Target};
use super::super::request;
use crate::telemetry::Counters;

/// What a request asks for, read off its head once. Nothing of it is copied: the values share the head's memory.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Host as sent, or as the listener stands for.
    pub(super) authority: HeaderValue,
    /// The service port.
    pub(super) port: u16,
    /// Raw path and query.
    pub(super) target: PathAndQuery,
    /// Of an absolute-form target or `:scheme`.
    pub(super) scheme: Option<Scheme>,
    pub(super) upgrade: bool,
    /// How often a meshd has sent it on so far.
    pub(super) hops: u8,
}

impl Asked {
    /// Reads and cleans the head: afterwards `parts.headers` are those that rules see.
    pub(super) fn of(connection: &Connection, parts: &mut Parts) -> Result<Self, Box<LocalReply>> {
        let upgrade = parts.version < Version::HTTP_2 && wanted_upgrade(&parts.headers)?;
        let hops = request::hops(&parts.headers);
        if hops > connection.worker.settings.hops {
            Counters::add(&connection.worker.shard.counters.refused_loops_total);
            return Err(Box::new(LocalReply::loop_detected()));
        }
        let switching = upgrade
            .then(|| [header::CONNECTION, header::UPGRADE].map(|name| parts.headers.get(name).cloned()));
        request::strip(&mut parts.headers);
        // What asks to switch is for rules to see.
        if let Some([Some(connection), Some(to)]) = switching {
            parts.headers.insert(header::CONNECTION, connection);
            parts.headers.insert(header::UPGRADE, to);
        }
        fold::fold(&mut parts.headers, parts.version >= Version::HTTP_2);
        let host = parts.headers.remove(header::HOST);
        let sent = match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => host,
        };
        let sent = sent.unwrap_or_else(|| HeaderValue::from_static(""));
        let (authority, port) = match &connection.target {
            Target::Port(port) => (sent, *port),
            Target::Address(address) => (sent, connection.service_port(*address)),
            Target::Host { host, port } => (named(host, *port)?, *port),
            Target::Local { address, .. } => (sent, address.port()),
            Target::Proxy => {
                let port = port_of(sent.to_str().unwrap_or_default(), parts.uri.scheme_str());
                (sent, port)
            }
        };
        let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        if let Some(edge) = &connection.edge {
            // A gateway is a proxy, too: requests may come back to it.
            let hops = hops.saturating_add(1);
            let scheme = Some(request::at_the_edge(&mut parts.headers, connection.peer.ip(), edge));
            return Ok(Self { method: parts.method.clone(), authority, port, target, scheme, upgrade, hops });
        }
        Ok(Self {
            method: parts.method.clone(),
            authority,
            port,
            target,
            scheme: parts.uri.scheme().cloned(),
            upgrade,
            hops,
        })
    }

    /// Returns the authority as rules read it; empty where it is not ASCII.
    pub(super) fn authority(&self) -> &str {
        self.authority.to_str().unwrap_or_default()
    }
}

/// The authority of a listener that stands for one host.
fn named(host: &str, port: u16) -> Result<HeaderValue, Box<LocalReply>> {
    let text = if port == 80 {
        HeaderValue::from_str(host)
    } else {
        HeaderValue::from_str(&format!("{host}:{port}"))
    };
    text.map_err(|_| Box::new(LocalReply::unknown_host()))
}

/// WebSocket passes, `h2c` is served as HTTP/1.1, anything else is refused. Source: Istio's `UpgradeConfigs`.
fn wanted_upgrade(headers: &HeaderMap) -> Result<bool, Box<LocalReply>> {
    match request::upgrade(headers) {
        None => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"websocket") => Ok(true),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"h2c") => Ok(false),
        Some(_) => Err(Box::new(LocalReply::forbidden("upgrade_failed"))),
    }
}

/// Returns the port of an authority, else its scheme's.
fn port_of(authority: &str, scheme: Option<&str>) -> u16 {
    let default = if scheme == Some("https") { 443 } else { 80 };
    let port = authority.rsplit_once(':').filter(|(host, _)| !host.contains('[') || host.ends_with(']'));
    port.and_then(|(_, port)| port.parse().ok()).unwrap_or(default)
}
