//! What to do when an endpoint or a service is not well: limits, ejection, retries, injected faults.
//!
//! The proxy asks before each step and obeys: [`breaker`] whether one more may begin, [`outlier`] what an answer says
//! about its endpoint, [`retry`] whether to try again and when, [`fault`] whether to spoil a request on purpose. What
//! became of a request is told in Envoy's words ([`Flag`], [`Failure`]), so that logs and dashboards stay readable.

pub mod breaker;
pub mod fault;
mod flag;
pub mod grpc;
mod outcome;
pub mod outlier;
pub mod retry;

pub use flag::{Flag, Flags};
pub use outcome::{Failure, Outcome};
