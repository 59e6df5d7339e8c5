//! Doors: listeners that rules ask for, beside those of `meshd.toml`. Gateways and `Sidecar` egress listeners.
//!
//! What visitors of a door may reach is an [`Outbound`] like that of any caller, found by its *seat*: a number that stays
//! the same for as long as the door is there, so that open connections keep it from Plan to Plan.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::resource::{ObjectKey, ServerTlsMode, TlsProtocol};

use super::{Cluster, HostTable, Outbound, ServicePort};
use crate::identity::Identity;

/// The doors of a Plan.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// By the address to listen on.
    pub open: BTreeMap<SocketAddr, Arc<Door>>,
    /// What visitors may reach, by seat.
    pub seats: HashMap<usize, Arc<Outbound>>,
}

/// One listener.
#[derive(Clone, Debug)]
pub struct Door {
    /// Who asks for it; the first, where there are several.
    pub origin: ObjectKey,
    /// Its caller or its seat, for what has no seat of its own: whose identity hops prove.
    pub seat: usize,
    /// What is done with connections.
    pub kind: DoorKind,
}

/// What is done with the connections of a door.
#[derive(Clone, Debug)]
pub enum DoorKind {
    /// A gateway's.
    Gateway(GatewayDoor),
    /// A service port, as a caller of this host sees it (`Sidecar` egress listener).
    Service(u16),
    /// A forward proxy (`Sidecar` egress listener of protocol `HTTP_PROXY`).
    Proxy,
}

/// A port of a gateway: what is plain, and what is TLS.
#[derive(Clone, Debug, Default)]
pub struct GatewayDoor {
    /// The service port that routes are for: the number of the `Gateway`'s server.
    pub port: u16,
    /// Requests in plain HTTP: their seat.
    pub http: Option<usize>,
    /// TLS by SNI; a connection without one takes `*`.
    pub tls: HostTable<TlsServer>,
    /// Opaque bytes.
    pub tcp: Option<Arc<ServicePort>>,
}

/// What is done with the TLS connections of some hosts.
#[derive(Clone, Debug)]
pub struct TlsServer {
    /// Who says so.
    pub origin: ObjectKey,
    /// The service port that routes are for.
    pub port: u16,
    /// What visitors are shown; `None`: TLS passes through.
    pub terminate: Option<Arc<ServerTls>>,
    /// What is inside (of passed TLS: where it goes).
    pub inside: Inside,
}

/// What is inside TLS.
#[derive(Clone, Debug)]
pub enum Inside {
    /// Requests; their seat.
    Http(usize),
    /// Bytes.
    Tcp(Arc<ServicePort>),
    /// A hop of the mesh, passed on to the mesh port of a host that serves this (`AUTO_PASSTHROUGH`).
    Hop(Arc<Cluster>),
}

/// How a gateway shows itself and what it asks of visitors.
///
/// Source: Istio `ServerTLSSettings`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// `Simple`, `Mutual`, `OptionalMutual` or `IstioMutual`.
    pub mode: ServerTlsMode,
    /// Certificates with their keys: one, or two for two kinds of key.
    pub certificates: Vec<Credential>,
    /// Roots of visitors' certificates; `None`: those of the first certificate's secret.
    pub roots: Option<Roots>,
    /// File of lists of certificates taken back; empty: none.
    pub revoked: String,
    /// Names a visitor's certificate must have one of; empty: any.
    pub subject_alt_names: Vec<String>,
    /// SHA-256 of public keys that visitors may use, Base64; empty: any.
    pub spki: Vec<String>,
    /// SHA-256 of certificates that visitors may use, hexadecimal; empty: any.
    pub hashes: Vec<String>,
    /// The oldest version; `Auto`: 1.2, Istio's default.
    pub oldest: TlsProtocol,
    /// The newest version; `Auto`: 1.3.
    pub newest: TlsProtocol,
    /// Cipher suites of TLS 1.2 by OpenSSL's names; empty: all.
    pub ciphers: Vec<String>,
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    /// A secret held by this host.
    Secret(String),
    /// Files of this host.
    Files {
        /// The chain.
        certificate: String,
        /// Its key.
        key: String,
    },
    /// The mesh's own for this identity (`ISTIO_MUTUAL`); its visitors must be of the mesh.
    Mesh(Identity),
}

/// Where roots are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Roots {
    /// In a secret held by this host.
    Secret(String),
    /// In a file.
    File(String),
}

impl ServerTls {
    /// Whether visitors are shown the mesh's own certificate and must show one.
    pub fn is_of_mesh(&self) -> bool {
        self.mode == ServerTlsMode::IstioMutual
    }
}

impl Doors {
    /// Finds the door that a connection of this host to one of its own addresses comes to.
    pub fn at(&self, address: SocketAddr) -> Option<&Arc<Door>> {
        let every = match address {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.open.get(&address).or_else(|| self.open.get(&SocketAddr::new(every, address.port())))
    }

    /// Whether a position of a caller is a seat.
    pub const fn is_seat(caller: usize) -> bool {
        caller & SEAT != 0
    }

    /// Returns the seat of that number.
    pub(crate) fn seat(number: u64) -> usize {
        SEAT | usize::try_from(number & u64::from(u32::MAX >> 1)).unwrap_or(0)
    }
}

/// What no position in `Node::callers` has set.
const SEAT: usize = 1 << (usize::BITS - 1);
