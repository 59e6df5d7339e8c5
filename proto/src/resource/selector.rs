//! Which workloads an object is for.

use super::message::message;
use crate::value::Labels;

message! {
    /// Chooses workloads by `labels`.
    ///
    /// Source: Istio `networking.v1alpha3.WorkloadSelector` (`ServiceEntry`, `Sidecar`).
    pub struct WorkloadSelector {
        /// Labels a workload must have.
        pub labels: Labels,
    }

    /// Chooses workloads by `matchLabels`.
    ///
    /// Source: Istio `type.v1beta1.WorkloadSelector` (`DestinationRule`, the security kinds, `Telemetry`).
    pub struct MatchLabels {
        /// Labels a workload must have.
        pub match_labels: Labels,
    }
}
