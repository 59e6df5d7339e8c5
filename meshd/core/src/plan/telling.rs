//! What is told of a workload's traffic, and to whom: metrics, access logs, traces.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_proto::expression::Expression;
use mesh_proto::log_format::{LogFormat, Operator, Part, RequestField, ResponseField};

/// What is told of the traffic of one workload, of one side: what it calls, or what it is called for.
///
/// Source: Istio `Telemetry`, `MeshConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telling {
    /// What differs for metrics; `None`: nothing.
    pub metering: Option<Arc<Metering>>,
    /// Where requests are logged.
    pub logs: Vec<Arc<Logging>>,
    /// How requests are traced; `None`: not.
    pub tracing: Option<Arc<Tracing>>,
    /// Headers that logs and traces want.
    pub wanted: WantedHeaders,
}

/// Headers that are kept of a request and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedHeaders {
    /// Of the request.
    pub request: Vec<HeaderName>,
    /// Of the answer.
    pub response: Vec<HeaderName>,
}

impl WantedHeaders {
    /// Takes in what a log wants.
    pub fn add(&mut self, logging: &Logging) {
        let add = |list: &mut Vec<HeaderName>, name: &str| {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return };
            if !list.contains(&name) {
                list.push(name);
            }
        };
        for part in logging.target.format.parts() {
            match part {
                Part::Operator(Operator::Request(field, other), _) => {
                    for field in std::iter::once(field).chain(other) {
                        if let RequestField::Header(name) = field {
                            add(&mut self.request, name);
                        }
                    }
                }
                Part::Operator(Operator::Response(field, other), _) => {
                    for field in std::iter::once(field).chain(other) {
                        if let ResponseField::Header(name) = field {
                            add(&mut self.response, name);
                        }
                    }
                }
                Part::Text(_) | Part::Operator(..) => {}
            }
        }
        if let Some(filter) = &logging.filter {
            filter.headers(&mut |name| add(&mut self.request, name));
            for name in ["user-agent", "x-request-id"] {
                add(&mut self.request, name);
            }
        }
    }
}

/// Istio's metrics, in the order in which [`Metering`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are Istio's metrics")]
pub enum Metric {
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    GrpcRequestMessages,
    GrpcResponseMessages,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
}

/// How many metrics there are.
pub const METRICS: usize = 10;

/// What differs for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metering(pub [MetricRule; METRICS]);

/// What differs for one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetricRule {
    /// It is not told.
    pub disabled: bool,
    /// Labels that are left out.
    pub removed: Vec<String>,
    /// Labels with the value that they have instead of their own.
    pub set: Vec<(String, String)>,
}

/// Where requests are logged, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Logging {
    /// Where to, and in which form.
    pub target: LogTarget,
    /// Only those for which it is true; one that cannot be said is not logged.
    pub filter: Option<Expression>,
}

/// A file of lines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogTarget {
    /// The file; `None`: standard output.
    pub path: Option<String>,
    /// The form of a line.
    pub format: LogFormat,
}

/// How requests are traced.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// Where spans go.
    pub collector: Arc<Collector>,
    /// The share of requests without a trace of their own that begin one, in millionths.
    pub sampling: u32,
    /// Whether spans are sent; without, headers are passed on all the same.
    pub reports: bool,
    /// Whether headers are changed at all.
    pub propagates: bool,
    /// Whether the tags `istio.…` are set.
    pub istio_tags: bool,
    /// More tags.
    pub tags: Vec<(String, TagSource)>,
}

/// Where a tag comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagSource {
    /// As it is.
    Literal(String),
    /// A request's header, else the default; with neither there is no tag.
    Header(HeaderName, String),
}

/// Who collects spans, over OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// Host name or address.
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// What carries spans.
    pub carrier: Carrier,
    /// More headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For one batch.
    pub timeout: Duration,
    /// Bytes of a tag that are kept.
    pub max_tag_bytes: usize,
}

/// What carries OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// gRPC.
    Grpc,
    /// HTTP, to this path and query.
    Http(String),
}

impl Telling {
    /// Whether anything is kept of a request for logs or traces.
    pub fn is_quiet(&self) -> bool {
        self.logs.is_empty() && self.tracing.is_none()
    }
}
