//! Component tests: real sockets on loopback, Plans made by hand or compiled; and the page about `meshd.toml`.

mod docs;
mod proxy;
