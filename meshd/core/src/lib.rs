//! The thoughts of the mesh: keep the facts, compile them into a Plan, route, balance, retry, admit.
//!
//! Every function here is plain: no `async`, no socket, no file, no clock, no dice. Time and chance come in as
//! arguments, decisions go out as values. So the proxy, `meshctl explain`, the golden cases, the fuzzers and the
//! simulator run the same code.

pub mod analyze;
pub mod autopilot;
pub mod balance;
pub mod compile;
pub mod election;
pub mod endpoint;
pub mod explain;
pub mod expression;
pub mod firewall;
pub mod groups;
pub mod health;
pub mod hex;
pub mod identity;
pub mod liveness;
pub mod meaning;
pub mod parted;
pub mod plan;
pub mod renewal;
pub mod resilience;
pub mod route;
pub mod sketch;
pub mod trace;
pub mod views;
pub mod wire;
pub mod world;
