//! Reads `/etc/resolv.conf`: which resolvers, and which suffixes callers append to short names.
//!
//! Source: resolv.conf(5).

use std::net::{IpAddr, SocketAddr};

/// The resolvers of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// In the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// Suffixes, in lower case, without dots around them.
    pub search: Vec<String>,
}

impl Resolvers {
    /// Reads `/etc/resolv.conf`. An absent file gives none: only names of the mesh are answered then.
    pub fn of_system() -> Self {
        match std::fs::read_to_string(RESOLV_CONF) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                tracing::warn!(%error, file = RESOLV_CONF, "no resolvers for names outside the mesh");
                Self::default()
            }
        }
    }

    /// Reads the text of the file. The last `search` or `domain` line counts; what is not understood is logged.
    pub fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("nameserver"), Some(address)) => match address.parse::<IpAddr>() {
                    Ok(address) => resolvers.servers.push(SocketAddr::new(address, 53)),
                    Err(_) => {
                        tracing::warn!(address, file = RESOLV_CONF, "resolver is not used: no plain address");
                    }
                },
                (Some("search" | "domain"), Some(first)) => {
                    resolvers.search = std::iter::once(first).chain(words).filter_map(suffix).collect();
                }
                _ => {}
            }
        }
        resolvers.servers.truncate(MAX_SERVERS);
        resolvers
    }
}

fn suffix(word: &str) -> Option<String> {
    let word = word.trim_matches('.').to_ascii_lowercase();
    (!word.is_empty()).then_some(word)
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// `MAXNS` of resolv.h.
const MAX_SERVERS: usize = 3;
