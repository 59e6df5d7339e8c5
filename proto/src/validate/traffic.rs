//! Rules of `Gateway` and `Sidecar`.

use std::collections::{BTreeMap, BTreeSet};

use super::destination_rule::connection_pool;
use super::service_entry::protocol;
use super::text::UNIX;
use super::{Check, each, text};
use crate::resource::{
    CaptureMode, Gateway, IstioEgressListener, IstioIngressListener, OutboundTrafficPolicyMode, Server,
    ServerTlsMode, ServerTlsSettings, ServicePort, Sidecar,
};
use crate::yaml::shorten;

pub(super) fn check_gateway(check: &mut Check, name: &str, spec: &Gateway) {
    check.rule("metadata.name", text::label(name));
    if spec.servers.is_empty() {
        check.error("spec.servers", "must have at least one server");
    }
    check.rule("spec.selector", text::labels(&spec.selector));
    for (path, server) in each("spec.servers", &spec.servers) {
        check_server(check, &path, server);
    }
    let ports = each("spec.servers", &spec.servers).filter_map(|(path, server)| {
        Some((format!("{path}.port.name"), server.port.as_ref()?.name.as_str()))
    });
    check.unique("the port name", ports.filter(|(_, name)| !name.is_empty()).collect::<Vec<_>>());
}

