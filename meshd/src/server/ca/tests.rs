use rcgen::{PKCS_ED25519, string::Ia5String};
use rustls::pki_types::UnixTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::transport::Trust;
use crate::transport::verify::{CertificateFault, Side, verify};

const DOMAIN: &str = "mesh.test";
const HOUR: Duration = Duration::from_hours(1);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn authority() -> Authority {
    let root = Authority::new_root(DOMAIN, now()).unwrap();
    Authority::from_root(DOMAIN, root.key, root.certificate, now()).unwrap()
}

fn reviews() -> Identity {
    Identity::workload(DOMAIN, "default", "reviews").unwrap()
}

fn csr(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(&key).unwrap().der().to_vec()
}

fn trust(authority: &Authority) -> std::sync::Arc<Trust> {
    Trust::new(DOMAIN, vec![authority.root().clone()]).unwrap()
}

#[test]
fn a_signed_leaf_proves_its_identity_on_both_sides_for_a_day() {
    let authority = authority();
    let chain = authority.sign(&csr(|_| {}), &reviews(), LEAF, now()).unwrap();
    assert_eq!(chain.len(), 2);
    let trust = trust(&authority);
    for side in [Side::Client, Side::Server] {
        let proven = verify(&trust, &chain, side, unix(now())).unwrap();
        assert_eq!(proven.identity, reviews());
        assert_eq!(proven.validity.not_before, now() - BACKDATE);
        assert_eq!(proven.validity.not_after, now() + LEAF);
    }
    let late = verify(&trust, &chain, Side::Client, unix(now() + LEAF + HOUR)).unwrap_err();
    assert!(matches!(late, CertificateFault::Expired { .. }));
}

#[test]
fn nothing_of_a_request_but_its_public_key_is_used() {
    let greedy = csr(|params| {
        let other: Ia5String = "spiffe://mesh.test/ns/default/sa/ratings".try_into().unwrap();
        params.subject_alt_names =
            vec![SanType::URI(other), SanType::DnsName("evil.test".try_into().unwrap())];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.distinguished_name.push(DnType::CommonName, "root");
    });
    let chain = authority().sign(&greedy, &reviews(), LEAF, now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1);
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.code_signing);
}

#[test]
fn a_request_that_is_damaged_forged_too_long_or_of_another_kind_is_refused() {
    let authority = authority();
    let sign = |csr: &[u8]| authority.sign(csr, &reviews(), LEAF, now()).unwrap_err();
    assert!(matches!(sign(b"nonsense"), CaError::BadRequest(_)));
    assert!(matches!(sign(&[0; MAX_CSR_BYTES + 1]), CaError::RequestTooLong(_)));
    let mut forged = csr(|_| {});
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(sign(&forged), CaError::BadRequest(_)));
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let other_kind = CertificateParams::default().serialize_request(&ed25519).unwrap();
    assert!(matches!(sign(other_kind.der()), CaError::WrongKeyKind));
}

#[test]
fn names_of_other_domains_and_names_that_do_not_parse_are_not_certified() {
    let authority = authority();
    let other = Identity::workload("other.test", "default", "reviews").unwrap();
    let crooked = Identity::Workload {
        trust_domain: DOMAIN.to_owned(),
        namespace: "default/sa/admin".to_owned(),
        account: "x".to_owned(),
    };
    for identity in [other, crooked] {
        let error = authority.sign(&csr(|_| {}), &identity, LEAF, now()).unwrap_err();
        assert!(matches!(error, CaError::WrongDomain { .. }), "{error}");
    }
    for lifetime in [Duration::ZERO, LEAF + HOUR] {
        let error = authority.sign(&csr(|_| {}), &reviews(), lifetime, now()).unwrap_err();
        assert!(matches!(error, CaError::BadLifetime(_)), "{error}");
    }
}

#[test]
fn the_intermediate_is_renewed_at_half_its_life_and_signs_no_other_authority() {
    let authority = authority();
    let intermediate = |at| authority.sign(&csr(|_| {}), &reviews(), LEAF, at).unwrap()[1].clone();
    let first = intermediate(now());
    assert_eq!(intermediate(now() + 83 * HOUR), first);
    let second = intermediate(now() + 85 * HOUR);
    assert_ne!(second, first);
    let (_, parsed) = X509Certificate::from_der(&second).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert_eq!(constraints.path_len_constraint, Some(0));
    let days = (parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 7);
}

#[test]
fn a_key_of_another_root_and_an_expired_root_are_refused() {
    let (one, two) =
        (Authority::new_root(DOMAIN, now()).unwrap(), Authority::new_root(DOMAIN, now()).unwrap());
    let error = Authority::from_root(DOMAIN, two.key, one.certificate.clone(), now()).unwrap_err();
    assert!(matches!(error, CaError::WrongRootKey));
    let error = Authority::from_root(DOMAIN, one.key, one.certificate, now() + ROOT + HOUR).unwrap_err();
    assert!(matches!(error, CaError::RootNotValid));
}

#[test]
fn serial_numbers_differ() {
    let authority = authority();
    let request = csr(|_| {});
    let serial = || {
        let chain = authority.sign(&request, &reviews(), LEAF, now()).unwrap();
        crate::transport::verify::read(&chain[0]).unwrap().serial
    };
    assert_ne!(serial(), serial());
}
