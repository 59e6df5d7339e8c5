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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_answers_map_as_in_envoy() {
        let cases = [(200, 2), (400, 13), (401, 16), (403, 7), (404, 12), (418, 2), (429, 14), (500, 2)];
        for (http, expected) in cases.into_iter().chain([(502, 14), (503, 14), (504, 14)]) {
            assert_eq!(from_http(http), expected, "{http}");
        }
    }

    #[test]
    fn only_server_failures_of_grpc_count_as_5xx() {
        let failures: Vec<u32> = (0..=17).filter(|status| to_http(*status) >= 500).collect();
        assert_eq!(failures, [2, 4, 12, 13, 14, 15, 17]);
        assert_eq!([to_http(14), to_http(4), to_http(0)], [503, 504, 200]);
    }

    #[test]
    fn a_status_that_is_no_number_is_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(status_of(&headers), None);
        headers.insert("grpc-status", http::HeaderValue::from_static("soon"));
        assert_eq!(status_of(&headers), None);
        headers.insert("grpc-status", http::HeaderValue::from_static("14"));
        assert_eq!(status_of(&headers), Some(14));
    }
}
