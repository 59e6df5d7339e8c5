//! (placeholder)
use crate::endpoint::Moment;
use crate::plan::Plan;
use crate::world::World;
use mesh_proto::api::*;
/// placeholder
pub fn routes(_p: &Plan, _f: &PlanFilter) -> Vec<RouteView> { Vec::new() }
/// placeholder
pub fn clusters(_p: &Plan, _f: &PlanFilter, _n: Moment) -> Vec<ClusterView> { Vec::new() }
/// placeholder
pub fn endpoints(_p: &Plan, _f: &PlanFilter, _n: Moment) -> Vec<EndpointView> { Vec::new() }
/// placeholder
pub fn services(_w: &World) -> Vec<ServiceView> { Vec::new() }
