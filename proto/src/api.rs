//! What meshctl (over the unix socket) and other hosts (over the control port) may ask of a meshd.
//!
//! One [`Request`] has one [`Response`] or one [`ApiError`]. Over the unix socket a request is
//! `POST /v1/call` with the request as JSON; over the control port it is a frame of `Service::Api`. Requests that
//! need the leader are passed on by whoever gets them ([`Request::needs_leader`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::command::{
    Batch, HostFacts, HostId, Liveness, NewHost, Revision, Timestamp, Token, TokenRole, VoterWish,
};
use crate::explain::{Ask, Difference, Explanation};
use crate::finding::Finding;
use crate::look::{Checkup, HostConfig, LogAsk, LogState, TapAsk, Tapped};
use crate::registration::{Health, Instance, Registration};
use crate::resource::{Kind, ObjectKey};
use crate::secret::{NewSecret, SecretView};
use crate::value::Labels;
use crate::watch::{Stored, Up};

mod part;

/// A question or an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Changes resources: all or nothing, one revision. Needs the leader.
    Apply(Apply),
    /// Reads resources; linearizable unless `stale`.
    Get(Get),
    /// Waits until every live host runs a revision. Needs the leader.
    Wait {
        /// The revision.
        revision: Revision,
        /// At most this long, in milliseconds.
        timeout_ms: u64,
    },
    /// Hosts, roles, leader, revisions.
    Status,
    /// Makes a join token. Needs the leader.
    CreateToken {
        /// What it lets a host become; default: voter-eligible until the mesh has its voters.
        role: Option<TokenRole>,
        /// For how long, in seconds. Default 3600.
        ttl_seconds: u64,
    },
    /// Lists tokens, without their secrets. Needs the leader.
    ListTokens,
    /// Voids a token. Needs the leader.
    RevokeToken {
        /// Its id.
        id: String,
    },
    /// Removes a host from the mesh for good. Needs the leader.
    RemoveHost {
        /// Its name.
        name: String,
    },
    /// Adds instances to this host's own registration (answered by this host's meshd).
    Register {
        /// Instances by id.
        instances: BTreeMap<String, Instance>,
    },
    /// Removes instances of this host by id (answered by this host's meshd).
    Deregister {
        /// Ids of instances.
        ids: Vec<String>,
    },
    /// Puts a secret into this host (answered by this host's meshd, to callers on it).
    PutSecret(Box<NewSecret>),
    /// Removes a secret of this host (answered by this host's meshd, to callers on it).
    DeleteSecret {
        /// Its name.
        name: String,
    },
    /// Orders a secret's certificate from its authority now (answered by this host's meshd, to callers on it, when the
    /// order has ended).
    RenewSecret {
        /// Its name.
        name: String,
    },
    /// The secrets of this host, without their keys (answered by this host's meshd, to callers on it).
    Secrets,
    /// Every service of the mesh with its instances, as this host knows them.
    Services,
    /// The last changes of resources, newest first. Needs the leader.
    History {
        /// At most this many.
        limit: usize,
    },
    /// Makes the resources what they were at a revision, as a new revision. Needs the leader.
    Rollback {
        /// The revision to return to.
        to: Revision,
        /// Only tell what would change.
        dry_run: bool,
        /// Idempotency key.
        key: String,
    },
    /// What this host's Plan does with requests, one row per route.
    Routes(PlanFilter),
    /// What this host's Plan may send to, one row per cluster.
    Clusters(PlanFilter),
    /// The endpoints of this host's Plan and how they fare.
    Endpoints(PlanFilter),
    /// Why a request goes where it goes, by this host's Plan.
    Explain(Box<Ask>),
    /// Everything strange about the rules as this host knows them, with a batch on top (which may be empty).
    Analyze(Batch),
    /// What a batch would mean for traffic, as this host knows the mesh.
    Preview(Batch),
    /// Counters since the start of meshd.
    Stats {
        /// Of this host only, or of every host that answers.
        scope: Scope,
    },
    /// Comes in with a token (only on the join port).
    Join(Box<JoinRequest>),
    /// Signs certificates for a host and its workloads (any voter).
    Sign(Vec<SignRequest>),
    /// From a server to the leader: what its agents said.
    Report(BTreeMap<HostId, AgentReport>),
    /// Version of the meshd that answers.
    Version,
    /// What ails the host that answers.
    Doctor,
    /// What the host that answers runs.
    Config,
    /// How much the host that answers logs, and should.
    LogLevel(LogAsk),
    /// Requests as they end on the host that answers.
    Tap(Box<TapAsk>),
    /// Passes on what one host can tell to that host ([`Request::is_of_one_host`]).
    On {
        /// Its name.
        host: String,
        /// What it is asked.
        request: Box<Self>,
    },
    /// Hands over to the meshd and the meshd.toml that are on disk (answered by this host's meshd). `Done` once the
    /// successor is ready to take over; who asks again after that asks the successor.
    Reload,
}

