//! The built meshctl against a small server that speaks the API on a real unix socket.

mod server;

mod apply;
mod codes;
mod examples;
mod fields;
mod look;
mod offline;
mod watch;
