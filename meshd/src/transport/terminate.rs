//! TLS of visitors from outside the mesh: what a gateway shows them and what it asks of them.
//!
//! Certificates come from secrets of this host (folders with `tls.crt`, `tls.key`, `ca.crt`) or from files named by the
//! rule. They are looked at again at most once a second when a visitor comes; changed ones are for new handshakes, and
//! ones that cannot be used leave those before in force.
//!
//! Source: Istio `ServerTLSSettings`, `BuildListenerTLSContext`; its names of secrets (`NAME-cacert`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::plan::{Credential, Roots, ServerTls};
use mesh_proto::resource::{ServerTlsMode, TlsProtocol};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use super::provider;

mod visitor;

pub use visitor::Unwelcome;

/// Why visitors cannot be shown a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TerminateError {
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
    /// Certificates, roots, versions and ciphers do not go together.
    #[error("{0}")]
    Settings(String),
}

/// What was made of a rule.
#[derive(Debug)]
pub struct Terminated {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    settings: ServerTls,
}

impl Terminated {
    /// Tells whether a visitor who proved its certificate may come in.
    ///
    /// # Errors
    /// Its certificate has none of the names or hashes asked for.
    pub fn admit(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Unwelcome> {
        visitor::admit(&self.settings, chain)
    }
}

/// Makes configurations of rules and keeps them. Each worker has its own.
#[derive(Debug)]
pub struct Terminator {
    secrets: PathBuf,
    kept: RefCell<HashMap<Asked, Kept>>,
}

/// A rule, and the protocols of ALPN.
type Asked = (ServerTls, &'static [&'static [u8]]);

#[derive(Debug)]
struct Kept {
    made: Arc<Terminated>,
    stamps: Vec<Stamp>,
    looked: Instant,
}

/// Tells whether a file is still the same: change of content and inode in nanoseconds, length, inode.
type Stamp = Option<(i64, i64, u64, u64)>;

impl Terminator {
    /// Secrets are folders of `secrets`.
    pub fn new(secrets: PathBuf) -> Self {
        Self { secrets, kept: RefCell::default() }
    }

    /// Returns what visitors are shown under a rule; `protocols` are those of ALPN, the preferred first.
    ///
    /// Reads a few small files when they have changed: the thread waits for the disk.
    ///
    /// # Errors
    /// The files cannot be used, and none before them were.
    pub fn get(
        &self,
        settings: &ServerTls,
        protocols: &'static [&'static [u8]],
    ) -> Result<Arc<Terminated>, TerminateError> {
        let key = (settings.clone(), protocols);
        let fresh = |kept: &&Kept| kept.looked.elapsed() < LOOK_AGAIN;
        if let Some(kept) = self.kept.borrow().get(&key).filter(fresh) {
            return Ok(kept.made.clone());
        }
        let files = Files::of(settings, &self.secrets)?;
        // Before reading: what changes meanwhile is seen the next time.
        let (stamps, looked) = (files.stamps(), Instant::now());
        let mut all = self.kept.borrow_mut();
        if let Some(kept) = all.get_mut(&key).filter(|kept| kept.stamps == stamps) {
            kept.looked = looked;
            return Ok(kept.made.clone());
        }
        let made = match (configure(settings, protocols, &files), all.get(&key)) {
            (Ok(config), _) => Arc::new(Terminated { config, settings: settings.clone() }),
            (Err(error), None) => return Err(error),
            (Err(error), Some(kept)) => {
                tracing::warn!(%error, "new certificates of a gateway cannot be used: those before stay in force");
                kept.made.clone()
            }
        };
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(key, Kept { made: made.clone(), stamps, looked });
        Ok(made)
    }
}

/// Where everything is.
struct Files {
    pairs: Vec<(PathBuf, PathBuf)>,
    roots: Option<PathBuf>,
    revoked: Option<PathBuf>,
}

impl Files {
    fn of(settings: &ServerTls, secrets: &Path) -> Result<Self, TerminateError> {
        let folder = |name: &str| secret_name(name).map(|name| secrets.join(name));
        let pair = |one: &Credential| match one {
            Credential::Secret(name) => {
                folder(name).map(|folder| (folder.join("tls.crt"), folder.join("tls.key")))
            }
            Credential::Files { certificate, key } => Ok((certificate.into(), key.into())),
        };
        let asks = settings.mode != ServerTlsMode::Simple;
        let roots = match (&settings.roots, settings.certificates.first()) {
            _ if !asks => None,
            (Some(Roots::File(path)), _) => Some(path.into()),
            (Some(Roots::Secret(name)), _) => Some(folder(name)?.join("ca.crt")),
            (None, Some(Credential::Secret(name))) => {
                let (with, beside) =
                    (folder(name)?.join("ca.crt"), folder(&format!("{name}-cacert"))?.join("ca.crt"));
                Some(if with.exists() || !beside.exists() { with } else { beside })
            }
            (None, _) => {
                return Err(TerminateError::Settings("there are no roots for visitors' certificates".into()));
            }
        };
        let revoked = (asks && !settings.revoked.is_empty()).then(|| settings.revoked.as_str().into());
        Ok(Self { pairs: settings.certificates.iter().map(pair).collect::<Result<_, _>>()?, roots, revoked })
    }