fn check_server(check: &mut Check, path: &str, server: &Server) {
    if server.hosts.is_empty() {
        check.error(format!("{path}.hosts"), "must name at least one host");
    }
    for (path, host) in each(&format!("{path}.hosts"), &server.hosts) {
        gateway_host(check, &path, host);
    }
    if let Some(tls) = &server.tls {
        server_tls(check, &format!("{path}.tls"), tls);
    }
    let Some(port) = &server.port else {
        check.error(format!("{path}.port"), "must be there");
        return;
    };
    if let Some(socket) = server.bind.strip_prefix(UNIX) {
        check.rule(format!("{path}.bind"), text::socket(socket));
        if port.number != 0 {
            check.error(format!("{path}.port.number"), "must be 0 where bind is a unix socket");
        }
    } else {
        check.rule(format!("{path}.bind"), text::bind(&server.bind));
        check.port(format!("{path}.port.number"), port.number);
    }
    check.required(format!("{path}.port.name"), &port.name);
    no_target(check, &format!("{path}.port"), port);
    if check.required(format!("{path}.port.protocol"), &port.protocol) {
        protocol(check, &format!("{path}.port.protocol"), &port.protocol);
    }
    let Some(tls) = &server.tls else {
        if is_tls(&port.protocol) {
            check.error(format!("{path}.tls"), format!("must be there for {}", port.protocol));
        }
        return;
    };
    let path = format!("{path}.tls");
    // What is not TLS may only be sent elsewhere.
    let bare = matches!(tls.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
        && [&tls.server_certificate, &tls.private_key, &tls.ca_certificates]
            .iter()
            .all(|file| file.is_empty());
    let is_carried = is_tls(&port.protocol) || bare && is_http(&port.protocol);
    if !is_carried {
        check.error(path.clone(), format!("cannot be there for {}", port.protocol));
    }
    if tls.https_redirect && !is_http(&port.protocol) {
        check.warning(format!("{path}.httpsRedirect"), "is for servers of HTTP only");
    }
}

fn is_tls(protocol: &str) -> bool {
    ["HTTPS", "TLS"].iter().any(|name| name.eq_ignore_ascii_case(protocol))
}

/// Source: Istio `protocol.Instance.IsHTTP`.
pub(super) fn is_http(protocol: &str) -> bool {
    ["HTTP", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB"].iter().any(|name| name.eq_ignore_ascii_case(protocol))
}

fn no_target(check: &mut Check, path: &str, port: &ServicePort) {
    if port.target_port.is_some() {
        check.error(format!("{path}.targetPort"), "is for a ServiceEntry only");
    }
}

fn gateway_host(check: &mut Check, path: &str, host: &str) {
    let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
    if !matches!(namespace, "*" | ".") && text::label(namespace).is_err() {
        check.error(path, format!("{namespace:?} is no namespace"));
    }
    if name != "*" && !text::address(name) {
        check.rule(path, text::wildcard_host(name).and_then(|()| text::whole_labels(name)));
        if !name.contains('.') {
            check.error(path, format!("{name:?} is a short name; write the full one"));
        }
    }
}

pub(super) fn server_tls(check: &mut Check, path: &str, tls: &ServerTlsSettings) {
    let named = [
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ];
    for (field, count) in
        [("credentialNames", tls.credential_names.len()), ("tlsCertificates", tls.tls_certificates.len())]
    {
        if count > 2 {
            check.warning(
                format!("{path}.{field}"),
                "has more than 2 certificates, one for RSA and one for ECDSA",
            );
        }
    }
    let files = !tls.server_certificate.is_empty() && !tls.private_key.is_empty();
    let secrets = named[..2].iter().any(|(_, used)| *used);
    let sources = usize::from(files) + named.iter().filter(|(_, used)| *used).count();
    if sources > 1 && tls.mode != ServerTlsMode::IstioMutual {
        check.error(
            path,
            "only one of credentialName, credentialNames, tlsCertificates and serverCertificate may be set",
        );
    }
    match tls.mode {
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            if tls.mode == ServerTlsMode::Simple && !secrets && !tls.ca_crl.is_empty() {
                check.error(format!("{path}.caCrl"), "has no meaning in SIMPLE: callers show no certificate");
            }
            if !secrets && tls.tls_certificates.is_empty() {
                check.required(format!("{path}.serverCertificate"), &tls.server_certificate);
                check.required(format!("{path}.privateKey"), &tls.private_key);
            }
            for (path, certificate) in each(&format!("{path}.tlsCertificates"), &tls.tls_certificates) {
                check.required(format!("{path}.serverCertificate"), &certificate.server_certificate);
                check.required(format!("{path}.privateKey"), &certificate.private_key);
            }
            if tls.mode != ServerTlsMode::Simple && !secrets {
                check.required(format!("{path}.caCertificates"), &tls.ca_certificates);
            }
        }
        ServerTlsMode::IstioMutual => {
            for (field, used) in named.into_iter().chain([
                ("serverCertificate", !tls.server_certificate.is_empty()),
                ("privateKey", !tls.private_key.is_empty()),
                ("caCertificates", !tls.ca_certificates.is_empty()),
            ]) {
                if used {
                    check.error(
                        format!("{path}.{field}"),
                        "cannot be set with ISTIO_MUTUAL: the mesh's own certificates are used",
                    );
                }
            }
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            let ignored = [&tls.ca_crl, &tls.server_certificate, &tls.private_key, &tls.ca_certificates];
            if sources > 0 || ignored.iter().any(|file| !file.is_empty()) {
                check.warning(path, "connections are passed on as they are: the certificates are not used");
            }
        }
    }
    if tls.max_protocol_version != crate::resource::TlsProtocol::Auto
        && tls.min_protocol_version > tls.max_protocol_version
    {
        check.error(path, "minProtocolVersion is newer than maxProtocolVersion");
    }
}

pub(super) fn check_sidecar(check: &mut Check, spec: &Sidecar) {
    let empty = spec.egress.is_empty() && spec.ingress.is_empty();
    if empty && spec.outbound_traffic_policy.is_none() && spec.inbound_connection_pool.is_none() {
        check.error("spec", "must have egress, ingress, inboundConnectionPool or outboundTrafficPolicy");
    }
    if let Some(selector) = &spec.workload_selector {
        check.selector("spec.workloadSelector", selector);
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        connection_pool(check, "spec.inboundConnectionPool", pool);
    }
    for (path, listener) in each("spec.egress", &spec.egress) {
        egress(check, &path, listener);
        if listener.port.is_none() && path != format!("spec.egress[{}]", spec.egress.len() - 1) {
            check.error(path, "a listener without port must be the last");
        }
    }
    for (path, listener) in each("spec.ingress", &spec.ingress) {
        ingress(check, &path, listener);
    }
    let ingress = spec.ingress.iter().map(|listener| (&listener.port, &listener.bind));
    listeners_differ(check, "spec.ingress", ingress);
    let egress = spec.egress.iter().map(|listener| (&listener.port, &listener.bind));
    listeners_differ(check, "spec.egress", egress);
    let Some(policy) = &spec.outbound_traffic_policy else { return };
    if let Some(proxy) = &policy.egress_proxy {
        let path = "spec.outboundTrafficPolicy.egressProxy";
        if policy.mode != Some(OutboundTrafficPolicyMode::AllowAny) {
            check.error(path, "needs mode ALLOW_ANY");
        }
        check.rule(format!("{path}.host"), text::fqdn(&proxy.host));
        match proxy.port {
            Some(port) => check.port(format!("{path}.port.number"), port.number),
            None => check.error(format!("{path}.port"), "must be there"),
        }
        if !proxy.subset.is_empty() {
            check.rule(format!("{path}.subset"), text::label(&proxy.subset));
        }
    }
}

fn egress(check: &mut Check, path: &str, listener: &IstioEgressListener) {
    if listener.hosts.is_empty() {
        check.error(format!("{path}.hosts"), "must name at least one host");
    }
    for (path, host) in each(&format!("{path}.hosts"), &listener.hosts) {
        check.rule(path, egress_host(host));
    }
    egress_doubles(check, path, &listener.hosts);
    let Some(port) = &listener.port else { return };
    listener_port(check, &format!("{path}.port"), port);
    match listener.bind.strip_prefix(UNIX) {
        Some(socket) if port.number == 0 => {
            check.rule(format!("{path}.bind"), text::socket(socket));
            if listener.capture_mode == CaptureMode::Iptables {
                check.error(format!("{path}.captureMode"), "IPTABLES cannot catch traffic to a unix socket");
            }
        }
        Some(_) => check.error(format!("{path}.port.number"), "must be 0 where bind is a unix socket"),
        None if port.number == 0 => {
            check.error(
                format!("{path}.port.number"),
                "0 is not a port (1 to 65535), unless bind is a unix socket",
            );
        }
        None => check.rule(format!("{path}.bind"), text::bind(&listener.bind)),
    }
}

/// Hosts that are taken in twice. What `~` takes out is not among them.
fn egress_doubles(check: &mut Check, path: &str, hosts: &[String]) {
    let own = check.namespace.clone();
    let all = format!("{path}.hosts");
    // By namespace: the first of its hosts, and all of them.
    let mut seen: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
    for (path, host) in each(&all, hosts) {
        let Some((namespace, name)) =
            host.split_once('/').filter(|(namespace, _)| !namespace.starts_with('~'))
        else {
            continue;
        };
        let namespace = if namespace == "." { own.as_str() } else { namespace };
        let (first, names) = seen.entry(namespace).or_insert_with(|| (name, BTreeSet::new()));
        let before = match name {
            "*" => (!names.is_empty()).then_some(&**first),
            _ => [name, "*"].into_iter().find(|other| names.contains(other)),
        };
        if let Some(before) = before {
            check.warning(path, format!("{host:?} is here twice, also as {namespace}/{before}"));
        }
        names.insert(name);
    }
    let takes_all = seen.get("*").is_some_and(|(_, names)| names.contains("*"));
    if takes_all && seen.len() > 1 {
        check.warning(all, "\"*/*\" takes everything in; the others add nothing");
    }
}

/// The port of a listener: a name and a protocol if there is one.
fn listener_port(check: &mut Check, path: &str, port: &ServicePort) {
    if !port.name.is_empty() {
        check.rule(format!("{path}.name"), text::label(&port.name));
    }
    protocol(check, &format!("{path}.protocol"), &port.protocol);
    no_target(check, path, port);
}

/// `namespace/host`; the namespace may be `*`, `.`, `~`, or `~name` for all but that.
fn egress_host(host: &str) -> Result<(), String> {
    let Some((namespace, name)) = host.split_once('/') else {
        return Err(format!("{:?} is not of the form namespace/host", shorten(host)));
    };
    let named = namespace.strip_prefix('~').unwrap_or(namespace);
    let all_but = namespace.starts_with('~') && named.is_empty();
    if !matches!(named, "*" | ".") && !all_but && text::label(named).is_err() {
        return Err(format!("{:?} is no namespace", shorten(namespace)));
    }
    text::wildcard_host(name)?;
    if name != "*" && !name.contains('.') {
        return Err(format!("{:?} is a short name; write the full one", shorten(name)));
    }
    text::whole_labels(name)
}

fn ingress(check: &mut Check, path: &str, listener: &IstioIngressListener) {
    if listener.bind.starts_with(UNIX) {
        check.error(format!("{path}.bind"), "a unix socket cannot be bound for callers");
    } else {
        check.rule(format!("{path}.bind"), text::bind(&listener.bind));
    }
    match &listener.port {
        Some(port) => {
            check.port(format!("{path}.port.number"), port.number);
            listener_port(check, &format!("{path}.port"), port);
        }
        None => check.error(format!("{path}.port"), "must be there"),
    }
    check.rule(format!("{path}.defaultEndpoint"), default_endpoint(&listener.default_endpoint));
    if let Some(pool) = &listener.connection_pool {
        connection_pool(check, &format!("{path}.connectionPool"), pool);
        let opaque = listener.port.as_ref().filter(|port| !is_http(&port.protocol));
        if let (Some(port), Some(_)) = (opaque, &pool.http) {
            let message = format!("has no meaning for a port of {:?}; tcp has", shorten(&port.protocol));
            check.warning(format!("{path}.connectionPool.http"), message);
        }
    }
    if let Some(tls) = &listener.tls {
        let protocol = listener.port.as_ref().map_or("", |port| &port.protocol);
        ingress_tls(check, &format!("{path}.tls"), tls, protocol);
    }
}

/// Where what comes in goes: a socket of the workload's own host.
fn default_endpoint(endpoint: &str) -> Result<(), String> {
    if endpoint.is_empty() {
        return Ok(());
    }
    if let Some(path) = endpoint.strip_prefix(UNIX) {
        return text::socket(path);
    }
    let local = endpoint.rsplit_once(':').is_some_and(|(host, port)| {
        matches!(host, "" | "127.0.0.1" | "0.0.0.0" | "[::1]" | "[::]")
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if local { Ok(()) } else { Err("must be 127.0.0.1:PORT, [::1]:PORT, :PORT or unix:///path".to_owned()) }
}

fn ingress_tls(check: &mut Check, path: &str, tls: &ServerTlsSettings, protocol: &str) {
    if !matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
        check.error(format!("{path}.mode"), "must end TLS here: SIMPLE, MUTUAL or OPTIONAL_MUTUAL");
    }
    if !is_tls(protocol) {
        check.error(path, format!("needs a port of protocol HTTPS or TLS, not {:?}", shorten(protocol)));
    }
    let refused = [
        ("httpsRedirect", tls.https_redirect),
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
    ];
    for (field, _) in refused.iter().filter(|(_, used)| *used) {
        check.error(format!("{path}.{field}"), "is for gateways only");
    }
    server_tls(check, path, tls);
}

fn listeners_differ<'s>(
    check: &mut Check,
    path: &str,
    listeners: impl Iterator<Item = (&'s Option<ServicePort>, &'s String)>,
) {
    let names: Vec<_> = listeners
        .enumerate()
        .filter_map(|(index, (port, bind))| {
            let number = port.as_ref()?.number;
            let name = if number == 0 { bind.clone() } else { number.to_string() };
            Some((format!("{path}[{index}].port"), name))
        })
        .collect();
    check.unique("the listener", names.iter().map(|(path, name)| (path.clone(), name.as_str())));
}
