//! Files of a server that cannot be read any more: what it does about a snapshot, and what it never makes up for.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_core::world::World;
use mesh_proto::api::{Request, Response};
use mesh_proto::command::HostId;
use serde_json::Value;

use super::mesh::{Mesh, order};

fn told(world: &World) -> Value {
    serde_json::to_value(world.whole()).expect("JSON")
}

/// The one snapshot of a host.
fn snapshot(mesh: &Mesh, id: u64) -> PathBuf {
    let listed = mesh.folder(id).join("snapshots").read_dir().expect("listed");
    let mut found: Vec<_> = listed.map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "snapshot"));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Turns a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("written");
}

/// Entries of 100 kB.
const MUCH: usize = 24;

/// Writes what takes several pieces of a snapshot, on the wire and when another server gives its own.
async fn write_much(mesh: &Mesh) {
    for number in 0..MUCH {
        let name = format!("much-{number}");
        let mut order = order(&name, &name);
        order.batch.reason = "why ".repeat(25_000);
        mesh.call(1, Request::Apply(order)).await.expect("written");
    }
}

async fn end(mesh: &mut Mesh, id: u64) {
    mesh.server(id).stop().await;
    mesh.kill(id);
}

async fn problems(mesh: &Mesh, of: u64) -> Vec<String> {
    match mesh.call(1, Request::Status).await {
        Ok(Response::Status(status)) => {
            status.hosts.into_iter().find(|host| host.id == HostId(of)).expect("a host").problems
        }
        other => panic!("{other:?}"),
    }
}

