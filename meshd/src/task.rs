//! Named tasks: every task has a name, and a panic in one ends that task only, is counted and logged with its name.

use std::future::Future;

use tokio::task::JoinHandle;

use crate::telemetry;

/// Spawns a task on the runtime of this thread.
#[expect(clippy::disallowed_methods, reason = "the one place that names tasks")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(async move {
        let _watch = Watch(name);
        future.await
    })
}

/// Spawns a task that stays on this thread. Must be called on a `LocalRuntime`.
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    tokio::task::spawn_local(async move {
        let _watch = Watch(name);
        future.await
    })
}

/// Is dropped while unwinding when the task it lives in panics.
struct Watch(&'static str);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            telemetry::task_panicked(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_its_task_only() {
        let before = telemetry::task_panics();

        let ended = spawn("test", async { panic!("as asked") }).await;

        assert!(ended.is_err_and(|error| error.is_panic()));
        assert!(telemetry::task_panics() > before);
    }
}
