//! The counters of one worker that belong to no edge.

use std::sync::atomic::{AtomicU64, Ordering};

use super::catalog::{Kind, Metric};

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident in $unit:literal,)+) => {
        /// The counters of one worker that belong to no edge.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $name: AtomicU64,)+
        }

        impl Counters {
            /// Returns every counter, and how to read it.
            pub(super) fn table() -> Vec<(Metric, fn(&Self) -> u64)> {
                vec![$((
                    Metric {
                        name: concat!("meshd_", stringify!($name)),
                        kind: Kind::$kind,
                        unit: $unit,
                        labels: &[],
                        help: concat!($($help),+),
                    },
                    |all: &Self| all.$name.load(Ordering::Relaxed),
                ),)+]
            }
        }
    };
}

counters! {
    /// Connections accepted, of every way in.
    downstream_connections_total: Counter in "connections",
    /// Connections of callers open now.
    open_downstream_connections: Gauge in "connections",
    /// Connections of callers that doze: between requests for a second or more, their parser and buffers given back.
    dozing_connections: Gauge in "connections",
    /// Requests and connections refused by the guard: framing, limits, floods.
    refused_requests_total: Counter in "requests",
    /// Requests refused because memory is short.
    shed_requests_total: Counter in "requests",
    /// Trailers not passed on: they may not stand in a trailer.
    dropped_trailers_total: Counter in "trailers",
    /// Connections closed at once: too many are open, of the listener or of one source.
    refused_connections_total: Counter in "connections",
    /// Hops refused: unknown instance, or a handshake that failed.
    refused_hops_total: Counter in "hops",
    /// Connections closed because they went in a circle.
    refused_loops_total: Counter in "connections",
    /// Visitors of gateways refused in TLS: no certificate to show, a handshake that failed, a certificate not asked for.
    refused_tls_total: Counter in "connections",
    /// Connections cut because a head did not arrive in time, or nothing came for too long.
    expired_connections_total: Counter in "connections",
    /// Connections opened towards endpoints.
    upstream_connections_total: Counter in "connections",
    /// Connections towards endpoints that failed before they were usable.
    upstream_connect_failures_total: Counter in "connections",
    /// Endpoints ejected by outlier detection.
    ejections_total: Counter in "ejections",
    /// Mirrored requests sent.
    mirrored_requests_total: Counter in "requests",
    /// Mirrored requests dropped: too many under way, or body too large.
    dropped_mirrors_total: Counter in "requests",
    /// Opaque connections carried.
    tcp_connections_total: Counter in "connections",
    /// Bytes carried from callers on opaque connections.
    tcp_received_bytes_total: Counter in "bytes",
    /// Bytes carried to callers on opaque connections.
    tcp_sent_bytes_total: Counter in "bytes",
    /// Requests that came in over the mesh port and were handed to an instance here.
    inbound_requests_total: Counter in "requests",
    /// Connections towards endpoints open now, as looked at once a second.
    open_upstream_connections: Gauge in "connections",
    /// Pools of connections towards endpoints, one for each caller and endpoint, as looked at once a second.
    upstream_pools: Gauge in "pools",
    /// Requests that wait for a connection towards an endpoint, as looked at once a second.
    upstream_waiting_requests: Gauge in "requests",
    /// Spans that a collector has taken.
    sent_spans_total: Counter in "spans",
    /// Spans dropped: their collector did not take them, or too many waited.
    dropped_spans_total: Counter in "spans",
    /// Label sets of Istio's metrics that were counted together, as "other", because there are too many.
    overflowed_series_total: Counter in "label sets",
}

impl Counters {
    /// Counts one up; gauges are counted down by what is returned.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
