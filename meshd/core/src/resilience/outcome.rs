//! What became of one attempt to send a request to an endpoint.

use http::{HeaderMap, StatusCode};

use super::outlier::Answer;
use super::{Flag, grpc};

/// What became of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered.
    Answer {
        /// Its status.
        status: StatusCode,
        /// `grpc-status` of the response *headers*: gRPC answers without a body ("trailers-only") carry it there.
        /// One in trailers comes too late to try again.
        grpc_status: Option<u32>,
        /// Whether it carries `x-envoy-ratelimited`.
        rate_limited: bool,
    },
    /// It did not.
    Failed(Failure),
}

impl Outcome {
    /// Reads what counts from the head of an answer.
    pub fn of_answer(status: StatusCode, headers: &HeaderMap) -> Self {
        Self::Answer {
            status,
            grpc_status: grpc::status_of(headers),
            rate_limited: headers.contains_key("x-envoy-ratelimited"),
        }
    }

    /// Returns what it says about its endpoint; `None` for failures of which no endpoint knows, and of one that is leaving.
    ///
    /// gRPC's status counts, where the headers have one, as in Envoy.
    pub fn about_endpoint(self) -> Option<Answer> {
        match self {
            Self::Answer { grpc_status: Some(status), .. } => Some(Answer::Status(grpc::to_http(status))),
            Self::Answer { status, .. } => Some(Answer::Status(status.as_u16())),
            Self::Failed(Failure::NoEndpoint | Failure::Overflow | Failure::GoAway) => None,
            Self::Failed(Failure::PerTryTimeout | Failure::RouteTimeout) => Some(Answer::Timeout),
            Self::Failed(_) => Some(Answer::LocalFailure),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No endpoint may be used.
    NoEndpoint,
    /// A limit of the cluster was reached.
    Overflow,
    /// No connection: refused, unreachable, TLS failed, wrong identity.
    Connect,
    /// No connection within the cluster's connect timeout.
    ConnectTimeout,
    /// The endpoint refused the stream before doing anything with it (`REFUSED_STREAM`).
    RefusedStream,
    /// The endpoint was leaving when the stream came, and did nothing with it (`GOAWAY` below its id). Envoy calls that
    /// refused, too. Source: RFC 9113, section 6.8.
    GoAway,
    /// The connection broke before any part of the request was sent on it.
    ResetBeforeRequest,
    /// The connection broke after that.
    ConnectionLost,
    /// The endpoint reset the stream.
    RemoteReset,
    /// What the endpoint sent is not HTTP.
    Protocol,
    /// One attempt took longer than `perTryTimeout`.
    PerTryTimeout,
    /// All attempts together took longer than the route's timeout. Never tried again.
    RouteTimeout,
}

impl Failure {
    /// Returns the flag for logs.
    pub const fn flag(self) -> Flag {
        match self {
            Self::NoEndpoint => Flag::NoHealthyUpstream,
            Self::Overflow => Flag::UpstreamOverflow,
            Self::Connect | Self::ConnectTimeout => Flag::UpstreamConnectionFailure,
            Self::RefusedStream | Self::GoAway | Self::RemoteReset => Flag::UpstreamRemoteReset,
            Self::ResetBeforeRequest | Self::ConnectionLost => Flag::UpstreamConnectionTermination,
            Self::Protocol => Flag::UpstreamProtocolError,
            Self::PerTryTimeout | Self::RouteTimeout => Flag::UpstreamRequestTimeout,
        }
    }

    /// Returns the status of the answer meshd gives instead.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::PerTryTimeout | Self::RouteTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Protocol => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns the body of the answer meshd gives instead, Envoy's words.
    ///
    /// `retried`: at least one attempt went before this one.
    pub fn body(self, retried: bool) -> String {
        match self {
            Self::NoEndpoint => "no healthy upstream".into(),
            Self::PerTryTimeout | Self::RouteTimeout => "upstream request timeout".into(),
            _ => {
                let which = if retried { "retried and the latest reset reason" } else { "reset reason" };
                format!(
                    "upstream connect error or disconnect/reset before headers. {which}: {}",
                    self.reason()
                )
            }
        }
    }

    /// Returns the reason alone, Envoy's words.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no healthy upstream",
            Self::Overflow => "overflow",
            Self::Connect => "remote connection failure",
            Self::ConnectTimeout => "connection timeout",
            Self::RefusedStream | Self::GoAway => "remote refused stream reset",
            Self::ResetBeforeRequest | Self::ConnectionLost => "connection termination",
            Self::RemoteReset => "remote reset",
            Self::Protocol => "protocol error",
            Self::PerTryTimeout | Self::RouteTimeout => "timeout",
        }
    }

