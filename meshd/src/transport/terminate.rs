//! TLS of a gateway's visitors: what it shows them and what it asks of them.
//!
//! Certificates come from secrets of this host, from files named by the rule ([`super::material`]), or are the mesh's own.
//! Changed ones are for new handshakes, and ones that cannot be used leave those before in force.
//!
//! Source: Istio `ServerTLSSettings`, `BuildListenerTLSContext`; its names of secrets (`NAME-cacert`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderValue;
use mesh_core::identity::Identity;
use mesh_core::plan::{Credential, Roots, ServerTls};
use mesh_proto::resource::{ServerTlsMode, TlsProtocol};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use super::material::{Files, Material, MaterialError, Shelf, folder_of};
use super::provider;
use super::tls::Credentials;
use super::verify::{Callers, ClientVerifier, Told};

mod forwarded;
mod outlook;
mod visitor;

pub use outlook::{Outlook, outlook};
pub use visitor::Unwelcome;

/// Why visitors cannot be shown a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TerminateError {
    /// What the rule names cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// This host has no certificate of the mesh for the gateway.
    #[error("the certificate of {0} has not come yet")]
    NotIssued(Identity),
    /// Certificates, roots, versions and ciphers do not go together.
    #[error("{0}")]
    Settings(String),
}

/// What was made of a rule.
#[derive(Debug)]
pub struct Terminated {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    settings: Arc<ServerTls>,
    /// The URIs of the certificate shown.
    own_uris: Vec<String>,
}

impl Terminated {
    /// Tells whether a visitor who proved its certificate may come in.
    ///
    /// # Errors
    /// Its certificate has none of the names or hashes asked for.
    pub fn admit(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Unwelcome> {
        visitor::admit(&self.settings, chain)
    }

    /// Returns what services are told of a visitor's certificate; `None`: it showed none.
    pub fn forwarded(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<HeaderValue> {
        forwarded::forwarded(&self.own_uris, chain?.first()?)
    }
}

/// Makes configurations of rules and keeps them. Each worker has its own.
#[derive(Debug)]
pub struct Terminator {
    secrets: PathBuf,
    credentials: Arc<Credentials>,
    shelf: Shelf<Asked, Terminated>,
    /// Those with the mesh's own certificates, which are looked up in each handshake.
    of_mesh: RefCell<HashMap<Asked, Arc<Terminated>>>,
}

/// A rule, and the protocols of ALPN.
type Asked = (Arc<ServerTls>, &'static [&'static [u8]]);

impl Terminator {
    /// Secrets are folders of `secrets`; the mesh's own certificates are in `credentials`.
    pub fn new(secrets: PathBuf, credentials: Arc<Credentials>) -> Self {
        Self { secrets, credentials, shelf: Shelf::default(), of_mesh: RefCell::default() }
    }

    /// Returns what visitors are shown under a rule; `protocols` are those of ALPN, the preferred first.
    ///
    /// # Errors
    /// The files cannot be used, and none before them were; or the mesh's own certificate is not there.
    pub async fn get(
        &self,
        settings: &Arc<ServerTls>,
        protocols: &'static [&'static [u8]],
    ) -> Result<Arc<Terminated>, TerminateError> {
        let asked = (settings.clone(), protocols);
        if let [Credential::Mesh(identity)] = settings.certificates.as_slice() {
            return self.with_mesh_key(asked, identity);
        }
        let files = || files_of(settings, &self.secrets);
        let make = |material| made_of(settings, protocols, material);
        match files() {
            Ok(files) => self.shelf.get(&asked, || Ok(files), make).await,
            Err(error) => Err(error),
        }
    }

    fn with_mesh_key(&self, asked: Asked, identity: &Identity) -> Result<Arc<Terminated>, TerminateError> {
        if self.credentials.get(identity).is_none() {
            return Err(TerminateError::NotIssued(identity.clone()));
        }
        if let Some(made) = self.of_mesh.borrow().get(&asked) {
            return Ok(made.clone());
        }
        let config = mesh_config(&self.credentials, identity, &asked.0, asked.1)?;
        let own_uris = vec![identity.to_string()];
        let made = Arc::new(Terminated { config: Arc::new(config), settings: asked.0.clone(), own_uris });
        let mut all = self.of_mesh.borrow_mut();
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(asked, made.clone());
        Ok(made)
    }
}

