//! The other servers: how they are called, and who of them answers.
//!
//! Addresses come from the World, so that a host that moved is followed; the identity expected at the
//! other end is that host's own. Every answer and every silence is noted: the autopilot and the
//! message "no quorum" live on it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::command::HostId;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::raft::Facts;
use crate::transport::Service;

/// An answer under way.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Bytes, NoAnswer>> + Send + 'a>>;

/// Why a host gave no answer: refused, timed out, showed another identity …
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);

/// Carries one request to one host and its answer back.
///
/// `app` gives the one over `transport`; tests and the simulator carry in memory.
pub trait Carrier: Send + Sync + 'static {
    /// Calls a service of the host `to` at the address `at`.
    ///
    /// The other end must prove to be that very host. Gives up after `timeout`. Cancel safe: a
    /// dropped call is abandoned.
    fn call(
        &self,
        to: HostId,
        at: SocketAddr,
        service: Service,
        body: Bytes,
        timeout: Duration,
    ) -> Answer<'_>;
}

/// The other servers as this one sees them.
pub(super) struct Peers {
    me: HostId,
    carrier: Arc<dyn Carrier>,
    facts: Arc<Facts>,
    runtime: Handle,
    contacts: Mutex<BTreeMap<HostId, Contact>>,
    /// Why a server does not take the log, by its own words, and whether it refused a heartbeat.
    refusals: Mutex<BTreeMap<HostId, (String, bool)>>,
}

/// Ends a call that nobody waits for any more.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is known of one peer from its answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Contact {
    /// When it last answered.
    pub(super) answered: Option<Instant>,
    /// Since when it has not answered, if its last call failed.
    pub(super) failing_since: Option<Instant>,
    /// Since when every call was answered.
    pub(super) steady_since: Option<Instant>,
}

impl Peers {
    /// Calls as host `me`, on the runtime this is called from.
    pub(super) fn new(me: HostId, carrier: Arc<dyn Carrier>, facts: Arc<Facts>) -> Self {
        Self {
            me,
            carrier,
            facts,
            runtime: Handle::current(),
            contacts: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    /// Calls a host at the address that the World knows.
    pub(super) async fn call(
        &self,
        to: HostId,
        service: Service,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NoAnswer> {
        let host = self.facts.read(|world| world.hosts.get(&to).map(|host| host.facts.address));
        let Some(at) = host else {
            return Err(NoAnswer(format!("host {to} is not in the mesh any more")));
        };
        let began = Instant::now();
        let answer = match tokio::time::timeout(timeout, self.carry(to, at, service, body, timeout)).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer(format!("{at} did not answer within {timeout:?}"))),
        };
        self.contacts().entry(to).or_default().note(began, answer.is_ok());
        answer
    }

    /// Carries a call on Raft's own runtime, where its connection lives.
    ///
    /// A Raft message waits only for two heartbeats. The call under it goes on a little longer: a
    /// connection over a slow or half blocked network would otherwise be given up again and again
    /// before it stands.
    pub(super) async fn carry(
        &self,
        to: HostId,
        at: SocketAddr,
        service: Service,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NoAnswer> {
        let carrier = Arc::clone(&self.carrier);
        let limit = timeout.max(CONNECT);
        let call = self.runtime.spawn(async move { carrier.call(to, at, service, body, limit).await });
        let guard = (service != Service::Raft).then(|| AbortOnDrop(call.abort_handle()));
        let answer = call.await.unwrap_or_else(|_| Err(NoAnswer("this server is stopping".to_owned())));
        drop(guard);
        answer
    }

    /// Notes that a server took what it was sent of the log.
    pub(super) fn takes_log(&self, host: HostId) {
        self.refusals().remove(&host);
    }

    /// Notes that a server took a heartbeat: one that refused even those takes part again.
    pub(super) fn hears(&self, host: HostId) {
        self.refusals().retain(|refuser, (_, is_deaf)| *refuser != host || !*is_deaf);
    }

    /// Notes that a server answered, and refused what it was sent of the log.
    pub(super) fn refuses_log(&self, host: HostId, why: &str, is_deaf: bool) {
        self.refusals().insert(host, (why.to_owned(), is_deaf));
    }

    /// Why a server refuses the log, if it does.
    pub(super) fn refusal(&self, host: HostId) -> Option<String> {
        self.refusals().get(&host).map(|(why, _)| why.clone())
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<HostId, (String, bool)>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contact(&self, host: HostId) -> Contact {
        self.contacts().get(&host).copied().unwrap_or_default()
    }

    fn contacts(&self) -> MutexGuard<'_, BTreeMap<HostId, Contact>> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contact {
    /// Notes the end of a call that began at `began`.
    fn note(&mut self, began: Instant, answered: bool) {
        if answered {
            let now = Instant::now();
            self.answered = Some(now);
            self.failing_since = None;
            self.steady_since.get_or_insert(now);
        } else {
            self.failing_since.get_or_insert(began);
            self.steady_since = None;
        }
    }

    /// Whether it has answered lately and not failed for longer than a blink.
    pub(super) fn answers(&self, now: Instant) -> bool {
        let failing = self.failing_since.map(|since| now.saturating_duration_since(since));
        self.answered.is_some() && failing.is_none_or(|age| age < BLINK)
    }

    /// Since when it has been silent.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        self.answered.or(self.failing_since)
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Peers").field("me", &self.me).finish_non_exhaustive()
    }
}

/// How long a connection may take; several times what falling back from UDP to TCP takes.
const CONNECT: Duration = Duration::from_secs(2);
/// A peer whose calls have failed for this long does not answer. Ten heartbeats.
const BLINK: Duration = Duration::from_secs(1);
