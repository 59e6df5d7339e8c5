"""The bootstrap of one case: its listeners around virtual hosts and clusters. A reading of `core/listener_builder.go`."""
from .clusters import Clusters
from .delegates import roots
from .gateways import Gateways
from .hosts import Hosts
from .policy import merged_destination_rules
from .words import TYPE, duration, locality_of, matches


class Translation(Hosts, Clusters, Gateways):
    """One case: its client, services and rules."""

    def __init__(self, services, rules):
        self.client = services.get("client") or {}
        self.namespace = self.client.get("namespace", "default")
        self.labels = self.client.get("labels") or {}
        self.services = {s["host"]: s for s in services["services"]}
        self.gateway = services.get("gateway")
        self.secrets = services.get("secrets") or {}
        self.at = "mesh"
        self.extra_ports = services.get("extra_listen_ports", [])
        documents = [d for d in rules if d]
        for d in documents:
            d.setdefault("metadata", {}).setdefault("namespace", "default")
        self.destination_rules = merged_destination_rules(documents)
        rules = roots([d for d in documents if d["kind"] == "VirtualService"])
        self.virtual_services = [vs for vs in rules if self.gateway or "mesh" in (vs["spec"].get("gateways") or ["mesh"])]
        self.gateways = self.selected(documents)

    def bootstrap(self):
        listeners = self.gateway_listeners() if self.gateway else self.sidecar_listeners()
        node = {"id": f"sidecar~127.0.0.1~client.{self.namespace}~{self.namespace}.svc.cluster.local",
                "cluster": f"client.{self.namespace}"}
        if self.client.get("locality"):
            node["locality"] = locality_of(self.client["locality"])
        runtime = {"re2.max_program_size.error_level": "32768",
                   "envoy.reloadable_features.http_reject_path_with_fragment": False,
                   "envoy.reloadable_features.fixed_heap_use_allocated": True,
                   "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": False,
                   "overload.global_downstream_max_connections": "2147483647"}
        resources = {"listeners": listeners, "clusters": self.clusters()}
        if self.secrets:
            resources["secrets"] = [one for name, parts in self.secrets.items() for one in held(name, parts)]
        return {"node": node,
                "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "{{ADMIN}}"}}},
                "layered_runtime": {"layers": [{"name": "global config", "static_layer": runtime}]},
                "static_resources": resources}

    def sidecar_listeners(self):
        ports = {}
        for service in self.services.values():
            for port in service["ports"]:
                ports.setdefault(port["number"], port["protocol"].upper())
        for port in self.extra_ports:
            ports.setdefault(port, "HTTP")
        kind = {"TCP": self.tcp_listener, "MONGO": self.tcp_listener, "TLS": self.tls_listener, "HTTPS": self.tls_listener}
        return [kind.get(protocol, self.http_listener)(port) for port, protocol in sorted(ports.items())]

    def http_listener(self, port):
        manager = self.http_manager(port, self.virtual_hosts(port))
        return listener(port, "envoy.filters.network.http_connection_manager", manager)

    def http_manager(self, port, virtual_hosts):
        filters = [("envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
                    {"emit_filter_state": True, "stats_for_all_methods": False}),
                   ("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", {}),
                   ("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", {}),
                   ("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {})]
        return {"@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "codec_type": "AUTO", "stat_prefix": f"outbound_0.0.0.0_{port};", "normalize_path": True,
                "path_with_escaped_slashes_action": "KEEP_UNCHANGED", "use_remote_address": False,
                "server_header_transformation": "OVERWRITE", "proxy_100_continue": True, "stream_idle_timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "websocket"}],
                "route_config": {"name": str(port), "validate_clusters": False, "ignore_port_in_host_matching": True,
                                 "max_direct_response_body_size_bytes": 1048576, "virtual_hosts": virtual_hosts},
                "http_filters": [{"name": n, "typed_config": {"@type": TYPE + t, **c}} for n, t, c in filters]}

    def tcp_listener(self, port):
        """One TCP service a port: the first block with a match that applies."""
        host = next(h for h, s in self.services.items() if any(p["number"] == port for p in s["ports"]))
        routes, prefix = [{"destination": {"host": host}}], "default"
        vs = self.most_specific(host)
        for block in (vs or {"spec": {}})["spec"].get("tcp") or []:
            matches_ = block.get("match") or [{}]
            if any(self.is_met(m, port) for m in matches_):
                routes, prefix = block["route"], vs["metadata"]["name"]
                break
        return listener(port, "envoy.filters.network.tcp_proxy", self.tcp_proxy(routes, prefix, port))

    def is_met(self, match, port):
        """Of TCP and TLS: all that a condition says of the caller and the port."""
        return ("mesh" in (match.get("gateways") or ["mesh"])
                and (match.get("sourceLabels") or {}).items() <= self.labels.items()
                and match.get("port", port) == port
                and match.get("sourceNamespace", self.namespace) == self.namespace)

    def tls_listener(self, port):
        """All TLS services of a port: one chain for each match, then the hosts no rule covers."""
        chains, covered = [], set()
        for vs in self.virtual_services:
            for block in vs["spec"].get("tls") or []:
                for match in block.get("match") or []:
                    if self.is_met(match, port):
                        chains.append((match["sniHosts"], self.tcp_proxy(block["route"], vs["metadata"]["name"], port)))
                        covered.update(vs["spec"]["hosts"])
        for host, service in self.services.items():
            mine = any(name == host or name.startswith("*") and matches(name, host) for name in covered)
            if not mine and any(p["number"] == port for p in service["ports"]):
                chains.append(([host], self.tcp_proxy([{"destination": {"host": host}}], "default", port)))
        out = listener(port, "", {})
        out["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}]
        out["filter_chains"] = [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
                                 "filter_chain_match": {"server_names": names}} for names, proxy in chains]
        return out

    def tcp_proxy(self, routes, prefix, port):
        proxy = {"@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": prefix}
        # Of the whole policy of the first destination's rule: settings of ports and subsets are not looked at.
        policy = (self.destination_rule(routes[0]["destination"]["host"]) or {}).get("trafficPolicy") or {}
        tcp = (policy.get("connectionPool") or {}).get("tcp") or {}
        for ours, theirs in (("idle_timeout", "idleTimeout"), ("max_downstream_connection_duration", "maxConnectionDuration")):
            if theirs in tcp:
                proxy[ours] = duration(tcp[theirs])
        tunnel = self.tunnel(routes)
        if tunnel:
            proxy["tunneling_config"] = {"hostname": f"{tunnel['targetHost']}:{tunnel['targetPort']}"}
            if tunnel.get("protocol") == "POST":
                proxy["tunneling_config"]["use_post"] = True
        if len(routes) == 1:
            proxy["cluster"] = self.cluster(routes[0]["destination"], port)
        else:
            proxy["weighted_clusters"] = {"clusters": [{"name": self.cluster(r["destination"], port), "weight": r["weight"]}
                                                       for r in routes if r.get("weight")]}
        if any((self.hash_of_destination(r["destination"]) or {}).get("connection_properties") for r in routes):
            proxy["hash_policy"] = [{"source_ip": {}}]
        return proxy

    def tunnel(self, routes):
        """Of several destinations that of the whole rule; of one with a subset that of the subset. Source: `tunnelingconfig.Apply`."""
        destination = routes[0]["destination"]
        rule = self.destination_rule(destination["host"]) or {}
        if len(routes) == 1 and destination.get("subset"):
            rule = next((s for s in rule.get("subsets") or [] if s["name"] == destination["subset"]), {})
        return (rule.get("trafficPolicy") or {}).get("tunnel")


def held(name, parts):
    """A secret as Istio's control plane hands it out: the certificate by its name, the roots beside it."""
    if "cert" in parts:
        pair = f"{{{{CERTS}}}}/{parts['cert']}"
        yield {"name": f"kubernetes://{name}", "tls_certificate": {
            "certificate_chain": {"filename": pair + ".crt"}, "private_key": {"filename": pair + ".key"}}}
    if parts.get("roots"):
        yield {"name": f"kubernetes://{name}-cacert", "validation_context": {"trusted_ca": {"filename": "{{CERTS}}/ca.crt"}}}


def listener(port, name, config):
    return {"name": f"0.0.0.0_{port}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": f"{{{{LISTEN:{port}}}}}"}},
            "filter_chains": [{"filters": [{"name": name, "typed_config": config}]}]}
