use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::transport::Trust;
use crate::transport::testing::{DOMAIN, Mesh};

fn host() -> Identity {
    Identity::host(DOMAIN, "1").unwrap()
}

fn reviews() -> Identity {
    Identity::workload(DOMAIN, "default", "reviews").unwrap()
}

type Chain = Vec<CertificateDer<'static>>;
type Signer = Box<dyn Fn(Identity, Vec<u8>) -> std::future::Ready<Result<Chain, String>> + Send + Sync>;
type Answer = Box<dyn Fn(Vec<u8>) -> Chain + Send + Sync>;

/// One host, its folder, and the mesh that signs for it. Its clock is tokio's, which tests stop.
struct Host {
    folder: tempfile::TempDir,
    keys: Arc<HostKeys>,
    mesh: Arc<Mesh>,
    trust: Arc<Trust>,
    signed: Arc<AtomicUsize>,
    is_up: Arc<AtomicBool>,
    started: (SystemTime, Instant),
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mesh = Arc::new(Mesh::new());
        Self {
            keys: Arc::new(HostKeys::open_or_make(folder.path()).unwrap()),
            trust: mesh.trust(),
            mesh,
            folder,
            signed: Arc::default(),
            is_up: Arc::new(AtomicBool::new(true)),
            started: (SystemTime::now(), Instant::now()),
        }
    }

    /// A meshd on this host, started anew: nothing but the folder is left of an earlier one.
    fn start(&self) -> (Arc<Credentials>, Rotation<Signer>, RotationHandle) {
        let credentials = Credentials::new(self.trust.clone());
        let settings = RotationSettings {
            credentials: credentials.clone(),
            keys: self.keys.clone(),
            host: host(),
            folder: self.folder.path().join("certificates"),
        };
        let (mesh, signed, is_up) = (self.mesh.clone(), self.signed.clone(), self.is_up.clone());
        let (wall, at) = self.started;
        let signer: Signer = Box::new(move |identity: Identity, csr: Vec<u8>| {
            signed.fetch_add(1, Ordering::Relaxed);
            let now = wall + at.elapsed();
            std::future::ready(if is_up.load(Ordering::Relaxed) {
                Ok(mesh.sign(&csr, &identity, now))
            } else {
                Err("no voter answers".to_owned())
            })
        });
        let (rotation, handle) = Rotation::new(settings, signer);
        (credentials, rotation, handle)
    }
}

/// Waits until what is known about the identities is as a test wants it.
async fn until(handle: &RotationHandle, is_so: impl FnMut(&BTreeMap<Identity, Standing>) -> bool) {
    let mut standings = handle.standings();
    standings.wait_for(is_so).await.unwrap();
}

fn is_certified(standings: &BTreeMap<Identity, Standing>, identity: &Identity) -> bool {
    standings.get(identity).is_some_and(|standing| standing.validity.is_some())
}

#[tokio::test]
async fn the_host_and_what_is_wanted_are_certified_and_the_rest_is_forgotten() {
    let machine = Host::new();
    let (credentials, mut rotation, handle) = machine.start();
    assert_eq!(rotation.restore().unwrap(), 0);
    let running = crate::task::spawn("rotation", rotation.run());
    handle.want([reviews()].into());
    until(&handle, |s| is_certified(s, &host()) && is_certified(s, &reviews())).await;
    assert_eq!(credentials.host().as_deref(), Some(&host()));
    assert_eq!(credentials.identities(), [host(), reviews()].into());
    handle.want(BTreeSet::new());
    until(&handle, |s| !s.contains_key(&reviews())).await;
    assert_eq!(credentials.identities(), [host()].into());
    assert_eq!(fs::read_dir(machine.folder.path().join("certificates")).unwrap().count(), 1);
    drop(handle);
    running.await.unwrap();
}

#[tokio::test]
async fn a_restarted_host_serves_from_disk_before_any_network() {
    let machine = Host::new();
    let (_, rotation, handle) = machine.start();
    let running = crate::task::spawn("rotation", rotation.run());
    handle.want([reviews()].into());
    until(&handle, |s| is_certified(s, &host()) && is_certified(s, &reviews())).await;
    drop(handle);
    running.await.unwrap();
    machine.is_up.store(false, Ordering::Relaxed);
    let asked = machine.signed.load(Ordering::Relaxed);
    let (credentials, mut rotation, _handle) = machine.start();
    assert_eq!(rotation.restore().unwrap(), 2);
    assert_eq!(credentials.identities(), [host(), reviews()].into());
    assert_eq!(machine.signed.load(Ordering::Relaxed), asked);
}

