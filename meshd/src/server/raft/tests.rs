//! The storage under Raft, by openraft's own conformance suite, and what it says of damaged files.

use std::path::Path;
use std::sync::Arc;

use raft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use raft::testing::{StoreBuilder, Suite};
use raft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder, StorageError, Vote,
};

use super::machine::{Facts, Machine};
use super::store::{Store, StoreError};
use super::{NodeId, SnapshotError, Types};
use crate::server::watch::Hub;

struct Builder;

impl StoreBuilder<Types, Store, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Machine), StorageError<NodeId>> {
        let place = tempfile::tempdir().expect("a temporary folder");
        let (store, machine) = (open_store(place.path()), open_machine(place.path()));
        Ok((place, store.expect("a new log"), machine.expect("a new folder")))
    }
}

fn open_store(place: &Path) -> Result<Store, StoreError> {
    Store::open(&place.join("raft.redb"))
}

fn open_machine(place: &Path) -> Result<Machine, SnapshotError> {
    Machine::open(&place.join("snapshots"), Arc::new(Facts::new(Arc::new(Hub::new()))))
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
