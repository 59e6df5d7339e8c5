//! Keeps a valid certificate for the host and for each of its workloads.
//!
//! A key is made here, a CSR goes to a signer (any voter; the closure comes from `app`), and the answer is checked, kept
//! on disk and installed for new handshakes. When to renew and when to try again is `core::identity::lifetime`'s to
//! say. What is on disk serves before any network does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::Identity;
use mesh_core::identity::lifetime::{Validity, retry_after};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::files::{self, FileError};
use super::hostkeys::{HostKeys, certified, request};
use crate::transport::verify::{self, Side};
use crate::transport::{Credentials, Trust};

mod store;
pub(super) use store::Store;

/// What rotation works on.
#[derive(Debug, Clone)]
pub struct RotationSettings {
    /// Where certificates are installed.
    pub credentials: Arc<Credentials>,
    /// The host's keys.
    pub keys: Arc<HostKeys>,
    /// The host's own identity, always wanted.
    pub host: Identity,
    /// Where certificates and workload keys are kept: a folder of its own in the data folder.
    pub folder: PathBuf,
}

/// Renews certificates until the last [`RotationHandle`] is gone.
#[derive(Debug)]
pub struct Rotation<S> {
    settings: RotationSettings,
    store: Store,
    signer: Arc<S>,
    wanted: watch::Receiver<BTreeSet<Identity>>,
    standings: watch::Sender<BTreeMap<Identity, Standing>>,
    entries: BTreeMap<Identity, Entry>,
    signing: JoinSet<(Identity, Result<Made, String>)>,
    clock: Clock,
    dice: Dice,
}

/// Tells rotation what is wanted, and how it stands.
#[derive(Debug, Clone)]
pub struct RotationHandle {
    wanted: Arc<watch::Sender<BTreeSet<Identity>>>,
    standings: watch::Receiver<BTreeMap<Identity, Standing>>,
}

impl RotationHandle {
    /// Sets the workloads of this host; the host itself is always wanted. Others are forgotten, on disk too.
    pub fn want(&self, workloads: BTreeSet<Identity>) {
        self.wanted.send_replace(workloads);
    }

    /// Follows how each identity stands.
    pub fn standings(&self) -> watch::Receiver<BTreeMap<Identity, Standing>> {
        self.standings.clone()
    }
}

/// How it stands with the certificate of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// From when to when the installed certificate is valid; `None` before the first.
    pub validity: Option<Validity>,
    /// Failures in a row.
    pub failures: u32,
    /// Why the last attempt failed; `None` when it did not.
    pub error: Option<String>,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    due: SystemTime,
    is_under_way: bool,
}

/// A certificate that has been signed, checked and saved.
#[derive(Debug)]
struct Made {
    key: CertifiedKey,
    validity: Validity,
}

