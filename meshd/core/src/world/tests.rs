//! Behaviour of the World as a whole.

use std::collections::BTreeMap;

use mesh_proto::command::{Batch, Join, NewHost, Precondition, ResourceChange, Token, TokenRole, VoterWish};
use mesh_proto::registration::{Health, Instance, PortBinding, Protocol};
use mesh_proto::resource::{Object, ObjectKey};
use mesh_proto::value::Labels;
use serde::de::DeserializeSeed;

use super::*;

fn entry(at: u64, command: Command) -> Entry {
    Entry { at: Timestamp(at), author: "uid 0 on vm1".into(), key: None, command }
}

fn host(name: &str) -> NewHost {
    NewHost {
        name: name.into(),
        public_key: "key".into(),
        wrap_key: "wrap".into(),
        facts: HostFacts {
            address: "198.18.0.1:15008".parse().expect("an address"),
            version: "0.1.0".into(),
            labels: Labels::new(),
            locality: String::new(),
            voter: VoterWish::Auto,
        },
    }
}

fn begun() -> World {
    let mesh = Mesh { id: "m".into(), domain: "cluster.local".into(), ..Mesh::default() };
    let bootstrap = Bootstrap { mesh, sealed_root: BTreeMap::new(), host: host("vm1") };
    let mut world = World::default();
    world.apply(Revision(1), &entry(0, Command::Bootstrap(Box::new(bootstrap)))).result.expect("a mesh");
    world
}

fn token(id: &str, expires: u64) -> Command {
    Command::CreateToken(Token {
        id: id.into(),
        verifier: "v".into(),
        role: TokenRole::VoterEligible,
        expires: Timestamp(expires),
        used: None,
        author: "uid 0 on vm1".into(),
    })
}

fn join(id: &str, name: &str) -> Command {
    Command::Join(Box::new(Join { token: id.into(), host: host(name), voter_wanted: false }))
}

fn rule(name: &str, host: &str) -> Object {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"host": host}
    }))
    .expect("a rule")
}

fn change(object: Object, expect: Precondition) -> ResourceChange {
    ResourceChange { key: object.key(), object: Some(object), expect }
}

fn apply(changes: Vec<ResourceChange>) -> Command {
    Command::Change(Batch { changes, reason: "apply rules.yaml".into() })
}

fn instance(protocol: Protocol) -> Instance {
    Instance {
        service: "reviews".into(),
        group: None,
        namespace: "default".into(),
        account: "default".into(),
        labels: Labels::new(),
        ports: vec![PortBinding {
            number: 9080,
            name: String::new(),
            protocol,
            target: "127.0.0.1:9080".parse().expect("an address"),
        }],
        address: None,
        weight: 1,
        locality: None,
        check: None,
        health: Health::Healthy,
    }
}

fn register(host: HostId, instances: &[(&str, Instance)]) -> Command {
    let instances = instances.iter().map(|(id, instance)| ((*id).into(), instance.clone().into())).collect();
    Command::Register { host, registration: Registration { instances } }
}

fn message(applied: &Applied) -> &str {
    &applied.result.as_ref().expect_err("a refusal").message
}

#[test]
fn a_token_lets_one_host_in_and_says_who_used_it() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, token("t", 10_000)));

    let first = world.apply(Revision(3), &entry(1_000, join("t", "vm2")));
    let second = world.apply(Revision(4), &entry(3_000, join("t", "vm3")));

    assert_eq!(first.result, Ok(Done::Joined(HostId(3))));
    assert!(message(&second).contains("used already, by host vm2 2 s ago"), "{}", message(&second));
    assert_eq!(world.hosts.len(), 2);
}

#[test]
fn expired_and_unknown_tokens_are_told_apart() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, token("t", 10_000)));

    let expired = world.apply(Revision(3), &entry(20_000, join("t", "vm2")));
    let unknown = world.apply(Revision(4), &entry(20_000, join("u", "vm2")));

    assert!(message(&expired).contains("expired 10 s ago"));
    assert!(message(&unknown).contains("not one of this mesh"));
}

