//! Trailers: what may not stand there is dropped, since those behind us may read it as if it stood in the head.

use bytes::Bytes;
use http::header::{self, HeaderName};
use http_body::Frame;

/// Returns the frame without fields that a trailer may not have, and how many those were. Source: RFC 9110, section 6.5.1.
pub(super) fn without_forbidden(frame: Frame<Bytes>) -> (Frame<Bytes>, u64) {
    let mut trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(frame) => return (frame, 0),
    };
    let forbidden: Vec<HeaderName> = trailers.keys().filter(|name| is_forbidden(name)).cloned().collect();
    let count = forbidden.len() as u64;
    for name in forbidden {
        tracing::debug!(%name, "field dropped: it may not stand in a trailer");
        trailers.remove(name);
    }
    (Frame::trailers(trailers), count)
}

/// Returns how many bytes of trailers a frame has, names and values.
pub(super) fn bytes(frame: &Frame<Bytes>) -> usize {
    let fields = frame.trailers_ref().into_iter().flatten();
    fields.map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn is_forbidden(name: &HeaderName) -> bool {
    FORBIDDEN.contains(name) || OURS.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Framing, routing, identity, and how a body is to be read.
const FORBIDDEN: [HeaderName; 14] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::CONNECTION,
    header::UPGRADE,
    header::EXPECT,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
];
const OURS: [&str; 3] = ["x-forwarded-", "x-envoy-", "x-mesh-"];
