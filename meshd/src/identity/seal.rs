//! The root key, sealed: for the wrap key of a voter, or under a recovery passphrase.
//!
//! What comes out is public text for the World. Each holder has an envelope of its own, so that a voter is added or
//! removed without the others. An envelope is AES-256-GCM; its key comes from X25519 (a fresh key against the voter's)
//! through HKDF-SHA256, or from the passphrase through argon2id. Everything but the key material is authenticated.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf;
use data_encoding::{BASE64, Encoding, Specification};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::hostkeys::HostKeys;
use crate::transport::Secret;

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The text is no envelope, or one of a later version.
    #[error("the sealed root key cannot be read: {0}")]
    Malformed(String),
    /// The envelope is for another kind of holder.
    #[error("the root key is sealed for {0} here")]
    OtherKind(&'static str),
    /// The key of this host does not open it.
    #[error(
        "the key of this host (wrap.key) does not open the sealed root key: it was sealed for another host, or changed since"
    )]
    WrongKey,
    /// The passphrase does not open it.
    #[error("the recovery passphrase does not open the sealed root key: check each group of letters")]
    WrongPassphrase,
    /// The passphrase cannot be one.
    #[error(
        "a recovery passphrase has {PASSPHRASE_CHARS} letters and digits (a-z, 2-7); this has {0} that count"
    )]
    NotAPassphrase(usize),
    /// The cryptography failed.
    #[error("cannot seal the root key")]
    Crypto,
}

/// The recovery passphrase: 140 random bits, shown once. Debug never shows it.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Draws a new one.
    pub fn generate() -> Result<Self, SealError> {
        let mut bits = Zeroizing::new([0u8; 20]);
        aws_lc_rs::rand::fill(bits.as_mut_slice()).map_err(|_| SealError::Crypto)?;
        let letters = Zeroizing::new(letters().encode(bits.as_slice()));
        Ok(Self(Zeroizing::new(letters[..PASSPHRASE_CHARS].to_owned())))
    }

    /// Reads one as typed: capitals, spaces and dashes do not matter.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let kept: Zeroizing<String> = Zeroizing::new(
            text.chars()
                .filter(|c| !c.is_whitespace() && *c != '-')
                .map(|c| c.to_ascii_lowercase())
                .filter(|c| matches!(c, 'a'..='z' | '2'..='7'))
                .collect(),
        );
        let counted = text.chars().filter(|c| !c.is_whitespace() && *c != '-').count();
        if kept.len() != PASSPHRASE_CHARS || counted != PASSPHRASE_CHARS {
            return Err(SealError::NotAPassphrase(kept.len()));
        }
        Ok(Self(kept))
    }

    /// Shows it, in seven groups of four.
    pub fn reveal(&self) -> String {
        let groups: Vec<&str> = (0..PASSPHRASE_CHARS).step_by(4).map(|at| &self.0[at..at + 4]).collect();
        groups.join("-")
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Seals for the voter whose public wrap key this is.
pub fn seal_for_host(root_key: &Secret, wrap_public_key: &[u8; 32]) -> Result<String, SealError> {
    let fresh = PrivateKey::generate(&X25519).map_err(|_| SealError::Crypto)?;
    let public = fresh.compute_public_key().map_err(|_| SealError::Crypto)?;
    let ephemeral: [u8; 32] = public.as_ref().try_into().map_err(|_| SealError::Crypto)?;
    let peer = UnparsedPublicKey::new(&X25519, wrap_public_key);
    let key = agree(&fresh, peer, (), |shared| Ok(derived(shared, &ephemeral, wrap_public_key)))
        .map_err(|()| SealError::Crypto)?;
    Holder::Host { ephemeral: BASE64.encode(&ephemeral) }.seal(&key, root_key)
}

/// Opens an envelope with the wrap key of this host.
pub fn unseal_as_host(sealed: &str, keys: &HostKeys) -> Result<Secret, SealError> {
    let envelope = Envelope::read(sealed)?;
    let Holder::Host { ephemeral } = &envelope.holder else {
        return Err(SealError::OtherKind("the recovery passphrase"));
    };
    let ephemeral: [u8; 32] = fixed(ephemeral)?;
    let key = keys
        .agree(&ephemeral, |shared| derived(shared, &ephemeral, &keys.wrap_public_key()))
        .ok_or(SealError::WrongKey)?;
    envelope.open(&key).ok_or(SealError::WrongKey)
}

/// Seals under the recovery passphrase.
pub fn seal_for_recovery(root_key: &Secret, passphrase: &Passphrase) -> Result<String, SealError> {
    let mut salt = [0u8; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| SealError::Crypto)?;
    let (memory_kib, passes, lanes) = ARGON2;
    let key = stretched(passphrase, &salt, ARGON2)?;
    Holder::Recovery { salt: BASE64.encode(&salt), memory_kib, passes, lanes }.seal(&key, root_key)
}

/// Opens an envelope with the recovery passphrase. Takes about 50 ms of CPU and 19 MiB.
pub fn unseal_with_passphrase(sealed: &str, passphrase: &Passphrase) -> Result<Secret, SealError> {
    let envelope = Envelope::read(sealed)?;
    let Holder::Recovery { salt, memory_kib, passes, lanes } = &envelope.holder else {
        return Err(SealError::OtherKind("a host"));
    };
    let salt: [u8; 16] = fixed(salt)?;
    let key = stretched(passphrase, &salt, (*memory_kib, *passes, *lanes))?;
    envelope.open(&key).ok_or(SealError::WrongPassphrase)
}

/// An envelope as it stands in the World: JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    holder: Holder,
    nonce: String,
    sealed: String,
}

