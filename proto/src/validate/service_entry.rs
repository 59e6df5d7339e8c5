//! Rules of `ServiceEntry`, `WorkloadEntry` and `WorkloadGroup`.

use std::collections::BTreeSet;

use super::text::UNIX;
use super::traffic::is_http;
use super::{Check, Exports, each, text};
use crate::resource::{
    Location, ObjectMeta, Resolution, ServiceEntry, ServicePort, WorkloadEntry, WorkloadGroup,
};
use crate::yaml::{join, shorten};

pub(super) fn check(check: &mut Check, meta: &ObjectMeta, spec: &ServiceEntry) {
    if spec.hosts.is_empty() {
        check.error("spec.hosts", "must name at least one host");
    }
    for (path, host) in each("spec.hosts", &spec.hosts) {
        if host == "*" {
            check.error(path, "\"*\" alone is not allowed; write *.domain");
        } else {
            check.rule(path.clone(), text::wildcard_host(host));
            if host.starts_with('*') && !host.starts_with("*.") && spec.resolution() != Resolution::DynamicDns
            {
                check
                    .warning(path, format!("{host:?}: a wildcard is meant for whole labels; write *.domain"));
            }
        }
    }
    for (field, count, most) in [
        ("hosts", spec.hosts.len(), 256),
        ("addresses", spec.addresses.len(), 256),
        ("ports", spec.ports.len(), 256),
        ("endpoints", spec.endpoints.len(), 4096),
    ] {
        check.at_most(&format!("spec.{field}"), count, most);
    }
    addresses(check, spec);
    ports(check, spec);
    endpoints(check, spec);
    resolution(check, spec);
    if let Some(selector) = &spec.workload_selector {
        check.selector("spec.workloadSelector", selector);
        if !spec.endpoints.is_empty() {
            check.error("spec", "only one of workloadSelector and endpoints may be set");
        }
        if spec.resolution() == Resolution::None {
            check.warning(
                "spec.workloadSelector",
                "has no meaning with resolution NONE, where the address dialled is used",
            );
        }
    }
    waypoint(check, meta, spec);
    for (path, name) in each("spec.subjectAltNames", &spec.subject_alt_names) {
        check.required(path, name);
    }
    check.export_to(&spec.export_to, Exports::Services);
}

/// Source: Istio `usesWaypoint`.
fn waypoint(check: &mut Check, meta: &ObjectMeta, spec: &ServiceEntry) {
    let is_one = |name: &&String| !name.is_empty() && !name.eq_ignore_ascii_case("none");
    let through = meta.labels.get(USE_WAYPOINT).filter(is_one);
    if through.is_some()
        && spec.resolution() == Resolution::DynamicDns
        && spec.location() == Location::MeshInternal
    {
        check.error(
            join("metadata.labels", USE_WAYPOINT),
            "DYNAMIC_DNS with MESH_INTERNAL does not go through a waypoint; leave the label out (meshd has no waypoints)",
        );
    }
}

const USE_WAYPOINT: &str = "istio.io/use-waypoint";

fn addresses(check: &mut Check, spec: &ServiceEntry) {
    for (path, address) in each("spec.addresses", &spec.addresses) {
        check.rule(path.clone(), text::subnet(address));
        let fixed = matches!(spec.resolution(), Resolution::None | Resolution::Static);
        if address.contains('/') && !fixed && text::subnet(address).is_ok() {
            check.error(path, "a range of addresses needs resolution NONE or STATIC");
        }
    }
}

fn ports(check: &mut Check, spec: &ServiceEntry) {
    if spec.ports.is_empty() {
        check.warning("spec.ports", "are missing: nothing can be dialled");
    }
    for (path, port) in each("spec.ports", &spec.ports) {
        service_port(check, &path, port);
    }
    let names =
        each("spec.ports", &spec.ports).map(|(path, port)| (format!("{path}.name"), port.name.as_str()));
    check.unique("the port name", names);
    let numbers: Vec<_> = each("spec.ports", &spec.ports)
        .map(|(path, port)| (format!("{path}.number"), port.number.to_string()))
        .collect();
    check.unique("the port", numbers.iter().map(|(path, number)| (path.clone(), number.as_str())));
}

fn service_port(check: &mut Check, path: &str, port: &ServicePort) {
    check.port(format!("{path}.number"), port.number);
    if check.required(format!("{path}.name"), &port.name) {
        check.rule(format!("{path}.name"), text::label(&port.name));
    }
    protocol(check, &format!("{path}.protocol"), &port.protocol);
    if let Some(target) = port.target_port {
        check.port(format!("{path}.targetPort"), target);
    }
}

