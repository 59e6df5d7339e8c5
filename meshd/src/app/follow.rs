//! What follows a new Plan, beside the workers that read it: certificates, names on the mesh port, roots, interception,
//! health checks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use data_encoding::BASE64;
use mesh_core::identity::{Identity, sni};
use mesh_core::plan::Plan;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use mesh_proto::command::HostId;

use crate::agent::Published;
use crate::identity::RotationHandle;
use crate::intercept;
use crate::server::Server;
use crate::transport::Credentials;

/// Keeps the rest of this host in step with its Plan.
pub(super) struct Follower {
    pub(super) credentials: Arc<Credentials>,
    pub(super) rotation: RotationHandle,
    /// Where this host is a server too.
    pub(super) server: Option<Arc<Server>>,
    pub(super) host: HostId,
    /// Whether connections on their way in are redirected.
    pub(super) intercepts_inbound: bool,
    pub(super) inbound_targets: BTreeSet<u16>,
}

/// Shows other hosts the names of the Plan that this one begins with, before the first of them comes: where sockets were
/// kept over a restart, they wait at the door already.
pub(super) fn begin(credentials: &Credentials, now: &Published) {
    if now.plan.revision.0 > 0 {
        credentials.set_sni(names(&now.plan));
    }
}

impl Follower {
    /// Follows until the agent is gone.
    pub(super) async fn run(mut self, mut published: watch::Receiver<Arc<Published>>) {
        loop {
            let now = published.borrow_and_update().clone();
            self.follow(&now);
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    fn follow(&mut self, now: &Published) {
        if let Some(server) = &self.server {
            server.share(&now.world);
        }
        self.trust_roots(now);
        if now.plan.revision.0 == 0 {
            return;
        }
        self.rotation.want(identities(&now.plan));
        self.credentials.set_sni(names(&now.plan));
        self.redirect_inbound(now);
    }

    fn trust_roots(&self, now: &Published) {
        let roots: Vec<CertificateDer<'static>> = now
            .world
            .mesh
            .roots
            .iter()
            .filter_map(|root| BASE64.decode(root.as_bytes()).ok())
            .map(Into::into)
            .collect();
        let trust = self.credentials.trust();
        if roots.is_empty() || trust.roots().certificates == roots {
            return;
        }
        if let Err(error) = trust.set_roots(roots) {
            tracing::error!(%error, "the mesh sent a root certificate that cannot be read; the former ones are kept");
        }
    }

    fn redirect_inbound(&mut self, now: &Published) {
        let own = now.world.registrations.get(&self.host);
        let targets = own.map(|own| intercept::inbound_targets(own)).unwrap_or_default();
        if !self.intercepts_inbound || targets == self.inbound_targets {
            return;
        }
        match intercept::update_inbound(&targets) {
            Ok(()) => self.inbound_targets = targets,
            Err(error) => {
                tracing::error!(%error, "connections to local services are not intercepted as they should be");
            }
        }
    }
}

/// Everyone this host speaks as: its callers and its instances.
fn identities(plan: &Plan) -> BTreeSet<Identity> {
    let domain = &plan.node.trust_domain;
    let callers = plan.node.callers.iter().filter_map(|caller| {
        Identity::workload(domain, &caller.namespace, &caller.account)
            .map_err(|error| tracing::warn!(%error, "a caller has no identity"))
            .ok()
    });
    callers.chain(plan.inbound.instances.values().map(|instance| instance.identity.clone())).collect()
}

/// Which identity each port of each local service shows to other hosts.
fn names(plan: &Plan) -> HashMap<String, Identity> {
    let instances = plan.inbound.instances.values();
    instances
        .flat_map(|instance| {
            let name = |port: u16| sni::format(port, "", &instance.host);
            instance.ports.iter().map(move |port| (name(port.number), instance.identity.clone()))
        })
        .collect()
}
