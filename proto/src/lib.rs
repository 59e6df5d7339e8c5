//! The words of the mesh, shared by all: Istio resources and their parsing, what a host registers, what may
//! enter the Raft log, the API and the wire between hosts.
//!
//! Holds no decision that needs more than one resource; those are `mesh-core`'s.

pub mod api;
pub mod command;
pub mod finding;
pub mod registration;
pub mod resource;
pub mod watch;
