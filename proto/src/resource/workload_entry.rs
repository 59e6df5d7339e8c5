//! `WorkloadEntry`: one instance known by hand instead of by registration.
//!
//! Source: Istio API `networking/v1/workload_entry.proto`.

use super::message::message;
use crate::value::{Labels, SmallMap};

message! {
    /// One instance; also an endpoint inside a `ServiceEntry`.
    pub struct WorkloadEntry {
        /// An address, a DNS name, or `unix:///path`.
        pub address: Box<str>,
        /// Ports by the names of the service's ports.
        pub ports: SmallMap<String, u16>,
        /// Labels, for subsets and selectors.
        pub labels: Labels,
        /// The network it is in.
        pub network: Box<str>,
        /// Where it is: `region/zone/subzone`.
        pub locality: Box<str>,
        /// Its share among the instances. 0 or absent means 1.
        pub weight: Option<u32>,
        /// The service account of its identity.
        pub service_account: Box<str>,
    }
}
