//! What is told of one request that ended: to access logs, and to their filters.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method, Version};
use mesh_core::expression::{Facts, Value};
use mesh_core::resilience::Flags;
use mesh_proto::expression::Attribute;

/// What is told of a request. Text that is unknown is empty.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began.
    pub started: SystemTime,
    /// Method; `None`: an opaque connection.
    pub method: Option<Method>,
    /// Path and query as the caller sent them.
    pub path: String,
    /// HTTP version.
    pub version: Version,
    /// Host.
    pub authority: String,
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
    /// Address of the endpoint.
    pub upstream_host: String,
    /// Cluster, `outbound|PORT|SUBSET|HOST`.
    pub upstream_cluster: String,
    /// Name of the route.
    pub route: String,
    /// How often it was sent to an endpoint.
    pub attempts: u32,
    /// The caller's address.
    pub downstream: Option<SocketAddr>,
    /// The SPIFFE id that the caller has proven, over mutual TLS.
    pub principal: Option<String>,
    /// The name that TLS asked for.
    pub server_name: String,
    /// gRPC status.
    pub grpc: Option<u16>,
    /// Id of its trace.
    pub trace: Option<u128>,
    /// Revision of the Plan it saw.
    pub revision: u64,
    /// The host that tells.
    pub host: Arc<str>,
}

impl Record {
    /// Returns a header of the request, or one of the names that HTTP/2 has for its first line.
    pub(super) fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        let shown = |text: &'static str| Some(Cow::Borrowed(text));
        let own = |text| Some(Cow::Borrowed(text)).filter(|text: &Cow<'_, str>| !text.is_empty());
        match name {
            ":method" => self.method.as_ref().map(|method| Cow::Borrowed(method.as_str())),
            ":path" => own(self.path.as_str()),
            ":authority" | "host" => own(self.authority.as_str()),
            ":scheme" => shown("http"),
            _ => find(&self.request, name),
        }
    }

    /// Returns a header of the answer.
    pub(super) fn response(&self, name: &str) -> Option<Cow<'_, str>> {
        match (name, self.upstream_duration) {
            ("x-envoy-upstream-service-time", Some(time)) => Some(time.as_millis().to_string().into()),
            (":status", _) if self.status > 0 => Some(self.status.to_string().into()),
            _ => find(&self.response, name),
        }
    }
}

fn find<'a>(headers: &'a [(HeaderName, HeaderValue)], name: &str) -> Option<Cow<'a, str>> {
    let (_, value) = headers.iter().find(|(other, _)| other.as_str() == name)?;
    Some(String::from_utf8_lossy(value.as_bytes()))
}

impl Facts for Record {
    fn attribute(&self, attribute: &Attribute) -> Option<Value<'_>> {
        use Attribute as A;
        let number = |number: u64| Some(Value::Number(i64::try_from(number).unwrap_or(i64::MAX)));
        match attribute {
            A::RequestHeader(name) => self.request(name).map(Value::Text),
            A::RequestMethod => self.request(":method").map(Value::Text),
            A::RequestPath => self.request(":path").map(Value::Text),
            A::RequestUrlPath => {
                let path = self.path.split('?').next().filter(|path| !path.is_empty())?;
                Some(Value::Text(path.into()))
            }
            A::RequestHost => self.request(":authority").map(Value::Text),
            A::RequestProtocol => {
                Some(Value::Text(mesh_core::route::template::protocol(self.version).into()))
            }
            A::RequestId => self.request("x-request-id").map(Value::Text),
            A::RequestUserAgent => self.request("user-agent").map(Value::Text),
            A::RequestSize => number(self.received_bytes),
            A::ResponseCode => (self.status > 0).then_some(Value::Number(self.status.into())),
            A::ResponseCodeDetails => (!self.details.is_empty()).then(|| Value::Text(self.details.into())),
            A::ResponseGrpcStatus => self.grpc.map(|status| Value::Number(status.into())),
            A::ResponseSize => number(self.sent_bytes),
            A::SourceAddress => self.downstream.map(|address| Value::Text(address.to_string().into())),
            A::UpstreamAddress => {
                (!self.upstream_host.is_empty()).then(|| Value::Text(self.upstream_host.as_str().into()))
            }
            A::ConnectionMtls => Some(Value::Truth(self.principal.is_some())),
            A::ClusterName => (!self.upstream_cluster.is_empty())
                .then(|| Value::Text(self.upstream_cluster.as_str().into())),
            A::RouteName => (!self.route.is_empty()).then(|| Value::Text(self.route.as_str().into())),
        }
    }

    fn has_header(&self, name: &str) -> bool {
        self.request(name).is_some()
    }
}
