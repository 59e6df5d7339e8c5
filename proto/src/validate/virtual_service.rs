//! Rules of `VirtualService`.

use super::{Check, Exports, each, http, text};
use crate::resource::{
    Destination, L4MatchAttributes, RouteDestination, TcpRoute, TlsMatchAttributes, TlsRoute, VirtualService,
};

pub(super) fn check(check: &mut Check, spec: &VirtualService) {
    let delegate = spec.hosts.is_empty();
    let mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh");
    for (path, gateway) in each("spec.gateways", &spec.gateways) {
        check.rule(path.clone(), text::gateway(gateway));
        let mut parts = gateway.split('.');
        if let (false, Some(name), Some(namespace)) = (gateway.contains('/'), parts.next(), parts.next()) {
            check
                .warning(path, format!("{gateway:?} is the former form of a name; write {namespace}/{name}"));
        }
    }
    hosts(check, spec, mesh);
    if delegate {
        for (field, used) in [
            ("gateways", !spec.gateways.is_empty()),
            ("tcp", !spec.tcp.is_empty()),
            ("tls", !spec.tls.is_empty()),
        ] {
            if used {
                check.error(
                    format!("spec.{field}"),
                    "a VirtualService without hosts is a delegate, and has http routes only",
                );
            }
        }
    }
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        check.error("spec", "must have routes: http, tcp or tls");
    }
    let mut caught = None;
    for (path, route) in each("spec.http", &spec.http) {
        http::check(check, &path, route, delegate);
        if let Some(first) = &caught {
            check.warning(path.clone(), format!("is never reached: {first} takes every request"));
        } else if http::catches_all(route) {
            caught = Some(path);
        }
    }
    for (path, route) in each("spec.tls", &spec.tls) {
        tls(check, &path, route, &spec.hosts, mesh);
    }
    for (path, route) in each("spec.tcp", &spec.tcp) {
        tcp(check, &path, route);
    }
    check.export_to(&spec.export_to, Exports::Rules);
}

fn hosts(check: &mut Check, spec: &VirtualService, mesh: bool) {
    for (path, host) in each("spec.hosts", &spec.hosts) {
        if mesh && host == "*" {
            check.error(path, "\"*\" alone is not allowed for the mesh; name hosts, or write *.domain");
        } else if !text::address(host) {
            check.rule(path, traffic_host(host, !mesh && !spec.tls.is_empty()));
        }
    }
    for (at, (path, host)) in each("spec.hosts", &spec.hosts).enumerate() {
        if let Some(first) = spec.hosts[..at].iter().find(|first| text::overlap(first, host)) {
            check.error(
                path,
                format!("{host:?} and {first:?} stand for the same hosts; each may be here once"),
            );
        }
    }
    if !mesh {
        return;
    }
    let names = spec.http.iter().flat_map(|route| &route.r#match);
    let mut names = names.flat_map(|matching| matching.headers.keys().chain(matching.without_headers.keys()));
    if let Some(claim) = names.find(|name| http::is_claim(name)) {
        check.error("spec.http", format!("{claim:?}: claims of a token are matched at gateways only"));
    }
}

fn tls(check: &mut Check, path: &str, route: &TlsRoute, hosts: &[String], mesh: bool) {
    if route.r#match.is_empty() {
        check.error(path, "must have a match with sniHosts");
    }
    for (path, matching) in each(&format!("{path}.match"), &route.r#match) {
        tls_match(check, &path, matching, hosts, mesh);
    }
    destinations(check, path, &route.route);
}

fn tls_match(check: &mut Check, path: &str, matching: &TlsMatchAttributes, hosts: &[String], mesh: bool) {
    if matching.sni_hosts.is_empty() {
        check.error(format!("{path}.sniHosts"), "must name at least one host");
    }
    for (path, sni) in each(&format!("{path}.sniHosts"), &matching.sni_hosts) {
        if text::address(sni) {
            check.warning(
                path,
                format!("{sni:?} is an address: TLS names servers, and most callers send no address"),
            );
        } else if let Err(reason) = traffic_host(sni, !mesh) {
            check.error(path, reason);
        } else if !hosts.iter().any(|host| text::covers(host, sni)) {
            check.error(path, format!("{sni:?} is not among spec.hosts ({})", hosts.join(", ")));
        }
    }
    let common = L4MatchAttributes {
        destination_subnets: matching.destination_subnets.clone(),
        port: matching.port,
        source_labels: matching.source_labels.clone(),
        gateways: matching.gateways.clone(),
        ..L4MatchAttributes::default()
    };
    l4_match(check, path, &common);
}

fn tcp(check: &mut Check, path: &str, route: &TcpRoute) {
    for (path, matching) in each(&format!("{path}.match"), &route.r#match) {
        l4_match(check, &path, matching);
    }
    destinations(check, path, &route.route);
}

fn l4_match(check: &mut Check, path: &str, matching: &L4MatchAttributes) {
    for (path, subnet) in each(&format!("{path}.destinationSubnets"), &matching.destination_subnets) {
        check.rule(path, text::subnet(subnet));
    }
    if !matching.source_subnet.is_empty() {
        check.rule(format!("{path}.sourceSubnet"), text::subnet(&matching.source_subnet));
    }
    check.rule(format!("{path}.sourceLabels"), text::labels(&matching.source_labels));
    for (path, gateway) in each(&format!("{path}.gateways"), &matching.gateways) {
        check.rule(path, text::gateway(gateway));
    }
}

fn destinations(check: &mut Check, path: &str, routes: &[RouteDestination]) {
    if routes.is_empty() {
        check.error(format!("{path}.route"), "must have at least one destination");
    }
    for (path, route) in each(&format!("{path}.route"), routes) {
        destination(check, &format!("{path}.destination"), route.destination.as_ref());
    }
    let weights: Vec<_> = routes.iter().map(|route| route.weight).collect();
    check_weights(check, &format!("{path}.route"), &weights);
}

/// One destination may have any weight; several must not all be 0.
pub(super) fn check_weights(check: &mut Check, path: &str, weights: &[Option<i32>]) {
    let mut sum = 0_i64;
    for (path, weight) in each(path, weights) {
        let weight = weight.unwrap_or_default();
        check.not_negative(format!("{path}.weight"), weight);
        sum += i64::from(weight);
    }
    if weights.len() > 1 && sum == 0 {
        check.error(path, "the weights add up to 0: nothing would go anywhere");
    }
    if sum > i64::from(u32::MAX) {
        check.error(path, format!("the weights add up to {sum}, more than {}", u32::MAX));
    }
}

pub(super) fn destination(check: &mut Check, path: &str, destination: Option<&Destination>) {
    let Some(destination) = destination else {
        check.error(path, "must be there");
        return;
    };
    let host = format!("{path}.host");
    if destination.host == "*" {
        check.error(host, "\"*\" alone is no destination");
    } else {
        check.rule(host, text::wildcard_host(&destination.host));
    }
    if !destination.subset.is_empty() {
        check.rule(format!("{path}.subset"), text::label(&destination.subset));
    }
    if let Some(port) = destination.port {
        check.port(format!("{path}.port.number"), port.number);
    }
}

/// A host with or without wildcard; at gateways also the name of a hop (`outbound_.PORT_.SUBSET_.HOST`).
fn traffic_host(host: &str, gateway: bool) -> Result<(), String> {
    match host.strip_prefix("outbound_.").and_then(|rest| rest.splitn(3, '.').nth(2)) {
        Some(host) if gateway => text::wildcard_host(host),
        _ => text::wildcard_host(host),
    }
}
