//! `VirtualService`: where the requests for a host go.
//!
//! Source: Istio API `networking/v1/virtual_service.proto`.

use serde::{Deserialize, Serialize};

use super::message::message;
use crate::value::{Base64, Duration, Labels, Percent, PortSelector, SmallMap, StringMatch};

message! {
    /// Rules for the traffic to some hosts.
    pub struct VirtualService {
        /// The hosts the rules are for: names, short names, wildcards such as `*.example.com`, or addresses.
        pub hosts: Vec<String>,
        /// Where the rules apply: names of gateways, or `mesh` for every sidecar. Empty means `mesh`.
        pub gateways: Vec<String>,
        /// Rules for HTTP, tried in order; the first match wins.
        pub http: Vec<HttpRoute>,
        /// Rules for TLS passed through, chosen by SNI.
        pub tls: Vec<TlsRoute>,
        /// Rules for opaque TCP, tried in order.
        pub tcp: Vec<TcpRoute>,
        /// The namespaces that see the rules: `.` this one, `*` all (the default), `~` none, or names.
        pub export_to: Vec<String>,
    }

    /// Names a `VirtualService` that holds the routes for a part of this one.
    pub struct Delegate {
        /// The name of the delegate.
        pub name: String,
        /// Its namespace. Default: the root's.
        pub namespace: String,
    }

    /// Changes to the headers of a request and of its answer.
    pub struct Headers {
        /// Changes before the request is forwarded.
        pub request: Option<HeaderOperations>,
        /// Changes before the answer goes to the caller.
        pub response: Option<HeaderOperations>,
    }

    /// Changes to one set of headers, done in the order remove, set, add.
    pub struct HeaderOperations {
        /// Replaces the value, or adds the header.
        pub set: SmallMap<String, String>,
        /// Adds one more value.
        pub add: SmallMap<String, String>,
        /// Takes the header away.
        pub remove: Vec<String>,
    }

    /// A rule for TLS passed through.
    pub struct TlsRoute {
        /// One of these must hold.
        pub r#match: Vec<TlsMatchAttributes>,
        /// Where the connection goes.
        pub route: Vec<RouteDestination>,
    }

    /// A rule for opaque TCP.
    pub struct TcpRoute {
        /// One of these must hold; none at all matches every connection.
        pub r#match: Vec<L4MatchAttributes>,
        /// Where the connection goes.
        pub route: Vec<RouteDestination>,
    }

    /// A rule for HTTP.
    pub struct HttpRoute {
        /// A name for logs and for merging delegates.
        pub name: String,
        /// One of these must hold; none at all matches every request.
        pub r#match: Vec<HttpMatchRequest>,
        /// Where the request goes, by weight.
        pub route: Vec<HttpRouteDestination>,
        /// Answers with a redirect instead.
        pub redirect: Option<Box<HttpRedirect>>,
        /// Answers with a fixed text instead.
        pub direct_response: Option<Box<HttpDirectResponse>>,
        /// Takes the routes from another `VirtualService`.
        pub delegate: Option<Box<Delegate>>,
        /// Changes path or authority before forwarding.
        pub rewrite: Option<Box<HttpRewrite>>,
        /// The time for the whole exchange, retries included. Default: none.
        pub timeout: Option<Duration>,
        /// When and how often a request is tried again. Default: the mesh's policy.
        pub retries: Option<Box<HttpRetry>>,
        /// Faults on purpose.
        pub fault: Option<Box<HttpFaultInjection>>,
        /// Sends a copy of each request here as well.
        pub mirror: Option<Box<Destination>>,
        /// The former name of `mirrorPercentage`, in whole percent, 0 to 100. Default: 100.
        pub mirror_percent: Option<u32>,
        /// The same, as some versions of Istio spell it.
        #[serde(rename = "mirror_percent")]
        pub mirror_percent_snake: Option<u32>,
        /// The share of requests that `mirror` copies. Default: all.
        pub mirror_percentage: Option<Percent>,
        /// Sends copies to several places, each with its share.
        pub mirrors: Vec<HttpMirrorPolicy>,
        /// Cross-origin rules for browsers.
        pub cors_policy: Option<Box<CorsPolicy>>,
        /// Changes to headers, for all destinations of the route.
        pub headers: Option<Box<Headers>>,
    }

    /// What a request must be like. All that is set must hold.
    pub struct HttpMatchRequest {
        /// A name for logs.
        pub name: String,
        /// The path, without the query.
        pub uri: Option<StringMatch>,
        /// `http` or `https`. Default: any.
        pub scheme: Option<StringMatch>,
        /// The method. Default: any.
        pub method: Option<StringMatch>,
        /// The `Host` header as sent, port included. Default: any.
        pub authority: Option<StringMatch>,
        /// Headers by lower-case name.
        pub headers: SmallMap<String, StringMatch>,
        /// The port the caller dialled. Default: any.
        #[serde(deserialize_with = "crate::resource::message::port")]
        pub port: Option<u16>,
        /// Labels the calling workload must have.
        pub source_labels: Labels,
        /// Gateways the rule is for; overrides the list at the top.
        pub gateways: Vec<String>,
        /// Query parameters by name; the first occurrence counts.
        pub query_params: SmallMap<String, StringMatch>,
        /// Whether `exact` and `prefix` of `uri` ignore case. Default: false.
        pub ignore_uri_case: bool,
        /// Headers that must not match.
        pub without_headers: SmallMap<String, StringMatch>,
        /// The namespace the calling workload must be in.
        pub source_namespace: String,
        /// A name for statistics.
        pub stat_prefix: String,
    }

    /// One place a request may go to.
    pub struct HttpRouteDestination {
        /// The place.
        pub destination: Option<Destination>,
        /// The share among the weights of the route; absent means 0, and a single destination gets everything.
        pub weight: Option<i32>,
        /// Changes to headers for this destination.
        pub headers: Option<Box<Headers>>,
    }

    /// One place a connection may go to.
    pub struct RouteDestination {
        /// The place.
        pub destination: Option<Destination>,
        /// The share among the weights of the route; absent means 0, and a single destination gets everything.
        pub weight: Option<i32>,
    }

    /// A service, or a part of one.
    pub struct Destination {
        /// The service's host; short names are of the rule's namespace.
        pub host: String,
        /// A subset of the `DestinationRule` for the host. Empty: the whole service.
        pub subset: String,
        /// The port. Default: the one the caller dialled.
        pub port: Option<PortSelector>,
    }

    /// What an opaque connection must be like. All that is set must hold.
    pub struct L4MatchAttributes {
        /// Where the connection was going: addresses or ranges.
        pub destination_subnets: Vec<String>,
        /// The port the caller dialled. Default: any.
        #[serde(deserialize_with = "crate::resource::message::port")]
        pub port: Option<u16>,
        /// Where it comes from: an address or range (no longer used by Istio).
        pub source_subnet: String,
        /// Labels the calling workload must have.
        pub source_labels: Labels,
        /// Gateways the rule is for; overrides the list at the top.
        pub gateways: Vec<String>,
        /// The namespace the calling workload must be in.
        pub source_namespace: String,
    }

    /// What a TLS connection must be like. All that is set must hold.
    pub struct TlsMatchAttributes {
        /// The server names asked for; at least one.
        pub sni_hosts: Vec<String>,
        /// Where the connection was going: addresses or ranges.
        pub destination_subnets: Vec<String>,
        /// The port the caller dialled. Default: any.
        #[serde(deserialize_with = "crate::resource::message::port")]
        pub port: Option<u16>,
        /// Labels the calling workload must have.
        pub source_labels: Labels,
        /// Gateways the rule is for; overrides the list at the top.
        pub gateways: Vec<String>,
        /// The namespace the calling workload must be in.
        pub source_namespace: String,
    }

    /// An answer that sends the caller elsewhere.
    pub struct HttpRedirect {
        /// Replaces the whole path.
        pub uri: String,
        /// Replaces the part of the path that the match consumed.
        pub prefix_rewrite: String,
        /// Replaces the authority.
        pub authority: String,
        /// The port to name. Default: as `derivePort` says; without it, the one that the request names.
        pub port: Option<u16>,
        /// Where the port comes from, if not named.
        pub derive_port: Option<RedirectPortSelection>,
        /// `http` or `https`.
        pub scheme: String,
        /// 301 (the default), 302, 303, 307 or 308.
        pub redirect_code: u16,
    }

    /// A fixed answer.
    pub struct HttpDirectResponse {
        /// The status, 200 to 599. Must be there.
        pub status: u16,
        /// The body. Default: empty.
        pub body: Option<HttpBody>,
    }

    /// The body of a fixed answer: one of the two.
    pub struct HttpBody {
        /// As text.
        pub string: Option<String>,
        /// As bytes. One of the two is there.
        pub bytes: Option<Base64>,
    }

    /// What changes before a request is forwarded.
    pub struct HttpRewrite {
        /// Replaces the part of the path that the match consumed.
        pub uri: String,
        /// Replaces the authority.
        pub authority: String,
        /// Replaces every match of an expression in the path.
        pub uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// A replacement by regular expression.
    pub struct RegexRewrite {
        /// An RE2 expression.
        pub r#match: String,
        /// The replacement; `\1` stands for the first group.
        pub rewrite: String,
    }

    /// When and how often a request is tried again.
    pub struct HttpRetry {
        /// How many retries after the first try. 0 or absent: none.
        pub attempts: Option<i32>,
        /// The time for each try. Default: the route's timeout.
        pub per_try_timeout: Option<Duration>,
        /// The conditions, comma separated, without blanks; numbers are status codes.
        pub retry_on: String,
        /// Whether a retry may leave the locality. Default: false.
        pub retry_remote_localities: Option<bool>,
        /// Whether a retry avoids the instances that failed. Default: true.
        pub retry_ignore_previous_hosts: Option<bool>,
        /// The least wait between tries. Default: 25 ms.
        pub backoff: Option<Duration>,
    }

    /// Cross-origin rules for browsers.
    pub struct CorsPolicy {
        /// The former form of `allowOrigins`: exact texts.
        pub allow_origin: Vec<String>,
        /// The origins allowed.
        pub allow_origins: Vec<StringMatch>,
        /// The methods allowed.
        pub allow_methods: Vec<String>,
        /// The request headers allowed.
        pub allow_headers: Vec<String>,
        /// The answer's headers that scripts may read.
        pub expose_headers: Vec<String>,
        /// How long a browser may keep the answer to a preflight. Default: it is not said.
        pub max_age: Option<Duration>,
        /// Whether credentials may be sent. Default: false.
        pub allow_credentials: Option<bool>,
        /// What happens to preflights from other origins. Default: forwarded.
        pub unmatched_preflights: UnmatchedPreflights,
    }

    /// Faults on purpose, for testing callers.
    pub struct HttpFaultInjection {
        /// Waits before forwarding.
        pub delay: Option<FaultDelay>,
        /// Answers with an error instead of forwarding.
        pub abort: Option<FaultAbort>,
    }

    /// A wait before forwarding.
    pub struct FaultDelay {
        /// The former form of `percentage`, in whole percent, 0 to 100. Default: 0.
        pub percent: Option<i32>,
        /// How long; at least 1 ms. Must be there.
        pub fixed_delay: Option<Duration>,
        /// An average (never carried out by Istio).
        pub exponential_delay: Option<Duration>,
        /// The share of requests. Default: as `percent` says.
        pub percentage: Option<Percent>,
    }

    /// An error instead of forwarding: one status.
    pub struct FaultAbort {
        /// An HTTP status, 200 to 599. Default: nothing is aborted, unless `grpcStatus` is there.
        pub http_status: Option<i32>,
        /// A gRPC status, by name or number.
        pub grpc_status: String,
        /// An HTTP/2 error (never carried out by Istio).
        pub http2_error: String,
        /// The share of requests; absent means none.
        pub percentage: Option<Percent>,
    }

    /// One place that gets copies.
    pub struct HttpMirrorPolicy {
        /// The place.
        pub destination: Option<Destination>,
        /// The share of requests. Default: all.
        pub percentage: Option<Percent>,
    }
}

/// Where the port of a redirect comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RedirectPortSelection {
    /// 80 for `http`, 443 for `https`.
    FromProtocolDefault,
    /// The port the request came in on.
    FromRequestPort,
}

/// What happens to a preflight whose origin is not allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// The mesh's choice: forwarded.
    #[default]
    Unspecified,
    /// The service answers.
    Forward,
    /// The proxy answers, without allowing the origin.
    Ignore,
}