impl<S, F, E> Rotation<S>
where
    S: Fn(Identity, Vec<u8>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Vec<CertificateDer<'static>>, E>> + Send + 'static,
    E: Display + Send + 'static,
{
    /// Prepares rotation; nothing happens before [`Rotation::restore`] and [`Rotation::run`].
    ///
    /// `signer` gets the identity and a CSR (PKCS#10, DER) and returns the chain, leaf first.
    pub fn new(settings: RotationSettings, signer: S) -> (Self, RotationHandle) {
        let (wanted, wanted_here) = watch::channel(BTreeSet::new());
        let (standings, standings_there) = watch::channel(BTreeMap::new());
        let rotation = Self {
            store: Store::new(settings.folder.clone(), settings.keys.clone()),
            settings,
            signer: Arc::new(signer),
            wanted: wanted_here,
            standings,
            entries: BTreeMap::new(),
            signing: JoinSet::new(),
            clock: Clock::start(),
            dice: Dice(fastrand::Rng::new()),
        };
        (rotation, RotationHandle { wanted: Arc::new(wanted), standings: standings_there })
    }

    /// Installs what is on disk and still valid, and names the host's identity to the credentials.
    ///
    /// Returns how many were installed. Files that are expired or damaged are told and passed over: they can be
    /// renewed. Fails where a file is open to others, or cannot be read.
    pub fn restore(&mut self) -> Result<usize, FileError> {
        self.settings.credentials.set_host(&self.settings.host);
        let mut installed = 0;
        for (identity, key) in self.store.load()? {
            let now = self.clock.now();
            match checked(self.settings.credentials.trust(), &identity, &key.cert, now) {
                Ok(validity) => {
                    self.install(&identity, Made { key, validity });
                    installed += 1;
                }
                Err(why) => tracing::info!(%identity, why, "a certificate on disk is of no use"),
            }
        }
        self.publish();
        Ok(installed)
    }

    /// Renews until the last handle is gone.
    ///
    /// Until something is wanted for the first time, restored certificates are all kept.
    pub async fn run(mut self) {
        self.enter(&self.settings.host.clone());
        loop {
            self.start_due();
            self.publish();
            let pause = self.pause();
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.adopt(),
                    Err(_) => return,
                },
                Some(done) = self.signing.join_next() => match done {
                    Ok((identity, result)) => self.settle(&identity, result),
                    Err(error) => tracing::error!(%error, "a renewal task failed"),
                },
                () = sleep(pause) => {}
            }
        }
    }

    /// Takes over what is wanted now.
    fn adopt(&mut self) {
        let mut wanted = self.wanted.borrow_and_update().clone();
        wanted.insert(self.settings.host.clone());
        let gone: Vec<Identity> =
            self.entries.keys().filter(|identity| !wanted.contains(*identity)).cloned().collect();
        for identity in gone {
            self.entries.remove(&identity);
            self.settings.credentials.remove(&identity);
            if let Err(error) = self.store.remove(&identity) {
                tracing::warn!(%identity, %error, "cannot remove a certificate that is no longer wanted");
            }
        }
        for identity in &wanted {
            self.enter(identity);
        }
    }

    /// Enters an identity that is to be certified at once, unless it is known.
    fn enter(&mut self, identity: &Identity) {
        let due = self.clock.now();
        self.entries.entry(identity.clone()).or_insert_with(|| Entry {
            standing: Standing { validity: None, failures: 0, error: None },
            due,
            is_under_way: false,
        });
    }

    fn start_due(&mut self) {
        let now = self.clock.now();
        for (identity, entry) in &mut self.entries {
            if self.signing.len() >= MAX_UNDER_WAY {
                return;
            }
            if entry.is_under_way || entry.due > now {
                continue;
            }
            entry.is_under_way = true;
            let renewal = renew(identity.clone(), self.settings.clone(), self.signer.clone(), now);
            let store = self.store.clone();
            let identity = identity.clone();
            self.signing.spawn(async move {
                let result = match timeout(SIGN_LIMIT, renewal).await {
                    Ok(Ok((own, made))) => keep(store, identity.clone(), own, made).await,
                    Ok(Err(why)) => Err(why),
                    Err(_) => Err(format!("no answer within {} s", SIGN_LIMIT.as_secs())),
                };
                (identity, result)
            });
        }
    }

    /// Returns how long nothing is due. Short enough to notice that the wall clock was moved, or the host suspended.
    fn pause(&self) -> Duration {
        if self.signing.len() >= MAX_UNDER_WAY {
            return LOOK_AGAIN;
        }
        let now = self.clock.now();
        let waiting = self.entries.values().filter(|entry| !entry.is_under_way);
        let next = waiting.map(|entry| entry.due.duration_since(now).unwrap_or_default()).min();
        next.unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN)
    }

    fn settle(&mut self, identity: &Identity, result: Result<Made, String>) {
        let now = self.clock.now();
        let Some(entry) = self.entries.get_mut(identity) else {
            // No longer wanted: what was just written goes, too.
            if let Err(error) = self.store.remove(identity) {
                tracing::warn!(%identity, %error, "cannot remove a certificate that is no longer wanted");
            }
            return;
        };
        match result {
            Ok(made) => self.install(identity, made),
            Err(why) => {
                entry.is_under_way = false;
                entry.standing.failures += 1;
                let wait = retry_after(entry.standing.failures, &mut self.dice);
                entry.due = now + wait;
                let remaining = entry.standing.validity.map(|v| v.remaining(now).as_secs());
                tracing::warn!(%identity, why, remaining, wait = wait.as_secs(), "cannot renew a certificate");
                entry.standing.error = Some(why);
            }
        }
    }

    fn install(&mut self, identity: &Identity, made: Made) {
        let due = made.validity.renew_at(&mut self.dice);
        let standing = Standing { validity: Some(made.validity), failures: 0, error: None };
        self.entries.insert(identity.clone(), Entry { standing, due, is_under_way: false });
        self.settings.credentials.install(identity, Arc::new(made.key));
        tracing::debug!(%identity, "a certificate is in use");
    }

    fn publish(&self) {
        let now: BTreeMap<_, _> =
            self.entries.iter().map(|(identity, entry)| (identity.clone(), entry.standing.clone())).collect();
        self.standings.send_if_modified(|before| {
            let is_news = *before != now;
            *before = now;
            is_news
        });
    }
}

