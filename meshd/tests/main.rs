//! Component tests: real sockets on loopback, Plans made by hand or compiled.

mod proxy;
