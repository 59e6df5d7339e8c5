//! Answers that meshd gives itself, in Envoy's words.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use mesh_core::plan::Abort;
use mesh_core::resilience::{Failure, Flag, grpc};
use mesh_core::wire::guard::Refusal;

use super::body::SHED;
use super::exchange::Reply;

/// An answer of meshd's own.
#[derive(Debug)]
pub(crate) struct LocalReply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    /// gRPC status where it is not that of the HTTP status.
    pub(crate) grpc_status: Option<u32>,
    /// More headers.
    pub(crate) headers: HeaderMap,
    pub(crate) flag: Option<Flag>,
    /// A few constant words for the log.
    pub(crate) details: &'static str,
    /// Whether the connection ends with it (HTTP/1).
    pub(crate) close: bool,
}

impl LocalReply {
    pub(crate) fn new(status: StatusCode, details: &'static str) -> Self {
        Self {
            status,
            body: Bytes::new(),
            grpc_status: None,
            headers: HeaderMap::new(),
            flag: None,
            details,
            close: false,
        }
    }

    fn flag(mut self, flag: Flag) -> Self {
        self.flag = Some(flag);
        self
    }

    fn body(mut self, body: impl Into<Cow<'static, str>>) -> Self {
        self.body = match body.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        self
    }

    /// No route of the host applies.
    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "route_not_found").flag(Flag::NoRoute)
    }

    /// Nobody has declared the host, and such hosts are refused.
    pub(crate) fn unknown_host() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "unknown_host").flag(Flag::NoRoute)
    }

    /// The destination's host, subset or port is not there.
    pub(crate) fn no_cluster() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "cluster_not_found").flag(Flag::NoClusterFound)
    }

    /// The guard refuses the request. The connection ends: what follows on it cannot be trusted.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        if refusal == SHED {
            return Self::overloaded();
        }
        let mut reply = Self::new(refusal.status, refusal.reason).flag(Flag::DownstreamProtocolError);
        reply.close = true;
        reply
    }

    /// Memory is short. The connection ends, which gives some back.
    pub(crate) fn overloaded() -> Self {
        let reply = Self::new(SHED.status, SHED.reason).flag(Flag::OverloadManager);
        let mut reply = reply.body("envoy overloaded");
        reply.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        reply.close = true;
        reply
    }

    /// The request goes in a circle.
    pub(crate) fn loop_detected() -> Self {
        let mut reply =
            Self::new(StatusCode::LOOP_DETECTED, "too_many_hops").flag(Flag::DownstreamProtocolError);
        reply.close = true;
        reply
    }

    /// An upgrade that is not let through, or CONNECT where it is not allowed.
    pub(crate) fn forbidden(details: &'static str) -> Self {
        let mut reply = Self::new(StatusCode::FORBIDDEN, details);
        reply.close = true;
        reply
    }

    /// What an authority asked to see.
    pub(crate) fn proof(content: &str) -> Self {
        Self::new(StatusCode::OK, "acme_challenge").body(content.to_owned())
    }

    /// A fault on purpose.
    pub(crate) fn abort(abort: &Abort) -> Self {
        let mut reply = Self::new(abort.status, "fault_filter_abort").flag(Flag::FaultInjected);
        reply.grpc_status = abort.grpc_status;
        reply.body("fault filter abort")
    }

    /// No endpoint answered.
    pub(crate) fn failure(failure: Failure, retried: bool) -> Self {
        let mut reply =
            Self::new(failure.status(), failure.details()).flag(failure.flag()).body(failure.body(retried));
        if failure.overloaded() {
            reply.headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        reply
    }

    /// Writes it; for a gRPC caller as gRPC wants errors: HTTP 200 and the status in the headers.
    pub(crate) fn response(self, is_grpc: bool) -> Response<Reply> {
        if is_grpc { self.into_grpc() } else { self.into_http() }
    }

    fn into_http(self) -> Response<Reply> {
        let Self { status, body, mut headers, close, .. } = self;
        if !body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if status != StatusCode::NO_CONTENT && !status.is_informational() {
            headers.insert(header::CONTENT_LENGTH, body.len().into());
        }
        if close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        finish(status, headers, Reply::whole(body))
    }

    fn into_grpc(self) -> Response<Reply> {
        let mut headers = self.headers;
        let status = self.grpc_status.unwrap_or_else(|| grpc::from_http(self.status.as_u16()));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, status.into());
        headers.remove(header::CONTENT_LENGTH);
        if !self.body.is_empty()
            && let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.body))
        {
            headers.insert(GRPC_MESSAGE, message);
        }
        finish(StatusCode::OK, headers, Reply::whole(Bytes::new()))
    }
}

fn finish(status: StatusCode, headers: HeaderMap, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Source: gRPC over HTTP/2, `grpc-message` is percent-encoded.
fn percent_encoded(text: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text {
        if matches!(byte, b' '..=b'~') && *byte != b'%' {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
