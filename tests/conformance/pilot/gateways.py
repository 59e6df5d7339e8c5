"""Listeners of a gateway, where the case's client is none but a visitor. A reading of `core/gateway.go` and `model/gateway.go`."""
from .route import is_catch_all
from .words import TYPE, matches


class Gateways:
    """What a gateway opens: `services.yaml` has its labels as `gateway: {labels: …}`."""

    def selected(self, documents):
        """The Gateways of this proxy: all of the selector's labels are its own."""
        labels = (self.gateway or {}).get("labels", {}).items()
        return [d for d in documents if d["kind"] == "Gateway" and self.gateway
                and (d["spec"].get("selector") or {}).items() <= labels]

    def gateway_listeners(self):
        ports = {}
        for gateway in self.gateways:
            for server in gateway["spec"]["servers"]:
                ports.setdefault(server["port"]["number"], []).append((gateway, server))
        return [self.gateway_listener(port, servers) for port, servers in sorted(ports.items())]

    def gateway_listener(self, port, servers):
        chains = []
        if servers[0][1]["port"]["protocol"] in ("HTTP", "HTTP2", "GRPC"):
            chains.append({"filters": [self.manager(f"http.{port}", servers, port)]})
        elif not servers[0][1].get("tls"):
            chains = self.opaque(*servers[0], port)
        else:
            for one in servers:
                chains += self.chains(one, port)
        out = {"name": f"0.0.0.0_{port}", "filter_chains": chains, "address": {"socket_address": {
            "address": "127.0.0.1", "port_value": f"{{{{LISTEN:{port}}}}}"}}}
        if any(server.get("tls") for _, server in servers):
            out["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {
                "@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}]
        return out

    def chains(self, one, port):
        gateway, server = one
        tls = server.get("tls") or {}
        if tls.get("mode") == "PASSTHROUGH":
            return [chain(names, self.proxy_of(route, vs, port)) for vs, names, route in self.passed(gateway, server, port)]
        if server["port"]["protocol"] == "HTTPS":
            name = f"https.{port}.{server['port']['name']}.{gateway['metadata']['name']}.{gateway['metadata']['namespace']}"
            out = chain(sni_hosts(server), self.manager(name, [one], port))
            out["transport_socket"] = terminate(tls)
            return [out]
        out = self.opaque(gateway, server, port)
        for one in out:
            one["transport_socket"] = terminate(tls)
            if sni_hosts(server):
                one["filter_chain_match"] = {"server_names": sni_hosts(server)}
        return out

    def opaque(self, gateway, server, port):
        """Bytes, in plain text or out of TLS that ends here: the first block whose gateways and port fit, whatever else it says."""
        for vs in self.bound(gateway):
            for block in (vs["spec"].get("tcp") or []) if common(server, vs) else []:
                if any(self.is_for(match, vs, gateway, port) for match in block.get("match") or [{}]):
                    return [chain([], self.proxy_of(block["route"], vs, port))]
        return []

    def is_for(self, match, vs, gateway, port):
        named = [full(name, vs) for name in match.get("gateways") or []]
        return match.get("port", port) == port and (not named or full_name(gateway) in named)

    def proxy_of(self, route, vs, port):
        return {"name": "envoy.filters.network.tcp_proxy", "typed_config": self.tcp_proxy(route, vs["metadata"]["name"], port)}

    def passed(self, gateway, server, port):
        for vs in self.bound(gateway):
            if not common(server, vs):
                continue
            for block in vs["spec"].get("tls") or []:
                for match in block.get("match") or []:
                    if self.is_for(match, vs, gateway, port):
                        yield vs, match["sniHosts"], block["route"]

    def bound(self, gateway):
        return [vs for vs in self.virtual_services
                if full_name(gateway) in [full(name, vs) for name in vs["spec"].get("gateways") or []]]

    def manager(self, route_name, servers, port):
        config = self.http_manager(port, self.gateway_hosts(servers, port))
        config["route_config"]["name"] = route_name
        config.update({"use_remote_address": True, "server_name": "istio-envoy", "forward_client_cert_details": "SANITIZE_SET",
                       "set_current_client_cert_details": {"subject": True, "cert": True, "dns": True, "uri": True}})
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}

    def gateway_hosts(self, servers, port):
        hosts = {}
        for gateway, server in servers:
            redirects = (server.get("tls") or {}).get("httpsRedirect", False)
            for vs in self.bound(gateway):
                self.at = full_name(gateway)
                routes = self.routes(vs, port)
                for name in common(server, vs):
                    host = hosts.setdefault(name, {"name": f"{name}:{port}", "domains": [name], "routes": [],
                                                   "include_request_attempt_count": True})
                    host["routes"] += routes
                    if redirects:
                        host["require_tls"] = "ALL"
            for name in [n.split("/")[-1].lower() for n in server["hosts"]] if redirects else []:
                host = hosts.setdefault(name, {"name": f"{name}:{port}", "domains": [name], "include_request_attempt_count": True})
                host["require_tls"] = "ALL"
        for host in hosts.values():
            # Those that take everything come last; the others keep their order.
            host["routes"] = sorted(host.get("routes", []), key=lambda route: is_catch_all(route["match"]))
        return sorted(hosts.values(), key=lambda h: h["name"]) or [{"name": f"blackhole:{port}", "domains": ["*"], "routes": []}]


