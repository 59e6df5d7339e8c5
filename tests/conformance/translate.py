#!/usr/bin/env python3
"""Writes a case's Envoy bootstrap: what Istio's control plane would generate for the client's outbound sidecar.

    translate.py CASE_FOLDER ...      writes envoy.yaml.tmpl from rules.yaml and services.yaml
    translate.py --check SHARED       compares with the bootstraps of the cases in SHARED

A reading of istio/istio's pilot (`core/route/route.go`, `core/httproute.go`, `core/cluster_traffic_policy.go`,
`core/loadbalancer`). Ports stay open: `{{LISTEN:…}}` and `{{PORT:service|port|instance}}` are filled in by the suite. What it does not
know, it refuses: TLS origination, gateways, Sidecar, failoverPriority.
"""
import copy
import os
import re
import sys

import yaml

SUFFIX = ".svc.cluster.local"
TYPE = "type.googleapis.com/"
UNLIMITED = 4294967295
HEAD = """# The equivalent of rules.yaml and services.yaml as Istio generates it for an outbound sidecar; written by translate.py.
"""
PREVIOUS_HOSTS = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {"@type": TYPE + "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
}
GRPC_CODES = ("OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
              "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED").split()
REDIRECTS = {301: "MOVED_PERMANENTLY", 302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT", 308: "PERMANENT_REDIRECT"}


class Translation:
    """One case: its client, services and rules."""

    def __init__(self, services, rules):
        self.client = services.get("client") or {}
        self.namespace = self.client.get("namespace", "default")
        self.labels = self.client.get("labels") or {}
        self.services = {s["host"]: s for s in services["services"]}
        self.extra_ports = services.get("extra_listen_ports", [])
        documents = [d for d in rules if d]
        for d in documents:
            d.setdefault("metadata", {}).setdefault("namespace", "default")
        self.destination_rules = merged_destination_rules(documents)
        self.virtual_services = self.with_delegates([d for d in documents if d["kind"] == "VirtualService"])

    # ---- virtual services --------------------------------------------------------------------

    def with_delegates(self, documents):
        """The root VirtualServices for the mesh, short names resolved, delegates merged in."""
        resolved = [resolve_names(d) for d in documents]
        by_name = {(d["metadata"]["namespace"], d["metadata"]["name"]): d for d in resolved}
        roots = []
        for d in resolved:
            spec = d["spec"]
            if not spec.get("hosts") or "mesh" not in (spec.get("gateways") or ["mesh"]):
                continue
            http = []
            for route in spec.get("http") or []:
                if "delegate" not in route:
                    http.append(route)
                    continue
                name = (route["delegate"].get("namespace", d["metadata"]["namespace"]), route["delegate"]["name"])
                for inner in (by_name.get(name) or {"spec": {}})["spec"].get("http") or []:
                    merged = merge_routes(route, inner)
                    if merged is not None:
                        http.append(merged)
            roots.append({**d, "spec": {**spec, "http": http}})
        return roots

    def virtual_hosts(self, port):
        """All virtual hosts of a listener, in Envoy's form."""
        out, taken, covered = [], set(), set()
        on_port = [h for h, s in self.services.items() if any(p["number"] == port for p in s["ports"])]
        for vs in self.virtual_services:
            if not vs["spec"].get("http"):
                continue
            hosts = vs["spec"]["hosts"]
            mine = [h for h in on_port if self.most_specific(h) is vs]
            other = [h for h in hosts if h not in self.services and not (h.startswith("*") and any(matches(h, s) for s in mine))]
            if not mine and port != 80:
                continue
            routes = self.routes(vs, port)
            if not routes:
                continue
            for host in sorted(mine) + other:
                if not any(host == o["name"].rsplit(":", 1)[0] for o in out):
                    self.add(out, taken, host, port, routes)
                covered.add(host)
        for host in on_port:
            if host not in covered:
                self.add(out, taken, host, port, [self.default_route(host, port)])
        block = {"name": "block_all", "domains": ["*"], "include_request_attempt_count": True,
                 "routes": [{"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}]}
        return sorted(out, key=lambda v: v["name"]) + [block]

    def most_specific(self, host):
        exact = [vs for vs in self.virtual_services if host in vs["spec"]["hosts"]]
        if exact:
            return exact[0]
        wild = [(len(h), -i, vs) for i, vs in enumerate(self.virtual_services)
                for h in vs["spec"]["hosts"] if h.startswith("*") and matches(h, host)]
        return max(wild, key=lambda w: w[:2])[2] if wild else None

    def add(self, out, taken, host, port, routes):
        domains = [d for d in self.domains(host) if d not in taken]
        taken.update(domains)
        if domains:
            out.append({"name": f"{host}:{port}", "domains": domains, "routes": routes, "include_request_attempt_count": True})

    def domains(self, host):
        if host not in self.services:
            return [host]
        names = [host] if host.startswith("*") else [host, host + "."]
        if host.endswith(SUFFIX):
            name, namespace = host[:-len(SUFFIX)].split(".")
            if namespace == self.namespace:
                names.append(name)
            names += [f"{name}.{namespace}.svc", f"{name}.{namespace}"]
        return names

    def default_route(self, host, port):
        action = {"cluster": cluster_name(host, "", port), "timeout": "0s", "max_grpc_timeout": "0s"}
        hash_policy = self.hash_of_service(host, port)
        action["retry_policy"] = retry_policy(None, False)
        if hash_policy:
            action["hash_policy"] = [hash_policy]
        return {"name": "default", "match": {"prefix": "/"}, "route": action}

    # ---- routes ------------------------------------------------------------------------------

    def routes(self, vs, port):
        out = []
        for route in vs["spec"]["http"]:
            for match in route.get("match") or [None]:
                built = self.route(route, match, port)
                if built is None:
                    continue
                out.append(built)
                if is_catch_all(built["match"]):
                    return out
            if not route.get("match"):
                return out
        return out

    def route(self, route, match, port):
        if match and not self.applies(match, port):
            return None
        out = {"match": route_match(match)}
        if route.get("name"):
            out["name"] = route["name"]
        operations = header_operations(route.get("headers"))
        authority = operations.pop("authority")
        out.update(operations)
        if "redirect" in route:
            out["redirect"] = redirect(route["redirect"], port)
        elif "directResponse" in route:
            out["direct_response"] = direct_response(route["directResponse"])
        else:
            self.forward(out, route, authority, port)
        filters = {}
        if "fault" in route:
            filters["envoy.filters.http.fault"] = fault(route["fault"])
        if "corsPolicy" in route:
            filters["envoy.filters.http.cors"] = cors(route["corsPolicy"])
        if filters:
            out["typed_per_filter_config"] = filters
        return out

    def applies(self, match, port):
        if match.get("port", port) != port:
            return False
        if match.get("gateways"):
            return "mesh" in match["gateways"]
        labels = (match.get("sourceLabels") or {}).items()
        return labels <= self.labels.items() and match.get("sourceNamespace", self.namespace) == self.namespace

    def forward(self, out, route, authority, port):
        timeout = duration(route.get("timeout", "0s"))
        action = {"timeout": timeout, "max_grpc_timeout": timeout}
        rewrite = route.get("rewrite") or {}
        if "uriRegexRewrite" in rewrite:
            action["regex_rewrite"] = {"pattern": {"regex": rewrite["uriRegexRewrite"]["match"]},
                                       "substitution": rewrite["uriRegexRewrite"]["rewrite"]}
        elif rewrite.get("uri"):
            action["prefix_rewrite"] = rewrite["uri"]
        authority = rewrite.get("authority") or authority
        mirrors = self.mirrors(route, port)
        if mirrors:
            action["request_mirror_policies"] = mirrors
        destinations, hashes = route["route"], []
        consistent = False
        if len(destinations) == 1:
            one = destinations[0]
            operations = header_operations(one.get("headers"))
            authority = authority or operations.pop("authority")
            operations.pop("authority", None)
            for key, values in operations.items():
                out[key] = out.get(key, []) + values
            action["cluster"] = self.cluster(one["destination"], port)
            hashes = [self.hash_of_destination(one["destination"])]
            consistent = hashes[0] is not None
        else:
            clusters = []
            for one in destinations:
                if not one.get("weight"):
                    continue
                operations = header_operations(one.get("headers"))
                host = operations.pop("authority")
                entry = {"name": self.cluster(one["destination"], port), "weight": one["weight"], **operations}
                if host:
                    entry["host_rewrite_literal"] = host
                clusters.append(entry)
                hashes.append(self.hash_of_destination(one["destination"]))
            action["weighted_clusters"] = {"clusters": clusters}
        if authority:
            action["host_rewrite_literal"] = authority
        retries = retry_policy(route.get("retries"), consistent)
        if retries:
            action["retry_policy"] = retries
        if any(hashes):
            action["hash_policy"] = [h for h in hashes if h]
        out["route"] = action

    def mirrors(self, route, port):
        wanted = []
        if "mirror" in route:
            percentage = route.get("mirrorPercentage", {}).get("value") if "mirrorPercentage" in route else None
            if percentage is None and "mirrorPercent" in route:
                percentage = float(route["mirrorPercent"])
            wanted.append((route["mirror"], percentage))
        for mirror in route.get("mirrors") or []:
            wanted.append((mirror["destination"], mirror["percentage"].get("value", 0) if "percentage" in mirror else None))
        out = []
        for destination, percentage in wanted:
            if percentage == 0:
                continue
            value = {"numerator": 100, "denominator": "HUNDRED"} if percentage is None else millionths(percentage)
            out.append({"cluster": self.cluster(destination, port), "runtime_fraction": {"default_value": value},
                        "trace_sampled": False, "disable_shadow_host_suffix_append": True})
        return out

    def cluster(self, destination, listener_port):
        host = destination["host"]
        service = self.services.get(host)
        port = destination.get("port", {}).get("number")
        if port is None:
            port = listener_port
            if service and len(service["ports"]) == 1:
                port = service["ports"][0]["number"]
        return cluster_name(host, destination.get("subset", ""), port)

    # ---- consistent hash ---------------------------------------------------------------------

    def hash_of_service(self, host, port):
        policy = (self.destination_rule(host) or {}).get("trafficPolicy") or {}
        chosen = consistent_hash(policy)
        for level in policy.get("portLevelSettings") or []:
            if level["port"]["number"] == port:
                chosen = consistent_hash(level) or chosen
        return hash_policy(chosen)

    def hash_of_destination(self, destination):
        rule = self.destination_rule(destination["host"]) or {}
        policies = [rule.get("trafficPolicy") or {}]
        for subset in rule.get("subsets") or []:
            if subset["name"] == destination.get("subset"):
                policies.append(subset.get("trafficPolicy") or {})
        chosen = None
        for policy in policies:
            chosen = consistent_hash(policy) or chosen
            for level in policy.get("portLevelSettings") or []:
                if level["port"]["number"] == destination.get("port", {}).get("number"):
                    chosen = consistent_hash(level) or chosen
        return hash_policy(chosen)

    # ---- clusters ----------------------------------------------------------------------------

    def destination_rule(self, host):
        if host in self.destination_rules:
            return self.destination_rules[host]
        wild = [h for h in self.destination_rules if h.startswith("*") and matches(h, host)]
        return self.destination_rules[max(wild, key=len)] if wild else None

    def clusters(self):
        out = []
        for host, service in self.services.items():
            rule = self.destination_rule(host) or {}
            for port in service["ports"]:
                base = port_policy(rule.get("trafficPolicy") or {}, port["number"])
                out.append(self.one_cluster(service, port, "", {}, base))
                for subset in rule.get("subsets") or []:
                    merged = merge_policy(rule.get("trafficPolicy") or {}, subset.get("trafficPolicy"))
                    policy = port_policy(merged, port["number"])
                    out.append(self.one_cluster(service, port, subset["name"], subset.get("labels") or {}, policy))
        return out

    def one_cluster(self, service, port, subset, labels, policy):
        name = cluster_name(service["host"], subset, port["number"])
        pool = policy.get("connectionPool") or {}
        http, tcp = pool.get("http") or {}, pool.get("tcp") or {}
        balancer = policy.get("loadBalancer") or {}
        outlier = policy.get("outlierDetection")
        if (policy.get("tls") or {}).get("mode", "DISABLE") != "DISABLE":
            raise ValueError("TLS origination is not translated")
        threshold = {"max_connections": tcp.get("maxConnections") or UNLIMITED,
                     "max_pending_requests": http.get("http1MaxPendingRequests") or UNLIMITED,
                     "max_requests": http.get("http2MaxRequests") or UNLIMITED,
                     "max_retries": http.get("maxRetries") or UNLIMITED}
        budget = policy.get("retryBudget")
        if budget is not None:
            threshold["retry_budget"] = {"budget_percent": {"value": budget.get("percent", 20.0)},
                                         "min_retry_concurrency": budget.get("minRetryConcurrency") or 3}
            if "budgetInterval" in budget:
                threshold["retry_budget"]["budget_interval"] = duration(budget["budgetInterval"])
        cluster = {"name": name, "type": "STATIC", "connect_timeout": duration(tcp.get("connectTimeout", "10s")),
                   "lb_policy": "LEAST_REQUEST", "common_lb_config": {}, "circuit_breakers": {"thresholds": [threshold]}}
        if outlier is not None:
            cluster["outlier_detection"] = outlier_detection(outlier)
            cluster["common_lb_config"]["healthy_panic_threshold"] = {"value": float(outlier.get("minHealthPercent", 0))}
        options = protocol_options(port, http, tcp, outlier)
        if options:
            cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **options}}
        cluster["load_assignment"] = {"cluster_name": name, "endpoints": self.localities(service, port, labels)}
        locality = balancer.get("localityLbSetting") or {}
        self.place(cluster, locality, outlier is not None)
        balance(cluster, balancer)
        return cluster

    def localities(self, service, port, labels):
        groups = {}
        for instance in service.get("instances") or []:
            if port["number"] not in instance.get("ports", [port["number"]]):
                continue
            if not labels.items() <= (instance.get("labels") or {}).items():
                continue
            place = f"{{{{PORT:{service['host']}|{port['number']}|{instance['name']}}}}}"
            address = {"socket_address": {"address": "127.0.0.1", "port_value": place}}
            groups.setdefault(instance.get("locality", ""), []).append(
                {"endpoint": {"address": address}, "load_balancing_weight": instance.get("weight", 1)})
        out = []
        for locality, endpoints in groups.items():
            group = {"lb_endpoints": endpoints, "load_balancing_weight": sum(e["load_balancing_weight"] for e in endpoints)}
            if locality:
                group["locality"] = locality_of(locality)
            out.append(group)
        return out

    def place(self, cluster, setting, outlier):
        """Locality: weights by `distribute`, or priorities by `failover`."""
        if setting.get("enabled") is False:
            return
        if "failoverPriority" in setting:
            raise ValueError("failoverPriority is not translated")
        mine = self.client.get("locality", "")
        assignment = cluster["load_assignment"]
        if "distribute" in setting or (outlier and setting.get("failover")):
            cluster["common_lb_config"]["locality_weighted_lb_config"] = {}
        if "distribute" in setting:
            distribute(assignment, mine, setting["distribute"])
        elif outlier:
            fail_over(assignment, mine, setting.get("failover") or [])

    # ---- the whole ---------------------------------------------------------------------------

    def bootstrap(self):
        ports = {}
        for service in self.services.values():
            for port in service["ports"]:
                ports.setdefault(port["number"], port["protocol"].upper())
        for port in self.extra_ports:
            ports.setdefault(port, "HTTP")
        listeners = []
        for port, protocol in sorted(ports.items()):
            kind = {"TCP": self.tcp_listener, "MONGO": self.tcp_listener, "TLS": self.tls_listener, "HTTPS": self.tls_listener}
            listeners.append(kind.get(protocol, self.http_listener)(port))
        node = {"id": f"sidecar~127.0.0.1~client.{self.namespace}~{self.namespace}.svc.cluster.local",
                "cluster": f"client.{self.namespace}"}
        if self.client.get("locality"):
            node["locality"] = locality_of(self.client["locality"])
        runtime = {"re2.max_program_size.error_level": "32768",
                   "envoy.reloadable_features.http_reject_path_with_fragment": False,
                   "envoy.reloadable_features.fixed_heap_use_allocated": True,
                   "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": False,
                   "overload.global_downstream_max_connections": "2147483647"}
        return {"node": node,
                "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "{{ADMIN}}"}}},
                "layered_runtime": {"layers": [{"name": "global config", "static_layer": runtime}]},
                "static_resources": {"listeners": listeners, "clusters": self.clusters()}}

    def http_listener(self, port):
        filters = [("envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
                    {"emit_filter_state": True, "stats_for_all_methods": False}),
                   ("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", {}),
                   ("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", {}),
                   ("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {})]
        manager = {"@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                   "codec_type": "AUTO", "stat_prefix": f"outbound_0.0.0.0_{port};", "normalize_path": True,
                   "path_with_escaped_slashes_action": "KEEP_UNCHANGED", "use_remote_address": False,
                   "server_header_transformation": "OVERWRITE", "proxy_100_continue": True, "stream_idle_timeout": "0s",
                   "upgrade_configs": [{"upgrade_type": "websocket"}],
                   "route_config": {"name": str(port), "validate_clusters": False, "ignore_port_in_host_matching": True,
                                    "max_direct_response_body_size_bytes": 1048576, "virtual_hosts": self.virtual_hosts(port)},
                   "http_filters": [{"name": n, "typed_config": {"@type": TYPE + t, **c}} for n, t, c in filters]}
        return listener(port, "envoy.filters.network.http_connection_manager", manager)

    def tcp_listener(self, port):
        """One TCP service a port: the first block with a match that applies."""
        host = next(h for h, s in self.services.items() if any(p["number"] == port for p in s["ports"]))
        routes, prefix = [{"destination": {"host": host}}], "default"
        vs = self.most_specific(host)
        for block in (vs or {"spec": {}})["spec"].get("tcp") or []:
            matches_ = block.get("match") or [{}]
            if any((m.get("sourceLabels") or {}).items() <= self.labels.items() and m.get("port", port) == port for m in matches_):
                routes, prefix = block["route"], vs["metadata"]["name"]
                break
        return listener(port, "envoy.filters.network.tcp_proxy", self.tcp_proxy(routes, prefix, port))

    def tls_listener(self, port):
        """All TLS services of a port: one chain for each match, then the hosts no rule covers."""
        chains, covered = [], set()
        for vs in self.virtual_services:
            for block in vs["spec"].get("tls") or []:
                for match in block.get("match") or []:
                    if match.get("port", port) == port and (match.get("sourceLabels") or {}).items() <= self.labels.items():
                        chains.append((match["sniHosts"], self.tcp_proxy(block["route"], vs["metadata"]["name"], port)))
                        covered.update(vs["spec"]["hosts"])
        for host, service in self.services.items():
            if host not in covered and any(p["number"] == port for p in service["ports"]):
                chains.append(([host], self.tcp_proxy([{"destination": {"host": host}}], "default", port)))
        out = listener(port, "", {})
        out["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}]
        out["filter_chains"] = [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
                                 "filter_chain_match": {"server_names": names}} for names, proxy in chains]
        return out

    def tcp_proxy(self, routes, prefix, port):
        proxy = {"@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": prefix}
        if len(routes) == 1:
            proxy["cluster"] = self.cluster(routes[0]["destination"], port)
        else:
            proxy["weighted_clusters"] = {"clusters": [{"name": self.cluster(r["destination"], port), "weight": r["weight"]}
                                                       for r in routes if r.get("weight")]}
        if any((self.hash_of_destination(r["destination"]) or {}).get("connection_properties") for r in routes):
            proxy["hash_policy"] = [{"source_ip": {}}]
        return proxy


def listener(port, name, config):
    return {"name": f"0.0.0.0_{port}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": f"{{{{LISTEN:{port}}}}}"}},
            "filter_chains": [{"filters": [{"name": name, "typed_config": config}]}]}


def cluster_name(host, subset, port):
    return f"outbound|{port}|{subset}|{host}"


def matches(pattern, host):
    return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1


def locality_of(text):
    return dict(zip(("region", "zone", "sub_zone"), text.split("/")))


# ---- names and delegates ------------------------------------------------------------------------

def resolve_names(document):
    """Short names of a rule mean its own namespace."""
    document = copy.deepcopy(document)
    namespace = document["metadata"]["namespace"]

    def full(host):
        return host if "." in host or host.startswith("*") else f"{host}.{namespace}{SUFFIX}"
    spec = document["spec"]
    spec["hosts"] = [full(h) for h in spec.get("hosts") or []]
    for block in (spec.get("http") or []) + (spec.get("tcp") or []) + (spec.get("tls") or []):
        targets = [r["destination"] for r in block.get("route") or []] + [m["destination"] for m in block.get("mirrors") or []]
        for target in targets + ([block["mirror"]] if "mirror" in block else []):
            target["host"] = full(target["host"])
    return document


def merge_routes(root, inner):
    match = merge_matches(root.get("match") or [], inner.get("match") or [])
    if match is None:
        return None
    merged = {**{k: v for k, v in root.items() if k not in ("delegate", "match", "name")}, **inner}
    names = [n for n in (root.get("name"), inner.get("name")) if n]
    if names:
        merged["name"] = "-".join(names)
    merged["match"] = match
    return merged


def merge_matches(root, inner):
    if not root or not inner:
        return root or inner
    out = []
    for leaf in inner:
        found = [merge_match(r, leaf) for r in root if not conflict(r, leaf)]
        if not found:
            return None
        out += found
    return out


def merge_match(root, leaf):
    out = {**root, **leaf}
    for key in ("headers", "withoutHeaders", "queryParams", "sourceLabels"):
        if key in root or key in leaf:
            out[key] = {**(root.get(key) or {}), **(leaf.get(key) or {})}
    return out


def conflict(root, leaf):
    pairs = [(root.get(k), leaf.get(k)) for k in ("uri", "scheme", "method", "authority")]
    for key in ("headers", "withoutHeaders", "queryParams"):
        pairs += [((root.get(key) or {}).get(name), value) for name, value in (leaf.get(key) or {}).items()]
    labels = root.get("sourceLabels") or {}
    return (any(string_conflict(a, b) for a, b in pairs)
            or root.get("ignoreUriCase", False) != leaf.get("ignoreUriCase", False)
            or ("port" in root and "port" in leaf and root["port"] != leaf["port"])
            or ("sourceNamespace" in root and root["sourceNamespace"] != leaf.get("sourceNamespace"))
            or any(labels.get(k, v) != v for k, v in (leaf.get("sourceLabels") or {}).items()))


def string_conflict(root, leaf):
    if root is None or leaf is None:
        return False
    if "regex" in root or "regex" in leaf:
        return bool(root) and bool(leaf)
    if root.get("exact"):
        return leaf.get("exact") != root["exact"]
    if root.get("prefix"):
        return not (leaf.get("prefix") or leaf.get("exact") or "").startswith(root["prefix"])
    return True


# ---- parts of a route ---------------------------------------------------------------------------

def present(value):
    return not value or value.get("regex") == "*"


def string_match(value):
    return {"safe_regex": {"regex": value["regex"]}} if "regex" in value else dict(value)


def header_match(name, value):
    return {"name": name, "present_match": True} if present(value) else {"name": name, "string_match": string_match(value)}


def route_match(match):
    if match is None:
        return {"prefix": "/"}
    out = {"prefix": "/"}
    for kind, key in (("exact", "path"), ("prefix", "prefix"), ("regex", "safe_regex")):
        if kind in (match.get("uri") or {}):
            value = match["uri"][kind]
            out = {key: {"regex": value} if kind == "regex" else value}
    out["case_sensitive"] = not match.get("ignoreUriCase", False)
    headers = [header_match(n, v) for n, v in (match.get("headers") or {}).items()]
    for name, value in (match.get("withoutHeaders") or {}).items():
        one = {**header_match(name, value), "invert_match": True}
        if not present(value):
            one["treat_missing_header_as_empty"] = True
        headers.append(one)
    headers.sort(key=lambda h: h["name"])
    headers += [header_match(f":{k}", match[k]) for k in ("method", "authority", "scheme") if k in match]
    if headers:
        out["headers"] = headers
    if match.get("queryParams"):
        out["query_parameters"] = [header_match(n, v) for n, v in match["queryParams"].items()]
    return out


def is_catch_all(match):
    return ((match.get("prefix") == "/" or match.get("safe_regex", {}).get("regex") == ".*")
            and "headers" not in match and "query_parameters" not in match)


def header_operations(headers):
    out, authority = {}, ""
    for side, name in (("request", "request"), ("response", "response")):
        rules = (headers or {}).get(side) or {}
        added = []
        for kind, action in (("set", "OVERWRITE_IF_EXISTS_OR_ADD"), ("add", "APPEND_IF_EXISTS_OR_ADD")):
            for key, value in sorted((rules.get(kind) or {}).items()):
                if side == "request" and key.lower() in ("host", ":authority") and not (kind == "add" and authority):
                    authority = value
                if not internal(key):
                    added.append({"header": {"key": key, "value": value}, "append_action": action})
        if added:
            out[f"{name}_headers_to_add"] = added
        removed = [k for k in rules.get("remove") or [] if not internal(k)]
        if removed:
            out[f"{name}_headers_to_remove"] = removed
    out["authority"] = authority
    return out


def internal(key):
    return key.startswith(":") or key.lower() == "host"


def redirect(rule, port):
    out = {}
    if rule.get("authority"):
        out["host_redirect"] = rule["authority"]
    if rule.get("prefixRewrite"):
        out["prefix_rewrite"] = rule["prefixRewrite"]
    elif rule.get("uri"):
        out["path_redirect"] = rule["uri"]
    if rule.get("scheme"):
        out["scheme_redirect"] = rule["scheme"]
    chosen = rule.get("port", port if rule.get("derivePort") == "FROM_REQUEST_PORT" else 0)
    if chosen and (chosen, rule.get("scheme") or "http") not in ((80, "http"), (443, "https")):
        out["port_redirect"] = chosen
    out["response_code"] = REDIRECTS[rule.get("redirectCode") or 301]
    return out


def direct_response(rule):
    out = {"status": rule["status"]}
    body = rule.get("body") or {}
    if "string" in body:
        out["body"] = {"inline_string": body["string"]}
    elif "bytes" in body:
        out["body"] = {"inline_bytes": body["bytes"]}
    return out


def millionths(value):
    return {"numerator": int(value * 10000), "denominator": "MILLION"}


def fault(rule):
    out = {"@type": TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"}
    if "delay" in rule:
        delay = rule["delay"]
        share = millionths(delay["percentage"].get("value", 0)) if "percentage" in delay \
            else {"numerator": delay.get("percent", 0), "denominator": "HUNDRED"}
        out["delay"] = {"percentage": share, "fixed_delay": duration(delay["fixedDelay"])}
    if "abort" in rule:
        abort = rule["abort"]
        out["abort"] = {}
        if "percentage" in abort:
            out["abort"]["percentage"] = millionths(abort["percentage"].get("value", 0))
        if "httpStatus" in abort:
            out["abort"]["http_status"] = abort["httpStatus"]
        else:
            out["abort"]["grpc_status"] = GRPC_CODES.index(abort["grpcStatus"])
    return out


def cors(rule):
    out = {"@type": TYPE + "envoy.extensions.filters.http.cors.v3.CorsPolicy",
           "forward_not_matching_preflights": rule.get("unmatchedPreflights") != "IGNORE",
           "filter_enabled": {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}}
    origins = [string_match(o) for o in rule.get("allowOrigins") or []] or [{"exact": o} for o in rule.get("allowOrigin") or []]
    if origins:
        out["allow_origin_string_match"] = origins
    for key in ("allowHeaders", "allowMethods", "exposeHeaders"):
        if rule.get(key):
            out[key[:-7].lower() + "_" + key[-7:].lower()] = ",".join(rule[key])
    if "maxAge" in rule:
        out["max_age"] = str(int(seconds(rule["maxAge"])))
    if "allowCredentials" in rule:
        out["allow_credentials"] = rule["allowCredentials"]
    return out


def seconds(text):
    """`1h30m`, `1.5s`, `400ms` in seconds."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(ms|h|m|s)", text))


def duration(text):
    """Envoy reads seconds only."""
    return f"{seconds(text):g}s"


def retry_policy(rule, consistent):
    policy = {"num_retries": 2, "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
              "host_selection_retry_max_attempts": 5}
    if not consistent:
        policy["retry_host_predicate"] = [PREVIOUS_HOSTS]
    if rule is None:
        return policy
    if rule.get("attempts", 0) <= 0:
        return None
    policy["num_retries"] = rule["attempts"]
    if rule.get("retryOn"):
        words = [w.strip() for w in rule["retryOn"].split(",") if w.strip()]
        codes = [int(w) for w in words if w.isdigit()]
        words = [w for w in words if not w.isdigit()]
        if codes and "retriable-status-codes" not in words:
            words.append("retriable-status-codes")
        policy["retry_on"] = ",".join(words)
        if codes:
            policy["retriable_status_codes"] = codes
    if "perTryTimeout" in rule:
        policy["per_try_timeout"] = duration(rule["perTryTimeout"])
    if "retryIgnorePreviousHosts" in rule:
        policy.pop("retry_host_predicate", None)
        if rule["retryIgnorePreviousHosts"]:
            policy["retry_host_predicate"] = [PREVIOUS_HOSTS]
    if rule.get("retryRemoteLocalities"):
        policy["retry_priority"] = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": TYPE + "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 2}}
    if "backoff" in rule:
        policy["retry_back_off"] = {"base_interval": duration(rule["backoff"])}
    return policy


# ---- parts of a cluster -------------------------------------------------------------------------

def merged_destination_rules(documents):
    """By host: subsets united, the first top-level policy kept."""
    out = {}
    for d in documents:
        if d["kind"] != "DestinationRule":
            continue
        host = d["spec"]["host"]
        if "." not in host and not host.startswith("*"):
            host = f"{host}.{d['metadata']['namespace']}{SUFFIX}"
        spec = copy.deepcopy(d["spec"])
        if host not in out:
            out[host] = spec
            continue
        known = {s["name"] for s in out[host].get("subsets") or []}
        out[host].setdefault("subsets", []).extend(s for s in spec.get("subsets") or [] if s["name"] not in known)
        if not out[host].get("trafficPolicy"):
            out[host]["trafficPolicy"] = spec.get("trafficPolicy")
    return out


def port_policy(policy, port):
    for level in policy.get("portLevelSettings") or []:
        if level["port"]["number"] == port:
            return level
    return policy


def merge_policy(base, own):
    return {**base, **(own or {})}


def consistent_hash(policy):
    return (policy.get("loadBalancer") or {}).get("consistentHash")


def hash_policy(rule):
    if not rule:
        return None
    if "httpHeaderName" in rule:
        return {"header": {"header_name": rule["httpHeaderName"]}}
    if "httpQueryParameterName" in rule:
        return {"query_parameter": {"name": rule["httpQueryParameterName"]}}
    if rule.get("useSourceIp"):
        return {"connection_properties": {"source_ip": True}}
    if "httpCookie" in rule:
        cookie = rule["httpCookie"]
        out = {k: cookie[k] for k in ("name", "path") if k in cookie}
        if "ttl" in cookie:
            out["ttl"] = duration(cookie["ttl"])
        if cookie.get("attributes"):
            out["attributes"] = cookie["attributes"]
        return {"cookie": out}
    return None


def outlier_detection(rule):
    out = {"enforcing_success_rate": 0}
    for key, name in (("consecutive5xxErrors", "consecutive_5xx"), ("consecutiveGatewayErrors", "consecutive_gateway_failure")):
        if key in rule:
            out[name] = rule[key]
            out["enforcing_" + name] = 100 if rule[key] else 0
    for key, name in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
        if key in rule:
            out[name] = duration(rule[key])
    if rule.get("maxEjectionPercent"):
        out["max_ejection_percent"] = rule["maxEjectionPercent"]
    if rule.get("splitExternalLocalOriginErrors"):
        out["split_external_local_origin_errors"] = True
        if rule.get("consecutiveLocalOriginFailures"):
            out["consecutive_local_origin_failure"] = rule["consecutiveLocalOriginFailures"]
            out["enforcing_consecutive_local_origin_failure"] = 100
        out["enforcing_local_origin_success_rate"] = 0
    return out


def protocol_options(port, http, tcp, outlier):
    out, common = {}, {}
    idle = http.get("idleTimeout", tcp.get("idleTimeout"))
    if idle:
        common["idle_timeout"] = duration(idle)
    if http.get("maxRequestsPerConnection"):
        common["max_requests_per_connection"] = http["maxRequestsPerConnection"]
    if tcp.get("maxConnectionDuration"):
        common["max_connection_duration"] = duration(tcp["maxConnectionDuration"])
    if common:
        out["common_http_protocol_options"] = common
    if http.get("useClientProtocol"):
        out["use_downstream_protocol_config"] = {"http_protocol_options": {}, "http2_protocol_options": {}}
    elif port["protocol"].upper() in ("HTTP2", "GRPC") or http.get("h2UpgradePolicy") == "UPGRADE":
        h2 = {}
        if http.get("maxConcurrentStreams"):
            h2["max_concurrent_streams"] = http["maxConcurrentStreams"]
        out["explicit_http_config"] = {"http2_protocol_options": h2}
    elif common:
        out["explicit_http_config"] = {"http_protocol_options": {}}
    codes = (outlier or {}).get("outlierDetectionHttpErrorCodes")
    if codes:
        rules = [{"http_response_headers_match": {"headers": [{"name": ":status", "string_match": {"exact": str(c)}}]}} for c in codes]
        out["outlier_detection"] = {"error_matcher": rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}}
        out.setdefault("explicit_http_config", {"http_protocol_options": {}})
    return out


def balance(cluster, rule):
    simple = rule.get("simple")
    if simple == "PASSTHROUGH":
        cluster.update({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"})
        del cluster["load_assignment"]
        return
    if simple in ("RANDOM", "ROUND_ROBIN"):
        cluster["lb_policy"] = simple
    rule = rule.get("consistentHash")
    if rule is None:
        return
    if "maglev" in rule:
        cluster["lb_policy"] = "MAGLEV"
        if rule["maglev"].get("tableSize"):
            cluster["maglev_lb_config"] = {"table_size": rule["maglev"]["tableSize"]}
        return
    cluster["lb_policy"] = "RING_HASH"
    if "ringHash" in rule:
        if rule["ringHash"].get("minimumRingSize"):
            cluster["ring_hash_lb_config"] = {"minimum_ring_size": rule["ringHash"]["minimumRingSize"]}
    else:
        cluster["ring_hash_lb_config"] = {"minimum_ring_size": rule.get("minimumRingSize") or 1024}


def same_start(mine, theirs):
    return sum(1 for n in (1, 2, 3) if mine.split("/")[:n] == theirs.split("/")[:n] and len(theirs.split("/")) >= n)


def name_of(group):
    return "/".join(group.get("locality", {}).values())


def covers(pattern, locality):
    parts, names = pattern.split("/"), locality.split("/")
    return all(p == "*" or (i < len(names) and names[i] == p) for i, p in enumerate(parts))


def fail_over(assignment, mine, rules):
    """Priorities: 0 same sub-zone, 1 zone, 2 region, 3 the failover region (or any other), 4 the rest; then made dense."""
    if not mine:
        return
    region = mine.split("/")[0]
    for group in assignment["endpoints"]:
        theirs = name_of(group)
        level = 3 - same_start(mine, theirs)
        if level == 3:
            named = [r["to"] for r in rules if r["from"] == region]
            if named and theirs.split("/")[0] not in named:
                level = 4
        group["priority"] = level
    dense = {p: i for i, p in enumerate(sorted({g["priority"] for g in assignment["endpoints"]}))}
    for group in assignment["endpoints"]:
        group["priority"] = dense[group["priority"]]


def distribute(assignment, mine, rules):
    """Weights of the first rule whose `from` covers the client; localities it does not name are left out."""
    rule = next((r for r in rules if covers(r["from"], mine)), None)
    if rule is None:
        return
    out = []
    taken = set()
    for pattern, weight in sorted(rule["to"].items(), key=lambda i: -len(i[0])):
        groups = [g for g in assignment["endpoints"] if id(g) not in taken and covers(pattern, name_of(g))]
        total = sum(g["load_balancing_weight"] for g in groups)
        for group in groups:
            taken.add(id(group))
            group["load_balancing_weight"] = max(1, -(-weight * group["load_balancing_weight"] // total))
            out.append(group)
    assignment["endpoints"] = [g for g in assignment["endpoints"] if g in out]


# ---- command line -------------------------------------------------------------------------------

def translate(folder):
    with open(folder + "/services.yaml") as services, open(folder + "/rules.yaml") as rules:
        return Translation(yaml.safe_load(services), list(yaml.safe_load_all(rules))).bootstrap()


def write(folder):
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True
    with open(folder + "/envoy.yaml.tmpl", "w") as file:
        file.write(HEAD + yaml.dump(translate(folder), Dumper=Plain, sort_keys=False, width=120))


def check(shared):
    """Compares with other bootstraps for the same rules; prints what differs."""
    import json
    differ = 0
    cases = shared + "/conformance/cases"
    for name in sorted(os.listdir(cases)):
        try:
            with open(f"{cases}/{name}/envoy.yaml.tmpl") as file:
                theirs = yaml.safe_load(file)
            ours = translate(f"{cases}/{name}")
        except Exception as error:
            print(f"{name}: not compared: {str(error).splitlines()[0]}")
            continue
        lines = list(differences(json.loads(json.dumps(theirs)), json.loads(json.dumps(ours)), ""))
        differ += bool(lines)
        print(f"{name}: {'same' if not lines else 'DIFFERS'}", *lines, sep="\n    ")
    return 1 if differ else 0


def differences(a, b, path):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        if a and isinstance(a[0], dict) and "name" in a[0]:
            a, b = sorted(a, key=lambda x: str(x.get("name"))), sorted(b, key=lambda x: str(x.get("name")))
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield f"{path}: {a} / {b}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        sys.exit(check(sys.argv[2]))
    for folder in sys.argv[1:]:
        write(folder.rstrip("/"))
