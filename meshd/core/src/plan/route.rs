//! Routes: when they apply and what they do. Everything is parsed and resolved; nothing here can be wrong.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use mesh_proto::resource::ObjectKey;
use regex::Regex;

use super::Cluster;

/// One route of a virtual host.
#[derive(Clone, Debug)]
pub struct Route {
    /// Who says so.
    pub origin: Origin,
    /// It applies when any of these does; empty: always.
    pub matchers: Vec<Matcher>,
    /// What it does.
    pub action: Action,
    /// Header changes of the route itself. Boxed: most routes have none.
    pub headers: Option<Box<HeaderRules>>,
    /// Fault to inject.
    pub fault: Option<Box<Fault>>,
    /// Cross-origin policy.
    pub cors: Option<Box<Cors>>,
}

/// Where a rule comes from, for `explain`, views and logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The object; `None`: the service's own default.
    pub object: Option<ObjectKey>,
    /// Which list of it and which element, `http[0]`; empty for defaults.
    pub path: String,
    /// Name given to the route, may be empty.
    pub name: String,
}

/// A conjunction of conditions on a request.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// Name given to it, may be empty; part of the route's name in headers.
    pub name: String,
    /// Path without query.
    pub path: Option<PathMatch>,
    /// Method.
    pub method: Option<ValueMatch>,
    /// Scheme.
    pub scheme: Option<ValueMatch>,
    /// Host as sent, with port, in the case sent.
    pub authority: Option<ValueMatch>,
    /// Headers and pseudo-headers; several lines of one name are tried one by one.
    pub headers: Vec<(HeaderTarget, ValueMatch)>,
    /// Headers that must not match; an absent header counts as the empty string.
    pub without_headers: Vec<(HeaderTarget, ValueMatch)>,
    /// Query parameters: first occurrence, raw bytes.
    pub query: Vec<(String, ValueMatch)>,
}

/// What a header condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderTarget {
    /// A header field.
    Field(HeaderName),
    /// `:path`, with the query.
    Path,
    /// `:method`.
    Method,
    /// `:authority`, also spelt `host`.
    Authority,
    /// `:scheme`.
    Scheme,
}

/// A condition on a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact {
        /// As written; lower case when `ignore_case`.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// Its beginning, as plain bytes (`/api/v1` takes `/api/v1beta`).
    Prefix {
        /// As written; lower case when `ignore_case`.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// The whole path, by an anchored regular expression.
    Regex(Regex),
}

/// A condition on a value.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// It is there (an empty value counts).
    Present,
    /// It is equal.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// All of it matches (the expression is anchored).
    Regex(Regex),
}

/// What a route does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Sends the request on.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Box<Redirect>),
    /// Answers by itself.
    Direct(Box<DirectResponse>),
}

/// How a request is sent on.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to, by weight. One or more.
    pub destinations: Vec<WeightedCluster>,
    /// Sum of the weights; 0 only when there is a single destination, which then gets everything.
    pub total_weight: u32,
    /// Over the whole request with all its attempts; `None`: none.
    pub timeout: Option<Duration>,
    /// When to try again.
    pub retry: RetryPolicy,
    /// What to change in path and authority.
    pub rewrite: Option<Box<Rewrite>>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
}

/// A destination and its share.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Its share of the sum.
    pub weight: u32,
    /// Where; `None`: the destination's host, subset or port is not there (HTTP: 503 with an empty body).
    pub cluster: Option<Arc<Cluster>>,
    /// The name of what is wanted, for views: `outbound|9080|v1|reviews.default.svc.cluster.local`.
    pub name: super::ClusterName,
    /// Header changes of the destination.
    pub headers: Option<Box<HeaderRules>>,
}

/// Header changes, in this order: remove, set, add. Values are Envoy format strings, see `route::header_value`.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    /// On the request.
    pub request: HeaderOps,
    /// On the answer.
    pub response: HeaderOps,
    /// `set` of `host` or `:authority`: an authority rewrite.
    pub authority: Option<String>,
}

