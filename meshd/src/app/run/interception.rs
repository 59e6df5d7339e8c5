//! The rules that bring traffic here, for as long as meshd runs.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use mesh_proto::registration::Registration;

use crate::config::Config;
use crate::intercept;
use crate::services::Desk;

/// Interception, taken out when this is dropped: also when the start fails further on, or meshd panics.
pub(super) struct Interception {
    pub(super) is_on: bool,
}

impl Interception {
    /// `own` are the TCP ports that this process listens on.
    pub(super) fn start(
        config: &Config,
        upstreams: &[SocketAddr],
        desk: &Desk,
        own: &BTreeSet<u16>,
    ) -> Result<Self> {
        let registration: Registration = desk.registration().borrow().clone();
        let rules = intercept::rules(config, upstreams, &registration);
        let outcome = intercept::start(config.intercept.mode, &rules, own)?;
        Ok(Self { is_on: matches!(outcome, intercept::Outcome::Applied) })
    }

    /// Leaves everything in place, for the next meshd.
    pub(super) fn leave(mut self) {
        self.is_on = false;
    }

    pub(super) fn remove(mut self) -> Result<()> {
        if std::mem::take(&mut self.is_on) {
            intercept::remove()?;
        }
        Ok(())
    }
}

impl Drop for Interception {
    fn drop(&mut self) {
        if self.is_on
            && let Err(error) = intercept::remove()
        {
            tracing::error!(%error, "interception was not removed; run `meshd cleanup`");
        }
    }
}
