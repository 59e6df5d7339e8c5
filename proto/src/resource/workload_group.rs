//! `WorkloadGroup`: what instances that register themselves have in common.
//!
//! Source: Istio API `networking/v1/workload_group.proto`.

use super::message::message;
use super::workload_entry::WorkloadEntry;
use crate::value::Labels;

message! {
    /// What instances that register themselves have in common.
    pub struct WorkloadGroup {
        /// Labels and annotations of each instance's entry.
        pub metadata: Option<WorkloadGroupMetadata>,
        /// What each instance's entry holds.
        pub template: Option<WorkloadEntry>,
        /// How an instance's health is found.
        pub probe: Option<ReadinessProbe>,
    }

    /// Labels and annotations of each instance's entry.
    pub struct WorkloadGroupMetadata {
        /// Labels.
        pub labels: Labels,
        /// Annotations.
        pub annotations: Labels,
    }

    /// How an instance's health is found: one of the four.
    pub struct ReadinessProbe {
        /// Seconds before the first probe. Default: 0.
        pub initial_delay_seconds: i32,
        /// Seconds a probe may take. Default: 1.
        pub timeout_seconds: i32,
        /// Seconds between probes. Default: 10.
        pub period_seconds: i32,
        /// Good probes in a row that make it healthy. Default: 1.
        pub success_threshold: i32,
        /// Bad probes in a row that make it unhealthy. Default: 3.
        pub failure_threshold: i32,
        /// An HTTP request.
        pub http_get: Option<HttpHealthCheck>,
        /// A TCP connection.
        pub tcp_socket: Option<TcpHealthCheck>,
        /// A command.
        pub exec: Option<ExecHealthCheck>,
        /// A gRPC health call.
        pub grpc: Option<GrpcHealthCheck>,
    }

    /// An HTTP request.
    pub struct HttpHealthCheck {
        /// The path.
        pub path: String,
        /// The port, 1 to 65535. Must be there.
        pub port: u16,
        /// The host.
        pub host: String,
        /// `HTTP` or `HTTPS`.
        pub scheme: String,
        /// Headers to send.
        pub http_headers: Vec<HttpHeader>,
    }

    /// A header to send.
    pub struct HttpHeader {
        /// The name.
        pub name: String,
        /// The value.
        pub value: String,
    }

    /// A TCP connection.
    pub struct TcpHealthCheck {
        /// The host.
        pub host: String,
        /// The port, 1 to 65535. Must be there.
        pub port: u16,
    }

    /// A gRPC health call.
    pub struct GrpcHealthCheck {
        /// The port, 1 to 65535. Must be there.
        pub port: u16,
        /// The service asked about.
        pub service: String,
    }

    /// A command; exit code 0 is good.
    pub struct ExecHealthCheck {
        /// The command and its arguments.
        pub command: Vec<String>,
    }
}
