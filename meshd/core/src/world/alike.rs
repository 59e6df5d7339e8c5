//! What is said alike is held once: instances of one service differ in little more than their host, and a host that serves and
//! follows has most facts twice.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;
use mesh_proto::command::HostId;
use mesh_proto::registration::{Instance, Registration};

use super::World;
use crate::parted::PartedMap;

/// Every instance that some host offers, once, by a number of what it says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alike {
    known: PartedMap<u64, Arc<Instance>>,
    /// How many there were after the last look at which are still in use.
    used: usize,
    /// Another World of this process, whose facts are held where they are the same.
    pub(super) world: Option<Arc<World>>,
}

/// Says nothing that the registrations do not say.
impl PartialEq for Alike {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// So many may be out of use before anybody looks.
const SPARE: usize = 256;

impl Alike {
    /// Returns the same registration, made of instances that are held already.
    pub(super) fn held(&mut self, offered: &Registration) -> Registration {
        let held = |(id, instance): (&String, &Arc<Instance>)| (id.clone(), self.one(instance));
        Registration { instances: offered.instances.iter().map(held).collect() }
    }

    fn one(&mut self, instance: &Arc<Instance>) -> Arc<Instance> {
        let number = FixedState::with_seed(0x616c_696b).hash_one(&**instance);
        match self.known.get(&number) {
            Some(held) if held == instance => held.clone(),
            _ => {
                // A copy has no room to spare, which what was read from a stream has.
                let held = Arc::new(Instance::clone(instance));
                self.known.insert(number, held.clone());
                held
            }
        }
    }

    /// Lets go of what no host offers any more, once that may be as much as the rest.
    pub(super) fn forget_unused(&mut self, offered: &PartedMap<HostId, Arc<Registration>>) {
        if self.known.len() <= 2 * self.used + SPARE {
            return;
        }
        self.known = PartedMap::default();
        for instance in offered.values().flat_map(|registration| registration.instances.values()) {
            let number = FixedState::with_seed(0x616c_696b).hash_one(&**instance);
            if !self.known.contains_key(&number) {
                self.known.insert(number, instance.clone());
            }
        }
        self.used = self.known.len();
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::registration::Health;

    use super::*;
    use crate::world::World;
    use mesh_proto::watch::Change;

    fn offer(world: &mut World, host: u64, health: Health, weight: u32) {
        let mut instance: Instance =
            serde_json::from_value(serde_json::json!({"service": "a", "ports": []})).expect("an instance");
        (instance.health, instance.weight) = (health, weight);
        let registration = Registration { instances: [("a".to_owned(), instance.into())].into() };
        world.absorb(&Change::Registration { host: HostId(host), registration: Some(registration) });
    }

    #[test]
    fn equal_instances_of_two_hosts_are_one_also_after_they_differed() {
        let mut world = World::default();
        let held = |world: &World, host: u64| world.registrations[&HostId(host)].instances["a"].clone();
        offer(&mut world, 1, Health::Healthy, 1);
        offer(&mut world, 2, Health::Healthy, 1);
        assert!(Arc::ptr_eq(&held(&world, 1), &held(&world, 2)));
        offer(&mut world, 2, Health::Unhealthy, 1);
        assert_eq!((held(&world, 1).health, held(&world, 2).health), (Health::Healthy, Health::Unhealthy));
        offer(&mut world, 2, Health::Healthy, 1);
        assert!(Arc::ptr_eq(&held(&world, 1), &held(&world, 2)));
    }

    #[test]
    fn what_is_not_offered_any_more_is_let_go() {
        let mut world = World::default();
        for weight in 0..10_000 {
            offer(&mut world, 1, Health::Healthy, weight);
        }
        assert!(world.alike.known.len() <= 2 * SPARE, "{}", world.alike.known.len());
    }
}
