//! Asks the instances of this host whether they are well, and tells what changed.
//!
//! Each instance with a check is asked by a task of its own. What its answers mean (thresholds, damping) is decided
//! in `core::health`; sending the word to the mesh is the agent's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::endpoint::Moment;
use mesh_core::health::Judge;
use mesh_proto::registration::{Health, HealthCheck, Instance, Registration};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::drain::Draining;
use crate::task;
use crate::transport::SocketOptions;
use probe::{Failure, Target};

mod grpc;
mod probe;

#[cfg(test)]
mod tests;

/// The last word of each check, by instance id. An id is absent until its check has spoken for the first time.
pub type Words = BTreeMap<String, Health>;

/// Checks the instances of `registration`, whatever they are from moment to moment, until draining begins.
///
/// `options` mark the sockets, so that a check of an endpoint outside this host is not intercepted. Must be called
/// within a runtime.
pub fn start(
    registration: watch::Receiver<Registration>,
    options: SocketOptions,
    draining: Draining,
) -> watch::Receiver<Words> {
    let (words, receiver) = watch::channel(Words::new());
    let ask = move |target: Arc<Target>| async move { probe::ask(&target, options).await };
    task::spawn("health", follow(registration, Arc::new(words), ask, draining));
    receiver
}

/// Keeps one task for each instance that has a check.
async fn follow<A, F>(
    mut registration: watch::Receiver<Registration>,
    words: Arc<watch::Sender<Words>>,
    ask: A,
    mut draining: Draining,
) where
    A: Fn(Arc<Target>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut checking: BTreeMap<String, Checking> = BTreeMap::new();
    loop {
        let wanted = wanted(&registration.borrow_and_update());
        checking.retain(|id, running| wanted.get(id).is_some_and(|target| **target == *running.target));
        words.send_if_modified(|words| {
            let before = words.len();
            words.retain(|id, _| checking.contains_key(id));
            words.len() != before
        });
        for (id, target) in wanted {
            checking.entry(id).or_insert_with_key(|id| {
                let checks = check(id.clone(), target.clone(), words.clone(), ask.clone());
                Checking { target, task: task::spawn("health-check", checks) }
            });
        }
        tokio::select! {
            changed = registration.changed() => if changed.is_err() { return },
            () = draining.started() => return,
        }
    }
}

/// A running check; ends when it is dropped.
struct Checking {
    target: Arc<Target>,
    task: JoinHandle<()>,
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn wanted(registration: &Registration) -> BTreeMap<String, Arc<Target>> {
    let target =
        |(id, instance): (&String, &Arc<Instance>)| Some((id.clone(), Arc::new(Target::of(instance)?)));
    registration.instances.iter().filter_map(target).collect()
}

/// Asks one instance for ever.
async fn check<A, F>(id: String, target: Arc<Target>, words: Arc<watch::Sender<Words>>, ask: A)
where
    A: Fn(Arc<Target>) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let began = Instant::now();
    let mut judge = Judge::new(&target.check);
    let limit = Duration::from_millis(target.check.timeout_ms);
    loop {
        let asked = Instant::now();
        let found = match tokio::time::timeout(limit, ask(target.clone())).await {
            Ok(found) => found,
            Err(_) => Err(Failure::Silent(limit)),
        };
        let now = Moment(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        let flip = judge.hear(found.is_ok(), now);
        tell(&id, flip, judge.health(), found.err(), &words);
        tokio::time::sleep_until(asked + pause(&target.check)).await;
    }
}

/// Publishes a flip, and the first word of a check even if it is none.
fn tell(
    id: &str,
    flip: Option<Health>,
    health: Health,
    failure: Option<Failure>,
    words: &watch::Sender<Words>,
) {
    match (flip, failure) {
        (Some(Health::Healthy), _) => tracing::info!(instance = id, "instance is healthy"),
        (Some(_), Some(failure)) => tracing::warn!(instance = id, %failure, "instance is unhealthy"),
        (None, Some(failure)) => tracing::debug!(instance = id, %failure, "health check failed"),
        _ => {}
    }
    words.send_if_modified(|words| words.insert(id.to_owned(), health) != Some(health));
}

/// The interval, 10 % more or less: checks of many instances and hosts do not fall into step.
fn pause(check: &HealthCheck) -> Duration {
    Duration::from_millis(check.interval_ms.max(MIN_INTERVAL_MS)).mul_f64(0.9 + fastrand::f64() * 0.2)
}

/// What a registration may ask for at least; see `HealthCheck::interval_ms`.
const MIN_INTERVAL_MS: u64 = 100;
