//! Opaque connections as lines of access logs: begun with them, written when they end, however that is.
//!
//! Source: what Envoy 1.40 writes of its TCP proxy.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_core::plan::{Cluster, Telling, Via};
use mesh_core::resilience::{Failure, Flag, Flags};

use crate::proxy::measure;
use crate::proxy::worker::Worker;
use crate::telemetry::{Goal, Record};

/// The line of one connection. Dropping it writes it.
pub(crate) struct Line {
    worker: Rc<Worker>,
    telling: Option<Arc<Telling>>,
    began: Instant,
    record: Box<Record>,
    is_inbound: bool,
}

/// Whose connection it is.
pub(crate) enum Whose<'a> {
    /// Of a caller here.
    Caller(&'a Arc<Telling>),
    /// To an application of this host, and who has called it.
    Application(Option<&'a Arc<Telling>>, &'a measure::From),
}

impl Line {
    /// Begins the line of a connection from `peer` to `local`. `None`: nobody wants one.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        whose: &Whose<'_>,
        (peer, local): (SocketAddr, Option<SocketAddr>),
        server_name: Option<&str>,
    ) -> Option<Box<Self>> {
        let lines = worker.lines.as_ref()?;
        let (telling, from) = match whose {
            Whose::Caller(telling) => (Some(*telling), None),
            Whose::Application(telling, from) => (*telling, Some(*from)),
        };
        if lines.own().is_none() && telling.is_none_or(|telling| telling.logs.is_empty()) {
            return None;
        }
        let mut record = lines.record(&worker.host);
        record.revision = worker.view().plan.revision.0;
        (record.downstream, record.direct, record.downstream_local) = (Some(peer), Some(peer), local);
        record.principal =
            from.filter(|from| from.mutual).and_then(|from| from.party.principal()).map(Into::into);
        record.server_name = server_name.map(Into::into);
        let (worker, telling) = (worker.clone(), telling.cloned());
        Some(Box::new(Self { worker, telling, began: Instant::now(), record, is_inbound: from.is_some() }))
    }

    /// Tells which cluster it goes to; `name`: of one that is not there.
    pub(super) fn goes_to(&mut self, cluster: Option<&Arc<Cluster>>, name: &str) {
        if !self.is_inbound {
            let named = || Goal::Named(name.into());
            self.record.goal = cluster.map_or_else(named, |cluster| Goal::Cluster(cluster.clone()));
        }
    }

    /// Tells which endpoint was chosen.
    pub(super) fn chosen(&mut self, via: &Via) {
        self.record.attempts = 1;
        self.record.upstream = Some(via.clone());
        if let (true, Via::Local(address) | Via::Plain(address)) = (self.is_inbound, via) {
            self.record.goal = Goal::Inbound(address.port());
        }
    }

    /// Tells from where the endpoint is reached.
    pub(super) fn sent_from(&mut self, local: Option<SocketAddr>) {
        self.record.upstream_local = local;
    }

    /// Tells why no endpoint was reached, and in the words of its transport where there are some.
    pub(super) fn failed(&mut self, failure: Failure, reason: Option<String>) {
        self.record.flags = flags_of(failure);
        self.record.transport_failure = reason.map(Into::into);
    }

    /// Tells why it ends.
    pub(super) fn raise(&mut self, flag: Flag) {
        self.record.flags.set(flag);
    }

    /// Tells how many bytes came from the caller and went to it.
    pub(super) fn passed(&mut self, received: u64, sent: u64) {
        (self.record.received_bytes, self.record.sent_bytes) = (received, sent);
    }
}

/// Returns the flags of a connection that reached no endpoint. One try is all it has.
pub(super) fn flags_of(failure: Failure) -> Flags {
    let mut flags = Flags::from(failure.flag());
    if matches!(failure, Failure::Connect | Failure::ConnectTimeout) {
        flags.set(Flag::UpstreamRetryLimitExceeded);
    }
    flags
}

impl Drop for Line {
    fn drop(&mut self) {
        self.record.duration = self.began.elapsed();
        self.record.started = SystemTime::now() - self.record.duration;
        let none = Box::new(Record::new(self.record.host.clone(), 0));
        self.worker.log(self.telling.as_ref(), std::mem::replace(&mut self.record, none));
    }
}
