//! The storage under Raft, by openraft's own conformance suite, and what it says of damaged files.

use std::path::Path;
use std::sync::Arc;

use raft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use raft::testing::{StoreBuilder, Suite};
use raft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder, StorageError, Vote,
};

use mesh_core::world::World;
use mesh_proto::command::{HostId, Revision};
use mesh_proto::watch::{Change, Down};

use super::machine::{Facts, Machine};
use super::store::{Store, StoreError};
use serde_json::json;

use super::{NodeId, OpenError, SnapshotError, Types};
use crate::server::watch::{Hub, Next};

mod frames;

struct Builder;

impl StoreBuilder<Types, Store, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Machine), StorageError<NodeId>> {
        let place = tempfile::tempdir().expect("a temporary folder");
        let (store, machine) = (open_store(place.path()), open_machine(place.path()));
        Ok((place, store.expect("a new log"), machine.expect("a new folder")))
    }
}

fn open_store(place: &Path) -> Result<Store, StoreError> {
    Store::open(&place.join("raft.redb"), false)
}

fn open_machine(place: &Path) -> Result<Machine, SnapshotError> {
    Machine::open(HostId(1), &place.join("snapshots"), Arc::new(Facts::new(Arc::new(Hub::new()))))
}

/// Opens the log again once the thread of a dropped one has closed the file.
async fn reopen(place: &Path) -> Store {
    for _ in 0..500 {
        match open_store(place) {
            Ok(store) => return store,
            Err(StoreError::Open { reason, .. }) if reason.contains("open") => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the log stayed open");
}

fn id(term: u64, index: u64) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn blank(term: u64, index: u64) -> Entry<Types> {
    Entry { log_id: id(term, index), payload: EntryPayload::Blank }
}

fn command(index: u64, command: &serde_json::Value) -> Entry<Types> {
    let entry = json!({"at": 1, "author": "uid 0 on vm1", "command": command});
    let entry = serde_json::from_value(entry).expect("a command");
    Entry { log_id: id(1, index), payload: EntryPayload::Normal(Arc::new(entry)) }
}

async fn indexes(store: &mut Store) -> Vec<u64> {
    let entries = store.try_get_log_entries(..).await.expect("readable");
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[test]
fn storage_passes_the_conformance_suite() {
    Suite::test_all(Builder).expect("conformance");
}

#[tokio::test]
async fn log_vote_and_purge_survive_a_restart() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_store(place.path()).expect("open");
    store.save_vote(&Vote::new(3, 2)).await.expect("vote");
    store.blocking_append((0..20).map(|index| blank(1, index))).await.expect("append");
    store.truncate(id(1, 15)).await.expect("truncate");
    store.purge(id(1, 4)).await.expect("purge");
    store.save_committed(Some(id(1, 12))).await.expect("committed");
    drop(store);

    let mut store = reopen(place.path()).await;

    assert_eq!(store.read_vote().await.expect("vote"), Some(Vote::new(3, 2)));
    assert_eq!(indexes(&mut store).await, (5..15).collect::<Vec<_>>());
    let state = store.get_log_state().await.expect("state");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 4)), Some(id(1, 14))));
    assert_eq!(store.read_committed().await.expect("committed"), Some(id(1, 12)));
}

/// As a snapshot of another server may show: the entries here were of a leader that has not got them agreed on.
#[tokio::test]
async fn a_log_that_contradicts_the_snapshot_is_dropped_and_one_that_leads_on_from_it_stays() {
    for (applied, left, next) in [(id(1, 9), 20, 20), (id(2, 9), 0, 10), (id(2, 30), 20, 31)] {
        let place = tempfile::tempdir().expect("a temporary folder");
        let mut store = open_store(place.path()).expect("open");
        store.save_vote(&Vote::new(3, 2)).await.expect("vote");
        store.blocking_append((0..20).map(|index| blank(1, index))).await.expect("append");

        store.fit(applied).await.expect("fits");

        assert_eq!(indexes(&mut store).await.len(), left, "{applied}");
        // What openraft does where the log ends before the snapshot.
        if store.last_log_id() < Some(applied) {
            store.purge(applied).await.expect("purged");
        }
        store.blocking_append([blank(2, next)]).await.expect("append");
        store.close().await;
        let mut store = reopen(place.path()).await;
        assert_eq!(store.read_vote().await.expect("vote"), Some(Vote::new(3, 2)));
        assert_eq!(indexes(&mut store).await.last(), Some(&next), "{applied}");
        assert_eq!(store.last_log_id(), Some(id(2, next)));
    }
}

#[tokio::test]
async fn entries_are_read_from_the_file_once_memory_has_let_go() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_store(place.path()).expect("open");
    for start in (0..3_000).step_by(500) {
        store.blocking_append((start..start + 500).map(|index| blank(1, index))).await.expect("append");
    }
    assert_eq!(indexes(&mut store).await, (0..3_000).collect::<Vec<_>>());
    let some = store.try_get_log_entries(10..12).await.expect("readable");
    assert_eq!(some, [blank(1, 10), blank(1, 11)]);
}

