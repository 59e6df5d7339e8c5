//! All that a Plan says, in one order.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use mesh_core::plan::{Door, DoorKind, HostTable, Outbound, Plan, VirtualHost};

/// Writes a Plan down: what it was made of, by which revision and with which problems is left out.
pub(super) fn of(plan: &Plan) -> String {
    let mut out = String::new();
    for outbound in &plan.outbounds {
        outbound_of(outbound, &mut out);
    }
    for (address, door) in &plan.doors.open {
        let _ = writeln!(out, "door {address} {:?}", door.origin);
        door_of(door, &mut out);
    }
    // Seats are numbered by what they are for; the numbers say nothing.
    let mut seats: Vec<String> = plan
        .doors
        .seats
        .values()
        .map(|outbound| {
            let mut out = String::new();
            outbound_of(outbound, &mut out);
            out
        })
        .collect();
    seats.sort();
    out.push_str(&seats.concat());
    sorted(plan.inbound.instances.iter(), &mut out);
    sorted(plan.inbound.targets.iter(), &mut out);
    sorted(plan.names.exact.iter(), &mut out);
    let _ = writeln!(out, "{:?}", plan.names.wildcard);
    let _ = writeln!(out, "{:?} {:?}", plan.named.refresh, plan.clusters);
    out
}

fn outbound_of(outbound: &Outbound, out: &mut String) {
    let _ = writeln!(
        out,
        "{:?}",
        (
            &outbound.caller,
            outbound.unknown,
            &outbound.egress_proxy,
            outbound.paths,
            outbound.sniff,
            &outbound.telling,
            &outbound.ranges
        )
    );
    sorted(outbound.addresses.iter(), out);
    for (number, table) in outbound.ports.iter().collect::<BTreeMap<_, _>>() {
        let _ = writeln!(out, "{number} {:?}", table.tcp);
        sorted(table.tls.iter(), out);
        hosts(&table.http, out);
    }
}

fn hosts(table: &HostTable<VirtualHost>, out: &mut String) {
    sorted(
        table
            .iter()
            .map(|(name, host): (String, &Arc<VirtualHost>)| (name, &host.host, host.port, &host.routes)),
        out,
    );
}

fn door_of(door: &Door, out: &mut String) {
    match &door.kind {
        DoorKind::Gateway(gateway) => {
            let _ = writeln!(out, "{:?} {:?} {:?}", gateway.port, gateway.http.is_some(), gateway.tcp);
            sorted(gateway.tls.iter().map(|(name, server)| (name, server.port, &server.terminate)), out);
        }
        other => {
            let _ = writeln!(out, "{other:?}");
        }
    }
}

fn sorted(items: impl Iterator<Item = impl Debug>, out: &mut String) {
    let mut items: Vec<String> = items.map(|item| format!("{item:?}")).collect();
    items.sort();
    for item in items {
        out.push_str(&item);
        out.push('\n');
    }
}
