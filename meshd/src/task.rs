//! Named tasks: every task has a name, and a panic in one ends that task only, is counted and logged with its name.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;

use crate::telemetry;

/// Spawns a task on the runtime of this thread.
#[expect(clippy::disallowed_methods, reason = "the one place that names tasks")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(Named { name, future })
}

/// Spawns a task that stays on this thread. Must be called on a `LocalRuntime`.
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    tokio::task::spawn_local(Named { name, future })
}

/// Holds something for as long as a future lives.
pub fn holding<F: Future, H>(held: H, future: F) -> impl Future<Output = F::Output> {
    Holding { future, held }
}

pin_project! {
    /// A task with its name. An `async` block around the future would hold it twice (rust-lang/rust#62958).
    struct Named<F> {
        name: &'static str,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Named<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _watch = Watch(this.name);
        this.future.poll(cx)
    }
}

pin_project! {
    struct Holding<F, H> {
        #[pin]
        future: F,
        held: H,
    }
}

impl<F: Future, H> Future for Holding<F, H> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

/// Is dropped while unwinding when the task that is polled panics.
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
