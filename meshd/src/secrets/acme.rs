//! Certificates of gateways, ordered from an authority that speaks ACME and kept up: each is a secret like any other.
//!
//! One task looks at each certificate at least once a minute, begins what is due (`core::renewal` says what is), one order at a
//! time, and tells what went wrong; until an order has succeeded whole, what was there before stays. The account's key and
//! what was tried are on disk, so that no restart leads to more orders.
//!
//! Source: RFC 8555; RFC 8737.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_core::plan::{DoorKind, Plan};
use mesh_core::renewal::Standing;
use mesh_proto::secret::{Hidden, NewSecret, Replaces};
use tokio::sync::{mpsc, watch};

use super::{SecretError, Store, Upkeep, Upkeeps, Wish};
use crate::config::{Acme, Challenge, Ordered};
use crate::drain::Draining;
use crate::transport::{Challenges, SocketOptions};

mod account;
mod authority;
mod order;
mod record;

use order::{Issued, Way};
use record::Records;

/// What this host orders, and where it keeps what it needs for it.
pub struct Settings {
    /// As in `meshd.toml`.
    pub acme: Acme,
    /// Folder of the account and of what was tried; may not be there yet.
    pub folder: PathBuf,
    /// What outgoing sockets are given.
    pub socket: SocketOptions,
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// Nobody who asks for the name would be answered.
    #[error(
        "no gateway of this host is open that an authority could ask: for {0}, a Gateway needs a server of protocol HTTP \
         (http-01), or of HTTPS or TLS whose hosts hold it (tls-alpn-01)"
    )]
    NoDoor(String),
    /// The authority, or the way to it.
    #[error("{0}")]
    Authority(#[from] instant_acme::Error),
    /// The authority did not see what it asked for.
    #[error("{0}")]
    Unproven(String),
    /// It took too long.
    #[error("the authority did not end the order within {} s", ORDER_WITHIN.as_secs())]
    Silent,
    /// A file of the account or of the roots.
    #[error("{0}")]
    File(String),
    /// A key or a request could not be made.
    #[error("{0}")]
    Crypto(String),
    /// What came cannot be used.
    #[error("the authority's certificate cannot be used: {0}")]
    Useless(#[from] SecretError),
}

/// Orders certificates and keeps them up.
pub struct Keeper {
    settings: Settings,
    store: Store,
    plans: Arc<ArcSwap<Plan>>,
    challenges: Arc<Challenges>,
    records: Records,
    /// Spreads what has no certificate yet to spread by.
    chance: u32,
}

impl Keeper {
    /// What gateways answer goes into `challenges`; which gateways there are stands in the Plan in force.
    pub fn new(
        settings: Settings,
        store: Store,
        plans: Arc<ArcSwap<Plan>>,
        challenges: Arc<Challenges>,
    ) -> Self {
        let records = Records::load(&settings.folder);
        Self { settings, store, plans, challenges, records, chance: fastrand::u32(..) }
    }

    /// Keeps up all certificates until draining begins.
    pub async fn run(
        mut self,
        mut wishes: mpsc::Receiver<Wish>,
        upkeep: watch::Sender<Upkeeps>,
        mut draining: Draining,
    ) {
        let mut wish = None;
        loop {
            let round = self.round(wish.take(), &upkeep);
            let next = tokio::select! {
                () = draining.started() => return,
                next = round => next,
            };
            wish = tokio::select! {
                () = draining.started() => return,
                Some(wish) = wishes.recv() => Some(wish),
                () = tokio::time::sleep(next) => None,
            };
        }
    }

    /// Looks at each certificate; returns after how long to look again.
    async fn round(&mut self, mut wish: Option<Wish>, upkeep: &watch::Sender<Upkeeps>) -> Duration {
        let mut next = LOOK_AGAIN;
        for wanted in self.settings.acme.certificates.clone() {
            let standing = self.standing(&wanted).await;
            let wished = wish.take_if(|wish| wish.secret == wanted.secret);
            let due = if wished.is_some() { standing.earliest() } else { standing.due() };
            let now = SystemTime::now();
            if due > now {
                refuse_until(wished, due, now);
                next = next.min(due.duration_since(now).unwrap_or_default());
                self.tell(&wanted, &standing, upkeep);
                continue;
            }
            let ended = self.order(&wanted, standing.failures).await;
            if matches!(ended, Err(OrderError::NoDoor(_))) {
                next = next.min(NO_DOOR);
            }
            let words = ended.map_err(|error| error.to_string());
            if words.is_ok()
                && let Some(validity) = self.standing(&wanted).await.validity
            {
                self.records.came(&wanted.secret, validity.life());
            }
            self.note(&wanted, &words);
            if let Some(wished) = wished {
                let _ = wished.answer.send(words);
            }
            let standing = self.standing(&wanted).await;
            self.tell(&wanted, &standing, upkeep);
        }
        if let Some(wish) = wish {
            let _ = wish.answer.send(Err(format!("secret {} is not ordered by this host", wish.secret)));
        }
        next
    }

    /// Orders a certificate and puts it into its secret.
    async fn order(&mut self, wanted: &Ordered, failures: u32) -> Result<(), OrderError> {
        let ways = self.ways(wanted, failures)?;
        self.records.begin(&wanted.secret, SystemTime::now());
        tracing::info!(secret = wanted.secret, names = ?wanted.names, "a certificate is ordered");
        let ordered = async {
            let account = account::open(&self.settings).await?;
            order::carry_out(&account, &wanted.names, &ways, &self.challenges).await
        };
        let issued = tokio::time::timeout(ORDER_WITHIN, ordered).await.map_err(|_| OrderError::Silent)??;
        self.put(wanted, issued).await
    }

    async fn put(&self, wanted: &Ordered, issued: Issued) -> Result<(), OrderError> {
        let (store, name) = (self.store.clone(), wanted.secret.clone());
        let files = BTreeMap::from([
            ("tls.crt".to_owned(), Hidden(issued.chain)),
            ("tls.key".to_owned(), Hidden(issued.key.to_string())),
        ]);
        let put = move || {
            let replaces = if store.has(&name) { Replaces::Another } else { Replaces::Nothing };
            store.put(&NewSecret { name, replaces, files }, SystemTime::now())
        };
        let put = tokio::task::spawn_blocking(put).await.map_err(|_| OrderError::Silent)?;
        put.map(drop).map_err(OrderError::Useless)
    }

    /// Finds how each name can be proven, by the doors that are open.
    fn ways(&self, wanted: &Ordered, failures: u32) -> Result<BTreeMap<String, Way>, OrderError> {
        let plan = self.plans.load();
        let only = self.settings.acme.challenge;
        let one = |name: &String| {
            let mut ways = possible(&plan, name);
            ways.retain(|way| only == Challenge::Auto || only == way.challenge());
            let count = u32::try_from(ways.len()).unwrap_or(u32::MAX).max(1);
            let way = usize::try_from(failures % count).ok().and_then(|at| ways.get(at).copied());
            way.map(|way| (name.clone(), way)).ok_or_else(|| OrderError::NoDoor(name.clone()))
        };
        wanted.names.iter().map(one).collect()
    }

    /// Reads what is there and what was tried.
    async fn standing(&self, wanted: &Ordered) -> Standing {
        let (store, name, names) = (self.store.clone(), wanted.secret.clone(), wanted.names.clone());
        let held = tokio::task::spawn_blocking(move || store.held(&name, SystemTime::now())).await;
        let held = held.ok().flatten();
        let held = held.filter(|held| names.iter().all(|name| held.names.contains(name)));
        let tried = self.records.of(&wanted.secret, SystemTime::now());
        Standing {
            validity: held.as_ref().map(|held| held.validity),
            chance: held.map_or(self.chance, |held| held.chance),
            begun: tried.begun,
            failures: tried.failures,
            life: tried.life,
        }
    }

    fn note(&mut self, wanted: &Ordered, ended: &Result<(), String>) {
        let is_news = self.records.end(&wanted.secret, ended.as_ref().err().map_or("", String::as_str));
        match ended {
            Ok(()) => tracing::info!(secret = wanted.secret, "a certificate has come"),
            Err(why) if is_news => {
                tracing::warn!(
                    secret = wanted.secret,
                    why,
                    "a certificate was not ordered: what was there stays"
                );
            }
            Err(_) => {}
        }
    }

    fn tell(&self, wanted: &Ordered, standing: &Standing, upkeep: &watch::Sender<Upkeeps>) {
        let problem = self.records.of(&wanted.secret, SystemTime::now()).problem;
        let now = Upkeep { due: standing.due().max(SystemTime::now()), problem };
        upkeep.send_modify(|all| drop(all.insert(wanted.secret.clone(), now)));
    }
}

/// The ways in which an authority could see that a name leads here, the better one first.
fn possible(plan: &Plan, name: &str) -> Vec<Way> {
    let gateways = || {
        plan.doors.open.values().filter_map(|door| match &door.kind {
            DoorKind::Gateway(gateway) => Some(gateway),
            DoorKind::Service(_) | DoorKind::Proxy => None,
        })
    };
    let by_tls = gateways().any(|gateway| gateway.tls.find(name).is_some());
    let by_http = gateways().any(|gateway| gateway.http.is_some());
    [by_tls.then_some(Way::Tls), by_http.then_some(Way::Http)].into_iter().flatten().collect()
}

fn refuse_until(wished: Option<Wish>, due: SystemTime, now: SystemTime) {
    let Some(wished) = wished else { return };
    let minutes = due.duration_since(now).unwrap_or_default().as_secs() / 60 + 1;
    let _ = wished.answer.send(Err(format!(
        "too many orders: {} in 24 h (or in half a certificate's life) are the most, so that no authority shuts this host \
         out; the next may begin in {minutes} min",
        mesh_core::renewal::MOST_A_DAY
    )));
}

/// How often certificates are looked at, at least: somebody may have taken one away, and clocks jump.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// How soon a missing door is looked for again.
const NO_DOOR: Duration = Duration::from_secs(2);
/// Everything that belongs to one order; authorities check within seconds.
const ORDER_WITHIN: Duration = Duration::from_mins(3);
