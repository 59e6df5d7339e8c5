//! What is told of one request that ended: to access logs, and to their filters.
//!
//! It holds what the request had, not texts made of it: those are made where lines are written, off the request's path.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Version};
use mesh_core::expression::{Facts, Value};
use mesh_core::plan::{Cluster, Via};
use mesh_core::resilience::Flags;
use mesh_proto::expression::Attribute;

/// What is told of a request, or of an opaque connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began.
    pub started: SystemTime,
    /// Method; `None`: an opaque connection.
    pub method: Option<Method>,
    /// Path and query as the caller sent them.
    pub target: Option<PathAndQuery>,
    /// HTTP version.
    pub version: Version,
    /// Whether its scheme is `https`.
    pub https: bool,
    /// Host.
    pub authority: Option<HeaderValue>,
    /// Status; 0: no answer was begun.
    pub status: u16,
    /// Why it ended so.
    pub flags: Flags,
    /// A few words of detail, of meshd's own.
    pub details: &'static str,
    /// Bytes of the request's body.
    pub received_bytes: u64,
    /// Bytes of the answer's body.
    pub sent_bytes: u64,
    /// From the first byte of the request to the last of the answer.
    pub duration: Duration,
    /// Until the endpoint's head arrived.
    pub upstream_duration: Option<Duration>,
    /// Headers of the request that somebody wants.
    pub request: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer that somebody wants.
    pub response: Vec<(HeaderName, HeaderValue)>,
    /// The endpoint.
    pub upstream: Option<Via>,
    /// Where it went.
    pub goal: Goal,
    /// Name of the route.
    pub route: Cow<'static, str>,
    /// How often it was sent to an endpoint.
    pub attempts: u32,
    /// The own address towards the endpoint.
    pub upstream_local: Option<SocketAddr>,
    /// Why the endpoint was not reached, as Envoy's logs name it.
    pub transport_failure: Option<Arc<str>>,
    /// The caller's address, as trusted proxies before this one tell it.
    pub downstream: Option<SocketAddr>,
    /// The address at the other end of the caller's connection.
    pub direct: Option<SocketAddr>,
    /// Where the caller called.
    pub downstream_local: Option<SocketAddr>,
    /// The SPIFFE id that the caller has proven, over mutual TLS.
    pub principal: Option<Arc<str>>,
    /// The name that TLS asked for.
    pub server_name: Option<Arc<str>>,
    /// gRPC status.
    pub grpc: Option<u16>,
    /// Id of its trace.
    pub trace: Option<u128>,
    /// Revision of the Plan it saw.
    pub revision: u64,
    /// The host that tells.
    pub host: Arc<str>,
}

/// Where a request or connection went, as `%UPSTREAM_CLUSTER%` names it.
#[derive(Clone, Debug, Default)]
pub enum Goal {
    /// Nowhere.
    #[default]
    Nowhere,
    /// A cluster: `outbound|PORT|SUBSET|HOST`.
    Cluster(Arc<Cluster>),
    /// An application of this host, by its port.
    Inbound(u16),
    /// A service of which there is no cluster.
    Named(Arc<str>),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::Cluster(cluster) => cluster.name.fmt(f),
            Self::Inbound(port) => write!(f, "inbound|{port}||"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl Goal {
    /// Whether it is anywhere.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Nowhere)
    }
}

impl Record {
    /// Makes the record of something of which nothing is known yet.
    pub fn new(host: Arc<str>, revision: u64) -> Self {
        Self {
            started: UNIX_EPOCH,
            method: None,
            target: None,
            version: Version::default(),
            https: false,
            authority: None,
            status: 0,
            flags: Flags::default(),
            details: "",
            received_bytes: 0,
            sent_bytes: 0,
            duration: Duration::ZERO,
            upstream_duration: None,
            request: Vec::new(),
            response: Vec::new(),
            upstream: None,
            goal: Goal::Nowhere,
            route: Cow::Borrowed(""),
            attempts: 0,
            upstream_local: None,
            transport_failure: None,
            downstream: None,
            direct: None,
            downstream_local: None,
            principal: None,
            server_name: None,
            grpc: None,
            trace: None,
            revision,
            host,
        }
    }

