//! The data path over loopback.

mod bad_frames;
mod bad_inputs;
mod care;
mod clients;
mod doors;
mod explain;
mod fuzz;
mod hop;
mod http;
mod lab;
mod limits;
mod plan;
mod protocols;
mod tcp;
mod traffic;