def full_name(document):
    return f"{document['metadata']['namespace']}/{document['metadata']['name']}"


def full(name, vs):
    return name if "/" in name or name == "mesh" else f"{vs['metadata']['namespace']}/{name}"


def common(server, vs):
    """Hosts of a rule that a server has: of two that cover each other, the narrower."""
    out = []
    for entry in server["hosts"]:
        namespace, name = entry.split("/") if "/" in entry else ("*", entry)
        if namespace == "." or namespace not in ("*", vs["metadata"]["namespace"]):
            continue
        for host in vs["spec"]["hosts"]:
            if covers(name, host):
                out.append(host.lower())
            elif covers(host, name):
                out.append(name.lower())
    return list(dict.fromkeys(out))


def covers(pattern, host):
    return pattern in ("*", host) or pattern.startswith("*") and matches(pattern, host)


def sni_hosts(server):
    names = [name.split("/")[-1] for name in server["hosts"]]
    return [] if "*" in names else names


def chain(names, network_filter):
    out = {"filters": [network_filter]}
    if names:
        out["filter_chain_match"] = {"server_names": names}
    return out


def terminate(tls):
    """TLS of visitors. Source: `BuildListenerTLSContext`."""
    secrets = tls.get("credentialNames") or ([tls["credentialName"]] if "credentialName" in tls else [])
    common_context = {"alpn_protocols": ["h2", "http/1.1"]}
    if secrets:
        common_context["tls_certificate_sds_secret_configs"] = [{"name": f"kubernetes://{name}"} for name in secrets]
    else:
        common_context["tls_certificates"] = [
            {"certificate_chain": {"filename": pair["serverCertificate"]}, "private_key": {"filename": pair["privateKey"]}}
            for pair in tls.get("tlsCertificates") or [tls]]
    versions = {key: tls[name].replace("TLSV", "TLSv") for key, name in (
        ("tls_minimum_protocol_version", "minProtocolVersion"), ("tls_maximum_protocol_version", "maxProtocolVersion")) if name in tls}
    if versions:
        common_context["tls_params"] = versions
    if tls["mode"] in ("MUTUAL", "OPTIONAL_MUTUAL"):
        check = {} if secrets else {"trusted_ca": {"filename": tls["caCertificates"]}}
        names = [{"san_type": kind, "matcher": {"exact": name}} for name in tls.get("subjectAltNames") or [] for kind in ("DNS", "URI")]
        if names:
            check["match_typed_subject_alt_names"] = names
        if secrets:
            common_context["combined_validation_context"] = {
                "default_validation_context": check, "validation_context_sds_secret_config": {"name": f"kubernetes://{secrets[0]}-cacert"}}
        else:
            common_context["validation_context"] = check
    return {"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common_context,
        "require_client_certificate": tls["mode"] == "MUTUAL"}}
