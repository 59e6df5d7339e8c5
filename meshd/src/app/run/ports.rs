//! What only reads: the admin socket, the admin port, the metrics port.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use super::super::requests::Requests;
use super::ground::Ground;
use crate::admin::{self, Pages};
use crate::agent::Outlets;
use crate::config::Config;
use crate::listeners::Listeners;
use crate::task;

/// The ports that only read, bound before anything is served: a taken one ends the start.
pub(super) struct Ports {
    admin: Vec<TcpListener>,
    metrics: Vec<TcpListener>,
}

impl Ports {
    pub(super) fn bind(config: &Config, listeners: &Listeners) -> Result<Self> {
        let bind = |key: &str, address: std::net::SocketAddr| {
            let bound = listeners.tcp(address).with_context(|| format!("{key} of meshd.toml"))?;
            TcpListener::from_std(bound).with_context(|| format!("listening on {address}"))
        };
        let mut ports = Self { admin: Vec::new(), metrics: Vec::new() };
        if let Some(address) = config.listen.admin {
            ports.admin.push(bind("listen.admin", address)?);
        }
        for address in &config.listen.metrics {
            ports.metrics.push(bind("listen.metrics", *address)?);
        }
        Ok(ports)
    }
}

pub(super) fn serve_admin(
    ground: &Ground,
    socket: tokio::net::UnixListener,
    ports: Ports,
    requests: &Arc<Requests>,
    outlets: &Outlets,
) {
    let answering = requests.clone();
    let handler: admin::Handler = Arc::new(move |request, author| {
        let requests = answering.clone();
        Box::pin(async move { requests.answer(request, &author).await })
    });
    task::spawn("admin socket", admin::serve_socket(socket, handler.clone(), ground.draining.clone()));
    let plans = outlets.plans.clone();
    let stats = ground.stats.clone();
    let pages = Pages {
        ready: Arc::new(move || match plans.load().revision.0 {
            0 => Err("no Plan yet: no server has answered".into()),
            _ => Ok(()),
        }),
        metrics: Arc::new(move |exposition| stats.prometheus(exposition)),
        reads: Some(handler),
    };
    for listener in ports.admin {
        task::spawn("admin port", admin::serve_port(listener, pages.clone(), ground.draining.clone()));
    }
    for listener in ports.metrics {
        let pages = Pages { reads: None, ..pages.clone() };
        task::spawn("metrics port", admin::serve_port(listener, pages, ground.draining.clone()));
    }
}
