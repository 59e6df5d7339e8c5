//! The deeds of the mesh: sockets, TLS, QUIC, DNS, Raft, disk, systemd.

pub mod identity;
pub mod server;
pub mod transport;
