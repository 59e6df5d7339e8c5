//! Whether a visitor with a certificate may come in: names and hashes that a rule asks for.
//!
//! The chain was proven in the handshake; this looks at the leaf. Source: Istio `subjectAltNames`,
//! `verifyCertificateSpki`, `verifyCertificateHash`; Envoy's `match_typed_subject_alt_names` and hash lists: either hash
//! will do.

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};
use mesh_core::plan::ServerTls;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a visitor may not come in although its certificate is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// None of its names is asked for.
    #[error("the certificate has none of the names asked for")]
    Names,
    /// Neither it nor its key is asked for.
    #[error("neither the certificate nor its key is among those asked for")]
    Hashes,
}

/// Tells whether a visitor may come in. Without a certificate it may, where the handshake let it.
pub(super) fn admit(settings: &ServerTls, chain: Option<&[CertificateDer<'_>]>) -> Result<(), Unwelcome> {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return Ok(()) };
    let (names, spki, hashes) = (&settings.subject_alt_names, &settings.spki, &settings.hashes);
    if names.is_empty() && spki.is_empty() && hashes.is_empty() {
        return Ok(());
    }
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Unwelcome::Unreadable)?;
    if !names.is_empty() && !own_names(&parsed).any(|own| names.contains(&own)) {
        return Err(Unwelcome::Names);
    }
    let key = BASE64.encode(digest(&SHA256, parsed.public_key().raw).as_ref());
    let whole = HEXLOWER.encode(digest(&SHA256, leaf).as_ref());
    // Hexadecimal may be written with colons and in either case.
    let same = |wanted: &String| wanted.replace(':', "").eq_ignore_ascii_case(&whole);
    if (spki.is_empty() && hashes.is_empty()) || spki.contains(&key) || hashes.iter().any(same) {
        return Ok(());
    }
    Err(Unwelcome::Hashes)
}

/// Returns the URIs among a certificate's names.
pub(super) fn uris(leaf: &CertificateDer<'_>) -> Vec<String> {
    names_of(leaf, |name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None })
}

/// Returns the DNS names of a certificate.
pub(super) fn dns_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    names_of(leaf, |name| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None })
}

fn names_of(leaf: &CertificateDer<'_>, pick: impl Fn(&GeneralName<'_>) -> Option<String>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let names = parsed.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|names| &names.value.general_names).filter_map(pick).collect()
}

fn own_names<'c>(certificate: &'c X509Certificate<'_>) -> impl Iterator<Item = String> + 'c {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).ok().map(std::net::IpAddr::from);
            let six = || <[u8; 16]>::try_from(*bytes).ok().map(std::net::IpAddr::from);
            four.or_else(six).map(|address| address.to_string())
        }
        _ => None,
    })
}
