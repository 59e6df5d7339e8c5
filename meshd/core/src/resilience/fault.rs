//! Faults on purpose: whether this request is delayed, refused, or both.

use std::time::Duration;

use rand_core::RngCore;

use crate::balance::chance::parts_per_million;
use crate::plan::{Abort, Fault};

/// Draws what happens to one request: first the delay, then the abort, each by its own share.
///
/// The delay comes before the abort and does not count against the route's timeout; an injected abort is not tried
/// again. Source: Istio `fault`; Envoy's fault filter.
pub fn decide(fault: &Fault, rng: &mut impl RngCore) -> (Option<Duration>, Option<Abort>) {
    let delay = fault.delay.filter(|delay| parts_per_million(delay.parts_per_million, rng));
    let abort = fault.abort.filter(|abort| parts_per_million(abort.parts_per_million, rng));
    (delay.map(|delay| delay.fixed), abort)
}
