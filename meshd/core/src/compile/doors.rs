//! Doors that `Sidecars` open: egress listeners that no interception leads to.
//!
//! With `captureMode: NONE` a listener is a socket: on its `bind`, else on 127.0.0.1. Without, traffic is caught or comes
//! in by the listeners of `meshd.toml`, and nothing is opened. Source: Istio `buildSidecarOutboundListeners`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_proto::resource::CaptureMode;

use super::fingerprint;
use super::outbound::{Scene, through_proxy};
use super::scope::Scope;
use crate::plan::{Door, DoorKind, Doors, Plan};

/// Adds the doors of every caller's `Sidecar`; `caller` of a scope is its position in `Node::callers`.
pub(super) fn sidecars(
    scene: &Scene<'_>,
    scopes: &[Scope<'_>],
    position: impl Fn(usize) -> usize,
    previous: Option<&Plan>,
    doors: &mut Doors,
) {
    for scope in scopes {
        let Some((stored, _)) = scope.sidecar else { continue };
        let origin = stored.object.key();
        for (index, egress) in scope.egress.iter().enumerate() {
            let bound = egress.listener.filter(|listener| !listener.bind.is_empty());
            if bound.is_some_and(|listener| listener.capture_mode != CaptureMode::None) {
                scene.problems.note(format!(
                    "{origin}: egress[{index}]: without captureMode NONE nothing is opened at its bind"
                ));
            }
            let Some(listener) =
                egress.listener.filter(|listener| listener.capture_mode == CaptureMode::None)
            else {
                continue;
            };
            let problem = |text: String| scene.problems.note(format!("{origin}: egress[{index}]: {text}"));
            let Some(port) = egress.port() else {
                problem("captureMode NONE needs a port here: this listener is not opened".into());
                continue;
            };
            let Ok(address) = address_of(&listener.bind, Ipv4Addr::LOCALHOST) else {
                problem(format!("bind {:?} is no address: this listener is not opened", listener.bind));
                continue;
            };
            let address = SocketAddr::new(address, port);
            if let Some(other) = doors.open.get(&address) {
                problem(format!(
                    "{address} is open for {} already: this listener is not opened",
                    other.origin
                ));
                continue;
            }
            let (seat, kind) = if egress.is_proxy() {
                let seat = Doors::seat(fingerprint(&(
                    &*stored.object.metadata.namespace,
                    &stored.object.metadata.name,
                    index,
                    &scope.caller,
                )));
                let before = previous.and_then(|plan| plan.doors.seats.get(&seat));
                let outbound = through_proxy(scene, scope, egress, before.map(Arc::as_ref));
                doors.seats.insert(seat, Arc::new(outbound));
                (seat, DoorKind::Proxy)
            } else {
                (position(scope.number), DoorKind::Service(port))
            };
            doors.open.insert(address, Arc::new(Door { origin: origin.clone(), seat, kind }));
        }
    }
}

/// Reads a `bind`; empty is `default`.
pub(super) fn address_of(bind: &str, default: Ipv4Addr) -> Result<IpAddr, std::net::AddrParseError> {
    if bind.is_empty() { Ok(default.into()) } else { bind.parse() }
}
