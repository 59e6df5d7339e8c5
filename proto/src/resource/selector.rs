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

    /// Names a gateway or service a policy is for.
    ///
    /// Source: Istio `type.v1beta1.PolicyTargetReference`.
    pub struct PolicyTargetReference {
        /// The API group of the kind.
        pub group: String,
        /// The kind.
        pub kind: String,
        /// The name.
        pub name: String,
        /// The namespace; it must be the policy's own.
        pub namespace: String,
    }
}
