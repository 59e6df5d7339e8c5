//! A small World to decide calls in: vm1 calls, vm2 offers.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::plan::{Locality, Node, Workload};
use mesh_core::world::World;
use mesh_proto::command::{
    Batch, Bootstrap, Command, Entry, HostFacts, HostId, Mesh, NewHost, Precondition, ResourceChange,
    Revision, Timestamp,
};
use mesh_proto::registration::{Instance, PortBinding, Registration};
use mesh_proto::resource::Object;
use mesh_proto::value::Labels;
use mesh_proto::watch::{Change, Host};

/// Makes Worlds.
pub(crate) struct Maker {
    world: World,
    registration: Registration,
    local: Registration,
}

impl Maker {
    pub(crate) fn new() -> Self {
        let mut world = World::default();
        let mesh = Mesh {
            id: "0".into(),
            trust_domain: "cluster.local".into(),
            domain: "cluster.local".into(),
            ..Mesh::default()
        };
        let bootstrap = Bootstrap { mesh, sealed_root: BTreeMap::new(), host: new_host("vm1", 1) };
        let entry = entry(Command::Bootstrap(Box::new(bootstrap)));
        world.apply(Revision(1), &entry).result.expect("a beginning");
        let NewHost { name, public_key, wrap_key, facts } = new_host("vm2", 2);
        let host = Host {
            name,
            public_key,
            wrap_key,
            facts,
            voter_eligible: false,
            liveness: mesh_proto::command::Liveness::Live,
        };
        world.absorb(&Change::Host { id: HostId(2), host: Some(host) });
        Self { world, registration: Registration::default(), local: Registration::default() }
    }

    /// Adds an instance on vm2 (or, with `here`, on vm1).
    pub(crate) fn instance(&mut self, id: &str, instance: Instance, here: bool) {
        let registration = if here { &mut self.local } else { &mut self.registration };
        registration.instances.insert(id.to_owned(), instance.into());
    }

    /// Ends the World with resources, each applied by itself, in order.
    pub(crate) fn finish(mut self, objects: Vec<Object>) -> World {
        for (host, registration) in [(1, self.local), (2, self.registration)] {
            let register = Command::Register { host: HostId(host), registration };
            self.world.apply(Revision(1 + host), &entry(register)).result.expect("registered");
        }
        for (index, object) in objects.into_iter().enumerate() {
            let change =
                ResourceChange { key: object.key(), object: Some(object), expect: Precondition::Any };
            let batch = Batch { changes: vec![change], reason: String::new() };
            let revision = Revision(10 + index as u64);
            self.world.apply(revision, &entry(Command::Change(batch))).result.expect("applied");
        }
        self.world
    }
}

/// Makes an instance.
pub(crate) fn instance(
    service: &str,
    namespace: &str,
    ports: &[(u16, String, String)],
    labels: Labels,
) -> Instance {
    let ports: Vec<_> = ports
        .iter()
        .map(|(number, name, protocol)| PortBinding {
            number: *number,
            name: name.clone(),
            protocol: mesh_proto::registration::Protocol::parse(protocol).unwrap_or_default(),
            target: ([127, 0, 0, 1], *number).into(),
        })
        .collect();
    Instance {
        service: service.to_owned(),
        group: None,
        namespace: namespace.to_owned(),
        account: service.to_owned(),
        labels,
        ports,
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: mesh_proto::registration::Health::Healthy,
    }
}

/// Makes vm1's Node with these callers.
pub(crate) fn node(callers: Vec<Workload>) -> Arc<Node> {
    Arc::new(Node {
        host: HostId(1),
        name: "vm1".into(),
        trust_domain: "cluster.local".into(),
        domain: "cluster.local".into(),
        locality: Locality::default(),
        labels: Labels::new(),
        callers,
    })
}

fn entry(command: Command) -> Entry {
    Entry { at: Timestamp(1), author: "test".into(), key: None, command }
}

fn new_host(name: &str, number: u8) -> NewHost {
    NewHost {
        name: name.into(),
        public_key: String::new(),
        wrap_key: String::new(),
        facts: HostFacts {
            address: ([10, 0, 0, number], 15008).into(),
            version: "0".into(),
            labels: Labels::new(),
            locality: String::new(),
            voter: mesh_proto::command::VoterWish::Auto,
        },
    }
}
