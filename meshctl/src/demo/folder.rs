//! Where a demo keeps its files, and how a second terminal finds them.
//!
//! One folder of the user's own (`$XDG_RUNTIME_DIR/meshd-demo`, else `/tmp/meshd-demo-UID`, mode 0700) holds a folder
//! for each running demo and the link `current` to the newest. A demo holds a lock on its folder for as long as it
//! runs; folders without a holder were left by a demo that was killed, and the next one removes them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure, Result, plain};

/// The hosts of the demo.
pub(crate) const HOSTS: [&str; 3] = ["vm1", "vm2", "vm3"];
/// The longest base path: a unix socket's path has at most 107 bytes, and `/run-PID-XXXXXXXX/vm1.sock` must fit.
const MAX_BASE: usize = 70;

/// The folder of one running demo; dropping it removes all of it.
pub(crate) struct Folder {
    base: PathBuf,
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder, removes what killed demos left, and points `current` to it.
    pub(crate) fn create() -> Result<Self> {
        let base = bases().remove(0);
        Self::create_in(base)
    }

    fn create_in(base: PathBuf) -> Result<Self> {
        own(&base)?;
        sweep(&base);
        let path = base.join(format!("run-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        let unwritable = |error: io::Error| unwritable(&path, &error);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(unwritable)?;
        let lock = File::create(path.join("lock")).map_err(unwritable)?;
        lock.try_lock().map_err(|error| unwritable(error.into()))?;
        let folder = Self { base, path, _lock: lock };
        folder.point_here().map_err(|error| self::unwritable(&folder.path, &error))?;
        Ok(folder)
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The unix socket of a host.
    pub(crate) fn socket(&self, host: &str) -> PathBuf {
        self.path.join(format!("{host}.sock"))
    }

    /// The folder of a host: its data, configuration and log.
    pub(crate) fn host(&self, host: &str) -> PathBuf {
        self.path.join(host)
    }

    /// A link is replaced whole, so that no reader sees a half.
    fn point_here(&self) -> io::Result<()> {
        let new = self.path.join("current");
        symlink(&self.path, &new)?;
        fs::rename(&new, self.base.join("current"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let link = self.base.join("current");
        if fs::read_link(&link).is_ok_and(|target| target == self.path) {
            let _ = fs::remove_file(&link);
        }
        remove(&self.path);
        // Goes only if no other demo is in it.
        let _ = fs::remove_dir(&self.base);
    }
}

/// The folder of the running demo, if there is one.
pub(crate) fn current() -> Option<PathBuf> {
    bases().into_iter().find_map(|base| current_in(&base))
}

fn current_in(base: &Path) -> Option<PathBuf> {
    let own_uid = rustix::process::getuid().as_raw();
    let is_own = fs::symlink_metadata(base).is_ok_and(|about| about.is_dir() && about.uid() == own_uid);
    let path = is_own.then(|| fs::read_link(base.join("current")).ok()).flatten()?;
    held(&path).then_some(path)
}

/// Whether a demo that runs holds the folder.
fn held(path: &Path) -> bool {
    let lock = OpenOptions::new().write(true).open(path.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// The folders to use, the preferred one first.
fn bases() -> Vec<PathBuf> {
    let mut bases = Vec::new();
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
        && runtime.is_dir()
        && runtime.as_os_str().len() < MAX_BASE - "/meshd-demo".len()
    {
        bases.push(runtime.join("meshd-demo"));
    }
    // Not $TMPDIR: the second terminal may have another.
    bases.push(PathBuf::from(format!("/tmp/meshd-demo-{}", rustix::process::getuid().as_raw())));
    bases
}

/// Makes the user's folder, or makes sure that it is the user's and nobody else's.
fn own(base: &Path) -> Result {
    match fs::DirBuilder::new().mode(0o700).create(base) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unwritable(base, &error)),
    }
    let about = fs::symlink_metadata(base).map_err(|error| unwritable(base, &error))?;
    let own_uid = rustix::process::getuid().as_raw();
    if about.is_dir() && about.uid() == own_uid && about.mode() & 0o777 == 0o700 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Unreadable,
        format!(
            "{}: is not a folder that only you can enter; remove it and start the demo again",
            base.display()
        ),
    ))
}

fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_run = entry.file_name().to_string_lossy().starts_with("run-");
        if is_run && !held(&path) {
            remove(&path);
        }
    }
}

/// Removes a folder. A process killed a moment ago may still add a file, so there are a few tries.
fn remove(path: &Path) {
    for _ in 0..5 {
        match fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Unreadable,
        format!("{}: {}; the demo needs a folder it can write to", path.display(), plain(error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_demo_is_found_and_leaves_nothing_behind() {
        let home = tempfile::tempdir().expect("folder");
        let base = home.path().join("meshd-demo");
        let folder = Folder::create_in(base.clone()).expect("created");
        assert_eq!(fs::metadata(&base).expect("there").mode() & 0o777, 0o700);
        assert_eq!(current_in(&base).as_deref(), Some(folder.path()));

        drop(folder);

        assert!(!base.exists());
    }

    #[test]
    fn what_a_killed_demo_left_is_not_current_and_is_swept() {
        let home = tempfile::tempdir().expect("folder");
        let base = home.path().join("meshd-demo");
        let dead = base.join("run-1-dead");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dead).expect("made");
        File::create(dead.join("lock")).expect("made");
        symlink(&dead, base.join("current")).expect("linked");
        assert_eq!(current_in(&base), None);

        let folder = Folder::create_in(base.clone()).expect("created");

        assert!(!dead.exists());
        assert_eq!(current_in(&base).as_deref(), Some(folder.path()));
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let home = tempfile::tempdir().expect("folder");
        let base = home.path().join("meshd-demo");
        fs::DirBuilder::new().mode(0o755).create(&base).expect("made");

        let failure = Folder::create_in(base).err().expect("refused");

        assert_eq!(failure.exit, Exit::Unreadable);
    }
}
