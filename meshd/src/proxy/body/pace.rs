//! How fast a body must come (differs: Envoy asks for no speed). Time counts only while somebody waits for it: a slow endpoint is not the caller's fault.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A body may fall behind its rate by some patience; what comes wins time back, up to all of it.
pub(super) struct Pace {
    /// Bytes a second.
    rate: u32,
    patience: Duration,
    /// What is left of the patience.
    left: Duration,
    waiting: Option<Instant>,
    /// Made at the first wait: most bodies are there at once.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(rate: u32, patience: Duration) -> Self {
        Self { rate: rate.max(1), patience, left: patience, waiting: None, alarm: None }
    }

    /// Nothing is there: says whether that has been so for too long, and wakes the task when it will be.
    pub(super) fn is_too_slow(&mut self, cx: &mut Context<'_>) -> bool {
        if self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            let end = now + self.left;
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(end),
                None => self.alarm = Some(Box::pin(tokio::time::sleep_until(end))),
            }
        }
        self.alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready())
    }

    /// Some of it has come.
    pub(super) fn came(&mut self, bytes: usize) {
        let Some(since) = self.waiting.take() else { return };
        let won = Duration::from_secs(bytes as u64) / self.rate;
        self.left = (self.left.saturating_sub(since.elapsed()) + won).min(self.patience);
    }
}
