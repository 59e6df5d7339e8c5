//! The deeds of the mesh: sockets, TLS, QUIC, DNS, Raft, disk, systemd.
//!
//! `core` decides, this package does. Modules of one row do not import each other; `docs/ARCHITECTURE.md` says who
//! may import whom, and a test keeps it so.

pub mod admin;
pub mod agent;
mod allocator;
pub mod app;
pub mod config;
pub mod dns;
pub mod doctor;
pub mod drain;
pub mod health;
pub mod identity;
mod image;
pub mod intercept;
pub mod listeners;
pub mod proxy;
pub mod secrets;
pub mod server;
pub mod services;
pub mod systemd;
pub mod task;
pub mod telemetry;
pub mod transport;
