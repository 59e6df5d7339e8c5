//! `Sidecar`: what a workload's proxy listens on and what it may reach.
//!
//! Source: Istio API `networking/v1/sidecar.proto`.

use serde::{Deserialize, Serialize};

use super::destination_rule::ConnectionPoolSettings;
use super::gateway::ServerTlsSettings;
use super::message::message;
use super::selector::WorkloadSelector;
use super::service_entry::ServicePort;
use super::virtual_service::Destination;

message! {
    /// What a workload's proxy listens on and what it may reach.
    pub struct Sidecar {
        /// The workloads it is for. Default: all of the namespace.
        pub workload_selector: Option<WorkloadSelector>,
        /// What it listens on for callers.
        pub ingress: Vec<IstioIngressListener>,
        /// What the workload may reach.
        pub egress: Vec<IstioEgressListener>,
        /// Bounds on connections to the workload.
        pub inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// What happens to hosts nobody knows.
        pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    }

    /// A port for callers.
    pub struct IstioIngressListener {
        /// The port.
        pub port: Option<ServicePort>,
        /// The address to listen on.
        pub bind: String,
        /// How traffic is caught. Default: the mesh's choice.
        pub capture_mode: CaptureMode,
        /// Where the workload listens: `127.0.0.1:PORT` or `unix:///path`.
        pub default_endpoint: String,
        /// TLS towards callers.
        pub tls: Option<ServerTlsSettings>,
        /// Bounds on connections to this port.
        pub connection_pool: Option<ConnectionPoolSettings>,
    }

    /// What the workload may reach.
    pub struct IstioEgressListener {
        /// The port.
        pub port: Option<ServicePort>,
        /// The address to listen on.
        pub bind: String,
        /// How traffic is caught. Default: the mesh's choice.
        pub capture_mode: CaptureMode,
        /// The hosts: `namespace/host`, with `*`, `.` and `~` for namespaces.
        pub hosts: Vec<String>,
    }

    /// What happens to hosts nobody knows.
    pub struct OutboundTrafficPolicy {
        /// Whether they are refused. In a `MeshConfig` the default is `ALLOW_ANY`.
        pub mode: Option<OutboundTrafficPolicyMode>,
        /// Where such traffic goes instead.
        pub egress_proxy: Option<Destination>,
    }
}

/// What happens to hosts nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicyMode {
    /// They are refused.
    RegistryOnly,
    /// They pass.
    AllowAny,
}

/// How traffic is caught.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// The mesh's choice.
    #[default]
    Default,
    /// By packet filter.
    Iptables,
    /// Not at all: the workload dials the listener.
    None,
}
