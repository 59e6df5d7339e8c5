//! What a request asks for: read off its head once, and what is taken off with it.

use ::http::Version;
use ::http::header::{self, HeaderMap};
use ::http::request::Parts;

use super::super::local_reply::LocalReply;
use super::super::outbound::{Connection, Target};
use super::super::request;

/// What a request asks for, read off its head once.
pub(super) struct Asked {
    /// Host as sent, or as the listener stands for.
    pub(super) authority: String,
    /// The service port.
    pub(super) port: u16,
    /// Raw path and query.
    pub(super) target: String,
    /// Of an absolute-form target or `:scheme`.
    pub(super) scheme: Option<String>,
    pub(super) upgrade: bool,
}

impl Asked {
    /// Reads and cleans the head: afterwards `parts.headers` are those that rules see.
    pub(super) fn of(connection: &Connection, parts: &mut Parts) -> Result<Self, Box<LocalReply>> {
        let upgrade = parts.version < Version::HTTP_2 && wanted_upgrade(&parts.headers)?;
        request::strip(&mut parts.headers);
        let sent = parts.uri.authority().map(::http::uri::Authority::as_str);
        let host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let sent = sent.or_else(host).unwrap_or_default();
        let (authority, port) = match &connection.target {
            Target::Port(port) => (sent.to_owned(), *port),
            Target::Address(address) => (sent.to_owned(), connection.service_port(*address)),
            Target::Host { host, port } if *port == 80 => (host.to_string(), 80),
            Target::Host { host, port } => (format!("{host}:{port}"), *port),
            Target::Proxy => (sent.to_owned(), port_of(sent, parts.uri.scheme_str())),
        };
        parts.headers.remove(header::HOST);
        if let Some(edge) = connection.edge {
            let scheme = request::at_the_edge(&mut parts.headers, connection.peer.ip(), edge);
            return Ok(Self {
                authority,
                port,
                target: target_of(&parts.uri),
                scheme: Some(scheme.to_owned()),
                upgrade,
            });
        }
        let scheme = parts
            .uri
            .scheme_str()
            .filter(|_| parts.version < Version::HTTP_2 || parts.uri.scheme_str() == Some("https"));
        Ok(Self {
            authority,
            port,
            target: target_of(&parts.uri),
            scheme: scheme.map(str::to_owned),
            upgrade,
        })
    }
}

fn target_of(uri: &::http::Uri) -> String {
    uri.path_and_query().map_or_else(|| "/".to_owned(), |target| target.as_str().to_owned())
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
