//! What is said on a connection before the application's own protocol: a PROXY header, a TLS handshake.
//!
//! Connections that begin differently are never shared: an opening is part of what a pool is known by. Towards an
//! instance on another host both are said to the application itself, through a tunnel over the hop.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::identity::{Identity, sni};
use mesh_core::plan::{Cluster, Endpoint, ProxyVersion, TlsMaterial, TlsOrigination, UpstreamTls, Via};
use tokio::io::AsyncWriteExt as _;

use super::connect::ConnectError;
use crate::proxy::wire::{Stream, Wire};
use crate::proxy::worker::Worker;

/// How a connection begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Opening {
    proxy: Option<(ProxyVersion, Ends)>,
    tls: Option<(Arc<TlsOrigination>, Option<Arc<str>>)>,
}

/// The ends of a caller's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    /// Where the caller is.
    pub(crate) source: SocketAddr,
    /// Where it was going, as far as that is known.
    pub(crate) destination: Option<SocketAddr>,
    /// Our own address that it came to.
    pub(crate) here: Option<SocketAddr>,
}

impl Opening {
    /// Returns how connections to an endpoint begin; `None`: at once with the application's protocol. `host` tells whom
    /// the caller asks for, without port.
    pub(crate) fn of<H: AsRef<str>>(
        worker: &Worker,
        cluster: &Cluster,
        endpoint: &Endpoint,
        host: impl FnOnce() -> H,
        ends: Ends,
    ) -> Option<Self> {
        let tls = match &cluster.tls {
            UpstreamTls::Originate(settings) => {
                Some((settings.clone(), settings.server_name(host().as_ref()).map(Arc::from)))
            }
            UpstreamTls::Mesh(settings) if !has_tls_of_mesh(worker, &endpoint.via) => {
                Some((settings.clone(), settings.server_name("").map(Arc::from)))
            }
            UpstreamTls::Disable | UpstreamTls::Mesh(_) => None,
        };
        let proxy = cluster.proxy_protocol.map(|version| {
            let endpoint = match &endpoint.via {
                Via::Local(address) | Via::Plain(address) => Some(*address),
                Via::Mesh { .. } | Via::Name { .. } | Via::Socket(_) => None,
            };
            // Envoy names the address at its own end of the caller's connection, which is where that was going if it was
            // caught. Recorded in `tests/conformance/cases/proxy-headers`.
            (version, Ends { destination: ends.destination.or(ends.here).or(endpoint), ..ends })
        });
        (tls.is_some() || proxy.is_some()).then_some(Self { proxy, tls })
    }

    /// Whether a hop is asked for, which speaks HTTP/2 whatever the application does.
    pub(crate) fn asks_for_hop(&self) -> bool {
        let asked = self.tls.as_ref().filter(|(settings, _)| settings.material == TlsMaterial::Mesh);
        asked.is_some_and(|(settings, _)| sni::parse(&settings.sni).is_some())
    }

    /// Whether it is said for one caller's connection only.
    pub(super) fn is_personal(&self) -> bool {
        self.proxy.is_some()
    }

    /// Says it, for `from` where that is a certificate of the mesh. `protocol` is what is spoken afterwards, as ALPN
    /// names it.
    pub(crate) async fn say(
        &self,
        worker: &Worker,
        from: Option<&Identity>,
        protocol: Option<&'static [u8]>,
        mut wire: Wire,
    ) -> Result<Wire, ConnectError> {
        if let Some((version, ends)) = &self.proxy {
            let header = match version {
                ProxyVersion::V1 => ends.version_1().into_bytes(),
                ProxyVersion::V2 => ends.version_2(),
            };
            wire.write_all(&header).await.map_err(ConnectError::Opening)?;
        }
        let Some((settings, name)) = &self.tls else { return Ok(wire) };
        let stream = worker.originator.begin(settings, from, protocol, name.as_deref(), wire).await?;
        Ok(Wire::new(Stream::Tls(Box::new(stream))))
    }
}

/// Whether the way to an endpoint has the mesh's TLS without more: a hop has, and this host's own applications need
/// none. Its own gateways do.
fn has_tls_of_mesh(worker: &Worker, via: &Via) -> bool {
    match via {
        Via::Mesh { .. } => true,
        Via::Local(address) => !worker.is_door(*address),
        Via::Plain(_) | Via::Name { .. } | Via::Socket(_) => false,
    }
}

impl Ends {
    /// Both ends in one family: IPv4 is mapped where the other is IPv6.
    fn alike(&self) -> Option<(SocketAddr, SocketAddr)> {
        let destination = self.destination?;
        let mapped = |address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            IpAddr::V6(_) => address,
        };
        if self.source.is_ipv4() == destination.is_ipv4() {
            return Some((self.source, destination));
        }
        Some((mapped(self.source), mapped(destination)))
    }

    /// Source: the PROXY protocol, section 2.1.
    fn version_1(&self) -> String {
        let Some((source, destination)) = self.alike() else { return "PROXY UNKNOWN\r\n".to_owned() };
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.ip(), destination.ip());
        format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
    }

    /// Source: the PROXY protocol, section 2.2.
    fn version_2(&self) -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        let Some((source, destination)) = self.alike() else {
            // LOCAL, of no family.
            header.extend([0x20, 0x00, 0, 0]);
            return header;
        };
        let (family, length) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
        header.extend([0x21, family, 0, length]);
        for ip in [source.ip(), destination.ip()] {
            match ip {
                IpAddr::V4(ip) => header.extend(ip.octets()),
                IpAddr::V6(ip) => header.extend(ip.octets()),
            }
        }
        header.extend(source.port().to_be_bytes());
        header.extend(destination.port().to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> Ends {
        let source = source.parse().expect("an address");
        Ends { source, destination: destination.parse().ok(), here: None }
    }

    #[test]
    fn a_text_header_names_both_ends() {
        for (source, destination, expected) in [
            ("10.0.0.1:4711", "10.0.0.2:80", "PROXY TCP4 10.0.0.1 10.0.0.2 4711 80\r\n"),
            ("[fd00::1]:4711", "[fd00::2]:80", "PROXY TCP6 fd00::1 fd00::2 4711 80\r\n"),
            ("10.0.0.1:4711", "[fd00::2]:80", "PROXY TCP6 ::ffff:10.0.0.1 fd00::2 4711 80\r\n"),
            ("10.0.0.1:4711", "", "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(ends(source, destination).version_1(), expected);
        }
    }

    #[test]
    fn a_binary_header_names_both_ends() {
        let header = ends("10.0.0.1:4711", "10.0.0.2:80").version_2();
        assert_eq!(header[..12], *b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(header[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x67, 0, 80]);
        assert_eq!(ends("[fd00::1]:1", "[fd00::2]:2").version_2().len(), 16 + 36);
        assert_eq!(ends("10.0.0.1:4711", "").version_2()[12..], [0x20, 0, 0, 0]);
    }
}