    fn stamps(&self) -> Vec<Stamp> {
        let pairs = self.pairs.iter().flat_map(|(chain, key)| [chain, key]);
        let stamp = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            let nanos = |seconds: i64, nanos: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
            let changed = nanos(found.mtime(), found.mtime_nsec());
            Some((changed, nanos(found.ctime(), found.ctime_nsec()), found.len(), found.ino()))
        };
        pairs.chain(&self.roots).chain(&self.revoked).map(stamp).collect()
    }
}

fn configure(
    settings: &ServerTls,
    protocols: &[&[u8]],
    files: &Files,
) -> Result<Arc<ServerConfig>, TerminateError> {
    let pairs = files.pairs.iter().map(|(chain, key)| pair(chain, key)).collect::<Result<Vec<_>, _>>()?;
    let wrong = |error: &dyn std::fmt::Display| TerminateError::Settings(error.to_string());
    let provider = Arc::new(with_ciphers(&settings.ciphers));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(settings))
        .map_err(|error| wrong(&error))?;
    let builder = match &files.roots {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut store = RootCertStore::empty();
            for root in certificates(path)? {
                store.add(root).map_err(|error| file(path, error))?;
            }
            let revoked = files.revoked.as_deref().map(lists).transpose()?.unwrap_or_default();
            let checks =
                WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).with_crls(revoked);
            let checks = match settings.mode {
                ServerTlsMode::OptionalMutual => checks.allow_unauthenticated(),
                _ => checks,
            };
            builder.with_client_cert_verifier(checks.build().map_err(|error| wrong(&error))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Pairs(pairs)));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Certificates of several kinds of key: the first that the visitor's algorithms fit.
#[derive(Debug)]
struct Pairs(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Pairs {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        self.0.iter().find(fits).or(self.0.first()).cloned()
    }
}

/// The ciphers of TLS 1.2 that a rule names; those of TLS 1.3 are always there, as in Envoy.
fn with_ciphers(names: &[String]) -> CryptoProvider {
    let mut provider = CryptoProvider::clone(provider());
    if !names.is_empty() {
        let is_named = |suite: &SupportedCipherSuite| {
            CIPHERS
                .iter()
                .any(|(name, own)| *own == suite.suite() && names.iter().any(|wanted| wanted == name))
        };
        provider.cipher_suites.retain(|suite| suite.tls13().is_some() || is_named(suite));
    }
    provider
}

/// OpenSSL's names of what TLS 1.2 is spoken with here. Source: Istio `security.ValidCipherSuites`, which has more.
pub const CIPHERS: [(&str, rustls::CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", rustls::CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-CHACHA20-POLY1305", rustls::CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

fn versions(settings: &ServerTls) -> Vec<&'static SupportedProtocolVersion> {
    let mut versions: Vec<&'static SupportedProtocolVersion> = Vec::new();
    if settings.newest != TlsProtocol::V1_2 {
        versions.push(&rustls::version::TLS13);
    }
    if settings.oldest != TlsProtocol::V1_3 {
        versions.push(&rustls::version::TLS12);
    }
    versions
}

fn pair(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TerminateError> {
    let certificates = certificates(chain)?;
    let parsed = PrivateKeyDer::from_pem_slice(&content(key)?).map_err(|error| file(key, error))?;
    let pair = CertifiedKey::from_der(certificates, parsed, provider());
    pair.map(Arc::new).map_err(|error| file(key, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TerminateError> {
    let found = CertificateDer::pem_slice_iter(&content(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| file(path, error))?;
    if found.is_empty() { Err(file(path, "holds no certificate")) } else { Ok(found) }
}

fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TerminateError> {
    let found = CertificateRevocationListDer::pem_slice_iter(&content(path)?).collect::<Result<Vec<_>, _>>();
    found.map_err(|error| file(path, error))
}

fn content(path: &Path) -> Result<Vec<u8>, TerminateError> {
    let read = || {
        if std::fs::metadata(path)?.len() > MOST_BYTES {
            return Err(io::Error::other(format!("is larger than {MOST_BYTES} bytes")));
        }
        std::fs::read(path)
    };
    read().map_err(|error| file(path, error))
}

fn file(path: &Path, why: impl std::fmt::Display) -> TerminateError {
    TerminateError::File { path: path.to_owned(), why: why.to_string() }
}

/// A secret is one folder: its name leads nowhere else.
fn secret_name(name: &str) -> Result<&str, TerminateError> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_sound = !name.is_empty() && !name.starts_with('.') && name.bytes().all(sound);
    is_sound.then_some(name).ok_or_else(|| TerminateError::SecretName(name.to_owned()))
}

/// How often files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A chain of certificates or a list of revoked ones is far smaller.
const MOST_BYTES: u64 = 4 << 20;
/// Rules of gateways, far more than any host has.
const MOST_KEPT: usize = 4_096;
