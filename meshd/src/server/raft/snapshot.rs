//! Snapshots as files: a head line that says what is inside, then the World as JSON.
//!
//! A snapshot is written to a temporary file, synced, renamed, and the folder is synced: at every
//! moment the newest complete snapshot is the one with the highest index in its name. A snapshot
//! whose checksum does not hold is named and refused. An older one is never taken in its place:
//! the log that leads from there to here may be gone. What may take its place is [`super::heal`]'s to say.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use mesh_proto::exact::Unread;
use raft::SnapshotMeta;
use serde::{Deserialize, Serialize};

use super::NodeId;
use crate::config::RESTORE_OR_REJOIN;

type Meta = SnapshotMeta<NodeId, raft::EmptyNode>;

/// What can go wrong with the folder of snapshots.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refused: no permission, no space.
    #[error("cannot {verb} the snapshot {path}: {source}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The content is not what was written.
    #[error("the snapshot {path} is damaged: {reason}; {}", RESTORE_OR_REJOIN)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The log goes on from a snapshot that is not there.
    #[error(
        "the snapshot that the Raft log goes on from (entry {index}) is gone from {path}; {}",
        RESTORE_OR_REJOIN
    )]
    Gone {
        /// The folder.
        path: PathBuf,
        /// The last entry that is in no log any more.
        index: u64,
    },
    /// It cannot be read, and no other server gives another at the moment.
    #[error("no other server gives a snapshot in place of one that cannot be read ({tried}); {lost}")]
    NoOther {
        /// What is wrong with the one here.
        lost: Box<Self>,
        /// What the others said.
        tried: String,
    },
    /// The file is of a later format.
    #[error(
        "the snapshot {path} was written by a newer meshd (format {format}, this one knows {}): install that version or a \
         newer one; nothing was changed",
        FORMAT
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Something in it is of a later version.
    #[error(
        "the snapshot {path} was written by a newer meshd ({what}): install that version or a newer one; nothing was changed"
    )]
    Beyond {
        /// The file.
        path: PathBuf,
        /// What is not known here.
        what: String,
    },
}

impl SnapshotError {
    /// Whether the next try would meet the same: only a person can put it right.
    pub(super) fn needs_person(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::NoOther { .. })
    }

    /// How far another snapshot must reach to take the place of this one; `None` where it is no damage.
    pub(super) fn lost(&self) -> Option<u64> {
        match self {
            Self::Damaged { path, .. } => index_in(path),
            Self::Gone { index, .. } => Some(*index),
            Self::File { verb: "read", path, source } if is_of_the_disk(source) => index_in(path),
            Self::File { .. } | Self::NoOther { .. } | Self::Newer { .. } | Self::Beyond { .. } => None,
        }
    }

    /// The World could not be written as JSON: a defect, told like damage.
    pub(super) fn encoding(error: serde_json::Error) -> Self {
        failed("encode", Path::new("(new)"), io::Error::other(error))
    }

    /// The thread that was to write it has ended: a defect, told like damage.
    pub(super) fn broken_off(error: tokio::task::JoinError) -> Self {
        failed("write", Path::new("(new)"), io::Error::other(error))
    }

    /// Why the content at `path` is no World here.
    pub(super) fn of(path: &Path, reason: Unread) -> Self {
        let path = path.to_owned();
        match reason {
            Unread::Newer(what) => Self::Beyond { path, what },
            Unread::Malformed(reason) => Self::Damaged { path, reason },
        }
    }
}

/// The folder of snapshots of one server.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// A snapshot read from disk, its checksum verified.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) meta: Meta,
    pub(super) body: Vec<u8>,
}

/// The head line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    meta: Meta,
    length: u64,
    sha256: String,
}

