//! Leaving politely: one signal that all work under way hears, and one wait for all of it to end.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

/// Begins draining, and waits for its end.
#[derive(Debug)]
pub struct Drain(watch::Sender<bool>);

/// Held by everything that must end before draining is done: a connection, a task.
#[derive(Clone, Debug)]
pub struct Draining(watch::Receiver<bool>);

/// Makes a drain and the first of its listeners.
pub fn channel() -> (Drain, Draining) {
    let (sender, receiver) = watch::channel(false);
    (Drain(sender), Draining(receiver))
}

impl Drain {
    /// Tells everyone to finish what they do and to begin nothing new.
    pub fn start(&self) {
        self.0.send_replace(true);
    }

    /// Makes another of its listeners.
    pub fn listener(&self) -> Draining {
        Draining(self.0.subscribe())
    }

    /// Waits until every [`Draining`] is dropped, at most for `limit`. Returns how many are left: 0 when all ended.
    pub async fn finished(&self, limit: Duration) -> usize {
        self.finished_or(tokio::time::sleep(limit)).await
    }

    /// Waits until every [`Draining`] is dropped, or `enough` comes first. Returns how many are left.
    pub async fn finished_or(&self, enough: impl Future<Output = ()>) -> usize {
        tokio::select! {
            () = self.0.closed() => {}
            () = enough => {}
        }
        self.0.receiver_count()
    }
}

impl Draining {
    /// Whether draining has begun.
    pub fn has_started(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until draining begins. Cancel safe. Also returns when the [`Drain`] is gone.
    pub async fn started(&mut self) {
        let _ = self.0.wait_for(|started| *started).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_everyone_who_listens() {
        let (drain, mut draining) = channel();
        let other = draining.clone();
        drain.start();

        draining.started().await;
        drop(draining);

        assert!(other.has_started());
        assert_eq!(drain.finished(Duration::from_millis(1)).await, 1);
        drop(other);
        assert_eq!(drain.finished(Duration::from_secs(5)).await, 0);
    }
}