pub(super) fn protocol(check: &mut Check, path: &str, protocol: &str) {
    if !protocol.is_empty() && !PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
        check
            .error(path, format!("{:?} is no protocol (one of {})", shorten(protocol), PROTOCOLS.join(", ")));
    }
}

/// Source: Istio `protocol.Parse`.
const PROTOCOLS: &[&str] = &[
    "HTTP",
    "HTTP2",
    "HTTPS",
    "HTTP_PROXY",
    "GRPC",
    "GRPC-WEB",
    "TCP",
    "TLS",
    "MONGO",
    "REDIS",
    "MYSQL",
    "UDP",
];

fn endpoints(check: &mut Check, spec: &ServiceEntry) {
    let names: BTreeSet<_> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    for (path, endpoint) in each("spec.endpoints", &spec.endpoints) {
        check_workload(check, &path, endpoint);
        for name in endpoint.ports.keys().filter(|name| !names.contains(name.as_str())) {
            let path = join(&format!("{path}.ports"), name);
            let known: Vec<_> = names.iter().copied().collect();
            check.error(path, format!("{name:?} is no port of spec.ports (has: {})", known.join(", ")));
        }
        if endpoint.address.starts_with(UNIX) && spec.ports.len() != 1 {
            check.error(path, "a unix socket serves one port, so spec.ports must have exactly one");
        }
    }
}

fn resolution(check: &mut Check, spec: &ServiceEntry) {
    let wildcard = each("spec.hosts", &spec.hosts).find(|(_, host)| host.starts_with('*'));
    match spec.resolution() {
        Resolution::None if !spec.endpoints.is_empty() => {
            check.error(
                "spec.endpoints",
                "need resolution STATIC or DNS (with NONE the address dialled is used)",
            );
        }
        Resolution::None | Resolution::Static => {}
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if let (Some((path, host)), true) = (wildcard, spec.endpoints.is_empty()) {
                check
                    .error(path, format!("{host:?} cannot be looked up: DNS needs full names, or endpoints"));
            }
            for (path, endpoint) in each("spec.endpoints", &spec.endpoints) {
                if endpoint.address.starts_with(UNIX) {
                    check.error(format!("{path}.address"), "a unix socket needs resolution STATIC");
                } else if endpoint.address.is_empty() && !endpoint.network.is_empty() {
                    check.error(format!("{path}.address"), "must be there: DNS looks it up");
                }
            }
            by_address(check, spec);
            if spec.resolution() == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                check.error("spec.endpoints", "DNS_ROUND_ROBIN takes at most one endpoint");
            }
        }
        Resolution::DynamicDns => {
            for (path, host) in each("spec.hosts", &spec.hosts).filter(|(_, host)| !host.starts_with('*')) {
                check.error(path, format!("{host:?} has no wildcard; DYNAMIC_DNS is for wildcard hosts"));
            }
            for (field, used) in
                [("endpoints", !spec.endpoints.is_empty()), ("addresses", !spec.addresses.is_empty())]
            {
                if used {
                    check.error(format!("spec.{field}"), "cannot be set with DYNAMIC_DNS");
                }
            }
            for (path, port) in each("spec.ports", &spec.ports) {
                let known = ["HTTP", "TLS", "GRPC", "HTTP2"];
                if !known.iter().any(|name| name.eq_ignore_ascii_case(&port.protocol)) {
                    check.error(
                        format!("{path}.protocol"),
                        format!("DYNAMIC_DNS is for {}", known.join(", ")),
                    );
                }
            }
        }
    }
    told_apart(check, spec);
    let numbers_only = spec.resolution() == Resolution::Static;
    for (path, endpoint) in each("spec.endpoints", &spec.endpoints) {
        let address = &endpoint.address;
        if numbers_only && !address.is_empty() && !address.starts_with(UNIX) && !text::address(address) {
            check.error(
                format!("{path}.address"),
                format!("{:?} is no IP address; STATIC needs one", shorten(address)),
            );
        }
    }
}

/// Who dials an address says no host.
fn by_address(check: &mut Check, spec: &ServiceEntry) {
    let is_opaque = |port: &ServicePort| !is_http(&port.protocol);
    if spec.hosts.len() > 1 && !spec.addresses.is_empty() && spec.ports.iter().any(is_opaque) {
        check.warning(
            "spec.addresses",
            "do not say which of the hosts is meant; write one entry for each host",
        );
    }
}

