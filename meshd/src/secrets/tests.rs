//! What is taken, what is refused, and what is on the disk afterwards.

use std::os::unix::fs::MetadataExt;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use mesh_proto::secret::Hidden;

use super::*;

/// An authority and what it signed, as PEM.
struct Made {
    root: String,
    leaf: String,
    key: String,
}

fn made(name: &str, until: i32) -> Made {
    let root_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("root of {name}"));
    let root = params.self_signed(&root_key).expect("a root").pem();
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let leaf = params.signed_by(&key, &issuer).expect("a leaf").pem();
    Made { root, leaf, key: key.serialize_pem() }
}

fn secret(replaces: Replaces, files: &[(&str, &str)]) -> NewSecret {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), Hidden((*text).to_owned()))).collect();
    NewSecret { name: "shop".to_owned(), replaces, files }
}

/// 2 January 2026.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_hours(490_920)
}

#[test]
fn what_does_not_work_together_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().join("secrets"));
    let (shop, other, old) = (made("shop.com", 2099), made("other.com", 2099), made("old.com", 2021));
    let wrong_order = format!("{}{}", shop.root, shop.leaf);
    let cut = format!("{}{}", shop.leaf, other.root);
    for (files, expected) in [
        (vec![("tls.crt", shop.leaf.as_str())], "tls.crt has no tls.key"),
        (vec![("tls.key", &shop.key)], "tls.key has no tls.crt"),
        (vec![], "neither a pair"),
        (vec![("tls.crt", &shop.leaf), ("tls.key", &other.key)], "not the key of the first certificate"),
        (vec![("tls.crt", &wrong_order), ("tls.key", &shop.key)], "out of order"),
        (
            vec![("tls.crt", &cut), ("tls.key", &shop.key)],
            "certificate 2 (CN=root of other.com) did not sign",
        ),
        (vec![("tls.crt", &old.leaf), ("tls.key", &old.key)], "expired 1827 days ago"),
        (vec![("tls.crt", "nothing"), ("tls.key", &old.key)], "tls.crt holds no certificate"),
        (vec![("tls.crt", &shop.leaf), ("tls.key", "nothing")], "tls.key holds no private key"),
        (vec![("ca.crt", &shop.root), ("ca.crl", "nothing")], "ca.crl holds no revocation list"),
        (vec![("tls.crt", &shop.leaf), ("tls.key", &shop.key), ("ca.crl", "x")], "ca.crl has no ca.crt"),
        (vec![("ca.crt", &shop.root), ("../x", "x")], "has no file \"../x\""),
    ] {
        let error = store.put(&secret(Replaces::Nothing, &files), now()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} is not about {expected:?}");
    }
    for name in ["", ".", "..", "a/b", ".hidden", "a b"] {
        let new = NewSecret { name: name.to_owned(), ..secret(Replaces::Nothing, &[("ca.crt", &shop.root)]) };
        assert!(matches!(store.put(&new, now()), Err(SecretError::Name(_))), "{name:?}");
    }
    assert!(store.list(now()).is_empty() && !folder.path().join("secrets").exists());
}

#[test]
fn a_secret_is_for_its_owner_alone_and_told_without_its_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().join("secrets"));
    let shop = made("shop.com", 2026 + 1);
    let chain = format!("{}{}", shop.leaf, shop.root);
    let files = [("tls.crt", chain.as_str()), ("tls.key", &shop.key), ("ca.crt", &shop.root)];

    assert_eq!(store.put(&secret(Replaces::Nothing, &files), now()).expect("sound"), Vec::<String>::new());

    let mode = |path: &str| fs::metadata(folder.path().join(path)).expect("there").mode() & 0o777;
    assert_eq!((mode("secrets"), mode("secrets/shop"), mode("secrets/shop/tls.key")), (0o700, 0o700, 0o600));
    let listed = store.list(now());
    let [view] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((view.name.as_str(), view.names.as_slice()), ("shop", &["shop.com".to_owned()][..]));
    assert_eq!(view.files, ["ca.crt", "tls.crt", "tls.key"]);
    assert_eq!((view.issuer.as_str(), view.sha256.len(), &view.problem), ("CN=root of shop.com", 64, &None));
    let text = serde_json::to_string(&listed).expect("JSON");
    assert!(!text.contains("PRIVATE") && !text.contains(shop.key.lines().nth(1).expect("a line")));
}

#[test]
fn rotating_replaces_what_is_given_and_keeps_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().to_owned());
    let (first, second) = (made("shop.com", 2099), made("shop.com", 2098));
    let missing = store.put(&secret(Replaces::Another, &[("ca.crt", &first.root)]), now());
    assert!(matches!(missing, Err(SecretError::Missing(_))));
    let all = [("tls.crt", first.leaf.as_str()), ("tls.key", &first.key), ("ca.crt", &first.root)];
    store.put(&secret(Replaces::Nothing, &all), now()).expect("sound");
    store.put(&secret(Replaces::Nothing, &all), now()).expect("the very same");
    let taken = store.put(&secret(Replaces::Nothing, &[("ca.crt", &first.root)]), now());
    assert!(matches!(taken, Err(SecretError::Taken(_))));

    // The key alone does not go with the certificate that is there: nothing changes.
    store.put(&secret(Replaces::Another, &[("tls.key", &second.key)]), now()).expect_err("another's key");
    let read = |file: &str| fs::read_to_string(folder.path().join("shop").join(file)).expect("there");
    assert_eq!((read("tls.key"), read("tls.crt")), (first.key.clone(), first.leaf.clone()));

    let pair = [("tls.crt", second.leaf.as_str()), ("tls.key", &second.key)];
    store.put(&secret(Replaces::Another, &pair), now()).expect("sound");
    assert_eq!((read("tls.key"), read("tls.crt"), read("ca.crt")), (second.key, second.leaf, first.root));
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    store.delete("shop").expect("there");
    assert!(matches!(store.delete("shop"), Err(SecretError::Missing(_))));
    assert!(fs::read_dir(folder.path()).expect("a folder").next().is_none());
}

#[test]
fn a_certificate_that_ends_soon_is_taken_with_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().to_owned());
    let shop = made("shop.com", 2026);
    let a_week_before = now() - std::time::Duration::from_hours(8 * 24);
    let pair = [("tls.crt", shop.leaf.as_str()), ("tls.key", &shop.key)];

    let warnings = store.put(&secret(Replaces::Nothing, &pair), a_week_before).expect("sound");

    assert_eq!(warnings, ["tls.crt expires in 7 days"]);
    assert_eq!(store.list(now())[0].problem.as_deref(), Some("the certificate of tls.crt expired 24 h ago"));
}

#[test]
fn a_key_that_others_may_read_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::at(folder.path().to_owned());
    let shop = made("shop.com", 2099);
    let files = [("tls.crt", shop.leaf.as_str()), ("tls.key", &shop.key)];
    store.put(&secret(Replaces::Nothing, &files), now()).expect("sound");
    let problem = || store.list(now()).remove(0).problem;
    assert_eq!(problem(), None);

    let key = folder.path().join("shop/tls.key");
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).expect("changed");
    assert_eq!(problem().as_deref(), Some("tls.key may be read by others (mode 0644): chmod 600 it"));
}
