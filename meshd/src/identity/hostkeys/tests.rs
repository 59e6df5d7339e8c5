use std::fs;

use super::*;

#[test]
fn keys_are_made_once_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert!(HostKeys::open(&data).unwrap().is_none());
    let made = HostKeys::open_or_make(&data).unwrap();
    let read = HostKeys::open_or_make(&data).unwrap();
    assert_eq!(made.public_key(), read.public_key());
    assert_eq!(made.wrap_public_key(), read.wrap_public_key());
    assert_eq!(made.derived("a").reveal(), read.derived("a").reveal());
    assert_ne!(made.derived("a").reveal(), made.derived("b").reveal());
}

#[test]
fn a_missing_or_damaged_key_is_told_and_never_replaced() {
    for name in ["host.key", "wrap.key"] {
        let folder = tempfile::tempdir().unwrap();
        HostKeys::open_or_make(folder.path()).unwrap();
        let path = folder.path().join(name);
        files::write(&path, &Secret::new(b"nonsense!".to_vec())).unwrap();
        let message = HostKeys::open_or_make(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("damaged"), "{message}");
        fs::remove_file(&path).unwrap();
        let message = HostKeys::open_or_make(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("missing"), "{message}");
    }
}

#[test]
fn debug_shows_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let keys = HostKeys::open_or_make(folder.path()).unwrap();
    assert_eq!(format!("{keys:?}"), "HostKeys { .. }");
}

#[test]
fn a_signature_of_the_host_key_verifies_under_its_public_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = HostKeys::open_or_make(folder.path()).unwrap();
    let signature = keys.sign(b"challenge").unwrap();
    let public = keys.public_key();
    let point = &public[public.len() - 65..];
    let key =
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, point);
    key.verify(b"challenge", &signature).unwrap();
}