/// Several hosts of one entry are told apart by what callers say: the Host of a request, the server name of TLS.
fn told_apart(check: &mut Check, spec: &ServiceEntry) {
    if spec.resolution() == Resolution::None || spec.hosts.len() < 2 {
        return;
    }
    let silent = |port: &ServicePort| {
        !is_http(&port.protocol)
            && !["HTTPS", "TLS"].iter().any(|name| name.eq_ignore_ascii_case(&port.protocol))
    };
    if let Some((path, _)) = each("spec.ports", &spec.ports).find(|(_, port)| silent(port)) {
        check.error(
            format!("{path}.protocol"),
            "with several hosts must be HTTP or TLS, by which they are told apart; write one entry for each host",
        );
    }
}

/// Checks an instance, alone or inside a `ServiceEntry`.
pub(super) fn check_workload(check: &mut Check, path: &str, entry: &WorkloadEntry) {
    let at = format!("{path}.address");
    check.no_longer(at.clone(), &entry.address, 256);
    if let Some(socket) = entry.address.strip_prefix(UNIX) {
        check.rule(at, text::socket(socket));
        if !entry.ports.is_empty() {
            check.error(format!("{path}.ports"), "a unix socket has no ports");
        }
    } else if entry.address.is_empty() {
        if entry.network.is_empty() {
            check.error(at, "must be there");
        } else {
            check.warning(
                at,
                format!("is missing: nobody is reached by the network {:?} alone", entry.network),
            );
        }
    } else if !text::address(&entry.address) && text::fqdn(&entry.address).is_err() {
        check.error(at, format!("{:?} is neither an IP address nor a host name", shorten(&entry.address)));
    }
    workload_parts(check, path, entry);
}

fn workload_parts(check: &mut Check, path: &str, entry: &WorkloadEntry) {
    check.at_most(&format!("{path}.ports"), entry.ports.len(), 128);
    check.at_most(&format!("{path}.labels"), entry.labels.len(), 256);
    check.no_longer(format!("{path}.locality"), &entry.locality, 2048);
    check.no_longer(format!("{path}.network"), &entry.network, 2048);
    check.no_longer(format!("{path}.serviceAccount"), &entry.service_account, 253);
    for (name, port) in &entry.ports {
        let path = join(&format!("{path}.ports"), name);
        check.rule(path.clone(), text::label(name));
        check.port(path, *port);
    }
    check.rule(format!("{path}.labels"), text::labels(&entry.labels));
    if entry.locality.contains('*') || entry.locality.split('/').count() > 3 {
        check.error(format!("{path}.locality"), "must be region/zone/subzone");
    }
}

pub(super) fn check_group(check: &mut Check, spec: &WorkloadGroup) {
    match &spec.template {
        // A member has the address of its host.
        Some(template) if template.address.is_empty() => workload_parts(check, "spec.template", template),
        Some(template) => check_workload(check, "spec.template", template),
        None => check.error("spec.template", "must be there"),
    }
    if let Some(metadata) = &spec.metadata {
        check.rule("spec.metadata.labels", text::labels(&metadata.labels));
        check.at_most("spec.metadata.labels", metadata.labels.len(), 256);
        check.at_most("spec.metadata.annotations", metadata.annotations.len(), 256);
    }
    let Some(probe) = &spec.probe else { return };
    let methods =
        [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    if methods.iter().filter(|used| **used).count() != 1 {
        check.error("spec.probe", "must have one of httpGet, tcpSocket, exec and grpc");
    }
    if let Some(get) = &probe.http_get {
        check.port("spec.probe.httpGet.port", get.port);
        for (path, header) in each("spec.probe.httpGet.httpHeaders", &get.http_headers) {
            check.rule(format!("{path}.name"), text::header_name(&header.name));
            if !header.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
                check.error(format!("{path}.name"), "must be made of letters, digits and \"-\"");
            }
        }
        if !matches!(get.scheme.as_str(), "" | "HTTP" | "HTTPS") {
            check.error("spec.probe.httpGet.scheme", "must be HTTP or HTTPS");
        }
    }
    if let Some(call) = &probe.grpc {
        check.port("spec.probe.grpc.port", call.port);
    }
    if let Some(socket) = &probe.tcp_socket {
        check.port("spec.probe.tcpSocket.port", socket.port);
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.first().is_none_or(String::is_empty)) {
        check.error("spec.probe.exec.command", "must name a command");
    }
}