#[tokio::test]
async fn damaged_log_is_refused_and_named() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_store(place.path()).expect("open");
    store.blocking_append((0..500).map(|index| blank(1, index))).await.expect("append");
    drop(store);
    drop(reopen(place.path()).await);
    let path = place.path().join("raft.redb");
    let mut bytes = std::fs::read(&path).expect("read");
    for byte in bytes.iter_mut().skip(4_096).filter(|byte| **byte != 0) {
        *byte ^= 0x55;
    }
    std::fs::write(&path, bytes).expect("write");

    let refusal = loop {
        match open_store(place.path()) {
            Err(StoreError::Open { reason, .. }) if reason.contains("already open") => {}
            Err(error) => break error.to_string(),
            Ok(_) => panic!("a damaged log was taken up"),
        }
    };

    assert!(refusal.contains("raft.redb"), "{refusal}");
}

/// Opens a log that is to be refused, once the thread of a dropped one has closed the file.
fn refusal(place: &Path, has_log: bool) -> OpenError {
    loop {
        match Store::open(&place.join("raft.redb"), has_log) {
            Err(StoreError::Open { reason, .. }) if reason.contains("already open") => {}
            Err(error) => break error.into(),
            Ok(_) => panic!("it was taken up"),
        }
    }
}

#[tokio::test]
async fn what_is_no_log_or_is_gone_needs_a_person_and_advice_does_not_lose_the_mesh() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let path = place.path().join("raft.redb");
    for garbage in [&b"not a log at all, and longer than any head of a file"[..], &[0; 8_192]] {
        std::fs::write(&path, garbage).expect("write");
        let refused = refusal(place.path(), true);
        assert!(refused.needs_person(), "{refused}");
        assert!(refused.to_string().contains("Where this is the only voter: put back"), "{refused}");
        assert_eq!(std::fs::read(&path).expect("read"), garbage, "it is left as it is");
        let told = super::inspect(place.path(), true);
        assert!(told.len() == 1 && told[0].needs_person(), "{told:?}");
    }
    for write_nothing in [true, false] {
        std::fs::remove_file(&path).expect("removed");
        if write_nothing {
            std::fs::write(&path, b"").expect("write");
        }
        let refused = refusal(place.path(), true);
        assert!(refused.needs_person() && refused.to_string().contains("is gone, and this host has had one"));
        assert!(!path.exists() || write_nothing, "none is begun in its place");
        let told = super::inspect(place.path(), true);
        assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), [refused.to_string()]);
        std::fs::write(&path, b"").expect("write");
    }
    assert!(super::inspect(place.path(), false).is_empty());
    drop(Store::open(&path, false).expect("a host without one begins one"));
}

#[tokio::test]
async fn a_log_of_a_newer_meshd_is_not_called_damaged_and_one_without_a_number_is_read() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_store(place.path()).expect("open");
    store.blocking_append([blank(1, 0), blank(1, 1)]).await.expect("append");
    store.close().await;
    let path = place.path().join("raft.redb");
    let number = |number: Option<u32>| {
        let database = redb::Database::open(&path).expect("opened");
        let change = database.begin_write().expect("begun");
        {
            let mut facts =
                change.open_table(redb::TableDefinition::<&str, &[u8]>::new("facts")).expect("the table");
            match number {
                Some(number) => drop(facts.insert("format", number.to_string().as_bytes()).expect("kept")),
                None => drop(facts.remove("format").expect("removed")),
            }
        }
        change.commit().expect("committed");
    };

    number(Some(99));
    let refused = refusal(place.path(), true);
    assert!(refused.needs_person(), "{refused}");
    let refused = refused.to_string();
    assert!(refused.contains("newer meshd (format 99, this one knows 1): install"), "{refused}");
    assert!(!refused.contains("join"), "{refused}");
    let told = super::inspect(place.path(), true);
    assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), [refused]);

    number(None);
    assert!(super::inspect(place.path(), true).is_empty());
    let mut store = open_store(place.path()).expect("a log of 0.1.0");
    assert_eq!(indexes(&mut store).await, [0, 1]);
}

#[tokio::test]
async fn damaged_snapshot_is_refused_not_forgotten() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut machine = open_machine(place.path()).expect("open");
    machine.apply([blank(1, 0), blank(1, 1)]).await.expect("apply");
    machine.build_snapshot().await.expect("snapshot");
    let folder = place.path().join("snapshots");
    let file = std::fs::read_dir(&folder).expect("list").next().expect("one").expect("entry").path();
    let mut bytes = std::fs::read(&file).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&file, bytes).expect("write");

    let refusal = open_machine(place.path()).expect_err("refused").to_string();

    assert!(refusal.contains(&file.display().to_string()), "{refusal}");
}

/// An entry of a newer version, as JSON.
fn newer_entry(index: u64) -> Vec<u8> {
    let text = format!(
        r#"{{"log_id":{{"leader_id":{{"term":1,"node_id":1}},"index":{index}}},"payload":{{"Normal":{{"at":5,"author":"a",
        "command":{{"revoke_token":{{"id":"t","all":true}}}}}}}}}}"#
    );
    text.into_bytes()
}