/// Where everything is.
fn files_of(settings: &ServerTls, secrets: &Path) -> Result<Files, TerminateError> {
    let mut files = Files::default();
    for credential in &settings.certificates {
        match credential {
            Credential::Secret(name) => {
                let folder = folder_of(secrets, name)?;
                files.pairs.push((folder.join("tls.crt"), folder.join("tls.key")));
            }
            Credential::Files { certificate, key } => files.pairs.push((certificate.into(), key.into())),
            Credential::Mesh(_) => {}
        }
    }
    if settings.mode == ServerTlsMode::Simple {
        return Ok(files);
    }
    let of_secret = |name: &str| folder_of(secrets, name);
    let secret = match (&settings.roots, settings.certificates.first()) {
        (Some(Roots::File(path)), _) => {
            files.roots.push(path.into());
            None
        }
        (Some(Roots::Secret(name)), _) => Some((name, false)),
        (None, Some(Credential::Secret(name))) => Some((name, true)),
        (None, _) => {
            return Err(TerminateError::Settings("there are no roots for visitors' certificates".into()));
        }
    };
    if let Some((name, has_beside)) = secret {
        let mut folders = vec![of_secret(name)?];
        if has_beside {
            folders.push(of_secret(&format!("{name}-cacert"))?);
        }
        let holder = folders.iter().find(|folder| folder.join("ca.crt").exists()).or(folders.first());
        files.perhaps_revoked = holder.map(|folder| folder.join("ca.crl"));
        files.roots.extend(folders.iter().map(|folder| folder.join("ca.crt")));
    }
    files.revoked = (!settings.revoked.is_empty()).then(|| settings.revoked.as_str().into());
    Ok(files)
}

fn made_of(
    settings: &Arc<ServerTls>,
    protocols: &[&[u8]],
    material: Material,
) -> Result<Terminated, TerminateError> {
    let own_uris = material.pairs.first().and_then(|pair| pair.cert.first()).map(visitor::uris);
    let config = Arc::new(configure(settings, protocols, material)?);
    Ok(Terminated { config, settings: settings.clone(), own_uris: own_uris.unwrap_or_default() })
}

fn configure(
    settings: &ServerTls,
    protocols: &[&[u8]],
    material: Material,
) -> Result<ServerConfig, TerminateError> {
    let provider = Arc::new(with_ciphers(&settings.ciphers));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(settings))
        .map_err(wrong)?;
    let builder = if settings.mode == ServerTlsMode::Simple {
        builder.with_no_client_auth()
    } else {
        let mut store = RootCertStore::empty();
        for root in material.roots {
            store.add(root).map_err(wrong)?;
        }
        let checks = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .with_crls(material.revoked)
            .enforce_revocation_expiration();
        let checks = match settings.mode {
            ServerTlsMode::OptionalMutual => checks.allow_unauthenticated(),
            _ => checks,
        };
        builder.with_client_cert_verifier(checks.build().map_err(wrong)?)
    };
    let mut config = builder.with_cert_resolver(Arc::new(Pairs(material.pairs)));
    // differs: who asks for none of these gets an alert; Envoy serves it as if it had asked for nothing.
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The mesh's own TLS: 1.3, both sides named, no session resumed, so that each handshake is checked against who is
/// trusted then.
fn mesh_config(
    credentials: &Arc<Credentials>,
    identity: &Identity,
    settings: &ServerTls,
    protocols: &[&[u8]],
) -> Result<ServerConfig, TerminateError> {
    let versions: Vec<_> = versions(settings)
        .into_iter()
        .filter(|version| version.version == rustls::ProtocolVersion::TLSv1_3)
        .collect();
    if versions.is_empty() {
        return Err(TerminateError::Settings(
            "ISTIO_MUTUAL is TLS 1.3, which maxProtocolVersion forbids".into(),
        ));
    }
    let verifier =
        ClientVerifier { trust: credentials.trust().clone(), callers: Callers::Hop, told: Told::default() };
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&versions)
        .map_err(wrong)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(MeshKey {
            credentials: credentials.clone(),
            identity: identity.clone(),
        }));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn wrong(error: impl std::fmt::Display) -> TerminateError {
    TerminateError::Settings(error.to_string())
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

/// The mesh's certificate of an identity, as it is at each handshake.
#[derive(Debug)]
struct MeshKey {
    credentials: Arc<Credentials>,
    identity: Identity,
}

impl ResolvesServerCert for MeshKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.credentials.get(&self.identity)
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

/// Rules of gateways, far more than any host has.
const MOST_KEPT: usize = 4_096;
