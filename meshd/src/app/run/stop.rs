//! Signals.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// SIGTERM and SIGINT; and SIGHUP, which asks for a reload.
pub(in crate::app) struct Stop {
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    came: bool,
}

/// What a signal asks for.
pub(super) enum Heard {
    Stop,
    Reload,
}

impl Stop {
    pub(in crate::app) fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            came: false,
        })
    }

    pub(super) async fn or_reload(&mut self) -> Heard {
        if self.came {
            return Heard::Stop;
        }
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop,
            _ = self.interrupt.recv() => Heard::Stop,
            _ = self.hangup.recv() => Heard::Reload,
        }
    }

    pub(in crate::app) async fn wait(&mut self) {
        if self.came {
            return;
        }
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Remembers a signal that came while something else was waited for.
    pub(super) fn again(&mut self) {
        self.came = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// As at a hand-over, whose last part no runtime sees.
    #[test]
    fn a_signal_that_came_between_two_runtimes_is_heard_on_the_second() {
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let first = runtime();
        let mut stop = first.block_on(async { Stop::new() }).expect("signals");
        drop(first);

        kill_process(getpid(), Signal::TERM).expect("sent");

        let heard =
            runtime().block_on(async { tokio::time::timeout(Duration::from_secs(5), stop.wait()).await });
        assert_eq!(heard, Ok(()));
    }
}