#[test]
fn the_name_of_a_live_host_is_refused_until_it_is_gone() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, token("t", 10_000)));

    let while_live = world.apply(Revision(3), &entry(1, join("t", "vm1")));
    let gone = Command::Liveness { changes: BTreeMap::from([(HostId(1), Liveness::Gone)]) };
    world.apply(Revision(4), &entry(2, gone));
    let when_gone = world.apply(Revision(5), &entry(3, join("t", "vm1")));

    assert!(message(&while_live).contains("named vm1 already (id 1, 198.18.0.1:15008)"));
    assert_eq!(when_gone.result, Ok(Done::Joined(HostId(5))));
    assert_eq!(world.host_named("vm1").map(|(id, _)| id), Some(HostId(5)));
}

#[test]
fn a_batch_with_one_failing_precondition_changes_nothing() {
    let mut world = begun();
    let before = world.public().facts;

    let applied = world.apply(
        Revision(2),
        &entry(
            0,
            apply(vec![
                change(rule("a", "a"), Precondition::Any),
                change(rule("b", "b"), Precondition::Present),
            ]),
        ),
    );

    assert!(message(&applied).contains("DestinationRule default/b does not exist"));
    assert_eq!(world.public().facts, before);
}

#[test]
fn an_update_keeps_its_place_and_the_same_object_again_is_unchanged() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, apply(vec![change(rule("a", "a"), Precondition::Any)])));
    world.apply(Revision(3), &entry(0, apply(vec![change(rule("a", "b"), Precondition::At(Revision(2)))])));
    let again = world.apply(Revision(4), &entry(0, apply(vec![change(rule("a", "b"), Precondition::Any)])));

    let stored = &world.resources[&rule("a", "b").key()];
    assert_eq!((stored.created, stored.changed), (Revision(2), Revision(3)));
    assert_eq!(again.result, Ok(Done::Changed(vec![(rule("a", "b").key(), Outcome::Unchanged)])));
    assert!(again.changes.is_empty());
}

#[test]
fn a_conflict_names_both_revisions_and_who_made_the_other() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, apply(vec![change(rule("a", "a"), Precondition::Any)])));

    let stale = world
        .apply(Revision(3), &entry(0, apply(vec![change(rule("a", "b"), Precondition::At(Revision(1)))])));

    assert_eq!(
        message(&stale),
        "DestinationRule default/a has changed: you have revision 1, it is at 2 (changed at revision 2 by uid 0 on vm1); read it again and repeat"
    );
}

#[test]
fn a_repeated_key_is_answered_and_not_applied_again() {
    let mut world = begun();
    let keyed = |at, host| Entry {
        key: Some("k".into()),
        ..entry(at, apply(vec![change(rule("a", host), Precondition::Any)]))
    };

    let first = world.apply(Revision(2), &keyed(0, "a"));
    let second = world.apply(Revision(3), &keyed(1, "b"));
    let much_later = world.apply(Revision(4), &keyed(ANSWERS_KEPT_MS + 2, "c"));

    assert_eq!((second.revision, &second.result), (Revision(2), &first.result));
    assert_eq!(much_later.result, Ok(Done::Changed(vec![(rule("a", "a").key(), Outcome::Configured)])));
}

#[test]
fn rollback_returns_resources_to_what_they_were() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, apply(vec![change(rule("a", "one"), Precondition::Any)])));
    world.apply(
        Revision(3),
        &entry(
            0,
            apply(vec![
                change(rule("a", "two"), Precondition::Any),
                change(rule("b", "b"), Precondition::Any),
            ]),
        ),
    );
    let then = World { revision: Revision(2), ..world.clone() };

    let back = world.rollback(Revision(2)).expect("a way back");
    world.apply(Revision(4), &entry(0, Command::Change(back)));

    assert_eq!(then.revision, Revision(2));
    assert_eq!(world.resources[&rule("a", "").key()].object, rule("a", "one"));
    assert!(!world.resources.contains_key(&ObjectKey::new(rule("b", "").kind(), "default", "b")));
}

