//! Answers calls of meshctl, of agents and of other servers.
//!
//! What only the leader can answer is passed on to it, once more if the leader changes midway: the
//! idempotency key of a request makes that harmless. Without a majority the answer comes within 3 s,
//! at once when it is known, and names who is missing.

mod apply;
mod join;
mod read;
mod sign;
mod token;
mod wait;

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_proto::api::{ApiError, Call, ErrorCode, Request, Response};
use mesh_proto::command::HostId;
use mesh_proto::exact::Unread;

use super::raft::ProposeError;
use super::{PATIENCE, Server, wall_ms};
use crate::transport::{FrameStream, Service};

impl Server {
    /// Answers a request of this host's own meshctl or agent.
    ///
    /// `author` says who asks, for the log: `uid 0 on vm1`. **Errors**: [`ApiError`], whose code tells
    /// whether anything may have changed. Takes at most 3 s, [`Request::Wait`] its own time-out.
    pub async fn call(&self, request: Request, author: &str) -> Result<Response, ApiError> {
        if matches!(request, Request::Status) {
            return self.status_from_anywhere(author).await;
        }
        if !request.needs_leader() {
            return self.answer_here(request);
        }
        let patience = match &request {
            Request::Wait { timeout_ms, .. } => PATIENCE + Duration::from_millis(*timeout_ms),
            _ => PATIENCE,
        };
        self.ask_leader(request, author, Instant::now() + patience).await
    }

