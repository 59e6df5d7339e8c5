//! The Raft log and this server's vote, on redb.
//!
//! One thread owns all writing. Callers hand it jobs through a bounded queue; whatever has queued up
//! while the last transaction was on its way to the disk goes into the next one (group commit).
//! Entries are readable as soon as [`append`](RaftLogStorage::append) returns: the youngest ones are
//! kept in memory, older ones are read from the file.
//!
//! After one failed write nothing is written any more until the file is opened anew: what came after
//! the gap must not reach the disk. How openraft reacts to that, and how meshd goes on serving
//! reads, is [`super`]'s matter.

mod file;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use mesh_proto::exact::{Unread, exactly};
use raft::storage::{LogFlushed, RaftLogStorage};
use raft::{
    AnyError, Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote,
};
use redb::{Database, Durability, ReadableDatabase};
use tokio::sync::{mpsc, oneshot};

pub(super) use self::file::LOG;
pub use self::file::StoreError;
pub(super) use self::file::inspect;
use self::file::{COMMITTED, FACTS, PURGED, VOTE, open_file};
use super::{NodeId, Types};

/// The log store given to openraft; clones share the file.
#[derive(Clone, Debug)]
pub(super) struct Store {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

#[cfg(test)]
impl Store {
    /// Makes the next write fail, as a full disk does.
    pub(super) fn fail_next_write(&self) {
        self.shared.broken.store(true, Ordering::Relaxed);
    }
}

/// What readers and the writing thread share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    tail: Mutex<Tail>,
    /// Bytes appended since a snapshot was last asked for.
    grown: AtomicUsize,
    #[cfg(test)]
    broken: std::sync::atomic::AtomicBool,
}

/// The youngest entries and the bounds of the log.
#[derive(Debug, Default)]
struct Tail {
    entries: BTreeMap<u64, Cached>,
    bytes: usize,
    /// All entries up to here are on disk; later ones live only in `entries`.
    durable: u64,
    last: Option<LogId<NodeId>>,
    purged: Option<LogId<NodeId>>,
    vote: Option<Vote<NodeId>>,
    committed: Option<LogId<NodeId>>,
}

#[derive(Debug)]
struct Cached {
    entry: Entry<Types>,
    bytes: usize,
}

/// One thing for the writing thread to do.
#[derive(Debug)]
enum Work {
    Append(Vec<(u64, Vec<u8>)>),
    Vote(Vec<u8>),
    Truncate {
        from: u64,
    },
    Purge {
        upto: LogId<NodeId>,
    },
    /// Closes the file; nothing is done after it.
    Close,
}

/// Whom to tell when the work is on disk.
enum Done {
    Flushed(LogFlushed<Types>),
    Reply(oneshot::Sender<Result<(), String>>),
}

struct Job {
    work: Work,
    done: Done,
}

impl Debug for Job {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.work.fmt(formatter)
    }
}