#[test]
fn rollback_to_the_future_or_beyond_memory_is_refused() {
    let mut world = begun();
    for index in 2..200 {
        let name = format!("host-{index}");
        world.apply(Revision(index), &entry(0, apply(vec![change(rule("a", &name), Precondition::Any)])));
    }

    assert!(world.rollback(Revision(500)).expect_err("no").message.contains("the newest is 199"));
    assert!(world.rollback(Revision(3)).expect_err("no").message.contains("back to 100"));
    assert!(world.rollback(Revision(150)).is_ok());
}

#[test]
fn an_instance_that_contradicts_another_host_is_left_out_and_the_owner_named() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, token("t", 10_000)));
    world.apply(Revision(3), &entry(0, join("t", "vm2")));
    world.apply(Revision(4), &entry(0, register(HostId(1), &[("reviews", instance(Protocol::Http))])));

    let second =
        world.apply(Revision(5), &entry(0, register(HostId(3), &[("reviews", instance(Protocol::Tcp))])));

    let Ok(Done::Registered(refused)) = &second.result else { panic!("{:?}", second.result) };
    assert_eq!(
        refused["reviews"],
        "port 9080 of reviews.default is HTTP on host vm1 (instance reviews), but TCP here: use the same name and protocol"
    );
    assert!(!world.registrations.contains_key(&HostId(3)));
}

#[test]
fn a_service_keeps_its_virtual_address_when_its_last_instance_goes() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, register(HostId(1), &[("reviews", instance(Protocol::Http))])));
    let first = world.addresses.clone();
    world.apply(Revision(3), &entry(0, register(HostId(1), &[])));
    world.apply(Revision(4), &entry(0, register(HostId(1), &[("reviews", instance(Protocol::Http))])));

    assert_eq!(world.addresses, first);
    assert_eq!(first.get("reviews.default.svc.cluster.local"), Some(&1));
    assert_eq!(virtual_addresses(1)[0].to_string(), "240.240.0.1");
    assert_eq!(virtual_addresses(1)[1].to_string(), "2001:2::1");
}

#[test]
fn a_mirror_that_absorbs_every_change_equals_the_world() {
    let mut world = begun();
    let mut mirror = World::from_public(&world.public());
    let commands = [
        token("t", 10_000),
        join("t", "vm2"),
        register(HostId(3), &[("reviews", instance(Protocol::Http))]),
        Command::Health { host: HostId(3), flips: BTreeMap::from([("reviews".into(), Health::Unhealthy)]) },
        apply(vec![change(rule("a", "a"), Precondition::Any)]),
        Command::Liveness { changes: BTreeMap::from([(HostId(3), Liveness::Suspect)]) },
        Command::RemoveHost { host: HostId(3) },
    ];
    for (index, command) in (2..).zip(commands) {
        let applied = world.apply(Revision(index), &entry(0, command));
        mirror.absorb_all(Revision(index), &applied.changes);
        assert_eq!(mirror.public(), world.public(), "after revision {index}");
    }
    assert!(mirror.private.tokens.is_empty(), "a mirror holds no secret");
}

#[test]
fn a_snapshot_brings_everything_back() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, token("t", 10_000)));
    let keyed =
        Entry { key: Some("k".into()), ..entry(0, apply(vec![change(rule("a", "a"), Precondition::Any)])) };
    world.apply(Revision(3), &keyed);

    let json = serde_json::to_vec(&world.whole()).expect("json");
    let read = |known| ReadSnapshot(known).deserialize(&mut serde_json::Deserializer::from_slice(&json));
    assert_eq!(read(None).expect("a snapshot"), world);

    let known = Arc::new(world.clone());
    let leaning = read(Some(known.clone())).expect("a snapshot");
    assert_eq!(leaning, world);
    assert!(leaning.resources.iter().all(|(key, stored)| Arc::ptr_eq(stored, &known.resources[key])));
    // What is remembered of it has no texts of its own.
    let (key, ..) = &leaning.private.history[0].changes[0];
    let Ok(Done::Changed(answer)) = &leaning.private.answered["k"].result else { panic!("changed") };
    let (held, _) = known.resources.iter().next().expect("one");
    assert!([key, &answer[0].0].iter().all(|named| Arc::ptr_eq(&named.name, &held.name)));
}

