//! What is known before anything listens.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use data_encoding::BASE64;
use mesh_core::identity::Identity;
use mesh_core::plan::{Locality, Node, Workload};
use rustls::pki_types::CertificateDer;

use super::super::logging::Levels;
use super::super::state::HostState;
use super::super::{NeedsPerson, entrances};
use crate::config::{Config, RESTORE_OR_REJOIN, Source};
use crate::drain::{self, Drain};
use crate::identity::HostKeys;
use crate::telemetry::Stats;
use crate::transport::{Credentials, Dialer, SocketOptions, Trust};

/// How this process began.
pub(super) struct Begun {
    pub(super) source: Source,
    /// The file as it was.
    pub(super) text: String,
    pub(super) log: Levels,
}

/// What this host is, and what everything else of it is built on.
pub(super) struct Ground {
    pub(super) config: Config,
    pub(super) state: HostState,
    pub(super) began: Instant,
    pub(super) keys: Arc<HostKeys>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) dialer: Dialer,
    pub(super) stats: Arc<Stats>,
    pub(super) drain: Drain,
    pub(super) draining: drain::Draining,
}

impl Ground {
    pub(super) fn new(config: Config, state: HostState) -> Result<Self> {
        let keys = HostKeys::open(&config.host.data)?.with_context(|| {
            let data = config.host.data.display();
            NeedsPerson(format!("host.key and wrap.key are missing from {data}; {RESTORE_OR_REJOIN}"))
        })?;
        let roots: Vec<CertificateDer<'static>> = state
            .mesh
            .roots
            .iter()
            .map(|root| BASE64.decode(root.as_bytes()).map(Into::into))
            .collect::<Result<_, _>>()
            .with_context(|| {
                NeedsPerson(format!("the mesh's roots in host.json are damaged; {RESTORE_OR_REJOIN}"))
            })?;
        let credentials = Credentials::new(Trust::new(&state.mesh.trust_domain, roots)?);
        let dialer = Dialer::new(credentials.clone(), socket_options(&config));
        let workers = entrances::workers(&config);
        let (drain, draining) = drain::channel();
        Ok(Self {
            config,
            state,
            began: Instant::now(),
            keys: Arc::new(keys),
            credentials,
            dialer,
            stats: Arc::new(Stats::new(workers)),
            drain,
            draining,
        })
    }

    pub(super) fn own_identity(&self) -> Result<Identity> {
        Ok(Identity::host(&self.state.mesh.trust_domain, &self.state.id.to_string())?)
    }

    /// Returns who this host is; the callers are in the order that [`entrances`] counts on.
    pub(super) fn node(&self) -> Node {
        let (config, state) = (&self.config, &self.state);
        let mut callers: Vec<Workload> = vec![config.host.workload.clone()];
        for listener in &config.listeners {
            if !callers.contains(&listener.workload) {
                callers.push(listener.workload.clone());
            }
        }
        Node {
            host: state.id,
            name: state.name.clone(),
            trust_domain: state.mesh.trust_domain.clone(),
            domain: state.mesh.domain.clone(),
            locality: Locality::clone(&config.host.locality),
            labels: config.host.labels.clone(),
            callers,
        }
    }
}

/// The mark on every outgoing socket: interception lets it pass.
pub(super) fn socket_options(config: &Config) -> SocketOptions {
    SocketOptions { mark: Some(config.intercept.mark) }
}
