//! What comes in on the mesh port and is no data hop.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::super::requests::Requests;
use crate::server::Server;
use crate::task;
use crate::transport::{Accepted, Service};

/// Hands what comes in on the mesh port, and is no data hop, to whom it concerns.
pub(super) async fn accept_control(
    mut incoming: mpsc::Receiver<Accepted>,
    server: Option<Arc<Server>>,
    requests: Arc<Requests>,
) {
    while let Some(accepted) = incoming.recv().await {
        hand_over(accepted, server.as_ref(), &requests);
    }
}

fn hand_over(accepted: Accepted, server: Option<&Arc<Server>>, requests: &Arc<Requests>) {
    match (accepted, server) {
        (Accepted::Control(peer, service, stream), server) => {
            let Some(host) = peer.host() else {
                tracing::debug!(peer = %peer.address, "control traffic from who is no host");
                return;
            };
            match (service, server) {
                (Service::Api, _) => {
                    let requests = requests.clone();
                    task::spawn("api stream", async move { requests.serve(&peer, host, stream).await });
                }
                (_, Some(server)) => server.serve(host, service, stream),
                (_, None) => tracing::debug!(peer = %peer.address, ?service, "this host is no server"),
            }
        }
        (Accepted::Join(peer, stream, exporter), Some(server)) if server.is_member() => {
            server.serve_join(peer.address, stream, exporter);
        }
        (Accepted::Join(_, stream, exporter), _) => {
            let requests = requests.clone();
            task::spawn("join", async move { requests.serve_join(stream, exporter).await });
        }
        (Accepted::Hop(peer, _) | Accepted::Lane(peer, _), _) => {
            tracing::error!(peer = %peer.address, "a data hop came to the control plane");
        }
    }
}