#[test]
fn facts_are_written_and_read_in_the_form_of_the_public_world() {
    let mut world = begun();
    world.apply(Revision(2), &entry(0, register(HostId(1), &[("a", instance(Protocol::Http))])));
    world.apply(Revision(3), &entry(0, apply(vec![change(rule("a", "one"), Precondition::Any)])));

    let written = serde_json::to_value(world.facts()).expect("facts are JSON");

    assert_eq!(written, serde_json::to_value(world.public()).expect("facts are JSON"));
    let read: World = serde_json::from_value(written).expect("a World");
    assert_eq!(read, World::from_public(&world.public()));
}

#[test]
fn a_mirror_and_the_world_it_mirrors_share_what_they_say_alike() {
    let facts = |revision: u64| {
        let mut world = World { revision: Revision(revision), ..World::default() };
        for id in 1..=100 {
            world.absorb(&Change::Host {
                id: HostId(id),
                host: Some(trust::admit(&host(&format!("vm{id}")), false)),
            });
        }
        world
    };
    let (mut one, mirror) = (facts(7), facts(5));
    one.absorb(&Change::Host { id: HostId(50), host: None });
    let before = one.clone();

    one.share(&mirror);

    assert_eq!(one, before, "it says what it said");
    let shared = one.hosts.iter().filter(|(id, host)| Arc::ptr_eq(host, &mirror.hosts[id])).count();
    assert_eq!(shared, 99);
}

#[test]
fn what_a_known_world_says_already_is_held_as_it_has_it() {
    let fact =
        |id: u64, name: &str| Change::Host { id: HostId(id), host: Some(trust::admit(&host(name), false)) };
    let mut known = World::default();
    known.absorb_all(Revision(1), &[fact(1, "vm1"), fact(2, "vm2")]);
    let known = Arc::new(known);
    let mut world = World::default();
    world.lean_on(Some(known.clone()));

    world.absorb_all(Revision(1), &[fact(1, "vm1"), fact(2, "other"), fact(3, "vm3")]);

    assert!(Arc::ptr_eq(&world.hosts[&HostId(1)], &known.hosts[&HostId(1)]));
    let names: Vec<&str> = world.hosts.values().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["vm1", "other", "vm3"], "what it says otherwise is its own");
    world.lean_on(None);
    world.absorb(&fact(2, "vm2"));
    assert!(!Arc::ptr_eq(&world.hosts[&HostId(2)], &known.hosts[&HostId(2)]));
}

#[test]
fn of_two_hosts_with_one_name_the_one_that_is_gone_is_removed() {
    let fact = |id: u64, liveness: Liveness| Change::Host {
        id: HostId(id),
        host: Some(Host { liveness, ..trust::admit(&host("vm1"), false) }),
    };
    let removed = |facts: &[Change]| {
        let mut world = World::default();
        world.absorb_all(Revision(1), facts);
        world.host_to_remove("vm1").map(|(id, _)| id.0)
    };

    assert_eq!(removed(&[fact(3, Liveness::Live), fact(7, Liveness::Gone)]), Some(7));
    assert_eq!(removed(&[fact(3, Liveness::Gone), fact(7, Liveness::Suspect)]), Some(3));
    assert_eq!(removed(&[fact(3, Liveness::Live)]), Some(3));
    assert_eq!(removed(&[]), None);
}
