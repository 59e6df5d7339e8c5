//! Whether a server that no hop leads to is who it should be: its chain, its names, and what was taken back.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, TrustAnchor, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::tls::{Trust, provider};
use super::verify::{self, Side};

/// What is asked of a server's certificate besides its chain.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    /// It must be for the name that was asked for.
    pub(super) host: bool,
    /// It must have one of these names; empty: any will do.
    pub(super) names: Vec<String>,
    /// Not even its chain.
    pub(super) nothing: bool,
}

/// Checks servers' certificates.
#[derive(Debug)]
pub(super) struct ServerCheck {
    checks: Checks,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
}

/// Why a server's certificate will not do.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("the certificate has none of the names {0:?}")]
    Names(Vec<String>),
    #[error("the chain has {0} certificates, more than {MAX_CHAIN}")]
    Long(usize),
    #[error("the certificate is refused: {0:?}")]
    Other(webpki::Error),
}

impl ServerCheck {
    /// Roots that are no sound certificates are left out: a system's file may hold some.
    pub(super) fn new(
        checks: Checks,
        roots: Vec<CertificateDer<'static>>,
        crls: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, String> {
        let anchor = |root| webpki::anchor_from_trusted_cert(root).ok().map(|anchor| anchor.to_owned());
        let anchors = roots.iter().filter_map(anchor).collect();
        let list = |crl: &CertificateRevocationListDer<'_>| OwnedCertRevocationList::from_der(crl);
        let revoked = crls.iter().map(|crl| list(crl).map(CertRevocationList::from));
        let revoked = revoked.collect::<Result<_, _>>().map_err(|error| format!("{error:?}"))?;
        Ok(Self { checks, roots, anchors, revoked })
    }

    fn chain(
        &self,
        end: &EndEntityCert<'_>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // As BoringSSL does: with a list, every certificate below the root must be on a current one of its issuer.
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let algorithms = provider().signature_verification_algorithms.all;
        let usage = KeyUsage::server_auth();
        match end.verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, revocation, None) {
            Ok(_) => Ok(()),
            // A server with a self-made certificate, which is itself the root we were given.
            Err(webpki::Error::CaUsedAsEndEntity) if self.roots.iter().any(|root| root == leaf) => {
                current(leaf, now)
            }
            Err(error) => Err(error_of(error)),
        }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.checks.nothing {
            return Ok(ServerCertVerified::assertion());
        }
        if intermediates.len() >= MAX_CHAIN {
            return Err(other(Unfit::Long(intermediates.len() + 1)));
        }
        let end = EndEntityCert::try_from(leaf).map_err(error_of)?;
        self.chain(&end, leaf, intermediates, now)?;
        if self.checks.host {
            end.verify_is_valid_for_subject_name(server).map_err(error_of)?;
        }
        if !self.checks.names.is_empty() && !has_one_of(leaf, &self.checks.names) {
            return Err(other(Unfit::Names(self.checks.names.clone())));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Checks servers that show a certificate of the mesh (`ISTIO_MUTUAL` towards an address).
#[derive(Debug)]
pub(super) struct MeshCheck {
    pub(super) trust: Arc<Trust>,
    /// It must have one of these names; empty: anybody of the mesh will do.
    pub(super) names: Vec<String>,
}

impl ServerCertVerifier for MeshCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).take(MAX_CHAIN).cloned().collect();
        verify::verify(&self.trust, &chain, Side::Server, now)?;
        if !self.names.is_empty() && !has_one_of(leaf, &self.names) {
            return Err(other(Unfit::Names(self.names.clone())));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("the mesh speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Whether a certificate that is its own root is valid now.
fn current(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| bad())?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    let refused = |why| Err(Error::InvalidCertificate(why));
    match () {
        () if now < validity.not_before.timestamp() => refused(CertificateError::NotValidYet),
        () if now > validity.not_after.timestamp() => refused(CertificateError::Expired),
        () => Ok(()),
    }
}

/// Whether a certificate has one of these names: DNS (it may have a wildcard), address, URI or mail address.
///
/// Source: Istio `subjectAltNames`; Envoy's `match_typed_subject_alt_names` with exact matchers.
fn has_one_of(leaf: &CertificateDer<'_>, wanted: &[String]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| wanted.iter().any(|wanted| is_named(name, wanted)))
}

fn is_named(name: &GeneralName<'_>, wanted: &str) -> bool {
    match name {
        GeneralName::DNSName(pattern) => dns_name_fits(pattern, wanted),
        GeneralName::URI(uri) => *uri == wanted,
        GeneralName::RFC822Name(mail) => *mail == wanted,
        GeneralName::IPAddress(bytes) => match wanted.parse() {
            Ok(IpAddr::V4(address)) => *bytes == address.octets(),
            Ok(IpAddr::V6(address)) => *bytes == address.octets(),
            Err(_) => false,
        },
        _ => false,
    }
}

/// Whether a name of a certificate covers `wanted`: a star stands for one whole label, the first.
fn dns_name_fits(pattern: &str, wanted: &str) -> bool {
    if let Some(suffix) = pattern.strip_prefix("*.") {
        let rest = wanted.split_once('.').filter(|(first, _)| !first.is_empty());
        return rest.is_some_and(|(_, rest)| suffix.contains('.') && rest.eq_ignore_ascii_case(suffix));
    }
    pattern.eq_ignore_ascii_case(wanted)
}

fn error_of(error: webpki::Error) -> Error {
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => {
            CertificateError::BadEncoding
        }
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::CertNotValidForName(_) => CertificateError::NotValidForName,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        error => return other(Unfit::Other(error)),
    })
}

fn other(why: Unfit) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn bad() -> Error {
    Error::InvalidCertificate(CertificateError::BadEncoding)
}

/// The longest chain of a server outside that is looked at, leaf included.
const MAX_CHAIN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, wanted, expected) in [
            ("ext.example.com", "EXT.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("*", "example.com", false),
            ("a*.example.com", "ab.example.com", false),
        ] {
            assert_eq!(dns_name_fits(pattern, wanted), expected, "{pattern} {wanted}");
        }
    }
}
