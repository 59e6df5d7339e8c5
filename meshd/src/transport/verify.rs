//! Whether a peer's certificate proves what it must, and if not, why not.
//!
//! The one place where an [`Identity`] is born from a certificate. Chain, times and purposes are checked by
//! rustls-webpki; the name is checked here: exactly one URI, a valid identity, of our trust domain, and the one that
//! was expected. Sources: shared rules of SPIFFE X.509-SVID sections 2 and 5; RFC 5280.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use mesh_core::identity::Identity;
use mesh_core::identity::lifetime::Validity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::tls::{Trust, provider};

/// The longest chain accepted, leaf included.
pub const MAX_CHAIN: usize = 4;

/// What a caller demands of the peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expect {
    /// This very identity.
    Identity(Identity),
    /// Any host of our trust domain: `spiffe://DOMAIN/host/…`.
    AnyHost,
    /// A host of any trust domain, under a root whose public key has this SHA-256. For joining, when no root is
    /// known yet: the pin comes from the token.
    RootPin([u8; 32]),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::AnyHost => f.write_str("any host of the mesh"),
            Self::RootPin(_) => f.write_str("a host under the token's root"),
        }
    }
}

/// Who may call on a kind of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Data hops: workloads, and hosts for callers that are no workload.
    Hop,
    /// Control traffic: hosts, and people with an admin certificate.
    Control,
    /// Either; decided once the protocol is known (QUIC).
    Any,
}

impl Callers {
    /// Tells whether `identity` may call.
    pub fn admit(self, identity: &Identity) -> bool {
        match self {
            Self::Hop => !matches!(identity, Identity::Admin { .. }),
            Self::Control => !identity.is_workload(),
            Self::Any => true,
        }
    }
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// The bytes are not a certificate, or one with a broken extension.
    #[error("the certificate is malformed")]
    Malformed,
    /// No chain to a root of this mesh.
    #[error("the certificate was not issued by a root of this mesh")]
    UnknownIssuer,
    /// The certificate, or one above it, is no longer valid.
    #[error("the certificate expired {} ago", ago(*.not_after, *.time))]
    Expired {
        /// The clock of the verifier, seconds since 1970.
        time: u64,
        /// The end of validity, seconds since 1970.
        not_after: u64,
    },
    /// The certificate, or one above it, is not valid yet.
    #[error("the certificate is valid only in {}; check both clocks", ago(*.time, *.not_before))]
    NotYetValid {
        /// The clock of the verifier, seconds since 1970.
        time: u64,
        /// The beginning of validity, seconds since 1970.
        not_before: u64,
    },
    /// The handshake is not signed with the certificate's key.
    #[error("the handshake is not signed with the key of the certificate")]
    BadSignature,
    /// The extended key usage does not allow this side of TLS.
    #[error("the certificate is not for this use (extended key usage)")]
    WrongPurpose,
    /// More than [`MAX_CHAIN`] certificates.
    #[error("the chain has {0} certificates, more than {MAX_CHAIN}")]
    ChainTooLong(usize),
    /// No URI among the alternative names.
    #[error("the certificate names no identity (no URI among its alternative names)")]
    NoUri,
    /// More than one alternative name where exactly one URI is due.
    #[error("the certificate has {0} alternative names where exactly one URI is due")]
    ManyNames(usize),
    /// The URI is not an identity.
    #[error("the certificate names \"{uri}\", which is not an identity: {why}")]
    NotAnIdentity {
        /// The URI, escaped and cut to 128 characters.
        uri: String,
        /// Why not.
        why: String,
    },
    /// An identity of another mesh.
    #[error("{identity} belongs to trust domain {}, not to {domain}", .identity.trust_domain())]
    WrongDomain {
        /// Who the peer is.
        identity: Identity,
        /// Our trust domain.
        domain: String,
    },
    /// A valid identity, but not the one that was expected.
    #[error("the peer is {presented}, expected {expected}")]
    WrongIdentity {
        /// Who the peer is.
        presented: Identity,
        /// Who it should have been.
        expected: String,
    },
    /// A valid identity that may not call on this kind of connection.
    #[error("{0} may not call here")]
    WrongKind(Identity),
    /// No certificate of the chain has the pinned public key.
    #[error("the root's public key does not match the pin of the token")]
    WrongPin,
    /// Denied by the mesh.
    #[error("the certificate of {0} is revoked")]
    Revoked(Identity),
    /// Anything else rustls-webpki found.
    #[error("the certificate is refused: {0}")]
    Other(String),
}

