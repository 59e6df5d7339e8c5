use std::time::{Duration, SystemTime};

use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::*;
use crate::transport::testing::*;

fn verified(
    mesh: &Mesh,
    uris: &[&str],
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> Result<Proven, CertificateFault> {
    let uris: Vec<String> = uris.iter().map(|&uri| uri.to_owned()).collect();
    let key = mesh.custom(&uris, change);
    verify(&mesh.trust(), &key.cert, Side::Client, UnixTime::now())
}

const PRODUCTPAGE: &str = "spiffe://mesh.test/ns/default/sa/productpage";

#[test]
fn a_sound_certificate_proves_its_identity_serial_and_times() {
    let proven = verified(&Mesh::new(), &[PRODUCTPAGE], |_| {}).unwrap();
    assert_eq!(proven.identity, workload("productpage"));
    assert!(!proven.serial.is_empty());
    assert!(proven.validity.remaining(SystemTime::now()) > Duration::ZERO);
}

#[test]
fn each_fault_has_its_own_class() {
    let mesh = Mesh::new();
    let hour = Duration::from_hours(1);
    let class = |uris: &[&str], change: &dyn Fn(&mut rcgen::CertificateParams)| {
        verified(&mesh, uris, change).unwrap_err().class()
    };
    let nothing = |_: &mut rcgen::CertificateParams| {};
    assert_eq!(class(&[], &nothing), "no_uri");
    assert_eq!(class(&[PRODUCTPAGE, PRODUCTPAGE], &nothing), "many_names");
    assert_eq!(class(&["spiffe://other.test/ns/default/sa/productpage"], &nothing), "wrong_domain");
    assert_eq!(class(&["https://mesh.test/ns/default/sa/productpage"], &nothing), "not_an_identity");
    assert_eq!(class(&["spiffe://mesh.test/ns/default/sa/product%2fpage"], &nothing), "not_an_identity");
    assert_eq!(class(&[PRODUCTPAGE], &|p| p.not_after = (SystemTime::now() - hour).into()), "expired");
    assert_eq!(class(&[PRODUCTPAGE], &|p| p.not_before = (SystemTime::now() + hour).into()), "not_yet_valid");
    assert_eq!(class(&[PRODUCTPAGE], &|p| p.extended_key_usages = vec![]), "wrong_purpose");
    let server_only = |p: &mut rcgen::CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert_eq!(class(&[PRODUCTPAGE], &server_only), "wrong_purpose");
    let with_dns = |p: &mut rcgen::CertificateParams| {
        p.subject_alt_names.push(SanType::DnsName("mesh.test".try_into().unwrap()));
    };
    assert_eq!(class(&[PRODUCTPAGE], &with_dns), "many_names");
    assert_eq!(class(&[], &with_dns), "no_uri");
}

#[test]
fn a_certificate_of_another_mesh_with_the_same_names_is_refused() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let key = theirs.certify(&workload("productpage"));
    let fault = verify(&ours.trust(), &key.cert, Side::Client, UnixTime::now()).unwrap_err();
    assert_eq!(fault, CertificateFault::UnknownIssuer);
}

#[test]
fn a_chain_of_more_than_four_is_refused() {
    let mesh = Mesh::new();
    let (first, issuer) = authority("a", &mesh.root_issuer);
    let (second, issuer) = authority("b", &issuer);
    let chain = vec![second.clone(), first.clone()];
    let uris = [PRODUCTPAGE.to_owned()];
    let four = certify(&issuer, [chain.clone(), vec![mesh.root.clone()]].concat(), &uris, |_| {});
    verify(&mesh.trust(), &four.cert, Side::Client, UnixTime::now()).unwrap();
    let five =
        certify(&issuer, [chain, vec![mesh.intermediate.clone(), mesh.root.clone()]].concat(), &uris, |_| {});
    let fault = verify(&mesh.trust(), &five.cert, Side::Client, UnixTime::now()).unwrap_err();
    assert_eq!(fault, CertificateFault::ChainTooLong(5));
}

#[test]
fn garbage_is_malformed_and_never_a_panic() {
    let mesh = Mesh::new();
    let sound = mesh.certify(&workload("productpage")).cert[0].to_vec();
    let mut dice = fastrand::Rng::with_seed(1);
    for _ in 0..500 {
        let mut bytes = sound.clone();
        let at = dice.usize(..bytes.len());
        bytes[at] ^= dice.u8(1..);
        let chain = [CertificateDer::from(bytes), mesh.intermediate.clone()];
        assert!(verify(&mesh.trust(), &chain, Side::Client, UnixTime::now()).is_err());
    }
    let empty = [CertificateDer::from(Vec::new())];
    let fault = verify(&mesh.trust(), &empty, Side::Client, UnixTime::now()).unwrap_err();
    assert_eq!(fault, CertificateFault::Malformed);
    assert_eq!(
        verify(&mesh.trust(), &[], Side::Client, UnixTime::now()).unwrap_err(),
        CertificateFault::Malformed
    );
}

#[test]
fn an_error_of_rustls_gives_the_fault_back() {
    let faults = [
        CertificateFault::Malformed,
        CertificateFault::UnknownIssuer,
        CertificateFault::Expired { time: 20, not_after: 10 },
        CertificateFault::NotYetValid { time: 10, not_before: 20 },
        CertificateFault::WrongPurpose,
        CertificateFault::ManyNames(2),
        CertificateFault::WrongKind(host("1")),
    ];
    for fault in faults {
        assert_eq!(CertificateFault::of(&Error::from(fault.clone())), Some(fault));
    }
}

#[test]
fn the_messages_are_one_line_and_say_what_to_do() {
    let expired = CertificateFault::Expired { time: 10_000, not_after: 2_800 };
    assert_eq!(expired.to_string(), "the certificate expired 2 h ago");
    let early = CertificateFault::NotYetValid { time: 0, not_before: 300 };
    assert_eq!(early.to_string(), "the certificate is valid only in 5 min; check both clocks");
}
