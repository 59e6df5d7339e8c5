//! The certificates in the data folder: how much life is left, and whether each has its chain.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_proto::look::{Check, Grade};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What one file says.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// The file.
    file: String,
    /// The SPIFFE id, or the subject.
    name: String,
    begins: u64,
    ends: u64,
    /// Certificates in the file.
    chain: usize,
}

/// Looks at every certificate file.
pub(super) fn check(folder: &Path, now: SystemTime) -> Vec<Check> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let what = format!("{} cannot be read ({error})", folder.display());
            return vec![Check::skipped("certificates", super::as_root(&what))];
        }
    };
    let pem = |path: &Path| path.extension().is_some_and(|extension| extension == "pem");
    let mut checks = Vec::new();
    let mut least: Option<Facts> = None;
    let mut count = 0;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| pem(path)).take(MAX_FILES) {
        count += 1;
        match read(&path) {
            Ok(facts) => {
                checks.extend(judge(&facts, since_epoch(now)));
                least = match least {
                    Some(least) if least.ends <= facts.ends => Some(least),
                    _ => Some(facts),
                };
            }
            Err(why) => checks.push(Check::new(
                Grade::Warning,
                "certificates",
                format!("{} is damaged: {why}", path.display()),
                "",
                "systemctl restart meshd: a new one is asked for",
            )),
        }
    }
    if let (true, Some(least)) = (checks.is_empty(), least) {
        let left = words(least.ends.saturating_sub(since_epoch(now)));
        checks.push(Check::good(
            "certificates",
            format!("{count}, the first ends in {left}; each has its chain"),
        ));
    }
    checks
}

fn judge(facts: &Facts, now: u64) -> Option<Check> {
    let finding = |grade, what, why, fix| Some(Check::new(grade, "certificates", what, why, fix));
    let ntp = "set the time: timedatectl set-ntp true";
    if now < facts.begins {
        let what =
            format!("that of {} begins in {}: is the clock wrong?", facts.name, words(facts.begins - now));
        return finding(Grade::Error, what, "other hosts refuse this one", ntp);
    }
    if now >= facts.ends {
        let what = format!("that of {} ended {} ago", facts.name, words(now - facts.ends));
        let fix = "meshctl status: does a voter answer? A voter renews its own; an agent must join again (meshctl host remove, meshd join)";
        return finding(Grade::Error, what, "other hosts refuse this one", fix);
    }
    let (life, left) = (facts.ends - facts.begins, facts.ends - now);
    // Renewal is tried from about half of its life on.
    if left < life / 4 {
        let what = format!("that of {} ends in {} and was not renewed", facts.name, words(left));
        let fix = "meshctl status: does a voter answer? journalctl -u meshd | grep certificate";
        return finding(Grade::Warning, what, "then other hosts refuse this one", fix);
    }
    if facts.chain < 2 {
        let what = format!("{} holds no intermediate", facts.file);
        return finding(
            Grade::Error,
            what,
            "other hosts cannot verify it",
            "systemctl restart meshd: a new one is asked for",
        );
    }
    None
}

fn read(path: &Path) -> Result<Facts, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let leaf = chain.first().ok_or("it holds no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = leaf.validity();
    Ok(Facts {
        file: path.display().to_string(),
        name: name(&leaf),
        begins: seconds(validity.not_before),
        ends: seconds(validity.not_after),
        chain: chain.len(),
    })
}

fn name(leaf: &X509Certificate<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    let names = leaf.subject_alternative_name().ok().flatten();
    let uri = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    });
    uri.unwrap_or_else(|| leaf.subject().to_string())
}

/// Seconds, as people say them.
fn words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn since_epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

const MAX_FILES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(chain: usize) -> Facts {
        Facts { file: "a.pem".into(), name: "spiffe://x/host/1".into(), begins: 1_000, ends: 87_400, chain }
    }

    #[test]
    fn a_certificate_is_judged_by_its_clock_its_life_and_its_chain() {
        let grade = |chain, now| judge(&facts(chain), now).map(|check| check.grade);

        assert_eq!(grade(2, 2_000), None);
        assert_eq!(grade(1, 2_000), Some(Grade::Error));
        assert_eq!(grade(2, 80_000), Some(Grade::Warning));
        assert_eq!(grade(2, 90_000), Some(Grade::Error));
        assert_eq!(grade(2, 400), Some(Grade::Error));
        assert!(judge(&facts(2), 400).is_some_and(|check| check.what.contains("is the clock wrong?")));
    }

    #[test]
    fn a_file_is_read_with_its_chain_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("parameters");
        (parameters.not_before, parameters.not_after) =
            (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 1, 2));
        let certificate = parameters.self_signed(&key).expect("signed");
        std::fs::write(folder.path().join("host.pem"), certificate.pem()).expect("written");
        std::fs::write(folder.path().join("odd.pem"), "-----BEGIN CERTIFICATE-----\n").expect("written");

        let checks = check(folder.path(), SystemTime::now());

        assert_eq!(checks.len(), 2, "{checks:?}");
        assert!(checks.iter().any(|check| check.what.contains("ended")), "{checks:?}");
        assert!(checks.iter().any(|check| check.what.contains("odd.pem is damaged")), "{checks:?}");
    }
}
