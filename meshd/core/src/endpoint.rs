//! The few facts about an endpoint that outlive a Plan: relaxed atomics, one cache line each.
//!
//! Workers write them, balancer and breaker read them; nothing here orders anything else, so `Relaxed` is enough.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A point in time, in milliseconds since meshd began. Comes from outside: `core` reads no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// What is known of an endpoint at run time.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct EndpointState {
    /// Requests (or TCP connections) in flight, over all workers.
    pub in_flight: AtomicU32,
    /// 5xx or no answer, in a row.
    pub consecutive_5xx: AtomicU32,
    /// Gateway errors in a row.
    pub consecutive_gateway: AtomicU32,
    /// Failures to connect or to be heard in a row, where they are counted apart.
    pub consecutive_local: AtomicU32,
    /// What the base ejection time is multiplied by: grows with every ejection, falls by one in each interval without.
    pub ejections: AtomicU32,
    /// When it may return, [`Moment`] in milliseconds; it does at the first sweep after. 0: it is not ejected.
    pub ejected_until: AtomicU64,
    /// When the last ejection ended, [`Moment`] in milliseconds.
    pub returned_at: AtomicU64,
    /// Since when it warms up, [`Moment`] in milliseconds; 0: not yet seen able to serve.
    pub warm_since: AtomicU64,
    /// Requests and connections begun since the first Plan that had it.
    pub requests: AtomicU64,
}

impl EndpointState {
    /// Whether it is left alone now: ejected, and no sweep has let it return.
    pub fn is_ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) != 0
    }

    /// Starts counting failures in a row anew.
    pub(crate) fn forget_failures(&self) {
        for counter in [&self.consecutive_5xx, &self.consecutive_gateway] {
            // Mostly 0 already; looking first leaves the cache line to its readers.
            if counter.load(Ordering::Relaxed) != 0 {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Counts a request in; dropping what is returned counts it out.
    pub fn enter(self: &std::sync::Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

/// A request in flight on an endpoint.
#[derive(Debug)]
pub struct InFlight(std::sync::Arc<EndpointState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
