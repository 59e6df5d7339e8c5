//! Reading: resources, history, the state of the mesh.

use std::sync::Arc;
use std::time::Instant;

use mesh_core::world::World;
use mesh_proto::api::{ApiError, Get, HistoryView, HostRole, HostStatus, Request, Response, Status};
use mesh_proto::command::HostId;
use mesh_proto::registration::Health;
use mesh_proto::resource::ObjectKey;
use mesh_proto::watch::{Host, Stored};

use super::{Failure, Server};
use crate::server::PATIENCE;
use crate::server::leases::Acknowledged;

impl Server {
    /// Reads resources; what was agreed before the call is in the answer.
    pub(super) async fn get(&self, get: &Get) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        Ok(self.get_stale(get))
    }

    /// Reads resources as this server knows them.
    pub(super) fn get_stale(&self, get: &Get) -> Response {
        self.consensus.facts().read(|world| {
            if let Get { kind: Some(kind), namespace: Some(namespace), name: Some(name), .. } = get {
                let found = world.resources.get(&ObjectKey::new(*kind, namespace.as_str(), name.as_str()));
                let items = found.into_iter().map(|stored| Stored::clone(stored)).collect();
                return Response::Resources { revision: world.revision, items };
            }
            let wanted = world.resources.iter().filter(|(key, _)| matches(get, key));
            let items = wanted.map(|(_, stored)| Stored::clone(stored)).collect();
            Response::Resources { revision: world.revision, items }
        })
    }

    /// The last changes of resources, newest first.
    pub(super) async fn history(&self, limit: usize) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        let views = self.consensus.facts().read(|world| {
            let newest = world.private.history.iter().rev().take(limit);
            newest
                .map(|entry| HistoryView {
                    revision: entry.revision,
                    at: entry.at,
                    author: entry.author.clone(),
                    reason: entry.reason.clone(),
                    objects: entry.changes.iter().map(|(key, outcome, _)| (key.clone(), *outcome)).collect(),
                })
                .collect()
        });
        Ok(Response::History(views))
    }

    /// The state of the mesh, from the leader if there is one, else as this server sees it.
    pub(super) async fn status_from_anywhere(&self, author: &str) -> Result<Response, ApiError> {
        match self.ask_leader(Request::Status, author, Instant::now() + PATIENCE).await {
            Ok(response) => Ok(response),
            Err(error) => Ok(Response::Status(Box::new(self.describe(Some(error.message))))),
        }
    }

    /// The state of the mesh; this server must lead.
    pub(super) async fn status(&self) -> Result<Response, Failure> {
        self.consensus.read_index(PATIENCE).await?;
        Ok(Response::Status(Box::new(self.describe(None))))
    }

    /// What a host cannot take, by its own word or, of a server, by what it answers to the log.
    fn problems_of(&self, id: HostId, acknowledged: Option<&Acknowledged>) -> Vec<String> {
        let own = || self.consensus.behind().or_else(|| self.consensus.failure());
        let own = (id == self.id).then(own).flatten();
        let said = acknowledged.map(|known| known.problems.clone()).unwrap_or_default();
        own.or_else(|| self.consensus.peers().refusal(id)).into_iter().chain(said).collect()
    }

    fn describe(&self, no_quorum: Option<String>) -> Status {
        let acknowledged = self.keeper.acknowledgements();
        let leader = self.consensus.leader().filter(|_| no_quorum.is_none());
        let members = self.consensus.members();
        let role = |id: HostId| match members.iter().find(|member| member.id == id) {
            Some(_) if leader == Some(id) => HostRole::Leader,
            Some(member) if member.voter => HostRole::Voter,
            Some(_) => HostRole::Standby,
            None => HostRole::Agent,
        };
        let answered_by = self.name();
        self.consensus.facts().read(|world| Status {
            mesh: world.mesh.id.clone(),
            trust_domain: world.mesh.trust_domain.clone(),
            revision: world.revision,
            leader: leader.and_then(|id| world.hosts.get(&id)).map(|host| host.name.clone()),
            no_quorum,
            answered_by,
            hosts: world
                .hosts
                .iter()
                .map(|(id, host)| HostStatus {
                    problems: self.problems_of(*id, acknowledged.get(id)),
                    ..host_status(world, *id, host, role(*id), acknowledged.get(id))
                })
                .collect(),
        })
    }
}

fn host_status(
    world: &World,
    id: HostId,
    host: &Arc<Host>,
    role: HostRole,
    acknowledged: Option<&Acknowledged>,
) -> HostStatus {
    let instances = || world.registrations.get(&id).into_iter().flat_map(|offer| offer.instances.values());
    HostStatus {
        id,
        name: host.name.clone(),
        address: host.facts.address,
        role,
        liveness: host.liveness,
        live_revision: acknowledged.map(|known| known.live),
        version: host.facts.version.clone(),
        instances: instances().count(),
        healthy: instances().filter(|instance| instance.health == Health::Healthy).count(),
        clock_offset_ms: acknowledged.and_then(|known| known.clock_offset_ms),
        voter: host.facts.voter,
        problems: Vec::new(),
    }
}

fn matches(get: &Get, key: &ObjectKey) -> bool {
    get.kind.is_none_or(|kind| kind == key.kind)
        && get.namespace.as_ref().is_none_or(|namespace| **namespace == *key.namespace)
        && get.name.as_ref().is_none_or(|name| **name == *key.name)
}
