//! The deeds of the mesh: sockets, TLS, QUIC, DNS, Raft, disk, systemd.

pub mod admin;
pub mod drain;
pub mod server;
pub mod task;
pub mod transport;