/// For whom, and what is needed beside the holder's own secret.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Holder {
    Host { ephemeral: String },
    Recovery { salt: String, memory_kib: u32, passes: u32, lanes: u32 },
}

impl Holder {
    fn seal(self, key: &Key, root_key: &Secret) -> Result<String, SealError> {
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).map_err(|_| SealError::Crypto)?;
        // The plain text is overwritten in place.
        let mut bytes = Zeroizing::new(Vec::with_capacity(root_key.reveal().len() + 16));
        bytes.extend_from_slice(root_key.reveal());
        let nonce = cipher
            .seal_in_place_append_tag(Aad::from(self.bound()), &mut *bytes)
            .map_err(|_| SealError::Crypto)?;
        let envelope = Envelope {
            version: VERSION,
            nonce: BASE64.encode(nonce.as_ref()),
            sealed: BASE64.encode(&bytes),
            holder: self,
        };
        serde_json::to_string(&envelope).map_err(|_| SealError::Crypto)
    }

    /// What an envelope's tag covers beside its content.
    fn bound(&self) -> String {
        match self {
            Self::Host { ephemeral } => format!("meshd root key {VERSION} host {ephemeral}"),
            Self::Recovery { salt, memory_kib, passes, lanes } => {
                format!("meshd root key {VERSION} recovery {salt} {memory_kib} {passes} {lanes}")
            }
        }
    }
}

impl Envelope {
    fn read(text: &str) -> Result<Self, SealError> {
        let malformed = |why: &dyn fmt::Display| SealError::Malformed(why.to_string());
        if text.len() > MAX_ENVELOPE_BYTES {
            return Err(malformed(&"it is too long"));
        }
        let envelope: Self = serde_json::from_str(text).map_err(|error| malformed(&error))?;
        if envelope.version != VERSION {
            return Err(malformed(&format!("version {} is not {VERSION}", envelope.version)));
        }
        Ok(envelope)
    }

    fn open(&self, key: &Key) -> Option<Secret> {
        let nonce: [u8; NONCE_LEN] = fixed(&self.nonce).ok()?;
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).ok()?;
        let mut bytes = Zeroizing::new(BASE64.decode(self.sealed.as_bytes()).ok()?);
        let aad = Aad::from(self.holder.bound());
        let plain = cipher.open_in_place(Nonce::from(&nonce), aad, &mut bytes).ok()?;
        Some(Secret::new(plain.to_vec()))
    }
}

type Key = Zeroizing<[u8; 32]>;

/// HKDF-SHA256 over the shared secret, bound to both public keys.
fn derived(shared: &[u8], ephemeral: &[u8; 32], holder: &[u8; 32]) -> Key {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"meshd root key seal v1");
    let prk = salt.extract(shared);
    let info = [ephemeral.as_slice(), holder.as_slice()];
    let okm = prk.expand(&info, hkdf::HKDF_SHA256).expect("32 bytes are not too many");
    let mut key = Zeroizing::new([0; 32]);
    okm.fill(key.as_mut_slice()).expect("the length asked for");
    key
}

fn stretched(passphrase: &Passphrase, salt: &[u8], cost: (u32, u32, u32)) -> Result<Key, SealError> {
    let (memory_kib, passes, lanes) = cost;
    if memory_kib > MAX_MEMORY_KIB || passes > 64 || lanes > 16 {
        return Err(SealError::Malformed("its argon2 costs are out of bounds".to_owned()));
    }
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32))
        .map_err(|error| SealError::Malformed(error.to_string()))?;
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon
        .hash_password_into(passphrase.0.as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| SealError::Crypto)?;
    Ok(key)
}

fn fixed<const N: usize>(text: &str) -> Result<[u8; N], SealError> {
    let malformed = || SealError::Malformed("a field has the wrong length".to_owned());
    BASE64.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)
}

fn letters() -> Encoding {
    let mut form = Specification::new();
    form.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    form.encoding().expect("32 distinct symbols")
}

const VERSION: u32 = 1;
/// 28 letters of 5 bits: 140 bits.
const PASSPHRASE_CHARS: usize = 28;
/// Memory in KiB, passes, lanes. OWASP's minimum is plenty: the passphrase is drawn, not thought up.
const ARGON2: (u32, u32, u32) = (19 * 1024, 2, 1);
/// A damaged World must not make the opener allocate without bound.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_ENVELOPE_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests;
