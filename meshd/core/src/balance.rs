//! Which endpoint: `pick(&Cluster, …)`.

use crate::plan::Endpoint;

/// The endpoints of a cluster, prepared for choosing.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet {
    /// All of them, in a fixed order (host id, instance id).
    pub all: Vec<Endpoint>,
}
