//! Leaving an endpoint alone for a while after it failed several times in a row.

use crate::endpoint::Moment;
use crate::plan::{Cluster, Endpoint};

/// What an attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answered with this HTTP status; for gRPC that of [`grpc::to_http`](super::grpc::to_http). A TCP connection that
    /// was established counts as 200.
    Status(u16),
    /// No connection, or it broke: counts as 503.
    LocalFailure,
    /// It took too long: counts as 504.
    Timeout,
}

/// An endpoint was ejected just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// The earliest end.
    pub until: Moment,
    /// How often it was ejected, this time included.
    pub count: u32,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503, 504 or failed connections in a row.
    ConsecutiveGateway,
}

/// Counts an answer; ejects the endpoint when that is one too many in a row.
pub fn record(_cluster: &Cluster, _endpoint: &Endpoint, _answer: Answer, _now: Moment) -> Option<Ejection> {
    None
}

/// Lets endpoints return whose time is over, when a sweep is due. Returns how many did.
pub fn sweep(_cluster: &Cluster, _now: Moment) -> u32 {
    0
}
