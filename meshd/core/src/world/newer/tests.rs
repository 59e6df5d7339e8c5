use serde_json::{Value, json};

use super::*;

fn key(name: &str) -> ObjectKey {
    format!("ServiceEntry default/{name}").parse().expect("a key")
}

fn entry(name: &str, host: &str, more: &Value) -> Value {
    let mut spec = json!({"hosts": [host], "ports": [{"number": 80, "name": "http"}], "resolution": "DNS"});
    for (name, value) in more.as_object().expect("an object") {
        spec[name] = value.clone();
    }
    json!({"resource": {"key": format!("ServiceEntry default/{name}"), "stored": {"created": 3, "changed": 3, "object": {
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec}}}})
}

fn host(id: u64, more: &Value) -> Value {
    let mut facts = json!({"address": "10.0.0.1:15008", "version": "9.0.0"});
    for (name, value) in more.as_object().expect("an object") {
        facts[name] = value.clone();
    }
    json!({"host": {"id": id, "host": {"name": format!("vm{id}"), "public_key": "", "wrap_key": "", "facts": facts,
        "voter_eligible": true, "liveness": "live"}}})
}

fn instance(more: &Value) -> Value {
    let mut plain = json!({"service": "reviews", "ports": [{"number": 80, "target": "127.0.0.1:80"}]});
    for (name, value) in more.as_object().expect("an object") {
        plain[name] = value.clone();
    }
    plain
}

fn raw(fact: &Value) -> Box<RawValue> {
    RawValue::from_string(fact.to_string()).expect("JSON")
}

fn frame(facts: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({"revision": 9, "facts": facts, "signed_by": "x"})).expect("JSON")
}

fn hosts_of(world: &World, name: &str) -> Option<Value> {
    let stored = world.resources.get(&key(name))?;
    Some(serde_json::to_value(&stored.object).expect("JSON")["spec"]["hosts"].clone())
}

fn before() -> World {
    let mut world = World::default();
    for fact in [entry("a", "a.example.com", &json!({})), entry("b", "b.example.com", &json!({}))] {
        world.absorb(&serde_json::from_value(fact).expect("a fact"));
    }
    world
}

#[test]
fn a_rule_with_a_field_that_is_not_known_stays_as_it_was_and_is_named() {
    let facts = [
        entry("a", "new.example.com", &json!({"quota": 5})),
        entry("b", "newer.example.com", &json!({})),
        entry("c", "c.example.com", &json!({"quota": 5})),
    ];

    let (world, unread) = World::in_part(&frame(&facts), &before()).expect("read");

    assert_eq!(world.revision, Revision(9));
    assert_eq!(hosts_of(&world, "a"), Some(json!(["a.example.com"])), "what it said before");
    assert_eq!(hosts_of(&world, "b"), Some(json!(["newer.example.com"])));
    assert_eq!(hosts_of(&world, "c"), None, "nothing was known before");
    let told: Vec<String> = unread.sentences().collect();
    assert_eq!(
        told[0],
        "ServiceEntry default/a needs a newer meshd on this host (unknown field `quota`): what it said before, if \
         anything, stays in force"
    );
    assert_eq!(told.len(), 2);
}

#[test]
fn kinds_that_are_not_known_have_no_effect_and_are_named() {
    let policy = json!({"resource": {"key": "RateLimit default/r", "stored": {"object": {}}}});
    let facts = [
        policy,
        json!({"weather": {"rain": true}}),
        json!({"mesh": 5}),
        host(4, &json!({"voter": "witness"})),
    ];

    let (world, unread) = World::in_part(&frame(&facts), &before()).expect("read");

    assert_eq!(world.hosts.len(), 0);
    let told: Vec<String> = unread.sentences().collect();
    let named = |text: &str| told.iter().any(|sentence| sentence.starts_with(text));
    assert!(named("RateLimit default/r needs a newer meshd"), "{told:?}");
    assert!(named("a fact called \"weather\" needs"), "{told:?}");
    assert!(named("what identifies the mesh needs"), "{told:?}");
    assert!(named("host 4 needs"), "{told:?}");
}

#[test]
fn further_fields_of_plain_facts_are_passed_over() {
    let registration = json!({"registration": {"host": 2, "registration": {"instances": {"r": instance(&json!({"tier": 1}))}}}});
    let facts = [host(2, &json!({"cores": 4})), registration];

    let (world, unread) = World::in_part(&frame(&facts), &World::default()).expect("read");

    assert!(unread.is_empty(), "{unread:?}");
    assert_eq!(world.hosts.get(&HostId(2)).expect("known").name, "vm2");
    assert!(world.registrations.get(&HostId(2)).expect("known").instances.contains_key("r"));
}

#[test]
fn of_what_a_host_offers_only_what_is_not_understood_is_left_out() {
    let smtp = instance(&json!({"ports": [{"number": 25, "target": "127.0.0.1:25", "protocol": "SMTP"}]}));
    let check = instance(&json!({"check": {"smtp": {}}, "health": "unhealthy"}));
    let offer = json!({"registration": {"host": 2, "registration": {"instances":
        {"mail": smtp, "plain": instance(&json!({})), "checked": check}}}});
    let mut unread = NotUnderstood::default();

    let change = unread.read(&raw(&offer)).expect("understood but for one");

    let Change::Registration { registration: Some(offered), .. } = change else { panic!("{change:?}") };
    let ids: Vec<&str> = offered.instances.keys().map(String::as_str).collect();
    assert_eq!(ids, ["checked", "plain"], "how another host asks its instances is not this host's matter");
    assert_eq!(offered.instances["checked"].health, mesh_proto::registration::Health::Unhealthy);
    let told: Vec<String> = unread.sentences().collect();
    assert_eq!(
        told,
        [
            "instance mail of host 2 needs a newer meshd on this host (unknown variant `SMTP`): it gets no traffic from here"
        ]
    );

    unread.read(&raw(&json!({"registration": {"host": 2, "registration": null}})));
    assert!(unread.is_empty(), "{unread:?}");
}

#[test]
fn what_is_understood_again_or_deleted_is_named_no_more() {
    let mut unread = NotUnderstood::default();
    assert!(unread.read(&raw(&entry("a", "a.example.com", &json!({"quota": 5})))).is_none());
    assert!(unread.read(&raw(&json!({"resource": {"key": "RateLimit default/r", "stored": {}}}))).is_none());

    assert!(
        unread.read(&raw(&json!({"resource": {"key": "RateLimit default/r", "stored": null}}))).is_none()
    );
    assert_eq!(unread.sentences().count(), 1);
    assert!(unread.read(&raw(&entry("a", "a.example.com", &json!({})))).is_some());
    assert!(unread.is_empty());
}
