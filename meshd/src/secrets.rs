//! The secrets of this host: certificates and keys that rules name by `credentialName`, each a folder of files.
//!
//! `meshctl secret` and people with an editor write them; this checks what `meshctl` brings before anything is written, and
//! puts it there whole or not at all. Who reads them looks at the files itself ([`crate::transport::material`]), so that
//! both ways work alike. Keys never leave: what is told of a secret is its certificate.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[cfg(feature = "acme")]
use mesh_core::identity::lifetime::Validity;
use mesh_proto::secret::{NewSecret, Replaces, SecretView};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use crate::transport::folder_of;

#[cfg(feature = "acme")]
pub mod acme;
mod facts;
mod upkeep;

use facts::Facts;
pub use upkeep::{Upkeep, Upkeeps, Wish};

/// Why a secret is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its name is none.
    #[error(
        "{0:?} is no name of a secret: letters, digits, '-', '_' and '.' make one, and it begins with no '.'"
    )]
    Name(String),
    /// What it holds will not do.
    #[error("{0}")]
    Content(String),
    /// One of its name is there.
    #[error("a secret {0} is there already: `meshctl secret rotate {0}` replaces what is in it")]
    Taken(String),
    /// None of its name is there.
    #[error("there is no secret {0} on this host: `meshctl secret list` shows those there are")]
    Missing(String),
    /// The kernel refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// What was being written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The folder of all secrets of this host.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// Secrets are folders of this one, which may not be there yet.
    pub fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Puts a secret in, whole or not at all; returns what its owner should know. The thread waits for the disk.
    ///
    /// # Errors
    /// It would not work: key and certificate do not go together, the chain is out of order, it has expired.
    pub fn put(&self, new: &NewSecret, now: SystemTime) -> Result<Vec<String>, SecretError> {
        let folder = self.folder(&new.name)?;
        let there = folder.is_dir().then(|| read(&folder));
        let mut files = match (new.replaces, &there) {
            (Replaces::Another, None) => return Err(SecretError::Missing(new.name.clone())),
            (Replaces::Another, Some(there)) => there.clone(),
            (Replaces::Nothing, _) => Files::new(),
        };
        for (name, content) in &new.files {
            if !FILES.contains(&name.as_str()) {
                let text = format!("a secret has no file {name:?}: it has {}", FILES.join(", "));
                return Err(SecretError::Content(text));
            }
            files.insert(name.clone(), Zeroizing::new(content.0.clone()));
        }
        let facts = Facts::of(&files, now).map_err(SecretError::Content)?;
        // The very same is no conflict: a caller whose answer was lost asks twice.
        if new.replaces == Replaces::Nothing && there.is_some_and(|there| there != files) {
            return Err(SecretError::Taken(new.name.clone()));
        }
        let failed = |source| SecretError::Io { path: folder.clone(), source };
        self.write(&new.name, &files).map_err(failed)?;
        Ok(facts.warnings)
    }

    /// Removes a secret. The thread waits for the disk.
    ///
    /// # Errors
    /// It is not there, or cannot be removed.
    pub fn delete(&self, name: &str) -> Result<(), SecretError> {
        let folder = self.folder(name)?;
        if !folder.is_dir() {
            return Err(SecretError::Missing(name.to_owned()));
        }
        let failed = |source| SecretError::Io { path: folder.clone(), source };
        let gone = self.0.join(format!(".{name}.gone"));
        let remove = || {
            remove_if_there(&gone)?;
            fs::rename(&folder, &gone)?;
            fs::remove_dir_all(&gone)
        };
        remove().map_err(failed)
    }

    /// Returns all secrets, in order of name, without their keys. The thread waits for the disk.
    pub fn list(&self, now: SystemTime) -> Vec<SecretView> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| self.folder(name).is_ok()).collect();
        names.sort();
        names.into_iter().map(|name| self.view(name, now)).collect()
    }

    /// Returns the certificate of a secret; `None`: there is none that works now. The thread waits for the disk.
    #[cfg(feature = "acme")]
    fn held(&self, name: &str, now: SystemTime) -> Option<Held> {
        let facts = Facts::of(&read(&self.folder(name).ok()?), now).ok()?;
        let (not_before, not_after) = facts.valid?;
        let digits = facts.sha256.get(..8)?;
        Some(Held {
            names: facts.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            validity: Validity { not_before, not_after },
            chance: u32::from_str_radix(digits, 16).ok()?,
        })
    }

    #[cfg(feature = "acme")]
    fn has(&self, name: &str) -> bool {
        self.folder(name).is_ok_and(|folder| folder.is_dir())
    }

    fn view(&self, name: String, now: SystemTime) -> SecretView {
        let folder = self.0.join(&name);
        let files = read(&folder);
        let known = files.keys().cloned().collect();
        match Facts::of(&files, now) {
            Ok(mut facts) => {
                facts.warnings.extend(loose(&folder.join("tls.key")));
                SecretView { name, files: known, ..facts.into_view() }
            }
            Err(why) => SecretView { name, files: known, problem: Some(why), ..SecretView::default() },
        }
    }

    fn folder(&self, name: &str) -> Result<PathBuf, SecretError> {
        folder_of(&self.0, name).map_err(|_| SecretError::Name(name.to_owned()))
    }

    /// Whoever reads meanwhile sees the old files or the new ones; a key beside another's certificate is not used.
    fn write(&self, name: &str, files: &Files) -> io::Result<()> {
        let (folder, draft) = (self.0.join(name), self.0.join(format!(".{name}.new")));
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        remove_if_there(&draft)?;
        DirBuilder::new().mode(0o700).create(&draft)?;
        for (name, content) in files {
            let path = draft.join(name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
        }
        File::open(&draft)?.sync_all()?;
        if folder.exists() {
            exchange(&draft, &folder)?;
            fs::remove_dir_all(&draft)?;
        } else {
            fs::rename(&draft, &folder)?;
        }
        File::open(&self.0)?.sync_all()
    }
}

/// The certificate of a secret.
#[cfg(feature = "acme")]
struct Held {
    /// In lower case.
    names: Vec<String>,
    validity: Validity,
    /// A number that stays the same for as long as it does.
    chance: u32,
}

/// What stands in a secret's files; wiped when it is dropped.
type Files = BTreeMap<String, Zeroizing<String>>;

/// Reads the files that are there and are text; a file that is too large is none.
fn read(folder: &Path) -> Files {
    let one = |name: &&str| {
        let path = folder.join(name);
        let fits = fs::metadata(&path).is_ok_and(|facts| facts.is_file() && facts.len() <= MOST_BYTES);
        let content = fits.then(|| fs::read_to_string(&path).ok()).flatten()?;
        Some(((*name).to_owned(), Zeroizing::new(content)))
    };
    FILES.iter().filter_map(one).collect()
}

/// What to say of a key that others may read; it was not we who wrote it.
fn loose(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| format!("tls.key may be read by others (mode {mode:04o}): chmod 600 it"))
}

/// Lets two folders change places at once; where the file system cannot, one after the other.
fn exchange(draft: &Path, folder: &Path) -> io::Result<()> {
    if renameat_with(CWD, draft, CWD, folder, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    let old = draft.with_extension("old");
    remove_if_there(&old)?;
    fs::rename(folder, &old)?;
    fs::rename(draft, folder)?;
    fs::rename(&old, draft)
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a secret may hold.
const FILES: [&str; 4] = ["tls.crt", "tls.key", "ca.crt", "ca.crl"];
/// As for who reads them.
const MOST_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests;
