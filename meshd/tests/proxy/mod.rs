//! The data path over loopback.

mod doors;
mod hop;
mod http;
mod lab;
mod limits;
mod plan;
mod protocols;
mod tcp;
mod traffic;