impl HeaderRules {
    /// Whether values for the answer are made from the request's headers.
    pub fn answer_shows_request(&self) -> bool {
        let asks = |template: &HeaderTemplate| match template {
            HeaderTemplate::Plain(_) => false,
            HeaderTemplate::Parts(parts) => {
                let asks = |part: &TemplatePart| {
                    matches!(part, TemplatePart::Request { .. } | TemplatePart::QueryParameter { .. })
                };
                parts.iter().any(asks)
            }
        };
        self.response.set.iter().chain(&self.response.add).any(|(_, template)| asks(template))
    }
}

/// Changes of one header block.
#[derive(Clone, Debug, Default)]
pub struct HeaderOps {
    /// Names that go.
    pub remove: Vec<HeaderName>,
    /// Names that get exactly this value.
    pub set: Vec<(HeaderName, HeaderTemplate)>,
    /// Lines that are added.
    pub add: Vec<(HeaderName, HeaderTemplate)>,
}

/// A header value with Envoy's variables resolved into parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderTemplate {
    /// A plain value.
    Plain(HeaderValue),
    /// Text and variables such as `%REQ(x)%` in order; a variable without value yields `-`… see `route::headers`.
    Parts(Vec<TemplatePart>),
}

/// A part of a [`HeaderTemplate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Literal text (`%%` already made `%`).
    Text(String),
    /// `%REQ(name?alternative):length%`.
    Request {
        /// Header or pseudo-header.
        name: String,
        /// Used when the first is absent.
        alternative: Option<String>,
        /// Cut to this many bytes.
        max_bytes: Option<usize>,
    },
    /// `%RESP(name?alternative):max_bytes%`.
    Response {
        /// Header.
        name: String,
        /// Asked when that one is absent.
        alternative: Option<String>,
        /// Bytes kept.
        max_bytes: Option<usize>,
    },
    /// `%QUERY_PARAM(name):max_bytes%`.
    QueryParameter {
        /// Name, as it stands in the target.
        name: String,
        /// Bytes kept.
        max_bytes: Option<usize>,
    },
    /// `%START_TIME(format)%`.
    StartTime(crate::route::template::TimeFormat),
    /// One word.
    Variable(Variable),
}

/// A variable that is one word, as Envoy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// `PROTOCOL`.
    Protocol,
    /// `START_TIME`, in ISO 8601 with milliseconds.
    StartTime,
    /// `DOWNSTREAM_REMOTE_…`: the caller, as `x-forwarded-for` has it last.
    Downstream(Shown),
    /// `DOWNSTREAM_DIRECT_REMOTE_…`: who opened the connection.
    DownstreamDirect(Shown),
    /// `DOWNSTREAM_LOCAL_…`: what was called.
    DownstreamLocal(Shown),
    /// `UPSTREAM_HOST`, `UPSTREAM_REMOTE_…`: the endpoint, once there is one.
    Upstream(Shown),
    /// `UPSTREAM_PROTOCOL`.
    UpstreamProtocol,
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`.
    Attempts,
    /// `RESPONSE_CODE`.
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`.
    ResponseDetails,
    /// `RESPONSE_FLAGS`.
    ResponseFlags,
    /// `ROUTE_NAME`.
    RouteName,
    /// `UPSTREAM_CLUSTER`.
    Cluster,
    /// `HOSTNAME`.
    HostName,
}

/// What of an address is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Address and port.
    Whole,
    /// The address.
    WithoutPort,
    /// The port.
    Port,
}

/// What to change in path and authority.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// Replaces the matched prefix, or the whole path after an exact or regex match.
    pub path: Option<String>,
    /// Substitutes in the path (not the query), every occurrence; the replacement is in `regex`'s syntax.
    pub path_regex: Option<(Regex, String)>,
    /// Replaces the authority.
    pub authority: Option<String>,
}

