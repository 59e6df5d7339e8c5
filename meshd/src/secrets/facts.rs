//! What a secret's files say, and whether they work together.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use mesh_proto::command::Timestamp;
use mesh_proto::secret::SecretView;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Files;
use crate::transport::provider;

/// What a secret's files say.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) names: Vec<String>,
    issuer: String,
    pub(super) sha256: String,
    /// From when to when.
    pub(super) valid: Option<(SystemTime, SystemTime)>,
    /// What its owner should know although it works.
    pub(super) warnings: Vec<String>,
}

impl Facts {
    /// Reads them; fails, in words, where they do not work together or no longer.
    pub(super) fn of(files: &Files, now: SystemTime) -> Result<Self, String> {
        let mut facts = Self::default();
        match (files.get("tls.crt"), files.get("tls.key")) {
            (Some(chain), Some(key)) => facts.read_pair(chain, key, now)?,
            (Some(_), None) => return Err("tls.crt has no tls.key beside it".to_owned()),
            (None, Some(_)) => return Err("tls.key has no tls.crt beside it".to_owned()),
            (None, None) if files.contains_key("ca.crt") => {}
            (None, None) => {
                return Err("there is neither a pair of tls.crt and tls.key nor a ca.crt".to_owned());
            }
        }
        if let Some(roots) = files.get("ca.crt") {
            facts.read_roots(roots, now)?;
        }
        if let Some(lists) = files.get("ca.crl") {
            if !files.contains_key("ca.crt") {
                return Err(
                    "ca.crl has no ca.crt beside it: a list is checked against who made it".to_owned()
                );
            }
            facts.read_lists(lists, now)?;
        }
        Ok(facts)
    }

    /// Puts them into what may be shown.
    pub(super) fn into_view(self) -> SecretView {
        let moment = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        };
        SecretView {
            names: self.names,
            issuer: self.issuer,
            sha256: self.sha256,
            not_before: self.valid.map(|(begin, _)| moment(begin)),
            not_after: self.valid.map(|(_, end)| moment(end)),
            problem: (!self.warnings.is_empty()).then(|| self.warnings.join("; ")),
            ..SecretView::default()
        }
    }

    fn read_pair(&mut self, chain: &str, key: &str, now: SystemTime) -> Result<(), String> {
        let chain = certificates("tls.crt", chain)?;
        let parsed: Vec<X509Certificate<'_>> =
            chain.iter().map(|one| parse("tls.crt", one)).collect::<Result<_, _>>()?;
        for (at, (one, next)) in parsed.iter().zip(parsed.iter().skip(1)).enumerate() {
            if one.issuer() != next.subject() {
                return Err(format!(
                    "tls.crt is out of order: certificate {} ({}) did not sign certificate {} ({}); write the \
                     certificate of the server first, then who signed it, and so on",
                    at + 2,
                    next.subject(),
                    at + 1,
                    one.subject()
                ));
            }
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
            format!("tls.key holds no private key in PEM ({error}); an encrypted one must be decrypted first")
        })?;
        CertifiedKey::from_der(chain.clone(), key, provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                "tls.key is not the key of the first certificate of tls.crt".to_owned()
            }
            error => format!("tls.key cannot be used: {error}"),
        })?;
        let Some(leaf) = parsed.first() else { return Err("tls.crt holds no certificate".to_owned()) };
        self.names = names(leaf);
        self.issuer = leaf.issuer().to_string();
        self.sha256 =
            chain.first().map_or_else(String::new, |leaf| HEXLOWER.encode(digest(&SHA256, leaf).as_ref()));
        let (begin, end) = validity(leaf);
        self.valid = Some((begin, end));
        if end <= now {
            return Err(format!("the certificate of tls.crt expired {} ago", span(now, end)));
        }
        if begin > now {
            self.warnings.push(format!("tls.crt is valid only in {}", span(begin, now)));
        }
        if let Ok(left) = end.duration_since(now)
            && left < SOON.min(end.duration_since(begin).unwrap_or_default() / 4)
        {
            self.warnings.push(format!("tls.crt expires in {}", span(end, now)));
        }
        if leaf.is_ca() && chain.len() > 1 {
            self.warnings
                .push("the first certificate of tls.crt is an authority's, not a server's".to_owned());
        }
        Ok(())
    }

    fn read_roots(&mut self, roots: &str, now: SystemTime) -> Result<(), String> {
        let roots = certificates("ca.crt", roots)?;
        let mut ends = Vec::new();
        for root in &roots {
            webpki::anchor_from_trusted_cert(root)
                .map_err(|error| format!("a certificate of ca.crt cannot be a root: {error}"))?;
            let parsed = parse("ca.crt", root)?;
            let (begin, end) = validity(&parsed);
            if end <= now {
                self.warnings.push(format!("{} of ca.crt expired {} ago", parsed.subject(), span(now, end)));
            }
            ends.push((begin, end, parsed.subject().to_string()));
        }
        if self.valid.is_none()
            && let Some((begin, end, subject)) = ends.into_iter().min_by_key(|(_, end, _)| *end)
        {
            self.valid = Some((begin, end));
            self.names = vec![subject];
            self.sha256 = roots
                .first()
                .map_or_else(String::new, |root| HEXLOWER.encode(digest(&SHA256, root).as_ref()));
        }
        Ok(())
    }

    fn read_lists(&mut self, lists: &str, now: SystemTime) -> Result<(), String> {
        let found =
            CertificateRevocationListDer::pem_slice_iter(lists.as_bytes()).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|error| format!("ca.crl is no PEM: {error}"))?;
        if found.is_empty() {
            return Err("ca.crl holds no revocation list".to_owned());
        }
        for list in &found {
            let parsed = x509_parser::revocation_list::CertificateRevocationList::from_der(list);
            let (_, parsed) = parsed.map_err(|error| format!("ca.crl is damaged: {error}"))?;
            let end = parsed.next_update().map(|end| time_of(end.timestamp()));
            if let Some(end) = end.filter(|end| *end <= now) {
                let ago = span(now, end);
                self.warnings.push(format!(
                    "ca.crl is out of date since {ago}: every visitor's certificate is refused"
                ));
            }
        }
        Ok(())
    }
}

fn certificates(file: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| format!("{file} is no PEM: {error}"))?;
    if found.is_empty() { Err(format!("{file} holds no certificate in PEM")) } else { Ok(found) }
}

fn parse<'a>(file: &str, certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|error| format!("a certificate of {file} is damaged: {error}"))
}

/// The names a certificate is for; its subject where it has no others.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let others = certificate.subject_alternative_name().ok().flatten();
    let others = others.into_iter().flat_map(|names| &names.value.general_names);
    let found: Vec<String> = others
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).ok().map(std::net::IpAddr::from);
                let six = || <[u8; 16]>::try_from(*bytes).ok().map(std::net::IpAddr::from);
                four.or_else(six).map(|address| address.to_string())
            }
            _ => None,
        })
        .collect();
    if found.is_empty() { vec![certificate.subject().to_string()] } else { found }
}

fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    (time_of(validity.not_before.timestamp()), time_of(validity.not_after.timestamp()))
}

fn time_of(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Words for the time between two moments.
fn span(later: SystemTime, earlier: SystemTime) -> String {
    let seconds = later.duration_since(earlier).unwrap_or_default().as_secs();
    match seconds {
        0..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A certificate that ends sooner is worth a word, unless its whole life is short: what renews it did so long ago.
const SOON: Duration = Duration::from_hours(14 * 24);
