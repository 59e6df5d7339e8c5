//! The deeds of the mesh: sockets, TLS, QUIC, DNS, Raft, disk, systemd.

pub mod drain;
// pub mod identity;
// pub mod server;
pub mod proxy;
pub mod task;
pub mod telemetry;
pub mod transport;
