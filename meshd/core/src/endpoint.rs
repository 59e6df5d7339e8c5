//! The few facts about an endpoint that outlive a Plan: relaxed atomics, one cache line each.
//!
//! Workers write them, balancer and breaker read them; nothing here orders anything else, so `Relaxed` is enough.
//! Most endpoints of a large mesh are never called from here: the cache line is made for the first call.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A point in time, in milliseconds since meshd began. Comes from outside: `core` reads no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// What is known of an endpoint at run time; nothing is until somebody asks.
#[derive(Default)]
pub struct EndpointState(OnceLock<Box<Counters>>);

/// What is counted of an endpoint.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counters {
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

/// Makes the counters where there are none yet.
impl Deref for EndpointState {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        self.0.get_or_init(Box::default)
    }
}

impl std::fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.get().unwrap_or(&Box::default()).fmt(f)
    }
}

impl EndpointState {
    /// Returns what is counted, if anything is.
    pub fn counted(&self) -> Option<&Counters> {
        self.0.get().map(AsRef::as_ref)
    }

    /// Whether it is left alone now.
    pub fn is_ejected(&self) -> bool {
        self.counted().is_some_and(Counters::is_ejected)
    }

    /// Returns the requests (or TCP connections) in flight.
    pub fn busy(&self) -> u32 {
        self.counted().map_or(0, |counters| counters.in_flight.load(Ordering::Relaxed))
    }

    /// Counts a request in; dropping what is returned counts it out.
    pub fn enter(self: &std::sync::Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

impl Counters {
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
}

/// A request in flight on an endpoint.
#[derive(Debug)]
pub struct InFlight(std::sync::Arc<EndpointState>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
