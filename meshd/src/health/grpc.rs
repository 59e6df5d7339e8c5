//! `grpc.health.v1.Health/Check` over HTTP/2 without TLS. Its two messages are small enough to write by hand.
//!
//! Source: gRPC "Health Checking Protocol", "gRPC over HTTP2".

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::probe::{Failure, USER_AGENT};

/// Asks about a service; empty is the whole server.
pub(super) async fn ask(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), Failure> {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake?;
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(http::header::USER_AGENT, USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|error| Failure::Unaskable(error.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        judge(answer).await
    };
    tokio::pin!(exchange);
    tokio::select! {
        found = &mut exchange => found,
        _ = connection => exchange.await,
    }
}

async fn judge(answer: http::Response<hyper::body::Incoming>) -> Result<(), Failure> {
    let (head, body) = answer.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(Failure::Grpc(format!("HTTP status {}", head.status.as_u16())));
    }
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| Failure::Grpc(format!("the answer broke off: {error}")))?;
    let in_trailers = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    let code = in_trailers.or_else(|| head.headers.get("grpc-status").cloned());
    match code.as_ref().and_then(|code| code.to_str().ok()) {
        Some("0") => {}
        Some("5") => return Err(Failure::Grpc("the server does not know this service".into())),
        Some("12") => return Err(Failure::Grpc("the server has no health service".into())),
        other => return Err(Failure::Grpc(format!("grpc-status {}", other.unwrap_or("missing")))),
    }
    match serving_status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(status) => Err(Failure::Grpc(format!("status {}", status_name(status)))),
        None => Err(Failure::Grpc("the answer is no HealthCheckResponse".into())),
    }
}

/// `HealthCheckRequest { string service = 1; }` behind gRPC's five bytes (not compressed, length).
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.put_u8(u8::try_from(value).unwrap_or_default());
}

/// Reads `HealthCheckResponse { ServingStatus status = 1; }`; unknown fields are passed over, the last `status`
/// counts, and an absent one is 0 (`UNKNOWN`). `None` when it is something else.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (header, rest) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(header[1..].try_into().ok()?);
    let mut message = rest.get(..usize::try_from(length).ok()?)?;
    if header[0] != 0 {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn status_name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".into(),
        2 => "NOT_SERVING".into(),
        3 => "SERVICE_UNKNOWN".into(),
        other => other.to_string(),
    }
}

const SERVING: u64 = 1;
/// The answer takes seven bytes; what is longer is none.
const MAX_ANSWER_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_what_protobuf_writes() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(question(&"x".repeat(300))[5..8], [0x0a, 0xac, 0x02]);
    }

    #[test]
    fn answers_are_read_whatever_fields_they_have() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        let unknown_fields = [0, 0, 0, 0, 9, 0x12, 1, b'x', 8, 1, 0x1d, 0, 0, 0];
        assert_eq!(serving_status(&unknown_fields), None, "the last field is cut off");
        assert_eq!(serving_status(&[0, 0, 0, 0, 5, 0x12, 1, b'x', 8, 2]), Some(2));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..rng.usize(..24)).map(|_| rng.u8(..)).collect();
            let _ = serving_status(&bytes);
            let framed = [&[0, 0, 0, 0, u8::try_from(bytes.len()).unwrap()], &bytes[..]].concat();
            let _ = serving_status(&framed);
        }
    }
}
