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
use super::{NodeId, OpenError, SnapshotError, Types};
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
    Store::open(&place.join("raft.redb"), false)
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
