//! The words of the mesh: Istio's resources, what is wrong with them, what a host registers, and what hosts say to
//! each other.
//!
//! This package holds data and the rules that need nothing but the data: types, their text forms, reading YAML,
//! Istio's validation. It decides nothing about traffic (that is `mesh-core`) and does no I/O.

pub mod api;
pub mod command;
pub mod exact;
pub mod explain;
pub mod expression;
pub mod finding;
pub mod log_format;
pub mod look;
pub mod registration;
pub mod resource;
pub mod secret;
pub mod support;
pub mod token;
pub mod validate;
pub mod value;
pub mod watch;
pub mod yaml;
