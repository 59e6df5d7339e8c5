use super::*;

fn keys() -> (tempfile::TempDir, HostKeys) {
    let folder = tempfile::tempdir().unwrap();
    let keys = HostKeys::open_or_make(folder.path()).unwrap();
    (folder, keys)
}

fn root_key() -> Secret {
    Secret::new(b"the root key".to_vec())
}

#[test]
fn a_voter_opens_what_is_sealed_for_it_and_nobody_else_does() {
    let ((_a, one), (_b, two)) = (keys(), keys());
    let sealed = seal_for_host(&root_key(), &one.wrap_public_key()).unwrap();
    assert_eq!(unseal_as_host(&sealed, &one).unwrap().reveal(), b"the root key");
    assert_eq!(unseal_as_host(&sealed, &two).unwrap_err(), SealError::WrongKey);
    assert_ne!(sealed, seal_for_host(&root_key(), &one.wrap_public_key()).unwrap());
}

#[test]
fn the_passphrase_opens_what_is_sealed_under_it_however_it_is_typed() {
    let (right, wrong) = (Passphrase::generate().unwrap(), Passphrase::generate().unwrap());
    let sealed = seal_for_recovery(&root_key(), &right).unwrap();
    let typed = right.reveal().to_uppercase().replace('-', " ");
    let opened = unseal_with_passphrase(&sealed, &Passphrase::parse(&typed).unwrap()).unwrap();
    assert_eq!(opened.reveal(), b"the root key");
    assert_eq!(unseal_with_passphrase(&sealed, &wrong).unwrap_err(), SealError::WrongPassphrase);
}

#[test]
fn a_passphrase_has_28_letters_and_is_never_printed() {
    let passphrase = Passphrase::generate().unwrap();
    assert_eq!(passphrase.reveal().len(), 34);
    assert!(passphrase.reveal().is_ascii());
    assert_eq!(format!("{passphrase:?}"), "Passphrase(…)");
    for text in ["", "abcd", "1bcd-abcd-abcd-abcd-abcd-abcd-abcd", "äbcd-abcd-abcd-abcd-abcd-abcd-abcd"] {
        assert!(matches!(Passphrase::parse(text), Err(SealError::NotAPassphrase(_))), "{text}");
    }
}

#[test]
fn an_envelope_for_another_kind_of_holder_says_so() {
    let (_folder, keys) = keys();
    let passphrase = Passphrase::generate().unwrap();
    let for_host = seal_for_host(&root_key(), &keys.wrap_public_key()).unwrap();
    let error = unseal_with_passphrase(&for_host, &passphrase).unwrap_err();
    assert_eq!(error, SealError::OtherKind("a host"));
    let for_recovery = seal_for_recovery(&root_key(), &passphrase).unwrap();
    let error = unseal_as_host(&for_recovery, &keys).unwrap_err();
    assert_eq!(error, SealError::OtherKind("the recovery passphrase"));
}

#[test]
fn a_changed_envelope_does_not_open() {
    let (_folder, keys) = keys();
    let sealed = seal_for_host(&root_key(), &keys.wrap_public_key()).unwrap();
    for at in 0..sealed.len() {
        let mut bytes = sealed.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(unseal_as_host(&changed, &keys).is_err(), "byte {at}");
    }
    for text in ["", "{}", "null", &"x".repeat(20_000)] {
        assert!(matches!(unseal_as_host(text, &keys), Err(SealError::Malformed(_))));
    }
}

#[test]
fn costs_without_bound_are_refused_before_they_are_paid() {
    let text = r#"{"version":1,"holder":{"recovery":{"salt":"AAAAAAAAAAAAAAAAAAAAAA==","memory_kib":4294967295,"passes":1,"lanes":1}},"nonce":"","sealed":""}"#;
    let error = unseal_with_passphrase(text, &Passphrase::generate().unwrap()).unwrap_err();
    assert!(matches!(error, SealError::Malformed(_)), "{error}");
}
