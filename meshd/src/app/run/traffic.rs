//! The data plane of this host: names, the proxy, interception.

use std::sync::Arc;

use anyhow::Result;

use super::super::names::Names;
use super::super::{entrances, follow};
use super::control::Control;
use super::ground::Ground;
use super::interception::Interception;
use crate::listeners::Listeners;
use crate::proxy::Proxy;
use crate::telemetry::Tap;
use crate::{dns, task};

/// What carries traffic, once it is started; the Plan it goes by may be empty yet.
pub(super) struct Traffic {
    pub(super) dns: dns::Dns,
    pub(super) proxy: Proxy,
    pub(super) interception: Interception,
    pub(super) tap: Arc<Tap>,
}

impl Traffic {
    /// Starts it, interception last: what is redirected finds somebody.
    pub(super) fn start(ground: &Ground, control: &Control, listeners: &Listeners) -> Result<Self> {
        let (config, published) = (&ground.config, &control.published);
        let upstreams = dns::upstreams(config);
        let plans = control.outlets.plans.clone();
        let dns = dns::start(config, plans, upstreams.clone(), &ground.draining, listeners)?;
        let names = dns::Lookup::new(config, upstreams.clone());
        task::spawn("names", Names::run(names.clone(), published.clone()));
        let tap = Arc::new(Tap::default());
        follow::begin(&ground.credentials, &published.borrow());
        let parts = entrances::Parts {
            outlets: &control.outlets,
            dialer: &ground.dialer,
            stats: &ground.stats,
            keys: &ground.keys,
            started: ground.began,
            names: &names,
            listeners,
            challenges: &control.orders.challenges,
            tap: &tap,
        };
        let mut proxy = entrances::start_proxy(config, &parts)?;
        if let Some(keeper) = proxy.doors.take() {
            task::spawn("doors", keeper.run(published.clone(), control.problems.clone()));
        }
        let interception = Interception::start(config, &upstreams, &control.desk, &listeners.tcp_ports())?;
        Ok(Self { dns, proxy, interception, tap })
    }
}