/// Who joins needs the snapshot of the leader, in many pieces.
async fn leader_with(break_it: impl Fn(&Path)) {
    let mut mesh = Mesh::init().await;
    write_much(&mesh).await;
    mesh.server(1).consensus.forget_log().await;
    let path = snapshot(&mesh, 1);
    assert!(fs::metadata(&path).expect("written").len() > 2 << 20, "it has several pieces");
    break_it(&path);

    let second = mesh.join("vm2").await;

    mesh.until("it has all", |mesh| told(&mesh.world(second)) == told(&mesh.world(1))).await;
    assert_eq!(mesh.server(1).failure(), None);
    mesh.apply_until_done(1, "later").await;
    end(&mut mesh, 1).await;
    assert!(crate::server::inspect(mesh.folder(1), true).is_empty(), "it was written anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_whose_snapshot_is_damaged_sends_what_it_has_in_memory() {
    leader_with(damage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_whose_snapshot_is_gone_sends_what_it_has_in_memory() {
    leader_with(|path| fs::remove_file(path).expect("removed")).await;
}

/// A voter that comes back without its snapshot: the log and the vote are there, what they go on from is not.
async fn voter_with(break_it: impl Fn(&Path)) {
    let (mut mesh, _, third) = Mesh::of_three().await;
    write_much(&mesh).await;
    mesh.until("all have it", |mesh| told(&mesh.world(third)) == told(&mesh.world(1))).await;
    mesh.server(third).consensus.forget_log().await;
    end(&mut mesh, third).await;
    mesh.apply_until_done(1, "meanwhile").await;
    break_it(&snapshot(&mesh, third));
    let seen = crate::server::inspect(mesh.folder(third), true);
    assert!(seen.len() == 1 && seen[0].is_replaceable(), "{seen:?}");

    mesh.start_beside(third, 1).await.expect("another gives it one");

    mesh.until("it has all", |mesh| told(&mesh.world(third)) == told(&mesh.world(1))).await;
    assert_eq!(mesh.voters(1).len(), 3);
    mesh.kill(1);
    mesh.apply_until_done(third, "it votes").await;
    end(&mut mesh, third).await;
    assert!(crate::server::inspect(mesh.folder(third), true).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_whose_snapshot_is_damaged_gets_one_from_another() {
    voter_with(damage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_whose_snapshot_is_gone_gets_one_from_another() {
    voter_with(|path| fs::remove_file(path).expect("removed")).await;
}

/// The acknowledged write is on the voter whose snapshot is lost, and on one that is down. The one that answers never had it.
#[tokio::test(flavor = "multi_thread")]
async fn voter_without_its_snapshot_takes_no_part_until_another_reaches_as_far() {
    let (mut mesh, second, third) = Mesh::of_three().await;
    mesh.cut(second, true);
    mesh.apply(1, "acknowledged", "k1").await.expect("by a majority");
    mesh.until("the third has it", |mesh| mesh.world(third).resources.len() == 1).await;
    mesh.server(third).consensus.forget_log().await;
    end(&mut mesh, third).await;
    mesh.kill(1);
    mesh.cut(second, false);
    damage(&snapshot(&mesh, third));

    let refused = mesh.start_beside(third, second).await.expect_err("nobody reaches as far");

    assert!(!refused.needs_person(), "it is tried again: {refused}");
    let refused = refused.to_string();
    assert!(refused.contains("no other server gives a snapshot"), "{refused}");
    assert!(refused.contains("it has entries up to") && refused.contains("checksum"), "{refused}");
    mesh.apply(second, "without", "k2").await.expect_err("no leader without the write");

    mesh.start(HostId(1)).await.expect("starts");
    mesh.start_beside(third, 1).await.expect("it reaches as far");
    mesh.until("all have it", |mesh| mesh.world(third).resources.len() == 1).await;
    mesh.apply_until_done(second, "later").await;
    assert_eq!(mesh.names(third).await.expect("read"), ["acknowledged", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_voter_without_its_snapshot_begins_nothing_and_says_what_to_do() {
    for is_removed in [false, true] {
        let mut mesh = Mesh::init().await;
        mesh.apply(1, "kept", "k1").await.expect("written");
        mesh.server(1).consensus.forget_log().await;
        end(&mut mesh, 1).await;
        let path = snapshot(&mesh, 1);
        let kept = fs::read(&path).expect("read");
        if is_removed {
            fs::remove_file(&path).expect("removed");
        } else {
            damage(&path);
        }
        let broken = fs::read(&path).ok();

        let refused = mesh.start(HostId(1)).await.expect_err("refused");

        assert!(refused.needs_person(), "{refused}");
        let what = if is_removed { "goes on from (entry" } else { "its checksum does not match" };
        let refused = refused.to_string();
        assert!(
            refused.contains(what) && refused.contains("put back a copy of the data folder"),
            "{refused}"
        );
        let seen = crate::server::inspect(mesh.folder(1), true);
        assert_eq!(seen.iter().map(ToString::to_string).collect::<Vec<_>>(), [refused]);
        assert_eq!(fs::read(&path).ok(), broken, "it is left as it is");

        fs::write(&path, kept).expect("put back");
        mesh.start(HostId(1)).await.expect("starts again");
        mesh.apply_until_done(1, "later").await;
        assert_eq!(mesh.names(1).await.expect("read"), ["kept", "later"]);
    }
}

/// A log is never made up for: the host serves on, its server takes no part, and everybody is told why.
#[tokio::test(flavor = "multi_thread")]
async fn server_whose_log_is_damaged_while_it_runs_takes_no_part_and_says_so_everywhere() {
    let (mesh, second, _) = Mesh::of_three().await;
    write_much(&mesh).await;
    mesh.until("all have it", |mesh| told(&mesh.world(second)) == told(&mesh.world(1))).await;
    let path = mesh.folder(second).join("raft.redb");
    let mut bytes = fs::read(&path).expect("read");
    bytes.iter_mut().skip(4_096).step_by(512).for_each(|byte| *byte ^= 0x55);
    fs::write(&path, bytes).expect("written");
    mesh.server(second).consensus.fail_next_write();

    mesh.apply_until_done(1, "goes on").await;

    let why = |mesh: &Mesh| mesh.server(second).failure().filter(|why| why.contains("is damaged"));
    mesh.until("it cannot be opened", |mesh| why(mesh).is_some()).await;
    assert_eq!(mesh.world(second).resources.len(), MUCH, "what it knew is still read");
    mesh.apply_until_done(1, "goes on still").await;
    let why = why(&mesh).expect("a reason");
    let expected = [format!("its server takes no part: {why}")];
    for _ in 0..500 {
        if problems(&mesh, second).await == expected {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(problems(&mesh, second).await, expected);
}