fn put(place: &Path, index: u64, entry: &[u8]) {
    let log = redb::Database::open(place.join("raft.redb")).expect("closed");
    let writing = log.begin_write().expect("a transaction");
    writing.open_table(super::store::LOG).expect("a table").insert(index, entry).expect("inserted");
    writing.commit().expect("written");
}

/// A way back to an older meshd loses nothing: it does not start on what it would only half read.
#[tokio::test]
async fn a_log_of_a_newer_meshd_is_not_half_read() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut store = open_store(place.path()).expect("open");
    store.blocking_append((0..3).map(|index| blank(1, index))).await.expect("append");
    store.close().await;
    drop(store);
    drop(reopen(place.path()).await);
    let expected =
        "holds what a newer meshd wrote (unknown field `payload.command.all`): install that version";
    wait_closed(place.path()).await;
    put(place.path(), 1, &newer_entry(1));

    let mut store = reopen(place.path()).await;
    let refusal = store.try_get_log_entries(..).await.expect_err("refused").to_string();
    assert!(refusal.contains(expected), "{refusal}");
    store.close().await;
    drop(store);

    wait_closed(place.path()).await;
    put(place.path(), 3, &newer_entry(3));
    wait_closed(place.path()).await;
    let refusal = open_store(place.path()).expect_err("refused").to_string();
    assert!(refusal.contains(expected), "{refusal}");
}

/// Waits until no thread has the log open.
async fn wait_closed(place: &Path) {
    for _ in 0..500 {
        if redb::Database::open(place.join("raft.redb")).is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the log stayed open");
}

#[tokio::test]
async fn a_snapshot_of_a_newer_meshd_is_not_half_read() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut machine = open_machine(place.path()).expect("a new folder");
    machine.apply([blank(1, 0), blank(1, 1)]).await.expect("applied");
    let built = machine.build_snapshot().await.expect("a snapshot");
    let body = String::from_utf8(built.snapshot.into_inner()).expect("JSON");
    let newer = body.replace(r#""private":{"#, r#""private":{"quotas":{},"#);
    assert_ne!(newer, body);

    let received = std::io::Cursor::new(newer.clone().into_bytes());
    let refusal =
        machine.install_snapshot(&built.meta, Box::new(received)).await.expect_err("refused").to_string();
    let expected = "was written by a newer meshd (unknown field `private.quotas`): install that version";
    assert!(refusal.contains(expected), "{refusal}");

    let folder = super::snapshot::Folder::open(&place.path().join("snapshots")).expect("open");
    folder.write(&built.meta, newer.as_bytes()).expect("written");
    let refusal = open_machine(place.path()).expect_err("refused").to_string();
    assert!(refusal.contains(expected), "{refusal}");
}

/// A host that serves and follows: its mirror is one entry older than its snapshot, and says already what that
/// entry says, because this host offers it.
#[tokio::test]
async fn who_has_the_mirror_of_this_host_is_led_to_a_newer_snapshot_without_a_whole_world() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let mut machine = open_machine(place.path()).expect("open");
    let mesh = json!({"id": "m", "trust_domain": "cluster.local", "domain": "cluster.local", "roots": [], "created": 0});
    let facts = json!({"address": "198.18.0.1:15008", "version": "0.1.0"});
    let host = json!({"name": "vm1", "public_key": "", "wrap_key": "", "facts": facts});
    let begun = json!({"bootstrap": {"mesh": mesh, "sealed_root": {}, "host": host}});
    let offer = json!({"instances": {"a": {"service": "a", "ports": []}}});
    let left = json!({"liveness": {"changes": {"1": "left"}}});
    machine.apply([command(1, &begun), command(2, &left)]).await.expect("applied");
    let mut mirror = machine.facts().read(World::clone);
    let registration = serde_json::from_value(offer.clone()).expect("an offer");
    mirror.absorb(&Change::Registration { host: HostId(1), registration: Some(registration) });
    let agreed = machine.facts().read(World::public).facts;
    let offered = json!({"register": {"host": 1, "registration": offer}});
    machine.apply([command(3, &offered)]).await.expect("applied");
    machine.build_snapshot().await.expect("snapshot");

    let hub = Arc::new(Hub::new());
    let facts = Arc::new(Facts::new(hub.clone()));
    facts.lean_on(Some(Arc::new(mirror)));
    let machine = Machine::open(HostId(1), &place.path().join("snapshots"), facts).expect("open");

    let Next::Delta { frame, .. } = hub.next(Revision(2)) else { panic!("a delta") };
    let Ok(Down::Delta { from, to, changes }) = serde_json::from_slice(&frame) else { panic!("a delta") };
    assert_eq!((from, to, changes.len()), (Revision(2), Revision(3), 2), "{changes:?}");
    let mut follower = World::default();
    follower.absorb_all(from, &agreed);
    follower.absorb_all(to, &changes);
    assert_eq!(follower.public(), machine.facts().read(World::public));
    assert_eq!(hub.next(Revision(1)), Next::World);
}
