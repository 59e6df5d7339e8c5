//! What lies between two revisions, where the log between them is not at hand.

use mesh_proto::command::HostId;
use mesh_proto::watch::{Change, Host, Stored};

use super::{World, is_same};

impl World {
    /// Returns the public facts that lead from an earlier World to this one. What both share is not looked at.
    ///
    /// They are right for who has the facts of `then` and no others: a fact that changed twice may be missing.
    pub fn changes_since(&self, then: &Self) -> Vec<Change> {
        let mesh = (self.mesh != then.mesh).then(|| Change::Mesh(self.mesh.clone()));
        let hosts = self
            .hosts
            .changes(&then.hosts, is_same)
            .into_iter()
            .map(|(id, _, now)| Change::Host { id: *id, host: now.map(|host| Host::clone(host)) });
        let registrations = self.registrations.changes(&then.registrations, is_same);
        let registrations = registrations.into_iter().map(|(id, ..)| self.offer_of(*id));
        let resources = self.resources.changes(&then.resources, is_same);
        let resources = resources.into_iter().map(|(key, _, now)| Change::Resource {
            key: key.clone(),
            stored: now.map(|stored| Box::new(Stored::clone(stored))),
        });
        let addresses = self.addresses.changes(&then.addresses, PartialEq::eq);
        let addresses = addresses
            .into_iter()
            .map(|(host, _, now)| Change::VirtualAddress { host: host.clone(), index: now.copied() });
        mesh.into_iter().chain(hosts).chain(registrations).chain(resources).chain(addresses).collect()
    }

    /// What a host offers now, as a change.
    pub fn offer_of(&self, host: HostId) -> Change {
        let registration = self.registrations.get(&host).map(|offered| (**offered).clone());
        Change::Registration { host, registration }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::command::{Mesh, Revision};
    use mesh_proto::resource::Object;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Some change of few names, so that facts are changed, taken out and put back.
    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0_u64..4, prop::option::of(0_u32..3)).prop_map(|(host, weight)| {
                let offer =
                    |weight| json!({"instances": {"a": {"service": "a", "ports": [], "weight": weight}}});
                let registration =
                    weight.map(|weight| serde_json::from_value(offer(weight)).expect("an offer"));
                Change::Registration { host: HostId(host), registration }
            }),
            (0_u8..4, prop::option::of(0_u64..3)).prop_map(|(name, changed)| {
                let object: Object = serde_json::from_value(json!({
                    "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                    "metadata": {"name": format!("r{name}"), "namespace": "default"}, "spec": {"host": "a"}
                }))
                .expect("a rule");
                let key = object.key();
                let stored = |changed| Stored { object, created: Revision(0), changed: Revision(changed) };
                Change::Resource { key, stored: changed.map(|changed| Box::new(stored(changed))) }
            }),
            ("[ab]", prop::option::of(0_u16..3))
                .prop_map(|(host, index)| Change::VirtualAddress { host, index }),
            (0_u64..4, prop::option::of("[xy]")).prop_map(|(id, name)| {
                let host = name.map(|name| host(&name));
                Change::Host { id: HostId(id), host }
            }),
            "[pq]".prop_map(|id| Change::Mesh(Mesh { id, ..Mesh::default() })),
        ]
    }

    fn host(name: &str) -> Host {
        serde_json::from_value(json!({
            "name": name, "public_key": "", "wrap_key": "", "voter_eligible": false, "liveness": "live",
            "facts": {"address": "198.18.0.1:15008", "version": "0.1.0"}
        }))
        .expect("a host")
    }

    proptest! {
        #[test]
        fn the_difference_leads_from_one_world_to_the_other(
            before in prop::collection::vec(change(), 0..20),
            after in prop::collection::vec(change(), 0..20),
        ) {
            let mut then = World::default();
            then.absorb_all(Revision(1), &before);
            let mut now = then.clone();
            now.absorb_all(Revision(2), &after);

            let mut led = then.clone();
            led.absorb_all(Revision(2), &now.changes_since(&then));

            prop_assert_eq!(led, now);
        }
    }
}