impl CertificateFault {
    /// Returns a short, constant word for metrics and logs.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::BadSignature => "bad_signature",
            Self::WrongPurpose => "wrong_purpose",
            Self::ChainTooLong(_) => "chain_too_long",
            Self::NoUri => "no_uri",
            Self::ManyNames(_) => "many_names",
            Self::NotAnIdentity { .. } => "not_an_identity",
            Self::WrongDomain { .. } => "wrong_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::WrongKind(_) => "wrong_kind",
            Self::WrongPin => "wrong_pin",
            Self::Revoked(_) => "revoked",
            Self::Other(_) => "other",
        }
    }

    /// Finds the fault behind an error of rustls; `None` if it is not about a certificate.
    pub fn of(error: &Error) -> Option<Self> {
        let Error::InvalidCertificate(inner) = error else {
            return None;
        };
        Some(match inner {
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired { time: time.as_secs(), not_after: not_after.as_secs() }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid { time: time.as_secs(), not_before: not_before.as_secs() }
            }
            CertificateError::BadEncoding => Self::Malformed,
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::BadSignature => Self::BadSignature,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            CertificateError::Other(OtherError(other)) => match other.downcast_ref::<Self>() {
                Some(fault) => fault.clone(),
                None => Self::Other(other.to_string()),
            },
            other => Self::Other(other.to_string()),
        })
    }
}

/// So that the alert on the wire names the class where TLS has a word for it (RFC 8446, section 6.2).
impl From<CertificateFault> for Error {
    fn from(fault: CertificateFault) -> Self {
        let seconds = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        Self::InvalidCertificate(match fault {
            CertificateFault::Malformed => CertificateError::BadEncoding,
            CertificateFault::UnknownIssuer => CertificateError::UnknownIssuer,
            CertificateFault::BadSignature => CertificateError::BadSignature,
            CertificateFault::WrongPurpose => CertificateError::InvalidPurpose,
            CertificateFault::Expired { time, not_after } => {
                CertificateError::ExpiredContext { time: seconds(time), not_after: seconds(not_after) }
            }
            CertificateFault::NotYetValid { time, not_before } => {
                CertificateError::NotValidYetContext { time: seconds(time), not_before: seconds(not_before) }
            }
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

/// What a certificate says once it has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub identity: Identity,
    /// The serial number, big-endian.
    pub serial: Vec<u8>,
    /// From when to when it is valid.
    pub validity: Validity,
}

/// Which end of TLS a certificate is shown by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer that dialled.
    Client,
    /// The peer that listens.
    Server,
}

/// Verifies a whole chain, leaf first, and returns who it proves.
pub fn verify(
    trust: &Trust,
    chain: &[CertificateDer<'_>],
    side: Side,
    now: UnixTime,
) -> Result<Proven, CertificateFault> {
    let roots = trust.roots();
    let proven = verify_chain(&roots.anchors, chain, side, now)?;
    let domain = trust.domain();
    if proven.identity.trust_domain() != domain {
        return Err(CertificateFault::WrongDomain { identity: proven.identity, domain: domain.to_owned() });
    }
    if trust.is_denied(&proven) {
        return Err(CertificateFault::Revoked(proven.identity));
    }
    Ok(proven)
}

/// Verifies a server's chain against what the caller demands.
pub fn verify_expected(
    trust: &Trust,
    expect: &Expect,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Proven, CertificateFault> {
    let proven = match expect {
        Expect::RootPin(pin) => {
            let root = pinned_root(chain, pin)?;
            verify_chain(&[root], chain, Side::Server, now)?
        }
        Expect::Identity(_) | Expect::AnyHost => verify(trust, chain, Side::Server, now)?,
    };
    let is_met = match expect {
        Expect::Identity(identity) => proven.identity == *identity,
        Expect::AnyHost | Expect::RootPin(_) => proven.identity.is_host(),
    };
    if is_met {
        return Ok(proven);
    }
    Err(CertificateFault::WrongIdentity { presented: proven.identity, expected: expect.to_string() })
}

/// Reads identity, serial and times of a leaf without verifying who signed it.
pub fn read(leaf: &CertificateDer<'_>) -> Result<Proven, CertificateFault> {
    proven(&parse(leaf)?)
}

/// Reads the times of a certificate of whomever, without verifying anything.
pub(super) fn validity(leaf: &CertificateDer<'_>) -> Result<Validity, CertificateFault> {
    parse(leaf).map(|certificate| validity_of(&certificate))
}

fn validity_of(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity {
        not_before: time_of(validity.not_before.timestamp()),
        not_after: time_of(validity.not_after.timestamp()),
    }
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateFault> {
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(CertificateFault::Malformed),
    }
}

fn proven(certificate: &X509Certificate<'_>) -> Result<Proven, CertificateFault> {
    Ok(Proven {
        identity: identity_of(certificate)?,
        serial: certificate.raw_serial().to_vec(),
        validity: validity_of(certificate),
    })
}

/// Returns the SHA-256 of a certificate's public key (its whole `SubjectPublicKeyInfo`): the pin of a token.
pub fn public_key_pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CertificateFault> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|e| fault_of(&e))?;
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parsed.subject_public_key_info().as_ref());
    digest.as_ref().try_into().map_err(|_| CertificateFault::Malformed)
}

fn identity_of(certificate: &X509Certificate<'_>) -> Result<Identity, CertificateFault> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertificateFault::Malformed)?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let uri = match names {
        [GeneralName::URI(uri)] => *uri,
        [] | [_] => return Err(CertificateFault::NoUri),
        many => return Err(CertificateFault::ManyNames(many.len())),
    };
    uri.parse().map_err(|why: mesh_core::identity::IdentityError| CertificateFault::NotAnIdentity {
        uri: uri.chars().take(128).flat_map(char::escape_default).collect(),
        why: why.to_string(),
    })
}