    /// Returns path and query; empty where there is none.
    pub fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::as_str)
    }

    /// Returns the host asked for; empty where there is none.
    pub fn authority(&self) -> Cow<'_, str> {
        self.authority.as_ref().map_or(Cow::Borrowed(""), shown)
    }

    /// Returns a header of the request, or one of the names that HTTP/2 has for its first line.
    pub fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        let own = |text| Some(text).filter(|text: &Cow<'_, str>| !text.is_empty());
        match name {
            ":method" => self.method.as_ref().map(|method| Cow::Borrowed(method.as_str())),
            ":path" => own(Cow::Borrowed(self.path())),
            ":authority" | "host" => own(self.authority()),
            ":scheme" if self.method.is_some() => {
                Some(Cow::Borrowed(if self.https { "https" } else { "http" }))
            }
            _ => find(&self.request, name),
        }
    }

    /// Returns a header of the answer.
    pub(super) fn response(&self, name: &str) -> Option<Cow<'_, str>> {
        match (name, self.upstream_duration) {
            (SERVICE_TIME, Some(time)) => Some(time.as_millis().to_string().into()),
            (":status", _) if self.status > 0 => Some(self.status.to_string().into()),
            _ => find(&self.response, name),
        }
    }
}

fn find<'a>(headers: &'a [(HeaderName, HeaderValue)], name: &str) -> Option<Cow<'a, str>> {
    headers.iter().find(|(other, _)| other.as_str() == name).map(|(_, value)| shown(value))
}

fn shown(value: &HeaderValue) -> Cow<'_, str> {
    let bytes = value.as_bytes();
    // What is sound is nearly always, and takes half of the time.
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// A field that Envoy adds to answers: here it is the time that it tells.
pub(super) const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

impl Facts for Record {
    fn attribute(&self, attribute: &Attribute) -> Option<Value<'_>> {
        use Attribute as A;
        let number = |number: u64| Some(Value::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        let is_http = self.method.is_some();
        match attribute {
            A::RequestHeader(name) => self.request(name).map(Value::Text),
            A::RequestMethod => self.request(":method").map(Value::Text),
            A::RequestPath => self.request(":path").map(Value::Text),
            A::RequestUrlPath => {
                let path = self.path().split('?').next().filter(|path| !path.is_empty())?;
                Some(Value::Text(path.into()))
            }
            A::RequestHost => self.request(":authority").map(Value::Text),
            A::RequestProtocol => {
                is_http.then(|| Value::Text(mesh_core::route::template::protocol(self.version).into()))
            }
            A::RequestId => self.request("x-request-id").map(Value::Text),
            A::RequestUserAgent => self.request("user-agent").map(Value::Text),
            A::RequestSize => number(self.received_bytes),
            A::ResponseCode => (self.status > 0).then_some(Value::Number(self.status.into())),
            A::ResponseCodeDetails => (!self.details.is_empty()).then(|| Value::Text(self.details.into())),
            A::ResponseGrpcStatus => self.grpc.map(|status| Value::Number(status.into())),
            A::ResponseSize => number(self.sent_bytes),
            A::SourceAddress => self.downstream.map(|address| Value::Text(address.to_string().into())),
            A::UpstreamAddress => self.upstream.as_ref().map(|via| Value::Text(via.to_string().into())),
            A::ConnectionMtls => Some(Value::Truth(self.principal.is_some())),
            A::ClusterName => self.goal.is_known().then(|| Value::Text(Cow::Owned(self.goal.to_string()))),
            A::RouteName => (!self.route.is_empty()).then(|| Value::Text(Cow::Borrowed(&*self.route))),
        }
    }

    fn has_header(&self, name: &str) -> bool {
        self.request(name).is_some()
    }
}
