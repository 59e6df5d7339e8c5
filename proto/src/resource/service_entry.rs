//! `ServiceEntry`: a service known by hand instead of by registration.
//!
//! Source: Istio API `networking/v1/service_entry.proto`.

use serde::{Deserialize, Deserializer, Serialize};

use super::message::message;
use super::selector::WorkloadSelector;
use super::workload_entry::WorkloadEntry;
use crate::value::Labels;

message! {
    /// A service the mesh should know.
    pub struct ServiceEntry {
        /// Its names; wildcards such as `*.example.com` are allowed.
        pub hosts: Vec<String>,
        /// Its virtual addresses or ranges.
        pub addresses: Vec<String>,
        /// Its ports.
        pub ports: Vec<ServicePort>,
        /// Whether it is inside the mesh. Default: outside.
        pub location: Option<Location>,
        /// How its addresses are found. Default: the address the caller dialled.
        pub resolution: Option<Resolution>,
        /// Its instances.
        #[serde(deserialize_with = "endpoints")]
        pub endpoints: Vec<WorkloadEntry>,
        /// The workloads that are its instances, instead of `endpoints`.
        pub workload_selector: Option<WorkloadSelector>,
        /// The namespaces that see it: `.` this one, `*` all (the default), `~` none, or names.
        pub export_to: Vec<String>,
        /// The names its certificates may show.
        pub subject_alt_names: Vec<String>,
    }

    /// A port of a service.
    pub struct ServicePort {
        /// The port callers dial, 1 to 65535. Must be there.
        pub number: u16,
        /// `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `MONGO`, `TCP` or `TLS`. Default: by the name, else sniffed.
        pub protocol: String,
        /// The name.
        pub name: String,
        /// The port the instances listen on. Default: `number`.
        #[serde(deserialize_with = "crate::resource::message::port")]
        pub target_port: Option<u16>,
    }
}

impl ServiceEntry {
    /// Returns whether the service is inside the mesh, the default put in.
    pub fn location(&self) -> Location {
        self.location.unwrap_or_default()
    }

    /// Returns how addresses are found, the default put in.
    pub fn resolution(&self) -> Resolution {
        self.resolution.unwrap_or_default()
    }
}

/// Whether a service is inside the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside: no identity of the mesh.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How the addresses of a service are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address the caller dialled.
    #[default]
    None,
    /// The addresses of the endpoints.
    Static,
    /// DNS; all answers are instances.
    Dns,
    /// DNS; the first answer is used for new connections.
    DnsRoundRobin,
    /// DNS for the host of each request, for wildcard hosts.
    DynamicDns,
}

/// Reads endpoints; labels that some of them have alike are held once.
fn endpoints<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<WorkloadEntry>, D::Error> {
    let mut read: Vec<WorkloadEntry> = Deserialize::deserialize(from)?;
    let mut known: Vec<Labels> = Vec::new();
    for endpoint in &mut read {
        match known.iter().find(|labels| **labels == endpoint.labels) {
            Some(labels) => endpoint.labels = labels.clone(),
            None if known.len() < KNOWN_LABELS => known.push(endpoint.labels.clone()),
            None => {}
        }
    }
    read.shrink_to_fit();
    Ok(read)
}

/// So many different sets of labels of one entry are looked through: versions, mostly.
const KNOWN_LABELS: usize = 8;
