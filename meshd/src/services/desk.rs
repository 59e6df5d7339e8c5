//! Where services of this host are registered: from files, and by `meshctl service register`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::api::{ApiError, ErrorCode};
use mesh_proto::registration::{Instance, Registration};
use tokio::sync::{Notify, watch};

use super::{Folders, Offer, Outlets, RegisterError, file_of, follow, prepare, write};
use crate::config::Config;
use crate::drain::Draining;
use crate::task;

/// Keeps what this host offers.
#[derive(Debug)]
pub struct Desk {
    data: PathBuf,
    offers: watch::Receiver<Arc<Offer>>,
    registration: watch::Receiver<Registration>,
    changed: Arc<Notify>,
    /// One order at a time: each is checked against what the one before has left.
    ordering: tokio::sync::Mutex<()>,
}

impl Desk {
    /// Reads all files, then follows them until draining begins. What is wrong with a file is logged, and no error.
    ///
    /// Must be called within a runtime.
    pub fn start(config: &Config, draining: Draining) -> Arc<Self> {
        let mut folders = Folders::new(&config.services.directory, &config.host.data);
        let (offers, offered) = watch::channel(Arc::default());
        let outlets = Outlets { offers, registration: watch::channel(Registration::default()).0 };
        let registration = outlets.registration.subscribe();
        outlets.publish(folders.read());
        let changed = Arc::new(Notify::new());
        task::spawn("services", follow(folders, outlets, changed.clone(), draining));
        Arc::new(Self {
            data: config.host.data.clone(),
            offers: offered,
            registration,
            changed,
            ordering: tokio::sync::Mutex::default(),
        })
    }

    /// Returns what this host offers, now and from now on.
    pub fn registration(&self) -> watch::Receiver<Registration> {
        self.registration.clone()
    }

    /// Returns the same with everything wrong in the files, and where each instance stands.
    pub fn offers(&self) -> watch::Receiver<Arc<Offer>> {
        self.offers.clone()
    }

    /// Registers all instances or none, and returns when they are offered. They survive a restart.
    ///
    /// An instance of the same id that was registered this way is replaced.
    pub async fn register(&self, instances: &BTreeMap<String, Instance>) -> Result<(), ApiError> {
        let _one = self.ordering.lock().await;
        let mut files = Vec::new();
        let mut offered = Offer::clone(&self.offers.borrow());
        for (id, instance) in instances {
            let (path, text) = prepare(&self.data, id, instance, &offered).map_err(api_error)?;
            // The next one must not contradict this one either.
            offered.registration.instances.insert(id.clone(), Arc::new(instance.clone()));
            offered.files.insert(id.clone(), path.display().to_string());
            files.push((path, text));
        }
        blocking(move || {
            files
                .iter()
                .try_for_each(|(path, text)| write(path, text).map_err(|source| (path.clone(), source)))
        })
        .await?;
        self.wait(|offer| instances.keys().all(|id| offer.files.get(id) == offered.files.get(id))).await
    }

    /// Removes registrations made by [`Desk::register`], all or none, and returns when they are no longer offered.
    pub async fn deregister(&self, ids: &[String]) -> Result<(), ApiError> {
        let _one = self.ordering.lock().await;
        let mut files = Vec::new();
        for id in ids {
            let path = file_of(&self.data, id).map_err(api_error)?;
            if !path.exists() {
                return Err(self.not_ours(id));
            }
            files.push(path);
        }
        let gone = files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        blocking(move || {
            files
                .iter()
                .try_for_each(|path| std::fs::remove_file(path).map_err(|source| (path.clone(), source)))
        })
        .await?;
        self.wait(|offer| !offer.files.values().any(|file| gone.contains(file))).await
    }

    fn not_ours(&self, id: &str) -> ApiError {
        let message = match self.offers.borrow().files.get(id) {
            Some(file) => format!("instance {id:?} stands in {file}: remove it there"),
            None => format!("no instance {id:?} is registered on this host"),
        };
        ApiError { code: ErrorCode::NotFound, message, findings: Vec::new() }
    }

    async fn wait(&self, done: impl Fn(&Offer) -> bool) -> Result<(), ApiError> {
        self.changed.notify_one();
        let mut offers = self.offers.clone();
        match tokio::time::timeout(PATIENCE, offers.wait_for(|offer| done(offer))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => {
                Err(unavailable("meshd is stopping; the order takes effect at its next start".into()))
            }
            Err(_) => Err(unavailable(
                "the files were written, and are not offered yet: see the log of meshd".into(),
            )),
        }
    }
}

async fn blocking(
    order: impl FnOnce() -> Result<(), (PathBuf, std::io::Error)> + Send + 'static,
) -> Result<(), ApiError> {
    match tokio::task::spawn_blocking(order).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err((path, source))) => Err(api_error(RegisterError::File { path, source })),
        Err(error) => Err(unavailable(format!("the order was not carried out: {error}"))),
    }
}

fn api_error(error: RegisterError) -> ApiError {
    match error {
        RegisterError::Refused(findings) => {
            let taken =
                findings.iter().any(|finding| matches!(&*finding.code, "duplicate-id" | "target-taken"));
            // The findings say why, once.
            let message = "nothing was registered: the order has findings".to_owned();
            let code = if taken { ErrorCode::Conflict } else { ErrorCode::Invalid };
            ApiError { code, message, findings }
        }
        RegisterError::File { path, source } => unavailable(file_error(&path, &source)),
    }
}

fn file_error(path: &Path, source: &std::io::Error) -> String {
    format!("cannot write {}: {source}; make room, or let the user of meshd write there", path.display())
}

fn unavailable(message: String) -> ApiError {
    ApiError { code: ErrorCode::Unavailable, message, findings: Vec::new() }
}

/// How long an order waits until it is offered. Reading the folders takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
