//! The file of the log: its tables, opening it, and what it says at the start.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use raft::{Entry, LogId, Vote};
use redb::{Database, ReadableTable, TableDefinition};

use crate::server::raft::{NodeId, Types};

/// Everything that can go wrong with the file of the log.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened: no permission, no space, in use by another process.
    #[error("cannot open the Raft log {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system or redb said.
        reason: String,
    },
    /// The file's checksums do not hold, or it says things no log can say.
    #[error(
        "the Raft log {path} is damaged: {reason}; move the file away and join this host again, or \
         restore a backup"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// What the file says at the start.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) last: Option<LogId<NodeId>>,
    pub(super) purged: Option<LogId<NodeId>>,
    pub(super) vote: Option<Vote<NodeId>>,
    pub(super) committed: Option<LogId<NodeId>>,
}

/// Opens the file at `path`, or makes an empty one, and verifies every page of it.
pub(super) fn open_file(path: &Path) -> Result<(Database, Found), StoreError> {
    contained(path, || open_verified(path))
}

fn open_verified(path: &Path) -> Result<(Database, Found), StoreError> {
    let open = |reason: String| StoreError::Open { path: path.to_owned(), reason };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    make_private(path).map_err(|error| open(error.to_string()))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|error| match error {
            redb::DatabaseError::Storage(redb::StorageError::Corrupted(reason)) => damaged(reason),
            error => open(error.to_string()),
        })?;
    let found = read_found(&database).map_err(|error| damaged(error.to_string()))?;
    Ok((database, found))
}

/// Makes the file if it is missing, readable by its owner only.
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(path)?;
    Ok(())
}

fn read_found(database: &Database) -> Result<Found, Box<dyn std::error::Error>> {
    let transaction = database.begin_write()?;
    let found = {
        let log = transaction.open_table(LOG)?;
        let facts = transaction.open_table(FACTS)?;
        let fact = |name: &str| -> Result<Option<Vec<u8>>, redb::StorageError> {
            Ok(facts.get(name)?.map(|value| value.value().to_vec()))
        };
        let last = log.last()?.map(|row| row.1.value().to_vec());
        let last = decode::<Entry<Types>>(last)?.map(|entry| entry.log_id);
        let purged: Option<LogId<NodeId>> = decode(fact(PURGED)?)?;
        let first = log.first()?.map(|row| row.0.value());
        let expected = purged.map_or(0, |purged| purged.index + 1);
        if let Some(first) = first
            && first != expected
        {
            return Err(format!("its first entry is {first}, expected {expected}").into());
        }
        Found {
            last: last.max(purged),
            purged,
            vote: decode(fact(VOTE)?)?,
            committed: decode(fact(COMMITTED)?)?,
        }
    };
    transaction.commit()?;
    Ok(found)
}

/// Runs `open`, turning a panic of the store into an error that names the file.
fn contained<T>(path: &Path, open: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        Err(StoreError::Damaged { path: path.to_owned(), reason: "a page of it cannot be read".to_owned() })
    })
}

fn decode<T: serde::de::DeserializeOwned>(bytes: Option<Vec<u8>>) -> Result<Option<T>, serde_json::Error> {
    bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()
}

/// Index of the entry → the entry as JSON.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Name → JSON: the vote, how far the log was purged, how far it is known to be committed.
pub(super) const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
pub(super) const VOTE: &str = "vote";
pub(super) const PURGED: &str = "purged";
pub(super) const COMMITTED: &str = "committed";

/// redb's page cache; its own default is 1 GiB. The log is written at its end, and read when somebody is far behind.
const CACHE_BYTES: usize = 4 << 20;
