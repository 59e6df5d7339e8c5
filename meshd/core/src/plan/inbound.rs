//! What other hosts may ask of the instances here.

use std::net::SocketAddr;
use std::sync::Arc;

use foldhash::HashMap;
use mesh_proto::registration::{Health, Protocol};

use super::{Cluster, Party, Telling};
use crate::identity::Identity;

/// The instances of this host, as the mesh port and the inbound port find them.
#[derive(Clone, Debug, Default)]
pub struct Inbound {
    /// By id.
    pub instances: HashMap<Box<str>, Arc<LocalInstance>>,
    /// Instances of a service by its full host name, for hops that name no instance.
    pub services: HashMap<Box<str>, Vec<Arc<LocalInstance>>>,
    /// By the port where the application listens, for connections caught on their way in (port 15006).
    pub targets: HashMap<u16, (Arc<LocalInstance>, LocalPort)>,
}

/// One instance on this host.
#[derive(Clone, Debug)]
pub struct LocalInstance {
    /// Its id.
    pub id: Arc<str>,
    /// Full host name of its service.
    pub host: Arc<str>,
    /// Who it is: the certificate shown for it.
    pub identity: Identity,
    /// Its `version` label, may be empty.
    pub version: Arc<str>,
    /// Who it is, as telemetry names it.
    pub party: Party,
    /// What is told of the traffic to it.
    pub telling: Arc<Telling>,
    /// Its ports.
    pub ports: Vec<LocalPort>,
    /// Its health check's word.
    pub health: Health,
}

impl LocalInstance {
    /// Finds a port of the service.
    pub fn port(&self, number: u16) -> Option<&LocalPort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// A port of an instance on this host.
#[derive(Clone, Debug)]
pub struct LocalPort {
    /// Service port.
    pub number: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Where the application listens.
    pub target: SocketAddr,
    /// Bounds on what is under way to the application, with its counters; `None`: none are asked for (`Sidecar`
    /// `inboundConnectionPool`).
    pub bounds: Option<Arc<Cluster>>,
}
