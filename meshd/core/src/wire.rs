//! Bytes and messages of strangers in, facts out: what a connection speaks, whom its TLS asks for, whether the head
//! of a request may be acted on, and whether the bytes around it can be trusted.
//!
//! Everything here is total: any input gives an answer, none panics, and none costs more than its length.

pub mod client_hello;
pub mod fold;
pub mod grpc;
pub mod guard;
pub mod http1;
pub mod http2;
pub mod proxy_header;
pub mod sniff;
pub mod strip;
