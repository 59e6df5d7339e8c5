//! Certificates, keys, roots and revocation lists of others than the mesh, in files: what a rule names, read and kept.
//!
//! A secret is a folder with `tls.crt`, `tls.key`, `ca.crt` and `ca.crl`, those that it needs. Files are looked at again at
//! most once a second, on a thread that may wait for the disk; what cannot be used leaves what was read before in force.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::secret::is_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::provider;

/// Why what a rule names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file is missing or does not hold what it should.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why it will not do.
        why: String,
    },
    /// The name of a secret is no name of a folder.
    #[error("{0:?} is no name of a secret: letters, digits, '-', '_' and '.' make one")]
    SecretName(String),
}

impl MaterialError {
    pub(super) fn file(path: &Path, why: impl Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }
}

/// Finds the folder of a secret: its name leads nowhere else.
///
/// # Errors
/// The name is none.
pub fn folder_of(secrets: &Path, name: &str) -> Result<PathBuf, MaterialError> {
    if is_name(name) { Ok(secrets.join(name)) } else { Err(MaterialError::SecretName(name.to_owned())) }
}

/// The files of a rule; what it does not need is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    /// Chains, and the key of each.
    pub(super) pairs: Vec<(PathBuf, PathBuf)>,
    /// Places of the roots, of which the first that is there counts.
    pub(super) roots: Vec<PathBuf>,
    /// Lists of certificates taken back.
    pub(super) revoked: Option<PathBuf>,
    /// Such lists, if they are there.
    pub(super) perhaps_revoked: Option<PathBuf>,
}

/// What stands in them.
#[derive(Debug, Default)]
pub(super) struct Material {
    pub(super) pairs: Vec<Arc<CertifiedKey>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
}

/// Tells whether a file is still the same: change of content and inode in nanoseconds, length, inode.
type Stamp = Option<(i128, i128, u64, u64)>;

impl Files {
    /// Reads all of them; the thread waits for the disk.
    pub(super) fn read(&self) -> Result<Material, MaterialError> {
        let mut material = Material::default();
        for (chain, key) in &self.pairs {
            material.pairs.push(pair(chain, key)?);
        }
        if let Some(path) = self.roots.iter().find(|path| path.exists()).or(self.roots.first()) {
            material.roots = certificates(path)?;
        }
        let perhaps = self.perhaps_revoked.iter().filter(|path| path.exists());
        for path in self.revoked.iter().chain(perhaps) {
            material.revoked.extend(lists(path)?);
        }
        Ok(material)
    }

    fn stamps(&self) -> Vec<Stamp> {
        let pairs = self.pairs.iter().flat_map(|(chain, key)| [chain, key]);
        let stamp = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            let content = nanos(found.mtime(), found.mtime_nsec());
            Some((content, nanos(found.ctime(), found.ctime_nsec()), found.len(), found.ino()))
        };
        pairs.chain(&self.roots).chain(&self.revoked).chain(&self.perhaps_revoked).map(stamp).collect()
    }
}

/// What was made of the files of each rule, until they change. Each worker has its own.
#[derive(Debug)]
pub(super) struct Shelf<K, V>(RefCell<HashMap<K, Kept<V>>>);

#[derive(Debug)]
struct Kept<V> {
    made: Arc<V>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash + Clone, V> Shelf<K, V> {
    /// Returns what `make` makes of a rule's files; of what it made before, if nothing has changed.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// The files cannot be used, and none before them were.
    pub(super) async fn get<E: Display + From<MaterialError>>(
        &self,
        key: &K,
        files: impl FnOnce() -> Result<Files, MaterialError>,
        make: impl FnOnce(Material) -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        let fresh = |kept: &&Kept<V>| kept.looked.elapsed() < LOOK_AGAIN;
        if let Some(kept) = self.0.borrow().get(key).filter(fresh) {
            return Ok(kept.made.clone());
        }
        let files = files()?;
        let looked = Instant::now();
        // Until this look is over, others take what there is.
        let before = self.0.borrow_mut().get_mut(key).map(|kept| {
            kept.looked = looked;
            kept.stamps.clone()
        });
        let look = move || {
            // Before reading: what changes meanwhile is seen the next time.
            let stamps = files.stamps();
            let changed = before.is_none_or(|before| before != stamps);
            (stamps, changed.then(|| files.read()))
        };
        let (stamps, read) = tokio::task::spawn_blocking(look).await.map_err(|_| stopped())?;
        let mut all = self.0.borrow_mut();
        let made = match (read.map(|read| read.map_err(E::from).and_then(make)), all.get(key)) {
            (None, Some(kept)) => return Ok(kept.made.clone()),
            // Forgotten meanwhile.
            (None, None) => return Err(stopped().into()),
            (Some(Ok(made)), _) => Arc::new(made),
            (Some(Err(error)), None) => return Err(error),
            (Some(Err(error)), Some(kept)) => {
                tracing::warn!(%error, "new TLS files cannot be used: those read before stay in force");
                kept.made.clone()
            }
        };
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(key.clone(), Kept { made: made.clone(), stamps, looked });
        Ok(made)
    }
}

fn stopped() -> MaterialError {
    MaterialError::file(Path::new(""), "was not read: this meshd is busy or stopping")
}

/// Reads a chain and its key, which must go together.
pub(super) fn pair(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, MaterialError> {
    let certificates = certificates(chain)?;
    let content = zeroize::Zeroizing::new(content(key)?);
    let parsed = PrivateKeyDer::from_pem_slice(&content).map_err(|error| MaterialError::file(key, error))?;
    let pair = CertifiedKey::from_der(certificates, parsed, provider());
    pair.map(Arc::new).map_err(|error| MaterialError::file(key, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let found = CertificateDer::pem_slice_iter(&content(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| MaterialError::file(path, error))?;
    if found.is_empty() { Err(MaterialError::file(path, "holds no certificate")) } else { Ok(found) }
}

fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, MaterialError> {
    let found = CertificateRevocationListDer::pem_slice_iter(&content(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| MaterialError::file(path, error))?;
    if found.is_empty() { Err(MaterialError::file(path, "holds no revocation list")) } else { Ok(found) }
}

fn content(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let read = || {
        if std::fs::metadata(path)?.len() > MOST_BYTES {
            return Err(io::Error::other(format!("is larger than {MOST_BYTES} bytes")));
        }
        std::fs::read(path)
    };
    read().map_err(|error| MaterialError::file(path, error))
}

/// How often files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A chain, a list of revoked certificates, a system's roots: all are far smaller.
const MOST_BYTES: u64 = 4 << 20;
/// Rules whose files are remembered; with more all are read anew.
const MOST_KEPT: usize = 4_096;