impl Store {
    /// Opens the log at `path`, or makes an empty one, and verifies every page of it.
    ///
    /// With `has_log`, a file that is missing or empty is [`StoreError::Lost`].
    ///
    /// **Errors**: [`StoreError::Damaged`] when a checksum does not hold; the file is left as it is.
    pub(super) fn open(path: &Path, has_log: bool) -> Result<Self, StoreError> {
        let (database, found) = open_file(path, has_log)?;
        let tail = Tail {
            durable: found.last.map_or(0, |last| last.index),
            last: found.last,
            purged: found.purged,
            vote: found.vote,
            committed: found.committed,
            ..Tail::default()
        };
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            tail: Mutex::new(tail),
            grown: AtomicUsize::new(0),
            #[cfg(test)]
            broken: std::sync::atomic::AtomicBool::new(false),
        });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || write_until_closed(&writer, queue))
            .map_err(|error| StoreError::Open {
                path: path.to_owned(),
                reason: format!("cannot start the writing thread: {error}"),
            })?;
        Ok(Self { shared, jobs })
    }

    /// Closes the file, whoever still holds a clone; every later call fails.
    pub(super) async fn close(&self) {
        // An error says that the thread has ended or that the disk failed: both leave nothing to do.
        let _ = self.submit(Work::Close).await;
        let closed = self.shared.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(closed);
    }

    /// The last entry, on disk or on its way there.
    pub(super) fn last_log_id(&self) -> Option<LogId<NodeId>> {
        let tail = self.shared.tail();
        tail.last.or(tail.purged)
    }

    /// The last entry that is in no file of the log any more.
    pub(super) fn purged(&self) -> Option<LogId<NodeId>> {
        self.shared.tail().purged
    }

    /// Drops all entries where they do not lead on from `applied`, the end of a snapshot.
    ///
    /// What a snapshot holds is agreed on; entries beside it that say otherwise at that index never were.
    pub(super) async fn fit(&self, applied: LogId<NodeId>) -> Result<(), StorageError<NodeId>> {
        let (first, last) = {
            let tail = self.shared.tail();
            (tail.purged.map_or(0, |purged| purged.index + 1), tail.last)
        };
        if applied.index < first || last.is_none_or(|last| last.index < applied.index) {
            return Ok(());
        }
        let there = self.read(applied.index, applied.index + 1, usize::MAX).await;
        let there = there.map_err(|error| read_error(&error))?;
        if there.first().is_some_and(|entry| entry.log_id == applied) {
            return Ok(());
        }
        tracing::warn!(%applied, "the raft log does not lead on from the snapshot: its entries, never agreed on, are dropped");
        self.clone().truncate(LogId::new(applied.leader_id, first)).await
    }

    /// Says, once, that the log has grown by more bytes than should be replayed at a start.
    pub(super) fn snapshot_is_due(&self) -> bool {
        let grown = &self.shared.grown;
        let due = grown.load(Ordering::Relaxed) > SNAPSHOT_BYTES;
        if due {
            grown.store(0, Ordering::Relaxed);
        }
        due
    }

    async fn submit(&self, work: Work) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let job = Job { work, done: Done::Reply(reply) };
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Reads entries of `[start, end)`, at most `budget` bytes of them but at least one.
    async fn read(&self, start: u64, end: u64, budget: usize) -> io::Result<Vec<Entry<Types>>> {
        let (start, end, young) = self.shared.tail().plan(start, end);
        let mut found = Vec::new();
        let mut spent = 0;
        if start < young {
            let shared = Arc::clone(&self.shared);
            let old = tokio::task::spawn_blocking(move || shared.read_file(start, young.min(end), budget));
            (found, spent) = old.await.map_err(io::Error::other)??;
            if spent > budget {
                return Ok(found);
            }
        }
        let tail = self.shared.tail();
        for cached in tail.entries.range(start.max(young)..end.max(young)) {
            spent += cached.1.bytes;
            if spent > budget && !found.is_empty() {
                break;
            }
            found.push(cached.1.entry.clone());
        }
        Ok(found)
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<NodeId>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).await.map_err(|error| read_error(&error))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<Types>>, StorageError<NodeId>> {
        self.read(start, end, MESSAGE_BYTES).await.map_err(|error| read_error(&error))
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<NodeId>> {
        let tail = self.shared.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last.or(tail.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError<NodeId>> {
        let bytes = encode(vote).map_err(vote_error)?;
        self.submit(Work::Vote(bytes)).await.map_err(vote_error)?;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError<NodeId>> {
        Ok(self.shared.tail().vote)
    }

    /// Remembers the commit point; it reaches the disk with the next transaction.
    ///
    /// Being late with it is safe: what it would re-apply at start is applied again once a leader
    /// says how far the log is committed.
    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<(), StorageError<NodeId>> {
        self.shared.tail().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>, StorageError<NodeId>> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            let bytes =
                encode(&entry).map_err(|error| StorageIOError::write_log_entry(entry.log_id, any(error)))?;
            self.shared.grown.fetch_add(bytes.len(), Ordering::Relaxed);
            self.shared.tail().push(entry.clone(), bytes.len());
            encoded.push((entry.log_id.index, bytes));
        }
        let job = Job { work: Work::Append(encoded), done: Done::Flushed(callback) };
        self.jobs.send(job).await.map_err(|_| StorageIOError::write_logs(any(stopped())).into())
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError<NodeId>> {
        let before = match log_id.index.checked_sub(1) {
            Some(index) => self.read(index, index + 1, usize::MAX).await,
            None => Ok(Vec::new()),
        };
        let before = before.map_err(|error| read_error(&error))?;
        {
            let mut tail = self.shared.tail();
            tail.last = before.last().map(|entry| entry.log_id).or(tail.purged);
            tail.drop_entries(log_id.index..);
        }
        let from = log_id.index;
        self.submit(Work::Truncate { from })
            .await
            .map_err(|error| StorageIOError::write_logs(any(error)).into())
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError<NodeId>> {
        {
            let mut tail = self.shared.tail();
            tail.purged = tail.purged.max(Some(log_id));
            tail.last = tail.last.max(Some(log_id));
            tail.drop_entries(..=log_id.index);
        }
        self.submit(Work::Purge { upto: log_id })
            .await
            .map_err(|error| StorageIOError::write_logs(any(error)).into())
    }
}

impl Tail {
    fn push(&mut self, entry: Entry<Types>, bytes: usize) {
        self.last = Some(entry.log_id);
        self.bytes += bytes;
        let index = entry.log_id.index;
        if let Some(old) = self.entries.insert(index, Cached { entry, bytes }) {
            self.bytes -= old.bytes;
        }
        self.shrink();
    }

    /// Forgets the oldest durable entries beyond what the cache may hold.
    fn shrink(&mut self) {
        while self.entries.len() > TAIL_ENTRIES || self.bytes > TAIL_BYTES {
            let Some(oldest) = self.entries.first_entry() else {
                return;
            };
            if *oldest.key() > self.durable {
                return;
            }
            self.bytes -= oldest.remove().bytes;
        }
    }

    fn drop_entries(&mut self, range: impl RangeBounds<u64>) {
        let bytes = &mut self.bytes;
        self.entries.retain(|index, cached| {
            let stays = !range.contains(index);
            if !stays {
                *bytes -= cached.bytes;
            }
            stays
        });
    }

    /// Clips `[start, end)` to the log and says from which index on the cache has everything.
    fn plan(&self, start: u64, end: u64) -> (u64, u64, u64) {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        let after = self.last.map_or(first, |last| last.index + 1);
        let (start, end) = (start.max(first), end.min(after));
        let young = self.entries.keys().next().copied().unwrap_or(after);
        (start, end, young)
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `[start, end)` from the file, at most `budget` bytes but at least one entry.
    fn read_file(&self, start: u64, end: u64, budget: usize) -> io::Result<(Vec<Entry<Types>>, usize)> {
        let read = || -> Result<_, redb::Error> {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref().ok_or_else(closed)?;
            let table = database.begin_read()?.open_table(LOG)?;
            let (mut entries, mut spent) = (Vec::new(), 0);
            for row in table.range(start..end)? {
                let row = row?.1;
                spent += row.value().len();
                if spent > budget && !entries.is_empty() {
                    break;
                }
                match exactly(row.value()) {
                    Ok(entry) => entries.push(entry),
                    Err(why) => return Ok(Err(why)),
                }
            }
            Ok(Ok((entries, spent)))
        };
        let entries = catch_unwind(AssertUnwindSafe(read))
            .map_err(|_| self.damaged("a page of it cannot be read"))?
            .map_err(|error| self.damaged(&error.to_string()))?;
        entries.map_err(|why| match why {
            Unread::Newer(what) => io::Error::other(StoreError::Beyond { path: self.path.clone(), what }),
            Unread::Malformed(why) => self.damaged(&why),
        })
    }

    fn damaged(&self, reason: &str) -> io::Error {
        io::Error::other(StoreError::Damaged { path: self.path.clone(), reason: reason.to_owned() })
    }

    /// Puts a group of jobs into one durable transaction.
    fn commit(&self, jobs: &[Job]) -> Result<(), redb::Error> {
        #[cfg(test)]
        if self.broken.load(Ordering::Relaxed) {
            return Err(redb::Error::Io(io::Error::from(io::ErrorKind::StorageFull)));
        }
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let mut transaction = database.as_ref().ok_or_else(closed)?.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        {
            let mut log = transaction.open_table(LOG)?;
            let mut facts = transaction.open_table(FACTS)?;
            for job in jobs {
                match &job.work {
                    Work::Append(entries) => {
                        for (index, bytes) in entries {
                            log.insert(*index, bytes.as_slice())?;
                        }
                    }
                    Work::Vote(bytes) => {
                        facts.insert(VOTE, bytes.as_slice())?;
                    }
                    Work::Truncate { from } => log.retain_in(*from.., |_, _| false)?,
                    Work::Purge { upto } => {
                        log.retain_in(..=upto.index, |_, _| false)?;
                        facts.insert(PURGED, encode_or_empty(upto).as_slice())?;
                    }
                    Work::Close => {}
                }
            }
            let committed = self.tail().committed;
            if let Some(committed) = committed {
                facts.insert(COMMITTED, encode_or_empty(&committed).as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// The writing thread: takes what has queued up, commits it as one, tells everyone.
fn write_until_closed(shared: &Shared, mut queue: mpsc::Receiver<Job>) {
    let mut failed: Option<String> = None;
    let mut group = Vec::new();
    while queue.blocking_recv_many(&mut group, GROUP) > 0 {
        if failed.is_none() {
            failed = commit_contained(shared, &group).err();
        }
        if failed.is_none() {
            note_durable(shared, &group);
        }
        let close = group.iter().any(|job| matches!(job.work, Work::Close));
        for job in group.drain(..) {
            job.done.tell(failed.as_ref());
        }
        if close {
            return;
        }
    }
    if failed.is_none() {
        // The last commit point, so that a clean restart has nothing to learn anew.
        let _ = commit_contained(shared, &[]);
    }
}

fn commit_contained(shared: &Shared, group: &[Job]) -> Result<(), String> {
    let path = shared.path.display();
    match catch_unwind(AssertUnwindSafe(|| shared.commit(group))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("cannot write the Raft log {path}: {error}")),
        Err(_) => Err(format!("cannot write the Raft log {path}: it is damaged")),
    }
}

fn note_durable(shared: &Shared, group: &[Job]) {
    let mut tail = shared.tail();
    for job in group {
        match &job.work {
            Work::Append(entries) => {
                if let Some((index, _)) = entries.last() {
                    tail.durable = *index;
                }
            }
            Work::Truncate { from } => tail.durable = tail.durable.min(from.saturating_sub(1)),
            Work::Purge { upto } => tail.durable = tail.durable.max(upto.index),
            Work::Vote(_) | Work::Close => {}
        }
    }
    tail.shrink();
}

impl Done {
    fn tell(self, failed: Option<&String>) {
        match (self, failed) {
            (Self::Flushed(callback), None) => callback.log_io_completed(Ok(())),
            (Self::Flushed(callback), Some(reason)) => {
                callback.log_io_completed(Err(io::Error::other(reason.clone())));
            }
            (Self::Reply(reply), failed) => {
                // The asker may have gone; the work is done all the same.
                let _ = reply.send(failed.map_or(Ok(()), |reason| Err(reason.clone())));
            }
        }
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

/// A log id always encodes: it is three numbers.
fn encode_or_empty(value: &LogId<NodeId>) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn closed() -> redb::Error {
    redb::Error::Io(io::Error::other("the file is closed"))
}

fn stopped() -> String {
    "the thread that writes the Raft log has ended".to_owned()
}

fn any(message: String) -> AnyError {
    AnyError::error(message)
}

fn read_error(error: &io::Error) -> StorageError<NodeId> {
    StorageIOError::read_logs(AnyError::new(error)).into()
}

fn vote_error(message: String) -> StorageError<NodeId> {
    StorageIOError::write_vote(any(message)).into()
}

/// Jobs waiting for the disk; openraft itself keeps far fewer in flight.
const QUEUE: usize = 256;
/// Jobs in one transaction.
const GROUP: usize = 256;
/// Entries kept in memory: what a follower that blinked asks for.
const TAIL_ENTRIES: usize = 1_024;
/// Bytes of entries kept in memory.
const TAIL_BYTES: usize = 8 << 20;
/// Entries in one message to a follower; a frame holds 16 MiB and one entry at most 4 MiB.
const MESSAGE_BYTES: usize = 1 << 20;
/// A snapshot is due after this many bytes of entries, even if they are few.
const SNAPSHOT_BYTES: usize = 8 << 20;
