//! Istio's kinds as types: what a user applies, what is stored, what hosts send each other.
//!
//! Rust names are Istio's message names, fields are Istio's JSON names in snake case. All types read and write JSON
//! without loss; fields that hold their default are not written. Whether a value makes sense is for `validate`, whether
//! meshd carries it out is for `support`.

mod destination_rule;
mod message;
mod object;
mod selector;
mod service_entry;
mod virtual_service;
mod workload_entry;

pub use destination_rule::*;
pub use object::{Kind, Object, ObjectKey, ObjectMeta, ParseKeyError, Spec, UnknownKind};
pub use selector::{MatchLabels, WorkloadSelector};
pub use service_entry::*;
pub use virtual_service::*;
pub use workload_entry::WorkloadEntry;
