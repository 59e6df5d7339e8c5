//! What is told of one request that ended: to access logs, and to their filters.
//!
//! It holds what the request had, not texts made of it: those are made where lines are written, off the request's path.
//! What the caller has said is copied, since to share it would keep the memory that heads are read into from being used
//! for the next; the copy is memory that the next record takes again.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, Version};
use mesh_core::expression::{Facts, Value};
use mesh_core::plan::{Cluster, Via};
use mesh_core::resilience::Flags;
use mesh_proto::expression::Attribute;
use mesh_proto::log_format::RequestField;

/// What is told of a request, or of an opaque connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began.
    pub started: SystemTime,
    /// Method; `None`: an opaque connection.
    pub method: Option<Method>,
    /// HTTP version.
    pub version: Version,
    /// Whether its scheme is `https`.
    pub https: bool,
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
    /// The endpoint.
    pub upstream: Option<Via>,
    /// Where it went.
    pub goal: Goal,
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
    /// What the caller, the endpoint and the rules have said.
    pub texts: Texts,
}

/// Texts of a record, one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    path: Span,
    authority: Span,
    route: Span,
    request: Vec<Field>,
    response: Vec<Field>,
}

/// Where a text stands among those of its record.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    begin: usize,
    end: usize,
}

/// A header.
#[derive(Clone, Copy, Debug)]
struct Field {
    name: Span,
    value: Span,
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
            version: Version::default(),
            https: false,
            status: 0,
            flags: Flags::default(),
            details: "",
            received_bytes: 0,
            sent_bytes: 0,
            duration: Duration::ZERO,
            upstream_duration: None,
            upstream: None,
            goal: Goal::Nowhere,
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
            texts: Texts::default(),
        }
    }

    /// Forgets all but the host, and keeps the memory; `None`: that is so much that it is better given back.
    pub(super) fn forgotten(mut self: Box<Self>) -> Option<Box<Self>> {
        let Self { host, mut texts, .. } = *self;
        texts.clear();
        let is_small = texts.bytes.capacity() <= MOST_TEXT
            && texts.request.capacity().max(texts.response.capacity()) <= MOST_FIELDS;
        *self = Self { texts, ..Self::new(host, 0) };
        is_small.then_some(self)
    }

    /// Returns path and query; empty where there is none.
    pub fn path(&self) -> Cow<'_, str> {
        shown(self.texts.said(self.texts.path))
    }

    /// Returns the host asked for; empty where there is none.
    pub fn authority(&self) -> Cow<'_, str> {
        shown(self.texts.said(self.texts.authority))
    }

    /// Returns a header of the request, or one of the names that HTTP/2 has for its first line.
    pub fn request(&self, name: &str) -> Option<Cow<'_, str>> {
        let said = match RequestField::of_first_line(name) {
            Some(field) => self.asked(&field),
            None => self.texts.found(&self.texts.request, name),
        };
        said.map(shown)
    }

    /// Returns what is asked for of the request, as it came.
    pub(super) fn asked(&self, field: &RequestField) -> Option<&[u8]> {
        let own = |span| Some(self.texts.said(span)).filter(|text| !text.is_empty());
        match field {
            RequestField::Method => self.method.as_ref().map(|method| method.as_str().as_bytes()),
            RequestField::Path => own(self.texts.path),
            RequestField::Authority => own(self.texts.authority),
            RequestField::Scheme => {
                self.method.as_ref().map(|_| if self.https { &b"https"[..] } else { b"http" })
            }
            RequestField::Header(name) => self.texts.found(&self.texts.request, name),
        }
    }

    /// Returns a header of the answer as it came.
    pub(super) fn answered(&self, name: &str) -> Option<&[u8]> {
        self.texts.found(&self.texts.response, name)
    }

    /// Returns the name of the route; empty where there is none.
    pub(super) fn route(&self) -> &[u8] {
        self.texts.said(self.texts.route)
    }
}

impl Texts {
    /// Keeps path and query as the caller sent them.
    pub fn set_path(&mut self, path: &str) {
        self.path = self.add(path.as_bytes());
    }

    /// Keeps the host asked for.
    pub fn set_authority(&mut self, authority: &[u8]) {
        self.authority = self.add(authority);
    }

    /// Keeps the name of the route.
    pub fn set_route(&mut self, name: &str) {
        self.route = self.add(name.as_bytes());
    }

    /// Keeps a header of the request, in the place of what came under that name.
    pub fn set_request(&mut self, name: &str, value: &[u8]) {
        match self.at(&self.request, name) {
            Some(at) => self.request[at].value = self.add(value),
            None => self.add_request(name, value),
        }
    }

    /// Keeps a header of the request; of many with one name, the first.
    pub fn add_request(&mut self, name: &str, value: &[u8]) {
        if self.at(&self.request, name).is_none() {
            let field = self.field(name, value);
            self.request.push(field);
        }
    }

    /// Keeps a header of the answer; of many with one name, the first.
    pub fn add_response(&mut self, name: &str, value: &[u8]) {
        if self.at(&self.response, name).is_none() {
            let field = self.field(name, value);
            self.response.push(field);
        }
    }

    fn field(&mut self, name: &str, value: &[u8]) -> Field {
        Field { name: self.add(name.as_bytes()), value: self.add(value) }
    }

    fn add(&mut self, text: &[u8]) -> Span {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(text);
        Span { begin, end: self.bytes.len() }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.request.clear();
        self.response.clear();
        (self.path, self.authority, self.route) = (Span::default(), Span::default(), Span::default());
    }

    fn at(&self, fields: &[Field], name: &str) -> Option<usize> {
        fields.iter().position(|field| self.said(field.name) == name.as_bytes())
    }

    fn found(&self, fields: &[Field], name: &str) -> Option<&[u8]> {
        self.at(fields, name).map(|at| self.said(fields[at].value))
    }

    /// Returns all of them, one behind the other.
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    fn said(&self, span: Span) -> &[u8] {
        &self.bytes[span.begin..span.end]
    }
}

/// What is no UTF-8 is shown as if it were.
pub(super) fn shown(bytes: &[u8]) -> Cow<'_, str> {
    // What is sound is nearly always, and takes half of the time.
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// Bytes of texts that a record keeps for the next.
const MOST_TEXT: usize = 4 * 1_024;
/// Headers that it has room for.
const MOST_FIELDS: usize = 32;

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
                let path = self.path().split('?').next().map(str::to_owned);
                Some(Value::Text(path.filter(|path| !path.is_empty())?.into()))
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
            A::RouteName => {
                Some(self.route()).filter(|route| !route.is_empty()).map(|route| Value::Text(shown(route)))
            }
        }
    }

    fn has_header(&self, name: &str) -> bool {
        self.request(name).is_some()
    }
}
