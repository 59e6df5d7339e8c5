//! gRPC's statuses and HTTP's, both ways.

use http::HeaderMap;

/// Returns the `grpc-status` of response headers or trailers, if there is a readable one.
pub fn status_of(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Returns the gRPC status of an answer that meshd makes itself with an HTTP status.
///
/// The answer then is HTTP 200 with `grpc-status` and `grpc-message` in its headers. 503 and 504 both are 14
/// (unavailable), 404 is 12 (unimplemented), all others not named are 2 (unknown).
///
/// Source: Envoy `httpToGrpcStatus`; gRPC's `http-grpc-status-mapping.md`.
pub const fn from_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Returns the HTTP status that stands for a gRPC status, for ejection and metrics.
///
/// Source: Envoy `grpcToHttpStatus`; the comments of `google.rpc.Code`.
pub const fn to_http(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