/// The key of a certificate: the host's own, which stays, or a workload's, made anew each time.
enum Own {
    Host(Arc<HostKeys>),
    Workload(Box<KeyPair>),
}

impl Own {
    fn request(&self) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Host(keys) => keys.request(),
            Self::Workload(key) => request(key),
        }
    }

    fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, rustls::Error> {
        match self {
            Self::Host(keys) => keys.certified(chain),
            Self::Workload(key) => certified(key, chain),
        }
    }
}

/// Has a key certified, and makes sure that the answer is what was asked for.
async fn renew<S, F, E>(
    identity: Identity,
    settings: RotationSettings,
    signer: Arc<S>,
    now: SystemTime,
) -> Result<(Own, Made), String>
where
    S: Fn(Identity, Vec<u8>) -> F,
    F: Future<Output = Result<Vec<CertificateDer<'static>>, E>>,
    E: Display,
{
    let own = if identity == settings.host {
        Own::Host(settings.keys.clone())
    } else {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        Own::Workload(Box::new(key))
    };
    let csr = own.request().map_err(|error| error.to_string())?;
    let chain = signer(identity.clone(), csr).await.map_err(|error| error.to_string())?;
    let validity = checked(settings.credentials.trust(), &identity, &chain, now)?;
    let key = own
        .certified(chain)
        .map_err(|error| format!("the signer answered with a useless certificate: {error}"))?;
    Ok((own, Made { key, validity }))
}

/// Saves a certificate before it is used, so that a restart never falls back behind it.
async fn keep(store: Store, identity: Identity, own: Own, made: Made) -> Result<Made, String> {
    let chain = made.key.cert.clone();
    let saving = tokio::task::spawn_blocking(move || {
        let key = match &own {
            Own::Host(_) => None,
            Own::Workload(key) => Some(&**key),
        };
        store.save(&identity, key, &chain)
    });
    match saving.await {
        Ok(Ok(())) => {}
        // A full disk must not stop traffic: the certificate serves, but a restart will need the network.
        Ok(Err(error)) => tracing::warn!(%error, "a certificate could not be saved"),
        Err(error) => return Err(error.to_string()),
    }
    Ok(made)
}

/// Verifies a chain as any peer would, on both sides.
fn checked(
    trust: &Trust,
    identity: &Identity,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<Validity, String> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since);
    verify::verify(trust, chain, Side::Client, now).map_err(|fault| fault.to_string())?;
    let proven = verify::verify(trust, chain, Side::Server, now).map_err(|fault| fault.to_string())?;
    if proven.identity != *identity {
        return Err(format!("the certificate is for {}", proven.identity));
    }
    Ok(proven.validity)
}

/// The later of wall clock and monotonic clock: a clock set back delays no renewal, and a suspended host wakes up late.
#[derive(Debug)]
struct Clock {
    wall: SystemTime,
    at: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { wall: SystemTime::now(), at: Instant::now() }
    }

    fn now(&self) -> SystemTime {
        SystemTime::now().max(self.wall + self.at.elapsed())
    }
}

/// Chance for the functions of core.
#[derive(Debug)]
struct Dice(fastrand::Rng);

impl rand_core::RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        self.0.u32(..)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill(dest);
    }
}

/// How long a signer may take.
const SIGN_LIMIT: Duration = Duration::from_secs(10);
/// How many requests are with the signer at once; a voter signs 20 a second for one host.
const MAX_UNDER_WAY: usize = 8;
/// How long rotation sleeps at most.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
