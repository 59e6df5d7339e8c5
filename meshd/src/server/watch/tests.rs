//! The hub, seen from outside.

use mesh_proto::command::{Mesh, Revision};
use mesh_proto::watch::{Change, Down};

use super::Hub;
use super::ring::Next;

fn change() -> Vec<Change> {
    vec![Change::Mesh(Mesh::default())]
}

#[test]
fn delta_names_the_entry_before_it_even_if_that_changed_nothing() {
    let hub = Hub::new();
    hub.restart(Revision(5));
    hub.publish(Revision(6), Vec::new());
    hub.publish(Revision(9), change());

    let Next::Delta { from, to, frame } = hub.next(Revision(5)) else { panic!("a delta") };

    assert_eq!((from, to), (Revision(6), Revision(9)));
    let said: Down = serde_json::from_slice(&frame).expect("JSON");
    assert_eq!(said, Down::Delta { from, to, changes: change() });
    assert_eq!(*hub.head().borrow(), Revision(9));
}

#[test]
fn new_world_forgets_all_deltas() {
    let hub = Hub::new();
    hub.publish(Revision(3), change());
    hub.restart(Revision(50));
    assert_eq!(hub.next(Revision(3)), Next::World);
    assert_eq!(hub.next(Revision(50)), Next::Nothing);
}
