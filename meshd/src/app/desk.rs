//! The desk where services of this host are registered: files of `services.d`, and what `meshctl service` asks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::api::{ApiError, ErrorCode};
use mesh_proto::command::HostId;
use mesh_proto::registration::{Instance, Registration};
use tokio::sync::watch;

use super::carrier::unavailable;
use crate::agent::Published;
use crate::config::Config;
use crate::drain::Draining;
use crate::services::{self, Folders, Offer, RegisterError};
use crate::task;

/// How long a registration may take to be known to the mesh.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// Takes registrations in.
pub(super) struct Desk {
    data: PathBuf,
    offers: watch::Receiver<Arc<Offer>>,
    registration: watch::Receiver<Registration>,
}

impl Desk {
    /// Reads what is registered, and follows it until draining begins.
    pub(super) fn start(config: &Config, draining: Draining) -> Arc<Self> {
        let data = config.host.data.clone();
        let mut folders = Folders::new(&config.services.directory, &data);
        let first = Arc::new(folders.read());
        for finding in &first.findings {
            tracing::warn!(%finding, "service file");
        }
        let (offer, offers) = watch::channel(first.clone());
        let (registrations, registration) = watch::channel(first.registration.clone());
        task::spawn("services.d", services::run(folders, offer, draining));
        let mut following = offers.clone();
        task::spawn("registration", async move {
            while following.changed().await.is_ok() {
                let registration = following.borrow_and_update().registration.clone();
                registrations.send_if_modified(|last| {
                    let is_news = *last != registration;
                    *last = registration;
                    is_news
                });
            }
        });
        Arc::new(Self { data, offers, registration })
    }

    /// Follows what this host offers.
    pub(super) fn registration(&self) -> watch::Receiver<Registration> {
        self.registration.clone()
    }

    /// Registers instances, and waits until the mesh knows them.
    pub(super) async fn register(
        &self,
        host: HostId,
        instances: &BTreeMap<String, Instance>,
        published: watch::Receiver<Arc<Published>>,
    ) -> Result<(), ApiError> {
        for (id, instance) in instances {
            let offered = self.offers.borrow().clone();
            services::register(&self.data, id, instance, &offered).map_err(refused)?;
        }
        let known = |registration: Option<&Arc<Registration>>| {
            instances.iter().all(|(id, wanted)| {
                let agreed = registration.and_then(|registration| registration.instances.get(id));
                agreed.is_some_and(|agreed| Instance { health: wanted.health, ..agreed.clone() } == *wanted)
            })
        };
        wait(published, host, known).await
    }

    /// Removes registrations made by [`Desk::register`], and waits until the mesh knows.
    pub(super) async fn deregister(
        &self,
        host: HostId,
        ids: &[String],
        published: watch::Receiver<Arc<Published>>,
    ) -> Result<(), ApiError> {
        let mut missing = Vec::new();
        for id in ids {
            if !services::deregister(&self.data, id).map_err(refused)? {
                missing.push(id.as_str());
            }
        }
        if !missing.is_empty() {
            let offered = self.offers.borrow().clone();
            let in_files = missing.iter().any(|id| offered.registration.instances.contains_key(*id));
            let hint = if in_files {
                "it is written in a file of services.d: change or delete that file"
            } else {
                "list what is registered with: meshctl service list"
            };
            let message = format!("{} was not registered by meshctl on this host; {hint}", missing.join(", "));
            return Err(ApiError { code: ErrorCode::NotFound, ..unavailable(message) });
        }
        let gone = |registration: Option<&Arc<Registration>>| {
            ids.iter().all(|id| registration.is_none_or(|registration| !registration.instances.contains_key(id)))
        };
        wait(published, host, gone).await
    }
}

/// Waits until what the mesh knows of this host is as wanted.
async fn wait(
    mut published: watch::Receiver<Arc<Published>>,
    host: HostId,
    wanted: impl Fn(Option<&Arc<Registration>>) -> bool,
) -> Result<(), ApiError> {
    let known = published.wait_for(|published| wanted(published.world.registrations.get(&host)));
    match tokio::time::timeout(KNOWN_WITHIN, known).await {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError {
            code: ErrorCode::Timeout,
            ..unavailable(format!(
                "it is written down on this host, but the mesh did not take it in within {} s; see meshctl status, and the log of meshd for a reason",
                KNOWN_WITHIN.as_secs()
            ))
        }),
    }
}

fn refused(error: RegisterError) -> ApiError {
    match error {
        RegisterError::Refused(findings) => {
            let message = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            ApiError { code: ErrorCode::Conflict, message, findings }
        }
        file @ RegisterError::File { .. } => unavailable(file.to_string()),
    }
}