    /// Lets the leader answer: this server, or the one that leads.
    pub(super) async fn ask_leader(
        &self,
        request: Request,
        author: &str,
        deadline: Instant,
    ) -> Result<Response, ApiError> {
        let mut last = None;
        loop {
            if let Some(gap) = self.consensus.no_quorum() {
                return Err(error(ErrorCode::NoQuorum, gap));
            }
            let answer = match self.consensus.leader() {
                Some(leader) if leader == self.id => self.answer_as_leader(request.clone(), author).await,
                Some(leader) => self.pass_on(leader, request.clone(), author, deadline).await,
                None => Err(Failure::Again(None)),
            };
            match answer {
                Ok(response) => return Ok(response),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(reason)) => last = reason.or(last),
            }
            if Instant::now() + RETRY_AFTER >= deadline {
                return Err(self.no_leader(last));
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn pass_on(
        &self,
        leader: HostId,
        request: Request,
        author: &str,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let call = Call { author: author.to_owned(), request, relayed: true };
        let body = serde_json::to_vec(&call).map_err(|source| Failure::Final(invalid(source.to_string())))?;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let calling = self.consensus.peers().call(leader, Service::Api, body.into(), timeout);
        let answer = tokio::select! {
            answer = calling => answer,
            // A host that died mid-call may leave nothing but silence: whoever leads now is asked instead.
            () = self.consensus.another_leads(leader) => return Err(Failure::Again(None)),
        };
        let answer = answer.map_err(|source| Failure::Again(Some(source.to_string())))?;
        let answer: Result<Response, ApiError> = serde_json::from_slice(&answer).map_err(|source| {
            let told = format!(
                "the leader's answer cannot be read here ({}): where it runs a newer meshd, ask on its host, or upgrade \
                 this one",
                Unread::of(&source)
            );
            Failure::Final(error(ErrorCode::Unavailable, told))
        })?;
        answer.map_err(|error| match error.code {
            ErrorCode::Unavailable if error.message == NOT_LEADER => Failure::Again(None),
            _ => Failure::Final(error),
        })
    }

    /// Answers as the leader, or says that another one leads.
    async fn answer_as_leader(&self, request: Request, author: &str) -> Result<Response, Failure> {
        match request {
            Request::Apply(order) => self.apply(order, author).await,
            Request::Get(get) => self.get(&get).await,
            Request::Wait { revision, timeout_ms } => {
                self.wait(revision, Duration::from_millis(timeout_ms)).await
            }
            Request::Status => self.status().await,
            Request::CreateToken { role, ttl_seconds } => self.create_token(role, ttl_seconds, author).await,
            Request::ListTokens => self.list_tokens().await,
            Request::RevokeToken { id } => self.revoke_token(id, author).await,
            Request::RemoveHost { name } => self.remove_host(&name, author).await,
            Request::History { limit } => self.history(limit).await,
            Request::Rollback { to, dry_run, key } => self.rollback(to, dry_run, key, author).await,
            Request::Join(join) => self.join(*join, author).await,
            Request::Report(reports) => {
                self.note_leadership();
                self.keeper.report(reports, Instant::now(), wall_ms());
                Ok(Response::Done)
            }
            other => self.answer_here(other).map_err(Failure::Final),
        }
    }

    /// Answers what any server can.
    fn answer_here(&self, request: Request) -> Result<Response, ApiError> {
        match request {
            Request::Get(get) => Ok(self.get_stale(&get)),
            Request::Version => Ok(Response::Version {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                clock_ms: wall_ms(),
            }),
            _ => Err(invalid("this is answered by the host itself, not by the servers of the mesh")),
        }
    }

    /// Serves calls of another host on one stream, one after the other.
    pub(super) async fn serve_calls(&self, host: HostId, mut stream: FrameStream) {
        while let Ok(Some(frame)) = stream.recv().await {
            let answer = match Call::read(&frame, &self.name()) {
                Ok(call) => self.answer_host(host, call).await,
                Err(Unread::Newer(what)) => Err(invalid(format!(
                    "{} runs meshd {}, which does not know this ({what}); nothing was changed: upgrade meshd there",
                    self.name(),
                    env!("CARGO_PKG_VERSION"),
                ))),
                Err(Unread::Malformed(why)) => Err(invalid(format!("the call cannot be read: {why}"))),
            };
            if stream.send(encode(&answer)).await.is_err() {
                return;
            }
        }
    }

    /// Answers another host, as far as it may ask.
    pub(crate) async fn answer_host(&self, host: HostId, call: Call) -> Result<Response, ApiError> {
        let is_server = self.consensus.members().iter().any(|member| member.id == host);
        let known =
            self.consensus.facts().read(|world| world.hosts.get(&host).map(|known| known.name.clone()));
        let Some(name) = known else {
            let message = format!("host {host} is not in this mesh any more: join again with a new token");
            return Err(error(ErrorCode::Forbidden, message));
        };
        let Call { author, request, relayed } = call;
        let author = if is_server { author } else { by_host(&author, &name) };
        match request {
            Request::Sign(requests) => self.sign(host, &requests),
            // A join may come by way of any host: its proof covers the joiner's key, so that nobody on the way can use it.
            Request::Report(_) if !is_server => {
                Err(error(ErrorCode::Forbidden, format!("only servers may send this; {name} is none")))
            }
            request if relayed => match self.answer_as_leader(request, &author).await {
                Err(Failure::Again(_)) => Err(error(ErrorCode::Unavailable, NOT_LEADER)),
                Err(Failure::Final(error)) => Err(error),
                Ok(response) => Ok(response),
            },
            request => self.call(request, &author).await,
        }
    }

    fn no_leader(&self, last: Option<String>) -> ApiError {
        if let Some(gap) = self.consensus.no_quorum() {
            return error(ErrorCode::NoQuorum, gap);
        }
        if let Some(reason) = self.consensus.failure() {
            return error(ErrorCode::Unavailable, reason);
        }
        let tried = last.map_or_else(String::new, |reason| format!(" ({reason})"));
        let message =
            format!("no quorum: no leader answered within {PATIENCE:?}{tried}; try again in a moment");
        error(ErrorCode::NoQuorum, message)
    }
}

/// Why a request has no answer yet.
#[derive(Debug)]
enum Failure {
    /// This is the answer.
    Final(ApiError),
    /// Another server leads now, or will in a moment.
    Again(Option<String>),
}

impl From<ProposeError> for Failure {
    fn from(source: ProposeError) -> Self {
        match source {
            ProposeError::NotLeader(_) => Self::Again(None),
            other => Self::Final(other.into()),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(source: ApiError) -> Self {
        if source.code == ErrorCode::Unavailable && source.message == NOT_LEADER {
            return Self::Again(None);
        }
        Self::Final(source)
    }
}

impl From<ProposeError> for ApiError {
    fn from(source: ProposeError) -> Self {
        let code = match &source {
            ProposeError::NotLeader(_) => return error(ErrorCode::Unavailable, NOT_LEADER),
            ProposeError::NoQuorum(_) => ErrorCode::NoQuorum,
            ProposeError::Unknown(_) => ErrorCode::Unknown,
            ProposeError::Unavailable(_) => ErrorCode::Unavailable,
        };
        error(code, source.to_string())
    }
}

fn error(code: ErrorCode, message: impl Into<String>) -> ApiError {
    ApiError { code, message: message.into(), findings: Vec::new() }
}

fn invalid(message: impl Into<String>) -> ApiError {
    error(ErrorCode::Invalid, message)
}

/// Answers are plain data: they always encode.
fn encode(answer: &Result<Response, ApiError>) -> Bytes {
    Bytes::from(serde_json::to_vec(answer).expect("plain data with string keys encodes as JSON"))
}

/// The author as told by a host that is no server: the person is its word, the host is proven.
fn by_host(author: &str, name: &str) -> String {
    let person = author.split(" on ").next().unwrap_or_default();
    let person: String = person.chars().filter(|letter| !letter.is_control()).take(100).collect();
    format!("{person} on {name}")
}

/// How one server tells another that it does not lead.
const NOT_LEADER: &str = "this server does not lead the mesh";
/// Between two attempts while a leader is elected.
const RETRY_AFTER: Duration = Duration::from_millis(50);
