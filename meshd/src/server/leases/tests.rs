//! What was heard is reported until the World says it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_core::world::World;
use mesh_proto::command::{HostFacts, HostId, Liveness, Revision, VoterWish};
use mesh_proto::registration::{Health, Instance, Registration};
use mesh_proto::value::Labels;
use mesh_proto::watch::{Change, Host, Up};

use super::{Extent, Heard};

const HOST: HostId = HostId(7);

fn facts() -> HostFacts {
    HostFacts {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 15008)),
        version: "1".into(),
        labels: Labels::new(),
        locality: String::new(),
        voter: VoterWish::Auto,
    }
}

fn world() -> World {
    let mut world = World::default();
    let host = Host {
        name: "vm7".into(),
        public_key: String::new(),
        wrap_key: String::new(),
        facts: facts(),
        voter_eligible: false,
        liveness: Liveness::Live,
    };
    world.absorb(&Change::Host { id: HOST, host: Some(host) });
    world
}

fn registration() -> Registration {
    let instance: Instance =
        serde_json::from_value(serde_json::json!({"service": "reviews", "ports": []})).expect("an instance");
    Registration { instances: BTreeMap::from([("reviews-1".to_owned(), instance.into())]) }
}

fn said(heard: &Heard, world: &World) -> Up {
    heard.report(world, Extent::All).remove(&HOST).expect("reported").said
}

#[test]
fn registration_is_reported_until_the_world_has_it() {
    let (heard, mut world) = (Heard::default(), world());
    let session = heard.open(HOST);
    heard.say(HOST, session, Up { registration: Some(registration()), ..Up::default() });
    assert_eq!(said(&heard, &world).registration, Some(registration()));
    assert_eq!(said(&heard, &world).registration, Some(registration()));
    world.registrations.insert(HOST, Arc::new(registration()));
    assert_eq!(said(&heard, &world).registration, None);
}

#[test]
fn health_flip_changes_what_is_reported() {
    let (heard, mut world) = (Heard::default(), world());
    world.registrations.insert(HOST, Arc::new(registration()));
    let session = heard.open(HOST);
    heard.say(HOST, session, Up { registration: Some(registration()), ..Up::default() });
    let health = BTreeMap::from([("reviews-1".to_owned(), Health::Unhealthy)]);
    heard.say(HOST, session, Up { health, ..Up::default() });
    let reported = said(&heard, &world).registration.expect("it differs");
    assert_eq!(reported.instances["reviews-1"].health, Health::Unhealthy);
}

#[test]
fn late_end_of_an_old_stream_says_nothing() {
    let (heard, world) = (Heard::default(), world());
    let old = heard.open(HOST);
    let _new = heard.open(HOST);
    heard.close(HOST, old);
    assert!(heard.report(&world, Extent::All)[&HOST].connected);
}

#[test]
fn only_news_travels_at_once() {
    let (heard, world) = (Heard::default(), world());
    let session = heard.open(HOST);
    assert_eq!(heard.report(&world, Extent::News).len(), 1);
    heard.say(HOST, session, Up { clock_ms: 5, ..Up::default() });
    assert_eq!(heard.report(&world, Extent::News).len(), 0);
    heard.say(HOST, session, Up { live: Revision(9), ..Up::default() });
    assert_eq!(heard.report(&world, Extent::News)[&HOST].said.live, Revision(9));
}
