//! TLS towards servers outside the mesh: their own certificates, roots and names, as a `DestinationRule` says.
//!
//! Files are read when a connection is opened, and looked at again at most once a second: a certificate that was
//! renewed on disk is shown from the next handshake on, without a restart. What cannot be read leaves what was read
//! before in force. Unlike hops ([`super::tls`]) TLS 1.2 is spoken too; sessions are not resumed, so that every
//! connection sees the certificate checked.
//!
//! Source: Istio `ClientTLSSettings`; Envoy's `UpstreamTlsContext`, which speaks 1.2 and 1.3.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::plan::{TlsMaterial, TlsOrigination};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::server_check::{Checks, ServerCheck};
use super::tls::{ClientKey, provider};

/// Why TLS could not begin.
#[derive(Debug, thiserror::Error)]
pub enum OriginateError {
    /// A file is not there, or not what it should be.
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
    /// The host has no roots of its own.
    #[error("this host has no file of root certificates; name one with caCertificates")]
    NoSystemRoots,
    /// The server's name cannot be asked for.
    #[error("{0:?} is no name of a server")]
    ServerName(String),
    /// The handshake failed, or the server is not who it should be.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

/// Begins TLS towards servers outside the mesh. Each worker has its own.
#[derive(Debug)]
pub struct Originator {
    secrets: PathBuf,
    kept: RefCell<HashMap<Asked, Kept>>,
}

/// What a rule asks for, and what is spoken afterwards.
type Asked = (TlsOrigination, Option<&'static [u8]>);

/// What was made of files, and how they looked then.
#[derive(Debug)]
struct Kept {
    config: Arc<ClientConfig>,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

/// Tells whether a file is still the same: times of content and inode in nanoseconds, length, inode.
type Stamp = (i128, i128, u64, u64);

impl Originator {
    /// Secrets are folders of `secrets`, each with `tls.crt`, `tls.key` and `ca.crt`.
    pub fn new(secrets: PathBuf) -> Self {
        Self { secrets, kept: RefCell::default() }
    }

    /// Shakes hands over a connection. `name` is whom to ask for; without one nobody is named.
    ///
    /// Sets no time limit of its own. Cancel safe: a dropped future closes the connection.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        settings: &TlsOrigination,
        protocol: Option<&'static [u8]>,
        name: Option<&str>,
        stream: S,
    ) -> Result<TlsStream<S>, OriginateError> {
        let config = self.config(settings, protocol).await?;
        let server = match name {
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| OriginateError::ServerName(name.to_owned()))?,
            // An address is not asked for; with nothing to compare it with, no certificate fits it.
            None => ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        };
        TlsConnector::from(config).connect(server, stream).await.map_err(OriginateError::Handshake)
    }

    /// Returns the configuration for a rule, made anew when its files have changed.
    async fn config(
        &self,
        settings: &TlsOrigination,
        protocol: Option<&'static [u8]>,
    ) -> Result<Arc<ClientConfig>, OriginateError> {
        let key = (settings.clone(), protocol);
        let fresh = |kept: &Kept| kept.looked.elapsed() < LOOK_EVERY;
        if let Some(kept) = self.kept.borrow().get(&key).filter(|kept| fresh(kept)) {
            return Ok(kept.config.clone());
        }
        let files = Files::of(settings, &self.secrets)?;
        // Before reading: what changes meanwhile is seen the next time.
        let stamps = files.stamps().await;
        let looked = Instant::now();
        if let Some(kept) = self.kept.borrow_mut().get_mut(&key)
            && kept.stamps == stamps
        {
            kept.looked = looked;
            return Ok(kept.config.clone());
        }
        let made = files.read().await.and_then(|read| configure(settings, protocol, read));
        let mut all = self.kept.borrow_mut();
        let config = match (made, all.get(&key)) {
            (Ok(config), _) => config,
            (Err(error), Some(kept)) => {
                tracing::warn!(%error, "new TLS files cannot be used: those read before stay in force");
                kept.config.clone()
            }
            (Err(error), None) => return Err(error),
        };
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(key, Kept { config: config.clone(), stamps, looked });
        Ok(config)
    }
}

/// Shakes hands with a server whoever it is, for health checks. `name` is whom to ask for; an address or nothing is not
/// asked for. Sets no time limit of its own.
///
/// # Errors
/// When the handshake fails.
pub async fn begin_unchecked<S>(name: &str, stream: S) -> Result<TlsStream<S>, OriginateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let settings = TlsOrigination { insecure_skip_verify: true, ..TlsOrigination::default() };
    let nothing = Read { roots: Vec::new(), key: None, crls: Vec::new() };
    let config = configure(&settings, Some(b"http/1.1"), nothing)?;
    let server = ServerName::try_from(name.to_owned());
    let server = server.unwrap_or_else(|_| ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)));
    TlsConnector::from(config).connect(server, stream).await.map_err(OriginateError::Handshake)
}

/// The files of a rule; `None` where it needs none.
struct Files {
    roots: Option<PathBuf>,
    chain: Option<PathBuf>,
    key: Option<PathBuf>,
    crl: Option<PathBuf>,
}

