//! Keeps the addresses of names in the Plan fresh: asks DNS as each answer's time is over, and tells the clusters.
//!
//! A new answer changes the endpoints of the clusters that name it, not the Plan. One that fails changes nothing: the
//! last good answer stays. A name that has never had an answer has no endpoint. Source: Envoy's strict DNS clusters.
//! differs: Envoy drops the endpoints of a name that does not exist any more; here the last good answer stays.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::plan::{Answers, Named};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::agent::Published;
use crate::dns::Lookup;
use crate::task;

/// What is known of the names of the Plan.
pub(super) struct Names {
    lookup: Arc<Lookup>,
    named: Named,
    /// The last good answers; none yet: no address.
    answers: Answers,
    /// When each is asked for next.
    due: BTreeSet<(Instant, Arc<str>)>,
    under_way: HashSet<Arc<str>>,
    /// Which clusters name it, by position in `named`; names nobody wants any more are not there.
    wanted: HashMap<Arc<str>, Vec<usize>>,
    tell: mpsc::Sender<Answer>,
}

struct Answer {
    name: Arc<str>,
    found: io::Result<(Arc<[IpAddr]>, Duration)>,
}

impl Names {
    /// Follows until the agent is gone.
    pub(super) async fn run(lookup: Arc<Lookup>, mut published: watch::Receiver<Arc<Published>>) {
        let (tell, mut told) = mpsc::channel(MOST_UNDER_WAY);
        let mut names = Self {
            lookup,
            named: Named::default(),
            answers: Answers::default(),
            due: BTreeSet::new(),
            under_way: HashSet::new(),
            wanted: HashMap::new(),
            tell,
        };
        loop {
            let now = published.borrow_and_update().plan.named.clone();
            names.want(now);
            loop {
                names.ask();
                tokio::select! {
                    changed = published.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(answer) = told.recv() => names.take(answer),
                    () = names.next() => {}
                }
            }
        }
    }

    /// Takes in what a new Plan names. What was known of its names holds for its clusters at once.
    fn want(&mut self, named: Named) {
        if Arc::ptr_eq(&named.clusters, &self.named.clusters) && named.refresh == self.named.refresh {
            return;
        }
        self.named = named;
        let mut wanted: HashMap<Arc<str>, Vec<usize>> = HashMap::new();
        for (at, cluster) in self.named.clusters.iter().enumerate() {
            for (name, _) in cluster.names() {
                wanted.entry(name.clone()).or_default().push(at);
            }
        }
        self.due.retain(|(_, name)| wanted.contains_key(name));
        self.answers.retain(|name, _| wanted.contains_key(name));
        let now = Instant::now();
        for name in wanted.keys().filter(|name| !self.wanted.contains_key(*name)) {
            if !self.under_way.contains(name) {
                self.due.insert((now, name.clone()));
            }
        }
        self.wanted = wanted;
        for cluster in self.named.clusters.iter() {
            cluster.settle(&self.answers);
        }
    }

    /// Asks for those whose time has come, only so many at once.
    fn ask(&mut self) {
        let now = Instant::now();
        while self.under_way.len() < MOST_UNDER_WAY
            && self.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, name)) = self.due.pop_first()
        {
            self.under_way.insert(name.clone());
            let (lookup, tell, rate) = (self.lookup.clone(), self.tell.clone(), self.named.refresh);
            task::spawn("dns-follow", async move {
                let found = lookup.renew(&name, rate).await;
                // Nobody is there any more only when meshd stops.
                let _ = tell.send(Answer { name, found }).await;
            });
        }
    }

    /// Waits until another may be asked for.
    async fn next(&self) {
        match self.due.first() {
            Some((due, _)) if self.under_way.len() < MOST_UNDER_WAY => tokio::time::sleep_until(*due).await,
            _ => std::future::pending().await,
        }
    }

    fn take(&mut self, answer: Answer) {
        let Answer { name, found } = answer;
        self.under_way.remove(&name);
        let Some(positions) = self.wanted.get(&name) else { return };
        let lasts = match found {
            Ok((addresses, lasts)) => {
                self.answers.insert(name.clone(), addresses);
                lasts
            }
            Err(error) => {
                let last = self.answers.entry(name.clone()).or_default();
                if last.is_empty() {
                    tracing::warn!(%name, %error, "a name that a ServiceEntry sends to has no address");
                } else {
                    tracing::warn!(%name, %error, "name not found any more: its last addresses stay in use");
                }
                self.named.refresh.min(AFTER_FAILURE)
            }
        };
        for cluster in positions.iter().filter_map(|at| self.named.clusters.get(*at)) {
            if cluster.settle(&self.answers) {
                tracing::debug!(%name, cluster = %cluster.name, "addresses of a name changed");
            }
        }
        self.due.insert((Instant::now() + lasts, name));
    }
}

/// Names asked for at once.
const MOST_UNDER_WAY: usize = 64;
/// A name whose resolver failed is asked for again after this, or sooner where that is the rate.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
