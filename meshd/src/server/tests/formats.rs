//! What servers of released versions left on disk is taken up, to the same World.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_core::world::World;
use serde_json::Value;

use super::mesh::{Mesh, wall_ms};

/// `tests/formats/README.md` says what is there.
fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn told(world: &World) -> Value {
    serde_json::to_value(world.whole()).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_released_server_folder_is_taken_up_to_the_same_world() {
    let mut versions = 0;
    for version in fs::read_dir(formats()).expect("listed").flatten() {
        let folder = version.path().join("server");
        if folder.is_dir() {
            is_taken_up(&folder).await;
            versions += 1;
        }
    }
    assert!(versions > 0);
}

/// With `UPDATE=1` they stay below `tests/formats`, where there are none of this version: for a release that writes another
/// format.
#[tokio::test(flavor = "multi_thread")]
async fn what_this_version_leaves_is_taken_up_too() {
    let kept = formats().join(env!("CARGO_PKG_VERSION")).join("server");
    let place = tempfile::tempdir().expect("a temporary folder");
    let is_kept = std::env::var_os("UPDATE").is_some() && !kept.exists();
    let folder = if is_kept { kept } else { place.path().join("server") };

    leave(&folder).await;

    is_taken_up(&folder).await;
}

async fn is_taken_up(folder: &Path) {
    let mesh = Mesh::of_files(folder).await;
    let expected = fs::read(folder.join("world.json")).expect("the World that it knew");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");

    mesh.until("its log is applied", |mesh| told(&mesh.world(1))["revision"] == expected["revision"]).await;

    assert_eq!(told(&mesh.world(1)), expected, "{folder:?}");
    mesh.apply_until_done(1, "goes-on").await;
}

/// Leaves what a server of this version leaves: a snapshot, a log that goes on after it, and what both together say.
async fn leave(folder: &Path) {
    let mut mesh = Mesh::init().await;
    let line = mesh.token().await;
    mesh.try_join("vm2", &line, wall_ms()).await.expect("joins");
    mesh.token().await;
    mesh.apply(1, "before-the-snapshot", "k1").await.expect("written");
    mesh.server(1).consensus.snapshot_now().await;
    mesh.until("a snapshot", |mesh| {
        mesh.folder(1).join("snapshots").read_dir().is_ok_and(|mut all| all.next().is_some())
    })
    .await;
    mesh.apply(1, "after-the-snapshot", "k2").await.expect("written");
    let world = mesh.world(1);
    mesh.server(1).stop().await;

    fs::create_dir_all(folder.join("snapshots")).expect("made");
    fs::write(folder.join("world.json"), serde_json::to_vec_pretty(&told(&world)).expect("JSON"))
        .expect("written");
    fs::copy(mesh.folder(1).join("raft.redb"), folder.join("raft.redb")).expect("copied");
    for snapshot in mesh.folder(1).join("snapshots").read_dir().expect("listed").flatten() {
        fs::copy(snapshot.path(), folder.join("snapshots").join(snapshot.file_name())).expect("copied");
    }
    let mut log = redb::Database::open(folder.join("raft.redb")).expect("opened");
    log.compact().expect("made small");
}
