//! The thoughts of the mesh: plain functions that decide; no I/O, no clock, no chance.

pub mod identity;
