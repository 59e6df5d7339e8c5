//! How near an endpoint is by the labels it shares with the caller: `failoverPriority`.
//!
//! The first label that differs decides: who shares all is nearest, who differs in the first is farthest. Labels of
//! topology that nobody wrote are read off locality and host. Source: Istio `applyFailoverPriorities`.

use crate::plan::Locality;
use mesh_proto::value::Labels;

/// What endpoints are compared with.
pub(super) struct Nearness<'a> {
    /// Label and the value that counts as shared, the most important first.
    wanted: Vec<(&'a str, String)>,
}

impl<'a> Nearness<'a> {
    /// `priority` holds labels, or `label=value` where another value than the caller's own counts.
    pub(super) fn of(priority: &'a [String], caller: &Labels, locality: &Locality, host: &str) -> Self {
        let wanted = priority.iter().map(|entry| match entry.split_once('=') {
            Some((label, value)) => (label, value.to_owned()),
            None => (entry.as_str(), value_of(entry, caller, locality, host, "").to_owned()),
        });
        Self { wanted: wanted.collect() }
    }

    /// Returns the rank of an endpoint; 0 is the nearest.
    pub(super) fn rank(&self, labels: &Labels, locality: &Locality, host: &str, network: &str) -> u32 {
        let shared =
            |(label, value): &&(&str, String)| value_of(label, labels, locality, host, network) == value;
        let shared = self.wanted.iter().take_while(shared).count();
        u32::try_from(self.wanted.len() - shared).unwrap_or(u32::MAX)
    }
}

fn value_of<'v>(
    label: &str,
    labels: &'v Labels,
    locality: &'v Locality,
    host: &'v str,
    network: &'v str,
) -> &'v str {
    if let Some(value) = labels.get(label) {
        return value;
    }
    match label {
        "topology.kubernetes.io/region" => &locality.region,
        "topology.kubernetes.io/zone" => &locality.zone,
        "topology.istio.io/subzone" => &locality.subzone,
        "topology.istio.io/network" => network,
        "kubernetes.io/hostname" => host,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn the_first_label_that_differs_decides() {
        let priority: Vec<String> =
            ["rack", "topology.kubernetes.io/region", "version=v1"].map(String::from).into();
        let near = Nearness::of(&priority, &labels("rack=7 version=v9"), &Locality::parse("eu/a"), "vm1");
        for (there, locality, expected) in [
            ("rack=7 version=v1", "eu/b", 0),
            ("rack=7 version=v9", "eu/b", 1),
            ("rack=7 version=v1", "us", 2),
            ("rack=8 version=v1", "eu", 3),
            ("", "eu", 3),
        ] {
            assert_eq!(near.rank(&labels(there), &Locality::parse(locality), "vm2", ""), expected, "{there}");
        }
    }

    #[test]
    fn the_network_of_an_entry_counts_as_a_label() {
        let priority = vec!["topology.istio.io/network".to_owned()];
        let caller = labels("topology.istio.io/network=one");
        let near = Nearness::of(&priority, &caller, &Locality::default(), "vm1");
        let rank = |network: &str| near.rank(&labels(""), &Locality::default(), "", network);
        assert_eq!((rank("one"), rank("two"), rank("")), (0, 1, 1));
    }

    #[test]
    fn the_own_host_is_near_without_a_label() {
        let priority = vec!["kubernetes.io/hostname".to_owned()];
        let near = Nearness::of(&priority, &labels(""), &Locality::default(), "vm1");
        assert_eq!(near.rank(&labels(""), &Locality::default(), "vm1", ""), 0);
        assert_eq!(near.rank(&labels(""), &Locality::default(), "vm2", ""), 1);
    }
}
