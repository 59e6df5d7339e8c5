//! Who answers a request: this host from its Plan and mirror, its own server, or a server elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use mesh_core::endpoint::Moment;
use mesh_core::plan::Plan;
use mesh_core::world::World;
use mesh_core::{analyze, explain, groups, meaning, sketch, views};
use mesh_proto::api::{ApiError, Call, ErrorCode, Get, HostStats, JoinRequest, Request, Response, Scope};
use mesh_proto::command::{HostId, Liveness};
use mesh_proto::registration::{Health, Instance, Registration};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::carrier::{Hosts, unavailable};
use super::looking::Looking;
use super::orders::Orders;
use crate::agent::Published;
use crate::server::Server;
use crate::services::Desk;
use crate::telemetry::Stats;
use crate::transport::{FrameStream, Peer};

/// How long another server may take to answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a server may take to show that it is there: UDP given up, then a handshake over TCP.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How long a host may take to tell its counters.
const STATS_LIMIT: Duration = Duration::from_secs(1);

/// How long the mesh may take to know a registration.
const AGREED_WITHIN: Duration = Duration::from_secs(5);

/// Answers requests, from meshctl on this host and from other hosts.
pub(super) struct Requests {
    /// This host.
    pub(super) id: HostId,
    /// Its name.
    pub(super) name: String,
    /// What it runs.
    pub(super) plans: Arc<ArcSwap<Plan>>,
    /// What it knows.
    pub(super) published: watch::Receiver<Arc<Published>>,
    /// Its server, if it has one.
    pub(super) server: Option<Arc<Server>>,
    /// The way to others.
    pub(super) hosts: Arc<Hosts>,
    /// Its own registrations.
    pub(super) desk: Arc<Desk>,
    /// Where it is.
    pub(super) locality: String,
    /// Its secrets.
    pub(super) orders: Orders,
    /// Its counters.
    pub(super) stats: Arc<Stats>,
    /// When meshd began.
    pub(super) began: Instant,
    /// What people look at.
    pub(super) looking: Looking,
    /// Where a successor is asked for.
    pub(super) reloads: mpsc::Sender<Reload>,
}

/// Somebody asks for a successor, and waits to hear that there is one, or why not.
pub(super) type Reload = oneshot::Sender<Result<(), String>>;

impl Requests {
    /// Answers a request of somebody on this host.
    pub(super) async fn answer(&self, request: Request, author: &str) -> Result<Response, ApiError> {
        if let Request::On { host, request } = &request {
            return self.pass_on(host, request, author).await;
        }
        match self.answer_here(&request, Asker::Here).await {
            Some(answer) => answer,
            None => self.answer_by_server(request, author).await,
        }
    }

    /// Serves the calls of another host on one stream.
    pub(super) async fn serve(&self, peer: &Peer, host: HostId, mut stream: FrameStream) {
        while let Ok(Some(frame)) = stream.recv().await {
            let answer = self.answer_host(host, &frame).await;
            if stream.send(encode(&answer)).await.is_err() {
                tracing::debug!(peer = %peer.address, "a caller left before its answer");
                return;
            }
        }
    }

    async fn answer_host(&self, host: HostId, frame: &[u8]) -> Result<Response, ApiError> {
        let call: Call =
            serde_json::from_slice(frame).map_err(|error| refused(ErrorCode::Invalid, error.to_string()))?;
        if call.request.is_of_one_host()
            && let Some(answer) = self.answer_here(&call.request, Asker::OtherHost).await
        {
            return answer;
        }
        match &self.server {
            Some(server) => server.answer_host(host, call).await,
            None => Err(refused(ErrorCode::Unavailable, format!("{} is no server: ask another", self.name))),
        }
    }

    /// Serves a host that wants to join, by a server elsewhere where this host has none.
    pub(super) async fn serve_join(&self, mut stream: FrameStream, exporter: [u8; 32]) {
        let Ok(Ok(Some(frame))) = tokio::time::timeout(PATIENCE, stream.recv()).await else { return };
        let answer = match serde_json::from_slice::<JoinRequest>(&frame) {
            Ok(mut join) => {
                join.binding = data_encoding::BASE64.encode(&exporter);
                self.ask_servers(Request::Join(Box::new(join)), "a joining host").await
            }
            Err(error) => Err(refused(ErrorCode::Invalid, error.to_string())),
        };
        drop(stream.send(encode(&answer)).await);
    }

