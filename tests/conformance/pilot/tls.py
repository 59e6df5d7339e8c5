"""TLS that the caller begins. A reading of `core/cluster_tls.go`."""
from .words import TYPE


def originate(tls, http2):
    mode = tls["mode"]
    secret = tls.get("credentialName")
    if mode not in ("SIMPLE", "MUTUAL"):
        raise ValueError(f"TLS {mode} is not translated")
    common = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}}
    if mode == "MUTUAL" and secret:
        common["tls_certificate_sds_secret_configs"] = [{"name": f"kubernetes://{secret}"}]
    elif mode == "MUTUAL":
        common["tls_certificates"] = [{"certificate_chain": {"filename": tls["clientCertificate"]},
                                       "private_key": {"filename": tls["privateKey"]}}]
    if not tls.get("insecureSkipVerify"):
        roots = tls.get("caCertificates", "system")
        check = {} if secret else {"system_root_certs": {}} if roots == "system" else {"trusted_ca": {"filename": roots}}
        names = [{"san_type": kind, "matcher": {"exact": name}} for name in tls.get("subjectAltNames") or [] for kind in ("DNS", "URI")]
        if names:
            check["match_typed_subject_alt_names"] = names
        if secret:
            common["combined_validation_context"] = {
                "default_validation_context": check, "validation_context_sds_secret_config": {"name": f"kubernetes://{secret}-cacert"}}
        else:
            common["validation_context"] = check
    if http2:
        common["alpn_protocols"] = ["h2"]
    socket = {"@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common}
    if tls.get("sni"):
        socket["sni"] = tls["sni"]
    return {"name": "envoy.transport_sockets.tls", "typed_config": socket}


def automatic(tls):
    """The server's name from the request, and a certificate that must be for it. Source: `setAutoSniAndAutoSanValidation`."""
    out = {}
    if not tls.get("sni"):
        out["auto_sni"] = True
        if not tls.get("subjectAltNames") and not tls.get("insecureSkipVerify"):
            out["auto_san_validation"] = True
    return out


def tell_of_caller(proxy, inner):
    """The PROXY header, before TLS where there is any. Source: `applyUpstreamProxyProtocol`."""
    plain = {"name": "envoy.transport_sockets.raw_buffer",
             "typed_config": {"@type": TYPE + "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}
    return {"name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
        "@type": TYPE + "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": {"version": proxy.get("version", "V1")}, "transport_socket": inner or plain}}
