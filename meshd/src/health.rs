//! (placeholder)
use std::collections::BTreeMap;
use mesh_proto::registration::{Health, Registration};
use tokio::sync::watch;
/// placeholder
pub fn start(_r: watch::Receiver<Registration>, _d: crate::drain::Draining) -> watch::Receiver<BTreeMap<String, Health>> {
    let (tx, rx) = watch::channel(BTreeMap::new());
    std::mem::forget(tx);
    rx
}