fn verify_chain(
    anchors: &[TrustAnchor<'static>],
    chain: &[CertificateDer<'_>],
    side: Side,
    now: UnixTime,
) -> Result<Proven, CertificateFault> {
    if chain.len() > MAX_CHAIN {
        return Err(CertificateFault::ChainTooLong(chain.len()));
    }
    let (leaf, intermediates) = chain.split_first().ok_or(CertificateFault::Malformed)?;
    let end = EndEntityCert::try_from(leaf).map_err(|e| fault_of(&e))?;
    let usage = match side {
        Side::Client => KeyUsage::client_auth(),
        Side::Server => KeyUsage::server_auth(),
    };
    end.verify_for_usage(algorithms().all, anchors, intermediates, now, usage, None, None)
        .map_err(|e| fault_of(&e))?;
    let certificate = parse(leaf)?;
    demand_usage(&certificate, side)?;
    proven(&certificate)
}

/// Demands the extended key usage on the leaf, where webpki is content with its absence.
fn demand_usage(certificate: &X509Certificate<'_>, side: Side) -> Result<(), CertificateFault> {
    let usage = certificate
        .extended_key_usage()
        .map_err(|_| CertificateFault::Malformed)?
        .ok_or(CertificateFault::WrongPurpose)?;
    let is_allowed = match side {
        Side::Client => usage.value.client_auth,
        Side::Server => usage.value.server_auth,
    };
    if is_allowed {
        return Ok(());
    }
    Err(CertificateFault::WrongPurpose)
}

fn pinned_root(
    chain: &[CertificateDer<'_>],
    pin: &[u8; 32],
) -> Result<TrustAnchor<'static>, CertificateFault> {
    let root = chain
        .iter()
        .take(MAX_CHAIN)
        .skip(1)
        .find(|certificate| public_key_pin(certificate).is_ok_and(|found| found == *pin))
        .ok_or(CertificateFault::WrongPin)?;
    webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()).map_err(|e| fault_of(&e))
}

fn fault_of(error: &webpki::Error) -> CertificateFault {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => {
            CertificateFault::Malformed
        }
        E::CertExpired { time, not_after } => {
            CertificateFault::Expired { time: time.as_secs(), not_after: not_after.as_secs() }
        }
        E::CertNotValidYet { time, not_before } => {
            CertificateFault::NotYetValid { time: time.as_secs(), not_before: not_before.as_secs() }
        }
        // A root of the same name with another key is another mesh's.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateFault::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => CertificateFault::WrongPurpose,
        other => CertificateFault::Other(format!("{other:?}")),
    }
}

fn time_of(seconds: i64) -> SystemTime {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Words for the span between two times in seconds, coarse enough for a person.
fn ago(from: u64, to: u64) -> String {
    let seconds = to.saturating_sub(from);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// Where a verifier that serves one handshake leaves its verdict: QUIC passes on no more than the text of an error.
pub(super) type Told = Arc<OnceLock<CertificateFault>>;

/// Checks the certificate of a server we dialled.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Arc<Trust>,
    pub(super) expect: Expect,
    pub(super) told: Told,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = whole(end_entity, intermediates);
        match verify_expected(&self.trust, &self.expect, &chain, now) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(fault) => Err(tell(&self.told, fault)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(ONLY_TLS13.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Checks the certificate of a client that dialled us, and demands one.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: Arc<Trust>,
    pub(super) callers: Callers,
    pub(super) told: Told,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = whole(end_entity, intermediates);
        match verify(&self.trust, &chain, Side::Client, now) {
            Ok(proven) if self.callers.admit(&proven.identity) => Ok(ClientCertVerified::assertion()),
            Ok(proven) => Err(tell(&self.told, CertificateFault::WrongKind(proven.identity))),
            Err(fault) => Err(tell(&self.told, fault)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(ONLY_TLS13.to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn tell(told: &Told, fault: CertificateFault) -> Error {
    // A second fault can only come from a verifier that serves many handshakes, and there nobody reads it.
    let _ = told.set(fault.clone());
    fault.into()
}

fn whole<'a>(
    end_entity: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    // One more than allowed is enough to be refused; a stranger's longer list is not copied.
    std::iter::once(end_entity)
        .chain(intermediates)
        .take(MAX_CHAIN + 1)
        .map(|certificate| CertificateDer::from(certificate.as_ref()))
        .collect()
}

const ONLY_TLS13: &str = "the mesh speaks TLS 1.3 only";

#[cfg(test)]
mod tests;
