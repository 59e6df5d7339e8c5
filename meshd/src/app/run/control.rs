//! The control plane of this host: who it is to others, what it offers, what it learns.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use mesh_core::identity::Identity;
use mesh_core::plan::Plan;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

use super::super::carrier::Hosts;
use super::super::notary::HostNotary;
use super::super::orders::Orders;
use super::super::{begin, members, signer, standing};
use super::ground::{Ground, socket_options};
use crate::agent::{self, Agent, Mirror, Offer, Outlets, Published};
use crate::health;
use crate::identity::{Rotation, RotationHandle, RotationSettings};
use crate::server::{Server, Setup};
use crate::services::Desk;
use crate::transport::Dialer;

/// How long the start waits for the host's own certificate.
const CERTIFIED_WITHIN: Duration = Duration::from_secs(2);

/// All of it, made but for the server; the agent and the rotation do not run yet.
pub(super) struct Control {
    /// Where the agent puts what the rest of meshd runs by.
    pub(super) outlets: Outlets,
    pub(super) published: watch::Receiver<Arc<Published>>,
    pub(super) notary: Arc<HostNotary>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) rotation: Rotation<signer::Signer>,
    pub(super) certificates: RotationHandle,
    pub(super) desk: Arc<Desk>,
    pub(super) orders: Orders,
    /// Where it is told what is wrong with doors.
    pub(super) problems: watch::Sender<Vec<String>>,
    pub(super) agent: Agent,
}

impl Control {
    /// Makes it, with the certificates and the mirror that are on disk.
    pub(super) fn new(ground: &Ground) -> Result<Self> {
        let (outlets, published) = outlets();
        let notary = Arc::new(HostNotary::new(ground.state.id, ground.keys.clone()));
        let hosts = Arc::new(Hosts::new(ground.dialer.clone()));
        let (rotation, certificates) = prepare_rotation(ground, &notary, &hosts, published.clone())?;
        let desk = Desk::start(&ground.config, ground.draining.clone());
        let (problems, doors) = watch::channel(Vec::new());
        let orders = Orders::start(&ground.config, &outlets.plans, published.clone(), &ground.draining);
        let offer = offer(ground, &desk, &certificates, orders.problems(doors), published.clone());
        let (agent, problem) = Agent::new(agent_settings(ground), offer, outlets.clone());
        if let Some(problem) = problem {
            tracing::warn!(%problem, "starting without the mirror");
        }
        Ok(Self { outlets, published, notary, hosts, rotation, certificates, desk, orders, problems, agent })
    }

    /// Starts the server of a host that may become a voter, and begins the mesh on the first one.
    pub(super) async fn start_server(&self, ground: &Ground, raft: &Runtime) -> Result<Option<Arc<Server>>> {
        if !ground.state.may_serve {
            return Ok(None);
        }
        let setup = Setup {
            id: ground.state.id,
            folder: ground.config.host.data.join("server"),
            has_log: ground.state.has_log(),
            carrier: self.hosts.clone(),
            mirror: self.published.borrow().world.clone(),
            notary: self.notary.clone(),
            analyze: mesh_core::analyze::check,
            raft_runtime: raft.handle().clone(),
            work_runtime: Handle::current(),
            voters: mesh_core::autopilot::VOTERS,
        };
        let server = Server::start(setup).await?;
        self.notary.attach(&server);
        // Before anything is voted for: what comes after the first vote must not be forgotten.
        let state = ground.state.clone().logged();
        if !ground.state.has_log() {
            state.save(&ground.config.host.data)?;
        }
        if let Some(bootstrap) = ground.state.bootstrap.clone() {
            server.bootstrap(bootstrap).await.or_else(|error| match error.code {
                // The last run came as far as this, and no further.
                mesh_proto::api::ErrorCode::Conflict => Ok(mesh_proto::command::Revision(0)),
                _ => Err(error),
            })?;
            state.begun().save(&ground.config.host.data)?;
        }
        Ok(Some(server))
    }
}

/// Waits a moment for the host's own certificate: without it, the first dials of the agent would fail. Where it does
/// not come (no server answers), meshd goes on and the agent tries again.
pub(super) async fn first_certificate(certificates: &RotationHandle, host: &Identity) {
    let mut standings = certificates.standings();
    let certified =
        standings.wait_for(|now| now.get(host).is_some_and(|standing| standing.validity.is_some()));
    let _ = tokio::time::timeout(CERTIFIED_WITHIN, certified).await;
}

fn outlets() -> (Outlets, watch::Receiver<Arc<Published>>) {
    let (publisher, published) = watch::channel(Arc::default());
    let plans = Arc::new(ArcSwap::from_pointee(Plan::default()));
    (Outlets { plans, published: publisher, problems: Arc::default() }, published)
}

/// What this host offers, with the health that other hosts are told.
fn offer(
    ground: &Ground,
    desk: &Desk,
    certificates: &RotationHandle,
    doors: watch::Receiver<Vec<String>>,
    published: watch::Receiver<Arc<Published>>,
) -> Offer {
    let locality = ground.config.host.locality.to_string();
    let registration = members::follow(desk.registration(), published, locality);
    let checks = health::start(registration.clone(), socket_options(&ground.config), ground.draining.clone());
    let domain = ground.state.mesh.trust_domain.clone();
    let health = standing::follow(domain, registration.clone(), checks, certificates.standings());
    Offer { registration, health, doors }
}

fn agent_settings(ground: &Ground) -> agent::Settings {
    let address = begin::advertised(&ground.config, None).unwrap_or(ground.state.address);
    agent::Settings {
        host: ground.state.id,
        mesh: ground.state.mesh.id.clone(),
        node: ground.node(),
        facts: begin::facts(&ground.config, address),
        servers: ground.state.servers.clone(),
        mirror: Mirror::at(&ground.config.host.data),
        // Its own: a QUIC connection lives on the runtime that made it.
        dialer: Dialer::new(ground.credentials.clone(), socket_options(&ground.config)),
    }
}

/// Installs the certificates on disk, and makes what renews them.
fn prepare_rotation(
    ground: &Ground,
    notary: &Arc<HostNotary>,
    hosts: &Arc<Hosts>,
    published: watch::Receiver<Arc<Published>>,
) -> Result<(Rotation<signer::Signer>, RotationHandle)> {
    let settings = RotationSettings {
        credentials: ground.credentials.clone(),
        keys: ground.keys.clone(),
        host: ground.own_identity()?,
        folder: begin::certificates(&ground.config.host.data),
    };
    let servers = ground.state.servers.clone();
    let signer = signer::signer(notary.clone(), hosts.clone(), published, servers);
    let (mut rotation, handle) = Rotation::new(settings, signer);
    rotation.restore()?;
    Ok((rotation, handle))
}
