//! The file of the log: its tables, opening it, and what it says at the start.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use mesh_proto::exact::{Unread, exactly};
use raft::{Entry, LogId, Vote};
use redb::{Database, ReadOnlyDatabase, ReadableDatabase, ReadableTable, TableDefinition};

use crate::config::RESTORE_OR_REJOIN;
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
    #[error("the Raft log {path} is damaged: {reason}; {}", RESTORE_OR_REJOIN)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file is of a later format.
    #[error(
        "the Raft log {path} was written by a newer meshd (format {format}, this one knows {}): install that version or a \
         newer one; nothing was changed",
        FORMAT
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Something in the file is of a later version.
    #[error(
        "the Raft log {path} holds what a newer meshd wrote ({what}): install that version or a newer one; nothing was changed"
    )]
    Beyond {
        /// The file.
        path: PathBuf,
        /// What is not known here.
        what: String,
    },
    /// This host has had a log, and it is gone.
    #[error(
        "the Raft log {path} is gone, and this host has had one: a voter that has forgotten its vote could vote twice; {}",
        RESTORE_OR_REJOIN
    )]
    Lost {
        /// Where it was.
        path: PathBuf,
    },
}

/// What the file says at the start.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Format of the file; one without a number is of the first.
    format: u32,
    pub(super) last: Option<LogId<NodeId>>,
    pub(super) purged: Option<LogId<NodeId>>,
    pub(super) vote: Option<Vote<NodeId>>,
    pub(super) committed: Option<LogId<NodeId>>,
}

/// Opens the file at `path`, or makes an empty one unless it `has_log`, and verifies every page of it.
pub(super) fn open_file(path: &Path, has_log: bool) -> Result<(Database, Found), StoreError> {
    contained(path, || open_verified(path, has_log))
}

/// Looks at the file while nobody has it open, and changes nothing; returns the last entry that is not in it any more. Says
/// nothing of one that was not closed in order.
pub(in crate::server::raft) fn inspect(path: &Path, has_log: bool) -> Result<Option<u64>, StoreError> {
    contained(path, || {
        if is_absent(path) {
            return if has_log { Err(StoreError::Lost { path: path.to_owned() }) } else { Ok(None) };
        }
        let database = match ReadOnlyDatabase::open(path) {
            Ok(database) => database,
            Err(redb::DatabaseError::RepairAborted | redb::DatabaseError::DatabaseAlreadyOpen) => {
                return Ok(None);
            }
            Err(error) => return Err(refused(path, error)),
        };
        let told = || -> Result<_, Box<dyn std::error::Error>> {
            let facts = match database.begin_read()?.open_table(FACTS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok((FORMAT, None)),
                opened => opened?,
            };
            let purged = facts.get(PURGED)?.map(|value| value.value().to_vec());
            Ok((format_of(&facts)?, purged))
        };
        let (format, purged) = told().map_err(|error| damaged(path, error.to_string()))?;
        check_format(path, format)?;
        let purged: Option<LogId<NodeId>> =
            decode(purged).map_err(|error| damaged(path, error.to_string()))?;
        Ok(purged.map(|purged| purged.index))
    })
}

fn open_verified(path: &Path, has_log: bool) -> Result<(Database, Found), StoreError> {
    let open = |reason: String| StoreError::Open { path: path.to_owned(), reason };
    if has_log && is_absent(path) {
        return Err(StoreError::Lost { path: path.to_owned() });
    }
    make_private(path).map_err(|error| open(error.to_string()))?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create(path)
        .map_err(|error| refused(path, error))?;
    let found = read_found(&database).map_err(|error| match error.downcast_ref() {
        Some(Unread::Newer(what)) => StoreError::Beyond { path: path.to_owned(), what: what.clone() },
        _ => damaged(path, error.to_string()),
    })?;
    check_format(path, found.format)?;
    Ok((database, found))
}

/// A file that was never written to holds as little as one that is missing.
fn is_absent(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(facts) => facts.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn damaged(path: &Path, reason: String) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason }
}

fn refused(path: &Path, error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(reason)) => damaged(path, reason),
        redb::DatabaseError::Storage(redb::StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            damaged(path, "it is no file of redb".to_owned())
        }
        error => StoreError::Open { path: path.to_owned(), reason: error.to_string() },
    }
}

fn format_of(
    facts: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<u32, Box<dyn std::error::Error>> {
    let written = facts.get(FORMAT_FACT)?.map(|value| value.value().to_vec());
    Ok(decode(written)?.unwrap_or(FIRST_FORMAT))
}

fn check_format(path: &Path, format: u32) -> Result<(), StoreError> {
    if format > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), format });
    }
    Ok(())
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
        let mut facts = transaction.open_table(FACTS)?;
        let format = format_of(&facts)?;
        if format > FORMAT {
            // Left as it is: what else is in it is not ours to understand.
            return Ok(Found { format, ..Found::default() });
        }
        facts.insert(FORMAT_FACT, serde_json::to_vec(&FORMAT)?.as_slice())?;
        let fact = |name: &str| -> Result<Option<Vec<u8>>, redb::StorageError> {
            Ok(facts.get(name)?.map(|value| value.value().to_vec()))
        };
        let last = log.last()?.map(|row| row.1.value().to_vec());
        let last = last.map(|row| exactly::<Entry<Types>>(&row)).transpose()?.map(|entry| entry.log_id);
        let purged: Option<LogId<NodeId>> = decode(fact(PURGED)?)?;
        let first = log.first()?.map(|row| row.0.value());
        let expected = purged.map_or(0, |purged| purged.index + 1);
        if let Some(first) = first
            && first != expected
        {
            return Err(format!("its first entry is {first}, expected {expected}").into());
        }
        Found {
            format,
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
pub(in crate::server::raft) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Name → JSON: the vote, how far the log was purged, how far it is known to be committed.
pub(super) const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");
pub(super) const VOTE: &str = "vote";
pub(super) const PURGED: &str = "purged";
pub(super) const COMMITTED: &str = "committed";

const FORMAT_FACT: &str = "format";
/// The format that is written; a newer one is refused. Files of 0.1.0 bear no number.
const FORMAT: u32 = 1;
const FIRST_FORMAT: u32 = 1;

/// redb's page cache; its own default is 1 GiB. The log is written at its end, and read when somebody is far behind.
const CACHE_BYTES: usize = 4 << 20;