/// A redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// Replaces the whole path (with its own query, if it has one).
    pub path: Option<String>,
    /// Replaces the matched prefix only.
    pub prefix: Option<String>,
    /// Replaces the host.
    pub authority: Option<String>,
    /// Replaces the scheme.
    pub scheme: Option<String>,
    /// What becomes of the port.
    pub port: PortSource,
    /// 301, 302, 303, 307 or 308. Default 301.
    pub code: StatusCode,
}

/// The port of a redirect's Location.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortSource {
    /// As in the request's Host.
    #[default]
    Keep,
    /// This one.
    Number(u16),
    /// The listener's, left out when it is the scheme's default (`FROM_REQUEST_PORT`).
    FromRequest,
    /// None: the scheme's default (`FROM_PROTOCOL_DEFAULT`).
    ProtocolDefault,
}

/// An answer of the proxy's own.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, may be empty.
    pub body: Bytes,
}

/// A copy of requests.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where to; `None`: not there, nothing is sent.
    pub cluster: Option<Arc<Cluster>>,
    /// What is wanted.
    pub name: super::ClusterName,
    /// Share, in millionths.
    pub parts_per_million: u32,
}

/// Faults to inject, delay before abort.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Waits first.
    pub delay: Option<Delay>,
    /// Then answers instead of the service.
    pub abort: Option<Abort>,
}

/// An injected delay. Does not count against the route's timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// For this long.
    pub fixed: Duration,
    /// Share, in millionths.
    pub parts_per_million: u32,
}

/// An injected answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// HTTP status; 200 when `grpc_status` is given.
    pub status: StatusCode,
    /// gRPC status.
    pub grpc_status: Option<u32>,
    /// Share, in millionths.
    pub parts_per_million: u32,
}

/// When and how to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts beyond the first. 0: never.
    pub attempts: u32,
    /// Of one attempt; `None`: only the route's timeout counts.
    pub per_try_timeout: Option<Duration>,
    /// Conditions.
    pub on: RetryOn,
    /// Statuses that count under `retriable-status-codes`.
    pub status_codes: Vec<StatusCode>,
    /// Base of the exponential backoff with full jitter. Default 25 ms, Envoy's; at most 10 × base between tries.
    pub backoff: Duration,
    /// Whether endpoints tried already are avoided. Default true, Istio's.
    pub avoid_previous: bool,
    /// Whether every second retry leaves the levels of nearness that were tried alone. Default false.
    pub other_localities: bool,
}

/// Conditions of a [`RetryPolicy`], Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent word of retryOn")]
pub struct RetryOn {
    /// `5xx`: any 5xx, or no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504.
    pub gateway_error: bool,
    /// `reset`: the upstream did not answer.
    pub reset: bool,
    /// `reset-before-request`: … and nothing was sent yet.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`.
    pub retriable_status_codes: bool,
    /// `envoy-ratelimited`: 429 or such with `x-envoy-ratelimited`.
    pub envoy_ratelimited: bool,
    /// gRPC `cancelled` (1).
    pub grpc_cancelled: bool,
    /// gRPC `deadline-exceeded` (4).
    pub grpc_deadline_exceeded: bool,
    /// gRPC `internal` (13).
    pub grpc_internal: bool,
    /// gRPC `resource-exhausted` (8).
    pub grpc_resource_exhausted: bool,
    /// gRPC `unavailable` (14).
    pub grpc_unavailable: bool,
}

/// Cross-origin policy.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// Origins allowed.
    pub allow_origins: Vec<ValueMatch>,
    /// `access-control-allow-methods`, joined.
    pub allow_methods: Option<HeaderValue>,
    /// `access-control-allow-headers`, joined.
    pub allow_headers: Option<HeaderValue>,
    /// `access-control-expose-headers`, joined.
    pub expose_headers: Option<HeaderValue>,
    /// `access-control-max-age`, in seconds.
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials: true`.
    pub allow_credentials: bool,
    /// Preflights whose origin is not allowed go to the backend (`FORWARD`, the default) or are answered here (`IGNORE`).
    pub forward_unmatched: bool,
}