#[tokio::test]
async fn a_damaged_certificate_on_disk_is_passed_over() {
    let machine = Host::new();
    let folder = machine.folder.path().join("certificates");
    files::make_folder(&folder).unwrap();
    let nonsense = crate::transport::Secret::new(b"nonsense".to_vec());
    files::write(&folder.join("host.pem"), &nonsense).unwrap();
    let (_, mut rotation, _handle) = machine.start();
    assert_eq!(rotation.restore().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_around_half_its_life() {
    let machine = Host::new();
    let (credentials, rotation, handle) = machine.start();
    let _running = crate::task::spawn("rotation", rotation.run());
    until(&handle, |s| is_certified(s, &host())).await;
    let first = credentials.get(&host()).unwrap().cert.clone();
    let began = Instant::now();
    let mut before = None;
    until(&handle, |s| {
        let validity = s[&host()].validity;
        let is_renewed = before.is_some() && validity != before;
        before = validity;
        is_renewed
    })
    .await;
    let hours = began.elapsed().as_secs_f64() / 3600.0;
    assert!((10.7..13.3).contains(&hours), "{hours}");
    assert_ne!(credentials.get(&host()).unwrap().cert, first);
}

#[tokio::test(start_paused = true)]
async fn a_signer_that_fails_is_asked_again_until_it_answers() {
    let machine = Host::new();
    machine.is_up.store(false, Ordering::Relaxed);
    let (credentials, rotation, handle) = machine.start();
    let _running = crate::task::spawn("rotation", rotation.run());
    until(&handle, |s| s.get(&host()).is_some_and(|standing| standing.failures == 5)).await;
    let error = handle.standings().borrow()[&host()].error.clone();
    assert_eq!(error.as_deref(), Some("no voter answers"));
    assert!(credentials.get(&host()).is_none());
    machine.is_up.store(true, Ordering::Relaxed);
    until(&handle, |s| is_certified(s, &host())).await;
    assert_eq!(handle.standings().borrow()[&host()].failures, 0);
}

#[tokio::test]
async fn an_answer_for_another_identity_or_key_is_not_installed() {
    let machine = Host::new();
    let (mesh, trust) = (machine.mesh.clone(), machine.trust.clone());
    let other_key = request(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()).unwrap();
    let answers: [Answer; 2] = [
        {
            let mesh = mesh.clone();
            Box::new(move |csr| mesh.sign(&csr, &reviews(), SystemTime::now()))
        },
        Box::new(move |_| mesh.sign(&other_key, &host(), SystemTime::now())),
    ];
    for answer in answers {
        let credentials = Credentials::new(trust.clone());
        let settings = RotationSettings {
            credentials: credentials.clone(),
            keys: machine.keys.clone(),
            host: host(),
            folder: machine.folder.path().join("certificates"),
        };
        let signer = move |_, csr| std::future::ready(Ok::<_, String>(answer(csr)));
        let (rotation, handle) = Rotation::new(settings, signer);
        let running = crate::task::spawn("rotation", rotation.run());
        until(&handle, |s| s.get(&host()).is_some_and(|standing| standing.error.is_some())).await;
        assert!(credentials.identities().is_empty());
        drop(handle);
        running.await.unwrap();
    }
}

/// What the certificates in a folder of a release say, as openssl read them.
#[derive(serde::Deserialize)]
struct Meant {
    /// Seconds since 1970 at which all were valid.
    at: u64,
    identity: String,
    certificates: BTreeMap<String, MeantCertificate>,
}

#[derive(serde::Deserialize)]
struct MeantCertificate {
    not_before: u64,
    not_after: u64,
    issuer: String,
    root: String,
}

/// Reads the certificates of a release as a start does, verified at the time they were made for: they have ended since.
fn is_still_certified(released: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("certificates")).unwrap();
    let listed = fs::read_dir(released.join("certificates")).unwrap().flatten().map(|entry| entry.path());
    for from in [released.join("host.key"), released.join("wrap.key")].into_iter().chain(listed) {
        let to = data.path().join(from.strip_prefix(released).unwrap());
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(released.join(name)).unwrap()).unwrap()
    };
    let meant: Meant = serde_json::from_value(read("meant.json")).unwrap();
    let state = read("host.json");
    let root = state["mesh"]["roots"][0].as_str().unwrap().as_bytes();
    let root = CertificateDer::from(data_encoding::BASE64.decode(root).unwrap());
    let trust = Trust::new(state["mesh"]["trust_domain"].as_str().unwrap(), vec![root]).unwrap();
    let keys = Arc::new(HostKeys::open(data.path()).unwrap().unwrap());
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);

    let mut loaded = Store::new(data.path().join("certificates"), keys).load().unwrap();

    loaded.sort_by_key(|(identity, _)| identity.to_string());
    let names: Vec<String> = loaded.iter().map(|(identity, _)| identity.to_string()).collect();
    assert!(names.iter().eq(meant.certificates.keys()), "{names:?}");
    assert!(names.contains(&meant.identity));
    for (identity, key) in &loaded {
        let meant_here = &meant.certificates[&identity.to_string()];
        let validity = checked(&trust, identity, &key.cert, time(meant.at)).unwrap();
        assert_eq!(
            (validity.not_before, validity.not_after),
            (time(meant_here.not_before), time(meant_here.not_after))
        );
        let issuers: Vec<String> = key
            .cert
            .iter()
            .map(|certificate| {
                x509_parser::parse_x509_certificate(certificate).unwrap().1.issuer().to_string()
            })
            .collect();
        assert_eq!(issuers, [meant_here.issuer.clone(), meant_here.root.clone()], "{identity}");
        let late = checked(&trust, identity, &key.cert, time(meant_here.not_after + 1));
        assert!(late.is_err(), "a certificate that has ended is of no use");
    }
}

#[test]
fn every_released_folder_of_certificates_says_what_it_said() {
    let released = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let mut versions = 0;
    for version in fs::read_dir(released).unwrap().flatten() {
        let folder = version.path().join("identity");
        if folder.is_dir() {
            is_still_certified(&folder);
            versions += 1;
        }
    }
    assert!(versions > 0);
}
