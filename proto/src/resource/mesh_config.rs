//! `MeshConfig`: what holds for the whole mesh; one object, named `default` in the root namespace.
//!
//! Istio keeps these settings in a file; meshd replicates them like any other object, with Istio's field names and
//! defaults. Source: Istio API `mesh/v1alpha1/config.proto`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::destination_rule::{LocalityLbSetting, TcpKeepalive, ZoneAwareLbSetting};
use super::message::message;
use super::sidecar::{OutboundTrafficPolicy, OutboundTrafficPolicyMode};
use super::virtual_service::HttpRetry;
use crate::value::Duration;

/// The name of the one `MeshConfig`.
pub const MESH_CONFIG_NAME: &str = "default";
/// The namespace of the one `MeshConfig`, and the default of `rootNamespace`.
pub const ROOT_NAMESPACE: &str = "istio-system";

message! {
    /// What holds for the whole mesh.
    pub struct MeshConfig {
        /// What happens to hosts nobody knows. Default: they pass (`ALLOW_ANY`).
        pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
        /// The namespace whose rules hold everywhere. Default: `istio-system`.
        pub root_namespace: String,
        /// Whether mutual TLS is used wherever both sides can. Default: true.
        pub enable_auto_mtls: Option<bool>,
        /// How paths are brought to one form before matching. Default: `BASE`.
        pub path_normalization: Option<PathNormalization>,
        /// What holds for routes without `retries`. Default: 2 retries on failures to connect.
        pub default_http_retry_policy: Option<HttpRetry>,
        /// Where access logs go. Default: nowhere.
        pub access_log_file: String,
        /// The form of a line of the access log.
        pub access_log_format: String,
        /// Text or JSON. Default: text.
        pub access_log_encoding: AccessLogEncoding,
        /// Whether requests are traced. Default: false.
        pub enable_tracing: bool,
        /// Where metrics, logs and traces may go, by name.
        pub extension_providers: Vec<TelemetryProvider>,
        /// Those that are used where a `Telemetry` names none.
        pub default_providers: Option<DefaultProviders>,
        /// The time for making a connection. Default: 10 s.
        pub connect_timeout: Option<Duration>,
        /// Probes on idle connections.
        pub tcp_keepalive: Option<TcpKeepalive>,
        /// How long a connection may say nothing before it counts as TCP. Default: no sniffing bound.
        pub protocol_detection_timeout: Option<Duration>,
        /// The trust domain.
        pub trust_domain: String,
        /// Other trust domains that count as this one.
        pub trust_domain_aliases: Vec<String>,
        /// Who sees services without `exportTo`. Default: all.
        pub default_service_export_to: Vec<String>,
        /// Who sees `VirtualService`s without `exportTo`. Default: all.
        pub default_virtual_service_export_to: Vec<String>,
        /// Who sees `DestinationRule`s without `exportTo`. Default: all.
        pub default_destination_rule_export_to: Vec<String>,
        /// Preference for instances nearby.
        pub locality_lb_setting: Option<LocalityLbSetting>,
        /// Balancing over zones by size.
        pub zone_aware_lb_setting: Option<ZoneAwareLbSetting>,
        /// How often names are resolved anew. Default: 60 s.
        pub dns_refresh_rate: Option<Duration>,
        /// Whether HTTP/1.1 becomes HTTP/2 on the way. Default: no.
        pub h2_upgrade_policy: MeshH2UpgradePolicy,
    }

    /// Where metrics, logs or traces go: one of these.
    pub struct TelemetryProvider {
        /// The name that a `Telemetry` says.
        pub name: String,
        /// Access logs in a file.
        pub envoy_file_access_log: Option<FileAccessLogProvider>,
        /// Traces over OTLP.
        pub opentelemetry: Option<OpenTelemetryProvider>,
        /// Metrics that Prometheus fetches.
        pub prometheus: Option<PrometheusProvider>,
    }

    /// Access logs in a file.
    pub struct FileAccessLogProvider {
        /// The file; `/dev/stdout` is the journal where systemd runs meshd.
        pub path: String,
        /// The form of a line. Default: Istio's text.
        pub log_format: Option<ProviderLogFormat>,
    }

    /// The form of a line: one of these.
    pub struct ProviderLogFormat {
        /// Text.
        pub text: String,
        /// A JSON object.
        pub labels: Option<BTreeMap<String, String>>,
    }

    /// Traces over OTLP.
    pub struct OpenTelemetryProvider {
        /// The collector: a service of the mesh, a name outside it, or an address.
        pub service: String,
        /// Its port, 1 to 65535. Must be there.
        pub port: u32,
        /// Bytes of a tag that are kept. Default 256.
        pub max_tag_length: u32,
        /// Over HTTP; without, over gRPC.
        pub http: Option<OtlpHttp>,
        /// Over gRPC.
        pub grpc: Option<OtlpGrpc>,
    }

    /// OTLP over gRPC.
    pub struct OtlpGrpc {
        /// For one batch. Default 3 s.
        pub timeout: Option<Duration>,
        /// More headers.
        pub initial_metadata: Vec<OtlpHeader>,
    }

    /// OTLP over HTTP.
    pub struct OtlpHttp {
        /// The path, `/v1/traces`.
        pub path: String,
        /// For one batch. Default 3 s.
        pub timeout: Option<Duration>,
        /// More headers.
        pub headers: Vec<OtlpHeader>,
    }

    /// A header for the collector.
    pub struct OtlpHeader {
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: String,
    }

    /// Metrics that Prometheus fetches.
    pub struct PrometheusProvider {}

    /// Providers where a `Telemetry` names none.
    pub struct DefaultProviders {
        /// For metrics. Default: `prometheus`.
        pub metrics: Vec<String>,
        /// For traces.
        pub tracing: Vec<String>,
        /// For access logs.
        pub access_logging: Vec<String>,
    }

    /// How paths are brought to one form.
    pub struct PathNormalization {
        /// How far. Default: `Base`.
        pub normalization: NormalizationType,
    }
}

impl MeshConfig {
    /// Returns what happens to hosts nobody knows, the default put in.
    pub fn outbound_mode(&self) -> OutboundTrafficPolicyMode {
        self.outbound_traffic_policy
            .as_ref()
            .and_then(|policy| policy.mode)
            .unwrap_or(OutboundTrafficPolicyMode::AllowAny)
    }
}

/// How far paths are brought to one form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    /// The mesh's choice: `Base`.
    #[default]
    Default,
    /// Not at all.
    None,
    /// RFC 3986: dots, backslashes, unreserved characters.
    Base,
    /// And several slashes become one.
    MergeSlashes,
    /// And escaped slashes are decoded.
    DecodeAndMergeSlashes,
}

/// The form of the access log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// Lines of text.
    #[default]
    Text,
    /// Lines of JSON.
    Json,
}

/// Whether HTTP/1.1 becomes HTTP/2 on the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MeshH2UpgradePolicy {
    /// No.
    #[default]
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}