    /// Answers what this host knows itself; `None` for what concerns the mesh.
    pub(super) async fn answer_here(
        &self,
        request: &Request,
        asker: Asker,
    ) -> Option<Result<Response, ApiError>> {
        let plan = self.plans.load_full();
        Some(Ok(match request {
            Request::Routes(filter) => Response::Routes(views::routes(&plan, filter)),
            Request::Clusters(filter) => Response::Clusters(views::clusters(&plan, filter, self.now())),
            Request::Endpoints(filter) => Response::Endpoints(views::endpoints(&plan, filter, self.now())),
            Request::Services => Response::Services(views::services(&self.published.borrow().world)),
            Request::Explain(_) | Request::Analyze(_) | Request::Preview(_) => {
                return Some(self.ponder(plan, request.clone()).await);
            }
            Request::Stats { scope: Scope::Host } => Response::Stats(vec![self.own_stats()]),
            Request::Stats { scope: Scope::Mesh } => Response::Stats(self.stats_of_all().await),
            Request::Version => {
                let clock_ms = u64::try_from(super::examine::wall_ms()).unwrap_or(0);
                Response::Version {
                    version: env!("CARGO_PKG_VERSION").into(),
                    pid: std::process::id(),
                    clock_ms,
                }
            }
            Request::Doctor => Response::Checkup(Box::new(self.examine().await)),
            Request::Config => self.configuration(&plan),
            Request::LogLevel(ask) => return Some(self.log_level(ask, asker == Asker::OtherHost)),
            Request::Tap(ask) => return Some(self.tap(ask).await),
            Request::Get(get) if get.stale => self.read_mirror(get),
            Request::Reload => return Some(self.reload().await),
            Request::Register { instances } => return Some(self.register(instances).await),
            Request::Deregister { ids } => return Some(self.deregister(ids).await),
            Request::PutSecret(_)
            | Request::DeleteSecret { .. }
            | Request::RenewSecret { .. }
            | Request::Secrets => {
                return Some(self.orders.answer(&plan, request.clone()).await);
            }
            _ => return None,
        }))
    }

    pub(super) async fn answer_by_server(
        &self,
        request: Request,
        author: &str,
    ) -> Result<Response, ApiError> {
        let author = format!("{author} on {}", self.name);
        match &self.server {
            Some(server) if server.is_member() => server.call(request, &author).await,
            _ => self.ask_servers(request, &author).await,
        }
    }

    /// Asks the servers one after the other until one answers.
    async fn ask_servers(&self, request: Request, author: &str) -> Result<Response, ApiError> {
        if let Some(server) = self.server.as_ref().filter(|server| server.is_member()) {
            return server.call(request, author).await;
        }
        let limit = match &request {
            Request::Wait { timeout_ms, .. } => PATIENCE + Duration::from_millis(*timeout_ms),
            _ => PATIENCE,
        };
        let call = Call { author: author.to_owned(), request, relayed: false };
        let mut reasons = Vec::new();
        for (id, address) in self.other_servers().await {
            match self.hosts.ask(id, address, &call, limit).await {
                Err(error) if error.code == ErrorCode::Unavailable => {
                    reasons.push(format!("{address}: {error}"));
                }
                answer => return answer,
            }
        }
        Err(refused(
            ErrorCode::NoQuorum,
            format!(
                "no server of the mesh answers ({}); traffic goes on with the last rules",
                reasons.join("; ")
            ),
        ))
    }

    /// The servers elsewhere, the first one that answers now in front: a dead one would cost all the patience there is.
    async fn other_servers(&self) -> Vec<(HostId, SocketAddr)> {
        let servers = self.published.borrow().servers.clone();
        let mut servers: Vec<_> = servers.into_iter().filter(|(id, _)| *id != self.id).collect();
        if servers.len() > 1
            && let Some(first) = self.first_to_answer(&servers).await
        {
            servers.sort_by_key(|(id, _)| *id != first);
        }
        servers
    }

    async fn first_to_answer(&self, servers: &[(HostId, SocketAddr)]) -> Option<HostId> {
        let mut probes = JoinSet::new();
        for (id, address) in servers.iter().copied() {
            let hosts = self.hosts.clone();
            probes.spawn(async move {
                let call = Call { author: "probe".into(), request: Request::Version, relayed: false };
                hosts.ask(id, address, &call, PROBE_LIMIT).await.ok().map(|_| id)
            });
        }
        while let Some(probed) = probes.join_next().await {
            if let Ok(Some(id)) = probed {
                return Some(id);
            }
        }
        None
    }

    async fn reload(&self) -> Result<Response, ApiError> {
        let (answer, answered) = oneshot::channel();
        let asked = self.reloads.send(answer).await.is_ok();
        match answered.await {
            Ok(Ok(())) => Ok(Response::Done),
            Ok(Err(why)) => Err(refused(ErrorCode::Invalid, why)),
            Err(_) if asked => Err(unavailable("meshd stops, or hands over already")),
            Err(_) => Err(unavailable("meshd is not ready yet")),
        }
    }

    async fn register(&self, instances: &BTreeMap<String, Instance>) -> Result<Response, ApiError> {
        let world = self.published.borrow().world.clone();
        let each = instances.iter().map(|(id, instance)| (id.clone(), Arc::new(instance.clone())));
        let asked = Registration { instances: each.collect() };
        let (filled, problems) = groups::fill(&world, &asked, &self.locality);
        if let Some(problem) = problems.into_iter().next() {
            return Err(refused(ErrorCode::Invalid, problem));
        }
        let filled = filled.instances;
        let contradiction = filled.values().find_map(|instance| world.contradiction(self.id, instance));
        if let Some(why) = contradiction {
            return Err(refused(ErrorCode::Conflict, why));
        }
        self.desk.register(instances).await?;
        let known = |registration: Option<&Arc<Registration>>| {
            filled.iter().all(|(id, wanted)| {
                let agreed = registration.and_then(|registration| registration.instances.get(id));
                agreed.is_some_and(|agreed| {
                    let same = Instance { health: wanted.health, ..Instance::clone(agreed) } == **wanted;
                    // Without a check it becomes healthy at once, as soon as it has its certificate.
                    same && (agreed.check.is_some() || agreed.health == Health::Healthy)
                })
            })
        };
        self.wait_until_agreed(known).await
    }

