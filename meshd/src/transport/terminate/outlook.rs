//! How a gateway's certificates stand: what cannot be shown, and how long the others last.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::lifetime::Validity;
use mesh_core::plan::{Credential, ServerTls};
use rustls::pki_types::CertificateDer;

use super::super::tls::Credentials;
use super::super::verify;
use super::{TerminateError, files_of, made_of, mesh_config};

/// How one certificate of a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// The secret, the file, or the identity it comes from.
    pub from: String,
    /// From when to when it is valid.
    pub validity: Validity,
}

impl Outlook {
    /// Returns what a person must know: it has expired, or less than a tenth of its life is left.
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let Self { from, validity } = self;
        let Ok(left) = validity.not_after.duration_since(now) else {
            return Some(format!("the certificate of {from} has expired: visitors turn away"));
        };
        if validity.not_before > now {
            return Some(format!("the certificate of {from} is not valid yet: visitors turn away"));
        }
        let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let hours = left.as_secs() / 3_600;
        let words = if hours >= 48 { format!("{} days", hours / 24) } else { format!("{hours} h") };
        (left < life / 10).then(|| format!("the certificate of {from} expires in {words}"))
    }
}

/// Reads what visitors are shown under a rule, as a handshake would. The thread waits for the disk.
///
/// # Errors
/// It cannot be shown.
pub fn outlook(
    settings: &Arc<ServerTls>,
    secrets: &Path,
    credentials: &Arc<Credentials>,
) -> Result<Vec<Outlook>, TerminateError> {
    if let [Credential::Mesh(identity)] = settings.certificates.as_slice() {
        let key = credentials.get(identity).ok_or_else(|| TerminateError::NotIssued(identity.clone()))?;
        mesh_config(credentials, identity, settings, &[])?;
        let from = || identity.to_string();
        return Ok(key
            .cert
            .first()
            .and_then(validity)
            .map(|validity| Outlook { from: from(), validity })
            .into_iter()
            .collect());
    }
    let material = files_of(settings, secrets)?.read()?;
    let leaves: Vec<_> = material.pairs.iter().map(|pair| pair.cert.first().and_then(validity)).collect();
    made_of(settings, &[], material)?;
    let named = settings.certificates.iter().map(|credential| match credential {
        Credential::Secret(name) => format!("secret {name}"),
        Credential::Files { certificate, .. } => certificate.clone(),
        Credential::Mesh(identity) => identity.to_string(),
    });
    Ok(named.zip(leaves).filter_map(|(from, validity)| Some(Outlook { from, validity: validity? })).collect())
}

fn validity(leaf: &CertificateDer<'_>) -> Option<Validity> {
    verify::validity(leaf).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_is_warned_of_in_its_last_tenth() {
        let day = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400);
        let validity = Validity { not_before: day(100), not_after: day(190) };
        let outlook = Outlook { from: "secret shop".to_owned(), validity };
        for (now, expected) in [
            (99, Some("the certificate of secret shop is not valid yet: visitors turn away")),
            (100, None),
            (180, None),
            (182, Some("the certificate of secret shop expires in 8 days")),
            (189, Some("the certificate of secret shop expires in 24 h")),
            (191, Some("the certificate of secret shop has expired: visitors turn away")),
        ] {
            assert_eq!(outlook.warning(day(now)).as_deref(), expected, "day {now}");
        }
    }
}
