//! (placeholder)
use crate::world::World;
/// placeholder
pub fn check(_w: &World, _b: &mesh_proto::command::Batch) -> Vec<mesh_proto::finding::Finding> { Vec::new() }
