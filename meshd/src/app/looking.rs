//! What people ask about one host: its configuration, its log, its requests; here or on another host of the mesh.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use mesh_core::identity::Identity;
use mesh_core::plan::Plan;
use mesh_core::views;
use mesh_proto::api::{ApiError, Call, ErrorCode, PlanFilter, Request, Response};
use mesh_proto::look::{HostConfig, ListenerView, LogAsk, MAX_LOG_SECONDS, TapAsk};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

use super::logging::Levels;
use super::requests::{Asker, Requests, refused};
use crate::config::{self, Config, Source};
use crate::identity::Standing;
use crate::listeners::Listeners;
use crate::telemetry::{Tap, TapError};

/// How long another host may take to answer: a checkup asks all the others in turn.
const PATIENCE: Duration = Duration::from_secs(9);

/// What is told of this host, beside its Plan and its counters.
pub(super) struct Looking {
    /// Where its configuration comes from.
    pub(super) source: Source,
    /// The file as it was when meshd began.
    pub(super) text: String,
    /// What that means.
    pub(super) config: Config,
    /// How much is logged.
    pub(super) log: Levels,
    /// Its requests.
    pub(super) tap: Arc<Tap>,
    /// How its certificates stand.
    pub(super) certificates: watch::Receiver<BTreeMap<Identity, Standing>>,
    /// Its sockets.
    pub(super) listeners: Listeners,
}

impl Requests {
    /// Passes a request on to the host that it is about.
    pub(super) async fn pass_on(
        &self,
        name: &str,
        request: &Request,
        author: &str,
    ) -> Result<Response, ApiError> {
        if !request.is_of_one_host() {
            let why = "this concerns the mesh, not one host: leave out --host";
            return Err(refused(ErrorCode::Invalid, why));
        }
        if name == self.name {
            let here = self.answer_here(request, Asker::Here).await;
            return here
                .unwrap_or_else(|| Err(refused(ErrorCode::Invalid, "this is no question to one host")));
        }
        let found = {
            let world = &self.published.borrow().world;
            let host = world.hosts.iter().find(|(_, host)| host.name == name);
            host.map(|(id, host)| (*id, host.facts.address)).ok_or_else(|| {
                let known: Vec<&str> = world.hosts.values().map(|host| host.name.as_str()).take(20).collect();
                refused(
                    ErrorCode::NotFound,
                    format!("the mesh has no host {name:?} (it has {})", known.join(", ")),
                )
            })
        };
        let (id, address) = found?;
        let call =
            Call { author: format!("{author} on {}", self.name), request: request.clone(), relayed: false };
        self.hosts.ask(id, address, &call, PATIENCE).await.map_err(|error| match error.code {
            ErrorCode::Unavailable => {
                refused(ErrorCode::Unavailable, format!("{name} does not answer: {error}"))
            }
            _ => error,
        })
    }

    /// Tells what this host runs.
    pub(super) fn configuration(&self, plan: &Plan) -> Response {
        let looking = &self.looking;
        let path = looking.source.path();
        Response::Config(Box::new(HostConfig {
            host: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            revision: plan.revision,
            plan: digest_of(plan),
            file: if path.exists() { path.display().to_string() } else { String::new() },
            keys: config::effective(&looking.text, &looking.config),
            listeners: listeners(&looking.config, &looking.listeners),
        }))
    }

    /// Tells, and sets, how much is logged. Other hosts set it for a time only.
    pub(super) fn log_level(&self, ask: &LogAsk, is_other_host: bool) -> Result<Response, ApiError> {
        let levels = &self.looking.log;
        if let Some(level) = &ask.level {
            let seconds = match (ask.seconds, is_other_host) {
                (None, true) => Some(MAX_LOG_SECONDS),
                (seconds, _) => seconds,
            };
            if seconds.is_some_and(|seconds| seconds == 0 || seconds > MAX_LOG_SECONDS) {
                return Err(refused(ErrorCode::Invalid, format!("--for: from 1 s to {MAX_LOG_SECONDS} s")));
            }
            levels
                .set(level, seconds.map(Duration::from_secs))
                .map_err(|why| refused(ErrorCode::Invalid, why))?;
        }
        Ok(Response::LogLevel(levels.state(&self.name)))
    }

    /// Tells of requests as they end.
    pub(super) async fn tap(&self, ask: &TapAsk) -> Result<Response, ApiError> {
        let shown = self.looking.config.proxy.tap;
        self.looking.tap.ask(ask, shown, &self.name).await.map(Response::Tapped).map_err(|error| {
            let code = match &error {
                TapError::Off | TapError::Hidden => ErrorCode::Forbidden,
                TapError::TooMany => ErrorCode::Unavailable,
                TapError::Filter(_) => ErrorCode::Invalid,
            };
            refused(code, error.to_string())
        })
    }
}

fn listeners(config: &Config, listeners: &Listeners) -> Vec<ListenerView> {
    let named = config::addresses(config);
    let by = |address: &str| {
        let of_port =
            |at: &std::net::SocketAddr| address.rsplit(':').next() == Some(at.port().to_string().as_str());
        let exact = named.iter().find(|(_, at)| at.to_string() == address);
        let found = exact.or_else(|| named.iter().find(|(key, at)| key == "listen.mesh" && of_port(at)));
        found.map_or_else(|| "a rule (Gateway or Sidecar)".to_owned(), |(key, _)| key.clone())
    };
    let view = |(kind, address): (&str, String)| ListenerView {
        by: if kind == "unix" { "listen.socket".into() } else { by(&address) },
        kind: kind.to_owned(),
        address,
    };
    listeners.places().into_iter().map(view).collect()
}

/// A digest of what people see of a Plan, without what changes by itself.
fn digest_of(plan: &Plan) -> String {
    let all = PlanFilter::default();
    let clusters: Vec<String> = views::clusters(plan, &all, mesh_core::endpoint::Moment(0))
        .into_iter()
        .map(|row| format!("{} {} {}", row.name, row.balancer, row.limits.join(",")))
        .collect();
    let text = serde_json::to_vec(&(views::routes(plan, &all), clusters)).unwrap_or_default();
    HEXLOWER.encode(&digest(&SHA256, &text).as_ref()[..16])
}
