//! Istio's kinds as types: what a user applies, what is stored, what hosts send each other.
//!
//! Rust names are Istio's message names, fields are Istio's JSON names in snake case. All types read and write JSON
//! without loss; fields that hold their default are not written. Whether a value makes sense is for `validate`, whether
//! meshd carries it out is for `support`.

mod destination_rule;
mod gateway;
mod mesh_config;
mod message;
mod object;
mod security;
mod selector;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub use destination_rule::*;
pub use gateway::*;
pub use mesh_config::*;
pub use object::{Kind, Object, ObjectKey, ObjectMeta, ParseKeyError, Spec, UnknownKind};
pub use security::*;
pub use selector::{MatchLabels, PolicyTargetReference, WorkloadSelector};
pub use service_entry::*;
pub use sidecar::*;
pub use telemetry::*;
pub use virtual_service::*;
pub use workload_entry::WorkloadEntry;
pub use workload_group::*;
