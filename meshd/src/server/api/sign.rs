//! Certificates for hosts and their workloads. Needs no quorum: any server that can sign does.

use mesh_core::identity::Identity;
use mesh_core::world::World;
use mesh_proto::api::{ApiError, ErrorCode, Response, SignRequest};
use mesh_proto::command::HostId;

use super::{Server, error, invalid};

impl Server {
    /// Signs what this host may be: itself, and the accounts of what it has registered.
    pub(super) fn sign(&self, host: HostId, requests: &[SignRequest]) -> Result<Response, ApiError> {
        if requests.len() > REQUESTS_MAX {
            return Err(invalid(format!("at most {REQUESTS_MAX} certificates at a time")));
        }
        self.consensus
            .facts()
            .read(|world| requests.iter().try_for_each(|request| check(world, host, request)))?;
        let chains = self.notary.sign(requests);
        chains.map(Response::Signed).map_err(|reason| error(ErrorCode::Unavailable, reason))
    }
}

fn check(world: &World, host: HostId, request: &SignRequest) -> Result<(), ApiError> {
    let identity: Identity =
        request.identity.parse().map_err(|source| invalid(format!("{}: {source}", request.identity)))?;
    if identity.trust_domain() == world.mesh.trust_domain && may_be(world, host, &identity) {
        return Ok(());
    }
    let name = world.hosts.get(&host).map_or("?", |host| host.name.as_str());
    let message = format!("{name} may not be {identity}: no instance of that account is registered there");
    Err(error(ErrorCode::Forbidden, message))
}

fn may_be(world: &World, host: HostId, identity: &Identity) -> bool {
    match identity {
        Identity::Host { id, .. } => *id == host.to_string(),
        Identity::Workload { namespace, account, .. } => {
            let registered = world.registrations.get(&host);
            let mut instances = registered.into_iter().flat_map(|offer| offer.instances.values());
            let own = namespace == "default" && account == "default";
            own || instances.any(|instance| instance.namespace == *namespace && instance.account == *account)
        }
        Identity::Admin { .. } => false,
    }
}

/// Certificates in one request.
const REQUESTS_MAX: usize = 100;
