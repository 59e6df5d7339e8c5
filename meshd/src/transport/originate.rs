//! TLS towards servers that no hop leads to: their own certificates, roots and names, as a `DestinationRule` says; or, with
//! `ISTIO_MUTUAL`, those of the mesh.
//!
//! Files are read when a connection is opened ([`super::material`]): a certificate that was renewed on disk is shown
//! from the next handshake on, without a restart. Unlike hops ([`super::tls`]) TLS 1.2 is spoken too; sessions are not
//! resumed, so that every connection sees the certificate checked.
//!
//! Source: Istio `ClientTLSSettings`; Envoy's `UpstreamTlsContext`, which speaks 1.2 and 1.3.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_core::plan::{TlsMaterial, TlsOrigination};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::material::{Files, Material, MaterialError, Shelf, folder_of};
use super::server_check::{Checks, MeshCheck, ServerCheck};
use super::tls::{ClientKey, Credentials, provider};

/// Why TLS could not begin.
#[derive(Debug, thiserror::Error)]
pub enum OriginateError {
    /// What the rule names cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The host has no roots of its own.
    #[error("this host has no file of root certificates; name one with caCertificates")]
    NoSystemRoots,
    /// The caller has no certificate of the mesh.
    #[error("the caller has no certificate of the mesh yet")]
    NoIdentity,
    /// The server's name cannot be asked for.
    #[error("{0:?} is no name of a server")]
    ServerName(String),
    /// The handshake failed, or the server is not who it should be.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
}

/// Begins TLS towards servers that no hop leads to. Each worker has its own.
#[derive(Debug)]
pub struct Originator {
    secrets: PathBuf,
    credentials: Arc<Credentials>,
    shelf: Shelf<Asked, ClientConfig>,
}

/// What a rule asks for, and what is spoken afterwards.
type Asked = (Arc<TlsOrigination>, Option<&'static [u8]>);

impl Originator {
    /// Secrets are folders of `secrets`, each with `tls.crt`, `tls.key` and `ca.crt`.
    pub fn new(secrets: PathBuf, credentials: Arc<Credentials>) -> Self {
        Self { secrets, credentials, shelf: Shelf::default() }
    }

    /// Shakes hands over a connection. `name` is whom to ask for, without one nobody is named; `from` is who calls, for
    /// rules that ask for the mesh's own certificates.
    ///
    /// Sets no time limit of its own. Cancel safe: a dropped future closes the connection.
    pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        settings: &Arc<TlsOrigination>,
        from: Option<&Identity>,
        protocol: Option<&'static [u8]>,
        name: Option<&str>,
        stream: S,
    ) -> Result<TlsStream<S>, OriginateError> {
        let config = match settings.material {
            TlsMaterial::Mesh => Arc::new(self.of_mesh(settings, from, protocol)?),
            TlsMaterial::Files { .. } | TlsMaterial::Secret(_) => self.config(settings, protocol).await?,
        };
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
        settings: &Arc<TlsOrigination>,
        protocol: Option<&'static [u8]>,
    ) -> Result<Arc<ClientConfig>, OriginateError> {
        let files = files_of(settings, &self.secrets);
        let asked = (settings.clone(), protocol);
        let make = |material| configure(settings, protocol, material);
        match files {
            Ok(files) => self.shelf.get(&asked, || Ok(files), make).await,
            Err(error) => Err(error),
        }
    }

    fn of_mesh(
        &self,
        settings: &TlsOrigination,
        from: Option<&Identity>,
        protocol: Option<&'static [u8]>,
    ) -> Result<ClientConfig, OriginateError> {
        let key = from.and_then(|from| self.credentials.get(from)).ok_or(OriginateError::NoIdentity)?;
        let names = settings.subject_alt_names.clone();
        let check = MeshCheck { trust: self.credentials.trust().clone(), names };
        Ok(client_config(Arc::new(check), &[&rustls::version::TLS13], Some(key), protocol))
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
    let config = configure(&settings, Some(b"http/1.1"), Material::default())?;
    let server = ServerName::try_from(name.to_owned());
    let server = server.unwrap_or_else(|_| ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)));
    TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(OriginateError::Handshake)
}

/// Makes what TLS towards a server of the outside world begins with, for questions of this host's own: HTTP/1.1, the
/// certificate checked for the name asked for. `roots`: a file; `None`: those of the system. The thread waits for the disk.
///
/// # Errors
/// There are no roots.
pub fn trusting(roots: Option<&Path>) -> Result<ClientConfig, OriginateError> {
    let mut settings = TlsOrigination { check_host: true, ..TlsOrigination::default() };
    if let (Some(path), TlsMaterial::Files { ca_certificates, .. }) = (roots, &mut settings.material) {
        *ca_certificates = path.display().to_string();
    }
    let material = files_of(&settings, Path::new(""))?.read()?;
    configure(&settings, Some(b"http/1.1"), material)
}

fn files_of(settings: &TlsOrigination, secrets: &Path) -> Result<Files, OriginateError> {
    let mut files = Files::default();
    let named = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
    match &settings.material {
        TlsMaterial::Files { ca_certificates, client_certificate, private_key } => {
            let own = named(ca_certificates).filter(|path| path.as_os_str() != SYSTEM);
            files.roots.extend(own.or_else(system_roots));
            files.pairs.extend(named(client_certificate).zip(named(private_key)));
        }
        TlsMaterial::Secret(name) => {
            let folder = folder_of(secrets, name)?;
            files.roots.push(folder.join("ca.crt"));
            files.perhaps_revoked = Some(folder.join("ca.crl"));
            if settings.mutual {
                files.pairs.push((folder.join("tls.crt"), folder.join("tls.key")));
            }
        }
        TlsMaterial::Mesh => {}
    }
    files.revoked = named(&settings.ca_crl);
    if settings.insecure_skip_verify {
        return Ok(Files { pairs: files.pairs, ..Files::default() });
    }
    if files.roots.is_empty() { Err(OriginateError::NoSystemRoots) } else { Ok(files) }
}

fn configure(
    settings: &TlsOrigination,
    protocol: Option<&'static [u8]>,
    material: Material,
) -> Result<ClientConfig, OriginateError> {
    let checks = Checks {
        host: settings.check_host,
        names: settings.subject_alt_names.clone(),
        nothing: settings.insecure_skip_verify,
    };
    let check = ServerCheck::new(checks, material.roots, &material.revoked)
        .map_err(|why| MaterialError::file(Path::new(&settings.ca_crl), why))?;
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    Ok(client_config(Arc::new(check), &versions, material.pairs.into_iter().next(), protocol))
}

fn client_config(
    check: Arc<dyn ServerCertVerifier>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    key: Option<Arc<CertifiedKey>>,
    protocol: Option<&'static [u8]>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(versions)
        .expect("aws-lc-rs has suites of both")
        .dangerous()
        .with_custom_certificate_verifier(check);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(ClientKey(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
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
