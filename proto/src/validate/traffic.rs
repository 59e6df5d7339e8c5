//! Rules of `Gateway` and `Sidecar`, as far as they can be told while both are refused at apply.

use super::destination_rule::connection_pool;
use super::service_entry::protocol;
use super::{Check, each, text};
use crate::resource::{
    CaptureMode, Gateway, IstioEgressListener, IstioIngressListener, OutboundTrafficPolicyMode, Server,
    ServerTlsMode, ServerTlsSettings, ServicePort, Sidecar,
};
use crate::yaml::shorten;

pub(super) fn check_gateway(check: &mut Check, spec: &Gateway) {
    if spec.servers.is_empty() {
        check.error("spec.servers", "must have at least one server");
    }
    check.rule("spec.selector", text::labels(&spec.selector));
    for (path, server) in each("spec.servers", &spec.servers) {
        check_server(check, &path, server);
    }
}

fn check_server(check: &mut Check, path: &str, server: &Server) {
    if server.hosts.is_empty() {
        check.error(format!("{path}.hosts"), "must name at least one host");
    }
    for (path, host) in each(&format!("{path}.hosts"), &server.hosts) {
        gateway_host(check, &path, host);
    }
    let Some(port) = &server.port else {
        check.error(format!("{path}.port"), "must be there");
        return;
    };
    let unix = server.bind.starts_with("unix://");
    if unix && port.number != 0 {
        check.error(format!("{path}.port.number"), "must be 0 where bind is a unix socket");
    } else if !unix {
        check.port(format!("{path}.port.number"), port.number);
    }
    check.required(format!("{path}.port.name"), &port.name);
    if check.required(format!("{path}.port.protocol"), &port.protocol) {
        protocol(check, &format!("{path}.port.protocol"), &port.protocol);
    }
    let wants_tls = ["HTTPS", "TLS"].iter().any(|name| name.eq_ignore_ascii_case(&port.protocol));
    let plain = port.protocol.eq_ignore_ascii_case("HTTP") || port.protocol.eq_ignore_ascii_case("HTTP2");
    match &server.tls {
        None if wants_tls => {
            check.error(format!("{path}.tls"), format!("must be there for {}", port.protocol));
        }
        Some(tls) if plain && !tls.https_redirect => {
            check.error(format!("{path}.tls"), format!("cannot be there for {}", port.protocol));
        }
        Some(tls) => server_tls(check, &format!("{path}.tls"), tls),
        None => {}
    }
}

fn gateway_host(check: &mut Check, path: &str, host: &str) {
    let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
    if !matches!(namespace, "*" | ".") && text::label(namespace).is_err() {
        check.error(path, format!("{namespace:?} is no namespace"));
    }
    if name != "*" && !text::address(name) {
        check.rule(path, text::wildcard_host(name));
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
    let files = !tls.server_certificate.is_empty() && !tls.private_key.is_empty();
    let secrets = named[..2].iter().any(|(_, used)| *used);
    match tls.mode {
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            let sources = usize::from(files) + named.iter().filter(|(_, used)| *used).count();
            if sources > 1 {
                check.error(path, "only one of credentialName, credentialNames, tlsCertificates and serverCertificate may be set");
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
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {}
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
        check.rule("spec.workloadSelector.labels", text::labels(&selector.labels));
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
        if policy.mode != Some(OutboundTrafficPolicyMode::AllowAny) {
            check.error("spec.outboundTrafficPolicy.egressProxy", "needs mode ALLOW_ANY");
        }
        check.rule("spec.outboundTrafficPolicy.egressProxy.host", text::fqdn(&proxy.host));
    }
}

fn egress(check: &mut Check, path: &str, listener: &IstioEgressListener) {
    if listener.hosts.is_empty() {
        check.error(format!("{path}.hosts"), "must name at least one host");
    }
    for (path, host) in each(&format!("{path}.hosts"), &listener.hosts) {
        check.rule(path, egress_host(host));
    }
    bind(check, path, &listener.bind);
    if listener.bind.starts_with(UNIX) && listener.capture_mode == CaptureMode::Iptables {
        check.error(format!("{path}.captureMode"), "IPTABLES cannot catch traffic to a unix socket");
    }
}

/// `namespace/host`; the namespace may be `*`, `.`, `~`, or `~name` for all but that.
fn egress_host(host: &str) -> Result<(), String> {
    let Some((namespace, name)) = host.split_once('/') else {
        return Err(format!("{:?} is not of the form namespace/host", shorten(host)));
    };
    let named = namespace.strip_prefix('~').unwrap_or(namespace);
    if !matches!(namespace, "*" | "." | "~") && text::label(named).is_err() {
        return Err(format!("{:?} is no namespace", shorten(namespace)));
    }
    text::wildcard_host(name)?;
    if name.len() > 1 && name.starts_with('*') && !name.starts_with("*.") {
        return Err(format!("{:?}: a wildcard stands for whole labels here; write *.domain", shorten(name)));
    }
    Ok(())
}

fn bind(check: &mut Check, path: &str, bind: &str) {
    if !bind.is_empty() && !bind.starts_with(UNIX) && !text::address(bind) {
        check.error(
            format!("{path}.bind"),
            format!("{:?} is neither an IP address nor unix:///path", shorten(bind)),
        );
    }
}

fn ingress(check: &mut Check, path: &str, listener: &IstioIngressListener) {
    if listener.bind.starts_with(UNIX) {
        check.error(format!("{path}.bind"), "a unix socket cannot be bound for callers");
    } else {
        bind(check, path, &listener.bind);
    }
    match &listener.port {
        Some(port) => check.port(format!("{path}.port.number"), port.number),
        None => check.error(format!("{path}.port"), "must be there"),
    }
    let endpoint = &listener.default_endpoint;
    let local = endpoint.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() > 0);
    if !endpoint.is_empty() && !endpoint.starts_with(UNIX) && !local {
        check.error(format!("{path}.defaultEndpoint"), "must be 127.0.0.1:PORT, [::1]:PORT or unix:///path");
    }
    if let Some(pool) = &listener.connection_pool {
        connection_pool(check, &format!("{path}.connectionPool"), pool);
    }
    if let (Some(tls), Some(port)) = (&listener.tls, &listener.port) {
        ingress_tls(check, &format!("{path}.tls"), tls, &port.protocol);
    }
}

fn ingress_tls(check: &mut Check, path: &str, tls: &ServerTlsSettings, protocol: &str) {
    if matches!(tls.mode, ServerTlsMode::AutoPassthrough | ServerTlsMode::Passthrough) {
        check.error(
            format!("{path}.mode"),
            "must end TLS here: SIMPLE, MUTUAL, OPTIONAL_MUTUAL or ISTIO_MUTUAL",
        );
    }
    if !["HTTPS", "TLS"].iter().any(|name| name.eq_ignore_ascii_case(protocol)) {
        check.error(path, format!("needs a port of protocol HTTPS or TLS, not {:?}", shorten(protocol)));
    }
    let refused = [
        ("httpsRedirect", tls.https_redirect),
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
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

const UNIX: &str = "unix://";
