//! The counters of one worker that belong to no edge.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:literal,)+) => {
        /// The counters of one worker that belong to no edge.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: AtomicU64,)+
        }

        impl Counters {
            /// Returns every counter: name, kind in Prometheus' words, help, and how to read it.
            pub(super) fn table() -> Vec<(&'static str, &'static str, &'static str, fn(&Self) -> u64)> {
                vec![$((stringify!($name), $kind, concat!($($help),+), |all: &Self| all.$name.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

counters! {
    /// Connections accepted, of every way in.
    downstream_connections_total: "counter",
    /// Connections of callers open now.
    downstream_connections: "gauge",
    /// Connections of callers that doze: between requests for a second or more, their parser and buffers given back.
    dozing_connections: "gauge",
    /// Requests and connections refused by the guard: framing, limits, floods.
    refused_requests_total: "counter",
    /// Requests refused because memory is short.
    shed_requests_total: "counter",
    /// Trailers not passed on: they may not stand in a trailer.
    dropped_trailers_total: "counter",
    /// Connections closed at once: too many are open, of the listener or of one source.
    refused_connections_total: "counter",
    /// Hops refused: unknown instance, or a handshake that failed.
    refused_hops_total: "counter",
    /// Connections closed because they went in a circle.
    refused_loops_total: "counter",
    /// Visitors of gateways refused in TLS: no certificate to show, a handshake that failed, a certificate not asked for.
    refused_tls_total: "counter",
    /// Connections cut because a head did not arrive in time, or nothing came for too long.
    expired_connections_total: "counter",
    /// Connections opened towards endpoints.
    upstream_connections_total: "counter",
    /// Connections towards endpoints that failed before they were usable.
    upstream_connect_failures_total: "counter",
    /// Endpoints ejected by outlier detection.
    ejections_total: "counter",
    /// Mirrored requests sent.
    mirrored_requests_total: "counter",
    /// Mirrored requests dropped: too many under way, or body too large.
    dropped_mirrors_total: "counter",
    /// Opaque connections carried.
    tcp_connections_total: "counter",
    /// Bytes carried from callers on opaque connections.
    tcp_received_bytes_total: "counter",
    /// Bytes carried to callers on opaque connections.
    tcp_sent_bytes_total: "counter",
    /// Requests that came in over the mesh port and were handed to an instance here.
    inbound_requests_total: "counter",
}

impl Counters {
    /// Counts one up; gauges are counted down by what is returned.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
