//! The control plane.

pub mod ca;
