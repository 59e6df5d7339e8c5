//! Where a request or connection is counted, and what is measured of it on its way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use mesh_core::plan::{Cluster, Endpoint, LocalInstance, Metering, Party, Telling, Via};
use mesh_core::resilience::Flags;
use mesh_core::wire::grpc::Messages;

use super::worker::{Caller, Worker};
use crate::telemetry::{Finished, Reporter, Series, SeriesKey, Spoken};

/// Where something is counted: at the calling end, at the called one, or at both where both are on this host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    source: Option<Arc<Series>>,
    destination: Option<Arc<Series>>,
    /// What is told of the traffic to an instance.
    telling: Option<Arc<Telling>>,
    /// Who is called.
    party: Party,
    /// Who has called, where it has proven it.
    principal: Option<Arc<str>>,
}

/// Who calls an application of this host, for its own series.
#[derive(Clone, Debug, Default)]
pub(crate) struct From {
    pub(crate) party: Party,
    /// Whether it has proven who it is.
    pub(crate) mutual: bool,
}

impl Counted {
    /// Of a caller here; `endpoint`: the one chosen, if any.
    pub(crate) fn outbound(
        worker: &Worker,
        caller: &Caller,
        cluster: &Cluster,
        endpoint: &Endpoint,
        spoken: Spoken,
    ) -> Self {
        let is_hop = matches!(endpoint.via, Via::Mesh { .. });
        let key = SeriesKey {
            reporter: Reporter::Source,
            spoken,
            metering: caller.telling.metering.clone(),
            mutual: is_hop,
            source: caller.party.clone(),
            destination: endpoint.traits.party.clone(),
            service: cluster.name.host.clone(),
            flags: Flags::default(),
        };
        let is_here = matches!(endpoint.via, Via::Local(_)) && !endpoint.traits.party.is_unknown();
        let there = is_here.then(|| SeriesKey {
            reporter: Reporter::Destination,
            metering: metering_here(worker, cluster, endpoint),
            ..key.clone()
        });
        Self {
            destination: there.map(|key| worker.shard.series(&key)),
            source: Some(worker.shard.series(&key)),
            ..Self::default()
        }
    }

    /// Of a caller here that was led to no endpoint of a service.
    pub(crate) fn unreached(
        worker: &Worker,
        caller: &Caller,
        service: Arc<str>,
        spoken: Spoken,
        flags: Flags,
    ) -> Self {
        let key = SeriesKey {
            reporter: Reporter::Source,
            spoken,
            metering: caller.telling.metering.clone(),
            mutual: false,
            source: caller.party.clone(),
            destination: Party::default(),
            service,
            flags,
        };
        Self { source: Some(worker.shard.series(&key)), ..Self::default() }
    }

    /// Of an application on this host; without instance: of whatever listens where nothing was registered.
    pub(crate) fn inbound(
        worker: &Worker,
        from: &From,
        instance: Option<&LocalInstance>,
        spoken: Spoken,
    ) -> Self {
        let key = SeriesKey {
            reporter: Reporter::Destination,
            spoken,
            metering: instance.and_then(|instance| instance.telling.metering.clone()),
            mutual: from.mutual,
            source: from.party.clone(),
            destination: instance.map(|instance| instance.party.clone()).unwrap_or_default(),
            service: instance.map_or_else(|| UNREGISTERED.into(), |instance| instance.host.clone()),
            flags: Flags::default(),
        };
        Self {
            source: None,
            telling: instance.map(|instance| instance.telling.clone()),
            party: key.destination.clone(),
            principal: from.party.principal().filter(|_| from.mutual).map(Into::into),
            destination: Some(worker.shard.series(&key)),
        }
    }

    /// What is told of the traffic to the instance.
    pub(crate) fn telling(&self) -> Option<&Arc<Telling>> {
        self.telling.as_ref()
    }

    /// Who is called, as telemetry names it.
    pub(crate) fn party(&self) -> &Party {
        &self.party
    }

    /// Who has called, where it has proven it.
    pub(crate) fn principal(&self) -> Option<&Arc<str>> {
        self.principal.as_ref()
    }

    fn each(&self) -> impl Iterator<Item = &Arc<Series>> {
        self.source.iter().chain(&self.destination)
    }

    /// Counts a request that ended.
    pub(crate) fn finished(&self, end: &Finished) {
        self.each().for_each(|series| series.finished(end));
    }

    /// Counts an opaque connection that was opened; dropping what is returned counts that it was closed.
    pub(crate) fn opened(self) -> OpenConnection {
        self.each().for_each(|series| series.opened());
        OpenConnection(self)
    }
}

/// What differs for the metrics of an instance of this host.
fn metering_here(worker: &Worker, cluster: &Cluster, endpoint: &Endpoint) -> Option<Arc<Metering>> {
    let Via::Local(address) = endpoint.via else { return None };
    let view = worker.view();
    let (instance, _) = view.plan.inbound.targets.get(&address.port())?;
    instance.telling.metering.clone().filter(|_| instance.host == cluster.name.host)
}

/// An opaque connection that is counted.
#[derive(Debug)]
pub(crate) struct OpenConnection(Counted);

impl OpenConnection {
    /// Bytes passed, from the caller and to it.
    pub(crate) fn passed(&self, received: u64, sent: u64) {
        self.0.each().for_each(|series| series.bytes(received, sent));
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.each().for_each(|series| series.closed());
    }
}

/// What is counted of a gRPC call while it is under way.
#[derive(Debug, Default)]
pub(crate) struct GrpcMeter {
    /// Messages of the request; shared with its body.
    pub(crate) request: Rc<MessageMeter>,
    /// Messages of the answer.
    pub(crate) response: MessageMeter,
    /// `grpc-status`, once it is known.
    pub(crate) status: Cell<Option<u16>>,
}

impl GrpcMeter {
    /// Counts messages that have passed since this was last asked.
    pub(crate) fn tell(&self, counted: &Counted) {
        let (request, response) = (self.request.untold(), self.response.untold());
        if request > 0 || response > 0 {
            counted.each().for_each(|series| series.messages(request, response));
        }
    }
}

/// Counts the messages of one direction, and which of them have been told.
#[derive(Debug, Default)]
pub(crate) struct MessageMeter {
    messages: RefCell<Messages>,
    told: Cell<u64>,
}

impl MessageMeter {
    pub(crate) fn take(&self, bytes: &[u8]) {
        self.messages.borrow_mut().take(bytes);
    }

    fn untold(&self) -> u64 {
        let count = self.messages.borrow().count();
        count - self.told.replace(count)
    }
}

/// What is measured of a request's body that is passed straight on.
#[derive(Debug, Default)]
pub(crate) struct BodyMeter {
    pub(crate) bytes: Cell<u64>,
    pub(crate) messages: Option<Rc<MessageMeter>>,
}

impl BodyMeter {
    pub(crate) fn take(&self, bytes: &[u8]) {
        self.bytes.set(self.bytes.get() + bytes.len() as u64);
        if let Some(messages) = &self.messages {
            messages.take(bytes);
        }
    }
}

/// Istio's word for what was going to no service of this host.
const UNREGISTERED: &str = "InboundPassthroughCluster";
