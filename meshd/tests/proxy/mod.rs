//! The data path over loopback.

mod bad_frames;
mod bad_inputs;
mod care;
mod clients;
mod detour;
mod doors;
mod doze;
mod explain;
mod flags;
mod fuzz;
mod gateway_mesh;
mod gateway_tls;
mod hop;
mod http;
mod lab;
mod lanes;
mod limits;
mod opaque;
mod origination;
mod plan;
mod pools;
mod protocols;
mod rows;
mod streams;
mod tcp;
mod traffic;
