//! Certificates on disk, one file for each identity, with the key where it is not the host's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use data_encoding::{BASE64_MIME, HEXLOWER};
use mesh_core::identity::Identity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::files::{self, FileError};
use super::{HostKeys, certified};
use crate::transport::{Secret, verify};

/// The folder of certificates.
#[derive(Debug, Clone)]
pub(in crate::identity) struct Store {
    folder: PathBuf,
    keys: Arc<HostKeys>,
}

impl Store {
    pub(in crate::identity) fn new(folder: PathBuf, keys: Arc<HostKeys>) -> Self {
        Self { folder, keys }
    }

    /// Loads all certificates; damaged ones are told and left out.
    pub(super) fn load(&self) -> Result<Vec<(Identity, CertifiedKey)>, FileError> {
        let listed = |source| FileError::Io { doing: "list", path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(listed)?,
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_FILES) {
            let path = entry.map_err(listed)?.path();
            if path.extension().is_none_or(|extension| extension != "pem") {
                continue;
            }
            let Some(content) = files::read(&path)? else {
                continue;
            };
            match self.read(&content) {
                Ok(pair) => found.push(pair),
                Err(why) => tracing::warn!(path = %path.display(), why, "a certificate file is damaged"),
            }
        }
        Ok(found)
    }

    fn read(&self, content: &Secret) -> Result<(Identity, CertifiedKey), String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(content.reveal())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("it holds no certificate")?;
        let identity = verify::read(leaf).map_err(|fault| fault.to_string())?.identity;
        let key = if identity.is_host() {
            self.keys.certified(chain)
        } else {
            let der =
                PrivatePkcs8KeyDer::from_pem_slice(content.reveal()).map_err(|error| error.to_string())?;
            let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
                .map_err(|error| error.to_string())?;
            certified(&key, chain)
        };
        Ok((identity, key.map_err(|error| error.to_string())?))
    }

    /// Saves a chain, and the key of a workload.
    pub(in crate::identity) fn save(
        &self,
        identity: &Identity,
        key: Option<&KeyPair>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), FileError> {
        files::make_folder(&self.folder)?;
        let mut text = Zeroizing::new(String::with_capacity(16 << 10));
        if let Some(key) = key {
            text.push_str(&Zeroizing::new(key.serialize_pem()));
        }
        for certificate in chain {
            text.push_str("-----BEGIN CERTIFICATE-----\r\n");
            text.push_str(&BASE64_MIME.encode(certificate));
            text.push_str("-----END CERTIFICATE-----\r\n");
        }
        files::write(&self.path(identity), &Secret::new(text.as_bytes().to_vec()))
    }

    pub(super) fn remove(&self, identity: &Identity) -> Result<(), FileError> {
        files::remove(&self.path(identity))
    }

    /// A digest for a name: an identity may be longer than a file's name, and holds slashes.
    fn path(&self, identity: &Identity) -> PathBuf {
        let digest = digest::digest(&digest::SHA256, identity.to_string().as_bytes());
        let name = if identity.is_host() {
            "host.pem".to_owned()
        } else {
            format!("{}.pem", HEXLOWER.encode(&digest.as_ref()[..16]))
        };
        Path::join(&self.folder, name)
    }
}

/// How many files of the folder are looked at.
const MAX_FILES: usize = 10_000;