/// What stands in them.
struct Read {
    roots: Vec<CertificateDer<'static>>,
    key: Option<Arc<CertifiedKey>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Files {
    fn of(settings: &TlsOrigination, secrets: &Path) -> Result<Self, OriginateError> {
        let unless_empty = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
        let mut files = match &settings.material {
            TlsMaterial::Files { ca_certificates, client_certificate, private_key } => {
                let roots = unless_empty(ca_certificates).filter(|path| path.as_os_str() != SYSTEM);
                let roots = roots.or_else(system_roots);
                Self {
                    roots,
                    chain: unless_empty(client_certificate),
                    key: unless_empty(private_key),
                    crl: None,
                }
            }
            TlsMaterial::Secret(name) => {
                let folder = secrets.join(secret_name(name)?);
                let ours = |file: &str| settings.mutual.then(|| folder.join(file));
                Self {
                    roots: Some(folder.join("ca.crt")),
                    chain: ours("tls.crt"),
                    key: ours("tls.key"),
                    crl: None,
                }
            }
        };
        files.crl = unless_empty(&settings.ca_crl);
        if settings.insecure_skip_verify {
            (files.roots, files.crl) = (None, None);
        } else if files.roots.is_none() {
            return Err(OriginateError::NoSystemRoots);
        }
        Ok(files)
    }

    async fn stamps(&self) -> Vec<Option<Stamp>> {
        let mut stamps = Vec::new();
        for path in [&self.roots, &self.chain, &self.key, &self.crl].into_iter().flatten() {
            let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            stamps.push(tokio::fs::metadata(path).await.ok().map(|found| {
                let (changed, moved) = (found.mtime_nsec(), found.ctime_nsec());
                (nanos(found.mtime(), changed), nanos(found.ctime(), moved), found.len(), found.ino())
            }));
        }
        stamps
    }

    async fn read(&self) -> Result<Read, OriginateError> {
        let mut read = Read { roots: Vec::new(), key: None, crls: Vec::new() };
        if let Some(path) = &self.roots {
            read.roots = certificates(path, &content(path).await?)?;
        }
        if let (Some(chain_path), Some(key_path)) = (&self.chain, &self.key) {
            let chain = certificates(chain_path, &content(chain_path).await?)?;
            let unfit = |why: &dyn std::fmt::Display| file(key_path, why.to_string());
            let key = PrivateKeyDer::from_pem_slice(&content(key_path).await?).map_err(|why| unfit(&why))?;
            let pair = CertifiedKey::from_der(chain, key, provider()).map_err(|why| unfit(&why))?;
            read.key = Some(Arc::new(pair));
        }
        if let Some(path) = &self.crl {
            let lists = CertificateRevocationListDer::pem_slice_iter(&content(path).await?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| file(path, error.to_string()))?;
            if lists.is_empty() {
                return Err(file(path, "holds no revocation list".to_owned()));
            }
            read.crls = lists;
        }
        Ok(read)
    }
}

fn configure(
    settings: &TlsOrigination,
    protocol: Option<&'static [u8]>,
    read: Read,
) -> Result<Arc<ClientConfig>, OriginateError> {
    let checks = Checks {
        host: settings.check_host,
        names: settings.subject_alt_names.clone(),
        nothing: settings.insecure_skip_verify,
    };
    let check = ServerCheck::new(checks, read.roots, &read.crls)
        .map_err(|why| OriginateError::File { path: settings.ca_crl.clone().into(), why })?;
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("aws-lc-rs has suites of both")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check));
    let mut config = match read.key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(ClientKey(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

async fn content(path: &Path) -> Result<Vec<u8>, OriginateError> {
    let read = async {
        if tokio::fs::metadata(path).await?.len() > MOST_BYTES {
            return Err(io::Error::other(format!("is larger than {MOST_BYTES} bytes")));
        }
        tokio::fs::read(path).await
    };
    read.await.map_err(|error| file(path, error.to_string()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, OriginateError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| file(path, error.to_string()))?;
    if found.is_empty() {
        return Err(file(path, "holds no certificate".to_owned()));
    }
    Ok(found)
}

fn file(path: &Path, why: String) -> OriginateError {
    OriginateError::File { path: path.to_owned(), why }
}

/// A secret is one folder: its name leads nowhere else.
fn secret_name(name: &str) -> Result<&str, OriginateError> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_sound = !name.is_empty() && !name.starts_with('.') && name.bytes().all(sound);
    is_sound.then_some(name).ok_or_else(|| OriginateError::SecretName(name.to_owned()))
}

/// Finds the file with the roots of this host. Source: Istio's list of places.
fn system_roots() -> Option<PathBuf> {
    let places = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/pki/tls/cacert.pem",
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    places.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Istio's word for the roots of the system.
const SYSTEM: &str = "system";
/// Between two looks at the files of a rule.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rules whose files are remembered; with more all are read anew.
const MOST_KEPT: usize = 1_024;
/// No file of certificates is larger: that of a system has a quarter of a MiB.
const MOST_BYTES: u64 = 4 << 20;
