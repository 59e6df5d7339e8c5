//! Component tests: real sockets on loopback, Plans made by hand or compiled; bytes by chance; and the page about
//! `meshd.toml`.

mod docs;
mod fuzz;
mod proxy;