    async fn deregister(&self, ids: &[String]) -> Result<Response, ApiError> {
        self.desk.deregister(ids).await?;
        let gone = |registration: Option<&Arc<Registration>>| {
            registration
                .is_none_or(|registration| ids.iter().all(|id| !registration.instances.contains_key(id)))
        };
        self.wait_until_agreed(gone).await
    }

    /// Waits until the mesh knows this host's registration as it should be.
    async fn wait_until_agreed(
        &self,
        wanted: impl Fn(Option<&Arc<Registration>>) -> bool,
    ) -> Result<Response, ApiError> {
        let mut published = self.published.clone();
        let agreed = published.wait_for(|published| wanted(published.world.registrations.get(&self.id)));
        match tokio::time::timeout(AGREED_WITHIN, agreed).await {
            Ok(_) => Ok(Response::Done),
            Err(_) => Err(refused(
                ErrorCode::Timeout,
                format!(
                    "it is written down on this host, but the mesh did not take it in within {} s; see meshctl status, and the log of meshd",
                    AGREED_WITHIN.as_secs()
                ),
            )),
        }
    }

    fn read_mirror(&self, get: &Get) -> Response {
        let world = self.published.borrow().world.clone();
        let wanted = |key: &mesh_proto::resource::ObjectKey| {
            get.kind.is_none_or(|kind| kind == key.kind)
                && get.namespace.as_ref().is_none_or(|namespace| **namespace == *key.namespace)
                && get.name.as_ref().is_none_or(|name| **name == *key.name)
        };
        let items = world
            .resources
            .iter()
            .filter(|(key, _)| wanted(key))
            .map(|(_, stored)| (**stored).clone())
            .collect();
        Response::Resources { revision: world.revision, items }
    }

    /// Answers what takes a while in a large mesh, beside everything else: two Plans may have to be made.
    async fn ponder(&self, plan: Arc<Plan>, request: Request) -> Result<Response, ApiError> {
        let world = self.published.borrow().world.clone();
        let now = self.now();
        let thought = tokio::task::spawn_blocking(move || think(&world, &plan, &request, now));
        thought.await.unwrap_or_else(|_| Err(refused(ErrorCode::Unavailable, "meshd is stopping")))
    }

    fn own_stats(&self) -> HostStats {
        let uptime_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        HostStats { host: self.name.clone(), uptime_ms, edges: self.stats.snapshot() }
    }

    /// Asks every live host for its counters; hosts that do not answer in time are left out.
    async fn stats_of_all(&self) -> Vec<HostStats> {
        let world = self.published.borrow().world.clone();
        let others: Vec<(HostId, SocketAddr)> = world
            .hosts
            .iter()
            .filter(|(id, host)| **id != self.id && host.liveness == Liveness::Live)
            .map(|(id, host)| (*id, host.facts.address))
            .collect();
        let mut asked = tokio::task::JoinSet::new();
        for (id, address) in others {
            let hosts = self.hosts.clone();
            asked.spawn(async move {
                let request = Request::Stats { scope: Scope::Host };
                let call = Call { author: "stats".into(), request, relayed: false };
                hosts.ask(id, address, &call, STATS_LIMIT).await
            });
        }
        let mut all = vec![self.own_stats()];
        while let Some(answer) = asked.join_next().await {
            if let Ok(Ok(Response::Stats(stats))) = answer {
                all.extend(stats);
            }
        }
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// Looks at rules, services and the Plan, and changes nothing.
fn think(world: &World, plan: &Plan, request: &Request, now: Moment) -> Result<Response, ApiError> {
    match request {
        Request::Explain(ask) => explain::explain(world, plan, ask, now)
            .map(|explanation| Response::Explained(Box::new(explanation)))
            .map_err(|reason| refused(ErrorCode::NotFound, reason)),
        Request::Analyze(batch) => Ok(Response::Findings(analyze::thorough(&sketch::after(world, batch)))),
        Request::Preview(batch) => {
            let after = sketch::after(world, batch);
            Ok(Response::Differences(meaning::differences(world, &after, &plan.node)))
        }
        _ => Err(refused(ErrorCode::Invalid, "this is answered elsewhere")),
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// Somebody on this host.
    Here,
    /// Another host of the mesh.
    OtherHost,
}

pub(super) fn refused(code: ErrorCode, message: impl Into<String>) -> ApiError {
    ApiError { code, ..unavailable(message) }
}

fn encode(answer: &Result<Response, ApiError>) -> Bytes {
    serde_json::to_vec(answer).unwrap_or_default().into()
}
