//! Worlds that are not: made of files alone, or a World as it would be after a change.
//!
//! For everything that answers without a mesh, or before one is changed: `explain`, `analyze`, `test`, `diff`. A sketch is
//! made by [`World::apply`], so that it means what a mesh would make of the same files.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::command::{
    Batch, Bootstrap, Command, Entry, HostFacts, HostId, Liveness, Mesh, NewHost, Precondition,
    ResourceChange, Revision, Timestamp, VoterWish,
};
use mesh_proto::registration::{Health, Instance, Registration};
use mesh_proto::resource::Object;
use mesh_proto::value::Labels;
use mesh_proto::watch::{Change, Host, Stored};

use crate::plan::{Node, Workload};
use crate::world::World;

/// The name of the host from which a sketch is looked at.
pub const HERE: &str = "here";

/// The name of the host of services that files do not tell of: they are taken from what the rules name.
pub const ASSUMED: &str = "assumed";

/// The id of the mesh of a sketch: nothing is known of its hosts.
pub(crate) const ID: &str = "files";

/// What identifies the mesh of a sketch: Istio's defaults.
const DOMAIN: &str = "cluster.local";

/// Makes a World of files: `hosts` are the instances of each host by name, all taken for healthy.
///
/// All objects come in at one revision, as one `apply` would bring them.
///
/// # Errors
/// What a mesh would answer, such as a port that two hosts declare differently.
pub fn of_files(
    hosts: &BTreeMap<String, BTreeMap<String, Instance>>,
    objects: Vec<Object>,
) -> Result<World, String> {
    let mut world = World::default();
    let mesh = Mesh { id: ID.into(), trust_domain: DOMAIN.into(), domain: DOMAIN.into(), ..Mesh::default() };
    let bootstrap = Bootstrap { mesh, sealed_root: BTreeMap::new(), host: new_host(HERE, 1) };
    run(&mut world, Command::Bootstrap(Box::new(bootstrap)))?;
    for (number, (name, instances)) in (2_u64..).zip(hosts) {
        let NewHost { name, public_key, wrap_key, facts } = new_host(name, number);
        let host =
            Host { name, public_key, wrap_key, facts, voter_eligible: false, liveness: Liveness::Live };
        world.absorb(&Change::Host { id: HostId(number), host: Some(host) });
        let well = |(id, instance): (&String, &Instance)| {
            (id.clone(), Arc::new(Instance { health: Health::Healthy, ..instance.clone() }))
        };
        let registration = Registration { instances: instances.iter().map(well).collect() };
        run(&mut world, Command::Register { host: HostId(number), registration })?;
    }
    if !objects.is_empty() {
        run(&mut world, Command::Change(batch(objects)))?;
    }
    Ok(world)
}

/// Returns a batch that sets these objects, whatever was there.
pub fn batch(objects: Vec<Object>) -> Batch {
    let change = |object: Object| ResourceChange {
        key: object.key(),
        object: Some(object),
        expect: Precondition::Any,
    };
    Batch { changes: objects.into_iter().map(change).collect(), reason: String::new() }
}

/// Whether a World says who runs in it: a mesh does, files do with services of their own.
pub(crate) fn tells_of_workloads(world: &World) -> bool {
    let is_assumed = |id: &HostId| world.hosts.get(id).is_some_and(|host| host.name == ASSUMED);
    let mut offers = world.registrations.iter().filter(|(_, offer)| !offer.instances.is_empty());
    world.mesh.id != ID || offers.any(|(id, _)| !is_assumed(id))
}

/// Returns the World as it would be after a batch. Objects that are new come after all others in age.
pub fn after(world: &World, batch: &Batch) -> World {
    let mut after = world.seen();
    for change in &batch.changes {
        match &change.object {
            None => drop(after.resources.remove(&change.key)),
            Some(object) => {
                let before = world.resources.get(&change.key);
                let created = before.map_or(Revision(u64::MAX), |before| before.created);
                let unchanged = before.filter(|before| before.object.spec == object.spec);
                let changed = unchanged.map_or(Revision(u64::MAX), |before| before.changed);
                let stored = Stored { object: object.clone(), created, changed };
                after.resources.insert(change.key.clone(), Arc::new(stored));
            }
        }
    }
    after
}

/// Returns the Node of the host from which a sketch is looked at, with these callers.
pub fn node(callers: Vec<Workload>) -> Arc<Node> {
    Arc::new(Node {
        host: HostId(1),
        name: HERE.into(),
        trust_domain: DOMAIN.into(),
        domain: DOMAIN.into(),
        callers,
        ..Node::default()
    })
}

/// The caller of which nothing is known.
pub fn nobody() -> Workload {
    Workload { namespace: "default".into(), account: "default".into(), ..Workload::default() }
}

fn run(world: &mut World, command: Command) -> Result<(), String> {
    let index = Revision(world.revision.0 + 1);
    let entry = Entry { at: Timestamp(index.0), author: "files".into(), key: None, command };
    match world.apply(index, &entry).result {
        Ok(crate::world::Done::Registered(refused)) => match refused.into_iter().next() {
            Some((id, reason)) => Err(format!("instance {id}: {reason}")),
            None => Ok(()),
        },
        Ok(_) => Ok(()),
        Err(error) => Err(error.message),
    }
}

fn new_host(name: &str, number: u64) -> NewHost {
    // Addresses for documentation (RFC 5737): nobody is behind them.
    let last = u8::try_from(number % 250).unwrap_or(0);
    NewHost {
        name: name.into(),
        public_key: String::new(),
        wrap_key: String::new(),
        facts: HostFacts {
            address: ([192, 0, 2, last], 15008).into(),
            version: String::new(),
            labels: Labels::new(),
            locality: String::new(),
            voter: VoterWish::Auto,
        },
    }
}
