//! The data path over loopback.

mod detour;
mod hop;
mod http;
mod lab;
mod limits;
mod origination;
mod plan;
mod pools;
mod protocols;
mod tcp;
mod traffic;