/// A [`Request`] on its way between hosts, on `Service::Api` and `Service::Sign`.
///
/// One frame, answered by one frame: `Result<Response, ApiError>` as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Who asks, for example `uid 0 on vm1`. A server takes it from other servers as it is; of any other host it
    /// believes the person but not the host, and writes that host's own name behind it.
    pub author: String,
    /// What is asked.
    pub request: Request,
    /// True when a server passes it on to the one it takes for the leader, which must not pass it on again.
    #[serde(default)]
    pub relayed: bool,
}

impl Request {
    /// Whether it tells what is so, instead of asking for something to be done.
    pub fn tells(&self) -> bool {
        matches!(self, Self::Report(_) | Self::Join(_) | Self::Sign(_))
    }

    /// Whether it asks for what one host alone can tell of itself: it may be passed on to any host of the mesh.
    pub fn is_of_one_host(&self) -> bool {
        matches!(
            self,
            Self::Stats { scope: Scope::Host }
                | Self::Routes(_)
                | Self::Clusters(_)
                | Self::Endpoints(_)
                | Self::Version
                | Self::Doctor
                | Self::Config
                | Self::LogLevel(_)
                | Self::Tap(_)
        )
    }

    /// Whether only the leader can answer.
    pub fn needs_leader(&self) -> bool {
        match self {
            Self::Get(get) => !get.stale,
            Self::Apply(_)
            | Self::Wait { .. }
            | Self::CreateToken { .. }
            | Self::ListTokens
            | Self::RevokeToken { .. }
            | Self::RemoveHost { .. }
            | Self::History { .. }
            | Self::Rollback { .. }
            | Self::Join(_)
            | Self::Report(_)
            | Self::Status => true,
            _ => false,
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To `Apply` and `Rollback`.
    Applied(Applied),
    /// To `Get`.
    Resources {
        /// As of this revision.
        revision: Revision,
        /// In order of key.
        items: Vec<Stored>,
    },
    /// To `Wait`.
    Waited {
        /// Names of the hosts that run it.
        live: Vec<String>,
        /// Names of the live hosts that do not yet, with the revision they run.
        behind: BTreeMap<String, Revision>,
        /// What hosts could not take, `host: object: reason`.
        problems: Vec<String>,
    },
    /// To `Status`.
    Status(Box<Status>),
    /// To `CreateToken`: the one line to carry to the other host.
    Token {
        /// The line.
        line: String,
        /// What it lets a host become.
        role: TokenRole,
        /// Until when.
        expires: Timestamp,
    },
    /// To `ListTokens`.
    Tokens(Vec<Token>),
    /// To `PutSecret`.
    SecretPut {
        /// What its owner should know.
        warnings: Vec<String>,
    },
    /// To `Secrets`.
    Secrets(Vec<SecretView>),
    /// To `Services`.
    Services(Vec<ServiceView>),
    /// To `History`.
    History(Vec<HistoryView>),
    /// To `Routes`.
    Routes(Vec<RouteView>),
    /// To `Clusters`.
    Clusters(Vec<ClusterView>),
    /// To `Endpoints`.
    Endpoints(Vec<EndpointView>),
    /// To `Explain`.
    Explained(Box<Explanation>),
    /// To `Analyze`.
    Findings(Vec<Finding>),
    /// To `Preview`.
    Differences(Vec<Difference>),
    /// To `Stats`.
    Stats(Vec<HostStats>),
    /// To `Join`.
    Joined(Box<Joined>),
    /// To `Sign`: one chain per request, each certificate DER in base64, leaf first.
    Signed(Vec<Vec<String>>),
    /// To `Version`.
    Version {
        /// Version of meshd.
        version: String,
        /// Its process, on its host; 0 from a meshd that does not tell.
        #[serde(default)]
        pid: u32,
        /// Its wall clock, milliseconds since 1970; 0 from a meshd that does not tell.
        #[serde(default)]
        clock_ms: u64,
    },
    /// To `Doctor`.
    Checkup(Box<Checkup>),
    /// To `Config`.
    Config(Box<HostConfig>),
    /// To `LogLevel`.
    LogLevel(LogState),
    /// To `Tap`.
    Tapped(Tapped),
    /// Done; nothing to say.
    Done,
}

/// Why a request was not done. Nothing was changed, unless `code` is `Unknown`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What, where, why, what to do: one line for people.
    pub message: String,
    /// Findings in what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// Kinds of failure; meshctl turns them into exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    Invalid,
    /// The caller may not.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The thing was changed by somebody else, or exists already.
    Conflict,
    /// No majority of voters answers.
    NoQuorum,
    /// It took too long; it may have been done (send it again under the same key).
    Unknown,
    /// It took too long.
    Timeout,
    /// This meshd cannot: disk full, starting, stopping.
    Unavailable,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

/// An order to change resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Apply {
    /// What to change.
    pub batch: Batch,
    /// Check everything, change nothing.
    pub dry_run: bool,
    /// Treat warnings as errors.
    pub strict: bool,
    /// Idempotency key: the same key within 10 minutes is the same request.
    pub key: String,
}

/// What became of an `Apply`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision reached (the present one where nothing changed).
    pub revision: Revision,
    /// Each object and what became of it.
    pub results: Vec<(ObjectKey, Outcome)>,
    /// Warnings.
    pub findings: Vec<Finding>,
}

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is new.
    Created,
    /// It is another than before.
    Configured,
    /// It is as before.
    Unchanged,
    /// It is no more.
    Deleted,
}

