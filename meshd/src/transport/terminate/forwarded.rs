//! What services are told of a visitor's certificate: `x-forwarded-client-cert`.
//!
//! Source: Istio's gateways, which set it anew (`SANITIZE_SET`) with `Cert`, `Subject`, `URI` and `DNS`; Envoy
//! `ConnectionManagerUtility::mutateXfccRequestHeader`, which adds `By` and `Hash`.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::{BASE64, HEXLOWER};
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

use super::visitor::{dns_names, uris};

/// Writes it down; `None` where the certificate cannot be read, or says what no header can hold.
pub(super) fn forwarded(own_uris: &[String], leaf: &CertificateDer<'_>) -> Option<HeaderValue> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let mut parts: Vec<String> = own_uris.iter().map(|uri| format!("By={}", quoted(uri))).collect();
    parts.push(format!("Hash={}", HEXLOWER.encode(digest(&SHA256, leaf).as_ref())));
    parts.push(format!("Cert=\"{}\"", pem(leaf)));
    parts.push(format!("Subject=\"{}\"", subject(parsed.subject())));
    let uris = uris(leaf);
    if uris.is_empty() {
        parts.push("URI=".to_owned());
    }
    parts.extend(uris.iter().map(|uri| format!("URI={}", quoted(uri))));
    parts.extend(dns_names(leaf).iter().map(|name| format!("DNS={}", quoted(name))));
    HeaderValue::from_str(&parts.join(";")).ok()
}

/// Quotes what would else end the value.
fn quoted(value: &str) -> String {
    if !value.contains([',', ';', '=', '"', '\\']) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// PEM, with what a URL cannot hold escaped as Envoy does.
fn pem(certificate: &[u8]) -> String {
    let text = BASE64.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let escapes = [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")];
    escapes.iter().fold(pem, |text, (from, to)| text.replace(from, to))
}

/// A name as RFC 2253 writes it: the last part first.
fn subject(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    match (oid2abbrev(kind, oid_registry()), attribute.as_str()) {
        (Ok(kind), Ok(value)) => format!("{kind}={}", escaped(value)),
        _ => format!("{}=#{}", kind.to_id_string(), HEXLOWER.encode(attribute.attr_value().data)),
    }
}

/// Source: RFC 2253, section 2.4.
fn escaped(value: &str) -> String {
    let last = value.len().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (at, byte) in value.bytes().enumerate() {
        let at_an_end = (at == 0 && matches!(byte, b' ' | b'#')) || (at == last && byte == b' ');
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', byte.into()]),
            _ if at_an_end => text.extend(['\\', byte.into()]),
            0x20..0x7f => text.push(byte.into()),
            _ => drop(write!(text, "\\{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    /// Subject, and the other names in order of kind.
    fn told(names: &[(DnType, &str)], uris: &[&str], dns: &[&str], own: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let uri = |name: &&str| SanType::URI((*name).try_into().expect("ASCII"));
        let name = |name: &&str| SanType::DnsName((*name).try_into().expect("ASCII"));
        params.subject_alt_names = uris.iter().map(uri).chain(dns.iter().map(name)).collect();
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let own: Vec<String> = own.iter().map(ToString::to_string).collect();
        let value = forwarded(&own, certificate.der()).expect("a header");
        let text = value.to_str().expect("ASCII").to_owned();
        // What differs from key to key.
        let (before, rest) = text.split_once("Hash=").expect("a hash");
        assert_eq!(rest.find(';'), Some(64), "{rest}");
        let (cert, rest) = rest[65..].split_once("\";").expect("a certificate");
        assert!(cert.starts_with("Cert=\"-----BEGIN%20CERTIFICATE-----%0AMII"), "{cert}");
        assert!(
            cert.ends_with("%0A-----END%20CERTIFICATE-----%0A") && !cert.contains(['+', '/', ' ']),
            "{cert}"
        );
        format!("{before}…{rest}")
    }

    #[test]
    fn names_are_told_as_envoy_tells_them() {
        let names =
            [(DnType::CountryName, "DE"), (DnType::OrganizationName, "A, B"), (DnType::CommonName, "jason")];
        assert_eq!(
            told(&names, &["spiffe://a/ns/b/sa/c"], &["one.com", "two.com"], &["spiffe://a/ns/edge/sa/edge"]),
            "By=spiffe://a/ns/edge/sa/edge;…Subject=\"CN=jason,O=A\\, B,C=DE\";URI=spiffe://a/ns/b/sa/c;DNS=one.com;DNS=two.com"
        );
        assert_eq!(told(&[], &[], &[], &[]), "…Subject=\"\";URI=");
    }

    #[test]
    fn a_name_cannot_pretend_to_be_another_field() {
        let names = [(DnType::CommonName, "a\";URI=spiffe://b")];
        assert_eq!(
            told(&names, &[], &["a;URI=spiffe://b"], &[]),
            "…Subject=\"CN=a\\\"\\;URI=spiffe://b\";URI=;DNS=\"a;URI=spiffe://b\""
        );
    }
}
