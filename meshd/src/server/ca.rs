//! The mesh's certificate authority on a voter: root, own intermediate, and the certificates of hosts and services.
//!
//! The root signs nothing but intermediates. Of a CSR only the public key is used, after its signature has shown that the
//! asker holds the private one; the name comes from the caller, who has checked what this asker may be.
//! Who may ask for what is decided elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_core::identity::Identity;
use mesh_core::identity::lifetime::{BACKDATE, INTERMEDIATE, LEAF, ROOT, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};

use crate::transport::Secret;

/// Why the authority cannot be made, or does not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The CSR is longer than [`MAX_CSR_BYTES`].
    #[error("the request has {0} bytes, more than {MAX_CSR_BYTES}")]
    RequestTooLong(usize),
    /// The CSR cannot be read, or its signature does not fit its key.
    #[error("the request is not a sound PKCS#10 request: {0}")]
    BadRequest(rcgen::Error),
    /// The key is not P-256.
    #[error("the request's key is not ECDSA P-256, the only kind this mesh certifies")]
    WrongKeyKind,
    /// The identity is of another trust domain, or not one that parses back.
    #[error("{identity} is not an identity of trust domain {domain}")]
    WrongDomain {
        /// What was to be certified.
        identity: String,
        /// The domain of this authority.
        domain: String,
    },
    /// The lifetime is zero or longer than a certificate may live.
    #[error("a lifetime of {} s is not between 1 s and {} s", .0.as_secs(), LEAF.as_secs())]
    BadLifetime(Duration),
    /// The root is expired or not yet valid.
    #[error("the root certificate is not valid now; check the clock, else restore with a new root")]
    RootNotValid,
    /// The root key does not belong to the root certificate.
    #[error("the root key does not belong to the root certificate")]
    WrongRootKey,
    /// The cryptography failed.
    #[error("cannot make a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// A new root: its key goes into the vault (`identity::seal`), its certificate to everyone.
#[derive(Debug, Clone)]
pub struct Root {
    /// The private key, PKCS#8.
    pub key: Secret,
    /// The certificate, self-signed.
    pub certificate: CertificateDer<'static>,
}

/// Signs certificates with an intermediate of its own, renewed at half its life.
#[derive(Debug)]
pub struct Authority {
    domain: String,
    root_key: Secret,
    root: CertificateDer<'static>,
    root_validity: Validity,
    intermediate: Mutex<Intermediate>,
}

#[derive(Debug)]
struct Intermediate {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    validity: Validity,
}

impl Authority {
    /// Makes the root of a new mesh: P-256, ten years.
    pub fn new_root(domain: &str, now: SystemTime) -> Result<Root, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity { not_before: now - BACKDATE, not_after: now + ROOT };
        let params =
            ca_params(&format!("meshd root of {domain}"), BasicConstraints::Constrained(1), validity);
        let certificate = params.self_signed(&key)?;
        Ok(Root { key: Secret::new(key.serialize_der()), certificate: certificate.into() })
    }

    /// Makes an authority of the unsealed root, with a new intermediate.
    ///
    /// Keeps the root's key in memory, for the next intermediates; it is wiped when the authority is dropped.
    pub fn from_root(
        domain: &str,
        root_key: Secret,
        root: CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let root_validity = validity_of(&root, &root_key)?;
        let intermediate = Intermediate::new(domain, &root_key, &root, root_validity, now)?;
        let domain = domain.to_owned();
        Ok(Self { domain, root_key, root, root_validity, intermediate: Mutex::new(intermediate) })
    }

    /// Certifies the key of a CSR for `identity`, from 5 min before `now` until `lifetime` after it.
    ///
    /// Returns leaf and intermediate. The default for `lifetime` is `lifetime::LEAF`, also its upper bound.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.check_name(identity)?;
        if lifetime.is_zero() || lifetime > LEAF {
            return Err(CaError::BadLifetime(lifetime));
        }
        let key = public_key(csr)?;
        let mut intermediate = self.intermediate.lock().unwrap_or_else(PoisonError::into_inner);
        if intermediate.is_past_half_life(now) {
            *intermediate =
                Intermediate::new(&self.domain, &self.root_key, &self.root, self.root_validity, now)?;
        }
        let not_after = (now + lifetime).min(intermediate.validity.not_after);
        let leaf = leaf_params(identity, Validity { not_before: now - BACKDATE, not_after })?
            .signed_by(&key, &intermediate.issuer)?;
        Ok(vec![leaf.into(), intermediate.certificate.clone()])
    }

    /// Returns the root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// An identity built by hand could hold anything: only what parses back is certified.
    fn check_name(&self, identity: &Identity) -> Result<(), CaError> {
        let text = identity.to_string();
        if identity.trust_domain() == self.domain && text.parse().as_ref() == Ok(identity) {
            return Ok(());
        }
        Err(CaError::WrongDomain { identity: text, domain: self.domain.clone() })
    }
}

impl Intermediate {
    fn new(
        domain: &str,
        root_key: &Secret,
        root: &CertificateDer<'static>,
        root_validity: Validity,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        if now < root_validity.not_before || now >= root_validity.not_after {
            return Err(CaError::RootNotValid);
        }
        let root = Issuer::from_ca_cert_der(root, key_pair(root_key)?)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = (now + INTERMEDIATE).min(root_validity.not_after);
        let validity = Validity { not_before: now - BACKDATE, not_after };
        let name = format!("meshd intermediate of {domain}");
        let params = ca_params(&name, BasicConstraints::Constrained(0), validity);
        let certificate = params.signed_by(&key, &root)?.into();
        Ok(Self { issuer: Issuer::new(params, key), certificate, validity })
    }

    fn is_past_half_life(&self, now: SystemTime) -> bool {
        self.validity.remaining(now) < self.validity.life() / 2
    }
}

/// Reads the public key of a CSR whose signature fits it.
fn public_key(csr: &[u8]) -> Result<impl PublicKeyData + use<>, CaError> {
    if csr.len() > MAX_CSR_BYTES {
        return Err(CaError::RequestTooLong(csr.len()));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(CaError::BadRequest)?;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::WrongKeyKind);
    }
    Ok(request.public_key)
}

fn leaf_params(identity: &Identity, validity: Validity) -> Result<CertificateParams, CaError> {
    let mut params = params(validity);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn ca_params(name: &str, depth: BasicConstraints, validity: Validity) -> CertificateParams {
    let mut params = params(validity);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(depth);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    params
}

/// Draws a serial number of 126 random bits: positive, and never with a leading zero byte (RFC 5280, 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn key_pair(key: &Secret) -> Result<KeyPair, CaError> {
    Ok(KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.reveal()))?)
}

/// Reads when the root is valid, and makes sure that the key is its own.
fn validity_of(root: &CertificateDer<'_>, key: &Secret) -> Result<Validity, CaError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(root).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
    if certificate.public_key().raw != key_pair(key)?.subject_public_key_info() {
        return Err(CaError::WrongRootKey);
    }
    let time =
        |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let validity = certificate.validity();
    Ok(Validity {
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
    })
}

/// The longest CSR read; one with a P-256 key and no extension has about 220 bytes.
pub const MAX_CSR_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests;