impl Folder {
    /// Opens the folder, makes it if missing, and clears away what a crash left half written.
    pub(super) fn open(path: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(path).map_err(|error| failed("make the folder of", path, error))?;
        let folder = Self { path: path.to_owned() };
        for entry in folder.entries()? {
            if entry.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&entry).map_err(|error| failed("remove", &entry, error))?;
            }
        }
        Ok(folder)
    }

    /// Writes a snapshot durably, then removes all older ones.
    pub(super) fn write(&self, meta: &Meta, body: &[u8]) -> Result<(), SnapshotError> {
        let head =
            Head { format: FORMAT, meta: meta.clone(), length: body.len() as u64, sha256: checksum(body) };
        let path = self.path.join(file_name(meta));
        let temporary = path.with_extension("tmp");
        self.write_file(&temporary, &head, body)
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|error| {
                // A full disk is not helped by half a snapshot; the write error is the one to tell.
                let _ = fs::remove_file(&temporary);
                failed("write", &path, error)
            })?;
        self.remove_older(&path)
    }

    /// Reads the newest snapshot; `None` when there has never been one.
    ///
    /// **Errors**: [`SnapshotError::Damaged`] with the file's name when its content does not match
    /// its checksum.
    pub(super) fn newest(&self) -> Result<Option<Loaded>, SnapshotError> {
        let Some(path) = self.snapshots()?.pop() else {
            return Ok(None);
        };
        let content = fs::read(&path).map_err(|error| failed("read", &path, error))?;
        match format_of(&content) {
            Some(format) if format > FORMAT => return Err(SnapshotError::Newer { path, format }),
            _ => {}
        }
        match parse(content) {
            Ok((meta, body)) => Ok(Some(Loaded { path, meta, body })),
            Err(reason) => Err(SnapshotError::Damaged { path, reason }),
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the folder's own step")]
    fn write_file(&self, path: &Path, head: &Head, body: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        serde_json::to_writer(&mut file, head)?;
        file.write_all(b"\n")?;
        file.write_all(body)?;
        file.sync_all()
    }

    fn remove_older(&self, keep: &Path) -> Result<(), SnapshotError> {
        for path in self.snapshots()? {
            if path.as_path() < keep {
                fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// All complete snapshots, oldest first.
    fn snapshots(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut found = self.entries()?;
        found.retain(|path| path.extension().is_some_and(|extension| extension == SUFFIX));
        found.sort();
        Ok(found)
    }

    fn entries(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            fs::read_dir(&self.path)?.map(|entry| entry.map(|entry| entry.path())).collect()
        };
        list().map_err(|error| failed("list the folder of", &self.path, error))
    }
}

/// Looks whether the newest snapshot of a folder can be read, and changes nothing; returns its last entry. `None` where there
/// is no snapshot.
pub(super) fn inspect(path: &Path) -> Result<Option<u64>, SnapshotError> {
    if !path.exists() {
        return Ok(None);
    }
    let folder = Folder { path: path.to_owned() };
    Ok(folder.newest()?.map(|loaded| loaded.meta.last_log_id.map_or(0, |id| id.index)))
}

/// The format in a head, whatever else stands there.
fn format_of(content: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let end = content.iter().position(|byte| *byte == b'\n')?;
    serde_json::from_slice::<Format>(&content[..end]).ok().map(|head| head.format)
}

fn parse(mut content: Vec<u8>) -> Result<(Meta, Vec<u8>), String> {
    let Some(end) = content.iter().position(|byte| *byte == b'\n') else {
        return Err("it has no head line".to_owned());
    };
    let head: Head = serde_json::from_slice(&content[..end]).map_err(|error| format!("its head: {error}"))?;
    if head.format != FORMAT {
        return Err(format!("its format is {}, this meshd reads {FORMAT}", head.format));
    }
    content.drain(..=end);
    let body = content;
    if body.len() as u64 != head.length {
        return Err(format!("it holds {} bytes, {} were written", body.len(), head.length));
    }
    if checksum(&body) != head.sha256 {
        return Err("its checksum does not match".to_owned());
    }
    Ok((head.meta, body))
}

/// Sorts by index, then term.
fn file_name(meta: &Meta) -> String {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("world-{index:020}-{term:020}.{SUFFIX}")
}

/// The index in a name that [`file_name`] made.
fn index_in(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.split('-').nth(1)?.parse().ok()
}

/// Whether the disk cannot give the bytes back: a bad sector, a broken file system.
fn is_of_the_disk(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::UCLEAN].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn checksum(body: &[u8]) -> String {
    HEXLOWER.encode(digest(&SHA256, body).as_ref())
}

fn failed(verb: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::File { verb, path: path.to_owned(), source }
}

const SUFFIX: &str = "snapshot";
const FORMAT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use raft::{CommittedLeaderId, LogId, StoredMembership};

    fn meta(index: u64) -> Meta {
        SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(1, 1), index)),
            last_membership: StoredMembership::default(),
            snapshot_id: format!("{index}"),
        }
    }

    #[test]
    fn newest_snapshot_is_read_back_and_older_ones_are_gone() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(place.path()).expect("open");
        folder.write(&meta(9), b"nine").expect("write");
        folder.write(&meta(10), b"ten").expect("write");
        let loaded = folder.newest().expect("read").expect("one snapshot");
        assert_eq!(loaded.body, b"ten");
        assert_eq!(loaded.meta, meta(10));
        assert_eq!(folder.snapshots().expect("list").len(), 1);
    }

    #[test]
    fn changed_byte_is_refused_and_the_file_is_named() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(place.path()).expect("open");
        folder.write(&meta(3), b"{\"a\":1}").expect("write");
        let path = place.path().join(file_name(&meta(3)));
        let mut content = fs::read(&path).expect("read");
        *content.last_mut().expect("not empty") ^= 1;
        fs::write(&path, content).expect("write");
        let refusal = folder.newest().expect_err("refused").to_string();
        assert!(refusal.contains(&file_name(&meta(3))), "{refusal}");
        assert!(refusal.contains("checksum"), "{refusal}");
    }

    #[test]
    fn snapshot_of_a_newer_meshd_is_not_called_damaged() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(place.path()).expect("open");
        let later = "{\"format\":99,\"packed\":true}\nwhatever is in it";
        fs::write(place.path().join(file_name(&meta(3))), later).expect("write");
        let refusal = folder.newest().expect_err("refused").to_string();
        assert!(refusal.contains("newer meshd (format 99, this one knows 1): install"), "{refusal}");
        assert!(!refusal.contains("join"), "{refusal}");
    }

    #[test]
    fn what_another_snapshot_may_replace_is_told_from_what_it_may_not() {
        let path = place().join(file_name(&meta(7)));
        let read = |errno: rustix::io::Errno| failed("read", &path, errno.into());
        let damaged = SnapshotError::Damaged { path: path.clone(), reason: String::new() };
        assert_eq!((damaged.lost(), read(rustix::io::Errno::IO).lost()), (Some(7), Some(7)));
        assert_eq!(read(rustix::io::Errno::ACCESS).lost(), None);
        assert_eq!(SnapshotError::Newer { path: path.clone(), format: 9 }.lost(), None);
        let unnamed = SnapshotError::Damaged { path: place().join("a.snapshot"), reason: String::new() };
        assert_eq!(unnamed.lost(), None, "how far it reached is not known");
    }

    fn place() -> PathBuf {
        PathBuf::from("/var/lib/meshd/server/snapshots")
    }

    #[test]
    fn truncated_snapshot_is_refused() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(place.path()).expect("open");
        folder.write(&meta(3), b"0123456789").expect("write");
        let path = place.path().join(file_name(&meta(3)));
        let content = fs::read(&path).expect("read");
        fs::write(&path, &content[..content.len() - 4]).expect("write");
        let refusal = folder.newest().expect_err("refused").to_string();
        assert!(refusal.contains("6 bytes, 10 were written"), "{refusal}");
    }

    #[test]
    fn half_written_snapshot_of_a_crash_is_cleared_away() {
        let place = tempfile::tempdir().expect("a temporary folder");
        fs::write(place.path().join("world-1.tmp"), b"half").expect("write");
        let folder = Folder::open(place.path()).expect("open");
        assert!(folder.newest().expect("read").is_none());
        assert!(!place.path().join("world-1.tmp").exists());
    }
}
