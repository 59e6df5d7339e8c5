//! Faults on purpose: whether this request is delayed, refused, or both.
//!
//! An abort without a percentage has a share of 0 and never fires, as in Istio.

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

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::balance::chance::SeededRng;
    use crate::balance::fixture::assert_share;
    use crate::plan::Delay;

    fn fault(delayed: u32, aborted: u32) -> Fault {
        let status = StatusCode::IM_A_TEAPOT;
        Fault {
            delay: Some(Delay { fixed: Duration::from_secs(5), parts_per_million: delayed }),
            abort: Some(Abort { status, grpc_status: None, parts_per_million: aborted }),
        }
    }

    #[test]
    fn delay_and_abort_have_shares_of_their_own() {
        const DRAWS: u64 = 100_000;
        let (fault, mut rng) = (fault(250_000, 100_000), SeededRng(33));
        let (mut delays, mut aborts, mut both) = (0, 0, 0);
        for _ in 0..DRAWS {
            let (delay, abort) = decide(&fault, &mut rng);
            delays += u64::from(delay.is_some());
            aborts += u64::from(abort.is_some());
            both += u64::from(delay.is_some() && abort.is_some());
        }
        assert_share(delays, DRAWS, 0.25);
        assert_share(aborts, DRAWS, 0.1);
        assert_share(both, DRAWS, 0.025);
    }

    #[test]
    fn all_means_all_and_none_means_none() {
        let mut rng = SeededRng(34);
        for _ in 0..10_000 {
            assert_eq!(decide(&fault(0, 0), &mut rng), (None, None));
            let (delay, abort) = decide(&fault(1_000_000, u32::MAX), &mut rng);
            assert!(delay == Some(Duration::from_secs(5)) && abort.is_some());
        }
        assert_eq!(decide(&Fault::default(), &mut rng), (None, None));
    }
}
