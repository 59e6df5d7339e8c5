//! Secret files in the data folder: mode 0600, replaced whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::RESTORE_OR_REJOIN;
use crate::transport::Secret;

/// Why a secret file cannot be used; names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Others than the owner may read or write the file.
    #[error(
        "{} may be read or changed by others (mode {mode:04o}): run \"chmod 600 {}\" and ask who did so, \
         since the key may be known",
        .path.display(), .path.display()
    )]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no regular file or larger than [`MAX_FILE_BYTES`].
    #[error("{} is not a file that meshd wrote: move it away", .path.display())]
    Strange {
        /// The file.
        path: PathBuf,
    },
    /// The content cannot be read.
    #[error("{} is damaged ({why}); {RESTORE}", .path.display(), RESTORE = RESTORE_OR_REJOIN)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// One of two files that belong together is missing.
    #[error(
        "{} is missing while the other key of this host is there; {RESTORE}",
        .path.display(), RESTORE = RESTORE_OR_REJOIN
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {doing} {}: {source}{}", .path.display(), hint(.source))]
    Io {
        /// What was being done: read, write, list.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the next try would meet the same: only a person can put it right.
    pub fn needs_person(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }

    pub(super) fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.to_string() }
    }
}

/// Reads a secret file; `None` where there is none.
///
/// Fails where others may read it, before a byte of it is used.
pub fn read(path: &Path) -> Result<Option<Secret>, FileError> {
    let io = |source| FileError::Io { doing: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    let facts = file.metadata().map_err(io)?;
    let mode = facts.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Loose { path: path.to_owned(), mode });
    }
    if !facts.is_file() || facts.len() > MAX_FILE_BYTES {
        return Err(FileError::Strange { path: path.to_owned() });
    }
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let mut bytes = Vec::with_capacity(usize::try_from(facts.len()).unwrap_or(0) + 1);
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(Secret::new(bytes)))
}

/// Writes a secret file, mode 0600: after a crash the old content or the new one is there, never a part.
pub fn write(path: &Path, content: &Secret) -> Result<(), FileError> {
    let attempt = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = folder.join(format!(".{name}.new"));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content.reveal())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|source| FileError::Io { doing: "write", path: path.to_owned(), source })
}

/// Makes a folder for secrets, mode 0700, unless it is there.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| FileError::Io {
        doing: "make the folder",
        path: path.to_owned(),
        source,
    })
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError::Io { doing: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run meshd as the user that owns the data folder",
        io::ErrorKind::StorageFull => "; make room on that disk",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a data folder on a writable disk",
        _ => "",
    }
}

/// The largest secret file read; a key with a chain of four has about 4 KiB.
pub const MAX_FILE_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests;
