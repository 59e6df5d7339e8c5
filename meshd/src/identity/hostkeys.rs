//! The two keys of a host: one proves who it is, the other receives sealed secrets.
//!
//! Made once, kept in the data folder as `host.key` (ECDSA P-256, PKCS#8 in PEM) and `wrap.key` (X25519, base64).

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::{hkdf, hmac};
use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::files::{self, FileError};
use crate::transport::{Secret, provider};

/// The keys of this host. Debug never shows them.
pub struct HostKeys {
    host: KeyPair,
    wrap: PrivateKey,
    wrap_public: [u8; 32],
}

impl HostKeys {
    /// Loads both keys from a folder, or makes both where neither is there.
    ///
    /// Fails where one is missing, damaged, or open to others.
    pub fn open_or_make(folder: &Path) -> Result<Self, FileError> {
        let (host_path, wrap_path) = paths(folder);
        match (files::read(&host_path)?, files::read(&wrap_path)?) {
            (Some(host), Some(wrap)) => Self::read(&host_path, &host, &wrap_path, &wrap),
            (None, None) => Self::make(folder),
            (None, Some(_)) => Err(FileError::Missing { path: host_path }),
            (Some(_), None) => Err(FileError::Missing { path: wrap_path }),
        }
    }

    /// Loads both keys; `None` where neither is there.
    pub fn open(folder: &Path) -> Result<Option<Self>, FileError> {
        let (host_path, wrap_path) = paths(folder);
        if files::read(&host_path)?.is_none() && files::read(&wrap_path)?.is_none() {
            return Ok(None);
        }
        Self::open_or_make(folder).map(Some)
    }

    fn make(folder: &Path) -> Result<Self, FileError> {
        files::make_folder(folder)?;
        let (host_path, wrap_path) = paths(folder);
        let failed = |error: &dyn fmt::Display| FileError::damaged(&host_path, error);
        let host = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| failed(&e))?;
        let wrap = PrivateKey::generate(&X25519).map_err(|e| failed(&e))?;
        let seed: Curve25519SeedBin = wrap.as_be_bytes().map_err(|e| failed(&e))?;
        let seed = Secret::new(BASE64.encode(seed.as_ref()).into_bytes());
        files::write(&wrap_path, &seed)?;
        files::write(&host_path, &Secret::new(host.serialize_pem().into_bytes()))?;
        Self::with(host, wrap).ok_or_else(|| failed(&"key generation failed"))
    }

    fn read(host_path: &Path, host: &Secret, wrap_path: &Path, wrap: &Secret) -> Result<Self, FileError> {
        let pem = std::str::from_utf8(host.reveal()).map_err(|e| FileError::damaged(host_path, &e))?;
        let host = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| FileError::damaged(host_path, &"not a P-256 key in PEM"))?;
        let text = wrap.reveal().trim_ascii();
        let seed = BASE64.decode(text).map_err(|_| FileError::damaged(wrap_path, &"not base64"))?;
        let wrap = PrivateKey::from_private_key(&X25519, &Zeroizing::new(seed))
            .map_err(|_| FileError::damaged(wrap_path, &"not an X25519 key"))?;
        Self::with(host, wrap).ok_or_else(|| FileError::damaged(wrap_path, &"not an X25519 key"))
    }

    fn with(host: KeyPair, wrap: PrivateKey) -> Option<Self> {
        let wrap_public = wrap.compute_public_key().ok()?.as_ref().try_into().ok()?;
        Some(Self { host, wrap, wrap_public })
    }

    /// Returns the public host key: `SubjectPublicKeyInfo`, DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.host.subject_public_key_info()
    }

    /// Returns the public wrap key: what secrets are sealed for.
    pub fn wrap_public_key(&self) -> [u8; 32] {
        self.wrap_public
    }

    /// Makes a CSR for the host key (PKCS#10, DER). It asks for no name: the signer knows who asks.
    pub fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        request(&self.host)
    }

    /// Signs a message with the host key: ECDSA P-256 with SHA-256, DER. For the challenge of a host that comes back.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.host.sign(message)
    }

    /// Joins the host key and its certificates to what handshakes show.
    pub fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, rustls::Error> {
        certified(&self.host, chain)
    }

    /// Derives a secret from the host key for another purpose, such as `QuicOptions::reset_secret`.
    pub fn derived(&self, purpose: &str) -> Secret {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"meshd host key");
        let key: hmac::Key = hmac_key(&salt, self.host.serialized_der(), purpose);
        Secret::new(hmac::sign(&key, purpose.as_bytes()).as_ref().to_vec())
    }

    /// Agrees on a secret with the holder of `public` and passes it to `derive`.
    pub(super) fn agree<R>(&self, public: &[u8; 32], derive: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let peer = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&self.wrap, peer, (), |secret| Ok(derive(secret))).ok()
    }
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKeys").finish_non_exhaustive()
    }
}

fn hmac_key(salt: &hkdf::Salt, secret: &[u8], purpose: &str) -> hmac::Key {
    let prk = salt.extract(secret);
    let info = [purpose.as_bytes()];
    let okm = prk.expand(&info, hmac::HMAC_SHA256).expect("32 bytes are not too many");
    hmac::Key::from(okm)
}

/// Makes a CSR that names nobody.
pub(super) fn request(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

/// Joins a key and its chain; fails where they do not belong together.
pub(super) fn certified(
    key: &KeyPair,
    chain: Vec<CertificateDer<'static>>,
) -> Result<CertifiedKey, rustls::Error> {
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(chain, der, provider())
}

fn paths(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join("host.key"), folder.join("wrap.key"))
}

#[cfg(test)]
mod tests;