/// Which resources to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Of this kind; `None`: of every kind.
    pub kind: Option<Kind>,
    /// In this namespace; `None`: in all.
    pub namespace: Option<String>,
    /// Of this name.
    pub name: Option<String>,
    /// Answer from this host's mirror, even without quorum.
    pub stale: bool,
}

/// The state of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Id of the mesh.
    pub mesh: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Newest revision that the answering host knows.
    pub revision: Revision,
    /// Name of the leader; `None`: there is none.
    pub leader: Option<String>,
    /// Why writes cannot be done now, if so.
    pub no_quorum: Option<String>,
    /// The host that answers.
    pub answered_by: String,
    /// Every host.
    pub hosts: Vec<HostStatus>,
}

/// One host in [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Its mesh address.
    pub address: SocketAddr,
    /// `leader`, `voter`, `standby` or `agent`.
    pub role: HostRole,
    /// Whether it answers.
    pub liveness: Liveness,
    /// The revision its data plane runs; `None`: not heard of since the leader changed.
    pub live_revision: Option<Revision>,
    /// Version of its meshd.
    pub version: String,
    /// Instances it offers, and how many of them are healthy.
    pub instances: usize,
    /// Healthy ones among them.
    pub healthy: usize,
    /// Seconds its wall clock is ahead of the leader's (negative: behind).
    pub clock_offset_ms: Option<i64>,
    /// Its wish.
    pub voter: VoterWish,
    /// What it could not take.
    pub problems: Vec<String>,
}

/// What a host is in the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRole {
    /// The voter that takes writes.
    Leader,
    /// Has a vote.
    Voter,
    /// Follows the log and may become a voter.
    Standby,
    /// Follows the World.
    Agent,
}

impl HostRole {
    /// Whether it has a vote.
    pub fn votes(self) -> bool {
        matches!(self, Self::Leader | Self::Voter)
    }
}

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Fully qualified host name.
    pub host: String,
    /// Where it comes from: `mesh`, or `ServiceEntry namespace/name`.
    pub origin: String,
    /// Virtual or real addresses that DNS answers.
    pub addresses: Vec<std::net::IpAddr>,
    /// Ports: number, name, protocol.
    pub ports: Vec<(u16, String, String)>,
    /// Its instances.
    pub instances: Vec<InstanceView>,
}

/// An instance in a [`ServiceView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Id, unique on its host.
    pub id: String,
    /// Name of its host; empty for endpoints outside the mesh.
    pub on: String,
    /// Who it is when it calls, `namespace/account`; empty for endpoints outside the mesh.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// Where it answers.
    pub targets: Vec<String>,
    /// Labels.
    pub labels: Labels,
    /// Its health.
    pub health: Health,
    /// Whether its host answers.
    pub liveness: Liveness,
}

/// One change of resources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryView {
    /// The revision it made.
    pub revision: Revision,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub author: String,
    /// What was done.
    pub reason: String,
    /// The objects changed.
    pub objects: Vec<(ObjectKey, Outcome)>,
}

/// Which rows of a Plan to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFilter {
    /// Only of this host name, short or full.
    pub host: Option<String>,
    /// Only on this port.
    pub port: Option<u16>,
}