    /// Returns Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub const fn details(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_healthy_upstream",
            Self::Overflow => "upstream_reset_before_response_started{overflow}",
            Self::Connect => "upstream_reset_before_response_started{remote_connection_failure}",
            Self::ConnectTimeout => "upstream_reset_before_response_started{connection_timeout}",
            Self::RefusedStream | Self::GoAway => {
                "upstream_reset_before_response_started{remote_refused_stream_reset}"
            }
            Self::ResetBeforeRequest | Self::ConnectionLost => {
                "upstream_reset_before_response_started{connection_termination}"
            }
            Self::RemoteReset => "upstream_reset_before_response_started{remote_reset}",
            Self::Protocol => "upstream_reset_before_response_started{protocol_error}",
            Self::PerTryTimeout => "upstream_per_try_timeout",
            Self::RouteTimeout => "response_timeout",
        }
    }

    /// Whether the answer carries `x-envoy-overloaded: true`.
    pub const fn overloaded(self) -> bool {
        matches!(self, Self::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_from_its_head() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", "14".parse().expect("a header value"));
        headers.insert("x-envoy-ratelimited", "true".parse().expect("a header value"));
        let outcome = Outcome::of_answer(StatusCode::OK, &headers);
        let expected = Outcome::Answer { status: StatusCode::OK, grpc_status: Some(14), rate_limited: true };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn an_outcome_says_what_it_means_for_its_endpoint() {
        let answer = |status, grpc_status| Outcome::Answer { status, grpc_status, rate_limited: false };
        let cases = [
            (answer(StatusCode::BAD_GATEWAY, None), Some(Answer::Status(502))),
            (answer(StatusCode::OK, Some(14)), Some(Answer::Status(503))),
            (answer(StatusCode::OK, Some(0)), Some(Answer::Status(200))),
            (Outcome::Failed(Failure::Connect), Some(Answer::LocalFailure)),
            (Outcome::Failed(Failure::PerTryTimeout), Some(Answer::Timeout)),
            (Outcome::Failed(Failure::Overflow), None),
            (Outcome::Failed(Failure::GoAway), None),
        ];
        for (outcome, expected) in cases {
            assert_eq!(outcome.about_endpoint(), expected, "{outcome:?}");
        }
    }

    #[test]
    fn local_answers_have_envoys_status_flag_and_words() {
        let prefix = "upstream connect error or disconnect/reset before headers.";
        let cases = [
            (Failure::NoEndpoint, 503, "UH", "no healthy upstream".to_owned()),
            (Failure::Overflow, 503, "UO", format!("{prefix} reset reason: overflow")),
            (Failure::ConnectionLost, 503, "UC", format!("{prefix} reset reason: connection termination")),
            (Failure::RouteTimeout, 504, "UT", "upstream request timeout".to_owned()),
            (Failure::Protocol, 502, "UPE", format!("{prefix} reset reason: protocol error")),
        ];
        for (failure, status, flag, body) in cases {
            assert_eq!(failure.status().as_u16(), status, "{failure:?}");
            assert_eq!(failure.flag().letters(), flag, "{failure:?}");
            assert_eq!(failure.body(false), body, "{failure:?}");
        }
        let retried = Failure::Connect.body(true);
        assert!(
            retried.ends_with("retried and the latest reset reason: remote connection failure"),
            "{retried}"
        );
    }
}
