//! `Telemetry`: what is measured, logged and traced.
//!
//! Source: Istio API `telemetry/v1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::message;
use super::selector::{MatchLabels, PolicyTargetReference};
use crate::value::Duration;

message! {
    /// What is measured, logged and traced.
    pub struct Telemetry {
        /// The workloads it is for. Default: all of the namespace.
        pub selector: Option<MatchLabels>,
        /// The gateways or services it is for, one.
        pub target_ref: Option<PolicyTargetReference>,
        /// The gateways or services it is for, several.
        pub target_refs: Vec<PolicyTargetReference>,
        /// Traces.
        pub tracing: Vec<Tracing>,
        /// Metrics.
        pub metrics: Vec<Metrics>,
        /// Access logs.
        pub access_logging: Vec<AccessLogging>,
    }

    /// Traces.
    pub struct Tracing {
        /// Which traffic. Default: all.
        pub r#match: Option<WorkloadModeMatch>,
        /// Where spans go.
        pub providers: Vec<ProviderRef>,
        /// The share of requests traced, in percent, 0 to 100. Default: as the next wider rule says; the widest: 1.
        pub random_sampling_percentage: Option<f64>,
        /// Whether spans are not sent. Default: as the next wider rule says; the widest: false.
        pub disable_span_reporting: Option<bool>,
        /// Whether trace headers are not passed on. Default: false.
        pub disable_context_propagation: Option<bool>,
        /// Tags on each span, by name.
        pub custom_tags: BTreeMap<String, CustomTag>,
        /// Whether Istio's own tags are set. Default: true.
        pub enable_istio_tags: Option<bool>,
        /// Whether the request id decides about sampling. Default in Istio: true.
        pub use_request_id_for_trace_sampling: Option<bool>,
    }

    /// Which traffic of a workload.
    pub struct WorkloadModeMatch {
        /// The side. Default: both.
        pub mode: WorkloadMode,
    }

    /// Names a provider of the mesh's settings.
    pub struct ProviderRef {
        /// The name.
        pub name: String,
    }

    /// A tag: one source.
    pub struct CustomTag {
        /// A fixed value.
        pub literal: Option<TagLiteral>,
        /// An environment variable.
        pub environment: Option<TagFromName>,
        /// A request header.
        pub header: Option<TagFromName>,
        /// A format string.
        pub formatter: Option<TagLiteral>,
    }

    /// A value.
    pub struct TagLiteral {
        /// The value.
        pub value: String,
    }

    /// A value found by name.
    pub struct TagFromName {
        /// The name.
        pub name: String,
        /// The value where the name is not found.
        pub default_value: String,
    }

    /// Metrics.
    pub struct Metrics {
        /// Where they go.
        pub providers: Vec<ProviderRef>,
        /// What differs for single metrics.
        pub overrides: Vec<MetricsOverrides>,
        /// How often they are sent. Default in Istio: 5 s.
        pub reporting_interval: Option<Duration>,
    }

    /// What differs for single metrics.
    pub struct MetricsOverrides {
        /// Which.
        pub r#match: Option<MetricSelector>,
        /// Whether they are off. Default: as the next wider rule says; the widest: false.
        pub disabled: Option<bool>,
        /// Tags by name.
        pub tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// Which metrics.
    pub struct MetricSelector {
        /// One of Istio's.
        pub metric: Option<IstioMetric>,
        /// Another.
        pub custom_metric: Option<String>,
        /// The side. Default: both.
        pub mode: WorkloadMode,
    }

    /// A change to a tag.
    pub struct TagOverride {
        /// The change. Default: it is set.
        pub operation: TagOperation,
        /// The value, a CEL expression.
        pub value: String,
    }

    /// Access logs.
    pub struct AccessLogging {
        /// Which traffic. Default: all.
        pub r#match: Option<WorkloadModeMatch>,
        /// Where they go.
        pub providers: Vec<ProviderRef>,
        /// Whether they are off. Default: false.
        pub disabled: Option<bool>,
        /// Which requests.
        pub filter: Option<AccessLogFilter>,
    }

    /// Which requests are logged.
    pub struct AccessLogFilter {
        /// A CEL expression.
        pub expression: String,
    }
}

/// The side of a workload's traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    /// Both.
    #[default]
    ClientAndServer,
    /// Calls it makes.
    Client,
    /// Calls it gets.
    Server,
}

/// One of Istio's standard metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names are Istio's metrics")]
pub enum IstioMetric {
    #[default]
    AllMetrics,
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
    GrpcRequestMessages,
    GrpcResponseMessages,
}

/// A change to a tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    /// Sets it.
    #[default]
    Upsert,
    /// Takes it away.
    Remove,
}
