//! What DNS answers: every name that callers here may use for a service with addresses.
//!
//! Source: Istio's DNS proxy (`BuildAltHosts`, automatic allocation of addresses).

use std::net::IpAddr;
use std::sync::Arc;

use super::hosts::short_names;
use super::scope::Scope;
use crate::plan::Names;

/// Gathers the names. Where callers of two namespaces mean different services by one short name, the first caller's
/// meaning counts.
pub(super) fn names(scopes: &[Scope<'_>]) -> Names {
    let mut names = Names::default();
    for scope in scopes {
        for service in scope.reachable() {
            let addresses: Arc<[IpAddr]> = service.single_addresses().collect();
            if addresses.is_empty() {
                continue;
            }
            if let Some(suffix) = service.host.strip_prefix('*') {
                if names.wildcard.iter().all(|(other, _)| **other != *suffix) {
                    names.wildcard.push((suffix.into(), addresses));
                }
                continue;
            }
            let full = std::iter::once(service.host.to_string());
            for name in full.chain(short_names(&service.host, &scope.caller.namespace)) {
                if !names.exact.contains_key(name.as_str()) {
                    names.exact.insert(name.into(), addresses.clone());
                }
            }
        }
    }
    names.wildcard.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
    names
}
