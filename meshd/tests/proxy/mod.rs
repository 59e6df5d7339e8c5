//! The data path over loopback.

mod bad_inputs;
mod hop;
mod http;
mod lab;
mod limits;
mod plan;
mod protocols;
mod tcp;
mod traffic;