/// One route of a Plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// The host it is for.
    pub host: String,
    /// The service port.
    pub port: u16,
    /// Position among the routes of this host and port, from 0.
    pub index: usize,
    /// Name given in the rule, may be empty.
    pub name: String,
    /// When it applies, in words.
    pub when: String,
    /// What it does, in words.
    pub then: String,
    /// Further effects in words: timeout, retries, fault, mirror, rewrites.
    pub with: Vec<String>,
    /// The object that says so, `VirtualService default/reviews http[0]`; `default` where no rule does.
    pub by: String,
    /// Of a visitor's way in: where it is open, for whom, and what is shown there. Empty: for callers of this host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
}

/// One cluster of a Plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// `outbound|PORT|SUBSET|HOST`, Istio's form.
    pub name: String,
    /// Balancing.
    pub balancer: String,
    /// Number of endpoints, and how many may be used now.
    pub endpoints: usize,
    /// Usable ones among them.
    pub usable: usize,
    /// Limits in words.
    pub limits: Vec<String>,
    /// The DestinationRule that shaped it, if any.
    pub by: Vec<String>,
    /// Where a host was asked for: the routes of that host that lead here, in words.
    #[serde(default)]
    pub routes: Vec<String>,
}

/// One endpoint of a Plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Cluster it belongs to.
    pub cluster: String,
    /// Instance and host, `reviews-v1 on vm2`.
    pub endpoint: String,
    /// Where it is reached.
    pub address: String,
    /// `local`, `mesh` or `plain`.
    pub via: String,
    /// SPIFFE id expected of it, empty for plain ones.
    pub identity: String,
    /// Weight.
    pub weight: u32,
    /// Region, zone and subzone, as far as they are known.
    #[serde(default)]
    pub locality: String,
    /// How much of the requests it would get now, and how near it is: `50 %, nearest of 2`.
    #[serde(default)]
    pub choice: String,
    /// `healthy`, `unhealthy`, `ejected for 28 s`, `host suspect` …
    pub state: String,
    /// Requests in flight from this host.
    pub in_flight: u32,
    /// Requests since meshd started.
    pub requests: u64,
}

impl EndpointView {
    /// How it is chosen, with where it is.
    pub fn chosen(&self) -> String {
        if self.locality.is_empty() {
            self.choice.clone()
        } else {
            format!("{} ({})", self.choice, self.locality)
        }
    }
}

/// Of whom counters are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Of the host that answers.
    #[default]
    Host,
    /// Of every host that answers within 1 s.
    Mesh,
}

/// Counters of one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStats {
    /// Name of the host.
    pub host: String,
    /// Milliseconds since its meshd started.
    pub uptime_ms: u64,
    /// One row for each source, destination and version.
    pub edges: Vec<EdgeStats>,
}

/// Counters of one edge, counted at its source; totals since the start of meshd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeStats {
    /// Calling workload, `namespace/account`.
    pub source: String,
    /// Host called.
    pub destination: String,
    /// Its port.
    pub port: u16,
    /// Subset the rule chose, may be empty.
    pub subset: String,
    /// `version` label of the instance that answered, may be empty.
    pub version: String,
    /// Requests ended.
    pub requests: u64,
    /// Of them, failed: a status of 500 or more, or no answer.
    pub failures: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Durations: upper bound of a bucket in microseconds, and how many ended within it (not cumulative). Sparse.
    pub latency_us: Vec<(u64, u64)>,
}

/// What a joining host says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Id of its token.
    pub token: String,
    /// Proof that it has the secret, base64 (`proto::token`), over `binding` and the host's public key.
    pub proof: String,
    /// TLS exporter of the joiner's channel, base64; filled in by the server that terminates it.
    pub binding: String,
    /// The host.
    pub host: NewHost,
    /// CSR for the host's certificate, DER in base64.
    pub csr: String,
    /// Its wall clock, milliseconds since 1970.
    pub clock_ms: u64,
}

/// What a joining host is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// Its id.
    pub id: HostId,
    /// The mesh.
    pub mesh: crate::command::Mesh,
    /// Its certificate, leaf first, DER in base64.
    pub chain: Vec<String>,
    /// Whether it may keep the mesh's state and vote; an agent otherwise.
    pub may_vote: bool,
    /// Servers to follow.
    pub servers: BTreeMap<HostId, SocketAddr>,
}

/// A certificate wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignRequest {
    /// The SPIFFE id.
    pub identity: String,
    /// CSR, DER in base64; only its public key is used.
    pub csr: String,
}

/// What a server heard from an agent since its last report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Whether the stream is open.
    pub connected: bool,
    /// Milliseconds since it was last heard.
    pub silent_ms: u64,
    /// What it said, merged.
    pub said: Up,
}

/// Facts and registration of a host, for the places that need both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostOffer {
    /// Its facts.
    pub facts: HostFacts,
    /// What it offers.
    pub registration: Registration,
}
